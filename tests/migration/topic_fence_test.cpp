/// @file topic_fence_test.cpp
/// In order: how far a fence reaches. One message whose handler does not end holds up those of its key,
/// and no others; and a broker that does not answer holds up nothing for ever.
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "scripted_backend.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Message;
using mq::Order;
using mq::Policy;
using mq::RecvOptions;
using mq::WaitingCode;
using mq::backend::Clock;
using Bodies = std::vector<std::string>;

constexpr std::chrono::milliseconds kForEver = 60s;
constexpr const char* kOne = "mq-a new-publish 1";
constexpr const char* kAnother = "mq-b new-publish 1";

// A handler that fails for bodies that begin with "poison", until it is cured. Outlives the client.
class Poisoned {
public:
    void Handle(const Message& message) {
        if (message.body.starts_with("poison") && !cured_) {
            failed.Add();
            throw std::runtime_error("poison");
        }
        handled.Add(message);
    }
    void Cure() { cured_ = true; }

    [[nodiscard]] bool Has(const std::string& body) const {
        const auto bodies = handled.Bodies();
        return std::find(bodies.begin(), bodies.end(), body) != bodies.end();
    }

    Collector handled = {};
    Counter failed = {};

private:
    std::atomic<bool> cured_{false};
};

mq::Subscription Listen(Service& service, Poisoned& poisoned, RecvOptions options) {
    return service.client->RecvMsg(
        kTopic, [&poisoned](const Message& message) { poisoned.Handle(message); }, std::move(options));
}

void SendKeyed(Service& service, std::string body, std::string key) {
    service.client->SendMsg(kTopic, MakeMessage(std::move(body), std::move(key)));
}

// A consumer on both sides of memory brokers, and a producer that has left a message on the old one
// which no handler gets through, and has moved.
struct PoisonedScene {
    explicit PoisonedScene(Scene its_scene)
        : scene(std::move(its_scene)),
          consumer(scene, Policy::kDualSubscribe),
          producer(scene, Policy::kDualSubscribe) {}

    void LeaveBehind(const std::vector<std::string>& keys) {
        for (const std::string& key : keys) SendKeyed(producer, "poison " + key, key);
        producer.SetPolicy(Policy::kNewPublish);
        REQUIRE(producer.Reaches(Policy::kNewPublish));
    }

    Scene scene;
    Poisoned one = {};
    Poisoned two = {};
    Service consumer;
    Service producer;
};

Scene Ordered(std::vector<std::string> groups = {"billing"}) {
    Scene scene;
    scene.order = Order::kKey;
    scene.groups = std::move(groups);
    return scene;
}

TEST_CASE("A message that no handler gets through holds up those of its key, and no others",
          "[topic][order][fence]") {
    constexpr std::size_t kOthers = 1000;
    PoisonedScene poisoned{Ordered()};
    const auto subscription =
        Listen(poisoned.consumer, poisoned.one, {.group = "billing", .concurrency = 4});
    poisoned.LeaveBehind({"p"});
    REQUIRE(poisoned.one.failed.WaitFor(1));
    SendKeyed(poisoned.producer, "after poison", "p");
    for (std::size_t i = 0; i < kOthers; ++i) {
        SendKeyed(poisoned.producer, std::to_string(i), "key " + std::to_string(i));
    }
    SendKeyed(poisoned.producer, "without a key", {});
    CHECK(poisoned.one.handled.WaitForCount(kOthers + 1));
    CHECK_FALSE(poisoned.one.Has("after poison"));
    const mq::TopicStatus status = poisoned.consumer.Status();
    CHECK(status.new_side.held == 1);
    CHECK(status.waiting_code == WaitingCode::kFence);
    CHECK(Has(status.waiting_for, "1 messages of group billing from next are held since "));
    CHECK(Has(status.waiting_for, "for 1 of their keys from legacy that are with handlers here"));
    poisoned.one.Cure();
    REQUIRE(poisoned.one.handled.WaitForCount(kOthers + 3));
    const auto bodies = poisoned.one.handled.Bodies();
    CHECK(std::find(bodies.begin(), bodies.end(), "poison p") <
          std::find(bodies.begin(), bodies.end(), "after poison"));
    CHECK(Eventually([&] { return poisoned.consumer.Status().waiting_code == WaitingCode::kNothing; }));
}

