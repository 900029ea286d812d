/// @file options.hpp
/// What the config says about one RabbitMQ broker: its URL and its options, read and checked without
/// connecting. Knows nothing of the client library.
#pragma once

#include <mq/backends/rabbitmq/management.hpp>
#include <mq/config.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/detail/duration.hpp>
#include <mq/detail/option_text.hpp>
#include <mq/url.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::rabbitmq {

enum class QueueType : unsigned char { kClassic, kQuorum };

/// The options of `[brokers.NAME]`, by the names that they have in the config.
struct Options {
    /// Whether exchanges, queues and bindings that are missing are made. Where false, nothing is ever
    /// declared or bound, and what is missing is ErrorCode::kNotFound.
    bool declare = true;
    /// The type of an exchange that is declared. An existing exchange is used as it is.
    std::string exchange_type = "fanout";
    /// The type of a queue that is declared. An existing queue is used as it is.
    QueueType queue_type = QueueType::kClassic;
    /// The name of a group's queue; {address}, {group} and {topic} stand for themselves.
    std::string queue_name = "{address}.{group}";
    /// The routing key of every message, with {address} and {topic}. Empty: the message's key.
    std::string routing_key = {};
    /// The key that queues are bound with, with {address}, {group} and {topic}. Empty: routing_key
    /// where that is set, else "#", which a topic exchange takes for everything and a fanout one
    /// ignores.
    std::string binding_key = {};
    /// How many messages may be on the wire unconfirmed.
    std::size_t confirm_window = 2000;
    /// The largest body in bytes. A broker closes the channel over a larger one; the default is the
    /// smallest that a RabbitMQ is delivered with (4.0; 3.8 to 3.13 take 128 MiB).
    std::size_t max_message_size = std::size_t{16} << 20u;
    /// How often each end shows that it lives. A connection is given up after two of them in silence.
    std::chrono::seconds heartbeat{10};
    /// The longest time for connecting to one host: TCP with the lookup of its name and all its
    /// addresses, TLS, and login each.
    std::chrono::milliseconds connect_timeout = std::chrono::seconds{10};
    /// Whether an amqps:// broker must show a certificate for its host name that tls.ca vouches for.
    bool tls_verify = true;
    std::string tls_ca = {};    ///< A PEM file; empty: the certificates that the system trusts.
    std::string tls_cert = {};  ///< A PEM file with the client's certificate chain; empty for none.
    std::string tls_key = {};   ///< A PEM file with its private key.
    /// Where the management HTTP API is; nothing where it is not to be asked.
    std::optional<Url> management = {};
    /// How old its counts may be: the broker's collect_statistics_interval, and the time that a count
    /// takes to show.
    std::chrono::milliseconds management_age = std::chrono::seconds{6};
};

namespace detail {

using Problems = std::vector<ConfigProblem>;

/// Reads options one by one and keeps what is wrong with them.
class OptionReader {
public:
    OptionReader(Options& options, Problems& problems) : options_(options), problems_(problems) {}

    void Read(const std::string& name, const std::string& text) {
        for (const Entry& entry : Table()) {
            if (entry.name != name) continue;
            if (!(this->*entry.read)(text)) Expected(name, text, entry.expected);
            return;
        }
        std::vector<std::string> known;
        for (const Entry& entry : Table()) known.emplace_back(entry.name);
        problems_.push_back(
            {KeyPath("options", name), "RabbitMQ has no option " + mq::detail::Shown(name) +
                                           mq::detail::Suggestion(name, known) + ", expected one of " +
                                           mq::detail::Enumerate(known)});
    }

    /// What only several options together show.
    void CheckTogether() {
        if (options_.exchange_type == "direct" && options_.routing_key.empty()) {
            problems_.push_back(
                {KeyPath("options", "exchange_type"),
                 "a direct exchange gives a queue only what has its binding's key, "
                 "expected routing_key to be set as well, or the type fanout or topic"});
        }
        if (options_.tls_cert.empty() != options_.tls_key.empty()) {
            problems_.push_back({KeyPath("options", options_.tls_cert.empty() ? "tls.cert" : "tls.key"),
                                 "expected a PEM file: tls.cert and tls.key belong together"});
        }
    }

private:
    struct Entry {
        std::string_view name;
        std::string_view expected;
        bool (OptionReader::*read)(const std::string&);
    };

