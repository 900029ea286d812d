/// @file toml.hpp
/// Reads a config from TOML, by toml++. Every problem of a file is reported at once, with its position;
/// `${NAME}` in a text is taken from the environment. Including this header is also what lets
/// Client::Watch read files.
#pragma once

#include <mq/config.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/detail/config_loader.hpp>
#include <mq/detail/duration.hpp>
#include <mq/detail/environment.hpp>
#include <mq/detail/toml_guard.hpp>
#include <mq/error.hpp>
#include <mq/policy.hpp>

#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

namespace mq {
namespace detail {

/// What a TOML value is, for an error text.
inline std::string_view TypeName(const toml::node& node) noexcept {
    switch (node.type()) {
        case toml::node_type::none: return "nothing";
        case toml::node_type::table: return "a table";
        case toml::node_type::array: return "an array";
        case toml::node_type::string: return "a string";
        case toml::node_type::integer: return "an integer";
        case toml::node_type::floating_point: return "a floating-point number";
        case toml::node_type::boolean: return "a boolean";
        case toml::node_type::date: return "a date";
        case toml::node_type::time: return "a time of day";
        case toml::node_type::date_time: return "a date with a time";
    }
    return "something else";
}

/// Fills a Config from a parsed document. One for each document.
class TomlReader {
public:
    explicit TomlReader(std::string file) : file_(std::move(file)) {
        config_.origins[""] = Origin{.file = file_};
    }

    /// @throws Error with everything that is wrong, also what CheckConfig finds.
    Config Read(const toml::table& root) {
        static constexpr std::array<Key<Config>, 3> kKeys{{
            {"client",
             [](TomlReader& reader, const Value& value, Config&) { reader.ReadClient(value); }},
            {"brokers",
             [](TomlReader& reader, const Value& value, Config&) { reader.ReadBrokers(value); }},
            {"topics",
             [](TomlReader& reader, const Value& value, Config&) { reader.ReadTopics(value); }},
        }};
        ReadKeys({"", root}, kKeys, config_);
        AddChecks();
        ThrowIfWrong(config_, problems_);
        return std::move(config_);
    }

private:
    /// A value and the KeyPath of its key.
    struct Value {
        std::string path;
        const toml::node& node;
    };

    /// A key that a table may have, and how its value gets into the target.
    template <typename Target>
    struct Key {
        std::string_view name;
        void (*read)(TomlReader& reader, const Value& value, Target& target);
    };

    static std::string Below(const std::string& path, std::string_view key) {
        return path.empty() ? KeyPath(key) : path + "." + KeyPath(key);
    }

    void Locate(const std::string& path, const toml::source_region& region) {
        config_.origins.emplace(path, Origin{.file = file_,
                                             .line = static_cast<int>(region.begin.line),
                                             .column = static_cast<int>(region.begin.column)});
    }

    void Report(const std::string& path, std::string text) {
        problems_.push_back({.key = path, .text = std::move(text)});
    }

    void ReportType(const Value& value, std::string_view expected) {
        Report(
            value.path,
            std::string{"found "}.append(TypeName(value.node)).append(", expected ").append(expected));
    }

    const toml::table* AsTable(const Value& value, std::string_view expected) {
        if (const toml::table* const table = value.node.as_table()) return table;
        ReportType(value, expected);
        return nullptr;
    }

    template <typename Target, std::size_t kCount>
    void ReadKeys(const Value& value, const std::array<Key<Target>, kCount>& keys, Target& target) {
        const toml::table* const table =
            AsTable(value, "a table, as in [" + ShownKey(value.path) + "]");
        if (table == nullptr) return;
        for (const auto& [name, node] : *table) {
            const std::string_view found = name.str();
            const auto key = std::find_if(keys.begin(), keys.end(),
                                          [found](const auto& known) { return known.name == found; });
            const std::string path = Below(value.path, found);
            if (key == keys.end()) {
                Locate(path, name.source());
                ReportUnknownKey(path, found, keys);
                continue;
            }
            Locate(path, node.source());
            key->read(*this, {path, node}, target);
        }
    }

    template <typename Target, std::size_t kCount>
    void ReportUnknownKey(const std::string& path, std::string_view found,
                          const std::array<Key<Target>, kCount>& keys) {
        std::vector<std::string> known;
        known.reserve(keys.size());
        for (const auto& key : keys) known.emplace_back(key.name);
        Report(path, "found an unknown key" + Suggestion(found, known) +
                         ", expected one of: " + Enumerate(known) + "; correct or remove it");
    }

