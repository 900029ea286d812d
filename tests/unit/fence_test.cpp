#include "../support/catch.hpp"
#include <mq/migration/fence.hpp>

using mq::Side;
using mq::WaitingCode;
using mq::backend::kStandstill;
using mq::migration::AnswerWatch;
using mq::migration::Clock;
using mq::migration::Drain;
using mq::migration::FenceDecision;
using mq::migration::FencePosition;
using mq::migration::FenceView;
using mq::migration::FenceWatch;
using mq::migration::Verdict;
using Kind = mq::migration::FenceDecision::Kind;
using namespace std::chrono_literals;

namespace {

constexpr auto kQuiet = 1s;
constexpr auto kPatience = 5s;
constexpr Clock::time_point kStart{1h};

FencePosition At(Clock::duration after, std::uint64_t mark) {
    return {.noticed = 1, .mark = mark, .since = kStart + after};
}

const FencePosition kRaised = At(0s, 10);

// What the walker sees `after` the fence was raised, by when 20 messages had arrived behind it.
FenceView See(Clock::duration after, Drain drain) {
    return {.here = At(after, 20),
            .now = kStart + after,
            .drain = std::move(drain),
            .quiet = kQuiet,
            .patience = kPatience};
}

FenceView SeeBehind(Clock::duration after, Drain drain) {
    FenceView view = See(after, std::move(drain));
    view.subscribed = false;
    return view;
}

Drain Left(std::uint64_t count) {
    return {.verdict = Verdict::Wait(WaitingCode::kBacklog, "a drain"), .left = count};
}
Drain Empty() { return {.verdict = Verdict::Pass(), .left = 0}; }
Drain SettledBefore(Clock::duration after) {
    Drain drain = Left(3);
    drain.settled_before = kStart + after;
    return drain;
}
Drain NoAnswer() { return {.verdict = Verdict::Wait(WaitingCode::kAnswer, "an answer")}; }

}  // namespace

TEST_CASE("A fence opens at once for what came before it was raised, where that is known to be settled",
          "[fence]") {
    FenceWatch fence{kRaised};
    CHECK(fence.Decide(See(1ms, SettledBefore(-1ms))).kind == Kind::kWait);
    const FenceDecision decision = fence.Decide(See(2ms, SettledBefore(0ms)));
    CHECK(decision.kind == Kind::kOpen);
    CHECK(decision.position == kRaised);  // what came behind it may follow something else
}

TEST_CASE("Behind a drained side that is not known to be settled a fence waits for the quiet period",
          "[fence]") {
    FenceWatch fence{kRaised};
    const FenceDecision decision = fence.Decide(See(1ms, Empty()));
    CHECK(decision.kind == Kind::kWait);
    CHECK(decision.again == kStart + 1ms + kQuiet);

    SECTION("and opens for what had arrived when the period began") {
        const FenceDecision opened = fence.Decide(See(1ms + kQuiet, Empty()));
        CHECK(opened.kind == Kind::kOpen);
        CHECK(opened.position == At(1ms, 20));
    }
    SECTION("which begins again with each arrival") {
        FenceView view = See(1ms + kQuiet, Empty());
        view.there.last_arrival = kStart + 500ms;
        CHECK(fence.Decide(view).again == kStart + 500ms + kQuiet);
    }
    SECTION("and when the side is seen not to be drained") {
        CHECK(fence.Decide(See(500ms, Left(1))).kind == Kind::kWait);
        CHECK(fence.Decide(See(1ms + kQuiet, Empty())).again == kStart + 1ms + 2 * kQuiet);
    }
}

TEST_CASE("A fence waits for what is left, as long as it takes", "[fence]") {
    FenceWatch fence{kRaised};
    for (const auto after : {1ms, 5000ms, 3'600'000ms}) {
        CHECK(fence.Decide(See(after, Left(1))).kind == Kind::kWait);
        CHECK(fence.Decide(See(after, NoAnswer())).kind == Kind::kWait);
    }
}

TEST_CASE("A fence opens where what is left is held here and came later", "[fence]") {
    FenceWatch fence{kRaised};
    FenceView view = See(1ms, Left(2));
    view.waits_for_newer = true;
    const FenceDecision decision = fence.Decide(view);
    CHECK(decision.kind == Kind::kOpen);
    CHECK(decision.position == view.here);
}

TEST_CASE("A fence on the old side opens unproved when nothing is settled for its patience",
          "[fence]") {
    FenceWatch fence{kRaised};
    const auto decide = [&fence](Clock::duration after, Drain drain, mq::runtime::Intake there = {}) {
        FenceView view = See(after, std::move(drain));
        view.side = Side::kOld;
        view.there = there;
        return fence.Decide(view).kind;
    };
    CHECK(decide(1ms, Left(5)) == Kind::kWait);
    const auto last = 4s;
    SECTION("of a group that stands still") {
        CHECK(decide(kPatience - 1ms, Left(5)) == Kind::kWait);
        CHECK(decide(kPatience, Left(5)) == Kind::kOpenUnproved);
    }
    SECTION("after less was left") {
        CHECK(decide(last, Left(4)) == Kind::kWait);
        CHECK(decide(last + kPatience - 1ms, Left(7)) == Kind::kWait);  // arrivals are no progress
        CHECK(decide(last + kPatience, Left(7)) == Kind::kOpenUnproved);
    }
    SECTION("after something was settled here") {
        CHECK(decide(last, Left(5), {.processed = 1}) == Kind::kWait);
        CHECK(decide(last + kPatience - 1ms, Left(5), {.processed = 1}) == Kind::kWait);
        CHECK(decide(last + kPatience, Left(5), {.processed = 1}) == Kind::kOpenUnproved);
    }
    SECTION("after a handler here was at work") {
        CHECK(decide(last, Left(5), {.outstanding = 2, .held = 1}) == Kind::kWait);
        CHECK(decide(last + kPatience - 1ms, Left(5), {.outstanding = 1, .held = 1}) == Kind::kWait);
        CHECK(decide(last + kPatience, Left(5), {.outstanding = 1, .held = 1}) == Kind::kOpenUnproved);
    }
    SECTION("and not while nobody knows") {
        CHECK(decide(kPatience, NoAnswer()) == Kind::kWait);
        CHECK(decide(2 * kPatience - 1ms, Left(5)) == Kind::kWait);
    }
    SECTION("or for as long as anything may stand still") {
        CHECK(decide(kStandstill - 1ms, NoAnswer()) == Kind::kWait);
        CHECK(decide(kStandstill, NoAnswer()) == Kind::kOpenUnproved);
    }
}

