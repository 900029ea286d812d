#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include <mq/backend.hpp>
#include <mq/delivery.hpp>
#include <mq/detail/signal.hpp>
#include <mq/policy.hpp>
#include <mq/runtime/dispatcher.hpp>
#include <mq/runtime/worker_pool.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using mq::Delivery;
using mq::Message;
using mq::Order;
using mq::Side;
using mq::runtime::Dispatcher;
using mq::runtime::Fate;
using mq::runtime::WorkerPool;
using mq::test::After;
using mq::test::Collector;
using mq::test::Counter;
using mq::test::DeliveryBox;
using mq::test::Gate;
using mq::test::kGlance;
using std::chrono::milliseconds;

namespace {

// What a test broker knows of the messages that it has handed over. Outlives them.
struct Ledger {
    Counter settled;
    Counter destroyed;  // settled or not
    std::atomic<bool> stale{false};
    std::function<void()> on_settle = {};  // called in the middle of it
};

class FakeInbound final : public mq::backend::Inbound {
public:
    FakeInbound(Ledger& ledger, Message received) : ledger_(ledger) { message = std::move(received); }
    ~FakeInbound() override { ledger_.destroyed.Add(); }

    void Settle() noexcept override {
        if (ledger_.on_settle) ledger_.on_settle();
        ledger_.settled.Add();
    }
    [[nodiscard]] bool Stale() const noexcept override { return ledger_.stale; }

private:
    Ledger& ledger_;
};

// A dispatcher with what it needs around it.
struct Bench {
    explicit Bench(Dispatcher::Handler handler, Dispatcher::Options options = {})
        : dispatcher(
              std::make_shared<Dispatcher>(pool, std::move(handler), Complete(std::move(options)))) {}

    ~Bench() {
        dispatcher->Stop();
        dispatcher->WaitHandlers(After());
    }

    bool Offer(Side side, Ledger& of, std::string body, std::string key = {}) {
        return dispatcher->Offer(side, std::make_unique<FakeInbound>(
                                           of, mq::test::MakeMessage(std::move(body), std::move(key))));
    }
    bool Offer(std::string body, std::string key = {}) {
        return Offer(Side::kOld, ledger, std::move(body), std::move(key));
    }

    Dispatcher::Options Complete(Dispatcher::Options options) {
        options.name = "topic orders, group billing";
        options.log = log.Sink();
        return options;
    }

    mq::test::RecordingLog log = {};
    Ledger ledger = {};
    WorkerPool pool{8};
    std::shared_ptr<Dispatcher> dispatcher;
};

// A handler that records and settles.
Dispatcher::Handler Into(Collector& received) {
    return [&received](Delivery delivery) {
        received.Add(delivery.message());
        delivery.Ack();
    };
}

std::vector<std::string> Numbers(std::size_t from, std::size_t to) {
    std::vector<std::string> numbers;
    for (std::size_t i = from; i < to; ++i) numbers.push_back(std::to_string(i));
    return numbers;
}

}  // namespace

TEST_CASE("a message that was handled is settled once and given up") {
    Collector received;
    Bench bench{Into(received)};
    CHECK_FALSE(bench.Offer("hello"));
    REQUIRE(bench.dispatcher->WaitSettled(Side::kOld, After()));
    CHECK(received.Bodies() == std::vector<std::string>{"hello"});
    CHECK(bench.ledger.settled.Value() == 1);
    CHECK(bench.ledger.destroyed.Value() == 1);
    const auto counts = bench.dispatcher->Counts(Side::kOld);
    CHECK(counts.received == 1);
    CHECK(counts.processed == 1);
    CHECK(counts.outstanding == 0);
    CHECK(bench.dispatcher->Counts(Side::kNew).received == 0);
}

TEST_CASE("a message carries the side that it came from") {
    Collector received;
    Bench bench{Into(received)};
    bench.Offer(Side::kNew, bench.ledger, "new");
    REQUIRE(received.WaitForCount(1));
    bench.Offer(Side::kOld, bench.ledger, "old");
    REQUIRE(received.WaitForCount(2));
    CHECK(received.Messages()[0].side == Side::kNew);
    CHECK(received.Messages()[1].side == Side::kOld);
}

