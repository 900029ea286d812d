/// @file dedup_test.cpp
/// Duplicate suppression: the window by itself, before a handler, and from client to client through
/// memory brokers, with and without a store that processes share.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include <mq/mq.hpp>
#include <mq/runtime/dedup_window.hpp>
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
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

using mq::Client;
using mq::DedupAnswer;
using mq::DedupKey;
using mq::Delivery;
using mq::Message;
using mq::Order;
using mq::Policy;
using mq::Side;
using mq::Subscription;
using mq::runtime::DedupClaim;
using mq::runtime::DedupLimits;
using mq::runtime::DedupWindow;
using mq::runtime::Dispatcher;
using mq::runtime::WorkerPool;
using mq::test::After;
using mq::test::Collector;
using mq::test::Counter;
using mq::test::DeliveryBox;
using mq::test::Gate;
using mq::test::kGlance;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;
using Answer = mq::runtime::DedupClaim::Answer;

namespace {

using Clock = mq::backend::Clock;

// A time that passes when the test says so. Thread-safe.
class TestClock {
public:
    void Pass(Clock::duration duration) { ticks_ += duration.count(); }
    [[nodiscard]] std::function<Clock::time_point()> Now() {
        return [this] { return Clock::time_point{Clock::duration{ticks_}}; };
    }

private:
    std::atomic<Clock::rep> ticks_{1};
};

// A store that several windows or clients share, in the memory of the test. Thread-safe. Locks held by
// the library while it is called would show as a deadlock: `during` may call back into the library.
class TestStore final : public mq::DedupStore {
public:
    DedupAnswer Claim(const DedupKey& key) override {
        Enter("claim", key);
        const std::lock_guard lock{mutex_};
        const std::string name = Name(key);
        if (handled_.count(name) > 0) return DedupAnswer::kHandled;
        const auto claim = claims_.try_emplace(name, key.client).first;
        return claim->second == key.client ? DedupAnswer::kHandle : DedupAnswer::kElsewhere;
    }

    void Complete(const DedupKey& key, milliseconds window) override {
        Enter("complete", key);
        const std::lock_guard lock{mutex_};
        handled_[Name(key)] = window;
        claims_.erase(Name(key));
    }

    void Abandon(const DedupKey& key) override {
        Enter("abandon", key);
        const std::lock_guard lock{mutex_};
        const auto claim = claims_.find(Name(key));
        if (claim != claims_.end() && claim->second == key.client) claims_.erase(claim);
    }

    /// The next `count` calls of that name throw.
    void Fail(const std::string& call, std::size_t count) {
        const std::lock_guard lock{mutex_};
        failures_[call] = count;
    }

    /// Called at the beginning of every call, with its name and no lock held.
    void During(std::function<void(const std::string&)> during) {
        const std::lock_guard lock{mutex_};
        during_ = std::move(during);
    }

    [[nodiscard]] std::vector<std::string> Calls() const {
        const std::lock_guard lock{mutex_};
        return calls_;
    }
    [[nodiscard]] std::size_t Count(const std::string& call) const {
        const auto calls = Calls();
        return static_cast<std::size_t>(std::count_if(
            calls.begin(), calls.end(), [&](const auto& made) { return made.starts_with(call); }));
    }
    [[nodiscard]] std::map<std::string, milliseconds> Handled() const {
        const std::lock_guard lock{mutex_};
        return handled_;
    }

private:
    static std::string Name(const DedupKey& key) {
        return std::string{key.topic} + "/" + std::string{key.group} + "/" + std::string{key.id};
    }

    void Enter(const std::string& call, const DedupKey& key) {
        std::function<void(const std::string&)> during;
        bool fails = false;
        {
            const std::lock_guard lock{mutex_};
            calls_.push_back(call + " " + Name(key));
            during = during_;
            fails = failures_[call] > 0 && failures_[call]-- > 0;
        }
        if (during) during(call);
        if (fails) throw std::runtime_error{"the store is away"};
    }

    mutable std::mutex mutex_;  // guards all that follows
    std::map<std::string, milliseconds> handled_;
    std::map<std::string, std::string> claims_;
    std::map<std::string, std::size_t> failures_;
    std::vector<std::string> calls_;
    std::function<void(const std::string&)> during_;
};

// ---- the window

struct WindowBench {
    explicit WindowBench(DedupLimits limits, std::shared_ptr<mq::DedupStore> store = {})
        : window(std::make_shared<DedupWindow>(DedupWindow::Options{.limits = limits,
                                                                    .topic = "orders",
                                                                    .group = "billing",
                                                                    .client = "c1",
                                                                    .store = std::move(store),
                                                                    .log = log.Sink(),
                                                                    .now = clock.Now()})) {}

    Answer Ask(DedupClaim& claim, const std::string& id) { return claim.Ask(window, id); }

    // What a message that comes now is answered; one that may be handled is handled.
    Answer Handle(const std::string& id) {
        DedupClaim claim;
        const Answer answer = Ask(claim, id);
        if (answer == Answer::kHandle) claim.Complete();
        return answer;
    }

    TestClock clock = {};
    mq::test::RecordingLog log = {};
    std::shared_ptr<DedupWindow> window;
};

}  // namespace

TEST_CASE("an id is remembered for the window from when it was handled, and no longer") {
    WindowBench bench{{.window = minutes{10}, .max = 100}};
    CHECK(bench.Handle("a") == Answer::kHandle);
    bench.clock.Pass(minutes{9});
    CHECK(bench.Handle("b") == Answer::kHandle);
    bench.clock.Pass(minutes{1} - milliseconds{1});
    // A copy that is seen does not begin the window anew.
    CHECK(bench.Handle("a") == Answer::kDuplicate);
    bench.clock.Pass(milliseconds{1});
    CHECK(bench.window->Size() == 1);
    CHECK(bench.Handle("a") == Answer::kHandle);
    CHECK(bench.Handle("b") == Answer::kDuplicate);
    bench.clock.Pass(minutes{10});
    CHECK(bench.window->Size() == 0);
    CHECK(bench.log.Lines().empty());
}

