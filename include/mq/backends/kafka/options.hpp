/// @file options.hpp
/// What the config says about one Kafka cluster: its URL and its options, taken apart into what the
/// adapter decides itself and the client library's own properties. Knows nothing of the library.
#pragma once

#include <mq/config.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/url.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::kafka {

/// A librdkafka property, and its value.
using Property = std::pair<std::string, std::string>;

/// The options of `[brokers.NAME]`. Besides the three named here, every other name is a librdkafka
/// property, given to the producer and the consumer alike; with "producer." or "consumer." before it,
/// to one of them.
struct Options {
    /// Whether a topic that is missing is created. Where false, it is ErrorCode::kNotFound.
    bool declare = true;
    /// The number of partitions of a topic that is created; the broker's default where not given.
    std::optional<int> partitions = {};
    /// Its replication factor; the broker's default where not given.
    std::optional<int> replication = {};
    std::vector<Property> both = {};
    std::vector<Property> producer = {};
    std::vector<Property> consumer = {};

    /// Whether the broker may create a topic by itself, with its own defaults, when it is first asked
    /// for: only where that is what the options ask for anyway.
    [[nodiscard]] bool AutoCreate() const { return declare && !partitions && !replication; }
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
    "positions are committed when messages are settled, which at-least-once depends on";
inline constexpr std::string_view kConfirmed =
    "a confirmed message is one that all in-sync replicas have, acks=all";
inline constexpr std::string_view kTimeout = "it follows send_timeout of [client]";

inline constexpr std::string_view kInFlight =
    "with several requests under way, librdkafka confirms messages that a new leader has refused";

inline constexpr std::array<Reserved, 17> kReserved{{
    {"bootstrap.servers", kFromUrl},
    {"metadata.broker.list", kFromUrl},
    {"group.id", "the group comes from the subscription"},
    {"enable.auto.commit", kSettled},
    {"auto.commit.enable", kSettled},
    {"enable.auto.offset.store", kSettled},
    {"enable.partition.eof", "the adapter needs the end of a partition to tell whether it is drained"},
    {"acks", kConfirmed},
    {"request.required.acks", kConfirmed},
    {"max.in.flight", kInFlight},
    {"max.in.flight.requests.per.connection", kInFlight},
    {"message.timeout.ms", kTimeout},
    {"delivery.timeout.ms", kTimeout},
    {"transactional.id", "messages are not sent in transactions"},
    {"allow.auto.create.topics", "the option \"declare\" says whether missing topics are created"},
    {"log.queue", "what librdkafka logs goes to the client's log"},
    {"delivery.report.only.error", "every message needs its delivery report"},
}};

inline bool ReadBool(std::string_view text, bool& value) {
    if (text != "true" && text != "false") return false;
    value = text == "true";
    return true;
}

inline bool ReadCount(std::string_view text, int highest, std::optional<int>& value) {
    int number = 0;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (code != std::errc{} || end != text.data() + text.size()) return false;
    if (number < 1 || number > highest) return false;
    value = number;
    return true;
}

/// The value that counts, the last one; nothing where the property is not there.
inline std::optional<std::string> FindProperty(const std::vector<Property>& properties,
                                               std::string_view name) {
    const auto found = std::find_if(properties.rbegin(), properties.rend(),
                                    [&](const Property& property) { return property.first == name; });
    if (found == properties.rend()) return std::nullopt;
    return found->second;
}

inline bool HasProperty(const Options& options, std::string_view name) {
    return FindProperty(options.both, name) || FindProperty(options.producer, name) ||
           FindProperty(options.consumer, name);
}

}  // namespace detail

/// Whether a property's value must not be shown.
inline bool IsSecret(std::string_view property) {
    constexpr std::array<std::string_view, 5> kParts{"password", "secret", ".pem", "oauthbearer.config",
                                                     "jaas"};
    return std::any_of(kParts.begin(), kParts.end(), [&](std::string_view part) {
        return property.find(part) != std::string_view::npos;
    });
}

/// Sorts the options. What is wrong is added to `problems`; whether librdkafka knows a property is not
/// decided here.
inline Options ParseOptions(const std::map<std::string, std::string>& texts,
                            std::vector<ConfigProblem>& problems) {
    Options options;
    const auto expected = [&](const std::string& name, const std::string& text, const char* what) {
        problems.push_back(
            {KeyPath("options", name), "found " + mq::detail::Shown(text) + ", expected " + what});
    };
    for (const auto& [name, text] : texts) {
        if (name == "declare") {
            if (!detail::ReadBool(text, options.declare)) expected(name, text, "true or false");
            continue;
        }
        if (name == "partitions") {
            if (!detail::ReadCount(text, 100'000, options.partitions)) {
                expected(name, text, "a number from 1 to 100000");
            }
            continue;
        }
        if (name == "replication") {
            if (!detail::ReadCount(text, 32'767, options.replication)) {
                expected(name, text, "a number from 1 to 32767");
            }
            continue;
        }
        std::string_view property = name;
        std::vector<Property>* place = &options.both;
        if (property.starts_with("producer.")) {
            property.remove_prefix(std::string_view{"producer."}.size());
            place = &options.producer;
        } else if (property.starts_with("consumer.")) {
            property.remove_prefix(std::string_view{"consumer."}.size());
            place = &options.consumer;
        }
        const auto reserved =
            std::find_if(detail::kReserved.begin(), detail::kReserved.end(),
                         [&](const detail::Reserved& entry) { return entry.property == property; });
        if (reserved != detail::kReserved.end()) {
            problems.push_back(
                {KeyPath("options", name),
                 "\"" + std::string{property} + "\" cannot be set: " + std::string{reserved->reason}});
            continue;
        }
        place->emplace_back(property, text);
    }
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
