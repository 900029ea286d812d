/// @file config_check.hpp
/// What makes a config right or wrong, whoever filled it: a loader or a program. Also how problems are
/// put into words and lines, so that every part of the library reports them alike.
#pragma once

#include <mq/backend.hpp>
#include <mq/config.hpp>
#include <mq/detail/duration.hpp>
#include <mq/error.hpp>
#include <mq/policy.hpp>
#include <mq/url.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace mq::detail {

/// How many edits (insert, drop, change, swap of neighbours) make one word the other.
inline std::size_t EditDistance(std::string_view from, std::string_view to) {
    std::vector<std::size_t> before_last(to.size() + 1);
    std::vector<std::size_t> last(to.size() + 1);
    std::vector<std::size_t> row(to.size() + 1);
    std::iota(last.begin(), last.end(), std::size_t{0});
    for (std::size_t i = 1; i <= from.size(); ++i) {
        row[0] = i;
        for (std::size_t j = 1; j <= to.size(); ++j) {
            const std::size_t change = from[i - 1] == to[j - 1] ? 0 : 1;
            row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + change});
            if (i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1]) {
                row[j] = std::min(row[j], before_last[j - 2] + 1);
            }
        }
        std::swap(before_last, last);
        std::swap(last, row);
    }
    return last[to.size()];
}

/// ` (did you mean "KNOWN"?)` for the word that is nearest to what was written; empty where none is
/// near.
inline std::string Suggestion(std::string_view found, const std::vector<std::string>& known) {
    constexpr std::size_t kLongest = 64;
    if (found.size() > kLongest) return {};
    const std::size_t limit = found.size() <= 3 ? 1 : found.size() <= 6 ? 2 : 3;
    std::size_t best = limit + 1;
    std::string_view nearest;
    for (const std::string& word : known) {
        const std::size_t distance = EditDistance(found, word);
        if (distance < best) {
            best = distance;
            nearest = word;
        }
    }
    if (nearest.empty()) return {};
    return std::string{" (did you mean \""}.append(nearest).append("\"?)");
}

/// The words with commas between them.
inline std::string Enumerate(const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) {
        if (!text.empty()) text += ", ";
        text += word;
    }
    return text;
}

/// What was written, for an error text: in quotation marks, cut to a bearable length, and not at all
/// where it looks like a URL, which may hold a password.
inline std::string Shown(std::string_view found) {
    constexpr std::size_t kLongest = 80;
    if (found.find("://") != std::string_view::npos || found.find('@') != std::string_view::npos) {
        return "what looks like a URL";
    }
    const bool cut = found.size() > kLongest;
    std::string text = "\"";
    return text.append(found.substr(0, kLongest)).append(cut ? "…\"" : "\"");
}

/// Whether a name may be one that holds a password: `user:password`, or something of a URL.
inline bool MayHoldPassword(std::string_view name) {
    const std::size_t colon = name.find(':');
    const bool pair = colon != std::string_view::npos && colon != 0 && colon + 1 < name.size();
    return pair || name.find('@') != std::string_view::npos;
}

/// A name for an error text, as Shown, and not at all where it may hold a password.
inline std::string ShownName(std::string_view name) {
    return MayHoldPassword(name) ? "what may hold a password" : Shown(name);
}

/// A KeyPath for an error text: without the names in it that may hold a password. The name of a topic
/// is often made of parts with colons between them, and hides nothing unless it looks like a URL.
inline std::string ShownKey(std::string_view path) {
    std::string shown;
    std::size_t begin = 0;
    while (begin < path.size()) {
        std::size_t end = begin;
        if (path[begin] == '"') {
            for (++end; end < path.size() && path[end] != '"'; ++end) {
                if (path[end] == '\\') ++end;
            }
            end = std::min(end + 1, path.size());
        } else {
            end = std::min(path.find_first_of(".[\"", begin + 1), path.size());
        }
        const std::string_view part = path.substr(begin, end - begin);
        const bool hidden = shown == "topics." ? Shown(part).front() != '"' : MayHoldPassword(part);
        shown += hidden && part.front() == '"' ? "\"…\"" : part;
        begin = end;
    }
    return shown;
}