TEST_CASE("Each subscription of a client waits for what the others of its group have in hand",
          "[topic][order][fence]") {
    constexpr std::size_t kOthers = 200;
    PoisonedScene poisoned{Ordered({"billing", "search"})};
    // Three of one group, which share the keys, and one of a group that gets through everything.
    std::vector<mq::Subscription> subscriptions;
    for (int i = 0; i < 3; ++i) {
        subscriptions.push_back(Listen(poisoned.consumer, poisoned.one, {.group = "billing"}));
    }
    poisoned.two.Cure();
    subscriptions.push_back(Listen(poisoned.consumer, poisoned.two, {.group = "search"}));
    poisoned.LeaveBehind({"p", "q", "r"});
    REQUIRE(poisoned.one.failed.WaitFor(3));
    for (const char* const key : {"p", "q", "r"}) SendKeyed(poisoned.producer, "after", key);
    for (std::size_t i = 0; i < kOthers; ++i) {
        SendKeyed(poisoned.producer, std::to_string(i), "key " + std::to_string(i));
    }
    CHECK(poisoned.one.handled.WaitForCount(kOthers));
    CHECK(poisoned.two.handled.WaitForCount(kOthers + 6));
    CHECK(poisoned.consumer.Status().new_side.held == 3);
    CHECK_FALSE(poisoned.one.Has("after"));
    poisoned.one.Cure();
    CHECK(poisoned.one.handled.WaitForCount(kOthers + 6));
}

TEST_CASE("What a broker takes back in the middle is waited for once more", "[topic][order][fence]") {
    PoisonedScene poisoned{Ordered()};
    const auto subscription =
        Listen(poisoned.consumer, poisoned.one, {.group = "billing", .concurrency = 4});
    poisoned.LeaveBehind({"p"});
    REQUIRE(poisoned.one.failed.WaitFor(1));
    SendKeyed(poisoned.producer, "after poison", "p");
    SendKeyed(poisoned.producer, "other", "o");
    REQUIRE(poisoned.one.handled.WaitForCount(1));
    poisoned.scene.OldBroker().Stop();
    SendKeyed(poisoned.producer, "meanwhile", "o");
    poisoned.scene.OldBroker().Start();
    // It comes again, and what is of other keys goes on.
    REQUIRE(poisoned.one.handled.WaitForCount(2));
    CHECK(poisoned.one.handled.Bodies() == Bodies{"other", "meanwhile"});
    poisoned.one.Cure();
    REQUIRE(poisoned.one.handled.WaitForCount(4));
    CHECK(poisoned.one.handled.Bodies() == Bodies{"other", "meanwhile", "poison p", "after poison"});
}

// ---- what a broker's count proves, and what it does not

// A service at dual-subscribe whose handlers wait.
struct Member {
    Member() : service(brokers.scene, Policy::kDualSubscribe) {
        handled.Shut();
        handled.Listen(service);
    }

    [[nodiscard]] bool AsksAgain(std::size_t times = 3) const {
        const std::size_t before = brokers.legacy.backlog_questions();
        return Eventually([&] { return brokers.legacy.backlog_questions() >= before + times; });
    }

    ScriptedScene brokers{Order::kKey, kForEver};
    Handled handled;
    std::atomic<int> asked{0};
    Service service;
};

TEST_CASE("All that is left is in hand here: only its keys are waited for", "[topic][order][fence]") {
    Member member;
    member.brokers.legacy.SetBacklog(NotDrained());
    member.brokers.legacy.Deliver("0", {}, "p");
    member.brokers.next.Deliver("1", kOne, "p");
    member.brokers.next.Deliver("2", kOne, "q");
    REQUIRE(member.AsksAgain());
    CHECK(member.handled.Begun() == Bodies{"0"});  // more may be left than was counted
    member.brokers.legacy.SetBacklog(AllThatIsLeft(2));
    REQUIRE(member.AsksAgain());
    CHECK(member.handled.Begun() == Bodies{"0"});  // one is elsewhere
    member.brokers.legacy.SetBacklog(AllThatIsLeft(1));
    REQUIRE(member.handled.WaitBegun(2));
    CHECK(member.handled.Begun() == Bodies{"0", "2"});
    // From the same producer, and from one that was not seen before.
    member.brokers.next.Deliver("3", kOne, "r");
    REQUIRE(member.handled.WaitBegun(3));
    member.brokers.legacy.SetBacklog(AllThatIsLeft(2));
    member.brokers.next.Deliver("4", kAnother, "s");
    REQUIRE(member.AsksAgain());
    CHECK(member.handled.Begun() == Bodies{"0", "2", "3"});
    member.brokers.legacy.SetBacklog(Drained());
    REQUIRE(member.handled.WaitBegun(4));
    // Everything is settled, says the broker: nothing waits for what this client has in hand any more.
    member.handled.Open();
    REQUIRE(member.handled.WaitDone(5));
}

