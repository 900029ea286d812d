/// @file partition.hpp
/// What the threads of one consumer share about one assigned partition: which messages are out, how far
/// they are settled, and whether the partition has gone to another member. Knows nothing of the client
/// library.
#pragma once

#include <mq/backends/kafka/offset_tracker.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace mq::kafka {

/// One partition during one assignment. Lives until the last message that came from it is gone.
/// Thread-safe.
class Partition {
public:
    using Clock = std::chrono::steady_clock;

    /// How far the group has come here, as far as this process knows.
    struct Progress {
        std::optional<std::int64_t> position = {};  ///< Everything below is settled.
        std::int64_t end = 0;       ///< Everything below was delivered; only with a position.
        std::size_t unsettled = 0;  ///< How many of them are not settled.
    };

    Partition(std::string topic, std::int32_t number) : topic_(std::move(topic)), number_(number) {}

    [[nodiscard]] const std::string& topic() const noexcept { return topic_; }
    [[nodiscard]] std::int32_t number() const noexcept { return number_; }

    /// The message at `offset` is handed over, and counts as outstanding. False where the partition was
    /// rewound to it: it needs a new Partition.
    bool Deliver(std::int64_t offset) {
        const std::lock_guard lock{mutex_};
        if (!tracker_.Deliver(offset)) return false;
        ++outstanding_;
        return true;
    }

    /// There is nothing more below `offset`. True where the position has moved.
    bool ReachEnd(std::int64_t offset) {
        const std::lock_guard lock{mutex_};
        return tracker_.ReachEnd(offset);
    }

    /// An outstanding message is settled. True where the position has moved. Without effect on the
    /// position once the partition is sealed.
    bool Settle(std::int64_t offset) {
        const std::lock_guard lock{mutex_};
        const bool moved = !sealed_ && tracker_.Settle(offset);
        ReleaseLocked();
        return moved;
    }

    /// An outstanding message is gone unsettled: the position never passes it.
    void Release() {
        const std::lock_guard lock{mutex_};
        ReleaseLocked();
    }

    /// The partition is about to go: handling what has not begun would only make duplicates.
    void Fence() noexcept { fenced_.store(true); }

    [[nodiscard]] bool Fenced() const noexcept { return fenced_.load(); }

    /// Waits until nothing is outstanding, until the deadline at most. Whether that is so.
    bool WaitReleased(Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        return released_.wait_until(lock, deadline, [&] { return outstanding_ == 0; });
    }

    /// Nothing that is settled later counts. Also fences.
    void Seal() {
        Fence();
        const std::lock_guard lock{mutex_};
        sealed_ = true;
    }

    [[nodiscard]] Progress GetProgress() const {
        const std::lock_guard lock{mutex_};
        return {tracker_.Position(), tracker_.End().value_or(0), tracker_.Unsettled()};
    }

    /// How many messages the tracker remembers; what bounds them stops the reading.
    [[nodiscard]] std::size_t Window() const {
        const std::lock_guard lock{mutex_};
        return tracker_.Window();
    }

private:
    void ReleaseLocked() {
        if (--outstanding_ == 0) released_.notify_all();
    }

    const std::string topic_;
    const std::int32_t number_;
    std::atomic<bool> fenced_{false};

    mutable std::mutex mutex_ = {};  // guards everything below
    std::condition_variable released_ = {};
    OffsetTracker tracker_ = {};
    std::size_t outstanding_ = 0;
    bool sealed_ = false;
};

}  // namespace mq::kafka