TEST_CASE("one handler at a time sees the messages in the order of their arrival") {
    Collector received;
    Bench bench{Into(received)};
    for (const std::string& body : Numbers(0, 500)) bench.Offer(body);
    REQUIRE(received.WaitForCount(500));
    CHECK(received.Bodies() == Numbers(0, 500));
}

TEST_CASE("as many handlers run at once as the concurrency says, and no more") {
    constexpr std::size_t kConcurrency = 3;
    Gate release;
    Counter inside;
    Bench bench{[&](Delivery delivery) {
                    inside.Add();
                    release.Wait();
                    delivery.Ack();
                },
                {.concurrency = kConcurrency}};
    for (int i = 0; i < 10; ++i) bench.Offer("m");
    REQUIRE(inside.WaitFor(kConcurrency));
    CHECK_FALSE(inside.WaitFor(kConcurrency + 1, kGlance));
    release.Open();
    CHECK(inside.WaitFor(10));
}

TEST_CASE("a nacked message is handled again, marked, after a delay that grows") {
    std::mutex mutex;
    std::vector<mq::backend::Clock::time_point> times;  // guarded by mutex
    Collector received;
    Bench bench{[&](Delivery delivery) {
        {
            const std::lock_guard lock{mutex};
            times.push_back(mq::backend::Clock::now());
        }
        received.Add(delivery.message());
        const bool last = received.Count() == 4;
        if (last) return delivery.Ack();
        delivery.Nack();
        // Still readable, though it is on its way to another attempt.
        if (delivery.message().body != "again") received.Add({.body = "unreadable"});
    }};
    bench.Offer("again", "key");
    REQUIRE(bench.dispatcher->WaitSettled(Side::kOld, After()));
    const auto messages = received.Messages();
    REQUIRE(messages.size() == 4);
    CHECK_FALSE(messages[0].redelivered);
    for (std::size_t i = 1; i < 4; ++i) {
        CHECK(messages[i].redelivered);
        CHECK(messages[i].body == "again");
        CHECK(messages[i].key == "key");
        CHECK(messages[i].id == messages[0].id);
    }
    const std::lock_guard lock{mutex};
    CHECK(times[1] - times[0] >= milliseconds{20});
    CHECK(times[2] - times[1] >= milliseconds{40});
    CHECK(times[3] - times[2] >= milliseconds{80});
    CHECK(bench.ledger.settled.Value() == 1);
    CHECK(bench.dispatcher->Counts(Side::kOld).received == 1);
}

TEST_CASE("a handler that throws is logged without the body, and gets the message again") {
    Counter calls;
    Bench bench{[&](Delivery delivery) {
        const std::size_t call = calls.Add();
        if (call == 1) throw std::runtime_error{"database is away"};
        if (call == 2) throw 5;
        delivery.Ack();
    }};
    bench.Offer("secret body");
    REQUIRE(bench.dispatcher->WaitSettled(Side::kOld, After()));
    CHECK(calls.Value() == 3);
    const auto lines = bench.log.Lines();
    REQUIRE(lines.size() == 2);
    CHECK(lines[0].second.find("database is away") != std::string::npos);
    CHECK(lines[0].second.find("topic orders, group billing") != std::string::npos);
    for (const auto& [level, line] : lines) {
        CHECK(level == mq::LogLevel::kWarning);
        CHECK(line.find("secret") == std::string::npos);
    }
}

TEST_CASE("a handler that settled and then throws is not given the message again") {
    Counter calls;
    Collector marker;
    Bench bench{[&](Delivery delivery) {
        calls.Add();
        marker.Add(delivery.message());
        delivery.Ack();
        throw std::runtime_error{"too late"};
    }};
    bench.Offer("once");
    bench.Offer("next");
    REQUIRE(marker.WaitForCount(2));
    REQUIRE(bench.dispatcher->WaitSettled(Side::kOld, After()));
    CHECK(bench.ledger.settled.Value() == 2);
    CHECK(calls.Value() == 2);
}