TEST_CASE(
    "no more ids are remembered than the count allows, the latest ones, and the log says so once") {
    WindowBench bench{{.window = minutes{10}, .max = 3}};
    for (const char* const id : {"a", "b", "c", "d", "e"}) {
        CHECK(bench.Handle(id) == Answer::kHandle);
        bench.clock.Pass(seconds{1});
    }
    CHECK(bench.window->Size() == 3);
    for (const char* const id : {"c", "d", "e"}) CHECK(bench.Handle(id) == Answer::kDuplicate);
    CHECK(bench.Handle("a") == Answer::kHandle);
    const auto lines = bench.log.Lines();
    REQUIRE(lines.size() == 1);
    CHECK(lines[0].first == mq::LogLevel::kWarning);
    CHECK(
        lines[0].second ==
        "topic orders, group billing: dedup_max = 3 messages reach back only 3s of the 10m that dedup "
        "asks for; older duplicates are handled again");
}

TEST_CASE("what is being handled counts neither as expired nor as too many") {
    WindowBench bench{{.window = seconds{1}, .max = 1}};
    DedupClaim first;
    REQUIRE(bench.Ask(first, "a") == Answer::kHandle);
    CHECK(bench.Handle("b") == Answer::kHandle);
    CHECK(bench.Handle("c") == Answer::kHandle);
    bench.clock.Pass(minutes{1});
    CHECK(bench.Handle("a") == Answer::kCopyAhead);
    first.Complete();
    CHECK(bench.Handle("a") == Answer::kDuplicate);
}

TEST_CASE("a claim that is dropped leaves the id as if it had never come") {
    WindowBench bench{{.window = minutes{10}, .max = 10}};
    {
        DedupClaim first;
        REQUIRE(bench.Ask(first, "a") == Answer::kHandle);
        DedupClaim moved{std::move(first)};
        // Its own, for another attempt.
        CHECK(bench.Ask(moved, "a") == Answer::kHandle);
        CHECK(bench.Handle("a") == Answer::kCopyAhead);
    }
    CHECK(bench.window->Size() == 0);
    CHECK(bench.Handle("a") == Answer::kHandle);
}

TEST_CASE("who waits for a copy is told when it ends, once, and at once where it has ended") {
    WindowBench bench{{.window = minutes{10}, .max = 10}};
    Counter told;
    {
        DedupClaim first;
        REQUIRE(bench.Ask(first, "a") == Answer::kHandle);
        // Each asks again: under a lock of the window it would never come back.
        bench.window->Await("a", [&] { told.Add(bench.window->Size() == 0 ? 1 : 100); });
        bench.window->Await("a", [&] { told.Add(); });
        CHECK(told.Value() == 0);
    }
    CHECK(told.Value() == 2);
    bench.window->Await("a", [&] { told.Add(); });
    CHECK(told.Value() == 3);
    REQUIRE(bench.Handle("a") == Answer::kHandle);
    bench.window->Await("a", [&] { told.Add(); });
    CHECK(told.Value() == 4);
}

TEST_CASE("a message without an id is never a duplicate") {
    WindowBench bench{{.window = minutes{10}, .max = 10}};
    CHECK(bench.Handle("") == Answer::kHandle);
    CHECK(bench.Handle("") == Answer::kHandle);
    CHECK(bench.window->Size() == 0);
}

TEST_CASE("other limits hold at once, also for what was handled before") {
    WindowBench bench{{.window = minutes{10}, .max = 10}};
    CHECK(bench.Handle("a") == Answer::kHandle);
    bench.clock.Pass(minutes{5});
    for (const char* const id : {"b", "c", "d"}) CHECK(bench.Handle(id) == Answer::kHandle);
    bench.window->Configure({.window = minutes{5}, .max = 10});
    CHECK(bench.window->Size() == 3);
    bench.window->Configure({.window = minutes{20}, .max = 2});
    CHECK(bench.window->Size() == 2);
    CHECK(bench.Handle("b") == Answer::kHandle);
    bench.clock.Pass(minutes{19});
    CHECK(bench.Handle("d") == Answer::kDuplicate);
}

// ---- before a handler

namespace {

// What became of one arrival. Outlives it.
struct Fate {
    Counter settled;
    Counter destroyed;
    std::atomic<bool> stale{false};
};

class FakeInbound final : public mq::backend::Inbound {
public:
    FakeInbound(Fate& fate, Message received) : fate_(fate) { message = std::move(received); }
    ~FakeInbound() override { fate_.destroyed.Add(); }

    void Settle() noexcept override { fate_.settled.Add(); }
    [[nodiscard]] bool Stale() const noexcept override { return fate_.stale; }

private:
    Fate& fate_;
};

// The subscriptions of one group on one topic.
struct Bench {
    explicit Bench(std::shared_ptr<mq::DedupStore> store = {},
                   DedupLimits limits = {.window = minutes{10}, .max = 1000})
        : window(MakeWindow("c1", std::move(store), limits)) {}

    ~Bench() {
        for (const auto& dispatcher : dispatchers) {
            dispatcher->Stop();
            dispatcher->WaitHandlers(After());
        }
    }

