/// @file settling_cases.cpp
/// Conformance cases on settlement: what comes again and what does not, how much is handed out, in
/// which order, and what a closed subscription leaves behind.
#include "../support/catch.hpp"
#include "cases.hpp"
#include "target.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mq::conformance {

namespace {

/// Sends a message after everything else and waits for it: whatever the group had before it on the same
/// key has come, or will not.
void SendMarker(Client& client, const std::string& topic, const test::Collector& received) {
    const Message marker{.body = "marker", .key = "k", .id = test::UniqueId("marker")};
    client.SendMsg(topic, marker);
    REQUIRE(received.WaitForIds({marker.id}));
}

}  // namespace

void ANackedMessageComesAgain(Target& target) {
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, [&](Delivery delivery) {
        const bool first = received.Count() == 0;
        received.Add(delivery.message());
        if (first) {
            delivery.Nack();
        } else {
            delivery.Ack();
        }
    });
    client.SendMsg(world.topic, Message{.body = "again", .key = "k", .headers = {{"kind", "new"}}});
    REQUIRE(received.WaitForCount(2));
    const auto messages = received.Messages();
    CHECK_FALSE(messages[0].redelivered);
    CHECK(messages[1].redelivered);
    for (const Message& message : messages) {
        CHECK(message.id == messages[0].id);
        CHECK(message.body == "again");
        CHECK(message.key == "k");
        CHECK(message.headers == Headers{{"kind", "new"}});
    }
    SendMarker(client, world.topic, received);
    CHECK(received.Count() == 3);
}

void AMessageWhoseHandlerThrewComesAgain(Target& target) {
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, [&](const Message& message) {
        received.Add(message);
        if (received.Count() == 1) throw std::runtime_error{"not yet"};
        if (received.Count() == 2) throw 42;
    });
    client.SendMsg(world.topic, Message{.body = "again", .key = "k"});
    REQUIRE(received.WaitForCount(3));
    CHECK_FALSE(received.Messages()[0].redelivered);
    CHECK(received.Messages()[1].redelivered);
    CHECK(received.Messages()[2].redelivered);
    SendMarker(client, world.topic, received);
    CHECK(received.Count() == 4);
}

void ADroppedDeliveryComesAgain(Target& target) {
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, [&](Delivery delivery) {
        received.Add(delivery.message());
        if (received.Count() > 1) delivery.Ack();
    });
    client.SendMsg(world.topic, Message{.body = "again", .key = "k"});
    REQUIRE(received.WaitForCount(2));
    CHECK(received.Messages()[1].redelivered);
    SendMarker(client, world.topic, received);
    CHECK(received.Count() == 3);
}

void HandlersThatFailForAWhileGetEverything(Target& target) {
    constexpr std::size_t kCount = 40;
    constexpr std::size_t kFailures = 2;
    test::Collector attempts;
    test::Collector processed;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic,
                                                     [&](const Message& message) {
                                                         attempts.Add(message);
                                                         if (attempts.Times(message.id) <= kFailures)
                                                             throw std::runtime_error{"not yet"};
                                                         processed.Add(message);
                                                     },
                                                     {.concurrency = 4, .prefetch = 8});
    const auto messages = MakeSpreadMessages(kCount);
    REQUIRE(SendAll(client, world.topic, messages));
    REQUIRE(processed.WaitForIds(IdsOf(messages)));
    CHECK(processed.Count() == kCount);
    CHECK(attempts.Count() == kCount * (kFailures + 1));
}

void NoMoreThanThePrefetchIsHandedOut(Target& target) {
    constexpr std::size_t kPrefetch = 5;
    constexpr std::size_t kCount = 30;
    test::DeliveryBox box;
    test::Collector other;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription =
        client.RecvMsg(world.topic, box.Handler(), {.prefetch = kPrefetch});
    const std::string audit = test::UniqueId("audit");
    const Subscription all = client.RecvMsg(world.topic, other.Handler(), {.group = audit});
    const auto messages = MakeSpreadMessages(kCount);
    REQUIRE(SendAll(client, world.topic, messages));
    REQUIRE(box.WaitForCount(kPrefetch));
    // The broker has all of them to give: the other group got them.
    REQUIRE(other.WaitForIds(IdsOf(messages)));
    CHECK_FALSE(box.WaitForCount(kPrefetch + 1, test::kGlance));
    // Each that is settled makes room for one more.
    std::set<std::string> ids;
    while (ids.size() < kCount) {
        REQUIRE(box.WaitForCount(1));
        for (Delivery& delivery : box.Take()) {
            ids.insert(delivery.message().id);
            delivery.Ack();
        }
    }
    CHECK(box.Count() == 0);
}

