/// @file availability_test.cpp
/// A broker that a topic does not need at its rung may be down: the service starts, sends and receives.
/// One that it is to join is joined when it is there.
#include "../support/catch.hpp"
#include "../support/refusing_port.hpp"
#include "direction.hpp"
#include "gate.hpp"

#include <chrono>
#include <future>
#include <memory>
#include <string>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Message;
using mq::Policy;

// A broker that nobody reaches: stopped, or a port where nothing listens.
class Unreachable {
public:
    explicit Unreachable(BrokerKind kind) {
        if (kind == BrokerKind::kMemory) {
            url_ = "memory://" + UniqueId("down");
            BrokerAt(url_).Stop();
        } else {
            const std::string scheme =
                kind == BrokerKind::kRabbitmq ? "amqp" : std::string{ToString(kind)};
            url_ = scheme + "://" + port_.Host();
        }
    }

    [[nodiscard]] const std::string& url() const { return url_; }

private:
    RefusingPort port_;
    std::string url_;
};

Scene WithFarSide(const Direction& way, const std::string& far_url) {
    Scene scene{.quiet = 50ms, .groups = {"billing"}};
    (way.end() == Policy::kNew ? scene.new_url : scene.old_url) = far_url;
    return scene;
}

void Listen(Service& service, Gate& gate) {
    service.subscription = service.client->RecvMsg(
        kTopic, [&gate](const Message& message) { gate.Pass(message); }, {.group = "billing"});
}

TEST_CASE("A broker that the rung does not need may be down", "[availability]") {
    const Direction way{GENERATE(true, false)};
    const BrokerKind kind =
        GENERATE(BrokerKind::kMemory, BrokerKind::kRabbitmq, BrokerKind::kKafka, BrokerKind::kArtemis);
    INFO("at " << mq::ToString(way.start()) << " without " << ToString(kind));
    const Unreachable down{kind};
    const auto begin = mq::backend::Clock::now();
    Gate gate{true};
    Service service{WithFarSide(way, down.url()), way.start()};
    Listen(service, gate);
    for (int i = 0; i < 10; ++i) service.client->SendMsg(kTopic, "works");
    CHECK(gate.WaitPassed(10));
    CHECK(service.Status().waiting_for.empty());
    CHECK(service.client->Flush(kPatience));
    service.client->Close(kPatience);
    // What no rung needs may not cost time either.
    CHECK(mq::backend::Clock::now() - begin < kPrompt);
}

TEST_CASE(
    "With the other broker down both sides' subscriber works on the one that is there, and says so",
    "[availability]") {
    const Direction way{GENERATE(true, false)};
    const BrokerKind kind =
        GENERATE(BrokerKind::kMemory, BrokerKind::kRabbitmq, BrokerKind::kKafka, BrokerKind::kArtemis);
    INFO("at " << mq::ToString(way.both()) << " without " << ToString(kind));
    const Unreachable down{kind};
    Gate gate{true};
    Service service{WithFarSide(way, down.url()), way.both()};
    Listen(service, gate);
    for (int i = 0; i < 10; ++i) service.client->SendMsg(kTopic, "works");
    CHECK(gate.WaitPassed(10));
    CHECK(service.WaitsFor("the subscription of group billing on " + way.far()));
    // Walking on is asked for, and not possible.
    service.SetPolicy(way.end());
    CHECK(service.WaitsFor("group billing to listen on " + way.far()));
    CHECK(Stays([&] { return service.Status().stage == way.both(); }, 600ms));
    service.client->SendMsg(kTopic, "still works");
    CHECK(gate.WaitPassed(11));
    const auto begin = mq::backend::Clock::now();
    service.client->Close(kPatience);
    CHECK(mq::backend::Clock::now() - begin < kPrompt);
}

TEST_CASE("A walk that waits for a broker goes on by itself when the broker is there",
          "[availability]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms, .groups = {"billing"}};
    Gate gate{true};
    way.Far(scene).Stop();
    Service service{scene, way.start()};
    Listen(service, gate);
    service.SetPolicy(way.end());
    REQUIRE(service.WaitsFor("the subscription of group billing on " + way.far()));
    service.client->SendMsg(kTopic, "meanwhile");
    CHECK(gate.WaitPassed(1));
    way.Far(scene).Start();
    REQUIRE(service.Reaches(way.end()));
    service.client->SendMsg(kTopic, "afterwards");
    CHECK(gate.WaitPassed(2));
    CHECK(way.Far(scene).Messages(scene.address).size() == 1);
}

TEST_CASE("A send whose outcome is unknown is not repeated on the other side", "[availability]") {
    const Direction way{GENERATE(true, false)};
    INFO(way.name());
    const Scene scene{.quiet = 50ms, .groups = {"billing"}, .send_timeout = 2s};
    std::promise<mq::SendResult> ended;
    Gate gate{true};
    Service service{scene, way.both()};
    Listen(service, gate);
    way.Near(scene).LoseConfirms(1);
    service.client->SendMsg(kTopic, "once",
                            [&](const mq::SendResult& result) { ended.set_value(result); });
    REQUIRE(gate.WaitPassed(1));
    service.SetPolicy(way.moved());
    REQUIRE(service.Reaches(way.moved()));
    way.Near(scene).Stop();
    const mq::SendResult result = ended.get_future().get();
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().outcome() == mq::Outcome::kUnknown);
    CHECK(way.Far(scene).Messages(scene.address).empty());
    way.Near(scene).Start();
}

