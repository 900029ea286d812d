/// @file standstill.hpp
/// When a partition that this member has stands still: the broker has messages of it, there is room for
/// them, and they do not come. Fed with times and numbers. Knows nothing of the client library.
#pragma once

#include <mq/backend.hpp>

#include <chrono>
#include <cstdint>
#include <optional>

namespace mq::kafka {

/// What is watched of one partition during one assignment.
///
/// Progress is a message, or the end of the partition, which librdkafka reports each time that a fetch
/// has come to it. While there can be none (no room, no connection, a full queue), that counts the
/// same. After kQuiet without any, the broker is asked every kAskAgain where the partition ends; when
/// two answers, kConfirm or more apart and nothing between them, say that there is more than has come,
/// it stands still. That is known kQuiet + 2 kAskAgain + kConfirm after the last progress or the
/// message that does not come, whichever is later. A broker that does not answer is no standstill of
/// this side's: nothing is judged then. Not thread-safe.
class DeliveryWatch {
public:
    using Clock = std::chrono::steady_clock;

    static constexpr std::chrono::seconds kQuiet{5};
    static constexpr std::chrono::seconds kAskAgain{3};
    static constexpr std::chrono::seconds kConfirm{5};
    /// What is left of the time for mending it.
    static constexpr std::chrono::seconds kMending{10};
    static_assert(kQuiet + kAskAgain * 2 + kConfirm + kMending < backend::kStandstill);

    explicit DeliveryWatch(Clock::time_point now = Clock::now()) : since_(now) {}

    /// Something has come, or nothing could have.
    void Progress(Clock::time_point now) {
        since_ = now;
        behind_since_.reset();
        stands_still_ = false;
    }

    /// Whether it has been quiet for so long that the end is worth asking for.
    [[nodiscard]] bool Due(Clock::time_point now) const { return now - since_ >= kQuiet; }

    /// The broker has said that the partition ends at `end`. Asked at `asked`, when everything below
    /// `position` had come; nothing where it is not known where the partition begins: a fetch that
    /// works says that within a moment, also of an empty partition.
    void Answer(Clock::time_point asked, std::optional<std::int64_t> position, std::int64_t end) {
        if (asked < since_) return;  // something has come in the meantime
        if (position && *position >= end) {
            behind_since_.reset();
            stands_still_ = false;
            return;
        }
        if (!behind_since_) behind_since_ = asked;
        stands_still_ = asked - *behind_since_ >= kConfirm;
    }

    [[nodiscard]] bool StandsStill() const { return stands_still_; }

    /// Since when it is known to be behind, and else the last progress.
    [[nodiscard]] Clock::time_point since() const { return behind_since_.value_or(since_); }

private:
    Clock::time_point since_;
    std::optional<Clock::time_point> behind_since_ = {};  // the first answer since then that says so
    bool stands_still_ = false;
};

}  // namespace mq::kafka