    // What another client has.
    std::shared_ptr<DedupWindow> MakeWindow(std::string client, std::shared_ptr<mq::DedupStore> store,
                                            DedupLimits limits = {.window = minutes{10}, .max = 1000}) {
        return std::make_shared<DedupWindow>(DedupWindow::Options{.limits = limits,
                                                                  .topic = "orders",
                                                                  .group = "billing",
                                                                  .client = std::move(client),
                                                                  .store = std::move(store),
                                                                  .log = log.Sink(),
                                                                  .now = clock.Now()});
    }

    Dispatcher& Subscribe(Dispatcher::Handler handler, Dispatcher::Options options = {}) {
        options.name = "topic orders, group billing";
        options.log = log.Sink();
        dispatchers.push_back(
            std::make_shared<Dispatcher>(pool, std::move(handler), std::move(options)));
        dispatchers.back()->SetDedup(window);
        return *dispatchers.back();
    }

    static bool Offer(Dispatcher& to, Fate& fate, std::string id, std::string key = {},
                      Side side = Side::kOld, std::string body = {}) {
        return to.Offer(side, std::make_unique<FakeInbound>(
                                  fate, Message{.body = body.empty() ? id : std::move(body),
                                                .key = std::move(key),
                                                .id = id}));
    }

    TestClock clock = {};
    mq::test::RecordingLog log = {};
    WorkerPool pool{8};
    std::shared_ptr<DedupWindow> window;
    std::vector<std::shared_ptr<Dispatcher>> dispatchers = {};
};

// A handler that records and settles.
Dispatcher::Handler Into(Collector& received) {
    return [&received](Delivery delivery) {
        received.Add(delivery.message());
        delivery.Ack();
    };
}

}  // namespace

TEST_CASE("a message that was handled is settled without the handler, counted by its side") {
    Fate first;
    Fate copy;
    Fate late;
    Collector received;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(Into(received));
    Bench::Offer(dispatcher, first, "a");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    Bench::Offer(dispatcher, copy, "a", {}, Side::kNew);
    REQUIRE(dispatcher.WaitSettled(Side::kNew, After()));
    CHECK(received.Count() == 1);
    CHECK(copy.settled.Value() == 1);
    CHECK(copy.destroyed.Value() == 1);
    CHECK(dispatcher.Counts(Side::kOld).duplicates == 0);
    CHECK(dispatcher.Counts(Side::kNew).duplicates == 1);
    CHECK(dispatcher.Counts(Side::kNew).processed == 1);

    bench.clock.Pass(minutes{10});
    Bench::Offer(dispatcher, late, "a", {}, Side::kNew);
    REQUIRE(dispatcher.WaitSettled(Side::kNew, After()));
    CHECK(received.Count() == 2);
    CHECK(dispatcher.Counts(Side::kNew).duplicates == 1);
}

TEST_CASE("without a window every copy is handled") {
    Fate fate;
    Collector received;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(Into(received));
    dispatcher.SetDedup({});
    for (int i = 0; i < 3; ++i) Bench::Offer(dispatcher, fate, "a");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(received.Count() == 3);
    CHECK(bench.window->Size() == 0);
}

TEST_CASE(
    "a copy waits while the first is handled, also in another subscription, and is settled then") {
    Fate first;
    Fate copy;
    Fate copy_there;
    Fate another;
    DeliveryBox box;
    DeliveryBox there;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(box.Handler(), {.concurrency = 4});
    Dispatcher& second = bench.Subscribe(there.Handler());
    Bench::Offer(dispatcher, first, "a");
    REQUIRE(box.WaitForCount(1));
    Bench::Offer(dispatcher, copy, "a");
    Bench::Offer(second, copy_there, "a");
    // Those who wait hold up no other message.
    Bench::Offer(dispatcher, another, "b");
    Bench::Offer(second, another, "c");
    REQUIRE(box.WaitForCount(2));
    REQUIRE(there.WaitForCount(1));
    CHECK_FALSE(box.WaitForCount(3, kGlance));
    CHECK(copy.settled.Value() == 0);
    CHECK(copy_there.settled.Value() == 0);
    CHECK(dispatcher.Counts(Side::kOld).outstanding == 3);
    CHECK(second.Counts(Side::kOld).outstanding == 2);

    for (Delivery& delivery : box.Take()) delivery.Ack();
    for (Delivery& delivery : there.Take()) delivery.Ack();
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    REQUIRE(second.WaitSettled(Side::kOld, After()));
    CHECK(copy.settled.Value() == 1);
    CHECK(copy_there.settled.Value() == 1);
    CHECK(dispatcher.Counts(Side::kOld).duplicates == 1);
    CHECK(second.Counts(Side::kOld).duplicates == 1);
    CHECK(box.Count() + there.Count() == 0);
}

TEST_CASE("a message that is nacked or thrown is handled again, and its copy only when that succeeds") {
    Fate first;
    Fate copy;
    Counter calls;
    Gate copied;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe([&](Delivery delivery) {
        copied.Wait();
        const std::size_t call = calls.Add();
        if (call == 1) return delivery.Nack();
        if (call == 2) throw std::runtime_error{"not yet"};
        if (copy.settled.Value() > 0) calls.Add(100);
        delivery.Ack();
    });
    Bench::Offer(dispatcher, first, "a", {}, Side::kOld, "the first");
    Bench::Offer(dispatcher, copy, "a", {}, Side::kNew, "the copy");
    copied.Open();
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    REQUIRE(dispatcher.WaitSettled(Side::kNew, After()));
    CHECK(calls.Value() == 3);
    CHECK(first.settled.Value() == 1);
    CHECK(copy.settled.Value() == 1);
    CHECK(dispatcher.Counts(Side::kNew).duplicates == 1);
}