    template <typename Target, std::size_t kCount>
    void ReadNamed(const Value& value, const std::array<Key<Target>, kCount>& keys,
                   std::map<std::string, Target>& targets) {
        const toml::table* const table =
            AsTable(value, "a table of tables, as in [" + value.path + ".NAME]");
        if (table == nullptr) return;
        for (const auto& [name, node] : *table) {
            const std::string path = Below(value.path, name.str());
            Locate(path, node.source());
            ReadKeys({path, node}, keys, targets[std::string{name.str()}]);
        }
    }

    void ReadClient(const Value& value) {
        static constexpr std::array<Key<ClientConfig>, 6> kKeys{{
            {"group", [](TomlReader& reader, const Value& v,
                         ClientConfig& client) { reader.ReadText(v, client.group); }},
            {"send_timeout", [](TomlReader& reader, const Value& v,
                                ClientConfig& client) { reader.ReadDuration(v, client.send_timeout); }},
            {"subscribe_timeout",
             [](TomlReader& reader, const Value& v, ClientConfig& client) {
                 reader.ReadDuration(v, client.subscribe_timeout);
             }},
            {"max_in_flight_bytes",
             [](TomlReader& reader, const Value& v, ClientConfig& client) {
                 reader.ReadNumber(v, kMaxInFlightBytes, client);
             }},
            {"prefetch", [](TomlReader& reader, const Value& v,
                            ClientConfig& client) { reader.ReadNumber(v, kPrefetch, client); }},
            {"handler_threads",
             [](TomlReader& reader, const Value& v, ClientConfig& client) {
                 reader.ReadNumber(v, kHandlerThreads, client);
             }},
        }};
        ReadKeys(value, kKeys, config_.client);
    }

    void ReadBrokers(const Value& value) {
        static constexpr std::array<Key<BrokerConfig>, 2> kKeys{{
            {"url", [](TomlReader& reader, const Value& v,
                       BrokerConfig& broker) { reader.ReadText(v, broker.url, TextKind::kUrl); }},
            {"options", [](TomlReader& reader, const Value& v,
                           BrokerConfig& broker) { reader.ReadOptions(v, broker.options); }},
        }};
        ReadNamed(value, kKeys, config_.brokers);
    }

    void ReadTopics(const Value& value) {
        static constexpr std::array<Key<TopicConfig>, 12> kKeys{{
            {"broker", [](TomlReader& reader, const Value& v,
                          TopicConfig& topic) { reader.ReadText(v, topic.broker); }},
            {"old", [](TomlReader& reader, const Value& v,
                       TopicConfig& topic) { reader.ReadText(v, topic.old_broker); }},
            {"new", [](TomlReader& reader, const Value& v,
                       TopicConfig& topic) { reader.ReadText(v, topic.new_broker); }},
            {"policy", [](TomlReader& reader, const Value& v,
                          TopicConfig& topic) { reader.ReadPolicy(v, topic.policy); }},
            {"groups", [](TomlReader& reader, const Value& v,
                          TopicConfig& topic) { reader.ReadTexts(v, topic.groups); }},
            {"address", [](TomlReader& reader, const Value& v,
                           TopicConfig& topic) { reader.ReadAddress(v, topic); }},
            {"order", [](TomlReader& reader, const Value& v,
                         TopicConfig& topic) { reader.ReadOrder(v, topic.order); }},
            {"quiet", [](TomlReader& reader, const Value& v,
                         TopicConfig& topic) { reader.ReadDuration(v, topic.quiet); }},
            {"dedup", [](TomlReader& reader, const Value& v,
                         TopicConfig& topic) { reader.ReadDuration(v, topic.dedup); }},
            {"dedup_max", [](TomlReader& reader, const Value& v,
                             TopicConfig& topic) { reader.ReadNumber(v, kDedupMax, topic); }},
            {"failover", [](TomlReader& reader, const Value& v,
                            TopicConfig& topic) { reader.ReadSwitch(v, topic.failover); }},
            {"guard", [](TomlReader& reader, const Value& v,
                         TopicConfig& topic) { reader.ReadSwitch(v, topic.guard); }},
        }};
        ReadNamed(value, kKeys, config_.topics);
    }

