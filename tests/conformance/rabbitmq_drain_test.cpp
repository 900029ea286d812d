/// @file rabbitmq_drain_test.cpp
/// When RabbitMQ's answers prove that nothing is left for a group, and when they only look like it.
/// MQ_TEST_RABBITMQ_DIR names the folder of a broker that tests/brokers/rabbitmq.sh has started.
#include "../support/catch.hpp"
#include "../support/rabbitmq_fixture.hpp"

#include <memory>
#include <string>

namespace {

using mq::backend::Backlog;
using mq::test::After;
using mq::test::Eventually;
using mq::test::MakeDestination;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using mq::test::UniqueId;
using namespace mq::test::rabbitmq;

Destination FreshOrdered() { return MakeDestination("orders", UniqueId("orders"), {"g"}, true); }

Backlog Ask(Connected& client, const Destination& destination) {
    return client.backend->CheckBacklog(*destination, "g", After());
}

}  // namespace

// A quorum queue counts its active consumer alone: one that waits for its turn sees as many consumers
// as it has itself.
TEST_CASE("RabbitMQ: a member that waits for its turn at a quorum queue does not say that all is done",
          "[rabbitmq][probe]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected busy{url, {{"queue_type", "quorum"}}};
    Connected waiting{url, {{"queue_type", "quorum"}}};
    const Destination destination = FreshOrdered();
    const auto holding = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto active = busy.SubscribeActive(destination, "g", holding);
    REQUIRE(busy.Send(destination, "m") == nullptr);
    REQUIRE(holding->WaitForHeld(1));
    const auto standby =
        waiting.SubscribeActive(destination, "g", std::make_shared<RecordingReceiver>());
    for (int i = 0; i < 10; ++i) {
        const Backlog backlog = Ask(waiting, destination);
        REQUIRE_FALSE(backlog.exact);
        REQUIRE(backlog.answer != Backlog::Answer::kDrained);
    }
    holding->SettleHeld();
    CHECK(Eventually([&] { return Ask(waiting, destination).exact; }));
}

TEST_CASE("RabbitMQ: a queue without a single active consumer proves nothing about its order",
          "[rabbitmq][probe]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = FreshOrdered();
    NativeClient{url}.DeclareQueue(destination->address + ".g");
    const auto consumer =
        client.SubscribeActive(destination, "g", std::make_shared<RecordingReceiver>());
    CHECK(client.log.WaitForLine("is not known to have a single active consumer"));
    const Backlog backlog = Ask(client, destination);
    CHECK(backlog.answer == Backlog::Answer::kDrained);
    CHECK_FALSE(backlog.exact);
    CHECK_FALSE(backlog.settled_before);
}

TEST_CASE("RabbitMQ: the only member of an ordered group knows exactly that all is done",
          "[rabbitmq][probe]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = FreshOrdered();
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    CHECK(Eventually([&] { return Ask(client, destination).exact; }));
    REQUIRE(client.Send(destination, "m") == nullptr);
    CHECK(Ask(client, destination).answer == Backlog::Answer::kNotDrained);
    REQUIRE(receiver->WaitForHeld(1));
    receiver->SettleHeld();
    CHECK(Eventually([&] { return Ask(client, destination).exact; }));
    // A subscription that has stopped still answers: it is the active one until it is closed.
    consumer->Stop();
    CHECK(Eventually([&] { return Ask(client, destination).exact; }));
}
