/// @file rabbitmq_failure_test.cpp
/// What RabbitMQ's reply codes are taken for: one code may say several things.
#include "../support/catch.hpp"
#include <mq/backends/rabbitmq/failure.hpp>

using mq::ErrorCode;
using mq::rabbitmq::CodeOf;

TEST_CASE("what is missing is told apart from what is out of reach", "[rabbitmq]") {
    CHECK(CodeOf(404, "NOT_FOUND - no queue 'orders.billing' in vhost '/'") == ErrorCode::kNotFound);
    CHECK(CodeOf(404, "NOT_FOUND - no exchange 'orders' in vhost '/'") == ErrorCode::kNotFound);
    CHECK(CodeOf(404,
                 "NOT_FOUND - home node 'rabbit@b' of durable queue 'orders.billing' in vhost '/' is "
                 "down or inaccessible") == ErrorCode::kUnavailable);
    CHECK(CodeOf(404,
                 "NOT_FOUND - failed to perform operation on queue 'orders.billing' in vhost '/' due "
                 "to timeout") == ErrorCode::kUnavailable);
}

TEST_CASE("a limit that is reached is not a refusal for good", "[rabbitmq]") {
    CHECK(CodeOf(530, "NOT_ALLOWED - access to vhost 'prod' refused for user 'app'") ==
          ErrorCode::kAccessDenied);
    CHECK(CodeOf(530,
                 "NOT_ALLOWED - access to vhost 'prod' refused for user 'app': connection limit (2) "
                 "is reached") == ErrorCode::kUnavailable);
}
