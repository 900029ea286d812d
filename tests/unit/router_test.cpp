/// @file router_test.cpp
/// The send path below the facade: routes, outlets, and the way of a blocking send that fails.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "probe_backend.hpp"
#include <mq/detail/signal.hpp>
#include <mq/migration/router.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/sending.hpp>

#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

using mq::migration::Router;
using mq::runtime::Outlet;
using mq::runtime::Sending;
using mq::runtime::Waiter;
using mq::test::Probe;
using std::chrono::milliseconds;

namespace {

// One broker of the test and the way to it.
struct Way {
    explicit Way(const mq::runtime::Shared& shared)
        : link("broker", {.url = "probe://" + name}, shared),
          outlet(link, mq::test::MakeDestination("orders"), wake) {}

    const std::string name = mq::test::UniqueId("probe");
    Probe& probe = Probe::Of(name);
    mq::detail::Signal signal;
    mq::detail::Wake wake{signal};
    mq::runtime::BrokerLink link;
    Outlet outlet;
};

struct Bench {
    Bench() { mq::test::RegisterProbe(); }

    std::unique_ptr<Sending> Make(const std::shared_ptr<Waiter>& waiter,
                                  milliseconds timeout = mq::test::kPatience) {
        auto sending = std::make_unique<Sending>();
        sending->message = mq::test::MakeMessage("b");
        sending->shared = &shared;
        sending->waiter = waiter;
        sending->deadline = mq::test::After(timeout);
        return sending;
    }

    mq::runtime::Callbacks callbacks{&mq::runtime::RunCallbacks};
    mq::runtime::SendingPool sendings;
    const mq::runtime::Shared shared{
        .log = [](mq::LogLevel, std::string_view) {}, .callbacks = &callbacks, .sendings = &sendings};
    Way one{shared};
    Way two{shared};
    Router router{"orders", shared};
};

}  // namespace

TEST_CASE("a warm outlet has made what the first send needs") {
    Bench bench;
    bench.one.outlet.Warm();
    bench.one.outlet.Warm();
    CHECK(bench.one.probe.Events() == std::vector<std::string>{"backend is made", "publisher is made"});
    bench.router.PointTo(bench.one.outlet, nullptr, "sender");
    const auto waiter = std::make_shared<Waiter>();
    bench.router.Send(bench.Make(waiter));
    CHECK(mq::runtime::AwaitSent(*waiter, mq::test::After(), "orders") == nullptr);
    CHECK(bench.one.probe.Count("publisher is made") == 1);
}

TEST_CASE("a route that comes back is the one that there was") {
    Bench bench;
    const auto send = [&] {
        const auto waiter = std::make_shared<Waiter>();
        bench.router.Send(bench.Make(waiter));
        return mq::runtime::AwaitSent(*waiter, mq::test::After(), "orders") == nullptr;
    };
    bench.router.PointTo(bench.one.outlet, &bench.two.outlet, "a sender with a text of its own");
    CHECK(send());
    const std::size_t first = bench.router.kept();
    for (int i = 0; i < 10; ++i) {
        bench.router.PointTo(bench.one.outlet, nullptr, "a sender with a text of its own");
        bench.router.PointTo(bench.one.outlet, &bench.two.outlet, "a sender with a text of its own");
    }
    CHECK(send());
    CHECK(bench.router.kept() == first + 1);
    bench.router.PointTo(bench.two.outlet, nullptr, "a sender with a text of its own");
    CHECK(bench.router.kept() == first + 2);
}

TEST_CASE("a waiting thread gets back what may go another way, until it gives up") {
    const auto waiter = std::make_shared<Waiter>();
    auto sending = std::make_unique<Sending>();
    SECTION("while it waits") {
        REQUIRE(waiter->HandBack(sending));
        CHECK(sending == nullptr);
        REQUIRE(waiter->Wait(mq::test::After()));
        CHECK(waiter->TakeBack() != nullptr);
        CHECK(waiter->TakeBack() == nullptr);
        CHECK_FALSE(waiter->Wait(mq::test::After(milliseconds{0})));
    }
    SECTION("not any more") {
        CHECK_FALSE(waiter->Wait(mq::test::After(milliseconds{0})));
        CHECK_FALSE(waiter->HandBack(sending));
        CHECK(sending != nullptr);
    }
}