/// The names of a map, in its order.
template <typename Value>
std::vector<std::string> Names(const std::map<std::string, Value>& named) {
    std::vector<std::string> names;
    names.reserve(named.size());
    for (const auto& [name, value] : named) names.push_back(name);
    return names;
}

/// A key of a table that is a number, and its range. Sizes are in bytes.
template <typename Table>
struct NumberKey {
    std::string_view key = {};
    std::size_t Table::*field = nullptr;
    std::uint64_t lowest = 0;
    std::uint64_t highest = 0;
};

inline constexpr NumberKey<ClientConfig> kMaxInFlightBytes{
    "max_in_flight_bytes", &ClientConfig::max_in_flight_bytes, 1, 1ULL << 40u};
/// AMQP 0-9-1 carries the prefetch of basic.qos in 16 bits.
inline constexpr NumberKey<ClientConfig> kPrefetch{"prefetch", &ClientConfig::prefetch, 1, 65535};
inline constexpr NumberKey<ClientConfig> kHandlerThreads{"handler_threads",
                                                         &ClientConfig::handler_threads, 1, 4096};
inline constexpr NumberKey<TopicConfig> kDedupMax{"dedup_max", &TopicConfig::dedup_max, 1, 100'000'000};

/// The text for a number out of its range. `found` is the number as it was written.
template <typename Table>
std::string OutOfRange(const std::string& found, const NumberKey<Table>& number) {
    return "found " + found + ", expected a number from " + std::to_string(number.lowest) + " to " +
           std::to_string(number.highest);
}

/// Which header brings the adapter of a scheme, whether it is included or not.
struct SchemeHeader {
    std::string_view scheme = {};
    std::string_view header = {};
};

inline constexpr std::array<SchemeHeader, 9> kSchemeHeaders{{
    {"memory", "<mq/mq.hpp>"},
    {"amqp", "<mq/backends/rabbitmq.hpp>"},
    {"amqps", "<mq/backends/rabbitmq.hpp>"},
    {"kafka", "<mq/backends/kafka.hpp>"},
    {"kafkas", "<mq/backends/kafka.hpp>"},
    {"activemq", "<mq/backends/activemq.hpp>"},
    {"activemqs", "<mq/backends/activemq.hpp>"},
    {"artemis", "<mq/backends/activemq.hpp>"},
    {"artemiss", "<mq/backends/activemq.hpp>"},
}};

/// The text for a scheme that no included adapter takes.
inline std::string UnknownScheme(const std::string& scheme) {
    for (const auto& [known, header] : kSchemeHeaders) {
        if (known != scheme) continue;
        return "the adapter for " + scheme +
               ":// is not part of this program, expected a scheme of an " +
               "included one; write #include " + std::string{header};
    }
    const std::vector<std::string> available = backend::Registry::Instance().Schemes();
    std::vector<std::string> known = available;
    for (const auto& [name, header] : kSchemeHeaders) known.emplace_back(name);
    return "found the unknown scheme \"" + scheme + "\"" + Suggestion(scheme, known) +
           ", expected one of those available: " +
           (available.empty() ? "none (include an adapter's header first)" : Enumerate(available));
}

/// Checks one config, once.
class ConfigChecker {
public:
    /// Where the brokers could not be read, nothing is said of those that topics name.
    explicit ConfigChecker(const Config& config, bool brokers_known = true)
        : config_(config), brokers_known_(brokers_known) {}

    std::vector<ConfigProblem> Run() {
        CheckClient();
        for (const auto& [name, broker] : config_.brokers) CheckBroker(name, broker);
        for (const auto& [name, topic] : config_.topics) CheckTopic(name, topic);
        return std::move(problems_);
    }

private:
    using Milliseconds = std::chrono::milliseconds;

    /// Whether the key stands in the file; false for a config made in code.
    [[nodiscard]] bool Given(const std::string& key) const { return config_.origins.contains(key); }