    // The text with its variables inserted; nothing, and reported, where that is not possible.
    std::optional<std::string> Text(const Value& value, std::string_view expected,
                                    TextKind kind = TextKind::kPlain) {
        const auto* const text = value.node.as_string();
        if (text == nullptr) {
            ReportType(value, expected);
            return std::nullopt;
        }
        ExpandedText expanded = ExpandEnvironment(text->get(), kind);
        for (std::string& problem : expanded.problems) Report(value.path, std::move(problem));
        if (!expanded.problems.empty()) return std::nullopt;
        return std::move(expanded.text);
    }

    void ReadText(const Value& value, std::string& target, TextKind kind = TextKind::kPlain) {
        if (auto text = Text(value, "a string", kind)) target = std::move(*text);
    }

    void ReadTexts(const Value& value, std::vector<std::string>& target) {
        const toml::array* const array = value.node.as_array();
        if (array == nullptr) return ReportType(value, "an array of strings, such as [\"billing\"]");
        for (std::size_t i = 0; i < array->size(); ++i) {
            const toml::node& element = *array->get(i);
            const Value item{value.path + "[" + std::to_string(i) + "]", element};
            Locate(item.path, element.source());
            // A wrong one keeps its place, for the positions of those behind it.
            target.emplace_back();
            ReadText(item, target.back());
        }
    }

    void ReadDuration(const Value& value, std::chrono::milliseconds& target) {
        constexpr std::string_view kExpected =
            "a duration in quotation marks, such as \"500ms\", \"30s\", \"2m\" or \"1h\"";
        const auto text = Text(value, kExpected);
        if (!text) return;
        const auto duration = ParseDuration(*text);
        if (!duration) {
            Report(value.path, "found " + Shown(*text) + ", expected " + std::string{kExpected});
        } else if (duration->count() >= kLongestDuration) {
            Report(value.path, "found " + Shown(*text) + ", expected a shorter duration");
        } else {
            target = *duration;
        }
    }

    template <typename Table>
    void ReadNumber(const Value& value, const NumberKey<Table>& number, Table& table) {
        const auto* const integer = value.node.as_integer();
        if (integer == nullptr) {
            return ReportType(value, "an integer from " + std::to_string(number.lowest) + " to " +
                                         std::to_string(number.highest) + ", without quotation marks");
        }
        if (integer->get() < 0) {
            return Report(value.path, OutOfRange(std::to_string(integer->get()), number));
        }
        table.*number.field = static_cast<std::size_t>(integer->get());
    }

    void ReadPolicy(const Value& value, Policy& target) {
        std::vector<std::string> words;
        words.reserve(kPolicies.size());
        for (const Policy policy : kPolicies) words.emplace_back(ToString(policy));
        const auto word = Word(value, words);
        if (word) target = *ParsePolicy(*word);
    }

    void ReadOrder(const Value& value, Order& target) {
        const auto word = Word(value, {"none", "key"});
        if (word) target = *word == "key" ? Order::kKey : Order::kNone;
    }

    void ReadSwitch(const Value& value, bool& target) {
        if (const auto* const boolean = value.node.as_boolean()) {
            target = boolean->get();
        } else if (const auto word = Word(value, {"on", "off"})) {
            target = *word == "on";
        }
    }

    // The text where it is one of the words; nothing, and reported, where it is not.
    std::optional<std::string> Word(const Value& value, const std::vector<std::string>& words) {
        const std::string expected = "one of: " + Enumerate(words);
        auto text = Text(value, expected);
        if (!text || std::find(words.begin(), words.end(), *text) != words.end()) return text;
        Report(value.path,
               "found " + Shown(*text) + Suggestion(*text, words) + ", expected " + expected);
        return std::nullopt;
    }

    void ReadAddress(const Value& value, TopicConfig& topic) {
        static constexpr std::array<Key<TopicConfig>, 2> kKeys{{
            {"old", [](TomlReader& reader, const Value& v,
                       TopicConfig& target) { reader.ReadText(v, target.old_address); }},
            {"new", [](TomlReader& reader, const Value& v,
                       TopicConfig& target) { reader.ReadText(v, target.new_address); }},
        }};
        if (value.node.is_table()) return ReadKeys(value, kKeys, topic);
        const auto text = Text(value, "a string, or a table such as { old = \"…\", new = \"…\" }");
        if (text) topic.address = *text;
    }

    void ReadOptions(const Value& value, std::map<std::string, std::string>& options) {
        const toml::table* const table = AsTable(value, "a table of options");
        if (table != nullptr) ReadOptionsBelow(value.path, "", *table, options);
    }