TEST_CASE("a message without an order is handled while another waits for its next attempt") {
    Collector received;
    Bench bench{[&](Delivery delivery) {
        received.Add(delivery.message());
        const bool nack = delivery.message().body == "bad" && !delivery.message().redelivered;
        if (nack) {
            delivery.Nack();
        } else {
            delivery.Ack();
        }
    }};
    bench.Offer("bad", "k");
    bench.Offer("good", "k");
    REQUIRE(received.WaitForCount(3));
    CHECK(received.Bodies() == std::vector<std::string>{"bad", "good", "bad"});
}

TEST_CASE("with an order, a message waits until every earlier one of its key is settled") {
    DeliveryBox box;
    Bench bench{box.Handler(), {.concurrency = 8, .order = Order::kKey}};
    for (const std::string& body : Numbers(0, 3)) {
        bench.Offer("a" + body, "a");
        bench.Offer("b" + body, "b");
    }
    bench.Offer("no key 1");
    bench.Offer("no key 2");
    // The heads of both keys, and what has no key.
    REQUIRE(box.WaitForCount(4));
    CHECK_FALSE(box.WaitForCount(5, kGlance));
    for (std::size_t round = 0; round < 3; ++round) {
        REQUIRE(box.WaitForCount(2));
        std::vector<std::string> bodies;
        auto deliveries = box.Take();
        for (Delivery& delivery : deliveries) bodies.push_back(delivery.message().body);
        std::sort(bodies.begin(), bodies.end());
        const std::string number = std::to_string(round);
        CHECK(bodies[0] == "a" + number);
        CHECK(bodies[1] == "b" + number);
        CHECK(bodies.size() == (round == 0 ? 4u : 2u));
        for (Delivery& delivery : deliveries) delivery.Ack();
    }
    CHECK(bench.dispatcher->WaitSettled(Side::kOld, After()));
}

TEST_CASE("with an order, a nacked message keeps its place and holds up no other key") {
    Collector received;
    Bench bench{[&](Delivery delivery) {
                    received.Add(delivery.message());
                    const bool nack = delivery.message().body == "a0" && received.Count() < 4;
                    if (nack) {
                        delivery.Nack();
                    } else {
                        delivery.Ack();
                    }
                },
                {.order = Order::kKey}};
    bench.Offer("a0", "a");
    bench.Offer("a1", "a");
    bench.Offer("b0", "b");
    REQUIRE(bench.dispatcher->WaitSettled(Side::kOld, After()));
    std::vector<std::string> of_a;
    for (const std::string& body : received.Bodies()) {
        if (body[0] == 'a') of_a.push_back(body);
    }
    CHECK(received.Bodies()[1] == "b0");
    REQUIRE(of_a.size() >= 3);
    CHECK(of_a.back() == "a1");
    CHECK(std::count(of_a.begin(), of_a.end(), "a1") == 1);
}

TEST_CASE("what is held is not handled until it is released, up to the mark") {
    Collector received;
    Bench bench{Into(received)};
    bench.dispatcher->SetHold(Side::kNew, true);
    CHECK(bench.Offer(Side::kNew, bench.ledger, "n1"));
    CHECK(bench.Offer(Side::kNew, bench.ledger, "n2"));
    const auto mark = bench.dispatcher->Mark(Side::kNew);
    CHECK(bench.Offer(Side::kNew, bench.ledger, "n3"));
    CHECK_FALSE(bench.Offer("o1"));
    REQUIRE(received.WaitForCount(1));
    CHECK(bench.dispatcher->Counts(Side::kNew).held == 3);
    CHECK(bench.dispatcher->Counts(Side::kNew).outstanding == 3);

    bench.dispatcher->Release(Side::kNew, mark);
    REQUIRE(received.WaitForCount(3));
    CHECK(bench.dispatcher->Counts(Side::kNew).held == 1);
    CHECK_FALSE(received.WaitForCount(4, kGlance));

    bench.dispatcher->SetHold(Side::kNew, false);
    REQUIRE(received.WaitForCount(4));
    CHECK(received.Bodies() == std::vector<std::string>{"o1", "n1", "n2", "n3"});
    CHECK_FALSE(bench.Offer(Side::kNew, bench.ledger, "n4"));
    CHECK(received.WaitForCount(5));
}

