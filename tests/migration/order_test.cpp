/// @file order_test.cpp
/// The order of a key across the change of broker, and what it costs the senders: nothing without
/// `order = "key"`, a short wait with it.
#include "../bench/send_stopwatch.hpp"
#include "../support/catch.hpp"
#include "direction.hpp"
#include "gate.hpp"

#include <array>
#include <chrono>
#include <cstddef>
#include <future>
#include <string>
#include <vector>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Message;
using mq::Order;
using mq::Policy;

void Listen(Service& service, const std::string& group, Gate& gate) {
    service.subscription =
        service.client->RecvMsg(kTopic, [&gate](const Message& message) { gate.Pass(message); },
                                {.group = group, .concurrency = 4});
}

void Send(Service& service, const std::string& body) {
    service.client->SendMsg(kTopic, Message{.body = body, .key = "k"});
}

TEST_CASE("Messages of the far side are held until the near side is handled, then go in order",
          "[order]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.order = Order::kKey, .quiet = 50ms, .groups = {"billing"}};
    Gate gate;
    Service producer{scene, way.start()};
    Service billing{scene, way.start()};
    Listen(billing, "billing", gate);
    const OpenAtEnd open{gate};
    for (const char* const body : {"1", "2", "3"}) Send(producer, body);
    REQUIRE(gate.WaitWaiting(1));
    billing.SetPolicy(way.moved());
    producer.SetPolicy(way.end());
    if (way.start() == Policy::kNew) {
        // Going back, it is the producer that waits.
        REQUIRE(producer.WaitsFor("group billing to drain next"));
        CHECK(gate.Passed().empty());
        gate.Open();
    }
    REQUIRE(producer.Reaches(way.end()));
    Send(producer, "4");
    // Another key has no message before it, and waits for none: what is left is in this client's hands.
    producer.client->SendMsg(kTopic, Message{.body = "other", .key = "o"});

    if (way.start() == Policy::kOld) {
        REQUIRE(gate.WaitWaiting(2));
        REQUIRE(Eventually([&] { return way.FarSide(billing).held == 1; }));
        CHECK(Stays([&] { return way.FarSide(billing).held == 1 && gate.Passed().empty(); }, 300ms));
        gate.Open();
    }
    REQUIRE(gate.WaitPassed(5));
    CHECK(Eventually([&] { return way.FarSide(billing).held == 0; }));
    auto passed = gate.Passed();
    std::erase(passed, "other");
    CHECK(passed == std::vector<std::string>{"1", "2", "3", "4"});

    // What comes later is held no longer than it takes to ask.
    Send(producer, "5");
    CHECK(gate.WaitPassed(6));
}

// A producer that waits for nobody: it puts messages where the test wants them.
Scene Unguarded(Scene scene) {
    scene.guard = false;
    return scene;
}

TEST_CASE("Held messages wait for what another member of the group still works on", "[order]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.order = Order::kKey, .quiet = 50ms, .groups = {"billing"}};
    Gate slow_gate;
    Gate gate{true};
    Service producer{Unguarded(scene), way.start()};
    Service slow{scene, way.start()};
    Listen(slow, "billing", slow_gate);
    const OpenAtEnd open{slow_gate};
    Send(producer, "1");
    REQUIRE(slow_gate.WaitWaiting(1));
    // The slow member stays on its side: what is sent to the other one can go only to the quick one.
    Service quick{scene, way.start()};
    Listen(quick, "billing", gate);
    quick.SetPolicy(way.both());
    REQUIRE(quick.Reaches(way.both()));
    producer.SetPolicy(way.end());
    REQUIRE(producer.Reaches(way.end()));
    Send(producer, "2");

    REQUIRE(Eventually([&] { return way.FarSide(quick).held == 1; }));
    CHECK(Stays([&] { return gate.Passed().empty(); }, 300ms));
    slow_gate.Open();
    REQUIRE(gate.WaitPassed(1));
    CHECK(slow_gate.Passed() == std::vector<std::string>{"1"});
}

TEST_CASE("A walk turns round only when what is on its way keeps its place", "[order]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.order = Order::kKey, .quiet = 50ms, .groups = {"billing"}};
    Gate slow_gate;
    Gate gate{true};
    Service producer{Unguarded(scene), way.start()};
    Service slow{scene, way.start()};
    Listen(slow, "billing", slow_gate);
    const OpenAtEnd open{slow_gate};
    Send(producer, "1");
    REQUIRE(slow_gate.WaitWaiting(1));
    Service quick{scene, way.start()};
    Listen(quick, "billing", gate);
    quick.SetPolicy(way.moved());
    REQUIRE(quick.Reaches(way.moved()));
    producer.SetPolicy(way.moved());
    REQUIRE(producer.Reaches(way.moved()));
    way.Far(scene).DelayDeliveries(2s);
    Send(producer, "2");
    REQUIRE(way.FarSide(quick).held == 0);

    // Nothing is held yet, and the second message is on its way while the first is being handled.
    quick.SetPolicy(way.both());
    CHECK(Stays([&] { return gate.Passed().empty(); }, 2500ms));
    slow_gate.Open();
    REQUIRE(gate.WaitPassed(1));
    CHECK(slow_gate.Passed() == std::vector<std::string>{"1"});
    CHECK(quick.Reaches(way.both()));
}