    // TOML nests what is written `linger.ms = 5`; the option's name is the dotted one all the same.
    void ReadOptionsBelow(const std::string& path, const std::string& prefix, const toml::table& table,
                          std::map<std::string, std::string>& options) {
        for (const auto& [key, node] : table) {
            std::string name = prefix;
            name.append(prefix.empty() ? "" : ".").append(key.str());
            const Value value{Below(path, name), node};
            if (const toml::table* const nested = node.as_table();
                nested != nullptr && !nested->empty()) {
                ReadOptionsBelow(path, name, *nested, options);
                continue;
            }
            Locate(value.path, node.source());
            auto text = OptionText(value);
            if (text && !options.emplace(name, std::move(*text)).second) {
                Report(value.path,
                       "found a second time, bare and in quotation marks, expected once; "
                       "remove one");
            }
        }
    }

    std::optional<std::string> OptionText(const Value& value) {
        constexpr std::string_view kExpected = "a string, a number or a boolean";
        if (const auto* const boolean = value.node.as_boolean())
            return boolean->get() ? "true" : "false";
        if (const auto* const integer = value.node.as_integer()) return std::to_string(integer->get());
        if (const auto* const number = value.node.as_floating_point()) {
            if (std::isfinite(number->get())) return NumberText(number->get());
            Report(value.path, "found a number that is not finite, expected a finite one");
            return std::nullopt;
        }
        return Text(value, kExpected);
    }

    // The shortest digits that read back as the same number, without an exponent where that is short.
    static std::string NumberText(double number) {
        std::array<char, 512> digits{};
        const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number).ptr;
        return {digits.data(), end};
    }

    // A value that could not be read has been reported; what is said of its stand-in would be noise.
    void AddChecks() {
        const bool brokers_known =
            std::none_of(problems_.begin(), problems_.end(),
                         [](const ConfigProblem& known) { return known.key == "brokers"; });
        std::vector<ConfigProblem> found = ConfigChecker{config_, brokers_known}.Run();
        std::erase_if(found, [this](const ConfigProblem& problem) {
            return std::any_of(problems_.begin(), problems_.end(), [&](const ConfigProblem& known) {
                return IsAtOrBelow(problem.key, known.key);
            });
        });
        std::move(found.begin(), found.end(), std::back_inserter(problems_));
    }

    static bool IsAtOrBelow(std::string_view key, std::string_view other) {
        if (!key.starts_with(other)) return false;
        return key.size() == other.size() || key[other.size()] == '.' || key[other.size()] == '[';
    }