TEST_CASE("what is released queues behind earlier messages of its key") {
    Collector received;
    Gate release;
    Bench bench{[&](Delivery delivery) {
                    if (delivery.message().body == "o1") release.Wait();
                    received.Add(delivery.message());
                    delivery.Ack();
                },
                {.concurrency = 4, .order = Order::kKey}};
    bench.dispatcher->SetHold(Side::kNew, true);
    bench.Offer(Side::kNew, bench.ledger, "n1", "k");
    bench.Offer("o1", "k");
    bench.dispatcher->SetHold(Side::kNew, false);
    CHECK_FALSE(received.WaitForCount(1, kGlance));
    release.Open();
    REQUIRE(received.WaitForCount(2));
    CHECK(received.Bodies() == std::vector<std::string>{"o1", "n1"});
}

TEST_CASE("dropping a side gives back what is queued, held or retried, and lets what runs finish") {
    Collector received;
    Gate release;
    Counter running;
    Ledger old_side;
    Ledger new_side;
    Bench bench{[&](Delivery delivery) {
        if (delivery.message().body == "nacked") return delivery.Nack();
        received.Add(delivery.message());
        if (delivery.message().body == "running") {
            running.Add();
            release.Wait();
        }
        delivery.Ack();
    }};
    bench.Offer(Side::kOld, old_side, "nacked");
    bench.Offer(Side::kOld, old_side, "running");
    REQUIRE(running.WaitFor(1));
    bench.Offer(Side::kOld, old_side, "queued");
    bench.Offer(Side::kNew, new_side, "of the other side");
    bench.dispatcher->DropSide(Side::kOld);
    CHECK(old_side.destroyed.Value() == 2);
    CHECK(old_side.settled.Value() == 0);
    CHECK(bench.dispatcher->Counts(Side::kOld).outstanding == 1);
    release.Open();
    REQUIRE(received.WaitForCount(2));
    CHECK(bench.dispatcher->WaitSettled(Side::kOld, After()));
    CHECK(old_side.settled.Value() == 1);
    CHECK(received.Bodies() == std::vector<std::string>{"running", "of the other side"});
}

TEST_CASE("dropping a side with an order lets the other side's messages of the key go on") {
    Collector received;
    DeliveryBox box;
    Ledger old_side;
    Ledger new_side;
    Bench bench{[&](Delivery delivery) {
                    if (delivery.message().side == Side::kOld) return box.Put(std::move(delivery));
                    received.Add(delivery.message());
                    delivery.Ack();
                },
                {.order = Order::kKey}};
    bench.Offer(Side::kOld, old_side, "o1", "k");
    bench.Offer(Side::kOld, old_side, "o2", "k");
    bench.Offer(Side::kNew, new_side, "n1", "k");
    bench.Offer(Side::kOld, old_side, "o3", "k");
    bench.Offer(Side::kNew, new_side, "n2", "k");
    REQUIRE(box.WaitForCount(1));
    CHECK(received.Count() == 0);
    // The next attempt may begin before the drop: then once more, with a longer delay.
    const auto deadline = After();
    while (bench.dispatcher->Counts(Side::kOld).outstanding > 0) {
        REQUIRE(mq::backend::Clock::now() < deadline);
        box.WaitForCount(1, milliseconds{1});
        for (Delivery& delivery : box.Take()) delivery.Nack();
        bench.dispatcher->DropSide(Side::kOld);
    }
    REQUIRE(received.WaitForCount(2));
    CHECK(received.Bodies() == std::vector<std::string>{"n1", "n2"});
    CHECK(bench.dispatcher->WaitSettled(Side::kOld, After()));
    CHECK(old_side.destroyed.WaitFor(3));
    CHECK(old_side.settled.Value() == 0);
}

