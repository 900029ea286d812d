/// @file duration.hpp
/// Durations as the config writes them: "500ms", "30s", "1h30m". Whole numbers with a unit each, from
/// the largest to the smallest.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace mq::detail {

struct DurationUnit {
    std::string_view name = {};
    std::int64_t milliseconds = 0;
};

inline constexpr std::array<DurationUnit, 4> kDurationUnits{
    {{"h", 3'600'000}, {"m", 60'000}, {"s", 1'000}, {"ms", 1}}};

/// What a number that is too large to be computed with is read as: a thousand years.
inline constexpr std::int64_t kLongestDuration = 1000LL * 365 * 24 * 3'600'000;

/// Reads a duration; nothing where the text is none. Thread-safe.
inline std::optional<std::chrono::milliseconds> ParseDuration(std::string_view text) {
    std::int64_t total = 0;
    std::size_t next_unit = 0;
    while (next_unit < kDurationUnits.size()) {
        std::uint64_t number = 0;
        const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
        if (code == std::errc::invalid_argument) return std::nullopt;
        text.remove_prefix(static_cast<std::size_t>(end - text.data()));

        const std::string_view name = text.substr(0, text.find_first_of("0123456789"));
        while (next_unit < kDurationUnits.size() && kDurationUnits[next_unit].name != name) ++next_unit;
        if (next_unit == kDurationUnits.size()) return std::nullopt;
        text.remove_prefix(name.size());

        const std::int64_t unit = kDurationUnits[next_unit++].milliseconds;
        const bool fits =
            code == std::errc{} && number <= static_cast<std::uint64_t>(kLongestDuration / unit);
        total += fits ? static_cast<std::int64_t>(number) * unit : kLongestDuration;
        total = std::min(total, kLongestDuration);
        if (text.empty()) return std::chrono::milliseconds{total};
    }
    return std::nullopt;
}

/// The text that ParseDuration reads as `duration`.
inline std::string FormatDuration(std::chrono::milliseconds duration) {
    if (duration.count() < 0) {
        // The smallest one has no positive counterpart.
        return "-" + FormatDuration(-std::max(duration, -std::chrono::milliseconds::max()));
    }
    std::string text;
    std::int64_t rest = duration.count();
    for (const auto& [name, milliseconds] : kDurationUnits) {
        if (rest / milliseconds == 0) continue;
        text.append(std::to_string(rest / milliseconds)).append(name);
        rest %= milliseconds;
    }
    return text.empty() ? "0s" : text;
}

}  // namespace mq::detail
