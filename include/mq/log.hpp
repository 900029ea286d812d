/// @file log.hpp
/// Where the library says what an operator should know: reconnections, a config edit that was not
/// applied, a guard that is switched off. Message bodies and passwords are never part of it.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <string_view>

namespace mq {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

constexpr std::string_view ToString(LogLevel level) noexcept {
    switch (level) {
        case LogLevel::kDebug: return "debug";
        case LogLevel::kInfo: return "info";
        case LogLevel::kWarning: return "warning";
        case LogLevel::kError: return "error";
    }
    return "unknown";
}

/// Receives one line at a time, without a newline, on any library thread and on several at once;
/// it must be thread-safe, must not throw and should not block.
using LogSink = std::function<void(LogLevel level, std::string_view line)>;

/// The sink that a client uses where it is given none: warnings and errors, to standard error.
inline void LogToStderr(LogLevel level, std::string_view line) {
    if (level < LogLevel::kWarning) return;
    std::string text = "mq: ";
    text.append(ToString(level)).append(": ").append(line).append("\n");
    std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace mq
