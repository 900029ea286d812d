/// @file walk_cases.cpp
/// The walks, whatever brokers they are between.
#include "../support/catch.hpp"
#include "walk.hpp"

#include <chrono>
#include <utility>

namespace mq::test {

const std::array<Walk, kWalks>& Walks() {
    using enum Policy;
    static const std::array<Walk, kWalks> walks{
        Walk{"rung by rung up", Order::kKey, {kOld, kDualSubscribe, kNewPublish, kNew}},
        Walk{"rung by rung down", Order::kKey, {kNew, kNewPublish, kDualSubscribe, kOld}},
        Walk{"in one jump up and one down", Order::kNone, {kOld, kNew, kOld}},
        Walk{"back and forth",
             Order::kKey,
             {kOld, kDualSubscribe, kNewPublish, kDualSubscribe, kNewPublish, kNew, kNewPublish,
              kDualSubscribe, kOld}},
    };
    return walks;
}

void CheckBooks(Fleet& fleet, bool ordered, std::chrono::milliseconds patience) {
    const bool complete = fleet.Settle(patience);
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    INFO(fleet.Describe());
    CHECK(complete);
    CHECK(verdict.confirmed == verdict.sent);
    CHECK(verdict.lost == 0);
    CHECK(verdict.crossed == 0);
    CHECK(verdict.foreign == 0);
    CHECK(verdict.ended_twice == 0);
    if (ordered) CHECK(verdict.reordered == 0);
}

void RunWalk(Scene scene, const Walk& walk, Fleet::Size size) {
    scene.order = walk.order;
    Fleet fleet{std::move(scene), walk.rungs.front(), size};
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(100));
    for (const Policy rung : walk.rungs) {
        INFO("to " << mq::ToString(rung));
        const bool reached = fleet.WalkTo(rung);
        INFO(fleet.Describe());
        REQUIRE(reached);
        // Traffic goes on at the rung before the next step.
        CHECK(fleet.audit().WaitProcessed(200));
    }
    CheckBooks(fleet, walk.order == Order::kKey);
}

}  // namespace mq::test
