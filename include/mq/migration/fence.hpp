/// @file fence.hpp
/// When a fence opens. A subscription raises one where a message shows that its producer has come over
/// from the other side, and holds what arrives from then on; the topic looks at the other side from
/// time to time, and a FenceWatch judges what it has seen there.
///
/// What the producer sent before is on the other side by then, or handled: a sender moves only after
/// that side has confirmed. So a fence may open once the group is known to have settled whatever was on
/// the other side when the fence was raised, or later.
///
/// It becomes narrow before that, where all that is left on the other side is in the hands of this
/// client: then only the keys of those messages have anything to wait for. Three moments show it, in
/// this order: the mark of what is held is taken, and a list of what this client has in hand from the
/// other side; the broker is asked how much is left there; the list is taken again. A message on both
/// lists was in hand all the time, and so is one of those that the broker has counted, which counts
/// none too few (Backlog::complete). Where as many are on both lists as are left, it has counted no
/// other. And what the held messages follow was on the other side before the mark: it is settled, or on
/// the lists. One list would not do: behind the answer it has what came since, before the question what
/// was settled since, and either stands in for a message that is elsewhere.
#pragma once

#include <mq/backend.hpp>
#include <mq/migration/guards.hpp>
#include <mq/policy.hpp>
#include <mq/runtime/dispatcher.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

namespace mq::migration {

/// A moment among what a subscription holds behind a fence: what had arrived by then.
struct FencePosition {
    std::uint64_t noticed = 0;     ///< Producers that had come over, ever.
    std::uint64_t mark = 0;        ///< Of the dispatcher.
    Clock::time_point since = {};  ///< No earlier than the mark.

    /// Takes the position of now: `mark` gives that of the dispatcher. The moment comes after the mark,
    /// so that what was sent before what the mark stands for was on the other side by then.
    template <typename TakeMark>
    static FencePosition Take(std::uint64_t noticed, TakeMark&& mark) {
        FencePosition position{.noticed = noticed, .mark = mark()};
        position.since = Clock::now();
        return position;
    }

    friend bool operator==(const FencePosition&, const FencePosition&) = default;
};

/// For how long a broker has not answered what is left on it. Not thread-safe.
class AnswerWatch {
public:
    /// It was asked, and has or has not answered.
    void Note(bool answered, Clock::time_point now) {
        if (answered) {
            since_.reset();
        } else if (!since_ || now - last_ > kTooLong) {
            since_ = now;
        }
        last_ = now;
    }

    /// Zero where it has answered, or was not asked.
    [[nodiscard]] Clock::duration Unanswered(Clock::time_point now) const {
        return since_ ? now - *since_ : Clock::duration{0};
    }

private:
    // It may have been there in between, when nobody has asked for so long.
    static constexpr Clock::duration kTooLong = 2 * backend::kStandstill;

    std::optional<Clock::time_point> since_ = {};
    Clock::time_point last_ = {};
};

/// What the topic sees when it looks after a fence.
struct FenceView {
    FencePosition here = {};  ///< Taken before the other side was asked.
    Clock::time_point now = {};
    Side side = Side::kNew;        ///< Where the fence is.
    bool subscribed = true;        ///< The topic takes messages from the other side.
    Clock::duration unanswered{};  ///< For how long that side's broker has not answered.
    Drain drain = {};              ///< What the other side's broker said of the group.
    runtime::Intake there = {};    ///< What this subscription took from the other side.
    /// How many messages from the other side this client has had in hand from before the question until
    /// after the answer, in all subscriptions of the group.
    std::uint64_t in_hand = 0;
    /// All that is left there is held here, behind a fence of its own, and came later.
    bool waits_for_newer = false;
    std::chrono::milliseconds quiet{};     ///< The topic's quiet period.
    std::chrono::milliseconds patience{};  ///< With a group that settles nothing.
};

/// What is to be done about a fence.
struct FenceDecision {
    enum class Kind : unsigned char {
        kWait,          ///< Until `again` at the latest.
        kRejoin,        ///< Messages are left on a side that the topic has left.
        kOpen,          ///< Lets go of what had arrived by `position`.
        kOpenUnasked,   ///< The same, though the other side's broker has not answered.
        kOpenUnproved,  ///< The same, though something is left that may be older.
        kNarrow,        ///< The same, but for the keys of what is in hand.
    };

