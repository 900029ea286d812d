#include "../support/catch.hpp"
#include <mq/migration/ladder.hpp>
#include <mq/policy.hpp>

#include <array>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

using mq::kPolicies;
using mq::Other;
using mq::Policy;
using mq::Side;
using mq::migration::NextRung;
using mq::migration::PublishSide;
using mq::migration::Step;
using mq::migration::StepBetween;
using mq::migration::Subscribes;

namespace {

constexpr std::array<Side, 2> kSides{Side::kOld, Side::kNew};

int Distance(Policy from, Policy to) { return std::abs(static_cast<int>(to) - static_cast<int>(from)); }

std::string Walk(Policy from, Policy to) {
    return std::string{ToString(from)} + " to " + std::string{ToString(to)};
}

int Changes(const Step& step) {
    return (step.subscribe ? 1 : 0) + (step.publish ? 1 : 0) + (step.leave ? 1 : 0);
}

// The ladder is a value: all of it can be evaluated by the compiler.
static_assert(PublishSide(NextRung(Policy::kDualSubscribe, Policy::kNew)) == Side::kNew);
static_assert(StepBetween(Policy::kOld, Policy::kDualSubscribe) == Step{.subscribe = Side::kNew});

}  // namespace

TEST_CASE("each rung publishes to one side and subscribes as the table of policies says") {
    struct Row {
        Policy rung;
        Side publishes;
        bool subscribes_old;
        bool subscribes_new;
    };
    constexpr std::array<Row, 4> kTable{{
        {Policy::kOld, Side::kOld, true, false},
        {Policy::kDualSubscribe, Side::kOld, true, true},
        {Policy::kNewPublish, Side::kNew, true, true},
        {Policy::kNew, Side::kNew, false, true},
    }};
    for (const Row& row : kTable) {
        INFO(ToString(row.rung));
        CHECK(PublishSide(row.rung) == row.publishes);
        CHECK(Subscribes(row.rung, Side::kOld) == row.subscribes_old);
        CHECK(Subscribes(row.rung, Side::kNew) == row.subscribes_new);
    }
}

TEST_CASE("a client at any rung is subscribed to the side that it publishes to") {
    for (const Policy rung : kPolicies) CHECK(Subscribes(rung, PublishSide(rung)));
}

TEST_CASE("the walk from any rung to any rung takes one rung at a time and arrives") {
    for (const Policy from : kPolicies) {
        for (const Policy to : kPolicies) {
            INFO(Walk(from, to));
            Policy rung = from;
            int steps = 0;
            while (rung != to && steps < 10) {
                const Policy next = NextRung(rung, to);
                CHECK(Distance(rung, next) == 1);
                CHECK(Distance(next, to) == Distance(rung, to) - 1);
                rung = next;
                ++steps;
            }
            CHECK(rung == to);
            CHECK(steps == Distance(from, to));
            CHECK(NextRung(rung, to) == to);
        }
    }
}

TEST_CASE("a step between neighbours changes one thing and leads to what the rung above or below has") {
    for (const Policy from : kPolicies) {
        for (const Policy to : kPolicies) {
            if (Distance(from, to) != 1) continue;
            INFO(Walk(from, to));
            const Step step = StepBetween(from, to);
            CHECK(Changes(step) == 1);
            for (const Side side : kSides) {
                bool subscribed = Subscribes(from, side);
                if (step.subscribe == side) subscribed = true;
                if (step.leave == side) subscribed = false;
                CHECK(subscribed == Subscribes(to, side));
            }
            CHECK(step.publish.value_or(PublishSide(from)) == PublishSide(to));
        }
    }
}

TEST_CASE("a rung is no step from itself") {
    for (const Policy rung : kPolicies) {
        CHECK(StepBetween(rung, rung) == Step{});
        CHECK(NextRung(rung, rung) == rung);
    }
}

TEST_CASE("the steps up are undone by the steps down") {
    for (const Policy from : kPolicies) {
        for (const Policy to : kPolicies) {
            if (Distance(from, to) != 1) continue;
            INFO(Walk(from, to));
            const Step forth = StepBetween(from, to);
            const Step back = StepBetween(to, from);
            CHECK(back.leave == forth.subscribe);
            CHECK(back.subscribe == forth.leave);
            CHECK(back.publish.has_value() == forth.publish.has_value());
            if (forth.publish) CHECK(*back.publish == Other(*forth.publish));
        }
    }
}

TEST_CASE("publishing never moves in the step in which subscriptions change") {
    for (const Policy from : kPolicies) {
        for (const Policy to : kPolicies) {
            if (Distance(from, to) != 1) continue;
            const Step step = StepBetween(from, to);
            if (!step.publish) continue;
            INFO(Walk(from, to));
            CHECK_FALSE(step.subscribe);
            CHECK_FALSE(step.leave);
            // Both sides are subscribed before, during and after.
            for (const Side side : kSides) {
                CHECK(Subscribes(from, side));
                CHECK(Subscribes(to, side));
            }
        }
    }
}

TEST_CASE("any mixture of two neighbouring rungs is safe: all that one publishes, the other receives") {
    for (const Policy producer : kPolicies) {
        for (const Policy consumer : kPolicies) {
            INFO("a producer at " << ToString(producer) << ", a consumer at " << ToString(consumer));
            const bool received = Subscribes(consumer, PublishSide(producer));
            if (Distance(producer, consumer) <= 1) CHECK(received);
        }
    }
}

TEST_CASE("mixtures further apart are not all safe, which is why a walk waits on each rung") {
    CHECK_FALSE(Subscribes(Policy::kNew, PublishSide(Policy::kOld)));
    CHECK_FALSE(Subscribes(Policy::kNew, PublishSide(Policy::kDualSubscribe)));
    CHECK_FALSE(Subscribes(Policy::kOld, PublishSide(Policy::kNewPublish)));
    CHECK_FALSE(Subscribes(Policy::kOld, PublishSide(Policy::kNew)));
}

TEST_CASE("a side is left only from a rung that does not publish to it") {
    for (const Policy from : kPolicies) {
        for (const Policy to : kPolicies) {
            if (Distance(from, to) != 1) continue;
            const Step step = StepBetween(from, to);
            if (!step.leave) continue;
            INFO(Walk(from, to));
            CHECK(PublishSide(from) != *step.leave);
            CHECK(PublishSide(to) != *step.leave);
        }
    }
}

TEST_CASE("every policy has a word of its own, and the word means the policy") {
    std::vector<std::string> words;
    for (const Policy policy : kPolicies) {
        words.emplace_back(ToString(policy));
        CHECK(mq::ParsePolicy(words.back()) == policy);
    }
    CHECK(words == std::vector<std::string>{"old", "dual-subscribe", "new-publish", "new"});
    for (const char* const wrong : {"", "Old", "dual_subscribe", "newer", "new-publish "}) {
        CHECK_FALSE(mq::ParsePolicy(wrong));
    }
}
