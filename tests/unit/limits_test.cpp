/// @file limits_test.cpp
/// In what two brokers differ, as an operator is told before a topic moves.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/migration/limits.hpp>

#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

using mq::migration::Differences;
using mq::migration::NamedLimits;
using namespace std::chrono_literals;

TEST_CASE("Brokers that allow the same differ in nothing", "[limits]") {
    CHECK(Differences({.broker = "legacy"}, {.broker = "next"}).empty());
    const mq::backend::Limits same{.message_bytes = 1000, .handling_time = 5min};
    CHECK(Differences({"legacy", same}, {"next", same}).empty());
}

TEST_CASE("Each limit in which brokers differ is named with both of its values", "[limits]") {
    const NamedLimits from{"legacy", {.message_bytes = 16777216, .handling_time = 30min}};
    const NamedLimits to{"next", {.message_bytes = 1000000, .settles_in_order = true}};
    const std::vector<std::string> differences = Differences(from, to);
    REQUIRE(differences.size() == 3);
    CHECK(differences[0] ==
          "the size of a message: legacy allows 16777216 bytes at most, next 1000000 bytes at most");
    CHECK(differences[1] ==
          "the time until a message is settled: legacy allows 1800s at most, next any");
    CHECK(differences[2].find("on next a message that is not settled") != std::string::npos);
}

TEST_CASE("What one broker keeps and the other drops is named", "[limits]") {
    const NamedLimits from{"legacy", {}};
    const NamedLimits to{"next",
                         {.retention = 24h * 7, .retained_bytes = 1048576, .keeps_only_latest = true}};
    const std::vector<std::string> differences = Differences(from, to);
    REQUIRE(differences.size() == 3);
    CHECK(differences[0] ==
          "the age of a message that is kept, handled or not: legacy allows any, next 168h at most");
    CHECK(differences[1].find("legacy allows any, next 1048576 bytes at most") != std::string::npos);
    CHECK(differences[2].find("next drops a message once a later one has the same key") !=
          std::string::npos);
}

TEST_CASE("Each adapter tells its limits without a connection, as its options have them", "[limits]") {
    mq::test::RecordingSink sink;
    const auto limits = [&](const std::string& url, std::map<std::string, std::string> options) {
        return mq::test::MakeBackend(url, sink, std::move(options))->GetLimits();
    };
    CHECK(limits("amqp://127.0.0.1:1", {{"max_message_size", "1000"}}).message_bytes == 1000);
    CHECK(limits("amqp://127.0.0.1:1", {}).handling_time == 30min);
    CHECK(limits("activemq://127.0.0.1:1", {{"max_message_size", "2000"}}).message_bytes == 2000);
    CHECK(limits("kafka://127.0.0.1:1", {{"message.max.bytes", "3000"}}).message_bytes == 3000);
    CHECK(limits("kafka://127.0.0.1:1", {}).settles_in_order);
}