    Kind kind = Kind::kWait;
    FencePosition position = {};
    Clock::time_point again = Clock::time_point::max();
};

/// Follows one fence from when it is raised until it opens. Not thread-safe.
class FenceWatch {
public:
    explicit FenceWatch(const FencePosition& raised) : raised_(raised), progress_at_(raised.since) {}

    FenceDecision Decide(const FenceView& view) {
        NoteProgress(view);
        if (view.drain.settled_before >= raised_.since) return Open(raised_);
        return view.subscribed ? DecideBeside(view) : DecideBehind(view);
    }

    /// Rises whenever something is seen to be handled on the other side.
    [[nodiscard]] std::uint64_t progress() const noexcept { return progress_count_; }

    /// Since when it is up.
    [[nodiscard]] Clock::time_point since() const noexcept { return raised_.since; }

private:
    using Kind = FenceDecision::Kind;

    // What is seen to happen on the other side.
    struct Progress {
        std::optional<std::uint64_t> left = {};
        std::optional<Clock::time_point> settled_before = {};
        std::uint64_t processed = 0;

        // Whether something has been handled there since `earlier`: what arrives makes no difference.
        [[nodiscard]] bool Since(const Progress& earlier) const {
            return processed != earlier.processed || settled_before > earlier.settled_before ||
                   (left && earlier.left && *left < *earlier.left);
        }
    };

    static FenceDecision Open(const FencePosition& position) {
        return {.kind = Kind::kOpen, .position = position};
    }

    // The topic has left the other side. The rung does not need that broker, which may be down for
    // good: it is waited for as long as anything may stand still, and not once more until it has
    // answered.
    [[nodiscard]] FenceDecision DecideBehind(const FenceView& view) const {
        if (view.drain.verdict.passed || !view.drain.known) return Open(raised_);
        if (view.drain.left) return {.kind = Kind::kRejoin};
        if (view.unanswered >= backend::kStandstill) {
            return {.kind = Kind::kOpenUnasked, .position = raised_};
        }
        return {};
    }

    FenceDecision DecideBeside(const FenceView& view) {
        if (view.drain.verdict.passed) {
            // Members in other processes may still be at work on what they took: they get the quiet
            // period.
            if (!drained_) drained_ = view.here;
            const auto last = std::max(drained_->since, view.there.last_arrival);
            if (view.now - last >= view.quiet) return Open(*drained_);
            return {.again = last + view.quiet};
        }
        drained_.reset();
        if (view.waits_for_newer) return Open(view.here);
        if (view.drain.complete && view.in_hand > 0 && view.drain.left == view.in_hand) {
            return {.kind = Kind::kNarrow, .position = view.here};
        }
        if (WaitsInVain(view)) return {.kind = Kind::kOpenUnproved, .position = view.here};
        return {};
    }

    // Whether the fence waits for one that waits for it: nothing is handled on the other side for so
    // long that no handler is behind it. Only a producer that went back without proof can be the reason
    // for that, and raises its fence on the old side; one on the new side waits as long as it takes.
    // No answer may mean that a member elsewhere holds what this one waits for, and is waited for as
    // long as anything may stand still.
    bool WaitsInVain(const FenceView& view) {
        const bool at_work = view.there.outstanding > view.there.held;
        const bool unknown = !view.drain.left && !view.drain.settled_before;
        if (at_work || (std::exchange(unknown_, unknown) && !unknown)) progress_at_ = view.now;
        const Clock::duration patience =
            unknown ? std::max<Clock::duration>(view.patience, backend::kStandstill) : view.patience;
        return view.side == Side::kOld && view.now - progress_at_ >= patience;
    }

    void NoteProgress(const FenceView& view) {
        const Progress progress{view.drain.left, view.drain.settled_before, view.there.processed};
        if (!progress.Since(std::exchange(progress_, progress))) return;
        progress_at_ = view.now;
        ++progress_count_;
    }

    FencePosition raised_;
    std::optional<FencePosition> drained_ = {};  // since when the other side looks drained
    Progress progress_ = {};
    std::uint64_t progress_count_ = 0;
    bool unknown_ = false;  // the last answer was none
    Clock::time_point progress_at_;
};

}  // namespace mq::migration