namespace {

/// Sends the messages of several keys from one thread and checks that each key was processed in order.
void CheckOrder(Target& target, std::size_t members) {
    constexpr std::size_t kKeys = 6;
    constexpr std::size_t kEach = 50;
    std::mutex mutex;
    std::map<std::string, std::vector<std::string>> processed;  // by key; guarded by mutex
    std::atomic<unsigned> calls{0};
    test::Collector received;
    World world{target};
    world.Topic().order = Order::kKey;
    const auto handler = [&](const Message& message) {
        // Some fail, and must not be overtaken by the next ones of their key.
        if (calls.fetch_add(1) % 37 == 5) throw std::runtime_error{"not yet"};
        {
            const std::lock_guard lock{mutex};
            auto& of_key = processed[message.key];
            // Repeats are allowed where members change; they bring nothing new.
            if (std::find(of_key.begin(), of_key.end(), message.body) == of_key.end()) {
                of_key.push_back(message.body);
            }
        }
        received.Add(message);
    };
    std::vector<Subscription> subscriptions;
    for (std::size_t i = 0; i < members; ++i) {
        subscriptions.push_back(world.NewClient().RecvMsg(world.topic, handler, {.concurrency = 8}));
    }
    Client& producer = world.NewClient();
    std::vector<Message> messages;
    std::vector<std::string> expected;
    for (std::size_t i = 0; i < kEach; ++i) {
        expected.push_back(std::to_string(i));
        for (std::size_t key = 0; key < kKeys; ++key) {
            messages.push_back({.body = std::to_string(i),
                                .key = "key " + std::to_string(key),
                                .id = test::UniqueId()});
        }
    }
    REQUIRE(SendAll(producer, world.topic, messages));
    REQUIRE(received.WaitForIds(IdsOf(messages)));
    const std::lock_guard lock{mutex};
    CHECK(processed.size() == kKeys);
    for (const auto& [key, bodies] : processed) {
        INFO("of " << key);
        CHECK(bodies == expected);
    }
}

}  // namespace

void TheOrderOfAKeyIsKept(Target& target) { CheckOrder(target, 1); }

void TheOrderOfAKeyIsKeptAmongMembers(Target& target) { CheckOrder(target, 2); }

void SettlingTwiceIsHarmless(Target& target) {
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, [&](Delivery delivery) {
        received.Add(delivery.message());
        delivery.Ack();
        delivery.Ack();
        delivery.Nack();
        Delivery moved = std::move(delivery);
        moved.Nack();
    });
    client.SendMsg(world.topic, Message{.body = "once", .key = "k"});
    REQUIRE(received.WaitForCount(1));
    SendMarker(client, world.topic, received);
    SendMarker(client, world.topic, received);
    CHECK(received.Count() == 3);
}

void NackAfterNackIsHarmless(Target& target) {
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, [&](Delivery delivery) {
        const bool first = received.Count() == 0;
        received.Add(delivery.message());
        if (!first) return delivery.Ack();
        delivery.Nack();
        delivery.Nack();
        delivery.Ack();
    });
    client.SendMsg(world.topic, Message{.body = "twice", .key = "k"});
    REQUIRE(received.WaitForCount(2));
    SendMarker(client, world.topic, received);
    CHECK(received.Count() == 3);
}

void AMessageIsSettledFromAnotherThread(Target& target) {
    constexpr std::size_t kCount = 20;
    test::DeliveryBox box;
    test::Collector after;
    World world{target};
    Client& client = world.NewClient();
    Subscription subscription = client.RecvMsg(world.topic, box.Handler());
    REQUIRE(SendAll(client, world.topic, MakeMessages(kCount, "k")));
    REQUIRE(box.WaitForCount(kCount));
    std::vector<Delivery> deliveries = box.Take();
    std::thread settler{[&] {
        // The last first: whoever counts positions must wait for the rest.
        while (!deliveries.empty()) {
            deliveries.back().Ack();
            deliveries.pop_back();
        }
    }};
    settler.join();
    CHECK(client.Status(world.topic).old_side.unsettled == 0);
    subscription.Close();
    // Whatever was not settled would come before the marker.
    const Subscription next = world.NewClient().RecvMsg(world.topic, after.Handler());
    SendMarker(client, world.topic, after);
    CHECK(after.Count() == 1);
}