TEST_CASE("what is stale is given back and never handled") {
    Collector received;
    Gate release;
    Counter running;
    Ledger lost;
    Ledger fresh;
    Bench bench{[&](Delivery delivery) {
        if (running.Add() == 1) release.Wait();
        received.Add(delivery.message());
        delivery.Ack();
    }};
    bench.Offer(Side::kOld, lost, "running");
    REQUIRE(running.WaitFor(1));
    bench.Offer(Side::kOld, lost, "stale 1");
    bench.Offer(Side::kOld, fresh, "fresh");
    lost.stale = true;
    bench.dispatcher->DropStale();
    CHECK(lost.destroyed.Value() == 1);
    // Became stale, and nobody has said so yet.
    bench.Offer(Side::kOld, lost, "stale 2");
    release.Open();
    REQUIRE(bench.dispatcher->WaitSettled(Side::kOld, After()));
    CHECK(received.Bodies() == std::vector<std::string>{"running", "fresh"});
    CHECK(lost.destroyed.Value() == 3);
    CHECK(lost.settled.Value() == 1);
    CHECK(bench.dispatcher->Counts(Side::kOld).processed == 2);
}

TEST_CASE("a stale message that is nacked is given back") {
    DeliveryBox box;
    Bench bench{box.Handler()};
    bench.Offer("m");
    REQUIRE(box.WaitForCount(1));
    auto deliveries = box.Take();
    bench.ledger.stale = true;
    deliveries.front().Nack();
    CHECK(bench.ledger.destroyed.Value() == 1);
    CHECK(bench.ledger.settled.Value() == 0);
    CHECK(bench.dispatcher->Counts(Side::kOld).outstanding == 0);
    CHECK(deliveries.front().message().body == "m");
}

TEST_CASE("a stopped dispatcher begins with nothing and gives everything back") {
    Counter running;
    Gate release;
    Bench bench{[&](Delivery delivery) {
        running.Add();
        release.Wait();
        delivery.Ack();
    }};
    bench.dispatcher->SetHold(Side::kNew, true);
    bench.Offer("running");
    REQUIRE(running.WaitFor(1));
    bench.Offer("queued");
    bench.Offer(Side::kNew, bench.ledger, "held");
    bench.dispatcher->Stop();
    CHECK(bench.ledger.destroyed.Value() == 2);
    CHECK_FALSE(bench.Offer("late"));
    CHECK(bench.ledger.destroyed.Value() == 3);
    CHECK_FALSE(bench.dispatcher->WaitHandlers(After(milliseconds{30})));
    release.Open();
    CHECK(bench.dispatcher->WaitHandlers(After()));
    CHECK(running.Value() == 1);
    CHECK(bench.ledger.settled.Value() == 1);
    CHECK(bench.ledger.destroyed.Value() == 4);
}

TEST_CASE("the wait for handlers is none for a thread that others keep") {
    Gate release;
    Gate inside;
    Bench bench{[](Delivery delivery) { delivery.Ack(); }};
    WorkerPool pool{1};
    auto dispatcher = std::make_shared<Dispatcher>(
        pool, [](Delivery delivery) { delivery.Ack(); }, Dispatcher::Options{.log = {}});
    pool.Post([&] {
        inside.Open();
        release.Wait();
    });
    REQUIRE(inside.Wait());
    dispatcher->Offer(Side::kOld, std::make_unique<FakeInbound>(bench.ledger, Message{.body = "b"}));
    dispatcher->Stop();
    CHECK(dispatcher->WaitHandlers(mq::backend::Clock::time_point::min()));
    Counter quiet;
    dispatcher->WhenQuiet([&] { quiet.Add(); });
    CHECK(quiet.Value() == 1);
    CHECK(bench.ledger.destroyed.Value() == 1);
    release.Open();
    pool.Stop();
}

TEST_CASE("a handler is destroyed when it is stopped, or when its last call has returned") {
    auto owned = std::make_shared<int>(0);
    const std::weak_ptr<int> alive = owned;
    Gate inside;
    Gate release;
    Bench bench{[owned = std::move(owned), &inside, &release](Delivery delivery) {
        inside.Open();
        release.Wait();
        delivery.Ack();
    }};
    CHECK_FALSE(alive.expired());
    SECTION("while nothing runs") {
        bench.dispatcher->Stop();
        CHECK(alive.expired());
    }
    SECTION("while a call runs") {
        bench.Offer("b");
        REQUIRE(inside.Wait());
        bench.dispatcher->Stop();
        CHECK_FALSE(alive.expired());
        release.Open();
        REQUIRE(bench.dispatcher->WaitHandlers(After()));
        CHECK(alive.expired());
        CHECK(bench.ledger.settled.Value() == 1);
    }
}

