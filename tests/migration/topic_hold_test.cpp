/// @file topic_hold_test.cpp
/// In order: what raises a fence before a side's messages, and when it opens. Brokers that answer what
/// a test wants show what each answer counts for.
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "scripted_backend.hpp"
#include <mq/delivery.hpp>
#include <mq/detail/signal.hpp>
#include <mq/migration/listener.hpp>
#include <mq/migration/sender.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dispatcher.hpp>
#include <mq/runtime/worker_pool.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Order;
using mq::Policy;
using mq::backend::Clock;
using Bodies = std::vector<std::string>;

// As long as no test waits for a quiet period to pass.
constexpr std::chrono::milliseconds kForEver = 60s;
// The same as in walk.hpp.
constexpr std::chrono::seconds kPatience{5};
// Two producers that have come over to the new side.
constexpr const char* kOne = "mq-a new-publish 1";
constexpr const char* kAnother = "mq-b new-publish 1";

// A service that has walked to dual-subscribe.
struct Member {
    explicit Member(std::chrono::milliseconds quiet)
        : brokers(Order::kKey, quiet), service(brokers.scene, Policy::kOld) {
        handled.Listen(service);
        service.SetPolicy(Policy::kDualSubscribe);
        REQUIRE(service.Reaches(Policy::kDualSubscribe));
    }

    // Waits until the old side has been asked that often again, or a handler has begun.
    [[nodiscard]] bool AsksAgain(std::size_t times = 3) const {
        const std::size_t before = brokers.legacy.backlog_questions();
        return Eventually(
            [&] { return brokers.legacy.backlog_questions() >= before + times || !handled.empty(); });
    }

    ScriptedScene brokers;
    Handled handled;
    NotYet not_yet{600ms};
    Moment seen;
    std::atomic<int> asked{0};
    Service service;
};

TEST_CASE("What arrives while it is asked what came before waits for the next answer",
          "[topic][order]") {
    Member member{kForEver};
    member.brokers.legacy.OnBacklog([&](Clock::time_point) {
        if (member.asked.fetch_add(1) > 0) return NotDrained();
        member.brokers.next.Deliver("2", kAnother);
        return Drained();
    });
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.handled.WaitBegun(1));
    // "2" is held: it is asked for again, or is handled where nothing holds it.
    CHECK(Eventually([&] { return member.asked >= 4 || member.handled.Begun().size() > 1; }));
    CHECK(member.handled.Begun() == Bodies{"1"});
    member.brokers.legacy.SetBacklog(Drained());
    REQUIRE(member.handled.WaitBegun(2));
    CHECK(member.handled.Begun() == Bodies{"1", "2"});
}

TEST_CASE("Held messages go when what came before them is settled, though more has come since",
          "[topic][order]") {
    Member member{kForEver};
    const auto before = Clock::now();
    mq::backend::Backlog backlog = NotDrained();
    backlog.settled_before = before;
    member.brokers.legacy.SetBacklog(backlog);
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.AsksAgain());
    CHECK(member.handled.empty());
    member.brokers.legacy.OnBacklog([](Clock::time_point) {
        mq::backend::Backlog busy = NotDrained();
        busy.settled_before = Clock::now();
        return busy;
    });
    CHECK(member.handled.WaitBegun(1));
}

TEST_CASE("An answer that is not known lets no held message go", "[topic][order]") {
    Member member{0ms};
    member.brokers.legacy.SetBacklog(BacklogUnknown());
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.AsksAgain());
    CHECK(member.handled.empty());
    member.brokers.legacy.SetBacklog(Drained());
    CHECK(member.handled.WaitBegun(1));
}

TEST_CASE("Behind a side that is drained as far as can be seen held messages wait for the quiet period",
          "[topic][order]") {
    Member member{300ms};
    member.brokers.legacy.SetBacklog(DrainedAsFarAsSeen());
    const auto begin = Clock::now();
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.handled.WaitBegun(1));
    CHECK(member.handled.When("1") - begin >= member.brokers.scene.quiet);
}