TEST_CASE(
    "What arrives or is settled while the broker is asked does not stand in for what is elsewhere",
    "[topic][order][fence]") {
    Member member;
    std::atomic<bool> asked_about{false};
    std::atomic<bool> settled{true};
    SECTION("it arrives") {
        member.brokers.legacy.Deliver("0", {}, "p");
        REQUIRE(member.handled.WaitBegun(1));
        member.brokers.legacy.OnBacklog([&](Clock::time_point) {
            if (!asked_about.exchange(true)) member.brokers.legacy.Deliver("1", {}, "q");
            // The first answer is about the one here, and one that is elsewhere.
            return AllThatIsLeft(member.asked.fetch_add(1) == 0 ? 2 : 3);
        });
        member.brokers.next.Deliver("2", kOne, "r");
        REQUIRE(member.handled.WaitBegun(2));
        REQUIRE(member.AsksAgain());
        CHECK(member.handled.Begun() == Bodies{"0", "1"});
        member.brokers.legacy.SetBacklog(Drained());
        CHECK(member.handled.WaitBegun(3));
    }
    SECTION("one is settled, and another one arrives") {
        member.brokers.legacy.Deliver("0", {}, "p");
        REQUIRE(member.handled.WaitBegun(1));
        member.brokers.legacy.OnBacklog([&](Clock::time_point) {
            if (asked_about.exchange(true)) return AllThatIsLeft(2);
            member.handled.Open();
            member.handled.WaitDone(1);
            settled = Eventually([&] { return !member.brokers.legacy.settled().empty(); });
            member.handled.Shut();
            member.brokers.legacy.Deliver("1", {}, "q");
            return AllThatIsLeft(1);  // one that is elsewhere, between the two
        });
        member.brokers.next.Deliver("2", kOne, "r");
        REQUIRE(member.handled.WaitBegun(2));
        REQUIRE(member.AsksAgain());
        CHECK(member.handled.Begun() == Bodies{"0", "1"});
        member.brokers.legacy.SetBacklog(Drained());
        CHECK(member.handled.WaitBegun(3));
    }
    SECTION("it is settled") {
        member.brokers.legacy.Deliver("0", {}, "p");
        REQUIRE(member.handled.WaitBegun(1));
        member.brokers.legacy.OnBacklog([&](Clock::time_point) {
            if (!asked_about.exchange(true)) {
                member.handled.Open();
                member.handled.WaitDone(1);
                settled = Eventually([&] { return !member.brokers.legacy.settled().empty(); });
                member.handled.Shut();
            }
            return AllThatIsLeft(1);
        });
        member.brokers.next.Deliver("1", kOne, "q");
        REQUIRE(member.AsksAgain());
        CHECK(member.handled.Begun() == Bodies{"0"});
        member.brokers.legacy.SetBacklog(Drained());
        CHECK(member.handled.WaitBegun(2));
    }
    CHECK(settled);
    member.handled.Open();
}

// ---- a fence that comes down otherwise

