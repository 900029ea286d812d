/// @file toml_guard.hpp
/// Finds the few mistakes in a TOML text on which toml++ 3.3 breaks one of its own assumptions, and so
/// ends the program or does worse, instead of reporting them (for headers: issue 294 of
/// marzer/tomlplusplus), and keys of so many parts that its recursion would overflow the stack. A file
/// that is followed may hold any mistake, and must do no harm.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::detail {

/// A syntax error and its place, counted from 1 in lines and characters.
struct TomlMistake {
    std::size_t line = 0;
    std::size_t column = 0;
    std::string text = {};
};

/// Goes through a text once, apart from what stands in strings and comments. What it refuses is no
/// TOML 1.0 in any case, but for times of day and those keys; most of what is wrong it leaves to
/// toml++.
class TomlGuard {
public:
    explicit TomlGuard(std::string_view text) : text_(text) {}

    std::optional<TomlMistake> Run() {
        while (position_ < text_.size()) {
            if (auto mistake = Check()) return mistake;
            Step();
        }
        return std::nullopt;
    }

private:
    /// No key of a config has more than a handful.
    static constexpr std::size_t kMostDots = 64;

    [[nodiscard]] std::optional<TomlMistake> Check() const {
        const char c = text_[position_];
        if (!IsAscii(c)) {
            return At(position_, "found a character that is not ASCII outside quotation marks");
        }
        if (c == '[' && statement_begins_ && open_.empty()) return CheckHeader();
        if (c == '}' && open_.ends_with('['))
            return At(position_, "found '}', expected ']' or a value");
        if (c == '.' && dots_ == kMostDots) {
            return At(position_, "found more than " + std::to_string(kMostDots) +
                                     " dots in one key, expected fewer");
        }
        if (c == ':') return CheckTime();
        if (c == ' ') return CheckDate();
        return std::nullopt;
    }

    // A header such as `[*]` or `[[[`.
    [[nodiscard]] std::optional<TomlMistake> CheckHeader() const {
        const std::size_t open = text_.substr(position_).starts_with("[[") ? 2 : 1;
        const std::size_t begin =
            std::min(text_.find_first_not_of(" \t", position_ + open), text_.size());
        constexpr std::string_view kSound =
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-\"']";
        if (begin < text_.size()) {
            const char c = text_[begin];
            if (!IsAscii(c) || kSound.find(c) != std::string_view::npos) return std::nullopt;
        }
        return At(begin, "found a table header without a name, expected one, as in [topics.NAME]");
    }

    // A date with a time, or what begins like one. No key of a config takes them, the right ones
    // either.
    [[nodiscard]] std::optional<TomlMistake> CheckTime() const {
        constexpr std::string_view kWord =
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-.";
        const std::size_t begin = text_.substr(0, position_).find_last_not_of(kWord) + 1;
        if (!IsDigit(text_[begin])) return std::nullopt;
        return At(begin, "found a time or the beginning of one, expected a text in quotation marks");
    }

    // A date, a blank and a single digit.
    [[nodiscard]] std::optional<TomlMistake> CheckDate() const {
        constexpr std::string_view kEnds = " \t\r\n\v\f]},#";
        if (position_ == 0 || position_ + 2 >= text_.size()) return std::nullopt;
        const char before = text_[position_ - 1];
        const bool date_before = IsDigit(before) || before == '_';
        const bool ends = kEnds.find(text_[position_ + 2]) != std::string_view::npos;
        if (!date_before || !IsDigit(text_[position_ + 1]) || !ends) return std::nullopt;
        return At(position_ + 1,
                  "found a digit behind a blank, expected the end of the value before it");
    }

    void Step() {
        const char c = text_[position_];
        if (c == '#') {
            position_ = std::min(text_.find('\n', position_), text_.size());
            return;
        }
        if (c == '"' || c == '\'') {
            statement_begins_ = false;
            return SkipString(c);
        }
        CountDots(c);
        if (c == '[' || c == '{') open_ += c;
        if ((c == ']' || c == '}') && !open_.empty()) open_.pop_back();
        if (c == '\n') {
            statement_begins_ = true;
        } else if (c != ' ' && c != '\t' && c != '\r') {
            statement_begins_ = false;
        }
        ++position_;
    }

    // Each dot of a key opens a table, and toml++ goes through tables within tables by calling itself.
    // What a key stands in counts for it, as do the few dots of a number.
    void CountDots(char c) {
        if (c == '.') ++dots_;
        if (c == '[' || c == '{') dots_outside_.push_back(dots_);
        if (c == ']' || c == '}' || c == ',') {
            dots_ = dots_outside_.empty() ? 0 : dots_outside_.back();
            if (c != ',' && !dots_outside_.empty()) dots_outside_.pop_back();
        }
        if (c == '\n' && open_.empty()) dots_ = 0;
    }

    void SkipString(char quote) {
        const std::string triple(3, quote);
        const bool multi_line = text_.substr(position_).starts_with(triple);
        position_ += multi_line ? 3 : 1;
        while (position_ < text_.size()) {
            const std::string_view rest = text_.substr(position_);
            if (multi_line ? rest.starts_with(triple) : rest.front() == quote) {
                position_ += multi_line ? 3 : 1;
                // A string of several lines may have one or two quotation marks before its end.
                for (int i = 0; multi_line && i < 2 && text_.substr(position_).starts_with(quote);
                     ++i) {
                    ++position_;
                }
                return;
            }
            if (!multi_line && rest.front() == '\n') return;
            position_ +=
                quote == '"' && rest.front() == '\\' && !rest.substr(1).starts_with('\n') ? 2 : 1;
        }
        position_ = std::min(position_, text_.size());
    }

    [[nodiscard]] TomlMistake At(std::size_t position, std::string what) const {
        const std::string_view before = text_.substr(0, position);
        const std::size_t line_begin = before.rfind('\n') + 1;
        const auto is_first_byte = [](char c) {
            return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u;
        };
        const auto lines = std::count(before.begin(), before.end(), '\n');
        const auto columns = std::count_if(before.begin() + static_cast<std::ptrdiff_t>(line_begin),
                                           before.end(), is_first_byte);
        return {.line = static_cast<std::size_t>(lines) + 1,
                .column = static_cast<std::size_t>(columns) + 1,
                .text = std::move(what)};
    }

    static bool IsAscii(char c) noexcept { return static_cast<unsigned char>(c) < 0x80; }
    static bool IsDigit(char c) noexcept { return c >= '0' && c <= '9'; }

    std::string_view text_;
    std::size_t position_ = 0;
    std::string open_ = {};  // the brackets around the position
    std::size_t dots_ = 0;   // up to the position, in its key and the keys that it stands in
    std::vector<std::size_t> dots_outside_ = {};  // what dots_ was at each of the brackets
    bool statement_begins_ = true;                // only blanks since the beginning of the line
};

}  // namespace mq::detail