TEST_CASE("The quiet period of held messages begins again when the other side is not drained",
          "[topic][order]") {
    Member member{300ms};
    // Drained as it seems, for a while not, and then for good.
    member.brokers.legacy.OnBacklog([&](Clock::time_point) {
        if (member.asked.fetch_add(1) == 0) return DrainedAsFarAsSeen();
        return member.not_yet.Or(DrainedAsFarAsSeen());
    });
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.handled.WaitBegun(1));
    CHECK(member.handled.When("1") - member.not_yet.last() >= member.brokers.scene.quiet);
}

TEST_CASE("The quiet period of held messages begins again when something arrives on the other side",
          "[topic][order]") {
    Member member{300ms};
    // At a question in the middle of the quiet period, or behind it where the machine is slow.
    const auto middle = Clock::now() + member.brokers.scene.quiet / 2;
    member.brokers.legacy.OnBacklog([&, middle](Clock::time_point) {
        if (Clock::now() >= middle && member.asked.fetch_add(1) == 0) {
            member.seen.Note();
            member.brokers.legacy.Deliver("0");
        }
        return DrainedAsFarAsSeen();
    });
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.handled.WaitBegun(2));
    CHECK(member.handled.Begun() == Bodies{"0", "1"});
    CHECK(member.handled.When("1") - member.seen.at() >= member.brokers.scene.quiet);
}

TEST_CASE("What arrives during the quiet period of held messages waits for one of its own",
          "[topic][order]") {
    Member member{300ms};
    // At a question in the middle of the quiet period, or behind it where the machine is slow.
    const auto middle = Clock::now() + member.brokers.scene.quiet / 2;
    member.brokers.legacy.OnBacklog([&, middle](Clock::time_point) {
        if (Clock::now() >= middle && member.asked.fetch_add(1) == 0) {
            member.seen.Note();
            member.brokers.next.Deliver("2", kAnother);
        }
        return DrainedAsFarAsSeen();
    });
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.handled.WaitBegun(2));
    CHECK(member.handled.Begun() == Bodies{"1", "2"});
    CHECK(member.handled.When("2") - member.seen.at() >= member.brokers.scene.quiet);
}

// ---- one side, and both

TEST_CASE("With the guard off a subscription asks nobody what came before it", "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    brokers.scene.guard = false;
    brokers.next.SetBacklog(BacklogUnknown());
    Handled handled;
    Service service{brokers.scene, Policy::kOld};
    handled.Listen(service);
    brokers.legacy.Deliver("1", "mq-a old 3");
    REQUIRE(handled.WaitBegun(1));
    CHECK(brokers.next.backlog_questions() == 0);
}

TEST_CASE("On one side, what comes from a producer that has moved waits for what is left on the other",
          "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    Handled handled;
    brokers.next.OnBacklog([&](Clock::time_point) {
        brokers.next.Deliver("1");
        brokers.next.SetBacklog(NotDrained());
        return NotDrained();
    });
    brokers.legacy.Deliver("2", "mq-a dual-subscribe 3");
    Service service{brokers.scene, Policy::kOld};
    handled.Listen(service);
    REQUIRE(handled.WaitBegun(1));
    CHECK(handled.Begun() == Bodies{"1"});
    brokers.next.SetBacklog(Drained());
    REQUIRE(handled.WaitBegun(2));
    CHECK(handled.Begun() == Bodies{"1", "2"});
}

TEST_CASE("Fences that wait for each other do not do so for ever", "[topic][order]") {
    ScriptedScene brokers{Order::kKey, 10ms};
    Handled handled;
    for (Script* const broker : {&brokers.legacy, &brokers.next}) broker->SetBacklog(NotDrained());
    brokers.legacy.Deliver("1", "mq-a dual-subscribe 3");
    brokers.next.Deliver("2", kAnother);
    Service service{brokers.scene, Policy::kDualSubscribe};
    const auto begin = Clock::now();
    handled.Listen(service);
    REQUIRE(
        service.log->WaitForLine("lets go of what came from legacy without group billing to drain"));
    REQUIRE(handled.WaitBegun(1));
    CHECK(handled.Begun() == Bodies{"1"});
    CHECK(handled.When("1") - begin >= kPatience);
    brokers.legacy.SetBacklog(Drained());
    CHECK(handled.WaitBegun(2));
}

