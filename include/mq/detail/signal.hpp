/// @file signal.hpp
/// A condition that many parties raise and one or more wait for, without a lock in common: a waiter
/// reads the generation, looks at whatever it waits for, and sleeps until the generation has changed.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace mq::detail {

/// Thread-safe.
class Signal {
public:
    using Clock = std::chrono::steady_clock;

    void Raise() noexcept {
        {
            const std::lock_guard lock{mutex_};
            ++generation_;
        }
        raised_.notify_all();
    }

    [[nodiscard]] std::uint64_t Generation() const noexcept {
        const std::lock_guard lock{mutex_};
        return generation_;
    }

    /// Waits until the signal was raised after `seen` was read, or until the deadline. With
    /// time_point::max() it waits without one.
    void WaitChange(std::uint64_t seen, Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        const auto changed = [&] { return generation_ != seen; };
        if (deadline == Clock::time_point::max()) {
            raised_.wait(lock, changed);
        } else {
            raised_.wait_until(lock, deadline, changed);
        }
    }

private:
    mutable std::mutex mutex_;  // guards generation_
    std::condition_variable raised_;
    std::uint64_t generation_ = 0;
};

/// A signal raised in somebody's name: whoever waits learns on whose account it should look again.
/// Thread-safe. Outlived by its signal.
class Wake {
public:
    explicit Wake(Signal& signal) noexcept : signal_(signal) {}

    void Raise() noexcept {
        raised_.store(true);
        signal_.Raise();
    }

    /// Whether it was raised since the last call.
    bool Take() noexcept { return raised_.exchange(false); }

    [[nodiscard]] Signal& signal() const noexcept { return signal_; }

private:
    Signal& signal_;
    std::atomic<bool> raised_{true};
};

}  // namespace mq::detail
