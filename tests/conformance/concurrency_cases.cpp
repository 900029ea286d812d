/// @file concurrency_cases.cpp
/// Conformance cases on many threads at once, and on calls from where business code is called:
/// handlers and callbacks that send, subscribe and close.
#include "../support/catch.hpp"
#include "cases.hpp"
#include "target.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mq::conformance {

namespace {

/// Runs `task(i)` on `count` threads at once and waits for all of them. The task must not throw, and
/// must not assert: Catch2 takes assertions of the test's own thread only.
template <typename Task>
void AtOnce(std::size_t count, Task task) {
    test::Gate start;
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < count; ++i) {
        threads.emplace_back([&, i] {
            start.Wait();
            task(i);
        });
    }
    start.Open();
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

void ManyThreadsSendAtOnce(Target& target) {
    constexpr std::size_t kThreads = 8;
    constexpr std::size_t kEach = 40;
    test::Collector received;
    test::SendLog sends;
    test::Notes failures;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription =
        client.RecvMsg(world.topic, received.Handler(), {.concurrency = 4});
    AtOnce(kThreads, [&](std::size_t) {
        for (const Message& message : MakeSpreadMessages(kEach)) {
            client.SendMsg(world.topic, message, sends.Callback());
        }
        for (const Message& message : MakeSpreadMessages(3)) {
            const auto error = ErrorOf([&] { client.SendMsg(world.topic, message); });
            if (error) failures.Add(error->what());
        }
    });
    REQUIRE(sends.WaitForCount(kThreads * kEach));
    CHECK(sends.Failures().empty());
    CHECK(sends.MostForOne() == 1);
    CHECK(failures.All() == std::vector<std::string>{});
    CHECK(received.WaitForIds(sends.Confirmed()));
    CHECK(received.WaitForDistinct(kThreads * (kEach + 3)));
}

void ManyThreadsSubscribeAtOnce(Target& target) {
    constexpr std::size_t kThreads = 6;
    std::vector<test::Collector> received(kThreads);
    std::vector<Subscription> subscriptions(kThreads);
    test::Notes failures;
    World world{target};
    world.AddTopic("invoices");
    Client& client = world.NewClient();
    const std::string prefix = test::UniqueId("group");
    // Three groups on each of two topics.
    const auto topic_of = [](std::size_t i) { return i % 2 == 0 ? "orders" : "invoices"; };
    AtOnce(kThreads, [&](std::size_t i) {
        const auto error = ErrorOf([&] {
            subscriptions[i] = client.RecvMsg(topic_of(i), received[i].Handler(),
                                              {.group = prefix + std::to_string(i / 2)});
        });
        if (error) failures.Add(error->what());
    });
    REQUIRE(failures.All() == std::vector<std::string>{});
    for (const char* const topic : {"orders", "invoices"}) {
        const auto messages = MakeSpreadMessages(20);
        REQUIRE(SendAll(client, topic, messages));
        for (std::size_t i = 0; i < kThreads; ++i) {
            if (std::string{topic_of(i)} == topic) CHECK(received[i].WaitForIds(IdsOf(messages)));
        }
    }
    subscriptions.clear();
}

void ManyThreadsCloseAtOnce(Target& target) {
    constexpr std::size_t kThreads = 6;
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    std::vector<Subscription> subscriptions;
    for (std::size_t i = 0; i < kThreads; ++i) {
        const std::string name = "topic " + std::to_string(i % 3);
        world.AddTopic(name);
    }
    Client& closing = world.NewClient();
    for (std::size_t i = 0; i < kThreads; ++i) {
        const std::string name = "topic " + std::to_string(i % 3);
        subscriptions.push_back(closing.RecvMsg(name, received.Handler()));
    }
    for (std::size_t i = 0; i < 3; ++i) {
        const std::string name = "topic " + std::to_string(i);
        for (const Message& message : MakeSpreadMessages(20)) {
            closing.SendMsg(name, message, [](const SendResult&) {});
        }
    }
    // Subscriptions, the client, and the client again, all in the middle of deliveries.
    AtOnce(kThreads + 2, [&](std::size_t i) {
        if (i < kThreads) {
            subscriptions[i].Close(test::kPatience);
        } else {
            closing.Close(test::kPatience);
        }
    });
    const std::size_t count = received.Count();
    for (const Subscription& subscription : subscriptions) CHECK_FALSE(subscription);
    const auto error = ErrorOf([&] { closing.SendMsg("topic 0", "late"); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kClosed);
    // The other client is none the worse, and the closed ones' handlers are at rest.
    test::Collector alive;
    Subscription subscription = client.RecvMsg(world.topic, alive.Handler());
    client.SendMsg(world.topic, "alive");
    CHECK(alive.WaitForCount(1));
    CHECK(received.Count() == count);
    subscription.Close();
}

void ASendAfterTheCloseFails(Target& target) {
    test::SendLog sends;
    World world{target};
    Client& client = world.NewClient();
    client.Close(test::kPatience);
    const auto error = ErrorOf([&] { client.SendMsg(world.topic, "late"); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kClosed);
    CHECK(error->outcome() == Outcome::kNotSent);
    client.SendMsg(world.topic, "late", sends.Callback());
    REQUIRE(sends.WaitForCount(1));
    REQUIRE(sends.Failures().size() == 1);
    CHECK(sends.Failures().front().code == ErrorCode::kClosed);
    const auto refused =
        ErrorOf([&] { const Subscription none = client.RecvMsg(world.topic, [](const Message&) {}); });
    REQUIRE(refused);
    CHECK(refused->code() == ErrorCode::kClosed);
}

void ACloseDuringSendsTellsTheTruth(Target& target) {
    constexpr std::size_t kThreads = 4;
    constexpr std::size_t kEach = 300;
    test::Collector received;
    test::SendLog sends;
    World world{target};
    Client& reader = world.NewClient();
    const Subscription subscription = reader.RecvMsg(world.topic, received.Handler());
    Client& client = world.NewClient();
    AtOnce(kThreads + 1, [&](std::size_t i) {
        if (i == kThreads) {
            sends.WaitForCount(20);
            client.Close(test::kPatience);
            return;
        }
        for (const Message& message : MakeSpreadMessages(kEach)) {
            client.SendMsg(world.topic, message, sends.Callback());
        }
    });
    REQUIRE(sends.WaitForCount(kThreads * kEach));
    CHECK(sends.MostForOne() == 1);
    CHECK(sends.Count() == kThreads * kEach);
    CHECK_FALSE(sends.Confirmed().empty());
    for (const auto& failure : sends.Failures()) {
        INFO(failure.what);
        CHECK(failure.code == ErrorCode::kClosed);
    }
    // What was confirmed is there; what certainly was not sent is not.
    CHECK(received.WaitForIds(sends.Confirmed()));
    for (const auto& failure : sends.Failures()) {
        if (failure.outcome == Outcome::kNotSent) CHECK(received.Times(failure.id) == 0);
    }
}

void FlushWaitsForEverySend(Target& target) {
    constexpr std::size_t kCount = 300;
    test::SendLog sends;
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    const auto messages = MakeSpreadMessages(kCount);
    for (const Message& message : messages) client.SendMsg(world.topic, message, sends.Callback());
    REQUIRE(client.Flush(test::kPatience));
    CHECK(sends.Count() == kCount);
    CHECK(sends.Confirmed().size() == kCount);
    CHECK(client.Status(world.topic).old_side.in_flight == 0);
    CHECK(client.Status(world.topic).old_side.confirmed == kCount);
    CHECK(received.WaitForIds(IdsOf(messages)));
}

void CallbacksSend(Target& target) {
    constexpr std::size_t kChain = 20;
    test::Collector received;
    test::Gate done;
    std::atomic<std::size_t> sent{0};
    std::atomic<bool> failed{false};
    std::function<void(const SendResult&)> next;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    // Each callback sends the next one, by turns pipelined and blocking.
    next = [&](const SendResult& result) {
        if (!result.ok()) failed = true;
        const std::size_t number = sent.fetch_add(1);
        if (failed || number >= kChain) return done.Open();
        if (number % 3 == 0 &&
            ErrorOf([&] { client.SendMsg(world.topic, Message{.body = "blocking"}); })) {
            failed = true;
        }
        client.SendMsg(world.topic, Message{.body = std::to_string(number)}, next);
    };
    client.SendMsg(world.topic, Message{.body = "first"}, next);
    REQUIRE(done.Wait());
    CHECK_FALSE(failed);
    CHECK(received.WaitForDistinct(1 + kChain + (kChain + 2) / 3));
    CHECK(client.Flush(test::kPatience));
}

void HandlersSend(Target& target) {
    constexpr std::size_t kCount = 20;
    test::Collector answers;
    test::SendLog sends;
    test::Notes failures;
    World world{target};
    world.AddTopic("answers");
    Client& client = world.NewClient();
    const Subscription b = client.RecvMsg("answers", answers.Handler());
    const Subscription a = client.RecvMsg(
        "orders",
        [&](const Message& message) {
            const auto error = ErrorOf(
                [&] { client.SendMsg("answers", Message{.body = "blocking " + message.body}); });
            if (error) failures.Add(error->what());
            client.SendMsg("answers", Message{.body = "pipelined " + message.body}, sends.Callback());
        },
        {.concurrency = 4});
    REQUIRE(SendAll(client, "orders", MakeSpreadMessages(kCount)));
    CHECK(answers.WaitForDistinct(2 * kCount));
    CHECK(sends.WaitForCount(kCount));
    CHECK(failures.All() == std::vector<std::string>{});
    CHECK(sends.Failures().empty());
}

void AHandlerClosesItsOwnSubscription(Target& target) {
    constexpr std::size_t kCount = 20;
    test::Collector received;
    test::Collector after;
    test::Gate assigned;
    test::Gate closed;
    Subscription subscription;
    World world{target};
    Client& client = world.NewClient();
    subscription = client.RecvMsg(world.topic, [&](const Message& message) {
        assigned.Wait();
        received.Add(message);
        subscription.Close();
        closed.Open();
    });
    assigned.Open();
    const auto messages = MakeMessages(kCount, "k");
    REQUIRE(SendAll(client, world.topic, messages));
    REQUIRE(closed.Wait());
    const Subscription next = world.NewClient().RecvMsg(world.topic, after.Handler());
    const auto all = IdsOf(messages);
    CHECK(after.WaitForIds({all.begin() + 1, all.end()}));
    // The handler that closed has returned normally, so that its message is settled, and no other
    // began after it.
    CHECK(received.Count() == 1);
}

void ASendCallbackClosesASubscription(Target& target) {
    test::Collector received;
    test::Collector after;
    test::Gate closed;
    World world{target};
    Client& client = world.NewClient();
    Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    client.SendMsg(world.topic, Message{.body = "b"}, [&](const SendResult&) {
        subscription.Close();
        closed.Open();
    });
    REQUIRE(closed.Wait());
    const std::size_t count = received.Count();
    const Subscription next = client.RecvMsg(world.topic, after.Handler());
    client.SendMsg(world.topic, "another");
    CHECK(after.WaitForCount(1));
    CHECK(received.Count() == count);
}

}  // namespace mq::conformance
