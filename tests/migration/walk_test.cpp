/// @file walk_test.cpp
/// A topic walks between every ordered pair of brokers, in every way that the ladder allows, while
/// producers and two groups of two members keep working.
#include "../support/catch.hpp"
#include "fleet.hpp"

#include <array>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace mq::test;
using mq::Order;
using mq::Policy;

constexpr std::array kKinds{BrokerKind::kMemory, BrokerKind::kRabbitmq, BrokerKind::kKafka,
                            BrokerKind::kActivemq, BrokerKind::kArtemis};

// Every ordered pair of two kinds, and two brokers in memory.
constexpr auto kPairs = [] {
    std::array<Pair, kKinds.size() * (kKinds.size() - 1) + 1> pairs{
        Pair{BrokerKind::kMemory, BrokerKind::kMemory}};
    std::size_t count = 1;
    for (const BrokerKind from : kKinds) {
        for (const BrokerKind to : kKinds) {
            if (from != to) pairs[count++] = Pair{from, to};
        }
    }
    return pairs;
}();

struct Walk {
    const char* name;
    Order order;
    std::vector<Policy> rungs;  // the first one is where the fleet starts
};

const Walk& WalkNumber(std::size_t number) {
    using enum Policy;
    static const std::array walks{
        Walk{"rung by rung up", Order::kKey, {kOld, kDualSubscribe, kNewPublish, kNew}},
        Walk{"rung by rung down", Order::kKey, {kNew, kNewPublish, kDualSubscribe, kOld}},
        Walk{"in one jump up and one down", Order::kNone, {kOld, kNew, kOld}},
        Walk{"back and forth",
             Order::kKey,
             {kOld, kDualSubscribe, kNewPublish, kDualSubscribe, kNewPublish, kNew, kNewPublish,
              kDualSubscribe, kOld}},
    };
    return walks.at(number);
}
constexpr std::size_t kWalks = 4;

void RunWalk(Pair pair, const Walk& walk) {
    const auto old_url = UrlOf(pair.from);
    const auto new_url = UrlOf(pair.to);
    if (!old_url) return SkipCase("there is no " + std::string{ToString(pair.from)});
    if (!new_url) return SkipCase("there is no " + std::string{ToString(pair.to)});

    Fleet fleet{{.old_url = *old_url, .new_url = *new_url, .order = walk.order}, walk.rungs.front()};
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(100));
    for (const Policy rung : walk.rungs) {
        INFO("to " << mq::ToString(rung));
        const bool reached = fleet.WalkTo(rung);
        INFO(fleet.Describe());
        REQUIRE(reached);
        // Traffic goes on at the rung before the next step.
        CHECK(fleet.audit().WaitProcessed(200));
    }
    const bool complete = fleet.Settle();
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    INFO(fleet.Describe());
    CHECK(complete);
    CHECK(verdict.confirmed == verdict.sent);
    CHECK(verdict.lost == 0);
    CHECK(verdict.crossed == 0);
    CHECK(verdict.foreign == 0);
    CHECK(verdict.ended_twice == 0);
    if (walk.order == Order::kKey) CHECK(verdict.reordered == 0);
}

template <std::size_t Number>
void Case() {
    RunWalk(kPairs.at(Number / kWalks), WalkNumber(Number % kWalks));
}

template <std::size_t Number>
bool Register() {
    const Pair pair = kPairs.at(Number / kWalks);
    const Walk& walk = WalkNumber(Number % kWalks);
    const std::string name = "Nothing is lost from " + NameOf(pair) + ", " + walk.name +
                             (walk.order == Order::kKey ? ", and no key is reordered" : "");
    const std::string tags = "[walk]" + TagsOf(pair);
    REGISTER_TEST_CASE(Case<Number>, name, tags);
    return true;
}

template <std::size_t... Numbers>
bool RegisterAll(std::index_sequence<Numbers...>) {
    return (Register<Numbers>() && ...);
}

const bool registered = RegisterAll(std::make_index_sequence<kPairs.size() * kWalks>{});

}  // namespace
