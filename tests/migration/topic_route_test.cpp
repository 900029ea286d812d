/// @file topic_route_test.cpp
/// The questions of the guards, one at a time, and the ways of a send: what a route that changes in the
/// middle of it, a broker that fails and a deadline do to it.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "scripted_backend.hpp"
#include <mq/detail/signal.hpp>
#include <mq/migration/guards.hpp>
#include <mq/migration/router.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/sending.hpp>

#include <chrono>
#include <cstddef>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Error;
using mq::ErrorCode;
using mq::Outcome;
using mq::backend::Clock;
using mq::migration::CheckDrained;
using mq::migration::CheckEverybodyListens;
using mq::migration::Router;
using mq::runtime::Outlet;
using mq::runtime::Sending;
using mq::runtime::Waiter;

constexpr std::size_t kWindow = 4096;

// One scripted broker and the way to it.
struct Way {
    explicit Way(const mq::runtime::Shared& shared)
        : link("broker", {.url = "script://" + name}, shared), outlet(link, destination, wake) {}

    [[nodiscard]] std::size_t Published() const { return script.published().size(); }

    const std::string name = UniqueId("way");
    Script& script = Script::Of(name);
    std::shared_ptr<const mq::backend::Destination> destination = MakeDestination("orders");
    mq::detail::Signal signal;
    mq::detail::Wake wake{signal};
    mq::runtime::BrokerLink link;
    Outlet outlet;
};

struct Bench {
    Bench() { RegisterScript(); }

    // Sends and waits for the end; the error is null where the broker has confirmed.
    std::unique_ptr<Error> Send(std::chrono::milliseconds timeout = kPatience) {
        const auto waiter = std::make_shared<Waiter>();
        auto sending = std::make_unique<Sending>();
        sending->message = MakeMessage("b");
        sending->shared = &shared;
        sending->waiter = waiter;
        sending->deadline = After(timeout);
        router.Send(std::move(sending));
        return mq::runtime::AwaitSent(*waiter, After(), "orders");
    }

    // One that has failed on the first way, for the router to take over.
    std::unique_ptr<Sending> Failed() {
        auto sending = std::make_unique<Sending>();
        sending->message = MakeMessage("b");
        sending->shared = &shared;
        sending->waiter = std::make_shared<Waiter>();
        sending->outlet = &one.outlet;
        sending->failover = &router;
        sending->last_deadline = After();
        return sending;
    }

    mq::runtime::Callbacks callbacks{&mq::runtime::RunCallbacks};
    mq::runtime::SendingPool sendings;
    const mq::runtime::Shared shared{.config = {.max_in_flight_bytes = kWindow},
                                     .log = [](mq::LogLevel, std::string_view) {},
                                     .callbacks = &callbacks,
                                     .sendings = &sendings};
    Way one{shared};
    Way two{shared};
    Router router{"orders", shared};
};

// ---- questions

TEST_CASE("Who listens is taken for granted only where the broker says so", "[topic]") {
    Bench bench;
    Way& way = bench.one;
    CHECK(CheckEverybodyListens(way.link, *way.destination, {"billing"}).passed);
    for (const auto& listening : {ListensNot(), ListeningUnknown()}) {
        way.script.SetListening(listening);
        const auto verdict = CheckEverybodyListens(way.link, *way.destination, {"billing"});
        CHECK_FALSE(verdict.passed);
        CHECK(Has(verdict.waiting_for, listening.reason));
        const bool known = listening.answer == mq::backend::Listening::Answer::kNo;
        CHECK(verdict.code == (known ? mq::WaitingCode::kListeners : mq::WaitingCode::kAnswer));
        CHECK_FALSE(CheckEverybodyListens(way.link, *way.destination, {}).passed);
    }
    // Each that was asked has answered in time.
    CHECK(way.script.listening_questions() == 5);
}

TEST_CASE("A side is taken for drained only where the broker says so", "[topic]") {
    Bench bench;
    Way& way = bench.one;
    const auto ask = [&] { return CheckDrained(way.link, *way.destination, "billing"); };
    const auto begin = Clock::now();
    const auto drained = ask();
    CHECK(drained.verdict.passed);
    CHECK(drained.exact);
    CHECK(drained.settled_before >= begin);
    way.script.SetBacklog(DrainedAsFarAsSeen());
    CHECK(ask().verdict.passed);
    CHECK_FALSE(ask().exact);
    CHECK_FALSE(ask().settled_before);
    way.script.SetBacklog(NotDrained(7));
    CHECK_FALSE(ask().verdict.passed);
    CHECK(ask().left == 7u);
    CHECK(ask().verdict.code == mq::WaitingCode::kBacklog);
    way.script.SetBacklog(BacklogUnknown());
    const auto unknown = ask();
    CHECK_FALSE(unknown.verdict.passed);
    CHECK_FALSE(unknown.exact);
    CHECK_FALSE(unknown.left);
    CHECK_FALSE(unknown.settled_before);
    CHECK(Has(unknown.verdict.waiting_for, "to say what is left for group billing"));
    CHECK(unknown.verdict.code == mq::WaitingCode::kAnswer);
}

