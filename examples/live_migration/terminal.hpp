/// @file terminal.hpp
/// How much a terminal shows, and text that is made to fit. Text is UTF-8 and counts by its characters,
/// not its bytes.
#pragma once

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

namespace live {

struct Extent {
    std::size_t columns = 80;
    std::size_t rows = 24;
};

/// The terminal that standard output is, as large as it is now; 80 by 24 where it does not say.
inline Extent TerminalExtent() {
    winsize size{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0)
        return {};
    return {.columns = size.ws_col, .rows = size.ws_row};
}

inline bool BeginsCharacter(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) != 0x80U; }

/// How many characters a text has.
inline std::size_t Columns(std::string_view text) {
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), BeginsCharacter));
}

/// The text, or as much of its beginning as fits, with an ellipsis.
inline std::string Cut(std::string_view text, std::size_t columns) {
    if (Columns(text) <= columns) return std::string{text};
    if (columns == 0) return {};
    std::size_t end = 0;
    for (std::size_t begun = 0; end < text.size(); ++end) {
        if (BeginsCharacter(text[end]) && ++begun == columns) break;
    }
    return std::string{text.substr(0, end)} + "…";
}

/// The text in a column of that width: cut, or followed by spaces.
inline std::string Pad(std::string_view text, std::size_t columns) {
    std::string padded = Cut(text, columns);
    padded.append(columns - Columns(padded), ' ');
    return padded;
}

/// The text on one line, and without anything that a terminal would obey: others wrote it.
inline std::string Printable(std::string text) {
    std::replace_if(
        text.begin(), text.end(),
        [](char byte) { return static_cast<unsigned char>(byte) < ' ' || byte == '\x7f'; }, ' ');
    return text;
}

}  // namespace live
