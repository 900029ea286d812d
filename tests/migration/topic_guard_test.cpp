/// @file topic_guard_test.cpp
/// The guards of a walk where a real broker would have to be very quick, or very slow, to show that one
/// of them is missing: how a side is left, and how publishing and subscriptions turn round.
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "scripted_backend.hpp"

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Order;
using mq::Policy;
using mq::backend::Clock;

// As long as no test waits for a quiet period to pass.
constexpr std::chrono::milliseconds kForEver = 60s;
// The same as in walk.hpp, with kFollow.
constexpr std::chrono::seconds kPatience{5};
constexpr std::chrono::seconds kFollow{1};

// Asks for a rung, and says what the walk waits for first; "reached" where it waits for nothing.
std::string FirstReason(const Service& service, Policy rung) {
    std::string reason;
    service.SetPolicy(rung);
    CHECK(Eventually([&] {
        const mq::TopicStatus status = service.Status();
        reason = status.stage == rung ? "reached" : status.waiting_for;
        return !reason.empty();
    }));
    return reason;
}

// Waits for that reason, as long as the service stays at the rung.
bool WaitsAt(const Service& service, Policy rung, std::string_view reason) {
    CHECK(Eventually([&] {
        const mq::TopicStatus status = service.Status();
        return status.stage != rung || Has(status.waiting_for, reason);
    }));
    return service.Status().stage == rung;
}

void SendPipelined(Service& service, const std::string& body, SendLog& sends) {
    service.client->SendMsg(kTopic, body, sends.Callback());
}

// ---- leaving a side

TEST_CASE("A side is not left while a send there is not confirmed", "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    SendLog sends;
    Handled handled;
    Service service{brokers.scene, Policy::kDualSubscribe};
    handled.Listen(service);
    brokers.legacy.SetConfirming(Confirming::kKept);
    SendPipelined(service, "1", sends);
    service.SetPolicy(Policy::kNew);
    REQUIRE(Eventually([&] { return service.Status().stage >= Policy::kNewPublish; }));
    REQUIRE(WaitsAt(service, Policy::kNewPublish, "legacy to confirm 1 messages"));
    CHECK(service.Status().old_side.subscribed);
    CHECK(sends.Count() == 0);
    brokers.legacy.ConfirmKept();
    CHECK(service.Reaches(Policy::kNew));
    CHECK(sends.WaitForCount(1));
}

TEST_CASE("What arrives between the look at a side and the stop is handled before the side is left",
          "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    Handled handled;
    handled.Shut();
    Service service{brokers.scene, Policy::kNewPublish};
    handled.Listen(service);
    brokers.legacy.OnNextStop([&] {
        brokers.legacy.Deliver("late");
        handled.WaitBegun(1);
    });
    service.SetPolicy(Policy::kNew);
    CHECK(WaitsAt(service, Policy::kNewPublish,
                  "handlers of group billing to settle what came from legacy"));
    CHECK(service.Status().old_side.subscribed);
    // It is not tried again before they have ended, though there is the time for it.
    CHECK(Stays([&] { return service.Status().stage == Policy::kNewPublish; }, 500ms));
    handled.Open();
    REQUIRE(service.Reaches(Policy::kNew));
    // Its handler was at work all the time: the side that was not left has not given it back.
    CHECK(handled.Begun() == std::vector<std::string>{"late"});
    CHECK(brokers.legacy.settled() == std::vector<std::string>{"late"});
    CHECK(brokers.legacy.subscriptions() == 2);
}

TEST_CASE("A side that could not be left after all is taken from again", "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    Handled handled;
    handled.Shut();
    Service service{brokers.scene, Policy::kNewPublish};
    handled.Listen(service);
    brokers.legacy.OnNextStop([&] {
        brokers.legacy.Deliver("late");
        handled.WaitBegun(1);
    });
    service.SetPolicy(Policy::kNew);
    CHECK(WaitsAt(service, Policy::kNewPublish,
                  "handlers of group billing to settle what came from legacy"));
    service.SetPolicy(Policy::kNewPublish);
    // The walk has come to rest: nothing but the end of the handler is to come.
    REQUIRE(Eventually([&] { return service.Status().waiting_for.empty(); }));
    handled.Open();
    REQUIRE(handled.WaitDone(1));
    CHECK(Eventually([&] { return brokers.legacy.subscriptions() == 2; }, kPrompt));
    brokers.legacy.Deliver("after");
    CHECK(handled.WaitDone(2));
    CHECK(handled.Begun() == std::vector<std::string>{"late", "after"});
}