TEST_CASE("A fence that is raised again has patience of its own", "[topic][order][fence]") {
    constexpr auto kPatience = 5s;  // the same as in walk.hpp
    ScriptedScene brokers{Order::kKey, 10ms};
    Handled handled;
    Service service{brokers.scene, Policy::kDualSubscribe};
    handled.Listen(service);
    const auto asked = [&] {
        const std::size_t before = brokers.next.backlog_questions();
        return Eventually([&] {
            return brokers.next.backlog_questions() >= before + 3 || handled.Begun().size() > 1;
        });
    };
    brokers.next.SetBacklog(NotDrained());
    const auto raised = Clock::now();
    brokers.legacy.Deliver("1", "mq-a dual-subscribe 3");
    REQUIRE(asked());
    CHECK(handled.empty());
    // The migration is called off, which takes the fence down; and begins once more.
    brokers.next.SetBacklog(Drained());
    Scene one_broker = brokers.scene;
    one_broker.migrates = false;
    service.client->Reload(ConfigOf(one_broker, Policy::kOld));
    REQUIRE(handled.WaitDone(1));
    REQUIRE(Eventually([&] { return service.Status().stage == Policy::kOld; }));
    service.client->Reload(ConfigOf(brokers.scene, Policy::kDualSubscribe));
    REQUIRE(service.Reaches(Policy::kDualSubscribe));
    REQUIRE(Eventually([&] { return Clock::now() - raised > kPatience; }));
    brokers.next.SetBacklog(NotDrained());
    brokers.legacy.Deliver("2", "mq-b dual-subscribe 1");
    REQUIRE(asked());
    CHECK(handled.Begun() == Bodies{"1"});
    brokers.next.SetBacklog(Drained());
    CHECK(handled.WaitDone(2));
}

// ---- a broker that does not answer

TEST_CASE("A member that starts where the other broker is away for a moment waits for it",
          "[topic][order][fence]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    Handled handled;
    brokers.legacy.SetBacklog(BacklogUnknown());
    Service service{brokers.scene, Policy::kNew};
    handled.Listen(service);
    brokers.next.Deliver("2", kOne);
    REQUIRE(service.WaitsFor("1 messages of group billing from next are held since "));
    CHECK(service.WaitsFor("waits for legacy to say what is left for group billing: it does not say"));
    CHECK(service.Status().waiting_code == WaitingCode::kFence);
    CHECK(Stays([&] { return handled.empty(); }, 3500ms));
    brokers.legacy.Deliver("0", "mq-a dual-subscribe 0");
    brokers.legacy.SetBacklog(NotDrained());
    REQUIRE(handled.WaitDone(1));
    brokers.legacy.SetBacklog(Drained());
    REQUIRE(handled.WaitDone(2));
    CHECK(handled.Begun() == Bodies{"0", "2"});
}

// One wait of thirty seconds for all that ends, or is said, after that time.
TEST_CASE("What stands still is said once, and a broker that is down for good is not waited for twice",
          "[topic][order][fence][standstill]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    SendLog sends;
    Handled handled;
    brokers.legacy.SetBacklog(BacklogUnknown());
    brokers.next.SetConfirming(Confirming::kKept);
    Service service{brokers.scene, Policy::kNew};
    handled.Listen(service);
    service.client->SendMsg(kTopic, "never confirmed", sends.Callback());
    // And a service whose adapter cannot mend what stands still.
    ScriptedScene others{Order::kNone, kForEver};
    Handled unused;
    Service other{others.scene, Policy::kOld};
    unused.Listen(other);
    others.legacy.SetState(
        {.phase = mq::backend::ConsumerState::Phase::kActive, .standstill = "3 messages do not come"});
    const auto begin = Clock::now();
    brokers.next.Deliver("1", kOne);
    const auto standing = [&](const std::string& part) {
        const auto standstills = service.Status().standstills;
        return std::any_of(standstills.begin(), standstills.end(),
                           [&](const auto& each) { return Has(each.text, part); });
    };
    REQUIRE(Eventually([&] { return standing("1 messages of group billing from next are held"); },
                       mq::backend::kStandstill + 2s));
    CHECK(Clock::now() - begin >= mq::backend::kStandstill - 6s);
    CHECK(Clock::now() - begin <= mq::backend::kStandstill + 1s);
    CHECK(Eventually([&] { return standing("1 sends to next have not ended"); }));
    REQUIRE(handled.WaitBegun(1));
    CHECK(handled.When("1") - begin >= mq::backend::kStandstill);
    CHECK(handled.When("1") - begin <= mq::backend::kStandstill + kPrompt);
    // The next one that comes over is asked for, and not waited for.
    const auto asked = brokers.legacy.backlog_questions();
    const auto second = Clock::now();
    brokers.next.Deliver("2", kAnother);
    REQUIRE(handled.WaitBegun(2));
    CHECK(handled.When("2") - second < kPrompt);
    CHECK(brokers.legacy.backlog_questions() > asked);
    // And the one after the broker was there once more gets its time again.
    brokers.legacy.SetBacklog(Drained());
    brokers.next.Deliver("3", "mq-c new-publish 1");
    REQUIRE(handled.WaitBegun(3));
    brokers.legacy.SetBacklog(BacklogUnknown());
    brokers.next.Deliver("4", "mq-d new-publish 1");
    CHECK(service.WaitsFor("waits for legacy to say what is left"));
    CHECK(Stays([&] { return handled.Begun().size() == 3; }, 1s));
    brokers.legacy.SetBacklog(Drained());
    CHECK(handled.WaitBegun(4));
    brokers.next.ConfirmKept();
    CHECK(Eventually([&] { return service.Status().standstills.empty(); }));
    std::map<std::string, int> said;
    for (const auto& [level, line] : service.log->Lines()) {
        for (const char* const part : {"stands still: 1 messages", "goes on: 1 messages",
                                       "stands still: 1 sends", "goes on: 1 sends"}) {
            if (Has(line, part)) ++said[part];
        }
    }
    CHECK(said.size() == 4);
    for (const auto& [part, times] : said) {
        INFO(part);
        CHECK(times == 1);
    }
    CHECK(other.log->WaitForLine("subscribes anew for group billing on legacy, which stands still"));
    CHECK(Eventually([&] { return others.legacy.subscriptions() == 2; }));
    CHECK(Clock::now() - begin >= mq::backend::kStandstill);
}

