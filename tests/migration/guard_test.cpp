/// @file guard_test.cpp
/// The guards of a walk, one condition at a time: who must be listening before publishing moves, and
/// what must be gone before a side is left. Up and down alike.
#include "../support/catch.hpp"
#include "direction.hpp"
#include "gate.hpp"

#include <chrono>
#include <string>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::LogLevel;
using mq::Message;
using mq::Policy;

// Long enough for a walker that ignored its guard to be caught: it looks every quarter of a second.
constexpr std::chrono::milliseconds kWhile{600};

void Listen(Service& service, const std::string& group, Gate& gate, std::size_t prefetch = 0) {
    service.subscription =
        service.client->RecvMsg(kTopic, [&gate](const Message& message) { gate.Pass(message); },
                                {.group = group, .prefetch = prefetch});
}

void ListenThrowing(Service& service, const std::string& group, Gate& gate) {
    service.subscription = service.client->RecvMsg(
        kTopic, [&gate](const Message& message) { gate.PassOrThrow(message); }, {.group = group});
}

bool StaysAt(const Service& service, Policy rung) {
    return Stays([&] { return service.Status().stage == rung; }, kWhile);
}

TEST_CASE("Publishing stays until every named group listens on the other side", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene;
    Gate gate{true};
    Service producer{scene, way.start()};
    Service billing{scene, way.start()};
    Service search{scene, way.start()};
    Listen(billing, "billing", gate);
    Listen(search, "search", gate);
    billing.SetPolicy(way.both());
    REQUIRE(billing.Reaches(way.both()));

    producer.SetPolicy(way.end());
    REQUIRE(producer.WaitsFor("group search to listen on " + way.far()));
    CHECK(StaysAt(producer, way.both()));
    CHECK(way.NearSide(producer).publishing);
    CHECK_FALSE(way.FarSide(producer).publishing);
    producer.client->SendMsg(kTopic, "before");
    CHECK(way.Near(scene).Messages(scene.address).size() == 1);
    CHECK(way.Far(scene).Messages(scene.address).empty());

    search.SetPolicy(way.both());
    REQUIRE(producer.Reaches(way.end()));
    CHECK(producer.Status().waiting_for.empty());
    producer.client->SendMsg(kTopic, "after");
    CHECK(way.Far(scene).Messages(scene.address).size() == 1);
    CHECK(gate.WaitPassed(4));
}

TEST_CASE("With no group named, publishing waits until anybody listens on the other side", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.groups = {}};
    Gate gate{true};
    Service producer{scene, way.start()};
    producer.SetPolicy(way.end());
    REQUIRE(producer.WaitsFor("any group to listen on " + way.far()));
    CHECK(StaysAt(producer, way.both()));

    Service consumer{scene, way.both()};
    Listen(consumer, "whoever", gate);
    CHECK(producer.Reaches(way.end()));
}

TEST_CASE("A group whose last member has gone holds publishing back", "[guard]") {
    const Scene scene{.groups = {"billing"}};
    Gate gate{true};
    Service producer{scene, Policy::kOld};
    {
        Service billing{scene, Policy::kDualSubscribe};
        Listen(billing, "billing", gate);
        REQUIRE(scene.NewBroker().Members(scene.address, "billing") == 1);
    }
    producer.SetPolicy(Policy::kNew);
    REQUIRE(producer.WaitsFor("group billing to listen on next"));
    CHECK(StaysAt(producer, Policy::kDualSubscribe));
}

TEST_CASE("A side is not left while messages are ready or unsettled there", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms, .groups = {"billing"}};
    Gate gate;
    Service producer{scene, way.start()};
    Service billing{scene, way.start()};
    Listen(billing, "billing", gate, 2);
    const OpenAtEnd open{gate};
    for (int i = 0; i < 5; ++i) producer.client->SendMsg(kTopic, std::to_string(i));
    REQUIRE(gate.WaitWaiting(1));

    // Two of the five are in the client, the others wait in the broker.
    billing.SetPolicy(way.end());
    producer.SetPolicy(way.end());
    REQUIRE(producer.Reaches(way.end()));
    REQUIRE(billing.WaitsFor("group billing to drain " + way.near() + ": 5 messages left"));
    CHECK(StaysAt(billing, way.moved()));
    CHECK(way.NearSide(billing).subscribed);
    CHECK(way.NearSide(billing).backlog == 5);
    CHECK(way.NearSide(billing).unsettled == 2);
    CHECK(gate.Passed().empty());

    gate.Open();
    REQUIRE(billing.Reaches(way.end()));
    CHECK(gate.Passed().size() == 5);
    CHECK_FALSE(way.NearSide(billing).subscribed);
    CHECK(way.Near(scene).Members(scene.address, "billing") == 0);
}

TEST_CASE("A side is not left while another member of the group has a message unsettled", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms, .groups = {"billing"}};
    Gate gate;
    Service producer{scene, way.start()};
    Service slow{scene, way.start()};
    Service idle{scene, way.start()};
    Listen(slow, "billing", gate);
    const OpenAtEnd open{gate};
    producer.client->SendMsg(kTopic, "slow");
    REQUIRE(gate.WaitWaiting(1));
    Gate idle_gate{true};
    Listen(idle, "billing", idle_gate);

    idle.SetPolicy(way.end());
    slow.SetPolicy(way.moved());
    REQUIRE(idle.WaitsFor("group billing to drain " + way.near() + ": 1 messages left"));
    CHECK(StaysAt(idle, way.moved()));
    gate.Open();
    CHECK(idle.Reaches(way.end()));
    CHECK(slow.Reaches(way.moved()));
}