TEST_CASE("A fence is patient for as long as something is handled behind it", "[topic][order]") {
    ScriptedScene brokers{Order::kKey, 10ms};
    Handled handled;
    const auto slow = Clock::now() + kPatience + 1s;
    std::atomic<std::uint64_t> left{1'000'000};
    brokers.next.OnBacklog([&](Clock::time_point) {
        mq::backend::Backlog backlog = NotDrained();
        backlog.messages = --left;
        return Clock::now() < slow ? backlog : Drained();
    });
    brokers.legacy.Deliver("1", "mq-a dual-subscribe 3");
    Service service{brokers.scene, Policy::kDualSubscribe};
    handled.Listen(service);
    REQUIRE(handled.WaitBegun(1));
    CHECK(handled.When("1") >= slow);
}

TEST_CASE("On the way up a fence waits as long as it takes", "[topic][order]") {
    Member member{10ms};
    member.brokers.legacy.SetBacklog(NotDrained());
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.AsksAgain());
    CHECK(Stays([&] { return member.handled.empty(); }, kPatience + 500ms));
    member.brokers.legacy.SetBacklog(Drained());
    CHECK(member.handled.WaitBegun(1));
}

TEST_CASE("A producer that comes and goes again is handled in the order of its moves",
          "[topic][order]") {
    Member member{kForEver};
    mq::backend::Backlog elsewhere = NotDrained();
    elsewhere.messages = 2;  // the one that comes back, and one that another member is at work on
    member.brokers.legacy.SetBacklog(elsewhere);
    member.brokers.next.SetBacklog(NotDrained());
    member.brokers.next.Deliver("1", kOne);
    REQUIRE(member.AsksAgain(1));
    member.brokers.legacy.Deliver("2", "mq-a dual-subscribe 3");
    REQUIRE(member.AsksAgain());
    CHECK(member.handled.empty());
    SECTION("what was on the old side before is settled") {
        member.brokers.legacy.OnBacklog([&](Clock::time_point) {
            mq::backend::Backlog busy = elsewhere;
            busy.settled_before = Clock::now();
            return busy;
        });
    }
    SECTION("nothing is left on the old side but what is held here") {
        member.brokers.legacy.SetBacklog(NotDrained());
    }
    REQUIRE(member.handled.WaitBegun(1));
    CHECK(member.handled.Begun() == Bodies{"1"});
    member.brokers.next.SetBacklog(Drained());
    REQUIRE(member.handled.WaitBegun(2));
    CHECK(member.handled.Begun() == Bodies{"1", "2"});
}

// ---- one subscription

// A subscription to both sides, without a topic above it.
struct Alone {
    Alone() {
        pool.Start();
        listener->Attach(mq::Side::kOld, old_link, MakeDestination("orders"));
        listener->Attach(mq::Side::kNew, new_link, MakeDestination("orders"));
    }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;
    ~Alone() {
        listener->Close(After());
        pool.Stop();
    }

    ScriptedScene brokers{Order::kKey, kForEver};
    Collector collector;
    const mq::runtime::Shared shared{.log = [](mq::LogLevel, std::string_view) {}};
    mq::runtime::BrokerLink old_link{"legacy", {.url = brokers.scene.old_url}, shared};
    mq::runtime::BrokerLink new_link{"next", {.url = brokers.scene.new_url}, shared};
    mq::runtime::WorkerPool pool{1};
    mq::detail::Signal signal;
    mq::detail::Wake wake{signal};
    mq::migration::SeenProducers producers;
    std::shared_ptr<mq::migration::Listener> listener = std::make_shared<mq::migration::Listener>(
        "billing", 16,
        std::make_shared<mq::runtime::Dispatcher>(
            pool,
            [this](mq::Delivery delivery) {
                collector.Add(delivery.message());
                delivery.Ack();
            },
            mq::runtime::Dispatcher::Options{.order = Order::kKey, .log = shared.log}),
        wake, producers);
};