TEST_CASE("A side is looked at once more when nothing is taken from it any more", "[topic]") {
    ScriptedScene brokers{Order::kNone, 300ms};
    Handled handled;
    std::atomic<bool> came{false};
    Moment seen;
    Moment stopped;
    Service service{brokers.scene, Policy::kNewPublish};
    handled.Listen(service);
    brokers.legacy.OnNextStop([&] { came = true; });
    brokers.legacy.OnBacklog([&](Clock::time_point) {
        if (!came.exchange(false)) return Drained();
        brokers.legacy.OnNextStop([&] { stopped.Note(); });
        seen.Note();
        return NotDrained();
    });
    service.SetPolicy(Policy::kNew);
    REQUIRE(service.Reaches(Policy::kNew));
    CHECK(brokers.legacy.subscriptions() == 2);
    // And from that look on it has to be quiet once more.
    CHECK(stopped.at() - seen.at() >= brokers.scene.quiet);
}

TEST_CASE("The quiet period begins when a side is drained, whether or not anything arrives here",
          "[topic]") {
    ScriptedScene brokers{Order::kNone, 300ms};
    Handled handled;
    NotYet not_yet{3 * brokers.scene.quiet};
    Moment stopped;
    Service service{brokers.scene, Policy::kNewPublish};
    handled.Listen(service);
    brokers.legacy.OnBacklog([&](Clock::time_point) { return not_yet.Or(Drained()); });
    brokers.legacy.OnNextStop([&] { stopped.Note(); });
    service.SetPolicy(Policy::kNew);
    REQUIRE(service.Reaches(Policy::kNew));
    CHECK(stopped.at() - not_yet.last() >= brokers.scene.quiet);
}

TEST_CASE("A side whose broker does not say what is left there is not left", "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    Handled handled;
    Service service{brokers.scene, Policy::kNewPublish};
    handled.Listen(service);
    brokers.legacy.SetBacklog(BacklogUnknown());
    CHECK(Has(FirstReason(service, Policy::kNew), "legacy to say what is left for group billing"));
    brokers.legacy.SetBacklog(Drained());
    CHECK(service.Reaches(Policy::kNew));
}

// ---- moving and turning

TEST_CASE("Publishing does not move where the broker does not say who listens", "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    Service service{brokers.scene, Policy::kDualSubscribe};
    brokers.next.SetListening(ListeningUnknown());
    CHECK(Has(FirstReason(service, Policy::kNewPublish), "group billing to listen on next"));
    brokers.next.SetListening(Listens());
    CHECK(service.Reaches(Policy::kNewPublish));
}

// How often a script's broker was published to by one that had moved, and what it said of it.
std::uint64_t LastMoves(const Script& broker) {
    const auto senders = broker.senders();
    REQUIRE_FALSE(senders.empty());
    const auto sender = mq::migration::ParseSender(senders.back());
    REQUIRE(sender);
    return sender->moves;
}

TEST_CASE("In order, publishing goes back when every group has handled what was sent before",
          "[topic]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    Service service{brokers.scene, Policy::kNewPublish};
    service.client->SendMsg(kTopic, "sent");
    SECTION("at once where it has") {
        CHECK(FirstReason(service, Policy::kDualSubscribe) == "reached");
    }
    SECTION("later where something is left") {
        brokers.next.SetBacklog(NotDrained());
        CHECK(Has(FirstReason(service, Policy::kDualSubscribe), "group billing to drain next"));
        brokers.next.SetBacklog(Drained());
        CHECK(service.Reaches(Policy::kDualSubscribe));
    }
    SECTION("though more has come since, of others") {
        mq::backend::Backlog busy = NotDrained();
        busy.settled_before = Clock::now();
        brokers.next.SetBacklog(busy);
        CHECK(Has(FirstReason(service, Policy::kDualSubscribe), "group billing to drain next"));
        brokers.next.OnBacklog([busy](Clock::time_point) mutable {
            busy.settled_before = Clock::now();
            return busy;
        });
        CHECK(service.Reaches(Policy::kDualSubscribe));
    }
    // What comes back has nothing to wait for, and says so.
    service.client->SendMsg(kTopic, "back");
    CHECK(LastMoves(brokers.legacy) == 2);
}