TEST_CASE("A broker that has not answered in time is left in peace, and nothing is concluded from that",
          "[topic]") {
    Bench bench;
    Way& way = bench.one;
    const bool asks_who_listens = GENERATE(true, false);
    // It stands still for as long as it may.
    const auto stand_still = [](Clock::time_point deadline) {
        return Eventually([deadline] { return Clock::now() >= deadline; });
    };
    way.script.OnListening([&](Clock::time_point deadline) {
        stand_still(deadline);
        return ListeningUnknown();
    });
    way.script.OnBacklog([&](Clock::time_point deadline) {
        stand_still(deadline);
        return BacklogUnknown();
    });
    if (asks_who_listens) {
        CHECK_FALSE(CheckEverybodyListens(way.link, *way.destination, {"billing"}).passed);
    } else {
        CHECK_FALSE(CheckDrained(way.link, *way.destination, "billing").verdict.passed);
    }
    const auto asked = way.script.listening_questions() + way.script.backlog_questions();
    REQUIRE(asked == 1);
    CHECK(way.link.IsSilent(Clock::now() + 1s));
    CHECK_FALSE(way.link.IsSilent(Clock::now() + mq::migration::kPeace));

    // It would answer now, and is not asked, whatever the question.
    way.script.SetListening(Listens());
    way.script.SetBacklog(Drained());
    const auto listens = CheckEverybodyListens(way.link, *way.destination, {"billing"});
    CHECK_FALSE(listens.passed);
    CHECK(listens.waiting_for == "broker to answer who listens there");
    const auto drained = CheckDrained(way.link, *way.destination, "billing");
    CHECK_FALSE(drained.verdict.passed);
    CHECK_FALSE(drained.settled_before);
    CHECK(drained.verdict.waiting_for == "broker to answer what is left for group billing");
    CHECK(way.script.listening_questions() + way.script.backlog_questions() == asked);

    way.link.SetSilent(Clock::now());
    CHECK(CheckEverybodyListens(way.link, *way.destination, {"billing"}).passed);
    CHECK(CheckDrained(way.link, *way.destination, "billing").verdict.passed);
}

TEST_CASE("A broker that says at once that it does not know is asked again", "[topic]") {
    Bench bench;
    Way& way = bench.one;
    way.script.SetListening(ListeningUnknown());
    way.script.SetBacklog(BacklogUnknown());
    for (int i = 0; i < 3; ++i) {
        CHECK_FALSE(CheckEverybodyListens(way.link, *way.destination, {"billing"}).passed);
        CHECK_FALSE(CheckDrained(way.link, *way.destination, "billing").verdict.passed);
    }
    CHECK(way.script.listening_questions() == 3);
    CHECK(way.script.backlog_questions() == 3);
}

// ---- ways

TEST_CASE("A send that waits for room goes where the route points when there is room", "[topic]") {
    Bench bench;
    bench.router.PointTo(bench.one.outlet, nullptr, {});
    REQUIRE(bench.one.link.window().ReserveNow(kWindow));
    auto sent = std::async(std::launch::async, [&] { return bench.Send(); });
    // Time for it to take the first route and to wait.
    CHECK(sent.wait_for(kGlance) == std::future_status::timeout);
    bench.router.PointTo(bench.two.outlet, nullptr, {});
    CHECK(bench.one.outlet.InFlight() == 0);
    bench.one.link.window().Release(kWindow);
    CHECK(sent.get() == nullptr);
    CHECK(bench.one.Published() == 0);
    CHECK(bench.two.Published() == 1);
    CHECK(bench.one.outlet.InFlight() == 0);
    // It has given back the room that it had taken on the first way.
    CHECK(bench.one.link.window().Reserve(kWindow, Clock::now()));
    bench.one.link.window().Release(kWindow);
}

TEST_CASE("A router that is shut stays shut", "[topic]") {
    Bench bench;
    bench.router.PointTo(bench.one.outlet, nullptr, {});
    CHECK(bench.Send() == nullptr);
    bench.router.Shut();
    SECTION("as it is") {}
    SECTION("where a step of the walk comes late") {
        bench.router.PointTo(bench.one.outlet, nullptr, {});
    }
    SECTION("where a move of publishing comes late") { bench.router.Hold(); }
    const auto error = bench.Send(kGlance);
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kClosed);
    CHECK(error->outcome() == Outcome::kNotSent);
    CHECK(bench.one.Published() == 1);
}

TEST_CASE("Shutting a router ends the sends that it holds", "[topic]") {
    Bench bench;
    bench.router.Hold();
    auto sent = std::async(std::launch::async, [&] { return bench.Send(); });
    bench.router.Shut();
    const auto error = sent.get();
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kClosed);
}

