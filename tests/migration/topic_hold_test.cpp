/// @file topic_hold_test.cpp
/// In order: when held messages may go, and how a subscription finds out which side is the newer one.
/// Brokers that answer what a test wants show what each answer counts for.
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
#include <memory>
#include <string>
#include <string_view>
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
// The same as in topic.hpp.
constexpr std::chrono::seconds kTurn{5};

// A service that has walked to dual-subscribe: it knows the new side as the newer one, and holds it.
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
        member.brokers.next.Deliver("2");
        return Drained();
    });
    member.brokers.next.Deliver("1");
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
    member.brokers.next.Deliver("1");
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
    member.brokers.next.Deliver("1");
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
    member.brokers.next.Deliver("1");
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
    member.brokers.next.Deliver("1");
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
    member.brokers.next.Deliver("1");
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
            member.brokers.next.Deliver("2");
        }
        return DrainedAsFarAsSeen();
    });
    member.brokers.next.Deliver("1");
    REQUIRE(member.handled.WaitBegun(2));
    CHECK(member.handled.Begun() == Bodies{"1", "2"});
    CHECK(member.handled.When("2") - member.seen.at() >= member.brokers.scene.quiet);
}

// ---- settling in

TEST_CASE("With the guard off a subscription asks nobody what came before it", "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    brokers.scene.guard = false;
    brokers.next.SetBacklog(BacklogUnknown());
    Handled handled;
    Service service{brokers.scene, Policy::kOld};
    handled.Listen(service);
    brokers.legacy.Deliver("1");
    REQUIRE(handled.WaitBegun(1));
    CHECK(brokers.next.backlog_questions() == 0);
}

TEST_CASE("A subscription on one side asks what is left on the other before it begins",
          "[topic][order]") {
    ScriptedScene brokers{Order::kKey, kForEver};
    Handled handled;
    brokers.next.OnBacklog([&](Clock::time_point) {
        brokers.next.Deliver("1");
        brokers.next.SetBacklog(NotDrained());
        return NotDrained();
    });
    brokers.legacy.Deliver("2");
    Service service{brokers.scene, Policy::kOld};
    handled.Listen(service);
    REQUIRE(handled.WaitBegun(1));
    CHECK(handled.Begun() == Bodies{"1"});
    brokers.next.SetBacklog(Drained());
    REQUIRE(handled.WaitBegun(2));
    CHECK(handled.Begun() == Bodies{"1", "2"});
}

TEST_CASE(
    "Where producers have gone both ways a subscription waits to learn which side is the newer, "
    "and not for ever",
    "[topic][order]") {
    ScriptedScene brokers{Order::kKey, 10ms};
    Handled handled;
    for (Script* const broker : {&brokers.legacy, &brokers.next}) broker->SetBacklog(NotDrained());
    brokers.legacy.Deliver("1", "mq-a dual-subscribe 1");
    brokers.next.Deliver("2", "mq-b new-publish 1");
    Service service{brokers.scene, Policy::kDualSubscribe};
    const auto begin = Clock::now();
    handled.Listen(service);
    REQUIRE(handled.WaitBegun(1));
    CHECK(handled.Begun() == Bodies{"1"});
    CHECK(handled.When("1") - begin >= kTurn);
}

TEST_CASE("A subscription that turns round lets go first of what it holds, behind the other side",
          "[topic][order]") {
    Member member{kForEver};
    member.brokers.legacy.SetBacklog(NotDrained());
    member.brokers.next.Deliver("1", "mq-a new-publish 1");
    REQUIRE(member.AsksAgain(1));
    // The producer has gone back: the old side is the newer one now, and "1" still waits behind what
    // another member has of the old side.
    member.brokers.next.SetBacklog(NotDrained());
    member.brokers.legacy.Deliver("2", "mq-a dual-subscribe 2");
    REQUIRE(member.AsksAgain());
    CHECK(member.handled.empty());
    member.brokers.legacy.OnBacklog([](Clock::time_point) {
        mq::backend::Backlog busy = NotDrained();
        busy.settled_before = Clock::now();
        return busy;
    });
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

TEST_CASE("What was concluded from the moves of producers is void when another one has been noticed",
          "[topic][order]") {
    Alone alone;
    alone.listener->SetSettling(true, true);
    const auto noticed = alone.listener->moves_noticed();
    alone.brokers.legacy.Deliver("1", "mq-a dual-subscribe 1");
    CHECK_FALSE(alone.listener->Settle(mq::Side::kNew, noticed));
    CHECK(alone.listener->settling());
    CHECK(alone.listener->dispatcher().Counts(mq::Side::kOld).held == 1);
    CHECK(alone.listener->Settle(mq::Side::kNew, alone.listener->moves_noticed()));
    CHECK(alone.collector.WaitForCount(1));
}

TEST_CASE("A producer that comes to a side that is not held has both sides held, itself included",
          "[topic][order]") {
    Alone alone;
    alone.listener->SetSettling(false, true);
    alone.listener->SetHold(mq::Side::kNew);
    alone.brokers.legacy.Deliver("1", "mq-a dual-subscribe 0");
    REQUIRE(alone.collector.WaitForCount(1));
    CHECK_FALSE(alone.listener->doubts());
    SECTION("to the side that is held it may come") {
        alone.brokers.next.Deliver("2", "mq-a new-publish 1");
        CHECK_FALSE(alone.listener->doubts());
    }
    SECTION("to the other one") {
        alone.brokers.legacy.Deliver("2", "mq-a dual-subscribe 2");
        CHECK(alone.listener->doubts());
        CHECK(alone.listener->settling());
        CHECK(alone.listener->dispatcher().Counts(mq::Side::kOld).held == 1);
    }
    CHECK(alone.collector.Bodies() == Bodies{"1"});
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
