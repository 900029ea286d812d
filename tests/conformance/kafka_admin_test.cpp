/// @file kafka_admin_test.cpp
/// What the Kafka adapter survives of a coordinator that has just moved, or never comes to an end. On
/// librdkafka's mock cluster: a real one answers so for a moment only.
#include "../support/catch.hpp"
#include "../support/kafka_fixture.hpp"

#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using mq::backend::Backlog;
using mq::test::MockCluster;
using namespace mq::test::kafka;
using namespace std::chrono_literals;

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

TEST_CASE("Kafka: what passes by itself is told from what somebody has to see to", "[kafka]") {
    using mq::kafka::detail::CodeOf;
    using mq::kafka::detail::PassesByItself;
    for (const auto code :
         {RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR, RD_KAFKA_RESP_ERR_NOT_CONTROLLER,
          RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
          RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
          RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE, RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED,
          RD_KAFKA_RESP_ERR__TRANSPORT}) {
        INFO(rd_kafka_err2name(code));
        CHECK(PassesByItself(code));
        CHECK((CodeOf(code) == mq::ErrorCode::kUnavailable || CodeOf(code) == mq::ErrorCode::kTimeout));
    }
    for (const auto code :
         {RD_KAFKA_RESP_ERR_POLICY_VIOLATION, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
          RD_KAFKA_RESP_ERR_INVALID_PARTITIONS, RD_KAFKA_RESP_ERR_INVALID_CONFIG,
          RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION,
          RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE}) {
        INFO(rd_kafka_err2name(code));
        CHECK_FALSE(PassesByItself(code));
        CHECK(CodeOf(code) != mq::ErrorCode::kUnavailable);
        CHECK(CodeOf(code) != mq::ErrorCode::kTimeout);
    }
}

TEST_CASE("Kafka: a topic that cannot be had for a moment is asked for again until it can",
          "[kafka][mock]") {
    namespace detail = mq::kafka::detail;
    MockCluster mock;
    const DestinationPtr destination = Fresh();
    mock.CreateTopic(destination->address, 1);
    detail::Broker made;
    made.context.url = mq::ParseUrl(mock.url());
    made.context.log = [](mq::LogLevel, std::string_view) {};
    const auto broker = std::make_shared<const detail::Broker>(std::move(made));
    detail::Admin admin{broker};
    struct Heard {
        std::mutex mutex = {};
        std::vector<detail::Admin::Verdict> verdicts = {};
        [[nodiscard]] std::size_t Count() {
            const std::lock_guard lock{mutex};
            return verdicts.size();
        }
        [[nodiscard]] detail::Admin::Verdict Last() {
            const std::lock_guard lock{mutex};
            return verdicts.back();
        }
    };
    const auto heard = std::make_shared<Heard>();
    const auto hear = [heard](const detail::Admin::Verdict& verdict) {
        const std::lock_guard lock{heard->mutex};
        heard->verdicts.push_back(verdict);
    };
    SECTION("where there is time") {
        mock.SetTopicError(destination->address, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
        admin.Ensure(destination->address, hear, [until = mq::test::After(60s)] { return until; });
        REQUIRE(Eventually([&] { return heard->Count() >= 2; }));
        CHECK_FALSE(heard->Last().last);
        CHECK(admin.TroubleOf(destination->address) != nullptr);
        mock.SetTopicError(destination->address, RD_KAFKA_RESP_ERR_NO_ERROR);
        REQUIRE(Eventually([&] { return heard->Last().last; }));
        CHECK(heard->Last().error == nullptr);
        CHECK(admin.TroubleOf(destination->address) == nullptr);
    }
    SECTION("and not where there is none") {
        mock.SetTopicError(destination->address, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
        admin.Ensure(destination->address, hear);
        REQUIRE(Eventually([&] { return heard->Count() == 1; }));
        CHECK(heard->Last().last);
        CHECK(heard->Last().error != nullptr);
    }
    SECTION("nor where somebody has to see to it") {
        mock.SetTopicError(destination->address, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
        admin.Ensure(destination->address, hear, [until = mq::test::After(60s)] { return until; });
        REQUIRE(Eventually([&] { return heard->Count() == 1; }));
        CHECK(heard->Last().last);
    }
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
