/// @file options.hpp
/// What the config says about one Kafka cluster: its URL and its options, taken apart into what the
/// adapter decides itself and the client library's own properties. Knows nothing of the library.
#pragma once

#include <mq/config.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/detail/duration.hpp>
#include <mq/detail/option_text.hpp>
#include <mq/url.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::kafka {

/// A librdkafka property, and its value.
using Property = std::pair<std::string, std::string>;

namespace detail {

/// The value that counts, the last one; nothing where the property is not there.
inline std::optional<std::string> FindProperty(const std::vector<Property>& properties,
                                               std::string_view name) {
    const auto found = std::find_if(properties.rbegin(), properties.rend(),
                                    [&](const Property& property) { return property.first == name; });
    if (found == properties.rend()) return std::nullopt;
    return found->second;
}

}  // namespace detail

/// The options of `[brokers.NAME]`. Besides those that are named here, every other name is a librdkafka
/// property, given to the producer and the consumer alike; with "producer." or "consumer." before it,
/// to one of them.
struct Options {
    /// Whether a topic that is missing is created. Where false, it is ErrorCode::kNotFound.
    bool declare = true;
    /// The number of partitions of a topic that is created; the broker's default where not given.
    std::optional<int> partitions = {};
    /// Its replication factor; the broker's default where not given.
    std::optional<int> replication = {};
    /// How long a partition that goes to another member waits for the handlers that have its messages;
    /// RevokeWait says what holds where it is not given. See kafka.hpp.
    std::optional<std::chrono::milliseconds> revoke_wait = {};
    std::vector<Property> both = {};
    std::vector<Property> producer = {};
    std::vector<Property> consumer = {};

    /// Whether the broker may create a topic by itself, with its own defaults, when it is first asked
    /// for: only where that is what the options ask for anyway.
    [[nodiscard]] bool AutoCreate() const { return declare && !partitions && !replication; }

    /// How long a consumer may go without being polled before its group goes on without it.
    [[nodiscard]] std::chrono::milliseconds MaxPollInterval() const {
        constexpr std::int64_t kDefault = 300'000;  // librdkafka's
        constexpr std::int64_t kLongest = 86'400'000;
        for (const auto* const properties : {&consumer, &both}) {
            const auto text = detail::FindProperty(*properties, "max.poll.interval.ms");
            if (!text) continue;
            const auto number = mq::detail::ReadNumber<std::int64_t>(*text, 1, kLongest);
            return std::chrono::milliseconds{number.value_or(kDefault)};
        }
        return std::chrono::milliseconds{kDefault};
    }

    /// The longest time that revoke_wait may be: what comes after the wait needs some time too.
    [[nodiscard]] std::chrono::milliseconds LongestRevokeWait() const {
        constexpr std::chrono::milliseconds kCommit{5000};
        return std::max(MaxPollInterval() - kCommit, std::chrono::milliseconds{0});
    }