    [[nodiscard]] bool GivenBelow(const std::string& key) const {
        const auto next = config_.origins.lower_bound(key + ".");
        return next != config_.origins.end() && next->first.starts_with(key + ".");
    }

    [[nodiscard]] bool Has(const std::string& key, const std::string& value) const {
        return !value.empty() || Given(key);
    }

    void Report(std::string key, std::string text) {
        problems_.push_back({.key = std::move(key), .text = std::move(text)});
    }

    void CheckClient() {
        const ClientConfig& client = config_.client;
        if (client.group.empty()) {
            Report("client.group", "found an empty text, expected the name of a consumer group");
        }
        CheckDuration("client.send_timeout", client.send_timeout, Milliseconds{1}, kLongestTimeout);
        CheckDuration("client.subscribe_timeout", client.subscribe_timeout, Milliseconds{1},
                      kLongestTimeout);
        for (const auto& number : {kMaxInFlightBytes, kPrefetch, kHandlerThreads}) {
            CheckNumber("client", client, number);
        }
    }

    template <typename Table>
    void CheckNumber(const std::string& path, const Table& table, const NumberKey<Table>& number) {
        const std::uint64_t value = table.*number.field;
        if (value >= number.lowest && value <= number.highest) return;
        Report(path + "." + KeyPath(number.key), OutOfRange(std::to_string(value), number));
    }

    void CheckDuration(std::string key, Milliseconds found, Milliseconds lowest, Milliseconds highest) {
        if (found >= lowest && found <= highest) return;
        Report(std::move(key), "found " + FormatDuration(found) + ", expected a duration from " +
                                   FormatDuration(lowest) + " to " + FormatDuration(highest));
    }

    void CheckBroker(const std::string& name, const BrokerConfig& broker) {
        const std::string path = KeyPath("brokers", name);
        if (name.empty()) Report(path, "found an empty name, expected [brokers.NAME]");
        if (MayHoldPassword(name)) {
            Report(
                path,
                "found a name with ':' or '@', expected a plain one: the log and the status show it; "
                "write [brokers.NAME] with the URL in its `url`");
        }
        if (broker.url.empty()) {
            Report(path + ".url", Given(path + ".url")
                                      ? "found an empty text, expected a URL" + UrlHint()
                                      : "is missing, expected a URL" + UrlHint());
            return;
        }
        std::optional<Url> url;
        try {
            url = ParseUrl(broker.url);
        } catch (const std::invalid_argument& wrong) {
            Report(path + ".url", std::string{"found what is not a URL: "} + wrong.what());
            return;
        }
        CheckByKind(path, *url, broker);
    }

    static std::string UrlHint() { return "; write url = \"SCHEME://HOST\""; }

    void CheckByKind(const std::string& path, const Url& url, const BrokerConfig& broker) {
        const auto kind = backend::Registry::Instance().Find(url.scheme);
        if (!kind) {
            Report(path + ".url", UnknownScheme(url.scheme));
        } else if (kind->check != nullptr) {
            for (ConfigProblem& problem : kind->check(url, broker.options)) {
                Report(problem.key.empty() ? path : path + "." + problem.key, std::move(problem.text));
            }
        }
    }

    void CheckTopic(const std::string& name, const TopicConfig& topic) {
        const std::string path = KeyPath("topics", name);
        if (name.empty()) Report(path, "found an empty name, expected [topics.NAME]");
        CheckShape(path, topic);
        CheckBrokerName(path + ".broker", topic.broker);
        CheckBrokerName(path + ".old", topic.old_broker);
        CheckBrokerName(path + ".new", topic.new_broker);
        CheckAddresses(path, topic);
        CheckSidesDiffer(path, name, topic);
        CheckGroups(path, topic.groups);
        CheckDuration(path + ".quiet", topic.quiet, Milliseconds{0}, kLongestQuiet);
        CheckDedup(path, topic);
        if (topic.failover && topic.order == Order::kKey) {
            Report(path + ".failover",
                   "found together with order = \"key\": a message that goes to the other broker "
                   "overtakes those before it; remove one of the two");
        }
    }