    std::string file_;
    Config config_ = {};
    std::vector<ConfigProblem> problems_ = {};
};

/// What toml++ says of a syntax error, without what it quotes of the file: that may be a password that
/// lacks its quotation marks. Names of keys stay, unless they may be one too.
inline std::string SyntaxErrorText(std::string_view description) {
    std::string text{description.substr(0, description.find(", saw "))};
    if (text.find(": cannot ") != std::string::npos) {
        const std::size_t open = text.find('\'');
        const std::size_t close = text.rfind('\'');
        if (open != close &&
            MayHoldPassword(std::string_view{text}.substr(open + 1, close - open - 1))) {
            text.replace(open, close + 1 - open, "what stands there");
        }
    } else {
        for (std::size_t open = text.find('\''); open != std::string::npos;) {
            const std::size_t close = text.find('\'', open + 1);
            if (close == std::string::npos) return text.substr(0, open);
            const std::string_view quoted = std::string_view{text}.substr(open + 1, close - open - 1);
            const bool grammar = quoted == "true" || quoted == "false" || quoted.size() == 1;
            if (!grammar) text.replace(open, close + 1 - open, "what stands there");
            open = text.find('\'', grammar ? close + 1 : open);
        }
    }
    if (text.find("could not determine value type") != std::string::npos) {
        text += "; a text must stand in quotation marks";
    }
    return text;
}

/// The table of a parse, in either mode of toml++: it throws, or it returns its error.
template <typename Result>
toml::table TableOf(Result&& result) {
    if constexpr (std::is_same_v<std::remove_cvref_t<Result>, toml::table>) {
        return std::forward<Result>(result);
    } else {
        if (!result) throw std::forward<Result>(result).error();
        return std::forward<Result>(result).table();
    }
}

[[noreturn]] inline void ThrowSyntax(const std::string& file, std::size_t line, std::size_t column,
                                     std::string text) {
    const Origin origin{
        .file = file, .line = static_cast<int>(line), .column = static_cast<int>(column)};
    throw Error(ErrorCode::kConfig, FormatProblem(&origin, {.key = {}, .text = std::move(text)}));
}

inline toml::table ParseToml(std::string_view text, const std::string& file) {
    constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
    if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
    if (auto mistake = TomlGuard{text}.Run()) {
        ThrowSyntax(file, mistake->line, mistake->column, std::move(mistake->text));
    }
    try {
        return TableOf(toml::parse(text, std::string_view{file}));
    } catch (const toml::parse_error& wrong) {
        const toml::source_position at = wrong.source().begin;
        ThrowSyntax(file, at.line, at.column, SyntaxErrorText(wrong.description()));
    }
}

[[noreturn]] inline void ThrowUnreadable(const std::filesystem::path& path,
                                         const std::error_code& why) {
    throw Error(ErrorCode::kConfig, OneLine(path.string() + ": cannot be read: " + why.message()),
                Outcome::kNotSent, NativeError{.code = why.value(), .text = why.message()});
}

/// The contents of a file, as far as they are sane for a config: a regular file of 16 MiB at most.
inline std::string ReadFile(const std::filesystem::path& path) {
    constexpr std::size_t kLargest = 16u << 20u;
    std::error_code failed;
    const auto status = std::filesystem::status(path, failed);
    if (status.type() == std::filesystem::file_type::not_found) {
        ThrowUnreadable(path, std::make_error_code(std::errc::no_such_file_or_directory));
    }
    if (failed) ThrowUnreadable(path, failed);
    // Anything else could block for ever when it is opened.
    if (!std::filesystem::is_regular_file(status)) {
        throw Error(ErrorCode::kConfig,
                    OneLine(path.string() + ": cannot be read: not a regular file"));
    }

    const auto close = [](std::FILE* file) { std::fclose(file); };
    const std::unique_ptr<std::FILE, decltype(close)> file{std::fopen(path.string().c_str(), "rb"),
                                                           close};
    if (file == nullptr) ThrowUnreadable(path, {errno, std::generic_category()});
    std::string text;
    std::array<char, 16384> block{};
    while (const std::size_t length = std::fread(block.data(), 1, block.size(), file.get())) {
        text.append(block.data(), length);
        if (text.size() > kLargest)
            ThrowUnreadable(path, std::make_error_code(std::errc::file_too_large));
    }
    if (std::ferror(file.get()) != 0) ThrowUnreadable(path, {errno, std::generic_category()});
    return text;
}

}  // namespace detail

/// Reads a config from TOML text and checks it; an empty text gives the default Config. Connects to
/// nothing. The adapters of the brokers that it names must be included in the program. Thread-safe as
/// long as no thread changes the environment.
/// @param file_name  What the positions in errors begin with.
/// @throws Error with ErrorCode::kConfig; its text has a line `FILE:LINE:COLUMN: KEYPATH: …` for every
///     problem, or one line for a syntax error. No value of `url` or `options` is ever part of it.
inline Config ParseConfig(std::string_view text, std::string_view file_name = "config") {
    std::string file{file_name};
    const toml::table root = detail::ParseToml(text, file);
    return detail::TomlReader{std::move(file)}.Read(root);
}

/// Reads a config from a TOML file, as ParseConfig does. A file without any key is an error: it is what
/// an editor leaves for a moment, and following it would remove every topic. Reads regular files only,
/// of 16 MiB at most, so it blocks no longer than the file system does. Thread-safe as ParseConfig is.
/// @throws Error with ErrorCode::kConfig, also where the file cannot be read: native_code() is then the
///     errno, where there is one.
inline Config LoadConfig(const std::filesystem::path& path) {
    const std::string text = detail::ReadFile(path);
    std::string file = path.string();
    const toml::table root = detail::ParseToml(text, file);
    if (root.empty()) {
        throw Error(ErrorCode::kConfig,
                    detail::OneLine(file + ": found an empty file, expected at least "
                                           "[brokers.NAME] and [topics.NAME]"));
    }
    return detail::TomlReader{std::move(file)}.Read(root);
}

namespace detail {
inline const bool kTomlLoaderRegistered = RegisterConfigLoader(&LoadConfig);
}  // namespace detail

}  // namespace mq
