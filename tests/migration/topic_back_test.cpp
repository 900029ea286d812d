/// @file topic_back_test.cpp
/// In order, on the way back: sends of handlers do not wait for themselves, groups that nobody has
/// named are asked for where they can be, and each attempt to go back has a moment of its own.
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "scripted_backend.hpp"
#include <mq/migration/listener.hpp>
#include <mq/migration/router.hpp>
#include <mq/migration/sender.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Message;
using mq::Order;
using mq::Policy;
using mq::backend::Clock;
using mq::migration::KnownMoves;
using Bodies = std::vector<std::string>;

constexpr std::chrono::milliseconds kForEver = 60s;

mq::migration::Sender SenderOf(const std::string& text) {
    const auto sender = mq::migration::ParseSender(text);
    REQUIRE(sender);
    return *sender;
}

// ---- handlers that send

TEST_CASE("A handler that sends does not wait for the move that waits for it", "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    SendLog sends;
    std::atomic<int> asked{0};
    const int way = GENERATE(0, 1, 2);
    Service service{brokers.scene, Policy::kNewPublish};
    service.subscription = service.client->RecvMsg(
        kTopic,
        [&](const Message&) {
            if (way == 0) {
                service.client->SendMsg(kTopic, "answer");
            } else if (way == 1) {
                service.client->SendMsg(kTopic, "answer", sends.Callback());
                sends.WaitForCount(1);
            } else {  // in a callback
                service.client->SendMsg(kTopic, "first", [&](const mq::SendResult&) {
                    service.client->SendMsg(kTopic, "answer", sends.Callback());
                });
                sends.WaitForCount(1);
            }
        },
        {.group = "billing"});
    service.client->SendMsg(kTopic, "sent");
    // Nothing is left at the first question; at the second one sends are held, and a message comes.
    brokers.next.OnBacklog([&](Clock::time_point) {
        const int number = asked.fetch_add(1);
        if (number == 1) brokers.next.Deliver("question");
        const bool settled = !brokers.next.settled().empty();
        return number == 0 || settled ? Drained() : NotDrained();
    });
    const auto begin = Clock::now();
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(service.Reaches(Policy::kDualSubscribe));
    CHECK(Clock::now() - begin < kPrompt);
    // It is among what is handled before anything goes back, and what goes back says so.
    const auto published = brokers.next.published();
    CHECK(std::count(published.begin(), published.end(), "answer") == 1);
    service.client->SendMsg(kTopic, "back");
    CHECK(SenderOf(brokers.legacy.senders().back()).moves == 2);
}

TEST_CASE("What a handler sends on the way back is confirmed and handled before anything goes back",
          "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    SendLog sends;
    Gate sent_on;
    std::atomic<int> asked{0};
    Service service{brokers.scene, Policy::kNewPublish};
    service.subscription =
        service.client->RecvMsg(kTopic,
                                [&](const Message& message) {
                                    if (message.body != "question") return;
                                    brokers.next.SetConfirming(Confirming::kKept);
                                    service.client->SendMsg(kTopic, "answer", sends.Callback());
                                    sent_on.Open();
                                },
                                {.group = "billing"});
    service.client->SendMsg(kTopic, "sent");
    // All of it is handled by the moment of the question, but for what is sent in the middle of it.
    brokers.next.OnBacklog([&](Clock::time_point) {
        const auto begin = Clock::now();
        if (asked.fetch_add(1) == 1) {
            brokers.next.Deliver("question");
            sent_on.Wait();
        }
        mq::backend::Backlog backlog = NotDrained();
        backlog.settled_before = begin;
        return backlog;
    });
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(service.WaitsFor("next to confirm 1 messages before the first goes to legacy"));
    CHECK(service.Status().waiting_code == mq::WaitingCode::kConfirms);
    CHECK(service.Status().stage == Policy::kNewPublish);
    const int before = asked;
    brokers.next.SetConfirming(Confirming::kAtOnce);
    brokers.next.ConfirmKept();
    REQUIRE(service.Reaches(Policy::kDualSubscribe));
    CHECK(asked > before);  // for a moment behind the confirm
}

