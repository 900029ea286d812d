/// @file activemq_declarations_test.cpp
/// What a publishing link of an ActiveMQ may rely on, and the names of the groups' queues.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include <mq/backends/activemq.hpp>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace {

using mq::activemq::Flavor;
using mq::activemq::GroupSource;
using mq::activemq::Topology;
using mq::activemq::detail::Declarations;
using mq::test::MakeDestination;
using Step = Declarations::Step;
using namespace std::chrono_literals;

}  // namespace

TEST_CASE("ActiveMQ declarations: a queue is looked after while something is sent", "[activemq]") {
    const std::vector<GroupSource> sources{{.address = "a", .queue = "one"},
                                           {.address = "a", .queue = "two"}};
    const auto begin = Declarations::Clock::now();
    Declarations declarations;
    CHECK_FALSE(declarations.TrustedUntil(sources));
    REQUIRE(declarations.Next(sources, begin) == &sources[0]);
    declarations.Begin(sources[0], Step::kMaking, "link", begin);
    // One at a time.
    CHECK(declarations.Next(sources, begin) == nullptr);
    declarations.Answered(true);
    declarations.Finish(begin);
    CHECK(declarations.Seen("one"));
    CHECK_FALSE(declarations.TrustedUntil(sources));
    REQUIRE(declarations.Next(sources, begin) == &sources[1]);
    declarations.Begin(sources[1], Step::kMaking, "link", begin);
    declarations.Finish(begin + 1s);
    CHECK(declarations.TrustedUntil(sources) == begin + Declarations::kTrust);
    CHECK(declarations.Next(sources, begin + Declarations::kRenew - 1ms) == nullptr);
    // Beside the sends, and longer than that only for so long.
    CHECK(declarations.Next(sources, begin + Declarations::kRenew) == &sources[0]);
    CHECK(Declarations::kTrust < 30s);
    declarations.Begin(sources[0], Step::kLooking, {}, begin);
    declarations.End();
    CHECK(declarations.TrustedUntil(sources) == begin + Declarations::kTrust);
    declarations.Begin(sources[0], Step::kLooking, {}, begin);
    declarations.Missing();
    CHECK_FALSE(declarations.TrustedUntil(sources));
    CHECK(declarations.Next(sources, begin) == &sources[0]);
    // Without groups there is nothing to wait for.
    CHECK(declarations.TrustedUntil({}) == Declarations::Clock::time_point::max());
}

TEST_CASE("ActiveMQ topology: an Artemis may name a group's queue in two ways", "[activemq]") {
    const auto destination = MakeDestination("orders", "shop.orders", {"billing"});
    const Topology artemis{*destination, Flavor::kArtemis, {}};
    CHECK(artemis.SourceOf("billing").queue == "shop.orders.billing:global");
    // As its own clients have it.
    CHECK(artemis.SourceOf("billing").other_queue == "shop\\.orders\\.billing");
    CHECK(mq::activemq::detail::CoreNameOf("a\\b") == "a\\\\b");
    const Topology queue{*MakeDestination("orders", "queue://q"), Flavor::kArtemis, {}};
    CHECK(queue.SourceOf("billing").other_queue.empty());
    const Topology classic{*MakeDestination("orders"), Flavor::kClassic, {}};
    CHECK(classic.SourceOf("billing").other_queue.empty());
}

TEST_CASE("ActiveMQ management: a limit of deliveries is read where there is one", "[activemq]") {
    using mq::activemq::ReadDeliveryLimit;
    CHECK(ReadDeliveryLimit(R"(["{\"maxDeliveryAttempts\":10}"])") == 10);
    CHECK(ReadDeliveryLimit(R"(["{\"maxDeliveryAttempts\":-1}"])") == std::nullopt);
    CHECK(ReadDeliveryLimit(R"(["{}"])") == std::nullopt);
    CHECK(ReadDeliveryLimit("nonsense") == std::nullopt);
    CHECK(mq::activemq::TextArgument("a\"b") == R"(["a\"b"])");
}