TEST_CASE("A send waits for a route, and for room, no longer than its deadline", "[topic]") {
    constexpr std::chrono::milliseconds kTimeout{100};
    Bench bench;
    const bool held = GENERATE(true, false);
    bench.router.PointTo(bench.one.outlet, nullptr, {});
    if (held) {
        bench.router.Hold();
    } else {
        REQUIRE(bench.one.link.window().ReserveNow(kWindow));
    }
    const auto begin = Clock::now();
    const auto error = bench.Send(kTimeout);
    const auto took = Clock::now() - begin;
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kTimeout);
    CHECK(error->outcome() == Outcome::kNotSent);
    CHECK(took >= kTimeout);
    CHECK(took < kPrompt);
    CHECK(bench.one.Published() == 0);
    CHECK(bench.one.outlet.InFlight() == 0);
}

TEST_CASE("A send that has failed on both ways takes no third one", "[topic]") {
    Bench bench;
    bench.one.script.SetConfirming(Confirming::kUnavailable);
    bench.two.script.SetConfirming(Confirming::kUnavailable);
    bench.router.PointTo(bench.one.outlet, &bench.two.outlet, {});
    const auto error = bench.Send(1s);
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kUnavailable);
    CHECK(bench.one.Published() == 1);
    CHECK(bench.two.Published() == 1);
    CHECK(bench.one.outlet.InFlight() == 0);
    CHECK(bench.two.outlet.InFlight() == 0);
}

TEST_CASE("A send that has failed on its way takes the other one, and those after it do so at once",
          "[topic]") {
    Bench bench;
    bench.one.script.SetConfirming(Confirming::kUnavailable);
    bench.router.PointTo(bench.one.outlet, &bench.two.outlet, {});
    CHECK(bench.Send() == nullptr);
    CHECK(bench.Send() == nullptr);
    CHECK(bench.one.Published() == 1);
    CHECK(bench.two.Published() == 2);
}

TEST_CASE("A send whose outcome is unknown takes no other way", "[topic]") {
    Bench bench;
    bench.one.script.SetConfirming(Confirming::kUnknown);
    bench.router.PointTo(bench.one.outlet, &bench.two.outlet, {});
    const auto error = bench.Send();
    REQUIRE(error != nullptr);
    CHECK(error->outcome() == Outcome::kUnknown);
    CHECK(bench.two.Published() == 0);
}

TEST_CASE("A failed send takes no other way where there is no route, no time or no room", "[topic]") {
    Bench bench;
    bench.router.PointTo(bench.one.outlet, &bench.two.outlet, {});
    auto sending = bench.Failed();
    SECTION("publishing moves") { bench.router.Hold(); }
    SECTION("the router is shut") { bench.router.Shut(); }
    SECTION("its deadline has passed") { sending->last_deadline = Clock::now(); }
    SECTION("the other broker's window is full until its deadline") {
        REQUIRE(bench.two.link.window().ReserveNow(kWindow));
        sending->last_deadline = After(50ms);
    }
    CHECK_FALSE(bench.router.TakeOver(sending));
    CHECK(sending != nullptr);
    CHECK(bench.one.Published() == 0);
    CHECK(bench.two.Published() == 0);
    CHECK(bench.two.outlet.InFlight() == 0);
}

TEST_CASE("A failed send goes on trying the one way that there is by now", "[topic]") {
    Bench bench;
    bench.router.PointTo(bench.one.outlet, nullptr, {});
    auto sending = bench.Failed();
    CHECK(bench.router.TakeOver(sending));
    CHECK(sending == nullptr);
    CHECK(bench.one.Published() == 1);
    CHECK(bench.two.Published() == 0);
}

TEST_CASE("Only what certainly did not reach a broker that is not there may fail over", "[topic]") {
    Bench bench;
    Sending sending;
    const auto may = [&](ErrorCode code, Outcome outcome) {
        sending.error = std::make_unique<Error>(code, "no", outcome);
        return sending.MayFailOver();
    };
    CHECK_FALSE(may(ErrorCode::kUnavailable, Outcome::kNotSent));  // nobody knows another way
    sending.failover = &bench.router;
    for (const ErrorCode code :
         {ErrorCode::kConfig, ErrorCode::kInvalidArgument, ErrorCode::kUnknownTopic, ErrorCode::kClosed,
          ErrorCode::kTimeout, ErrorCode::kOverflow, ErrorCode::kUnavailable, ErrorCode::kAccessDenied,
          ErrorCode::kNotFound, ErrorCode::kUnroutable, ErrorCode::kTooLarge, ErrorCode::kRefused,
          ErrorCode::kUnsupported, ErrorCode::kInternal}) {
        INFO(mq::ToString(code));
        const bool not_there = code == ErrorCode::kTimeout || code == ErrorCode::kUnavailable;
        CHECK(may(code, Outcome::kNotSent) == not_there);
        CHECK_FALSE(may(code, Outcome::kUnknown));
    }
    sending.error = nullptr;
    CHECK_FALSE(sending.MayFailOver());
}

}  // namespace