TEST_CASE("A fence before a side that the topic has left", "[fence]") {
    FenceWatch fence{kRaised};
    SECTION("opens where nothing is left") {
        const FenceDecision decision = fence.Decide(SeeBehind(1ms, Empty()));
        CHECK(decision.kind == Kind::kOpen);
        CHECK(decision.position == kRaised);
    }
    SECTION("opens where the group has never been there") {
        Drain drain = Left(7);
        drain.known = false;
        CHECK(fence.Decide(SeeBehind(1ms, drain)).kind == Kind::kOpen);
    }
    SECTION("brings the topic back where something is left") {
        CHECK(fence.Decide(SeeBehind(1ms, Left(7))).kind == Kind::kRejoin);
    }
    SECTION("opens unasked where the broker has not answered for as long as anything may stand still") {
        FenceView view = SeeBehind(kStandstill, NoAnswer());
        view.unanswered = kStandstill - 1ms;
        CHECK(fence.Decide(view).kind == Kind::kWait);
        view.unanswered = kStandstill;
        CHECK(fence.Decide(view).kind == Kind::kOpenUnasked);
    }
    SECTION("opens unasked at once where the broker had its time before") {
        FenceView view = SeeBehind(1ms, NoAnswer());
        view.unanswered = kStandstill;
        CHECK(fence.Decide(view).kind == Kind::kOpenUnasked);
    }
}

TEST_CASE("The moment of a fence's position comes after its mark", "[fence]") {
    Clock::time_point marked;
    const FencePosition position = FencePosition::Take(3, [&] {
        // Until the clock shows another time, so that a moment before the mark is seen to be one.
        const auto begin = Clock::now();
        while ((marked = Clock::now()) == begin) {
        }
        return std::uint64_t{7};
    });
    CHECK(position.noticed == 3);
    CHECK(position.mark == 7);
    CHECK(position.since >= marked);
}

TEST_CASE("A broker that does not answer is known as one until it has answered", "[fence]") {
    AnswerWatch watch;
    CHECK(watch.Unanswered(kStart) == 0s);
    watch.Note(false, kStart);
    watch.Note(false, kStart + 20s);
    CHECK(watch.Unanswered(kStart + 40s) == 40s);
    SECTION("which ends it") {
        watch.Note(true, kStart + 40s);
        CHECK(watch.Unanswered(kStart + 41s) == 0s);
        watch.Note(false, kStart + 50s);
        CHECK(watch.Unanswered(kStart + 60s) == 10s);
    }
    SECTION("and no longer than it is asked: it may have been there since") {
        watch.Note(false, kStart + 20s + 2 * kStandstill + 1ms);
        CHECK(watch.Unanswered(kStart + 20s + 2 * kStandstill + 1s) < 1s);
    }
}

TEST_CASE("A fence becomes narrow where all that is left is in hand here", "[fence]") {
    FenceWatch fence{kRaised};
    const auto decide = [&fence](std::uint64_t left, std::uint64_t in_hand, bool complete) {
        FenceView view = See(1ms, Left(left));
        view.drain.complete = complete;
        view.in_hand = in_hand;
        return fence.Decide(view);
    };
    CHECK(decide(2, 1, true).kind == Kind::kWait);   // one is elsewhere, or yet to come
    CHECK(decide(2, 2, false).kind == Kind::kWait);  // more may be left than was counted
    const FenceDecision decision = decide(2, 2, true);
    CHECK(decision.kind == Kind::kNarrow);
    CHECK(decision.position == At(1ms, 20));  // of before the question
}

TEST_CASE("A fence counts what is handled on the other side as progress, and nothing else", "[fence]") {
    FenceWatch fence{kRaised};
    const auto progress = [&fence](Clock::duration after, Drain drain, mq::runtime::Intake there = {}) {
        FenceView view = See(after, std::move(drain));
        view.there = there;
        static_cast<void>(fence.Decide(view));
        return fence.progress();
    };
    const auto begin = progress(1ms, Left(5));
    CHECK(progress(2ms, Left(7)) == begin);  // arrivals
    CHECK(progress(3ms, NoAnswer(), {.outstanding = 3}) == begin);
    CHECK(progress(4ms, Left(7)) == begin);
    CHECK(progress(5ms, Left(6)) == begin + 1);
    CHECK(progress(6ms, Left(6), {.processed = 1}) == begin + 2);
    CHECK(progress(7ms, SettledBefore(-5ms), {.processed = 1}) > begin + 2);
}