    static const std::vector<Entry>& Table() {
        using Self = OptionReader;
        static const std::vector<Entry> table{
            {"declare", "true or false", &Self::Declare},
            {"exchange_type", "fanout, topic, headers, direct or a plugin's x-… type",
             &Self::ExchangeType},
            {"queue_type", "classic or quorum", &Self::QueueTypeOption},
            {"queue_name", "a name with {group}, and perhaps {address} and {topic}, in it",
             &Self::QueueName},
            {"routing_key", "a text of at most 255 bytes, perhaps with {address} and {topic} in it",
             &Self::RoutingKey},
            {"binding_key",
             "a text of at most 255 bytes, perhaps with {address}, {group} and {topic} in it",
             &Self::BindingKey},
            {"confirm_window", "a number of messages from 1 to 100000", &Self::ConfirmWindow},
            {"max_message_size", "a number of bytes from 1 to 536870912", &Self::MaxMessageSize},
            {"heartbeat", "a duration from 1s to 10m, in whole seconds", &Self::Heartbeat},
            {"connect_timeout", "a duration from 100ms to 5m", &Self::ConnectTimeout},
            {"tls.verify", "true or false", &Self::TlsVerify},
            {"tls.ca", "the path of a PEM file", &Self::TlsCa},
            {"tls.cert", "the path of a PEM file", &Self::TlsCert},
            {"tls.key", "the path of a PEM file", &Self::TlsKey},
            {"management", "http://HOST:PORT or https://HOST:PORT", &Self::Management},
            {"management_age", "a duration from 100ms to 10m", &Self::ManagementAge},
        };
        return table;
    }

    void Expected(const std::string& name, const std::string& text, std::string_view expected) {
        problems_.push_back({KeyPath("options", name), "found " + mq::detail::Shown(text) +
                                                           ", expected " + std::string{expected}});
    }

    bool Declare(const std::string& text) { return mq::detail::ReadBool(text, options_.declare); }

    bool ExchangeType(const std::string& text) {
        const bool plugin = text.starts_with("x-") && text.size() <= 255;
        if (text != "fanout" && text != "topic" && text != "headers" && text != "direct" && !plugin) {
            return false;
        }
        options_.exchange_type = text;
        return true;
    }

    bool QueueTypeOption(const std::string& text) {
        if (text != "classic" && text != "quorum") return false;
        options_.queue_type = text == "quorum" ? QueueType::kQuorum : QueueType::kClassic;
        return true;
    }

    bool QueueName(const std::string& text) {
        // Without the group in it, all groups would share one queue and each get a part of the
        // messages.
        options_.queue_name = text;
        return text.find("{group}") != std::string::npos &&
               mq::detail::PlaceholdersKnown(text, {"address", "group", "topic"});
    }

    bool RoutingKey(const std::string& text) {
        options_.routing_key = text;
        return text.size() <= 255 && mq::detail::PlaceholdersKnown(text, {"address", "topic"});
    }

    bool BindingKey(const std::string& text) {
        options_.binding_key = text;
        return text.size() <= 255 && mq::detail::PlaceholdersKnown(text, {"address", "group", "topic"});
    }