// A consumer on both sides, and a producer that may fail over.
struct FailoverScene {
    explicit FailoverScene(const Direction& direction, Policy rung, bool failover = true,
                           std::chrono::milliseconds send_timeout = 2 * kPatience)
        : way(direction),
          scene(SceneOf(failover, send_timeout)),
          producer(scene, rung),
          consumer(scene, rung) {
        Listen(consumer, gate);
        CHECK(Eventually([&] { return producer.Status().failover == failover; }));
    }

    static Scene SceneOf(bool failover, std::chrono::milliseconds send_timeout = 2 * kPatience) {
        Scene scene{.quiet = 50ms, .groups = {"billing"}, .send_timeout = send_timeout};
        scene.failover = failover;
        return scene;
    }

    Direction way;
    Scene scene;
    Gate gate{true};
    Service producer;
    Service consumer;
};

TEST_CASE("With failover a topic on both sides survives the loss of either broker",
          "[availability][failover]") {
    std::promise<bool> pipelined;
    const Direction way{GENERATE(true, false)};
    const bool moved = GENERATE(true, false);
    INFO(way.name() << (moved ? ", publishing has moved" : ""));
    FailoverScene test{way, moved ? way.moved() : way.both()};
    auto& used = moved ? way.Far(test.scene) : way.Near(test.scene);
    auto& spare = moved ? way.Near(test.scene) : way.Far(test.scene);
    test.producer.client->SendMsg(kTopic, "before");
    REQUIRE(test.gate.WaitPassed(1));
    CHECK(spare.Messages(test.scene.address).empty());
    used.Stop();
    const auto begin = mq::backend::Clock::now();
    CHECK_NOTHROW(test.producer.client->SendMsg(kTopic, "during"));
    test.producer.client->SendMsg(
        kTopic, "pipelined", [&](const mq::SendResult& result) { pipelined.set_value(result.ok()); });
    CHECK(pipelined.get_future().get());
    CHECK(mq::backend::Clock::now() - begin < kPrompt);  // no send has waited for its timeout
    CHECK(test.gate.WaitPassed(3));
    CHECK(spare.Messages(test.scene.address).size() == 2);
    CHECK(test.producer.client->Flush(kPatience));
    const mq::TopicStatus status = test.producer.Status();
    CHECK(status.old_side.in_flight + status.new_side.in_flight == 0);
    // What went another way has not failed.
    CHECK(status.old_side.failed + status.new_side.failed == 0);
    used.Start();
    test.producer.client->SendMsg(kTopic, "after");
    CHECK(test.gate.WaitPassed(4));
}

TEST_CASE("Without failover a send waits for its own broker", "[availability][failover]") {
    std::promise<bool> ended;
    FailoverScene test{Direction{true}, Policy::kDualSubscribe, false};
    test.scene.OldBroker().Stop();
    test.producer.client->SendMsg(kTopic, "waits",
                                  [&](const mq::SendResult& result) { ended.set_value(result.ok()); });
    auto end = ended.get_future();
    CHECK(end.wait_for(3s) == std::future_status::timeout);
    CHECK(test.scene.NewBroker().Messages(test.scene.address).empty());
    test.scene.OldBroker().Start();
    CHECK(end.get());
}

TEST_CASE("A send does not fail over to where a group is missing", "[availability][failover]") {
    std::promise<bool> ended;
    Scene scene = FailoverScene::SceneOf(true);
    scene.groups = {"billing", "search"};
    Gate gate{true};
    Service producer{scene, Policy::kDualSubscribe};
    Service billing{scene, Policy::kDualSubscribe};
    Listen(billing, gate);
    scene.OldBroker().Stop();
    producer.client->SendMsg(kTopic, "waits",
                             [&](const mq::SendResult& result) { ended.set_value(result.ok()); });
    auto end = ended.get_future();
    CHECK(end.wait_for(3s) == std::future_status::timeout);
    CHECK(scene.NewBroker().Messages(scene.address).empty());
    CHECK_FALSE(producer.Status().failover);
    scene.OldBroker().Start();
    CHECK(end.get());
}

TEST_CASE("A send whose outcome is unknown does not fail over", "[availability][failover]") {
    std::promise<mq::SendResult> ended;
    // Longer than it takes to fail over.
    FailoverScene test{Direction{true}, Policy::kDualSubscribe, true, 8s};
    test.scene.OldBroker().LoseConfirms(1);
    test.producer.client->SendMsg(kTopic, "once",
                                  [&](const mq::SendResult& result) { ended.set_value(result); });
    REQUIRE(test.gate.WaitPassed(1));
    test.scene.OldBroker().Stop();
    const mq::SendResult result = ended.get_future().get();
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().outcome() == mq::Outcome::kUnknown);
    CHECK(test.scene.NewBroker().Messages(test.scene.address).empty());
    test.scene.OldBroker().Start();
}

}  // namespace
