/// @file option_text.hpp
/// Reads the text of a broker's option: truth values, numbers, and templates of names with {…} in them.
#pragma once

#include <charconv>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::detail {

/// Reads `true` or `false` into `value`; returns whether it was one of them.
inline bool ReadBool(const std::string& text, bool& value) {
    if (text != "true" && text != "false") return false;
    value = text == "true";
    return true;
}

/// The number that the whole text is; nothing where it is none, or out of the range.
template <typename Number>
std::optional<Number> ReadNumber(const std::string& text, Number lowest, Number highest) {
    Number number{};
    const char* const end = text.data() + text.size();
    const auto [stop, code] = std::from_chars(text.data(), end, number);
    if (code != std::errc{} || stop != end || number < lowest || number > highest) return std::nullopt;
    return number;
}

/// Whether each {…} of a name's template is one of `known`.
inline bool PlaceholdersKnown(std::string_view text, const std::vector<std::string>& known) {
    while (true) {
        const auto open = text.find_first_of("{}");
        if (open == std::string_view::npos) return true;
        const auto close = text.find('}', open);
        if (text[open] != '{' || close == std::string_view::npos) return false;
        const std::string_view name = text.substr(open + 1, close - open - 1);
        bool found = false;
        for (const std::string& word : known) found = found || word == name;
        if (!found) return false;
        text.remove_prefix(close + 1);
    }
}

/// A name's template with each {…} of it replaced; one that is not in `values` stays as it is.
inline std::string FillIn(std::string_view text,
                          std::initializer_list<std::pair<std::string_view, std::string_view>> values) {
    std::string filled;
    while (true) {
        const auto open = text.find('{');
        const auto close = open == std::string_view::npos ? open : text.find('}', open);
        if (close == std::string_view::npos) return filled.append(text);
        filled += text.substr(0, open);
        std::string_view value = text.substr(open, close + 1 - open);
        for (const auto& [name, with] : values) {
            if (name == text.substr(open + 1, close - open - 1)) value = with;
        }
        filled += value;
        text.remove_prefix(close + 1);
    }
}

}  // namespace mq::detail
