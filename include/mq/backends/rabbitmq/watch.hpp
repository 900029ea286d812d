/// @file watch.hpp
/// When a consumer, or what was published, has been without progress for so long that something must be
/// wrong. Judgements alone: what they are fed with, and what follows, is for the loops. Pure; knows
/// nothing of the client library. Not thread-safe.
#pragma once

#include <mq/backend.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>

namespace mq::rabbitmq {

/// Judges one consumer. It stands still where its queue has had messages ready for a while, it had room
/// for them, and none came: a broker gives them to whoever has room. Not judged is a consumer that may
/// be waiting for its turn behind a single active one.
class ConsumerWatch {
public:
    using Clock = backend::Clock;

    /// How long nothing must have come before the queue is looked at, and from one look to the next.
    static constexpr std::chrono::seconds kLookEvery{8};
    /// How long nothing has come where it is called a standstill; below backend::kStandstill with what
    /// a look may take.
    static constexpr std::chrono::seconds kPatience{20};

    /// Something has come, or nothing can be expected: no room, or the consumer has just begun.
    void NoteProgress(Clock::time_point now) {
        quiet_since_ = looked_at_ = now;
        suspect_since_.reset();
    }

    [[nodiscard]] bool LookIsDue(Clock::time_point now) const {
        // The look that decides comes as soon as it can; an answer takes a moment.
        constexpr std::chrono::seconds kAnswer{2};
        if (suspect_since_) {
            return now >= std::max({quiet_since_ + kPatience, *suspect_since_ + kLookEvery,
                                    looked_at_ + kAnswer});
        }
        return now - quiet_since_ >= kLookEvery && now - looked_at_ >= kLookEvery;
    }

    void NoteLook(Clock::time_point now) { looked_at_ = now; }

    /// What a look has shown: how many messages are ready, and whether this consumer should get them.
    /// @returns whether it stands still; the looks then begin anew.
    bool StandsStill(std::uint64_t ready, bool entitled, Clock::time_point now) {
        if (ready == 0 || !entitled) {
            suspect_since_.reset();
            return false;
        }
        if (!suspect_since_) suspect_since_ = now;
        if (now - quiet_since_ < kPatience || now - *suspect_since_ < kLookEvery) return false;
        NoteProgress(now);
        return true;
    }

    [[nodiscard]] Clock::time_point QuietSince() const noexcept { return quiet_since_; }

private:
    Clock::time_point quiet_since_ = {};
    Clock::time_point looked_at_ = {};
    std::optional<Clock::time_point> suspect_since_ = {};  // since when messages were ready
};

/// Judges a channel that publishes: something is unconfirmed, and nothing is confirmed any more.
class ConfirmWatch {
public:
    using Clock = backend::Clock;

    static constexpr std::chrono::seconds kPatience{20};

    /// Something was confirmed, is sent as the only one, or the broker has said that it takes nothing.
    void NoteProgress(Clock::time_point now) { progress_at_ = now; }

    /// When nothing confirmed becomes a standstill.
    [[nodiscard]] Clock::time_point Deadline() const { return progress_at_ + kPatience; }

private:
    Clock::time_point progress_at_ = {};
};

}  // namespace mq::rabbitmq