    void CheckDedup(const std::string& path, const TopicConfig& topic) {
        const bool wanted = Given(path + ".dedup") || topic.dedup != Milliseconds{0};
        if (wanted) CheckDuration(path + ".dedup", topic.dedup, Milliseconds{1}, kLongestDedup);
        CheckNumber(path, topic, kDedupMax);
        if (wanted || !Given(path + ".dedup_max")) return;
        Report(path + ".dedup_max",
               "found without `dedup`, which is what has duplicates suppressed; write dedup = \"10m\", "
               "or remove it");
    }

    // One broker, or two and a policy.
    void CheckShape(const std::string& path, const TopicConfig& topic) {
        const bool one = Has(path + ".broker", topic.broker);
        const bool old_side = Has(path + ".old", topic.old_broker);
        const bool new_side = Has(path + ".new", topic.new_broker);
        const bool policy = Given(path + ".policy") || topic.policy != Policy::kOld;
        if (one) {
            if (!old_side && !new_side && !policy) return;
            Report(path + ".broker",
                   "found together with `old`, `new` or `policy`, expected either `broker` alone or "
                   "`old`, `new` and `policy`; remove one or the other");
        } else if (!old_side && !new_side) {
            Report(path,
                   "found no broker, expected `broker` for a topic of one broker, or `old`, `new` and "
                   "`policy` for one that moves; add them");
        } else if (!old_side || !new_side) {
            const std::string_view present = old_side ? "old" : "new";
            Report(path + (old_side ? ".new" : ".old"),
                   std::string{"is missing, expected the name of a broker because `"}
                       .append(present)
                       .append("` is there; add it, or write `broker` instead of `")
                       .append(present)
                       .append("`"));
        } else if (Given(path) && !policy) {
            Report(path + ".policy", "is missing, expected one of: " + PolicyWords() + "; add it");
        }
    }

    void CheckBrokerName(std::string key, const std::string& name) {
        if (config_.brokers.contains(name)) return;
        if (name.empty()) {
            if (Given(key))
                Report(std::move(key), "found an empty text, expected the name of a broker");
            return;
        }
        if (!brokers_known_) return;
        std::vector<std::string> known = Names(config_.brokers);
        std::erase_if(known, MayHoldPassword);
        Report(std::move(key), "found the unknown broker " + ShownName(name) + Suggestion(name, known) +
                                   ", expected " +
                                   (known.empty() ? "the name of a broker; none is configured, so add "
                                                    "[brokers.NAME] with its url"
                                                  : "one of: " + Enumerate(known)));
    }

    void CheckAddresses(const std::string& path, const TopicConfig& topic) {
        const std::string key = path + ".address";
        const bool moves = Has(path + ".old", topic.old_broker) || Has(path + ".new", topic.new_broker);
        CheckAddress(key + ".old", topic.old_address, moves);
        CheckAddress(key + ".new", topic.new_address, moves);
        if (topic.address.empty()) {
            if (Given(key) && !GivenBelow(key)) {
                Report(
                    key,
                    "found nothing in it, expected the topic's name on the broker; fill it or leave it "
                    "out");
            }
        } else if (moves) {
            Report(key,
                   "found one address, expected one for a side, because the topic has two; write "
                   "address = { old = \"…\" } or { new = \"…\" }");
        }
    }

    void CheckAddress(std::string key, const std::string& address, bool moves) {
        if (!Has(key, address)) return;
        if (!moves) {
            Report(std::move(key),
                   "found an address for a side that the topic does not have, expected one text; write "
                   "address = \"…\"");
        } else if (address.empty()) {
            Report(std::move(key),
                   "found an empty text, expected the topic's name on that side; fill it or leave it "
                   "out");
        }
    }

    void CheckSidesDiffer(const std::string& path, const std::string& name, const TopicConfig& topic) {
        if (topic.old_broker.empty() || topic.old_broker != topic.new_broker) return;
        const std::string& old_address = topic.old_address.empty() ? name : topic.old_address;
        const std::string& new_address = topic.new_address.empty() ? name : topic.new_address;
        if (old_address != new_address) return;
        Report(
            path + ".new",
            "found the same broker and the same address as `old`, expected two places; change one, or "
            "write `broker` alone");
    }