void SettlingAfterTheSubscriptionWasClosedIsHarmless(Target& target) {
    test::DeliveryBox box;
    test::Collector after;
    World world{target};
    Client& client = world.NewClient();
    Subscription subscription = client.RecvMsg(world.topic, box.Handler());
    const auto messages = MakeMessages(3, "k");
    REQUIRE(SendAll(client, world.topic, messages));
    REQUIRE(box.WaitForCount(messages.size()));
    subscription.Close();
    std::vector<Delivery> deliveries = box.Take();
    CHECK(deliveries[0].message().body == "0");
    deliveries[0].Ack();
    deliveries[1].Nack();
    deliveries.clear();
    const Subscription next = world.NewClient().RecvMsg(world.topic, after.Handler());
    CHECK(after.WaitForIds(IdsOf(messages)));
}

void SettlingAfterTheClientWasClosedIsHarmless(Target& target) {
    test::DeliveryBox box;
    test::Collector after;
    World world{target};
    const auto messages = MakeMessages(3, "k");
    {
        Client client{world.config, {.log = {}}};
        const Subscription subscription = client.RecvMsg(world.topic, box.Handler());
        REQUIRE(SendAll(client, world.topic, messages));
        REQUIRE(box.WaitForCount(messages.size()));
    }
    std::vector<Delivery> deliveries = box.Take();
    deliveries[0].Ack();
    deliveries[1].Nack();
    deliveries.clear();
    const Subscription next = world.NewClient().RecvMsg(world.topic, after.Handler());
    CHECK(after.WaitForIds(IdsOf(messages)));
}

void WhatIsUnsettledAtTheCloseComesToTheNextOne(Target& target) {
    constexpr std::size_t kCount = 20;
    test::DeliveryBox box;
    test::Collector after;
    World world{target};
    Client& client = world.NewClient();
    Subscription subscription = client.RecvMsg(world.topic, box.Handler(), {.prefetch = 10});
    const auto messages = MakeMessages(kCount, "k");
    REQUIRE(SendAll(client, world.topic, messages));
    REQUIRE(box.WaitForCount(10));
    std::vector<Delivery> deliveries = box.Take();
    constexpr std::size_t kSettled = 4;
    for (std::size_t i = 0; i < kSettled; ++i) deliveries[i].Ack();
    subscription.Close();
    const Subscription next = world.NewClient().RecvMsg(world.topic, after.Handler());
    std::vector<std::string> left = IdsOf(messages);
    left.erase(left.begin(), left.begin() + kSettled);
    REQUIRE(after.WaitForIds(left));
    SendMarker(client, world.topic, after);
    for (std::size_t i = 0; i < kSettled; ++i) CHECK(after.Times(messages[i].id) == 0);
    CHECK(after.Count() == left.size() + 1);
    if (!target.traits().tells_redelivered) return;
    for (const Message& message : after.Messages()) {
        const std::size_t number =
            message.body == "marker" ? kCount : static_cast<std::size_t>(std::stoul(message.body));
        if (number < 10) CHECK(message.redelivered);
        if (number == kCount) CHECK_FALSE(message.redelivered);
    }
}

void ClosingAndSubscribingAgainLosesNothing(Target& target) {
    constexpr std::size_t kRounds = 4;
    constexpr std::size_t kEach = 40;
    test::Collector received;
    World world{target};
    Client& producer = world.NewClient();
    Client& client = world.NewClient();
    std::vector<std::string> ids;
    for (std::size_t round = 0; round < kRounds; ++round) {
        // Closed in the middle of what the round sends.
        Subscription subscription = client.RecvMsg(world.topic, received.Handler(), {.concurrency = 2});
        const auto messages = MakeSpreadMessages(kEach);
        for (const Message& message : messages) ids.push_back(message.id);
        std::thread sender{[&] { SendAll(producer, world.topic, messages); }};
        const bool some = received.WaitForDistinct(round * kEach / 2 + 5);
        subscription.Close();
        sender.join();
        REQUIRE(some);
    }
    const Subscription last = client.RecvMsg(world.topic, received.Handler());
    CHECK(received.WaitForIds(ids));
}

}  // namespace mq::conformance
