/// @file options.hpp
/// What the config says about one ActiveMQ broker: its URL and its options, read and checked without
/// connecting. Knows nothing of the client library.
#pragma once

#include <mq/config.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/detail/duration.hpp>
#include <mq/detail/option_text.hpp>
#include <mq/url.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::activemq {

/// Which broker a URL's scheme means: they speak one protocol and name things differently.
enum class Flavor : unsigned char { kClassic, kArtemis };

/// How the client proves who it is (SASL).
enum class Sasl : unsigned char {
    kAuto,      ///< PLAIN with a user in the URL, else EXTERNAL with tls.cert, else ANONYMOUS.
    kPlain,     ///< User and password of the URL.
    kExternal,  ///< The certificate of tls.cert.
    kAnonymous,
};

/// The options of `[brokers.NAME]`, by the names that they have in the config.
struct Options {
    /// Classic: the name of the JMS topic that is published to; {address} stands for itself.
    std::string topic_name = "VirtualTopic.{address}";
    /// Classic: the name of a group's queue, which the broker's virtual topics feed; {group} and
    /// {name}, the name of the JMS topic, stand for themselves.
    std::string queue_name = "Consumer.{group}.{name}";
    /// Whether queue_name was set, and so says how a topic outside VirtualTopic. reaches its queues.
    bool queue_name_set = false;
    /// Artemis: the name of a group's shared durable subscription; {address}, {group} and {topic} stand
    /// for themselves. The broker's names of subscriptions are common to all of its addresses.
    std::string subscription_name = "{address}.{group}";
    /// How many messages may be on the wire unconfirmed.
    std::size_t confirm_window = 2000;
    /// The largest body in bytes. Classic is delivered with a limit of 100 MiB for a whole message.
    std::size_t max_message_size = std::size_t{64} << 20u;
    /// How often each end shows that it lives. A connection is given up after two of them in silence,
    /// and after three in which the broker has not settled a message whose deadline had passed.
    std::chrono::milliseconds heartbeat = std::chrono::seconds{10};
    /// The longest time for connecting to one host: first TCP, then TLS and login together.
    std::chrono::milliseconds connect_timeout = std::chrono::seconds{10};
    Sasl sasl = Sasl::kAuto;
    /// Whether a broker by TLS must show a certificate for its host name that tls.ca vouches for.
    bool tls_verify = true;
    std::string tls_ca = {};    ///< A PEM file; empty: the certificates that the system trusts.
    std::string tls_cert = {};  ///< A PEM file with the client's certificate chain; empty for none.
    std::string tls_key = {};   ///< A PEM file with its private key.
};

inline Flavor FlavorOf(const Url& url) noexcept {
    return url.scheme.starts_with("artemis") ? Flavor::kArtemis : Flavor::kClassic;
}

inline bool UsesTls(const Url& url) noexcept {
    return url.scheme == "activemqs" || url.scheme == "artemiss";
}

/// The broker's name for texts.
inline std::string_view ToString(Flavor flavor) noexcept {
    return flavor == Flavor::kArtemis ? "Artemis" : "ActiveMQ";
}

/// The SASL mechanism, with kAuto decided.
inline Sasl MechanismOf(const Url& url, const Options& options) noexcept {
    if (options.sasl != Sasl::kAuto) return options.sasl;
    if (!url.user.empty()) return Sasl::kPlain;
    return options.tls_cert.empty() ? Sasl::kAnonymous : Sasl::kExternal;
}