TEST_CASE("Two topics whose handlers send to each other both go back", "[topic][order]") {
    Scene scene;
    scene.order = Order::kKey;
    scene.groups = {"billing"};
    mq::Config config = ConfigOf(scene, Policy::kNewPublish);
    config.topics["replies"] = config.topics[kTopic];
    config.topics["replies"].old_address = config.topics["replies"].new_address = UniqueId("replies");
    Counter answered;
    RecordingLog log;
    mq::Client client{config, {.log = log.Sink()}};
    const auto pass_on = [&](const char* topic) {
        return [&client, &answered, topic](const Message& message) {
            const int left = std::stoi(message.body);
            answered.Add();
            if (left > 0) client.SendMsg(topic, MakeMessage(std::to_string(left - 1), message.key));
        };
    };
    const auto one = client.RecvMsg(kTopic, pass_on("replies"), {.group = "billing"});
    const auto two = client.RecvMsg("replies", pass_on(kTopic), {.group = "billing"});
    constexpr int kHops = 20;
    constexpr int kMessages = 50;
    for (const char* const topic : {kTopic, "replies"}) client.SetPolicy(topic, Policy::kDualSubscribe);
    const auto begin = Clock::now();
    for (int i = 0; i < kMessages; ++i) {
        client.SendMsg(i % 2 == 0 ? kTopic : "replies", MakeMessage(std::to_string(kHops), "k"));
    }
    for (const char* const topic : {kTopic, "replies"}) {
        CHECK(Eventually([&] { return client.Status(topic).stage == Policy::kDualSubscribe; }));
    }
    CHECK(answered.WaitFor(kMessages * (kHops + 1)));
    // A send that waits for the move waits for half of this.
    CHECK(Clock::now() - begin < scene.send_timeout / 2);
}

TEST_CASE("Handlers that send on for ever do not keep publishing where it is", "[topic][order]") {
    Scene scene;
    scene.order = Order::kKey;
    scene.groups = {"billing"};
    scene.quiet = 100ms;
    Collector handled;
    std::atomic<bool> over{false};
    Service service{scene, Policy::kNewPublish};
    service.subscription = service.client->RecvMsg(
        kTopic,
        [&](const Message& message) {
            handled.Add(message);
            if (over || message.key != "chain") return;
            service.client->SendMsg(kTopic,
                                    MakeMessage(std::to_string(std::stoi(message.body) + 1), "chain"));
        },
        {.group = "billing", .concurrency = 2});
    service.client->SendMsg(kTopic, MakeMessage("0", "chain"));
    REQUIRE(handled.WaitForCount(10));
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(service.WaitsFor("handlers that send on when they handle what is on next"));
    // Others are not held for long meanwhile.
    const auto begin = Clock::now();
    service.client->SendMsg(kTopic, MakeMessage("from outside", "other"));
    CHECK(Clock::now() - begin < kPrompt);
    REQUIRE(service.Reaches(Policy::kDualSubscribe));
    CHECK(service.log->WaitForLine("publishing goes back without waiting for handlers that send on"));
    const std::size_t there = handled.Bodies().size();
    REQUIRE(handled.WaitForCount(there + 20));
    over = true;
    // In order all the way.
    int next = 0;
    for (const Message& message : handled.Messages()) {
        if (message.key == "chain") CHECK(message.body == std::to_string(next++));
    }
}

// ---- groups that nobody has named

TEST_CASE("A group that the config does not name is asked for where it is subscribed here",
          "[topic][order]") {
    ScriptedScene brokers{Order::kKey, 10ms};
    if (GENERATE(true, false)) brokers.scene.groups.clear();
    brokers.next.SetBacklogOf("search", NotDrained());
    Service service{brokers.scene, Policy::kNewPublish};
    const auto search = service.client->RecvMsg(kTopic, [](const Message&) {}, {.group = "search"});
    service.client->SendMsg(kTopic, "sent");
    service.SetPolicy(Policy::kDualSubscribe);
    CHECK(service.WaitsFor("group search to drain next"));
    CHECK(service.Status().waiting_code == mq::WaitingCode::kHandled);
    CHECK(Stays([&] { return service.Status().stage == Policy::kNewPublish; }, 500ms));
    brokers.next.SetBacklogOf("search", Drained());
    CHECK(service.Reaches(Policy::kDualSubscribe));
}

TEST_CASE("A group that the config does not name is said once not to be waited for", "[topic][order]") {
    ScriptedScene brokers{Order::kKey, 10ms};
    Service service{brokers.scene, Policy::kOld};
    const auto named = service.client->RecvMsg(kTopic, [](const Message&) {}, {.group = "billing"});
    const auto one = service.client->RecvMsg(kTopic, [](const Message&) {}, {.group = "search"});
    const auto two = service.client->RecvMsg(kTopic, [](const Message&) {}, {.group = "search"});
    REQUIRE(service.log->WaitForLine("group search is not named in `groups`"));
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(service.Reaches(Policy::kDualSubscribe));
    std::size_t said = 0;
    for (const auto& [level, line] : service.log->Lines()) {
        if (Has(line, "is not named in `groups`")) ++said;
    }
    CHECK(said == 1);
}