    void CheckGroups(const std::string& path, const std::vector<std::string>& groups) {
        for (std::size_t i = 0; i < groups.size(); ++i) {
            const std::string key = path + ".groups[" + std::to_string(i) + "]";
            const auto here = groups.begin() + static_cast<std::ptrdiff_t>(i);
            if (groups[i].empty()) {
                Report(key, "found an empty text, expected the name of a consumer group");
            } else if (std::find(groups.begin(), here, groups[i]) != here) {
                Report(key, "found the group \"" + groups[i] +
                                "\" a second time, expected each group once; remove it");
            }
        }
    }

    static std::string PolicyWords() {
        std::vector<std::string> words;
        words.reserve(kPolicies.size());
        for (const Policy policy : kPolicies) words.emplace_back(ToString(policy));
        return Enumerate(words);
    }

    static constexpr Milliseconds kLongestTimeout = std::chrono::hours{24};
    static constexpr Milliseconds kLongestQuiet = std::chrono::hours{30 * 24};
    static constexpr Milliseconds kLongestDedup = std::chrono::hours{30 * 24};

    const Config& config_;
    const bool brokers_known_;
    std::vector<ConfigProblem> problems_ = {};
};

/// Everything that is wrong with a config, apart from what only its loader can see. Connects to
/// nothing; empty where the config is right. Thread-safe.
[[nodiscard]] inline std::vector<ConfigProblem> CheckConfig(const Config& config) {
    return ConfigChecker{config}.Run();
}

/// Where a key was written; for a key that is not there, where its table was. Null where nothing is
/// known.
inline const Origin* FindOrigin(const Config& config, std::string_view key) {
    while (true) {
        const auto found = config.origins.find(std::string{key});
        if (found != config.origins.end()) return &found->second;
        if (key.empty()) return nullptr;
        const std::size_t end = key.find_last_of(".[");
        key = key.substr(0, end == std::string_view::npos ? 0 : end);
    }
}

/// One line of text: a line break or another control character in it becomes a space.
inline std::string OneLine(std::string text) {
    for (char& c : text) {
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
    }
    return text;
}

/// `FILE:LINE:COLUMN: KEYPATH: TEXT`, without what is not known.
inline std::string FormatProblem(const Origin* origin, const ConfigProblem& problem) {
    std::string line;
    if (origin != nullptr && !origin->file.empty()) {
        line += origin->file + ":";
        if (origin->line > 0) {
            line += std::to_string(origin->line) + ":" + std::to_string(origin->column) + ":";
        }
        line += " ";
    }
    if (!problem.key.empty()) line += ShownKey(problem.key) + ": ";
    return OneLine(line + problem.text);
}

/// The problems, a line each, in the order of the file; those without a position come last.
inline std::string FormatProblems(const Config& config, const std::vector<ConfigProblem>& problems) {
    using Line = std::tuple<bool, int, int, std::string>;
    std::vector<Line> lines;
    for (const ConfigProblem& problem : problems) {
        const Origin* const origin = FindOrigin(config, problem.key);
        const Origin at = origin != nullptr ? *origin : Origin{};
        lines.emplace_back(at.line == 0, at.line, at.column, FormatProblem(origin, problem));
    }
    const auto position = [](const Line& line) {
        return std::tuple{std::get<0>(line), std::get<1>(line), std::get<2>(line)};
    };
    std::stable_sort(lines.begin(), lines.end(),
                     [&](const Line& a, const Line& b) { return position(a) < position(b); });
    std::string text;
    for (const Line& line : lines) {
        if (!text.empty()) text += '\n';
        text += std::get<3>(line);
    }
    return text;
}

/// Does nothing where there is no problem.
/// @throws Error with ErrorCode::kConfig, whose text is FormatProblems.
inline void ThrowIfWrong(const Config& config, const std::vector<ConfigProblem>& problems) {
    if (!problems.empty()) throw Error(ErrorCode::kConfig, FormatProblems(config, problems));
}

}  // namespace mq::detail