TEST_CASE("a delivery is settled after the stop, and a nack then gives it back") {
    DeliveryBox box;
    Bench bench{box.Handler(), {.concurrency = 2}};
    bench.Offer("acked");
    bench.Offer("nacked");
    REQUIRE(box.WaitForCount(2));
    bench.dispatcher->Stop();
    REQUIRE(bench.dispatcher->WaitHandlers(After()));
    auto deliveries = box.Take();
    for (Delivery& delivery : deliveries) {
        if (delivery.message().body == "acked") {
            delivery.Ack();
        } else {
            delivery.Nack();
        }
    }
    CHECK(bench.ledger.settled.Value() == 1);
    CHECK(bench.ledger.destroyed.Value() == 2);
    CHECK(bench.dispatcher->Counts(Side::kOld).outstanding == 0);
}

TEST_CASE("a delivery may outlive the dispatcher's pool and everybody else who holds it") {
    DeliveryBox box;
    Ledger ledger;
    {
        Bench bench{box.Handler()};
        bench.Offer(Side::kOld, ledger, "late");
        REQUIRE(box.WaitForCount(1));
    }
    auto deliveries = box.Take();
    CHECK(deliveries.front().message().body == "late");
    deliveries.clear();
    CHECK(ledger.destroyed.Value() == 1);
    CHECK(ledger.settled.Value() == 0);
}

TEST_CASE("a handler may stop its own dispatcher and is told when the last one has returned") {
    Counter quiet;
    Gate ready;
    std::shared_ptr<Dispatcher> dispatcher;
    std::atomic<bool> waited{false};
    std::atomic<bool> own{false};
    Bench bench{[&](Delivery delivery) {
        ready.Wait();
        own = dispatcher->OnOwnThread();
        dispatcher->Stop();
        waited = dispatcher->WaitHandlers(After());
        dispatcher->WhenQuiet([&] { quiet.Add(); });
        delivery.Ack();
    }};
    dispatcher = bench.dispatcher;
    CHECK_FALSE(dispatcher->OnOwnThread());
    bench.Offer("one");
    bench.Offer("two");
    ready.Open();
    REQUIRE(quiet.WaitFor(1));
    CHECK(own);
    CHECK(waited);
    CHECK(bench.ledger.settled.Value() == 1);
    CHECK(bench.ledger.destroyed.Value() == 2);
    dispatcher->WhenQuiet([&] { quiet.Add(); });
    CHECK(quiet.Value() == 2);
}

TEST_CASE("a busy subscription lets another one have the only thread now and then") {
    Counter busy;
    Counter quick;
    Gate begin;
    WorkerPool pool{1};
    const auto no_log = [](mq::LogLevel, std::string_view) {};
    Ledger ledger;
    const auto slow = std::make_shared<Dispatcher>(
        pool,
        [&](Delivery delivery) {
            begin.Wait();
            busy.Add();
            delivery.Ack();
        },
        Dispatcher::Options{.log = no_log});
    std::size_t busy_before = 0;
    const auto fast = std::make_shared<Dispatcher>(
        pool,
        [&](Delivery delivery) {
            busy_before = busy.Value();
            delivery.Ack();
            quick.Add();
        },
        Dispatcher::Options{.log = no_log});
    constexpr std::size_t kMany = 1000;
    for (std::size_t i = 0; i < kMany; ++i) {
        slow->Offer(Side::kOld, std::make_unique<FakeInbound>(ledger, Message{}));
    }
    fast->Offer(Side::kOld, std::make_unique<FakeInbound>(ledger, Message{}));
    begin.Open();
    REQUIRE(quick.WaitFor(1));
    CHECK(busy_before < kMany);
    CHECK(busy.WaitFor(kMany));
    for (const auto& dispatcher : {slow, fast}) {
        dispatcher->Stop();
        dispatcher->WaitHandlers(After());
    }
}

