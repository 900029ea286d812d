/// @file deadline.hpp
/// From a timeout that a caller gives to the moment at which the waiting ends.
#pragma once

#include <algorithm>
#include <chrono>

namespace mq::detail {

/// The longest that anything waits: longer timeouts are taken for this one. As many milliseconds still
/// fit into the `int` that poll(2) and the brokers' client libraries take.
inline constexpr std::chrono::hours kLongestWait{20 * 24};

/// The moment at which a wait of `timeout` ends that begins now. A negative timeout is over at once.
[[nodiscard]] inline std::chrono::steady_clock::time_point DeadlineAfter(
    std::chrono::milliseconds timeout) noexcept {
    constexpr std::chrono::milliseconds kLongest = kLongestWait;
    return std::chrono::steady_clock::now() +
           std::clamp(timeout, std::chrono::milliseconds{0}, kLongest);
}

}  // namespace mq::detail