TEST_CASE("a copy takes the place of one that is given back while it waits for another attempt") {
    Fate first;
    Fate copy;
    DeliveryBox box;
    Collector received;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe([&](Delivery delivery) {
        if (delivery.message().body == "the first") return box.Put(std::move(delivery));
        received.Add(delivery.message());
        delivery.Ack();
    });
    Bench::Offer(dispatcher, first, "a", {}, Side::kOld, "the first");
    REQUIRE(box.WaitForCount(1));
    Bench::Offer(dispatcher, copy, "a", {}, Side::kNew, "the copy");
    CHECK_FALSE(received.WaitForCount(1, kGlance));
    // The next attempt may come before the drop: then once more, with a longer delay.
    const auto deadline = After();
    while (dispatcher.Counts(Side::kOld).outstanding > 0) {
        REQUIRE(Clock::now() < deadline);
        box.WaitForCount(1, milliseconds{1});
        for (Delivery& delivery : box.Take()) delivery.Nack();
        dispatcher.DropSide(Side::kOld);
    }
    REQUIRE(received.WaitForCount(1));
    REQUIRE(dispatcher.WaitSettled(Side::kNew, After()));
    CHECK(first.settled.Value() == 0);
    CHECK(first.destroyed.Value() == 1);
    CHECK(dispatcher.Counts(Side::kNew).duplicates == 0);
}

TEST_CASE("a copy in another subscription takes the place of one whose subscription ends") {
    Fate first;
    Fate copy;
    DeliveryBox box;
    Collector received;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(box.Handler());
    Dispatcher& second = bench.Subscribe(Into(received));
    Bench::Offer(dispatcher, first, "a");
    REQUIRE(box.WaitForCount(1));
    Bench::Offer(second, copy, "a");
    dispatcher.Stop();
    // Still in the hands of business code, which may yet settle it.
    CHECK_FALSE(received.WaitForCount(1, kGlance));
    box.Take().clear();
    REQUIRE(received.WaitForCount(1));
    CHECK(first.settled.Value() == 0);
    CHECK(first.destroyed.Value() == 1);
}

TEST_CASE("a copy that waits is given back when its side is dropped, and wakes nobody up later") {
    Fate first;
    Fate copy;
    DeliveryBox box;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(box.Handler(), {.concurrency = 2});
    Bench::Offer(dispatcher, first, "a");
    REQUIRE(box.WaitForCount(1));
    Bench::Offer(dispatcher, copy, "a", {}, Side::kNew);
    CHECK_FALSE(box.WaitForCount(2, kGlance));
    dispatcher.DropSide(Side::kNew);
    CHECK(copy.destroyed.Value() == 1);
    CHECK(copy.settled.Value() == 0);
    CHECK(dispatcher.Counts(Side::kNew).outstanding == 0);
    for (Delivery& delivery : box.Take()) delivery.Ack();
    CHECK(first.settled.Value() == 1);
    CHECK(dispatcher.Counts(Side::kOld).outstanding == 0);
}