TEST_CASE("To a group that nobody asks for, each move may leave something behind", "[topic][order]") {
    KnownMoves asked;
    KnownMoves not_asked;
    CHECK_FALSE(asked.Note("mq-a dual-subscribe 2", true));
    CHECK_FALSE(not_asked.Note("mq-a dual-subscribe 0", false));
    CHECK(not_asked.Note("mq-a dual-subscribe 2", false));
    CHECK_FALSE(not_asked.Note("mq-a dual-subscribe 2", false));
    CHECK(not_asked.Note("mq-a new-publish 3", false));
}

TEST_CASE("A group that nobody asks for keeps its order on the way back", "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    brokers.scene.groups = {"search"};
    Handled handled;  // of billing, which is not named
    brokers.next.SetBacklog(NotDrained());
    Service service{brokers.scene, Policy::kDualSubscribe};
    handled.Listen(service);
    brokers.legacy.Deliver("2", "mq-a dual-subscribe 2");
    REQUIRE(service.WaitsFor("1 messages of group billing from legacy are held"));
    CHECK(handled.empty());
    brokers.next.Deliver("1", "mq-a new-publish 1");
    brokers.legacy.SetBacklog(Drained());
    REQUIRE(handled.WaitDone(1));
    CHECK(handled.Begun() == Bodies{"1"});
    brokers.next.SetBacklog(Drained());
    CHECK(handled.WaitDone(2));
}

// ---- one attempt and the next

TEST_CASE("A move back that was called off leaves no moment to the next one", "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    Service service{brokers.scene, Policy::kNewPublish};
    service.client->SendMsg(kTopic, "sent");
    std::atomic<int> asked{0};
    brokers.next.OnBacklog([&](Clock::time_point) { return asked++ == 0 ? Drained() : NotDrained(); });
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(Eventually([&] { return asked >= 3; }));  // sends are held, and all is confirmed
    service.SetPolicy(Policy::kNewPublish);
    REQUIRE(Eventually([&] { return service.Status().waiting_for.empty(); }));
    const auto between = Clock::now();
    service.client->SendMsg(kTopic, "meanwhile");
    // Before sends are held all is handled; then what is from before the second one alone.
    asked = 0;
    brokers.next.OnBacklog([&, between](Clock::time_point) {
        mq::backend::Backlog backlog = NotDrained();
        backlog.settled_before = asked++ == 0 ? Clock::now() : between;
        return backlog;
    });
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(Eventually([&] { return asked >= 3 || service.At(Policy::kDualSubscribe); }));
    CHECK(service.Status().stage == Policy::kNewPublish);
    brokers.next.SetBacklog(Drained());
    CHECK(service.Reaches(Policy::kDualSubscribe));
}

TEST_CASE("A reload that begins a migration tells who sends from then on", "[topic]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    Scene one_broker = brokers.scene;
    one_broker.migrates = false;
    Service service{one_broker, Policy::kOld};
    service.client->SendMsg(kTopic, "alone");
    CHECK(brokers.legacy.senders().back().empty());
    service.client->Reload(ConfigOf(brokers.scene, Policy::kOld));
    service.client->SendMsg(kTopic, "migrating");
    CHECK(SenderOf(brokers.legacy.senders().back()).stage == Policy::kOld);
}

TEST_CASE("Groups that change to and fro leave no publisher behind each time", "[topic]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    RecordingLog log;
    mq::runtime::Callbacks callbacks{&mq::runtime::RunCallbacks};
    mq::runtime::SendingPool sendings;
    const mq::runtime::Shared shared{.log = log.Sink(), .callbacks = &callbacks, .sendings = &sendings};
    mq::detail::Signal signal;
    mq::detail::Wake wake{signal};
    mq::runtime::BrokerLink link{"legacy", {.url = brokers.scene.old_url}, shared};
    mq::runtime::Outlet outlet{link, MakeDestination("orders"), wake};
    for (int i = 0; i < 10; ++i) {
        outlet.Redirect(MakeDestination("orders", {}, i % 2 == 0 ? Bodies{"billing"} : Bodies{}));
        outlet.Warm();
    }
    CHECK(outlet.kept() == 2);
}

TEST_CASE("A way to a broker that rests has the next send noticed, and no further one", "[topic]") {
    ScriptedScene brokers{Order::kNone, kForEver};
    RecordingLog log;
    const mq::runtime::Shared shared{.log = log.Sink()};
    mq::detail::Signal signal;
    mq::detail::Wake wake{signal};
    mq::runtime::BrokerLink link{"legacy", {.url = brokers.scene.old_url}, shared};
    mq::runtime::Outlet outlet{link, MakeDestination("orders"), wake};
    wake.Take();
    outlet.Enter();
    CHECK_FALSE(wake.Take());
    outlet.Rest();
    outlet.Enter();
    CHECK(wake.Take());
    outlet.Enter();
    CHECK_FALSE(wake.Take());
}

}  // namespace
