/// @file skew_test.cpp
/// Services change at different times: producers one rung ahead of consumers, or behind them, or half
/// of each. Every mixture of two neighbouring rungs works under traffic, on the way up and down.
#include "../support/catch.hpp"
#include "fleet.hpp"

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace mq::test;
using mq::Order;
using mq::Policy;

using Services = std::vector<std::unique_ptr<Service>>;

struct Skew {
    const char* name;
    // Which services change first.
    std::function<std::vector<const Service*>(const Services& producers, const Services& consumers)>
        first;
};

std::vector<const Service*> All(const Services& services) {
    std::vector<const Service*> all;
    for (const auto& service : services) all.push_back(service.get());
    return all;
}

const std::array kSkews{
    Skew{"producers first", [](const Services& producers, const Services&) { return All(producers); }},
    Skew{"consumers first", [](const Services&, const Services& consumers) { return All(consumers); }},
    // One producer, and one member of each group: the others follow.
    Skew{"half of each first",
         [](const Services& producers, const Services& consumers) {
             return std::vector<const Service*>{producers.front().get(), consumers.front().get(),
                                                consumers.at(2).get()};
         }},
};

// What the first ones are ahead of, they can reach alone: nothing on a neighbouring rung is missing.
void Step(Fleet& fleet, const Skew& skew, Policy rung) {
    INFO("to " << mq::ToString(rung));
    const auto first = skew.first(fleet.producers(), fleet.consumers());
    for (const Service* const service : first) service->SetPolicy(rung);
    const bool ahead = Eventually(
        [&] {
            bool there = true;
            for (const Service* const service : first) there = there && service->At(rung);
            return there;
        },
        kRungPatience);
    {
        INFO(fleet.Describe());
        CHECK(ahead);
    }
    CHECK(fleet.audit().WaitProcessed(200));
    const bool reached = fleet.WalkTo(rung);
    INFO(fleet.Describe());
    REQUIRE(reached);
    CHECK(fleet.audit().WaitProcessed(100));
}

void RunSkew(Pair pair, const Skew& skew) {
    const auto old_url = UrlOf(pair.from);
    const auto new_url = UrlOf(pair.to);
    if (!old_url) return SkipCase("there is no " + std::string{ToString(pair.from)});
    if (!new_url) return SkipCase("there is no " + std::string{ToString(pair.to)});
    Fleet fleet{{.old_url = *old_url, .new_url = *new_url, .order = Order::kKey}, Policy::kOld};
    fleet.StartTraffic();
    using enum Policy;
    for (const Policy rung : {kDualSubscribe, kNewPublish, kNew, kNewPublish, kDualSubscribe, kOld}) {
        Step(fleet, skew, rung);
    }
    const bool complete = fleet.Settle();
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    INFO(fleet.Describe());
    CHECK(complete);
    CHECK(verdict.confirmed == verdict.sent);
    CHECK(verdict.lost == 0);
    CHECK(verdict.reordered == 0);
    CHECK(verdict.crossed == 0);
    CHECK(verdict.foreign == 0);
}

TEST_CASE("A fleet changes by one rung, producers first, and nothing is lost", "[skew]") {
    RunSkew({BrokerKind::kMemory, BrokerKind::kMemory}, kSkews[0]);
}
TEST_CASE("A fleet changes by one rung, consumers first, and nothing is lost", "[skew]") {
    RunSkew({BrokerKind::kMemory, BrokerKind::kMemory}, kSkews[1]);
}
TEST_CASE("A fleet changes by one rung, half of it first, and nothing is lost", "[skew]") {
    RunSkew({BrokerKind::kMemory, BrokerKind::kMemory}, kSkews[2]);
}
TEST_CASE(
    "A fleet between RabbitMQ and Kafka changes by one rung, half of it first, and nothing is lost",
    "[skew][rabbitmq][kafka]") {
    RunSkew({BrokerKind::kRabbitmq, BrokerKind::kKafka}, kSkews[2]);
}

}  // namespace