TEST_CASE(
    "what comes again while its stale first is handled is suppressed, and settled at the broker") {
    Fate first;
    Fate again;
    DeliveryBox box;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(box.Handler(), {.concurrency = 2});
    Bench::Offer(dispatcher, first, "a");
    REQUIRE(box.WaitForCount(1));
    first.stale = true;
    dispatcher.DropStale();
    Bench::Offer(dispatcher, again, "a");
    CHECK_FALSE(box.WaitForCount(2, kGlance));
    for (Delivery& delivery : box.Take()) delivery.Ack();
    REQUIRE(again.settled.WaitFor(1));
    CHECK(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(box.Count() == 0);
    CHECK(dispatcher.Counts(Side::kOld).duplicates == 1);
}

TEST_CASE("what comes again is handled where its stale first was not") {
    Fate first;
    Fate again;
    DeliveryBox box;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(box.Handler());
    Bench::Offer(dispatcher, first, "a");
    REQUIRE(box.WaitForCount(1));
    Bench::Offer(dispatcher, again, "a");
    CHECK_FALSE(box.WaitForCount(2, kGlance));
    first.stale = true;
    box.Take().clear();
    REQUIRE(box.WaitForCount(1));
    for (Delivery& delivery : box.Take()) delivery.Ack();
    CHECK(first.settled.Value() == 0);
    CHECK(again.settled.Value() == 1);
    CHECK(dispatcher.Counts(Side::kOld).duplicates == 0);
}

TEST_CASE("with an order, duplicates in a lane keep the order and let the lane go on") {
    Fate fate;
    Collector received;
    Gate begin;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(
        [&](Delivery delivery) {
            begin.Wait();
            received.Add(delivery.message());
            delivery.Ack();
        },
        {.concurrency = 4, .order = Order::kKey});
    for (const char* const id : {"1", "2", "1", "3", "2", "1", "4", "4", "5"}) {
        Bench::Offer(dispatcher, fate, id, "k");
    }
    begin.Open();
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(received.Bodies() == std::vector<std::string>{"1", "2", "3", "4", "5"});
    CHECK(dispatcher.Counts(Side::kOld).duplicates == 4);
    CHECK(fate.settled.Value() == 9);
}

TEST_CASE(
    "with an order, a copy that waits at the head of a lane keeps it, until the first has ended") {
    Fate first;
    Fate copy;
    Fate behind;
    DeliveryBox box;
    Collector received;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(box.Handler());
    Dispatcher& ordered = bench.Subscribe(Into(received), {.order = Order::kKey});
    Bench::Offer(dispatcher, first, "a", "k");
    REQUIRE(box.WaitForCount(1));
    Bench::Offer(ordered, copy, "a", "k");
    Bench::Offer(ordered, behind, "b", "k");
    CHECK_FALSE(received.WaitForCount(1, kGlance));
    for (Delivery& delivery : box.Take()) delivery.Ack();
    REQUIRE(ordered.WaitSettled(Side::kOld, After()));
    CHECK(received.Bodies() == std::vector<std::string>{"b"});
    CHECK(copy.settled.Value() == 1);
}

TEST_CASE("a copy waits for none that is held: the held one is the duplicate then") {
    Fate held;
    Fate other;
    Collector received;
    Bench bench;
    Dispatcher& dispatcher = bench.Subscribe(Into(received), {.order = Order::kKey});
    dispatcher.SetHold(Side::kNew, true);
    Bench::Offer(dispatcher, held, "a", "k", Side::kNew, "held");
    Bench::Offer(dispatcher, other, "a", "k", Side::kOld, "other");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(held.settled.Value() == 0);
    dispatcher.SetHold(Side::kNew, false);
    REQUIRE(dispatcher.WaitSettled(Side::kNew, After()));
    CHECK(received.Bodies() == std::vector<std::string>{"other"});
    CHECK(dispatcher.Counts(Side::kNew).duplicates == 1);
}

TEST_CASE("random copies, failures and losses over two subscriptions: each id succeeds once") {
    constexpr std::size_t kIds = 150;
    constexpr std::size_t kCopies = 6;
    std::mutex mutex;
    std::mt19937 random{2024};                  // guarded by mutex
    std::map<std::string, std::size_t> inside;  // by id; guarded by mutex
    std::map<std::string, std::size_t> done;    // by id; guarded by mutex
    std::size_t overlaps = 0;                   // guarded by mutex
    Fate fate;
    Bench bench;
    const auto handler = [&](Delivery delivery) {
        const std::string id = delivery.message().id;
        bool fails = false;
        {
            const std::lock_guard lock{mutex};
            if (++inside[id] > 1) ++overlaps;
            fails = random() % 5 == 0;
        }
        std::this_thread::yield();
        const std::lock_guard lock{mutex};
        --inside[id];
        if (fails) throw std::runtime_error{"by chance"};
        ++done[id];
        delivery.Ack();
    };
    Dispatcher& free = bench.Subscribe(handler, {.concurrency = 4});
    Dispatcher& ordered = bench.Subscribe(handler, {.concurrency = 4, .order = Order::kKey});
    for (std::size_t copy = 0; copy < kCopies; ++copy) {
        for (std::size_t i = 0; i < kIds; ++i) {
            const std::string id = std::to_string((i * 7 + copy) % kIds);
            Bench::Offer(copy % 2 == 0 ? free : ordered, fate, id, "key " + std::to_string(i % 5),
                         copy % 3 == 0 ? Side::kOld : Side::kNew);
        }
    }
    for (const Side side : {Side::kOld, Side::kNew}) {
        REQUIRE(free.WaitSettled(side, After()));
        REQUIRE(ordered.WaitSettled(side, After()));
    }
    const std::lock_guard lock{mutex};
    CHECK(overlaps == 0);
    CHECK(done.size() == kIds);
    for (const auto& [id, times] : done) CHECK(times == 1);
    CHECK(fate.settled.Value() == kIds * kCopies);
    std::uint64_t duplicates = 0;
    for (const Side side : {Side::kOld, Side::kNew}) {
        duplicates += free.Counts(side).duplicates + ordered.Counts(side).duplicates;
    }
    CHECK(duplicates == kIds * (kCopies - 1));
}

// ---- with a store

TEST_CASE("a store is asked before the handler and told before the broker, with no lock held") {
    Fate fate;
    Fate copy;
    Counter calls;
    std::atomic<bool> not_claimed{false};
    const auto store = std::make_shared<TestStore>();
    Bench bench{store};
    Dispatcher& dispatcher = bench.Subscribe([&](Delivery delivery) {
        if (store->Count("claim") != calls.Value() + 1) not_claimed = true;
        if (calls.Add() == 1) throw std::runtime_error{"again"};
        delivery.Ack();
    });
    std::atomic<bool> told_after{false};
    store->During([&](const std::string& call) {
        // Under a lock of either, these would never return.
        (void)dispatcher.Counts(Side::kOld);
        (void)bench.window->Size();
        if (call == "complete" && fate.settled.Value() > 0) told_after = true;
    });
    Bench::Offer(dispatcher, fate, "a");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(store->Calls() ==
          std::vector<std::string>{"claim orders/billing/a", "abandon orders/billing/a",
                                   "claim orders/billing/a", "complete orders/billing/a"});
    CHECK(store->Handled() ==
          std::map<std::string, milliseconds>{{"orders/billing/a", milliseconds{minutes{10}}}});
    CHECK_FALSE(not_claimed);
    CHECK_FALSE(told_after);
    // What the client remembers by itself is not asked again.
    Bench::Offer(dispatcher, copy, "a");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(copy.settled.Value() == 1);
    CHECK(store->Calls().size() == 4);
    CHECK(calls.Value() == 2);
}

TEST_CASE("what another client has handled is settled without the handler, and what it handles waits") {
    Fate here;
    Fate there;
    Fate late;
    DeliveryBox box;
    Collector received;
    const auto store = std::make_shared<TestStore>();
    Bench bench{store};
    Dispatcher& one = bench.Subscribe(box.Handler());
    Dispatcher& other = bench.Subscribe(Into(received), {.order = Order::kKey});
    other.SetDedup(bench.MakeWindow("c2", store));
    Bench::Offer(one, here, "a", "k");
    REQUIRE(box.WaitForCount(1));
    Bench::Offer(other, there, "a", "k");
    Bench::Offer(other, there, "b", "k");
    CHECK_FALSE(received.WaitForCount(1, kGlance));
    CHECK(there.settled.Value() == 0);
    for (Delivery& delivery : box.Take()) delivery.Ack();
    REQUIRE(other.WaitSettled(Side::kOld, After()));
    CHECK(received.Bodies() == std::vector<std::string>{"b"});
    CHECK(other.Counts(Side::kOld).duplicates == 1);
    Bench::Offer(other, late, "a", "k");
    REQUIRE(other.WaitSettled(Side::kOld, After()));
    CHECK(received.Count() == 1);
    CHECK(late.settled.Value() == 1);
}

TEST_CASE("between two attempts another client may handle the message, and the first then settles it") {
    Fate here;
    Fate there;
    DeliveryBox box;
    Collector received;
    const auto store = std::make_shared<TestStore>();
    Bench bench{store};
    Dispatcher& one = bench.Subscribe(box.Handler());
    Dispatcher& other = bench.Subscribe(Into(received));
    other.SetDedup(bench.MakeWindow("c2", store));
    Bench::Offer(one, here, "a");
    REQUIRE(box.WaitForCount(1));
    Bench::Offer(other, there, "a");
    CHECK_FALSE(received.WaitForCount(1, kGlance));
    const auto deadline = After();
    while (received.Count() == 0) {
        REQUIRE(Clock::now() < deadline);
        for (Delivery& delivery : box.Take()) delivery.Nack();
        received.WaitForCount(1, milliseconds{1});
    }
    REQUIRE(one.WaitSettled(Side::kOld, After()));
    CHECK(here.settled.Value() == 1);
    CHECK(one.Counts(Side::kOld).duplicates == 1);
}

TEST_CASE(
    "a store that fails to claim has the message wait, and it is handled when the store is back") {
    Fate fate;
    Fate copy;
    Collector received;
    const auto store = std::make_shared<TestStore>();
    Bench bench{store};
    store->Fail("claim", 2);
    Dispatcher& dispatcher = bench.Subscribe(Into(received));
    Bench::Offer(dispatcher, fate, "a");
    Bench::Offer(dispatcher, copy, "a");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(received.Count() == 1);
    CHECK_FALSE(received.Messages()[0].redelivered);
    CHECK(fate.settled.Value() == 1);
    CHECK(copy.settled.Value() == 1);
    CHECK(store->Count("claim") == 3);
    const auto lines = bench.log.Lines();
    REQUIRE(lines.size() == 2);
    CHECK(lines[0].first == mq::LogLevel::kWarning);
    CHECK(
        lines[0].second ==
        "topic orders, group billing: the store of handled messages failed for message a, which waits "
        "until the store answers: the store is away");
}

TEST_CASE("a store that fails to learn of a handled message does not have it handled again here") {
    Fate fate;
    Fate copy;
    Collector received;
    const auto store = std::make_shared<TestStore>();
    Bench bench{store};
    store->Fail("complete", 1);
    Dispatcher& dispatcher = bench.Subscribe(Into(received));
    Bench::Offer(dispatcher, fate, "a");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    Bench::Offer(dispatcher, copy, "a");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(received.Count() == 1);
    CHECK(fate.settled.Value() == 1);
    CHECK(copy.settled.Value() == 1);
    CHECK(bench.log.Lines().size() == 1);
}

TEST_CASE("a store that fails to give up a claim does not keep the message from its next attempt") {
    Fate fate;
    Counter calls;
    const auto store = std::make_shared<TestStore>();
    Bench bench{store};
    store->Fail("abandon", 1);
    Dispatcher& dispatcher = bench.Subscribe([&](Delivery delivery) {
        if (calls.Add() == 1) return;
        delivery.Ack();
    });
    Bench::Offer(dispatcher, fate, "a");
    REQUIRE(dispatcher.WaitSettled(Side::kOld, After()));
    CHECK(calls.Value() == 2);
    CHECK(bench.log.Lines().size() == 1);
}

// ---- from client to client

namespace {

// Two brokers that no other test uses, and a topic that moves between them.
struct ClientBench {
    ClientBench() {
        config.client.group = "billing";
        config.brokers["legacy"].url = "memory://" + legacy.name();
        config.brokers["next"].url = "memory://" + next.name();
        config.topics["orders"] = {.old_broker = "legacy",
                                   .new_broker = "next",
                                   .policy = Policy::kDualSubscribe,
                                   .quiet = milliseconds{50},
                                   .dedup = minutes{10}};
    }

    std::unique_ptr<Client> Start(std::shared_ptr<mq::DedupStore> store = {}) {
        return std::make_unique<Client>(
            config, mq::ClientOptions{.log = log.Sink(), .dedup_store = std::move(store)});
    }

    // Waits until the group has settled that many messages of a broker.
    static bool WaitSettled(mq::memory::Broker& broker, std::uint64_t count) {
        return broker.WaitUntil([&] { return broker.Settled("orders", "billing") >= count; }, After());
    }

    // The duplicates of both sides, when nothing is left unsettled: a message is counted a moment after
    // the broker has learned of its end.
    static std::uint64_t Duplicates(const Client& client) {
        const Counter never;
        const auto deadline = After();
        while (true) {
            const mq::TopicStatus status = client.Status("orders");
            const bool settled = status.old_side.unsettled + status.new_side.unsettled == 0;
            if (settled || Clock::now() >= deadline) {
                return status.old_side.duplicates + status.new_side.duplicates;
            }
            never.WaitFor(1, milliseconds{1});
        }
    }

    mq::memory::Broker& legacy = mq::memory::Broker::Find(mq::test::UniqueId("legacy"));
    mq::memory::Broker& next = mq::memory::Broker::Find(mq::test::UniqueId("next"));
    mq::Config config = {};
    mq::test::RecordingLog log = {};
};

}  // namespace

TEST_CASE("a send that is repeated after a lost confirm is handled once") {
    for (const bool on : {true, false}) {
        INFO("dedup " << on);
        Collector received;
        mq::test::SendLog sends;
        ClientBench bench;
        if (!on) bench.config.topics["orders"].dedup = {};
        const auto client = bench.Start();
        const Subscription subscription = client->RecvMsg("orders", received.Handler());
        bench.legacy.LoseConfirms(1);
        client->SendMsg("orders", "once", sends.Callback());
        REQUIRE(ClientBench::WaitSettled(bench.legacy, 1));
        bench.legacy.Stop();
        bench.legacy.Start();
        REQUIRE(sends.WaitForCount(1));
        CHECK(sends.Failures().empty());
        REQUIRE(bench.legacy.Messages("orders").size() == 2);
        REQUIRE(ClientBench::WaitSettled(bench.legacy, 2));
        CHECK(received.Count() == (on ? 1u : 2u));
        CHECK(ClientBench::Duplicates(*client) == (on ? 1u : 0u));
    }
}

TEST_CASE("a message that comes by both sides is handled once, by each group") {
    Collector billing;
    Collector audit;
    ClientBench bench;
    const auto client = bench.Start();
    const Subscription first = client->RecvMsg("orders", billing.Handler());
    const Subscription second = client->RecvMsg("orders", billing.Handler());
    const Subscription other = client->RecvMsg("orders", audit.Handler(), {.group = "audit"});
    for (const char* const id : {"1", "2", "3"}) client->SendMsg("orders", Message{.id = id});
    REQUIRE(billing.WaitForCount(3));
    client->SetPolicy("orders", Policy::kNewPublish);
    const auto deadline = After();
    while (client->Status("orders").stage != Policy::kNewPublish) {
        REQUIRE(Clock::now() < deadline);
        // Nothing tells of a rung: looked at again and again, with a pause.
        billing.WaitForCount(4, milliseconds{2});
    }
    for (const char* const id : {"1", "2", "3", "4"}) client->SendMsg("orders", Message{.id = id});
    REQUIRE(billing.WaitForIds({"4"}));
    REQUIRE(audit.WaitForIds({"4"}));
    for (const char* const group : {"billing", "audit"}) {
        REQUIRE(bench.next.WaitUntil(
            [&] { return bench.next.Backlog("orders", group) == mq::memory::Depth{}; }, After()));
    }
    CHECK(billing.Repeated() == std::vector<std::string>{});
    CHECK(audit.Repeated() == std::vector<std::string>{});
    CHECK(ClientBench::Duplicates(*client) == 6);
    CHECK(client->Status("orders").new_side.duplicates == 6);
}

TEST_CASE("what a broker delivers again after a restart is settled when the first has been handled") {
    DeliveryBox box;
    ClientBench bench;
    const auto client = bench.Start();
    Subscription subscription = client->RecvMsg("orders", box.Handler());
    client->SendMsg("orders", "once");
    REQUIRE(box.WaitForCount(1));
    bench.legacy.Stop();
    bench.legacy.Start();
    REQUIRE(bench.legacy.WaitUntil([&] { return bench.legacy.Total().delivered == 2; }, After()));
    for (Delivery& delivery : box.Take()) delivery.Ack();
    REQUIRE(ClientBench::WaitSettled(bench.legacy, 1));
    CHECK(box.Count() == 0);
    CHECK(ClientBench::Duplicates(*client) == 1);
    // What a closed subscription has done still counts.
    subscription.Close();
    CHECK(ClientBench::Duplicates(*client) == 1);
}

TEST_CASE("a subscription that follows another of its group knows what that has handled") {
    Collector received;
    ClientBench bench;
    const auto client = bench.Start();
    Subscription subscription = client->RecvMsg("orders", received.Handler());
    client->SendMsg("orders", Message{.id = "a"});
    REQUIRE(ClientBench::WaitSettled(bench.legacy, 1));
    subscription.Close();
    client->SendMsg("orders", Message{.id = "a"});
    subscription = client->RecvMsg("orders", received.Handler());
    REQUIRE(ClientBench::WaitSettled(bench.legacy, 2));
    CHECK(received.Count() == 1);
}

TEST_CASE("clients of a group share what they have handled through a store, and only through one") {
    for (const bool shared : {true, false}) {
        INFO("shared " << shared);
        Collector received;
        ClientBench bench;
        const auto store = shared ? std::make_shared<TestStore>() : nullptr;
        const auto first = bench.Start(store);
        const auto second = bench.Start(store);
        Subscription subscription = first->RecvMsg("orders", received.Handler());
        first->SendMsg("orders", Message{.id = "a"});
        REQUIRE(ClientBench::WaitSettled(bench.legacy, 1));
        subscription = second->RecvMsg("orders", received.Handler());
        first->SendMsg("orders", Message{.id = "a"});
        REQUIRE(ClientBench::WaitSettled(bench.legacy, 2));
        CHECK(received.Count() == (shared ? 1u : 2u));
        CHECK(ClientBench::Duplicates(*second) == (shared ? 1u : 0u));
        if (!shared) continue;
        CHECK(store->Handled() ==
              std::map<std::string, milliseconds>{{"orders/billing/a", milliseconds{minutes{10}}}});
    }
}

TEST_CASE("a message that its handler sends on to the same topic is another message") {
    ClientBench bench;
    std::unique_ptr<Client> client;
    Counter handled;
    DeliveryBox box;
    const auto next_body = [](const Message& message) { return message.body + "+"; };
    constexpr std::size_t kRounds = 4;
    SECTION("as a copy of what it received") {
        client = bench.Start();
        const Subscription subscription = client->RecvMsg("orders", [&](const Message& message) {
            if (handled.Add() == kRounds) return;
            Message next = message;
            next.body = next_body(message);
            client->SendMsg("orders", std::move(next));
        });
        client->SendMsg("orders", Message{.body = "a", .id = "a"});
        CHECK(handled.WaitFor(kRounds));
    }
    SECTION("as it is, again and again, with an id that does not grow without end") {
        client = bench.Start();
        std::vector<std::string> ids;
        const Subscription subscription = client->RecvMsg("orders", [&](const Message& message) {
            ids.push_back(message.id);
            if (ids.size() < kRounds) client->SendMsg("orders", message);
            handled.Add();
        });
        client->SendMsg("orders", Message{.id = std::string(200, 'x')});
        REQUIRE(handled.WaitFor(kRounds));
        std::sort(ids.begin(), ids.end());
        CHECK(std::unique(ids.begin(), ids.end()) == ids.end());
        for (const std::string& id : ids) CHECK((id.size() == 200 || id.size() < 80));
    }
    SECTION("as a new one with the same id") {
        client = bench.Start();
        const Subscription subscription = client->RecvMsg("orders", [&](const Message& message) {
            if (handled.Add() < kRounds) client->SendMsg("orders", Message{.id = message.id});
        });
        client->SendMsg("orders", Message{.id = "a"});
        CHECK(handled.WaitFor(kRounds));
    }
    SECTION("on another thread, after the handler has returned") {
        client = bench.Start();
        const Subscription subscription = client->RecvMsg("orders", box.Handler());
        client->SendMsg("orders", Message{.id = "a"});
        REQUIRE(box.WaitForCount(1));
        auto deliveries = box.Take();
        const Message message = deliveries.front().message();
        deliveries.front().Ack();
        client->SendMsg("orders", message);
        CHECK(box.WaitForCount(1));
        box.Take().front().Ack();
    }
    client.reset();
}

TEST_CASE("what a handler has sent on before it threw is not sent on twice") {
    ClientBench bench;
    const auto client = bench.Start();
    Counter first;
    Counter second;
    const Subscription subscription = client->RecvMsg("orders", [&](const Message& message) {
        if (message.body == "second") {
            second.Add();
            return;
        }
        Message next = message;
        next.body = "second";
        client->SendMsg("orders", std::move(next));
        if (first.Add() == 1) throw std::runtime_error{"not yet"};
    });
    client->SendMsg("orders", Message{.body = "first", .id = "a"});
    REQUIRE(first.WaitFor(2));
    REQUIRE(ClientBench::WaitSettled(bench.legacy, 3));
    CHECK(second.Value() == 1);
}

TEST_CASE(
    "a message that is sent again with its own id stays the same one, and so does one sent elsewhere") {
    ClientBench bench;
    bench.config.topics["copies"] = bench.config.topics["orders"];
    const auto client = bench.Start();
    Collector copies;
    Counter handled;
    const Subscription to = client->RecvMsg("copies", copies.Handler());
    const Subscription from = client->RecvMsg("orders", [&](const Message& message) {
        client->SendMsg("copies", message);
        handled.Add();
    });
    client->SendMsg("orders", Message{.id = "a"});
    client->SendMsg("orders", Message{.id = "a"});
    REQUIRE(ClientBench::WaitSettled(bench.legacy, 2));
    CHECK(handled.Value() == 1);
    CHECK(copies.WaitForCount(1));
    CHECK(copies.Times("a") == 1);
}

TEST_CASE("a reload switches dedup on and off and changes its limits while messages come") {
    Collector received;
    ClientBench bench;
    bench.config.topics["orders"].dedup = {};
    const auto client = bench.Start();
    const Subscription subscription = client->RecvMsg("orders", received.Handler());
    std::uint64_t sent = 0;
    const auto send = [&](const std::string& id) {
        client->SendMsg("orders", Message{.id = id});
        REQUIRE(ClientBench::WaitSettled(bench.legacy, ++sent));
        return received.Times(id);
    };
    const auto reload = [&](milliseconds dedup, std::size_t max) {
        bench.config.topics["orders"].dedup = dedup;
        bench.config.topics["orders"].dedup_max = max;
        client->Reload(bench.config);
    };
    CHECK(send("a") == 1);
    CHECK(send("a") == 2);
    reload(minutes{10}, 100);
    CHECK(send("a") == 3);
    CHECK(send("a") == 3);
    CHECK(send("b") == 1);
    reload(minutes{5}, 1);
    CHECK(send("b") == 1);
    CHECK(send("a") == 4);
    reload(milliseconds{0}, 1);
    CHECK(send("a") == 5);
    reload(minutes{10}, 100);
    CHECK(send("a") == 6);
    CHECK(send("a") == 6);
    CHECK(ClientBench::Duplicates(*client) == 3);
}

TEST_CASE("a delivery that outlives its client ends its claim without harm") {
    DeliveryBox box;
    const auto store = std::make_shared<TestStore>();
    ClientBench bench;
    auto client = bench.Start(store);
    Subscription subscription = client->RecvMsg("orders", box.Handler());
    client->SendMsg("orders", "late");
    client->SendMsg("orders", "later");
    REQUIRE(box.WaitForCount(2));
    client.reset();
    auto deliveries = box.Take();
    deliveries[0].Ack();
    deliveries.clear();
    CHECK(store->Count("complete") == 1);
    CHECK(store->Count("abandon") == 1);
}