TEST_CASE("A subscription of which its adapter says that it stands still is in the status",
          "[topic][standstill]") {
    ScriptedScene brokers{Order::kNone, kForEver};
    Handled handled;
    Service service{brokers.scene, Policy::kOld};
    handled.Listen(service);
    constexpr auto kActive = mq::backend::ConsumerState::Phase::kActive;
    brokers.legacy.SetState({.phase = kActive, .standstill = "3 messages do not come"});
    REQUIRE(service.log->WaitForLine("stands still: the subscription of group billing on legacy: 3"));
    const mq::TopicStatus status = service.Status();
    REQUIRE(status.standstills.size() == 1);
    CHECK(status.standstills[0].group == "billing");
    CHECK(status.standstills[0].side == mq::Side::kOld);
    CHECK(Has(status.standstills[0].text, "3 messages do not come"));
    CHECK(Eventually([&] { return service.Status().waiting_code == WaitingCode::kStandstill; }));
    brokers.legacy.SetState({.phase = kActive});
    REQUIRE(service.log->WaitForLine("goes on: the subscription of group billing on legacy"));
    CHECK(Eventually([&] { return service.Status().waiting_code == WaitingCode::kNothing; }));
    CHECK(service.Status().standstills.empty());
}

TEST_CASE("Where the rung and a fence wait, both are said, and the word is the rung's",
          "[topic][fence]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    Handled handled;
    brokers.legacy.SetBacklog(NotDrained(5));
    brokers.next.SetListening(ListensNot());
    Service service{brokers.scene, Policy::kDualSubscribe};
    handled.Listen(service);
    brokers.next.Deliver("1", kOne);
    REQUIRE(service.WaitsFor("1 messages of group billing from next are held since "));
    CHECK(service.Status().waiting_code == WaitingCode::kFence);
    service.SetPolicy(Policy::kNewPublish);
    REQUIRE(
        service.WaitsFor("group billing to listen on next: it has no consumer; 1 messages of group "
                         "billing from next are held since "));
    CHECK(service.Status().waiting_code == WaitingCode::kListeners);
    CHECK(service.WaitsFor("waits for group billing to drain legacy: 5 messages left"));
    brokers.next.SetListening(Listens());
    REQUIRE(service.Reaches(Policy::kNewPublish));
    CHECK(Eventually([&] { return service.Status().waiting_code == WaitingCode::kFence; }));
}

TEST_CASE("A group that this client has had on a side is known there, whatever the broker says",
          "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    Handled handled;
    Service service{brokers.scene, Policy::kNewPublish};
    handled.Listen(service);
    service.SetPolicy(Policy::kNew);
    REQUIRE(service.Reaches(Policy::kNew));
    mq::backend::Backlog forgotten = NotDrained(3);
    forgotten.known = false;
    brokers.legacy.SetBacklog(forgotten);
    CHECK(Eventually([&] { return brokers.legacy.subscriptions() == 2; }));
}

}  // namespace
