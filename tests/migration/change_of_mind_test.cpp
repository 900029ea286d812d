/// @file change_of_mind_test.cpp
/// The target is taken back while a step waits for its guard: the client ends at the rung that was
/// asked for last, attached to nothing else, with nothing lost.
#include "../support/catch.hpp"
#include "direction.hpp"
#include "gate.hpp"

#include <chrono>
#include <future>
#include <string>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Message;
using mq::Order;
using mq::Policy;

void Listen(Service& service, const std::string& group, Gate& gate) {
    service.subscription = service.client->RecvMsg(
        kTopic, [&gate](const Message& message) { gate.Pass(message); }, {.group = group});
}

// Sends one message and sees it handled: the state that it was left in works.
void StillWorks(Service& producer, const Gate& gate) {
    const std::size_t before = gate.Passed().size();
    producer.client->SendMsg(kTopic, "afterwards");
    CHECK(gate.WaitPassed(before + 1));
}

TEST_CASE("Called off while the other broker cannot be subscribed to", "[mind]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms, .groups = {"billing"}};
    Gate gate{true};
    Service service{scene, way.start()};
    Listen(service, "billing", gate);
    way.Far(scene).Stop();
    service.SetPolicy(way.end());
    REQUIRE(service.WaitsFor("the subscription of group billing on " + way.far()));
    CHECK(service.Status().stage == way.start());

    // The broker that is down was never a rung: leaving it needs no answer from it.
    service.SetPolicy(way.start());
    StillWorks(service, gate);
    way.Far(scene).Start();
    REQUIRE(Eventually([&] { return !way.FarSide(service).subscribed; }));
    CHECK(service.At(way.start()));
    CHECK(way.Far(scene).Members(scene.address, "billing") == 0);
    StillWorks(service, gate);
}

TEST_CASE("Called off while a group is missing on the other side", "[mind]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms};
    Gate gate{true};
    Service service{scene, way.start()};
    Listen(service, "billing", gate);
    service.SetPolicy(way.end());
    REQUIRE(service.WaitsFor("group search to listen on " + way.far()));
    CHECK(service.Status().stage == way.both());

    service.SetPolicy(way.start());
    REQUIRE(service.Reaches(way.start()));
    CHECK(service.Status().waiting_for.empty());
    CHECK(way.NearSide(service).publishing);
    CHECK_FALSE(way.FarSide(service).subscribed);
    CHECK(way.Far(scene).Members(scene.address, "billing") == 0);
    StillWorks(service, gate);
}

TEST_CASE(
    "Called off while an ordered move waits for confirms, held sends go where they would have gone",
    "[mind]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.order = Order::kKey, .quiet = 50ms, .groups = {"billing"}};
    std::promise<bool> first;
    Gate gate{true};
    Service producer{scene, way.both()};
    Service billing{scene, way.both()};
    Listen(billing, "billing", gate);
    way.Near(scene).SetConfirmDelay(kPatience);
    producer.client->SendMsg(kTopic, Message{.body = "first", .key = "k"},
                             [&](const mq::SendResult& result) { first.set_value(result.ok()); });
    producer.SetPolicy(way.end());
    REQUIRE(producer.WaitsFor(way.near() + " to confirm 1 messages"));
    auto held = std::async(std::launch::async, [&] {
        producer.client->SendMsg(kTopic, Message{.body = "held", .key = "k"});
    });
    // The first is not confirmed: a send that was not held would be on one of the brokers.
    CHECK(Stays(
        [&] {
            return way.Near(scene).Messages(scene.address).size() == 1 &&
                   way.Far(scene).Messages(scene.address).empty();
        },
        300ms));

    producer.SetPolicy(way.both());
    REQUIRE(Eventually([&] { return way.Near(scene).Messages(scene.address).size() == 2; }));
    way.Near(scene).SetConfirmDelay(0ms);
    CHECK_NOTHROW(held.get());
    CHECK(first.get_future().get());
    REQUIRE(producer.Reaches(way.both()));
    CHECK(way.Far(scene).Messages(scene.address).empty());
    REQUIRE(gate.WaitPassed(2));
    CHECK(gate.Passed() == std::vector<std::string>{"first", "held"});
}

TEST_CASE("Called off while a side is not drained, publishing goes back", "[mind]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms, .groups = {"billing"}};
    Gate gate;
    Service service{scene, way.start()};
    Listen(service, "billing", gate);
    const OpenAtEnd open{gate};
    service.client->SendMsg(kTopic, "slow");
    REQUIRE(gate.WaitWaiting(1));
    service.SetPolicy(way.end());
    REQUIRE(service.WaitsFor("group billing to drain " + way.near()));
    CHECK(way.FarSide(service).publishing);

    service.SetPolicy(way.both());
    REQUIRE(service.Reaches(way.both()));
    CHECK(way.NearSide(service).publishing);
    CHECK(way.NearSide(service).subscribed);
    CHECK(way.FarSide(service).subscribed);
    gate.Open();
    REQUIRE(gate.WaitPassed(1));
    StillWorks(service, gate);
    CHECK(way.Near(scene).Messages(scene.address).size() == 2);
    service.SetPolicy(way.start());
    CHECK(service.Reaches(way.start()));
    CHECK(way.Far(scene).Members(scene.address, "billing") == 0);
}

TEST_CASE("Called off while the quiet period runs, the side stays subscribed", "[mind]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 60s, .groups = {"billing"}};
    Gate gate{true};
    Service service{scene, way.start()};
    Listen(service, "billing", gate);
    service.SetPolicy(way.end());
    REQUIRE(service.WaitsFor("no arrival on " + way.near() + " for 60s"));
    service.SetPolicy(way.moved());
    CHECK(service.Reaches(way.moved()));
    CHECK(Eventually([&] { return service.Status().waiting_for.empty(); }));
    CHECK(way.NearSide(service).subscribed);
    StillWorks(service, gate);
}

TEST_CASE("A target that changes all the time under traffic loses nothing", "[mind]") {
    Fleet fleet{{.order = Order::kKey, .quiet = 20ms}, Policy::kOld};
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(50));
    // A fixed sequence that visits every pair of rungs, in jumps of every length.
    constexpr int kSteps = 60;
    for (int i = 0; i < kSteps; ++i) {
        fleet.SetPolicy(mq::kPolicies.at(static_cast<std::size_t>(i * i + i / 3) % 4));
        CHECK(fleet.audit().WaitProcessed(static_cast<std::uint64_t>(5 + i % 17)));
    }
    const bool reached = fleet.WalkTo(Policy::kNew);
    const bool complete = fleet.Settle();
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    INFO(fleet.Describe());
    CHECK(reached);
    CHECK(complete);
    CHECK(verdict.lost == 0);
    CHECK(verdict.reordered == 0);
    CHECK(verdict.crossed == 0);
    CHECK(verdict.confirmed == verdict.sent);
}

}  // namespace
