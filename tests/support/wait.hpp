/// @file wait.hpp
/// Waiting for what the public interface shows but does not announce, such as a rung in Status().
#pragma once

#include "backend_fakes.hpp"

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <string>
#include <string_view>

namespace mq::test {

/// Waits until `predicate` answers true, and looks every few milliseconds.
/// @returns false where the patience ended first.
template <typename Predicate>
bool Eventually(Predicate predicate, std::chrono::milliseconds patience = kPatience) {
    const auto deadline = backend::Clock::now() + patience;
    std::mutex mutex;
    std::condition_variable never;
    std::unique_lock lock{mutex};
    while (!predicate()) {
        if (backend::Clock::now() >= deadline) return false;
        never.wait_for(lock, std::chrono::milliseconds{2});
    }
    return true;
}

/// Waits until `count()` has come to `wanted`, for as long as it grows: a slow broker is given the time
/// that it takes, and one that stands still is not.
/// @returns false where it has not grown for the patience.
template <typename Count>
bool EventuallyReaches(Count count, std::size_t wanted,
                       std::chrono::milliseconds patience = kPatience) {
    std::size_t seen = count();
    while (seen < wanted) {
        if (!Eventually([&] { return count() > seen; }, patience)) return false;
        seen = count();
    }
    return true;
}

/// Watches that `predicate` stays true for that long. It ends early, and fails, when it does not: time
/// alone never makes it pass, since the caller has seen the condition that it guards come true before.
template <typename Predicate>
bool Stays(Predicate predicate, std::chrono::milliseconds time) {
    return !Eventually([&] { return !predicate(); }, time);
}

inline bool Has(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

}  // namespace mq::test