TEST_CASE("A side is not left while a message waits for another attempt", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms, .groups = {"billing"}};
    Gate gate;
    Service producer{scene, way.start()};
    Service billing{scene, way.start()};
    ListenThrowing(billing, "billing", gate);
    producer.client->SendMsg(kTopic, "stubborn");
    REQUIRE(gate.WaitThrown(1));

    billing.SetPolicy(way.end());
    REQUIRE(billing.WaitsFor("group billing to drain " + way.near() + ": 1 messages left"));
    CHECK(StaysAt(billing, way.moved()));
    gate.Open();
    REQUIRE(billing.Reaches(way.end()));
    CHECK(gate.Passed() == std::vector<std::string>{"stubborn"});
}

TEST_CASE("A side is left only after nothing has come from it for the quiet period", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 1s, .groups = {"billing"}};
    Gate gate{true};
    Audit audit{{"billing"}};
    Service late{scene, way.start()};
    Service billing{scene, way.start()};
    Listen(billing, "billing", gate);
    {
        const Traffic traffic{*late.client, audit, 0, 50};
        billing.SetPolicy(way.end());
        REQUIRE(billing.WaitsFor("no arrival on " + way.near() + " for 1s"));
        // Longer than the quiet period: each arrival begins it anew.
        CHECK(Stays([&] { return billing.Status().stage == way.moved(); }, 1500ms));
    }
    REQUIRE(billing.Reaches(way.end()));
    CHECK(mq::backend::Clock::now() - gate.LastPassed() >= scene.quiet);
    CHECK(audit.Check().pending == 0);
}

TEST_CASE("A broker that cannot say what is left is never taken for drained", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms, .groups = {"billing"}};
    Gate gate{true};
    Service billing{scene, way.start()};
    Listen(billing, "billing", gate);
    billing.SetPolicy(way.moved());
    REQUIRE(billing.Reaches(way.moved()));

    way.Near(scene).Stop();
    billing.SetPolicy(way.end());
    REQUIRE(billing.WaitsFor(way.near() + " to say what is left for group billing"));
    CHECK(StaysAt(billing, way.moved()));
    way.Near(scene).Start();
    CHECK(billing.Reaches(way.end()));
}

TEST_CASE("A broker that cannot say who listens keeps publishing where it is", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.groups = {"billing"}};
    Gate gate{true};
    Service producer{scene, way.start()};
    Service billing{scene, way.both()};
    Listen(billing, "billing", gate);
    way.Far(scene).Stop();
    producer.SetPolicy(way.moved());
    REQUIRE(producer.WaitsFor("group billing to listen on " + way.far()));
    CHECK(StaysAt(producer, way.both()));
    producer.client->SendMsg(kTopic, "still near");
    CHECK(gate.WaitPassed(1));
    way.Far(scene).Start();
    CHECK(producer.Reaches(way.moved()));
}

TEST_CASE("With the guard off publishing moves with nobody listening, and the log says so", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.guard = false};
    const Service producer{scene, way.start()};
    producer.SetPolicy(way.end());
    REQUIRE(producer.Reaches(way.end()));
    producer.client->SendMsg(kTopic, "unheard");
    CHECK(way.Far(scene).Messages(scene.address).size() == 1);
    CHECK(producer.log->WaitForLine("guard is off: publishing moves to " + way.far()));
}

TEST_CASE("With the guard off a side is left with what is there, and the log says so", "[guard]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 60s, .groups = {"billing"}, .guard = false};
    Gate gate;
    Service billing{scene, way.start()};
    ListenThrowing(billing, "billing", gate);
    billing.client->SendMsg(kTopic, "left behind");
    REQUIRE(gate.WaitThrown(1));
    billing.SetPolicy(way.end());
    REQUIRE(billing.Reaches(way.end(), kPatience));
    CHECK(billing.log->WaitForLine("guard is off: leaving " + way.near()));
    // It is still the group's, for whoever comes back.
    CHECK(Eventually([&] { return way.Near(scene).Backlog(scene.address, "billing").ready == 1; }));
}

TEST_CASE("A service that only produces leaves a side without asking what others have left",
          "[guard]") {
    const Scene scene{.groups = {"billing"}};
    Gate gate;
    Service producer{scene, Policy::kOld};
    Service billing{scene, Policy::kDualSubscribe};
    Listen(billing, "billing", gate);
    const OpenAtEnd open{gate};
    producer.client->SendMsg(kTopic, "unhandled");
    REQUIRE(gate.WaitWaiting(1));
    producer.SetPolicy(Policy::kNew);
    CHECK(producer.Reaches(Policy::kNew));
}

TEST_CASE("The status names the rung, the goal and what it waits for", "[guard]") {
    const Scene scene{.groups = {"billing"}};
    const Service service{scene, Policy::kOld};
    const mq::TopicStatus before = service.Status();
    CHECK(before.topic == kTopic);
    CHECK(before.policy == Policy::kOld);
    CHECK(before.stage == Policy::kOld);
    CHECK(before.waiting_for.empty());
    CHECK(before.old_side.broker == "legacy");
    CHECK(before.new_side.broker == "next");
    CHECK(before.old_side.publishing);
    CHECK_FALSE(before.new_side.publishing);
    CHECK_FALSE(before.old_side.subscribed);

    service.SetPolicy(Policy::kNew);
    REQUIRE(service.WaitsFor("group billing to listen on next"));
    const mq::TopicStatus waiting = service.Status();
    CHECK(waiting.policy == Policy::kNew);
    CHECK(waiting.stage == Policy::kDualSubscribe);
    CHECK(service.log->WaitForLine("reached dual-subscribe"));
}

}  // namespace