TEST_CASE("Without an order to keep nothing is held", "[order]") {
    const Scene scene{.quiet = 50ms, .groups = {"billing"}};
    Gate gate;
    Service producer{scene, Policy::kOld};
    Service billing{scene, Policy::kDualSubscribe};
    Listen(billing, "billing", gate);
    const OpenAtEnd open{gate};
    Send(producer, "1");
    REQUIRE(gate.WaitWaiting(1));
    producer.SetPolicy(Policy::kNew);
    REQUIRE(producer.Reaches(Policy::kNew));
    Send(producer, "2");
    CHECK(gate.WaitWaiting(2));
    CHECK(billing.Status().new_side.held == 0);
}

TEST_CASE("An ordered move waits for the last confirm, and sends in between wait with it", "[order]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.order = Order::kKey, .quiet = 50ms, .groups = {"billing"}};
    std::promise<bool> first;
    Gate gate{true};
    Service producer{scene, way.both()};
    Service billing{scene, way.both()};
    Listen(billing, "billing", gate);
    way.Near(scene).SetConfirmDelay(kPatience);
    producer.client->SendMsg(kTopic, Message{.body = "1", .key = "k"},
                             [&](const mq::SendResult& result) { first.set_value(result.ok()); });
    producer.SetPolicy(way.moved());
    REQUIRE(
        producer.WaitsFor(way.near() + " to confirm 1 messages before the first goes to " + way.far()));
    auto second = std::async(std::launch::async, [&] { Send(producer, "2"); });
    CHECK(second.wait_for(300ms) == std::future_status::timeout);
    CHECK(way.Far(scene).Messages(scene.address).empty());

    way.Near(scene).SetConfirmDelay(0ms);
    CHECK(first.get_future().get());
    CHECK_NOTHROW(second.get());
    CHECK(producer.Reaches(way.moved()));
    CHECK(way.Near(scene).Messages(scene.address).size() == 1);
    CHECK(way.Far(scene).Messages(scene.address).size() == 1);
    REQUIRE(gate.WaitPassed(2));
    CHECK(gate.Passed() == std::vector<std::string>{"1", "2"});
}

TEST_CASE("A lost confirm delays an ordered move no longer than the send's deadline", "[order]") {
    const Scene scene{.order = Order::kKey, .quiet = 50ms, .groups = {"billing"}, .send_timeout = 3s};
    std::promise<mq::SendResult> lost;
    Gate gate{true};
    Service producer{scene, Policy::kDualSubscribe};
    Service billing{scene, Policy::kDualSubscribe};
    Listen(billing, "billing", gate);
    scene.OldBroker().LoseConfirms(1);
    producer.client->SendMsg(kTopic, Message{.body = "1", .key = "k"},
                             [&](const mq::SendResult& result) { lost.set_value(result); });
    producer.SetPolicy(Policy::kNewPublish);
    REQUIRE(producer.Reaches(Policy::kNewPublish));
    const mq::SendResult result = lost.get_future().get();
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().outcome() == mq::Outcome::kUnknown);
    // Its outcome is unknown: repeating it on the other side would be the sender's decision.
    CHECK(scene.NewBroker().Messages(scene.address).empty());
    Send(producer, "2");
    CHECK(gate.WaitPassed(2));
}

TEST_CASE("Without an order to keep no send waits for a change of policy", "[order]") {
    // The brokers take two seconds to confirm: a send that waited for confirms would show it.
    constexpr auto kConfirm = 2s;
    constexpr unsigned kRate = 5'000;  // a second, of each of two senders
    constexpr int kMeasurements = 5;
    const Scene scene{.quiet = 20ms, .groups = {"billing"}};
    Audit audit{{"billing"}, 0};
    Service producer{scene, Policy::kDualSubscribe};
    Service billing{scene, Policy::kDualSubscribe};
    billing.subscription = billing.client->RecvMsg(
        kTopic, [&audit](const Message& message) { audit.Processed("billing", message); },
        {.group = "billing", .concurrency = 2});
    scene.OldBroker().SetConfirmDelay(kConfirm);
    scene.NewBroker().SetConfirmDelay(kConfirm);
    {
        const auto ended = [&audit](const mq::SendResult& result) { audit.Ended(result); };
        const auto make = [&audit](std::size_t number) {
            return [&audit, number] { return audit.Make(number); };
        };
        SendStopwatch one{*producer.client, kTopic, kRate, make(0), ended};
        SendStopwatch two{*producer.client, kTopic, kRate, make(1), ended};
        REQUIRE(audit.WaitProcessed(1000));
        ChangeCost up;
        ChangeCost down;
        for (int i = 0; i < kMeasurements; ++i) {
            const auto change_to = [&](Policy policy) {
                return MeasureChange(std::array{&one, &two}, [&] {
                    producer.SetPolicy(policy);
                    REQUIRE(producer.Reaches(policy));
                });
            };
            up.Add(change_to(Policy::kNewPublish));
            down.Add(change_to(Policy::kDualSubscribe));
        }
        INFO("up: " << up << "; down: " << down);
        CHECK(up.with <= up.Bound());
        CHECK(down.with <= down.Bound());
    }
    scene.OldBroker().SetConfirmDelay(0ms);
    scene.NewBroker().SetConfirmDelay(0ms);
    CHECK(audit.WaitComplete());
    const AuditVerdict verdict = audit.Check();
    INFO(verdict);
    CHECK(verdict.lost == 0);
    CHECK(verdict.crossed == 0);
    CHECK(scene.OldBroker().Total().confirmed > 0);
    CHECK(scene.NewBroker().Total().confirmed > 0);
}

}  // namespace
