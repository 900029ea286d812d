/// @file kafka_admin_test.cpp
/// What the Kafka adapter asks a coordinator, and survives when that has just moved. On librdkafka's
/// mock cluster: a real one answers so for a moment only.
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
