/// @file rabbitmq_backlog_test.cpp
/// What is made of the counts that AMQP tells of a queue. A quorum queue without a leader cannot be had
/// on a broker of one node.
#include "../support/catch.hpp"
#include <mq/backends/rabbitmq.hpp>

#include <string>

using mq::ErrorCode;
using mq::backend::Backlog;
using mq::rabbitmq::Failure;
using mq::rabbitmq::detail::BacklogOf;
using mq::rabbitmq::detail::Inquiry;

namespace {

Backlog Of(const Inquiry::Answer& answer) { return BacklogOf(answer, "next", "orders.billing"); }

}  // namespace

TEST_CASE("RabbitMQ: a queue counts as drained when nothing waits there or is held here",
          "[rabbitmq]") {
    CHECK(Of({.consumers = 2, .own_consumers = 1}).answer == Backlog::Answer::kDrained);
    CHECK(Of({.ready = 3, .own_unsettled = 2}).answer == Backlog::Answer::kNotDrained);
    CHECK(Of({.ready = 3, .own_unsettled = 2}).messages == 5);
    // What members elsewhere hold is not known.
    CHECK_FALSE(Of({.consumers = 2, .own_consumers = 1}).exact);
}

TEST_CASE("RabbitMQ: what a queue does not know is not taken for empty", "[rabbitmq]") {
    const Backlog leaderless = Of({.consumers = 0, .own_consumers = 1});
    CHECK(leaderless.answer == Backlog::Answer::kUnknown);
    CHECK(leaderless.reason.find("the queue orders.billing does not know") != std::string::npos);
    const Backlog silent = Of({.failure = Failure{ErrorCode::kTimeout, "next: no answer", {}}});
    CHECK(silent.answer == Backlog::Answer::kUnknown);
    CHECK(silent.reason == "next: no answer");
}

TEST_CASE("RabbitMQ: nothing is left in a queue that does not exist", "[rabbitmq]") {
    const Backlog missing = Of({.failure = Failure{ErrorCode::kNotFound, "next: no queue", {}}});
    CHECK(missing.answer == Backlog::Answer::kDrained);
    CHECK(missing.exact);
}
