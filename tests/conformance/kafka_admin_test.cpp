/// @file kafka_admin_test.cpp
/// What the Kafka adapter survives of a coordinator that has just moved, or never comes to an end. On
/// librdkafka's mock cluster: a real one answers so for a moment only.
#include "../support/catch.hpp"
#include "../support/kafka_fixture.hpp"

namespace {

using mq::backend::Backlog;
using mq::test::MockCluster;
using namespace mq::test::kafka;

}  // namespace

// librdkafka 2.0.2 ends the process over this answer where the handle that has asked has no group.
TEST_CASE("Kafka: a coordinator that is none any more delays the answer about a group, and no more",
          "[kafka][mock]") {
    MockCluster mock;
    Client client{mock.url()};
    const DestinationPtr destination = Fresh();
    mock.CreateTopic(destination->address, 1);
    client.Send(destination, 1);
    constexpr auto kOffsetFetch = static_cast<MockCluster::Request>(9);
    mock.FailWith(kOffsetFetch, RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
    CHECK(mq::test::Eventually(
        [&] { return Drained(client, *destination, Group()) == Backlog::Answer::kNotDrained; }));
}

// librdkafka before 2.3 ends the process where such a consumer is destroyed.
TEST_CASE("Kafka: a consumer may be closed while its group goes on sharing out partitions",
          "[kafka][mock]") {
    MockCluster mock;
    constexpr auto kSyncGroup = static_cast<MockCluster::Request>(14);
    mock.FailWith(kSyncGroup, RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS, 1000);
    Client client{mock.url()};
    const DestinationPtr destination = Fresh();
    mock.CreateTopic(destination->address, 1);
    const auto receiver = std::make_shared<mq::test::RecordingReceiver>();
    const auto consumer = client.backend->Subscribe({destination, Group(), 10}, receiver);
    // The mock lets the first member of a group wait for others for three seconds; it never becomes
    // active.
    CHECK_FALSE(receiver->WaitForPhase(*consumer, mq::backend::ConsumerState::Phase::kActive,
                                       std::chrono::seconds{5}));
    consumer->Close(mq::test::After(std::chrono::seconds{2}));
}