TEST_CASE("In order, publishing goes back without proof only where nobody can be asked", "[topic]") {
    ScriptedScene brokers{Order::kKey, 10ms};
    SECTION("the groups are named") {
        brokers.next.SetBacklog(GENERATE(NotDrained(), BacklogUnknown()));
        Service service{brokers.scene, Policy::kNewPublish};
        service.client->SendMsg(kTopic, "sent");
        service.SetPolicy(Policy::kDualSubscribe);
        CHECK(Stays([&] { return service.Status().stage == Policy::kNewPublish; },
                    kPatience + kFollow + 500ms));
        CHECK_FALSE(service.Status().waiting_for.empty());
    }
    SECTION("after a while, and the log says so") {
        SECTION("the groups are not named") { brokers.scene.groups.clear(); }
        SECTION("the broker does not see all of them") {
            brokers.next.SetBacklog(DrainedAsFarAsSeen());
        }
        Service service{brokers.scene, Policy::kNewPublish};
        service.client->SendMsg(kTopic, "sent");
        const auto begin = Clock::now();
        service.SetPolicy(Policy::kDualSubscribe);
        REQUIRE(service.log->WaitForLine("publishing goes back without "));
        CHECK(service.Reaches(Policy::kDualSubscribe));
        CHECK(Clock::now() - begin >= kPatience + kFollow);
        service.client->SendMsg(kTopic, "back");
        CHECK(LastMoves(brokers.legacy) == 1);
    }
}

TEST_CASE("In order, sends are not held for long where what they follow is not handled", "[topic]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    brokers.scene.send_timeout = 1s;
    Service service{brokers.scene, Policy::kNewPublish};
    service.client->SendMsg(kTopic, "sent");
    // Handled as it is asked the first time, and then not: publishing is held by the second question.
    std::atomic<int> asked{0};
    brokers.next.OnBacklog([&](Clock::time_point) { return asked++ == 0 ? Drained() : NotDrained(); });
    service.SetPolicy(Policy::kDualSubscribe);
    REQUIRE(Eventually([&] { return asked >= 2; }));
    CHECK_NOTHROW(service.client->SendMsg(kTopic, "meanwhile"));
    CHECK(brokers.next.published() == std::vector<std::string>{"sent", "meanwhile"});
    CHECK(service.Status().stage == Policy::kNewPublish);
    brokers.next.SetBacklog(Drained());
    CHECK(service.Reaches(Policy::kDualSubscribe));
}

TEST_CASE("In order, on the way back sends go on while the groups are behind", "[topic]") {
    constexpr auto kSendTimeout = 6s;
    constexpr auto kHold = kSendTimeout / 2;  // the longest time that sends may be held
    ScriptedScene brokers{Order::kKey, kForEver};
    brokers.scene.send_timeout = kSendTimeout;
    Service service{brokers.scene, Policy::kNewPublish};
    service.client->SendMsg(kTopic, "sent");
    const auto goes_at_once = [&](const char* body) {
        const auto begin = Clock::now();
        service.client->SendMsg(kTopic, body);
        return Clock::now() - begin < kHold / 2;
    };
    SECTION("by more than they have at any moment") {
        brokers.next.SetBacklog(NotDrained());
        CHECK(Has(FirstReason(service, Policy::kDualSubscribe), "group billing to drain next"));
        CHECK(goes_at_once("meanwhile"));
    }
    SECTION("by longer than sends may be held") {
        // Everything is handled that was sent this long ago, all the time.
        brokers.next.OnBacklog([&](Clock::time_point) {
            mq::backend::Backlog behind = NotDrained();
            behind.settled_before = Clock::now() - kHold;
            return behind;
        });
        service.SetPolicy(Policy::kDualSubscribe);
        REQUIRE(Eventually([&] { return Has(service.Status().waiting_for, "to be less far behind"); }));
        CHECK(goes_at_once("meanwhile"));
    }
    CHECK(brokers.next.published() == std::vector<std::string>{"sent", "meanwhile"});
    CHECK(service.Status().stage == Policy::kNewPublish);
}

TEST_CASE("In order, a service that has sent nothing goes back without asking", "[topic]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    brokers.next.SetBacklog(NotDrained());
    const Service service{brokers.scene, Policy::kNewPublish};
    CHECK(FirstReason(service, Policy::kDualSubscribe) == "reached");
    service.client->SendMsg(kTopic, "first");
    CHECK(LastMoves(brokers.legacy) == 2);
}

