/// @file pair_cases.cpp
/// Conformance cases on a topic that moves between the target's broker and one in memory: the walks
/// under traffic, the guards, and the order of a key across the change. Up and down alike.
#include "../support/catch.hpp"
#include "../support/wait.hpp"
#include "cases.hpp"
#include "direction.hpp"
#include "fleet.hpp"
#include "target.hpp"
#include "walk.hpp"

#include <chrono>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace mq::conformance {

namespace {

using test::Direction;
using test::Eventually;
using test::Scene;
using test::Service;
using test::Stays;

// Long enough for a walker that ignored its guard to be caught: it looks every quarter of a second, and
// leaves a side after the quiet period.
constexpr std::chrono::milliseconds kWhile{1000};

Scene SceneOf(Target& target, Pair pair, std::vector<std::string> groups = test::kGroups) {
    BrokerConfig memory{.url = "memory://" + test::UniqueId("pair")};
    Scene scene = pair == Pair::kToMemory ? test::SceneBetween(target.Broker(), std::move(memory))
                                          : test::SceneBetween(std::move(memory), target.Broker());
    scene.address = target.FreshAddress();
    scene.groups = std::move(groups);
    return scene;
}

void RunWalk(Target& target, Pair pair, std::size_t number) {
    test::RunWalk(SceneOf(target, pair), test::Walks().at(number), {.rate = target.traits().rate});
}

void Listen(Service& service, const std::string& group, test::Collector& received) {
    service.subscription = service.client->RecvMsg(test::kTopic, received.Handler(), {.group = group});
}

void Send(Service& service, const std::string& body) {
    service.client->SendMsg(test::kTopic, Message{.body = body, .key = "k"});
}

/// From which side each message came first, by its body.
std::map<std::string, Side> SidesOf(const test::Collector& received) {
    std::map<std::string, Side> sides;
    for (const Message& message : received.Messages()) sides.try_emplace(message.body, message.side);
    return sides;
}

/// The bodies without what came again.
std::vector<std::string> FirstBodiesOf(const test::Collector& received) {
    std::set<std::string> seen;
    std::vector<std::string> bodies;
    for (std::string& body : received.Bodies()) {
        if (seen.insert(body).second) bodies.push_back(std::move(body));
    }
    return bodies;
}

/// Calls `check` for the way up and the way down.
template <typename Check>
void EachWay(Check check) {
    for (const bool up : {true, false}) {
        const Direction way{up};
        INFO(way.name());
        check(way);
    }
}

}  // namespace

void ATopicWalksUp(Target& target, Pair pair) { RunWalk(target, pair, 0); }

void ATopicWalksDown(Target& target, Pair pair) { RunWalk(target, pair, 1); }

void ATopicJumpsUpAndDown(Target& target, Pair pair) { RunWalk(target, pair, 2); }

void ATopicWalksBackAndForth(Target& target, Pair pair) { RunWalk(target, pair, 3); }

void PublishingStaysUntilEveryGroupListens(Target& target, Pair pair) {
    EachWay([&](const Direction& way) {
        const Scene scene = SceneOf(target, pair, {"billing", "search"});
        test::Collector billing_received;
        test::Collector search_received;
        Service producer{scene, way.start()};
        Service billing{scene, way.start()};
        Service search{scene, way.start()};
        Listen(billing, "billing", billing_received);
        Listen(search, "search", search_received);
        billing.SetPolicy(way.both());
        REQUIRE(billing.Reaches(way.both()));

        producer.SetPolicy(way.end());
        REQUIRE(producer.WaitsFor("group search to listen on " + way.far(), test::kRungPatience));
        CHECK(Stays([&] { return producer.Status().stage == way.both(); }, kWhile));
        CHECK(way.NearSide(producer).publishing);
        CHECK_FALSE(way.FarSide(producer).publishing);
        Send(producer, "before");

        search.SetPolicy(way.both());
        REQUIRE(producer.Reaches(way.end()));
        Send(producer, "after");
        const std::map<std::string, Side> expected{{"before", way.near_side()},
                                                   {"after", way.far_side()}};
        for (const test::Collector* const received : {&billing_received, &search_received}) {
            CHECK(received->WaitForDistinct(2));
            CHECK(SidesOf(*received) == expected);
        }
    });
}