    [[nodiscard]] std::chrono::milliseconds RevokeWait() const {
        constexpr std::chrono::milliseconds kDefault{30'000};
        return revoke_wait.value_or(std::min(kDefault, LongestRevokeWait()));
    }
};

inline constexpr std::uint16_t kDefaultPort = 9092;

namespace detail {

/// A property that the adapter sets itself, and why nobody else may.
struct Reserved {
    std::string_view property = {};
    std::string_view reason = {};
};

inline constexpr std::string_view kFromUrl = "the brokers come from the URL";
inline constexpr std::string_view kSettled =
    "positions are committed to the broker when messages are settled, which at-least-once depends on";
inline constexpr std::string_view kConfirmed =
    "a confirmed message is one that all in-sync replicas have, acks=all";
inline constexpr std::string_view kTimeout = "it follows send_timeout of [client]";
inline constexpr std::string_view kInFlight =
    "with several requests under way, librdkafka confirms messages that a new leader has refused";
inline constexpr std::string_view kCallbacks = "the adapter takes what librdkafka reports by callbacks";
inline constexpr std::string_view kDeclare =
    "the option \"declare\" says whether missing topics are created";

inline constexpr std::array<Reserved, 27> kReserved{{
    {"bootstrap.servers", kFromUrl},
    {"metadata.broker.list", kFromUrl},
    {"group.id", "the group comes from the subscription"},
    {"group.protocol.type", "the members of a group could not be asked for"},
    {"enable.auto.commit", kSettled},
    {"auto.commit.enable", kSettled},
    {"enable.auto.offset.store", kSettled},
    {"offset.store.method", kSettled},
    {"offset.store.path", kSettled},
    {"offset.store.sync.interval.ms", kSettled},
    {"auto.offset.reset",
     "a new group begins at the earliest message, for it would skip what was confirmed before it had "
     "its partitions"},
    {"enable.partition.eof", "the adapter needs the end of a partition to tell whether it is drained"},
    {"topic.blacklist", "a topic that is hidden would pass for one that does not exist and is drained"},
    {"acks", kConfirmed},
    {"request.required.acks", kConfirmed},
    {"enable.idempotence",
     "it is on, for without it a repeated request makes a second message, or overtakes another one"},
    {"enable.gapless.guarantee", "a single message that is refused would end the producer"},
    {"max.in.flight", kInFlight},
    {"max.in.flight.requests.per.connection", kInFlight},
    {"message.timeout.ms", kTimeout},
    {"delivery.timeout.ms", kTimeout},
    {"transactional.id", "messages are not sent in transactions"},
    {"allow.auto.create.topics", kDeclare},
    {"topic.metadata.propagation.max.ms", kDeclare},
    {"log.queue", kCallbacks},
    {"enabled_events", kCallbacks},
    {"delivery.report.only.error", "every message needs its delivery report"},
}};

/// A property of which not every value will do.
struct Limited {
    std::string_view property = {};
    bool (*good)(const std::string& text) = nullptr;
    std::string_view expected = {};
};

inline constexpr std::array<Limited, 2> kLimited{{
    {"auto.commit.interval.ms",
     [](const std::string& text) { return mq::detail::ReadNumber(text, 1, 60'000).has_value(); },
     "a number of milliseconds from 1 to 60000: with 0 nothing is committed, and what is committed "
     "late "
     "is delivered again and looks unsettled to other clients"},
    {"partitioner", [](const std::string& text) { return text != "random"; },
     "a partitioner that leaves the messages of a key in one partition, which keeps their order, such "
     "as murmur2_random"},
}};

inline bool HasProperty(const Options& options, std::string_view name) {
    return FindProperty(options.both, name) || FindProperty(options.producer, name) ||
           FindProperty(options.consumer, name);
}

}  // namespace detail

/// Whether a property's value must not be shown.
inline bool IsSecret(std::string_view property) {
    constexpr std::array<std::string_view, 6> kParts{"password",           "secret", ".pem",
                                                     "oauthbearer.config", "jaas",   "kinit.cmd"};
    return std::any_of(kParts.begin(), kParts.end(), [&](std::string_view part) {
        return property.find(part) != std::string_view::npos;
    });
}

namespace detail {

/// Sorts options one by one and keeps what is wrong with them.
class OptionSorter {
public:
    OptionSorter(Options& options, std::vector<ConfigProblem>& problems)
        : options_(options), problems_(problems) {}

    void Sort(const std::string& name, const std::string& text) {
        if (name == "declare") {
            if (!mq::detail::ReadBool(text, options_.declare)) Expected(name, text, "true or false");
        } else if (name == "partitions") {
            ReadCount(name, text, 100'000, options_.partitions);
        } else if (name == "replication") {
            ReadCount(name, text, 32'767, options_.replication);
        } else if (name == "revoke_wait") {
            options_.revoke_wait = mq::detail::ParseDuration(text);
            if (!options_.revoke_wait) Expected(name, text, "a duration such as \"30s\"");
        } else {
            SortProperty(name, text);
        }
    }

    /// What only several options together show.
    void CheckTogether() {
        if (!options_.revoke_wait || *options_.revoke_wait <= options_.LongestRevokeWait()) return;
        Expected("revoke_wait", mq::detail::FormatDuration(*options_.revoke_wait),
                 "at most " + mq::detail::FormatDuration(options_.LongestRevokeWait()) +
                     ", 5s less than max.poll.interval.ms: then the group goes on without this member");
    }

private:
    void Expected(const std::string& name, const std::string& text, std::string_view what) {
        problems_.push_back({KeyPath("options", name),
                             "found " + mq::detail::Shown(text) + ", expected " + std::string{what}});
    }

    void ReadCount(const std::string& name, const std::string& text, int highest,
                   std::optional<int>& count) {
        count = mq::detail::ReadNumber(text, 1, highest);
        if (!count) Expected(name, text, "a number from 1 to " + std::to_string(highest));
    }

    void SortProperty(const std::string& name, const std::string& text) {
        std::string_view property = name;
        std::vector<Property>* place = &options_.both;
        if (property.starts_with("producer.")) {
            property.remove_prefix(std::string_view{"producer."}.size());
            place = &options_.producer;
        } else if (property.starts_with("consumer.")) {
            property.remove_prefix(std::string_view{"consumer."}.size());
            place = &options_.consumer;
        }
        const auto named = [&](const auto& entry) { return entry.property == property; };
        const auto reserved = std::find_if(kReserved.begin(), kReserved.end(), named);
        if (reserved != kReserved.end()) {
            problems_.push_back(
                {KeyPath("options", name), "\"" + std::string{property} + "\" cannot be set: " +
                                               std::string{reserved->reason} + "; remove it"});
            return;
        }
        const auto limited = std::find_if(kLimited.begin(), kLimited.end(), named);
        if (limited != kLimited.end() && !limited->good(text)) {
            Expected(name, text, limited->expected);
            return;
        }
        place->emplace_back(property, text);
    }

    Options& options_;
    std::vector<ConfigProblem>& problems_;
};

}  // namespace detail

/// Sorts the options. What is wrong is added to `problems`; whether librdkafka knows a property is not
/// decided here.
inline Options ParseOptions(const std::map<std::string, std::string>& texts,
                            std::vector<ConfigProblem>& problems) {
    Options options;
    detail::OptionSorter sorter{options, problems};
    for (const auto& [name, text] : texts) sorter.Sort(name, text);
    sorter.CheckTogether();
    return options;
}

/// What is wrong with a URL for this adapter, alone and beside the options.
inline void CheckUrl(const Url& url, const Options& options, std::vector<ConfigProblem>& problems) {
    const auto problem = [&](std::string text) { problems.push_back({"url", std::move(text)}); };
    if (url.hosts.empty()) problem("a Kafka URL needs at least one host, as in kafka://HOST:9092");
    if (url.path && !url.path->empty()) {
        problem("a Kafka URL has no path: expected " + url.scheme + "://HOST:PORT,HOST:PORT");
    }
    if (!url.query.empty()) {
        problem("a Kafka URL has no parameters after '?': they belong into options");
    }
    if (url.user.empty() != url.password.empty()) {
        problem("expected both a user and a password, as in " + url.scheme + "://USER:PASSWORD@HOST");
    }
    if (!url.user.empty() && (detail::HasProperty(options, "sasl.username") ||
                              detail::HasProperty(options, "sasl.password"))) {
        problem("the user and the password are in the URL and in options: expected one of them");
    }
    for (const auto* properties : {&options.both, &options.producer, &options.consumer}) {
        for (const auto& [name, value] : *properties) {
            if (name != "security.protocol" || url.scheme != "kafkas") continue;
            if (value == "ssl" || value == "sasl_ssl" || value == "SSL" || value == "SASL_SSL")
                continue;
            problems.push_back({KeyPath("options", name),
                                "kafkas:// means TLS, expected ssl or sasl_ssl, or a URL kafka://"});
        }
    }
}

/// The properties that follow from the URL. An option may give another `security.protocol`.
inline std::vector<Property> UrlProperties(const Url& url) {
    std::string servers;
    for (const HostPort& host : url.hosts) {
        if (!servers.empty()) servers += ',';
        const bool literal = host.host.find(':') != std::string::npos;
        servers += literal ? "[" + host.host + "]" : host.host;
        servers += ":" + std::to_string(host.port != 0 ? host.port : kDefaultPort);
    }
    const bool tls = url.scheme == "kafkas";
    const bool sasl = !url.user.empty();
    std::vector<Property> properties{{"bootstrap.servers", servers}};
    if (tls) properties.emplace_back("ssl.endpoint.identification.algorithm", "https");
    if (sasl) {
        properties.emplace_back("security.protocol", tls ? "sasl_ssl" : "sasl_plaintext");
        properties.emplace_back("sasl.mechanisms", "PLAIN");
        properties.emplace_back("sasl.username", url.user);
        properties.emplace_back("sasl.password", url.password);
    } else if (tls) {
        properties.emplace_back("security.protocol", "ssl");
    }
    return properties;
}

/// Whether Kafka takes this as the name of a topic: letters, digits, '.', '_' and '-', at most 249, and
/// neither "." nor "..".
inline bool IsTopicName(std::string_view name) {
    constexpr std::string_view kLegal =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    constexpr std::size_t kLongest = 249;
    return !name.empty() && name.size() <= kLongest && name != "." && name != ".." &&
           name.find_first_not_of(kLegal) == std::string_view::npos;
}

}  // namespace mq::kafka
