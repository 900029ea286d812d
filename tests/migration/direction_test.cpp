/// @file direction_test.cpp
/// In order, which side is the newer one is known from what each producer shows, and not from the rung
/// where a member happens to stand: members that start, and subscriptions that join, in the middle of a
/// walk, with producers that are late or ahead.
#include "direction.hpp"

#include "../support/catch.hpp"
#include "fleet.hpp"
#include "gate.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Message;
using mq::Order;
using mq::Policy;
using mq::Side;

Scene Ordered() { return {.order = Order::kKey, .quiet = 50ms, .groups = {"billing"}}; }

Scene Unguarded(Scene scene) {
    scene.guard = false;
    return scene;
}

void Listen(Service& service, Gate& gate) {
    service.subscription = service.client->RecvMsg(
        kTopic, [&gate](const Message& message) { gate.Pass(message); }, {.group = "billing"});
}

void SendIn(Service& producer, const std::string& body, const std::string& key = "k") {
    producer.client->SendMsg(kTopic, Message{.body = body, .key = key});
}

void MoveTo(Service& producer, Policy policy) {
    producer.SetPolicy(policy);
    REQUIRE(producer.Reaches(policy));
}

// The producer asks nobody and waits for nobody: it puts messages where the test wants them.
TEST_CASE("A producer that turns back after a member has started does not overtake itself",
          "[direction][order]") {
    const Scene scene = Ordered();
    scene.OldBroker().Declare(scene.address, "billing");
    scene.NewBroker().Declare(scene.address, "billing");
    Service producer{Unguarded(scene), Policy::kDualSubscribe};
    MoveTo(producer, Policy::kNewPublish);
    Gate gate{true};
    Service member{scene, Policy::kDualSubscribe};
    Listen(member, gate);
    SendIn(producer, "1");
    REQUIRE(gate.WaitPassed(1));

    // What is sent to the new side now arrives behind what is sent to the old one later.
    scene.NewBroker().DelayDeliveries(500ms);
    SendIn(producer, "2");
    MoveTo(producer, Policy::kDualSubscribe);
    SendIn(producer, "3");
    REQUIRE(gate.WaitPassed(3));
    CHECK(gate.Passed() == std::vector<std::string>{"1", "2", "3"});
}

TEST_CASE("A subscription that joins in the middle of a walk keeps nothing back",
          "[direction][order]") {
    const Scene scene = Ordered();
    Gate billing{true};
    Service service{scene, Policy::kNewPublish};
    Listen(service, billing);
    Service ahead{scene, Policy::kNewPublish};
    SendIn(ahead, "1");
    REQUIRE(billing.WaitPassed(1));
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(service.Reaches(Policy::kDualSubscribe));

    Gate audit{true};
    const mq::Subscription joined = service.client->RecvMsg(
        kTopic, [&audit](const Message& message) { audit.Pass(message); }, {.group = "audit"});
    Service behind{scene, Policy::kDualSubscribe};
    for (const char* body : {"2", "3", "4"}) SendIn(behind, body, "other");
    CHECK(billing.WaitPassed(4));
    CHECK(Eventually([&] { return service.Status().old_side.held == 0; }));
}

TEST_CASE("Producers are each believed about themselves, however often others have moved",
          "[direction][order]") {
    const Scene scene = Ordered();
    scene.OldBroker().Declare(scene.address, "billing");
    scene.NewBroker().Declare(scene.address, "billing");
    Service restless{Unguarded(scene), Policy::kDualSubscribe};
    for (const Policy policy : {Policy::kNewPublish, Policy::kDualSubscribe, Policy::kNewPublish}) {
        MoveTo(restless, policy);
    }
    SendIn(restless, "restless", "other");
    Service producer{Unguarded(scene), Policy::kNewPublish};
    SendIn(producer, "1");
    MoveTo(producer, Policy::kDualSubscribe);
    scene.OldBroker().DelayDeliveries(300ms);
    SendIn(producer, "2");
    Gate gate{true};
    Service member{scene, Policy::kDualSubscribe};
    Listen(member, gate);
    REQUIRE(gate.WaitPassed(3));
    const std::vector<std::string> passed = gate.Passed();
    CHECK(std::find(passed.begin(), passed.end(), "1") < std::find(passed.begin(), passed.end(), "2"));
}

TEST_CASE("In order, a member starts on both sides while one of the brokers is down",
          "[direction][order]") {
    const Scene scene = Ordered();
    scene.OldBroker().Declare(scene.address, "billing");
    scene.NewBroker().Stop();
    Service producer{scene, Policy::kDualSubscribe};
    SendIn(producer, "1");
    Gate gate{true};
    Service member{scene, Policy::kDualSubscribe};
    const auto begin = mq::backend::Clock::now();
    Listen(member, gate);
    REQUIRE(gate.WaitPassed(1));
    CHECK(mq::backend::Clock::now() - begin < mq::test::kPrompt);
}

// The producers publish to both sides for as long as the mixture lasts, and every member takes from
// both.
TEST_CASE(
    "In order, a fleet may stay between two rungs: everything is handled, in whatever way it came",
    "[direction][order]") {
    const bool down = GENERATE(true, false);
    const bool restart = GENERATE(true, false);
    INFO((down ? "down" : "up") << (restart ? ", a member starts in between" : ""));
    Fleet fleet{{.order = Order::kKey, .quiet = 100ms},
                down ? Policy::kNewPublish : Policy::kDualSubscribe};
    fleet.StartTraffic();
    const Policy rung = down ? Policy::kDualSubscribe : Policy::kNewPublish;
    std::vector<const Service*> first{fleet.producers().front().get(), fleet.consumers().front().get(),
                                      fleet.consumers().at(2).get()};
    for (const Service* const service : first) service->SetPolicy(rung);
    REQUIRE(Eventually([&] {
        return std::all_of(first.begin(), first.end(), [&](auto* each) { return each->At(rung); });
    }));
    if (restart) fleet.RestartConsumer(0);
    CHECK(fleet.audit().WaitProcessed(2000));
    const bool complete = fleet.Settle();
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    INFO(fleet.Describe());
    CHECK(complete);
    CHECK(verdict.lost == 0);
    CHECK(verdict.reordered == 0);
}

TEST_CASE("Brokers that allow different things are named before the first step", "[direction]") {
    const Scene scene{.quiet = 50ms};
    Service service{scene, Policy::kOld};
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(service.Reaches(Policy::kDualSubscribe));
    // Two brokers of one kind allow the same.
    for (const auto& [level, line] : service.log->Lines()) CHECK_FALSE(Has(line, "differ in"));
}

}  // namespace