    bool ConfirmWindow(const std::string& text) {
        const auto number = mq::detail::ReadNumber<std::size_t>(text, 1, 100'000);
        if (number) options_.confirm_window = *number;
        return number.has_value();
    }

    bool MaxMessageSize(const std::string& text) {
        // 512 MiB is the most that a RabbitMQ can be configured for.
        const auto number = mq::detail::ReadNumber<std::size_t>(text, 1, std::size_t{512} << 20u);
        if (number) options_.max_message_size = *number;
        return number.has_value();
    }

    bool Heartbeat(const std::string& text) {
        const auto plain = mq::detail::ReadNumber<std::int64_t>(text, 1, 600);
        const auto time = plain ? std::chrono::seconds{*plain} : mq::detail::ParseDuration(text);
        if (!time || *time % std::chrono::seconds{1} != std::chrono::milliseconds{0}) return false;
        options_.heartbeat = std::chrono::duration_cast<std::chrono::seconds>(*time);
        return options_.heartbeat >= std::chrono::seconds{1} &&
               options_.heartbeat <= std::chrono::minutes{10};
    }

    bool ConnectTimeout(const std::string& text) {
        const auto time = mq::detail::ParseDuration(text);
        if (!time || *time < std::chrono::milliseconds{100} || *time > std::chrono::minutes{5}) {
            return false;
        }
        options_.connect_timeout = *time;
        return true;
    }

    bool TlsVerify(const std::string& text) { return mq::detail::ReadBool(text, options_.tls_verify); }

    bool TlsCa(const std::string& text) { return ReadPath(text, options_.tls_ca); }

    bool TlsCert(const std::string& text) { return ReadPath(text, options_.tls_cert); }

    bool TlsKey(const std::string& text) { return ReadPath(text, options_.tls_key); }

    // What was found is not quoted: it may hold a password.
    bool Management(const std::string& text) {
        const auto expected = [this](const std::string& what) {
            problems_.push_back({KeyPath("options", "management"), what});
            return true;
        };
        try {
            options_.management = ParseUrl(text);
        } catch (const std::invalid_argument& wrong) {
            return expected(std::string{"found what is not a URL: "} + wrong.what());
        }
        const Url& url = *options_.management;
        if (url.scheme != "http" && url.scheme != "https") {
            return expected("found a URL of " + mq::detail::Shown(url.scheme) +
                            ", expected http://HOST:PORT or https://HOST:PORT");
        }
        if (url.hosts.empty() || (url.path && !url.path->empty()) || !url.query.empty()) {
            return expected("expected " + url.scheme + "://HOST:PORT, and nothing behind it");
        }
        if (ManagementMaker() == nullptr) {
            return expected(
                "this program does not include what asks the management, expected "
                "#include <mq/backends/rabbitmq_management.hpp> in it, or no such option");
        }
        return true;
    }

    bool ManagementAge(const std::string& text) {
        const auto time = mq::detail::ParseDuration(text);
        if (!time || *time < std::chrono::milliseconds{100} || *time > std::chrono::minutes{10}) {
            return false;
        }
        options_.management_age = *time;
        return true;
    }

    static bool ReadPath(const std::string& text, std::string& path) {
        path = text;
        return !text.empty() && text.find('\0') == std::string::npos;
    }

    Options& options_;
    Problems& problems_;
};

inline void CheckUrl(const Url& url, Problems& problems) {
    const auto expected = [&problems](std::string text) {
        problems.push_back({"url", std::move(text)});
    };
    if (url.hosts.empty()) expected("no host was found, expected " + url.scheme + "://HOST/VHOST");
    if (url.path && url.path->size() > 255) expected("the virtual host is longer than 255 bytes");
    if (url.path && url.path->find('/') != std::string::npos && *url.path != "/") {
        // A virtual host may contain a slash, but a stray one is far more often a slip than a name.
        if (url.path->starts_with('/') || url.path->ends_with('/')) {
            expected("found a slash at an end of the virtual host " + mq::detail::Shown(*url.path) +
                     ", expected " + url.scheme + "://HOST/VHOST");
        }
    }
    for (const std::string* text : {&url.user, &url.password}) {
        if (text->find('\0') != std::string::npos) expected("a user or password cannot contain %00");
    }
    if (url.path && url.path->find('\0') != std::string::npos) {
        expected("a virtual host cannot contain %00");
    }
    for (const auto& [name, value] : url.query) {
        expected("found the parameter " + mq::detail::Shown(name) +
                 " in the URL, expected none: settings are options of the broker");
    }
    if (url.user.empty() && !url.password.empty()) {
        expected("found a password without a user, expected USER:PASSWORD@HOST");
    }
}

}  // namespace detail

/// The options as they were written; what is wrong is added to `problems` and left at its default.
inline Options ReadOptions(const std::map<std::string, std::string>& written,
                           std::vector<ConfigProblem>& problems) {
    Options options;
    detail::OptionReader reader{options, problems};
    for (const auto& [name, text] : written) reader.Read(name, text);
    reader.CheckTogether();
    return options;
}

/// Everything that is wrong with a broker's URL and options. Does not connect, and quotes no password.
inline std::vector<ConfigProblem> Check(const Url& url,
                                        const std::map<std::string, std::string>& options) {
    std::vector<ConfigProblem> problems;
    detail::CheckUrl(url, problems);
    const Options read = ReadOptions(options, problems);
    if (url.scheme == "amqp") {
        const bool secure_management = read.management && read.management->scheme == "https";
        for (const auto& [name, text] : options) {
            if (!name.starts_with("tls.")) continue;
            if (secure_management && (name == "tls.ca" || name == "tls.verify")) continue;
            problems.push_back({KeyPath("options", name),
                                "an amqp:// connection is not encrypted, expected an amqps:// URL"});
        }
    }
    return problems;
}

/// The virtual host of a URL. No path and an empty one both mean "/", the one that every RabbitMQ has;
/// `/%2F` means it as well, as in the AMQP URI specification.
inline std::string VirtualHost(const Url& url) {
    return url.path && !url.path->empty() ? *url.path : "/";
}

}  // namespace mq::rabbitmq
