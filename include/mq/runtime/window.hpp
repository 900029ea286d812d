/// @file window.hpp
/// The bound on what is sent and not yet confirmed: senders reserve bytes before they publish, and wait
/// while too many are out.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace mq::runtime {

/// A counter of bytes with a limit. Thread-safe. Without contention a reservation is one atomic
/// addition; senders and completions write to different cache lines.
class Window {
public:
    using Clock = std::chrono::steady_clock;

    explicit Window(std::size_t limit) noexcept : limit_(limit), low_water_(limit - limit / 32) {}

    /// Reserves `bytes`, waiting for room until the deadline. A message larger than the limit goes
    /// through alone. False where the deadline passed first.
    bool Reserve(std::size_t bytes, Clock::time_point deadline) {
        if (Fits(reserved_.fetch_add(bytes), bytes, limit_)) return true;
        TakeBack(bytes);
        return ReserveLater(bytes, deadline);
    }

    /// Reserves without waiting, beyond the limit if need be, up to twice the limit. For threads whose
    /// work the waiting senders depend on.
    bool ReserveNow(std::size_t bytes) noexcept {
        if (Fits(reserved_.fetch_add(bytes), bytes, 2 * limit_)) return true;
        TakeBack(bytes);
        return false;
    }

    void Release(std::size_t bytes) noexcept {
        released_.fetch_add(bytes);
        Wake();
    }

private:
    // A release meanwhile may have found no room for those who wait on account of these bytes.
    void TakeBack(std::size_t bytes) noexcept {
        reserved_.fetch_sub(bytes);
        Wake();
    }

    // Waiters are woken at the low water mark: one that woke for each freed message would spend its
    // time waking.
    void Wake() noexcept {
        if (waiting_.load() == 0) return;
        // Read in this order, the difference is at least what was out at some moment in between.
        const std::uint64_t released = released_.load();
        if (reserved_.load() - released > low_water_) return;
        // The lock orders this with a waiter between its test and its wait.
        { const std::lock_guard lock{mutex_}; }
        room_.notify_all();
    }

    [[nodiscard]] bool Fits(std::uint64_t reserved_before, std::size_t bytes,
                            std::size_t limit) const noexcept {
        const std::uint64_t out = reserved_before - released_.load();
        return out == 0 || out + bytes <= limit;
    }

    bool ReserveLater(std::size_t bytes, Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        waiting_.fetch_add(1);
        bool reserved = false;
        while (true) {
            const std::uint64_t released = released_.load();
            reserved = Fits(reserved_.fetch_add(bytes), bytes, limit_);
            if (reserved) break;
            reserved_.fetch_sub(bytes);
            if (Clock::now() >= deadline) break;
            if (released_.load() == released) {
                room_.wait_until(lock, deadline);
            } else {
                // That release may have found no room on account of these bytes.
                room_.notify_all();
            }
        }
        waiting_.fetch_sub(1);
        return reserved;
    }

    const std::size_t limit_;
    const std::size_t low_water_;
    alignas(64) std::atomic<std::uint64_t> reserved_{0};
    alignas(64) std::atomic<std::uint64_t> released_{0};
    std::atomic<int> waiting_{0};
    std::mutex mutex_;  // guards no data: it orders waiters and Release
    std::condition_variable room_;
};

}  // namespace mq::runtime
