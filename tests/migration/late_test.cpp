/// @file late_test.cpp
/// Those who are late: a producer that has not moved when everybody else has, a member that dies with
/// messages in its hands. What they leave on the side that was left is fetched; and each consumer's
/// status shows which producers stand where. Up and down alike.
#include "../support/catch.hpp"
#include "direction.hpp"
#include "gate.hpp"

#include <algorithm>
#include <chrono>
#include <string>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Message;
using mq::Order;
using mq::Policy;
using mq::ProducerStatus;

void Listen(Service& service, Gate& gate, const std::string& group = "billing") {
    service.subscription = service.client->RecvMsg(
        kTopic, [&gate](const Message& message) { gate.Pass(message); }, {.group = group});
}

Scene SceneOf(Order order = Order::kNone) {
    return {.order = order, .quiet = 250ms, .groups = {"billing"}};
}

// Up and down, until the service has been on both sides.
void WalkOver(const Service& service, const Direction& way) {
    service.SetPolicy(way.end());
    REQUIRE(service.Reaches(way.end()));
}

TEST_CASE("What a late producer sends to the side that was left is fetched from there", "[late]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene = SceneOf(GENERATE(Order::kNone, Order::kKey));
    Gate gate{true};
    Service late{scene, way.both()};
    Service service{scene, way.start()};
    Listen(service, gate);
    WalkOver(service, way);
    late.client->SendMsg(kTopic, "late");
    CHECK(gate.WaitPassed(1));
    // And then the side is left again.
    CHECK(Eventually([&] { return !way.NearSide(service).subscribed; }));
    CHECK(service.Status().stage == way.end());
    late.client->SendMsg(kTopic, "very late");
    CHECK(gate.WaitPassed(2));
    CHECK(gate.Passed() == std::vector<std::string>{"late", "very late"});
}

TEST_CASE("A member that starts at the end of the walk fetches what is left behind it", "[late]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene = SceneOf();
    Gate gate{true};
    Service producer{scene, way.start()};
    {
        Service died{scene, way.start()};
        Listen(died, gate);
    }
    producer.client->SendMsg(kTopic, "left behind");
    Service service{scene, way.end()};
    Listen(service, gate);
    CHECK(gate.WaitPassed(1));
}

TEST_CASE("What other programs left on the other side before the group was there is no business of it",
          "[late]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene = SceneOf();
    Gate gate{true};
    Service other{scene, way.end()};
    other.client->SendMsg(kTopic, "of another age");
    Service service{scene, way.start()};
    Listen(service, gate);
    CHECK(Stays([&] { return !way.FarSide(service).subscribed; }, 4 * scene.quiet));
    CHECK(gate.Passed().empty());
}

// A producer that asks nobody, and sends "1" to the one side and then "2" to the other.
void SendAcross(Scene scene, Policy first, Policy second) {
    scene.guard = false;
    Service producer{scene, first};
    producer.client->SendMsg(kTopic, Message{.body = "1", .key = "k"});
    producer.SetPolicy(second);
    REQUIRE(producer.Reaches(second));
    producer.client->SendMsg(kTopic, Message{.body = "2", .key = "k"});
}

const std::vector<std::string> kInOrder{"1", "2"};

TEST_CASE("A member that starts in the middle of a walk handles what is older first, up and down",
          "[late][order]") {
    const Direction way{GENERATE(true, false)};
    const Policy start = way.moved();
    INFO(way.name());
    const Scene scene = SceneOf(Order::kKey);
    SendAcross(scene, way.both(), way.moved());
    Gate gate{true};
    Service service{scene, start};
    Listen(service, gate);
    CHECK(gate.WaitPassed(2));
    CHECK(gate.Passed() == kInOrder);
}

TEST_CASE("A member that starts at the end of a walk handles first what another has left behind",
          "[late][order]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene = SceneOf(Order::kKey);
    Gate gate{true};
    {
        Service died{scene, way.both()};
        Listen(died, gate);
    }
    SendAcross(scene, way.both(), way.moved());
    Service service{scene, way.end()};
    Listen(service, gate);
    CHECK(gate.WaitPassed(2));
    CHECK(gate.Passed() == kInOrder);
    CHECK(Eventually([&] { return !way.NearSide(service).subscribed; }));
}

TEST_CASE("In order, a side that cannot be asked holds a start up for a moment only", "[late][order]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene = SceneOf(Order::kKey);
    way.Far(scene).Stop();
    Gate gate{true};
    Service service{scene, way.start()};
    Listen(service, gate);
    service.client->SendMsg(kTopic, Message{.body = "1", .key = "k"});
    CHECK(gate.WaitPassed(1));
    CHECK(Eventually([&] { return service.Status().waiting_for.empty(); }));
    way.Far(scene).Start();
}

TEST_CASE("With the guard off nobody looks back", "[late]") {
    Scene scene = SceneOf();
    scene.guard = false;
    Gate gate{true};
    Service late{scene, Policy::kDualSubscribe};
    Service service{scene, Policy::kOld};
    Listen(service, gate);
    service.SetPolicy(Policy::kNew);
    REQUIRE(service.Reaches(Policy::kNew));
    late.client->SendMsg(kTopic, "stranded");
    CHECK(Stays([&] { return !service.Status().old_side.subscribed; }, 4 * scene.quiet));
    CHECK(gate.Passed().empty());
}

TEST_CASE("A consumer's status shows which producers stand on which rung", "[late]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene = SceneOf();
    Gate gate{true};
    Service consumer{scene, way.both()};
    Listen(consumer, gate);
    Service ahead{scene, way.moved()};
    Service behind{scene, way.both()};
    ahead.client->SendMsg(kTopic, "ahead");
    behind.client->SendMsg(kTopic, "behind");
    REQUIRE(gate.WaitPassed(2));
    const auto near = way.NearSide(consumer).producers;
    const auto far = way.FarSide(consumer).producers;
    REQUIRE(near.size() == 1);
    REQUIRE(far.size() == 1);
    CHECK(near.front().stage == way.both());
    CHECK(far.front().stage == way.moved());
    CHECK(far.front().moves == 0);
    CHECK(near.front().client != far.front().client);

    behind.SetPolicy(way.moved());
    REQUIRE(behind.Reaches(way.moved()));
    behind.client->SendMsg(kTopic, "moved");
    REQUIRE(gate.WaitPassed(3));
    const auto moved = way.FarSide(consumer).producers;
    const auto found = std::find_if(moved.begin(), moved.end(), [&](const ProducerStatus& producer) {
        return producer.client == near.front().client;
    });
    REQUIRE(found != moved.end());
    CHECK(found->stage == way.moved());
    CHECK(found->moves == 1);
}

TEST_CASE("A topic with one broker tells nothing of its producers", "[late]") {
    Scene scene = SceneOf();
    scene.migrates = false;
    Gate gate{true};
    Service service{scene, Policy::kOld};
    Listen(service, gate);
    service.client->SendMsg(kTopic, "plain");
    REQUIRE(gate.WaitPassed(1));
    CHECK(service.Status().old_side.producers.empty());
}

}  // namespace
