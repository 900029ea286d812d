/// @file rabbitmq_management_test.cpp
/// What is made of the answers of RabbitMQ's management, without a broker.
#include "../support/catch.hpp"
#include "../support/refusing_port.hpp"
#include <mq/backends/rabbitmq_management.hpp>

#include <chrono>
#include <stdexcept>
#include <string>

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

}  // namespace

TEST_CASE("the totals of a queue are read from what the management tells", "[rabbitmq]") {
    const auto totals =
        mq::rabbitmq::ReadQueueTotals(R"({"messages_ready": 3, "messages_unacknowledged": 4})");
    REQUIRE(totals);
    CHECK(totals->ready == 3);
    CHECK(totals->unsettled == 4);
}

TEST_CASE("a queue whose counts were not collected yet has none", "[rabbitmq]") {
    CHECK_FALSE(mq::rabbitmq::ReadQueueTotals("{}"));
    CHECK_FALSE(mq::rabbitmq::ReadQueueTotals(R"({"messages_ready": 0})"));
}

TEST_CASE("what is no answer about a queue is refused", "[rabbitmq]") {
    for (const char* body :
         {"", "[]", "<html>", R"({"messages_ready": "x", "messages_unacknowledged": 0})",
          R"({"messages_ready": null, "messages_unacknowledged": 0})"}) {
        INFO(body);
        CHECK_THROWS_AS(mq::rabbitmq::ReadQueueTotals(body), std::invalid_argument);
    }
}

TEST_CASE("what policies say of a queue is read from what the management tells", "[rabbitmq]") {
    const auto policy = mq::rabbitmq::ReadQueuePolicy(
        R"({"effective_policy_definition": {"delivery-limit": 3, "overflow": "drop-head", "x": [1]}})");
    CHECK(policy == mq::rabbitmq::QueuePolicy{{"delivery-limit", "3"}, {"overflow", "drop-head"}});
    for (const char* none :
         {"{}", R"({"effective_policy_definition": []})", R"({"effective_policy_definition": null})"}) {
        CHECK(mq::rabbitmq::ReadQueuePolicy(none).empty());
    }
    CHECK_THROWS_AS(mq::rabbitmq::ReadQueuePolicy("<html>"), std::invalid_argument);
}

TEST_CASE("a queue is taken for empty when it has looked so for as long as counts are old",
          "[rabbitmq]") {
    mq::rabbitmq::detail::EmptyQueues queues{5s};
    const Clock::time_point begin{};
    CHECK(queues.NoteEmpty("a", begin) == 0s);
    CHECK(queues.NoteEmpty("a", begin + 3s) == 3s);
    CHECK(queues.NoteEmpty("b", begin + 3s) == 0s);
    CHECK(queues.NoteEmpty("a", begin + 6s) == 6s);
    queues.NoteUsed("a");
    CHECK(queues.NoteEmpty("a", begin + 7s) == 0s);
    // What was between two looks so far apart nobody knows.
    CHECK(queues.NoteEmpty("a", begin + 13s) == 0s);
}

TEST_CASE("a management that cannot be reached says where it was looked for, without the password",
          "[rabbitmq]") {
    const mq::test::RefusingPort port;
    const auto management =
        mq::rabbitmq::MakeHttpManagement({.broker = "RabbitMQ",
                                          .url = mq::ParseUrl("http://" + port.Host()),
                                          .user = "u",
                                          .password = "secret"});
    std::string text;
    try {
        management->TotalsOf("/", "orders.billing", Clock::now() + 30s);
    } catch (const std::runtime_error& error) {
        text = error.what();
    }
    CHECK(text.find(port.Host()) != std::string::npos);
    CHECK(text.find("secret") == std::string::npos);
    CHECK_THROWS_AS(management->TotalsOf("/", "orders.billing", Clock::now()), std::runtime_error);
}
