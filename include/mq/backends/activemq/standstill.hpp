/// @file standstill.hpp
/// Judges whether a subscription stands still: its link stands and has room, nothing comes, and the
/// broker has messages that nobody takes. Knows nothing of the client library.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/activemq/management.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>

namespace mq::activemq {

/// Follows one subscription. While nothing is outstanding and nothing arrives, the broker is asked
/// every kAsk what the queue has; a busy subscription costs nothing. Two answers in a row with ready
/// messages, while nobody has any and none is settled between them, are a standstill, found within
/// kStandstill of its beginning: the link is replaced, and where that does not help the connection.
/// Where others of the group get on, what is ready may be theirs by its message group, or be stuck with
/// this link: then the link is replaced as well, later, and nothing is said. Replacing leaves longer
/// and longer pauses. Not thread-safe.
class StandstillWatch {
public:
    using Clock = backend::Clock;

    static constexpr std::chrono::seconds kAsk{8};
    static constexpr std::chrono::seconds kFirstPause{10};
    static constexpr std::chrono::seconds kLongestPause{600};
    /// For how long others of the group may get on, and this one gets nothing of what is ready.
    static constexpr std::chrono::seconds kPassedOver{60};
    static_assert(3 * kAsk < backend::kStandstill);

    enum class Advice : unsigned char { kNothing, kAsk, kReplaceLink, kReconnect };

    /// A message has come, or what was outstanding is settled, or the link is new.
    void Progress(Clock::time_point now) {
        quiet_since_ = now;
        ask_at_ = now + kAsk;
        before_.reset();
        since_.reset();
        passed_over_since_.reset();
        mended_ = 0;
    }

    /// The link was made again. What was found is not over by that.
    void Replaced(Clock::time_point now) {
        if (quiet_since_ == Clock::time_point{}) quiet_since_ = now;
        ask_at_ = now + kAsk;
        before_.reset();
    }

    /// When Decide has something to say although nothing happens; only while nothing is outstanding.
    [[nodiscard]] Clock::time_point NextAt() const noexcept { return ask_at_; }

    /// With nothing outstanding. After kAsk the answer must follow, or Unanswered.
    Advice Decide(Clock::time_point now) {
        if (now < ask_at_) return Advice::kNothing;
        ask_at_ = Clock::time_point::max();
        return Advice::kAsk;
    }

    /// The broker could not be asked: nothing is known.
    void Unanswered(Clock::time_point now) {
        ask_at_ = now + unanswered_pause_;
        unanswered_pause_ = std::min<std::chrono::seconds>(2 * unanswered_pause_, kLongestPause);
        before_.reset();
    }

    Advice Answer(const QueueState& queue, Clock::time_point now) {
        ask_at_ = now + kAsk;
        unanswered_pause_ = kAsk;
        const std::optional<QueueState> before = before_;
        before_ = queue;
        if (queue.ready == 0) {
            since_.reset();
            passed_over_since_.reset();
            mended_ = 0;
            return Advice::kNothing;
        }
        if (!before || before->ready == 0) return Advice::kNothing;
        const bool others_have_some = queue.messages > queue.ready;
        if (others_have_some || before->settled != queue.settled) return PassedOver(now);
        passed_over_since_.reset();
        if (!since_) since_ = quiet_since_;
        return Mend(now);
    }

    /// Since when it stands still; nothing where it does not.
    [[nodiscard]] std::optional<Clock::time_point> Since() const noexcept { return since_; }

private:
    Advice PassedOver(Clock::time_point now) {
        since_.reset();
        if (!passed_over_since_) passed_over_since_ = now;
        if (now - *passed_over_since_ < kPassedOver || now < mend_at_) return Advice::kNothing;
        Paused(now);
        return Advice::kReplaceLink;
    }

    Advice Mend(Clock::time_point now) {
        if (now < mend_at_) return Advice::kNothing;
        Paused(now);
        return mended_++ % 2 == 0 ? Advice::kReplaceLink : Advice::kReconnect;
    }

    void Paused(Clock::time_point now) {
        // After a long time without one, they begin anew.
        if (now - mend_at_ > kLongestPause) pause_ = kFirstPause;
        mend_at_ = now + pause_;
        pause_ = std::min<std::chrono::seconds>(2 * pause_, kLongestPause);
    }

    Clock::time_point quiet_since_ = {};
    Clock::time_point ask_at_ = Clock::time_point::max();
    std::optional<QueueState> before_ = {};
    std::optional<Clock::time_point> since_ = {};
    std::optional<Clock::time_point> passed_over_since_ = {};
    int mended_ = 0;  // since the last progress
    Clock::time_point mend_at_ = {};
    std::chrono::seconds pause_ = kFirstPause;
    std::chrono::seconds unanswered_pause_ = kAsk;
};

}  // namespace mq::activemq