TEST_CASE("A fence stays up for a producer that has come over since its position was taken",
          "[topic][order]") {
    Alone alone;
    alone.listener->SetFencing(true);
    alone.brokers.legacy.Deliver("1", "mq-a dual-subscribe 3");
    const auto fence = alone.listener->FenceOn(mq::Side::kOld);
    REQUIRE(fence);
    alone.brokers.legacy.Deliver("2", "mq-b dual-subscribe 1");
    CHECK_FALSE(alone.listener->Open(mq::Side::kOld, *fence));
    CHECK(alone.listener->dispatcher().Counts(mq::Side::kOld).held == 2);
    CHECK(alone.listener->Open(mq::Side::kOld, alone.listener->FenceOn(mq::Side::kOld).value()));
    CHECK_FALSE(alone.listener->FenceOn(mq::Side::kOld));
    CHECK(alone.collector.WaitForCount(2));
}

TEST_CASE("A fence is raised by each producer that comes over, and by no other", "[topic][order]") {
    Alone alone;
    alone.listener->SetFencing(true);
    alone.brokers.legacy.Deliver("1", "mq-a dual-subscribe 0");
    alone.brokers.legacy.Deliver("2");
    REQUIRE(alone.collector.WaitForCount(2));
    alone.brokers.next.Deliver("3", "mq-a new-publish 1");
    REQUIRE(alone.listener->FenceOn(mq::Side::kNew));
    CHECK_FALSE(alone.listener->FenceOn(mq::Side::kOld));
    CHECK(alone.listener->Open(mq::Side::kNew, 1));
    REQUIRE(alone.collector.WaitForCount(3));
    // It is known by now, also where what it sent on the other side arrives late.
    alone.brokers.legacy.Deliver("4", "mq-a dual-subscribe 0");
    alone.brokers.next.Deliver("5", "mq-a new-publish 1");
    CHECK(alone.collector.WaitForCount(5));
    alone.brokers.legacy.Deliver("6", "mq-a dual-subscribe 3");
    CHECK(alone.listener->FenceOn(mq::Side::kOld));
    CHECK(alone.listener->dispatcher().Counts(mq::Side::kOld).held == 1);
    // Of another one the later move is seen first: what it sent before the earlier one is missed too.
    alone.brokers.legacy.Deliver("8", "mq-c dual-subscribe 3");
    CHECK_FALSE(alone.listener->FenceOn(mq::Side::kNew));
    alone.brokers.next.Deliver("7", "mq-c new-publish 1");
    CHECK(alone.listener->FenceOn(mq::Side::kNew));
    alone.listener->SetFencing(false);
    CHECK(alone.collector.WaitForCount(8));
}

TEST_CASE("A subscription ends in time where somebody else does not come back from leaving a side",
          "[topic]") {
    Alone alone;
    Gate left;
    Gate leaving;
    alone.brokers.legacy.OnNextStop([&] {
        leaving.Open();
        left.Wait();
    });
    std::thread other{[&] { alone.listener->Detach(mq::Side::kOld, After(0ms)); }};
    REQUIRE(leaving.Wait());
    alone.listener->Close(Clock::now());
    CHECK_FALSE(alone.listener->closed());
    left.Open();
    other.join();
    CHECK(alone.listener->closed());
}

TEST_CASE("What a late producer sent before it moved is handled first by a consumer at rest",
          "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    Handled handled;
    Service service{brokers.scene, Policy::kNew};
    handled.Listen(service);
    brokers.next.Deliver("0");
    REQUIRE(handled.WaitBegun(1));
    brokers.legacy.SetBacklog(NotDrained());
    brokers.legacy.Deliver("1", "mq-a dual-subscribe 0");
    brokers.next.Deliver("2", "mq-a new-publish 1");
    REQUIRE(handled.WaitBegun(2));
    brokers.legacy.SetBacklog(Drained());
    REQUIRE(handled.WaitBegun(3));
    CHECK(handled.Begun() == Bodies{"0", "1", "2"});
}

}  // namespace