TEST_CASE(
    "In order, publishing goes to the new side at once, and says that something may be left behind",
    "[topic]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    brokers.legacy.SetBacklog(NotDrained());
    const Service service{brokers.scene, Policy::kOld};
    REQUIRE(FirstReason(service, Policy::kDualSubscribe) == "reached");
    for (const std::uint64_t moves : {1U, 3U}) {
        CHECK(FirstReason(service, Policy::kNewPublish) == "reached");
        service.client->SendMsg(kTopic, "there");
        CHECK(LastMoves(brokers.next) == moves);
        REQUIRE(FirstReason(service, Policy::kDualSubscribe) == "reached");
    }
}

TEST_CASE("A move of publishing that is not wanted any more lets sends go on where they were",
          "[topic]") {
    ScriptedScene brokers{Order::kKey, 10ms};
    SendLog sends;
    Service service{brokers.scene, Policy::kOld};
    REQUIRE(FirstReason(service, Policy::kDualSubscribe) == "reached");
    brokers.legacy.SetConfirming(Confirming::kKept);
    SendPipelined(service, "1", sends);
    REQUIRE(Has(FirstReason(service, Policy::kNewPublish),
                "legacy to confirm 1 messages before the first goes to next"));
    // Sends wait by now: this one goes on as soon as the move is called off.
    service.SetPolicy(Policy::kDualSubscribe);
    SendPipelined(service, "2", sends);
    CHECK(brokers.legacy.published() == std::vector<std::string>{"1", "2"});
    CHECK(brokers.next.published().empty());
    brokers.legacy.ConfirmKept();
    CHECK(sends.WaitForCount(2));
    CHECK(sends.Failures().empty());
}

// ---- standing in

TEST_CASE("On a new rung nothing fails over until it is seen who listens on the other side",
          "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    brokers.scene.failover = true;
    std::atomic<bool> asked{false};
    std::atomic<bool> unseen{false};
    Service service{brokers.scene, Policy::kDualSubscribe};
    REQUIRE(Eventually([&] { return service.Status().failover; }));
    brokers.legacy.OnListening([&](Clock::time_point) {
        const mq::TopicStatus status = service.Status();
        if (status.stage == Policy::kNewPublish) {
            unseen = unseen || status.failover;
            asked = true;
        }
        return ListensNot();
    });
    service.SetPolicy(Policy::kNewPublish);
    REQUIRE(Eventually([&] { return asked.load(); }));
    CHECK_FALSE(unseen);
    CHECK_FALSE(service.Status().failover);
    brokers.legacy.SetListening(Listens());
}

TEST_CASE("Nothing fails over to a side of which it is not known who listens there", "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    brokers.scene.failover = true;
    brokers.next.SetListening(GENERATE(ListensNot(), ListeningUnknown()));
    Service service{brokers.scene, Policy::kDualSubscribe};
    REQUIRE(Eventually(
        [&] { return service.Status().failover || brokers.next.listening_questions() >= 2; }));
    CHECK_FALSE(service.Status().failover);
    brokers.next.SetListening(Listens());
    CHECK(Eventually([&] { return service.Status().failover; }));
}

// ---- looking back

TEST_CASE("A client at rest goes back to the other side only for a group that has been there",
          "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    Handled handled;
    mq::backend::Backlog backlog = NotDrained();
    backlog.known = false;
    brokers.next.SetBacklog(backlog);
    Service service{brokers.scene, Policy::kOld};
    handled.Listen(service);
    const auto looked = [&] {
        return brokers.next.subscriptions() > 0 || brokers.next.backlog_questions() >= 2;
    };
    REQUIRE(Eventually(looked));
    CHECK(brokers.next.subscriptions() == 0);
    brokers.next.SetBacklog(NotDrained());
    CHECK(Eventually([&] { return brokers.next.subscriptions() == 1; }));
}

TEST_CASE("A client at rest does not go back to a side that does not say what is left", "[topic]") {
    ScriptedScene brokers{Order::kNone, 10ms};
    Handled handled;
    brokers.next.SetBacklog(BacklogUnknown());
    Service service{brokers.scene, Policy::kOld};
    handled.Listen(service);
    REQUIRE(Eventually(
        [&] { return brokers.next.subscriptions() > 0 || brokers.next.backlog_questions() >= 2; }));
    CHECK(brokers.next.subscriptions() == 0);
    CHECK(service.Status().waiting_for.empty());
}

}  // namespace