TEST_CASE("with an order, random failures and many handlers never reorder a key or lose a message") {
    constexpr std::size_t kKeys = 7;
    constexpr std::size_t kEach = 60;
    std::mutex mutex;
    std::mt19937 random{12345};                       // guarded by mutex
    std::map<std::string, std::vector<int>> handled;  // guarded by mutex
    Bench bench{[&](Delivery delivery) {
                    {
                        const std::lock_guard lock{mutex};
                        if (random() % 20 == 0) throw std::runtime_error{"by chance"};
                        handled[delivery.message().key].push_back(std::stoi(delivery.message().body));
                    }
                    delivery.Ack();
                },
                {.concurrency = 8, .order = Order::kKey}};
    for (std::size_t i = 0; i < kEach; ++i) {
        for (std::size_t key = 0; key < kKeys; ++key) {
            bench.Offer(i % 2 == 0 ? Side::kOld : Side::kNew, bench.ledger, std::to_string(i),
                        "key " + std::to_string(key));
        }
    }
    for (const Side side : {Side::kOld, Side::kNew}) {
        REQUIRE(bench.dispatcher->WaitSettled(side, After()));
    }
    const std::lock_guard lock{mutex};
    CHECK(handled.size() == kKeys);
    for (const auto& [key, numbers] : handled) {
        CHECK(numbers.size() == kEach);
        CHECK(std::is_sorted(numbers.begin(), numbers.end()));
    }
    CHECK(bench.ledger.settled.Value() == kKeys * kEach);
}

// ---- what is in hand

TEST_CASE("in hand is what came while it is tracked, until it is settled or taken back") {
    using Arrivals = std::vector<std::uint64_t>;
    DeliveryBox box;
    Ledger other;
    Bench bench{box.Handler(), {.concurrency = 2, .order = Order::kKey}};
    const auto in_hand = [&bench] { return bench.dispatcher->InHand(Side::kOld); };
    bench.Offer("before", "a");
    bench.dispatcher->SetTracking(true);
    bench.Offer("handled", "b");
    bench.Offer("behind it", "b");
    bench.Offer(Side::kNew, bench.ledger, "of the other side", "c");
    REQUIRE(box.WaitForCount(2));
    CHECK(in_hand() == Arrivals{2, 3});
    bench.dispatcher->SetHold(Side::kOld, true);
    bench.Offer(Side::kOld, other, "held", "d");
    CHECK(in_hand() == Arrivals{2, 3});
    SECTION("what the broker has taken back is not") {
        bench.ledger.stale = true;
        CHECK(in_hand().empty());
        bench.dispatcher->SetHold(Side::kOld, false);
        CHECK(in_hand() == Arrivals{4});
    }
    SECTION("nor what is on its way to be settled") {
        Arrivals meanwhile;
        bench.ledger.on_settle = [&] { meanwhile = in_hand(); };
        auto deliveries = box.Take();
        deliveries[0].Ack();
        CHECK(meanwhile == Arrivals{2, 3});
        deliveries[1].Ack();
        CHECK(meanwhile == Arrivals{3});
        CHECK(in_hand() == Arrivals{3});
        bench.ledger.on_settle = nullptr;
    }
    SECTION("but what is tried again is") {
        auto deliveries = box.Take();
        deliveries[1].Nack();
        CHECK(in_hand() == Arrivals{2, 3});
        deliveries[0].Ack();
    }
    bench.ledger.stale = false;
    bench.dispatcher->SetHold(Side::kOld, false);
    // What the box has is given back while the ledgers are there.
    bench.dispatcher->Stop();
    REQUIRE(bench.dispatcher->WaitHandlers(After()));
    static_cast<void>(box.Take());
}