namespace detail {

using Problems = std::vector<ConfigProblem>;

/// One option: what its text must be, and how it is read. `read` returns false where it is not that.
struct OptionEntry {
    std::string_view name;
    bool classic;
    bool artemis;
    std::string_view expected;
    bool (*read)(const std::string& text, Options& options);
};

inline bool ReadName(const std::string& text, std::string& name, std::string_view must_have,
                     const std::vector<std::string>& known) {
    name = text;
    return text.find(must_have) != std::string::npos && mq::detail::PlaceholdersKnown(text, known);
}

inline bool ReadPath(const std::string& text, std::string& path) {
    path = text;
    return !text.empty() && text.find('\0') == std::string::npos;
}

inline bool ReadTime(const std::string& text, std::chrono::milliseconds lowest,
                     std::chrono::milliseconds highest, std::chrono::milliseconds& time) {
    const auto read = mq::detail::ParseDuration(text);
    if (!read || *read < lowest || *read > highest) return false;
    time = *read;
    return true;
}

inline bool ReadSize(const std::string& text, std::size_t highest, std::size_t& size) {
    const auto number = mq::detail::ReadNumber<std::size_t>(text, 1, highest);
    if (number) size = *number;
    return number.has_value();
}

inline bool ReadSasl(const std::string& text, Sasl& sasl) {
    if (text == "plain")
        sasl = Sasl::kPlain;
    else if (text == "external")
        sasl = Sasl::kExternal;
    else if (text == "anonymous")
        sasl = Sasl::kAnonymous;
    else
        return false;
    return true;
}

inline const std::vector<OptionEntry>& OptionTable() {
    using std::chrono::milliseconds;
    using std::chrono::minutes;
    using std::chrono::seconds;
    static const std::vector<OptionEntry> table{
        {"topic_name", true, false, "a name with {address} in it",
         [](const std::string& text, Options& options) {
             return ReadName(text, options.topic_name, "{address}", {"address"});
         }},
        // Without the group in it, all groups would share one queue and each get a part of the
        // messages.
        {"queue_name", true, false, "a name with {group}, and perhaps {name}, in it",
         [](const std::string& text, Options& options) {
             options.queue_name_set = true;
             return ReadName(text, options.queue_name, "{group}", {"group", "name"});
         }},
        {"subscription_name", false, true,
         "a name with {group}, and perhaps {address} and {topic}, in it",
         [](const std::string& text, Options& options) {
             return ReadName(text, options.subscription_name, "{group}",
                             {"address", "group", "topic"}) &&
                    text.find('|') == std::string::npos;
         }},
        {"confirm_window", true, true, "a number of messages from 1 to 100000",
         [](const std::string& text, Options& options) {
             return ReadSize(text, 100'000, options.confirm_window);
         }},
        {"max_message_size", true, true, "a number of bytes from 1 to 1073741824",
         [](const std::string& text, Options& options) {
             return ReadSize(text, std::size_t{1} << 30u, options.max_message_size);
         }},
        {"heartbeat", true, true, "a duration from 1s to 10m",
         [](const std::string& text, Options& options) {
             return ReadTime(text, seconds{1}, minutes{10}, options.heartbeat);
         }},
        {"connect_timeout", true, true, "a duration from 100ms to 5m",
         [](const std::string& text, Options& options) {
             return ReadTime(text, milliseconds{100}, minutes{5}, options.connect_timeout);
         }},
        {"sasl", true, true, "plain, external or anonymous",
         [](const std::string& text, Options& options) { return ReadSasl(text, options.sasl); }},
        {"tls.verify", true, true, "true or false",
         [](const std::string& text, Options& options) {
             return mq::detail::ReadBool(text, options.tls_verify);
         }},
        {"tls.ca", true, true, "the path of a PEM file",
         [](const std::string& text, Options& options) { return ReadPath(text, options.tls_ca); }},
        {"tls.cert", true, true, "the path of a PEM file",
         [](const std::string& text, Options& options) { return ReadPath(text, options.tls_cert); }},
        {"tls.key", true, true, "the path of a PEM file",
         [](const std::string& text, Options& options) { return ReadPath(text, options.tls_key); }},
    };
    return table;
}

inline void ReadOption(const std::string& name, const std::string& text, Flavor flavor,
                       Options& options, Problems& problems) {
    std::vector<std::string> known;
    for (const OptionEntry& entry : OptionTable()) {
        if (!(flavor == Flavor::kArtemis ? entry.artemis : entry.classic)) continue;
        known.emplace_back(entry.name);
        if (entry.name != name) continue;
        if (!entry.read(text, options)) {
            problems.push_back(
                {KeyPath("options", name),
                 "found " + mq::detail::Shown(text) + ", expected " + std::string{entry.expected}});
        }
        return;
    }
    problems.push_back(
        {KeyPath("options", name), std::string{ToString(flavor)} + " has no option " +
                                       mq::detail::Shown(name) + mq::detail::Suggestion(name, known) +
                                       ", expected one of " + mq::detail::Enumerate(known)});
}

/// What only several options, and the URL, together show.
inline void CheckTogether(const Url& url, const Options& options, Problems& problems) {
    const auto expected = [&problems](const char* option, std::string text) {
        problems.push_back({KeyPath("options", option), std::move(text)});
    };
    if (options.tls_cert.empty() != options.tls_key.empty()) {
        expected(options.tls_cert.empty() ? "tls.cert" : "tls.key",
                 "expected a PEM file: tls.cert and tls.key belong together");
    }
    if (options.sasl == Sasl::kPlain && url.user.empty()) {
        expected("sasl", "plain sends a user and a password, expected USER:PASSWORD@HOST in the URL");
    }
    if (options.sasl == Sasl::kExternal && (!UsesTls(url) || options.tls_cert.empty())) {
        expected("sasl", "external shows a certificate, expected a URL of " + url.scheme +
                             (UsesTls(url) ? "" : "s") + ":// with tls.cert and tls.key");
    }
}

inline void CheckUrl(const Url& url, Problems& problems) {
    const auto expected = [&problems](std::string text) {
        problems.push_back({"url", std::move(text)});
    };
    if (url.hosts.empty()) expected("no host was found, expected " + url.scheme + "://HOST");
    if (url.path && !url.path->empty()) {
        expected("found a path behind the hosts, expected none: the broker's names stand in `address`");
    }
    for (const std::string* text : {&url.user, &url.password}) {
        if (text->find('\0') != std::string::npos) expected("a user or password cannot contain %00");
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

/// The options as they were written for a broker of that URL; what is wrong is added to `problems`.
inline Options ReadOptions(const Url& url, const std::map<std::string, std::string>& written,
                           std::vector<ConfigProblem>& problems) {
    Options options;
    for (const auto& [name, text] : written) {
        detail::ReadOption(name, text, FlavorOf(url), options, problems);
        if (!UsesTls(url) && name.starts_with("tls.")) {
            problems.push_back({KeyPath("options", name),
                                "a connection of " + url.scheme +
                                    ":// is not encrypted, expected a URL of " + url.scheme + "s://"});
        }
    }
    detail::CheckTogether(url, options, problems);
    return options;
}

/// Everything that is wrong with a broker's URL and options. Does not connect, and quotes no password.
inline std::vector<ConfigProblem> Check(const Url& url,
                                        const std::map<std::string, std::string>& options) {
    std::vector<ConfigProblem> problems;
    detail::CheckUrl(url, problems);
    static_cast<void>(ReadOptions(url, options, problems));
    return problems;
}

}  // namespace mq::activemq