void ASideIsNotLeftWhileAMessageIsUnsettled(Target& target, Pair pair) {
    constexpr std::size_t kCount = 3;
    EachWay([&](const Direction& way) {
        const Scene scene = SceneOf(target, pair, {"billing"});
        test::DeliveryBox box;
        Service producer{scene, way.start()};
        Service billing{scene, way.start()};
        billing.subscription =
            billing.client->RecvMsg(test::kTopic, box.Handler(), {.group = "billing", .prefetch = 2});
        for (std::size_t i = 0; i < kCount; ++i) Send(producer, std::to_string(i));
        REQUIRE(box.WaitForCount(1));

        billing.SetPolicy(way.end());
        producer.SetPolicy(way.end());
        REQUIRE(producer.Reaches(way.end()));
        REQUIRE(Eventually([&] { return billing.Status().stage == way.moved(); }, test::kRungPatience));
        REQUIRE(billing.WaitsFor("group billing"));
        CHECK(Stays([&] { return billing.Status().stage == way.moved(); }, kWhile));
        CHECK(way.NearSide(billing).subscribed);

        std::set<std::string> settled;
        while (settled.size() < kCount) {
            REQUIRE(box.WaitForCount(1));
            for (Delivery& delivery : box.Take()) {
                settled.insert(delivery.message().body);
                delivery.Ack();
            }
        }
        REQUIRE(billing.Reaches(way.end()));
        CHECK_FALSE(way.NearSide(billing).subscribed);
    });
}

namespace {

/// Lets handlers go at the end of a case, however it ends, before the clients that wait for them are
/// closed: declare it after them.
class OpenAtEnd {
public:
    explicit OpenAtEnd(test::Gate& gate) : gate_(gate) {}
    OpenAtEnd(const OpenAtEnd&) = delete;
    OpenAtEnd& operator=(const OpenAtEnd&) = delete;
    ~OpenAtEnd() { gate_.Open(); }

private:
    test::Gate& gate_;
};

}  // namespace

void TheOrderOfAKeyIsKeptAcrossTheChange(Target& target, Pair pair) {
    EachWay([&](const Direction& way) {
        Scene scene = SceneOf(target, pair, {"billing"});
        scene.order = Order::kKey;
        test::Gate gate;
        test::Counter begun;
        test::Collector received;
        Service producer{scene, way.start()};
        Service billing{scene, way.start()};
        billing.subscription = billing.client->RecvMsg(test::kTopic,
                                                       [&](const Message& message) {
                                                           begun.Add();
                                                           gate.Wait(2 * test::kRungPatience);
                                                           received.Add(message);
                                                       },
                                                       {.group = "billing", .concurrency = 4});
        const OpenAtEnd open{gate};
        for (const char* const body : {"1", "2", "3"}) Send(producer, body);
        REQUIRE(begun.WaitFor(1));
        billing.SetPolicy(way.moved());
        producer.SetPolicy(way.end());
        if (way.start() == Policy::kNew) {
            // Going back, it is the producer that waits for what it has sent to be handled.
            REQUIRE(Eventually([&] { return !producer.Status().waiting_for.empty(); }));
            CHECK(received.Count() == 0);
            gate.Open();
        }
        REQUIRE(producer.Reaches(way.end()));
        for (const char* const body : {"4", "5"}) Send(producer, body);
        if (way.start() == Policy::kOld) {
            // What is newer is here, and waits for what is older.
            REQUIRE(Eventually([&] { return way.FarSide(billing).held == 2; }));
            CHECK(received.Count() == 0);
            gate.Open();
        }
        CHECK(received.WaitForDistinct(5));
        CHECK(FirstBodiesOf(received) == std::vector<std::string>{"1", "2", "3", "4", "5"});
        const std::map<std::string, Side> sides = SidesOf(received);
        CHECK(sides.at("3") == way.near_side());
        CHECK(sides.at("4") == way.far_side());
        CHECK(Eventually([&] { return way.FarSide(billing).held == 0; }));
    });
}

}  // namespace mq::conformance