TEST_CASE("what is followed has its end told, and the wake raised") {
    DeliveryBox box;
    mq::detail::Signal signal;
    mq::detail::Wake wake{signal};
    Ledger stale;
    Bench bench{box.Handler(), {.concurrency = 4, .order = Order::kKey}};
    bench.dispatcher->SetWake(&wake);
    bench.dispatcher->SetTracking(true);
    bench.Offer("acked", "a");
    REQUIRE(box.WaitForCount(1));
    bench.Offer("nacked", "b");
    REQUIRE(box.WaitForCount(2));
    bench.Offer(Side::kOld, stale, "taken back", "c");
    REQUIRE(box.WaitForCount(3));
    bench.Offer("not followed", "d");
    REQUIRE(box.WaitForCount(4));
    const auto followed = bench.dispatcher->Follow(Side::kOld, {1, 2, 3});
    REQUIRE(followed.size() == 3);
    CHECK(followed[0].key == "a");
    CHECK(followed[2].key == "c");
    wake.Take();
    auto deliveries = box.Take();
    deliveries[3].Ack();
    CHECK_FALSE(wake.Take());
    deliveries[0].Ack();
    CHECK(wake.Take());
    CHECK(followed[0].fate->load() == Fate::kSettled);
    deliveries[1].Nack();
    CHECK(followed[1].fate->load() == Fate::kOpen);
    REQUIRE(box.WaitForCount(1));
    CHECK(bench.dispatcher->Follow(Side::kOld, {2}).at(0).fate == followed[1].fate);
    box.Take()[0].Ack();
    CHECK(followed[1].fate->load() == Fate::kSettled);
    wake.Take();
    stale.stale = true;
    deliveries[2].Nack();
    CHECK(followed[2].fate->load() == Fate::kGivenBack);
    CHECK(wake.Take());
}

TEST_CASE("keys that are held wait, whatever else goes") {
    Collector received;
    Bench bench{Into(received), {.order = Order::kKey}};
    bench.dispatcher->SetHold(Side::kNew, true);
    const auto offer = [&bench](const char* body, const char* key) {
        return bench.Offer(Side::kNew, bench.ledger, body, key);
    };
    offer("1", "a");
    offer("2", "b");
    const auto mark = bench.dispatcher->Mark(Side::kNew);
    offer("3", "b");
    bench.dispatcher->HoldKeys(Side::kNew, {"a"}, mark);
    CHECK(bench.dispatcher->KeysHeld(Side::kNew) == 1);
    REQUIRE(received.WaitForCount(1));  // not 3, which came behind the mark
    CHECK(bench.dispatcher->Counts(Side::kNew).held == 2);
    bench.dispatcher->SetHold(Side::kNew, false);
    REQUIRE(received.WaitForCount(2));
    CHECK(offer("4", "a"));
    CHECK_FALSE(offer("5", "c"));
    CHECK_FALSE(offer("6", ""));
    CHECK_FALSE(bench.Offer("7", "a"));  // from the other side
    REQUIRE(received.WaitForCount(5));
    CHECK(received.Bodies() == std::vector<std::string>{"2", "3", "5", "6", "7"});
    bench.dispatcher->HoldKeys(Side::kNew, {}, 0);
    REQUIRE(received.WaitForCount(7));
    CHECK(received.Bodies()[5] == "1");
    CHECK(received.Bodies()[6] == "4");
}

TEST_CASE("what others of its key wait for is told, and how often it has failed") {
    Gate release;
    Gate inside;
    std::atomic<bool> fails{true};
    Counter begun;
    Bench bench{[&](Delivery delivery) {
                    begun.Add();
                    if (fails) throw std::runtime_error{"no"};
                    inside.Open();
                    release.Wait();
                    delivery.Ack();
                },
                {.concurrency = 1, .order = Order::kKey}};
    bench.Offer("first", "a");
    CHECK(bench.dispatcher->Blockers().empty());
    bench.Offer("behind", "a");
    bench.Offer("behind", "a");
    REQUIRE(begun.WaitFor(2));
    const auto blockers = bench.dispatcher->Blockers();
    REQUIRE(blockers.size() == 1);
    CHECK(blockers[0].side == Side::kOld);
    CHECK(blockers[0].arrival == 1);
    CHECK(blockers[0].waiting == 2);
    CHECK(blockers[0].attempts >= 1);
    fails = false;
    REQUIRE(inside.Wait());
    CHECK(bench.dispatcher->WaitingForHandlers() == 0);
    bench.Offer("another", "b");
    CHECK(bench.dispatcher->WaitingForHandlers() == 1);
    release.Open();
    CHECK(bench.dispatcher->WaitSettled(Side::kOld, After()));
    CHECK(bench.dispatcher->Blockers().empty());
}
