/// @file memory_test.cpp
/// The broker within the process: what it promises the layers above as every adapter does, and what a
/// test can do to it.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include <mq/backends/memory.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using mq::ErrorCode;
using mq::Outcome;
using mq::backend::Clock;
using mq::memory::Broker;
using mq::memory::Depth;
using mq::test::After;
using mq::test::MakeDestination;
using mq::test::MakeMessage;
using mq::test::MakePublication;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using mq::test::RecordingSink;
using Answer = mq::backend::Listening::Answer;
using Left = mq::backend::Backlog::Answer;
using Phase = mq::backend::ConsumerState::Phase;
using Bodies = std::vector<std::string>;
using Options = std::map<std::string, std::string>;

// A deadline that a test waits for: far enough for a message to reach the broker before, also on a
// loaded machine under a sanitizer.
constexpr std::chrono::milliseconds kShort{500};

bool Has(const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
}

// A broker that no other test uses, and one client of it.
class Fixture {
public:
    explicit Fixture(const Options& options = {}) : Fixture(mq::test::UniqueId("memory"), options) {}

    Fixture(const std::string& name, const Options& options)
        : broker(Broker::Find(name)),
          backend(mq::test::MakeBackend("memory://" + name, sink, options)),
          publisher(backend->MakePublisher(topic)) {}

    void Publish(std::string body, std::string key = {},
                 std::chrono::milliseconds timeout = mq::test::kPatience) const {
        publisher->Publish(MakePublication(std::move(body), std::move(key), timeout));
    }

    void PublishNumbers(int first, int last, const std::string& key = {}) const {
        for (int i = first; i <= last; ++i) Publish(std::to_string(i), key);
    }

    std::unique_ptr<mq::backend::Consumer> Subscribe(std::shared_ptr<RecordingReceiver> receiver,
                                                     const std::string& group = "g",
                                                     std::size_t prefetch = 100) const {
        return backend->Subscribe({.destination = topic, .group = group, .prefetch = prefetch},
                                  std::move(receiver));
    }

    // Waits until the group has that much left.
    bool WaitForDepth(Depth depth, const std::string& group = "g") const {
        return broker.WaitUntil([&] { return broker.Backlog("t", group) == depth; }, After());
    }

    std::shared_ptr<const mq::backend::Destination> topic = MakeDestination("orders", "t");
    RecordingSink sink = {};
    Broker& broker;
    std::unique_ptr<mq::backend::Backend> backend;
    std::unique_ptr<mq::backend::Publisher> publisher;
};

Bodies Numbers(int first, int last) {
    Bodies numbers;
    for (int i = first; i <= last; ++i) numbers.push_back(std::to_string(i));
    return numbers;
}

Bodies StoredBodies(Broker& broker) {
    Bodies bodies;
    for (const auto& stored : broker.Messages("t")) bodies.push_back(stored.message.body);
    return bodies;
}

auto MakeReceiver(Receive receive = Receive::kSettle) {
    return std::make_shared<RecordingReceiver>(receive);
}

std::vector<mq::ConfigProblem> CheckUrl(const std::string& url, const Options& options = {}) {
    const auto kind = mq::backend::Registry::Instance().Find("memory");
    REQUIRE(kind.has_value());
    return kind->check(mq::ParseUrl(url), options);
}

}  // namespace

TEST_CASE("memory: a message arrives as it was sent") {
    Fixture f;
    mq::Message sent = MakeMessage(std::string("\0\xff body", 7), "customer-42");
    sent.headers = {{"kind", "new"}, {"kind", ""}, {"", "odd"}};
    sent.content_type = "text/plain";
    sent.correlation_id = "c";
    sent.reply_to = "answers";
    f.publisher->Publish(MakePublication(sent));
    REQUIRE(f.sink.WaitForConfirmed(1));
    CHECK(f.sink.At(0).message.id == sent.id);

    const auto receiver = MakeReceiver();
    const auto consumer = f.Subscribe(receiver);
    REQUIRE(receiver->WaitForMessages(1));
    sent.topic = "orders";
    CHECK(receiver->Messages().front() == sent);
}

TEST_CASE("memory: the clients of a process that name a broker meet there") {
    Fixture one;
    Fixture two{one.broker.name(), {}};
    CHECK(&one.broker == &two.broker);
    const auto receiver = MakeReceiver();
    const auto consumer = two.Subscribe(receiver);
    one.Publish("hello");
    REQUIRE(receiver->WaitForMessages(1));
    CHECK(one.sink.WaitForConfirmed(1));
    CHECK(two.sink.Count() == 0);
}

TEST_CASE("memory: each group gets every message, and its members share them") {
    Fixture f;
    const auto first = MakeReceiver();
    const auto second = MakeReceiver();
    const auto other = MakeReceiver();
    const auto one = f.Subscribe(first, "g", 1);
    const auto two = f.Subscribe(second, "g", 1);
    const auto three = f.Subscribe(other, "other");
    f.PublishNumbers(1, 200);
    REQUIRE(other->WaitForMessages(200));
    CHECK(other->Bodies() == Numbers(1, 200));
    REQUIRE(f.WaitForDepth({}));
    CHECK(first->Count() + second->Count() == 200);
    CHECK(first->Count() > 0);
    CHECK(second->Count() > 0);
}

TEST_CASE("memory: a new group starts at the beginning of the log") {
    Fixture f;
    f.PublishNumbers(1, 5);
    const auto early = MakeReceiver();
    const auto consumer = f.Subscribe(early, "early");
    REQUIRE(early->WaitForMessages(5));
    const auto late = MakeReceiver();
    const auto late_consumer = f.Subscribe(late, "late");
    REQUIRE(late->WaitForMessages(5));
    CHECK(late->Bodies() == Numbers(1, 5));
}

TEST_CASE("memory: a group keeps its place while it has no members") {
    Fixture f;
    {
        const auto receiver = MakeReceiver();
        const auto consumer = f.Subscribe(receiver);
        f.PublishNumbers(1, 3);
        REQUIRE(receiver->WaitForMessages(3));
    }
    f.PublishNumbers(4, 6);
    const auto receiver = MakeReceiver();
    const auto consumer = f.Subscribe(receiver);
    REQUIRE(receiver->WaitForMessages(3));
    CHECK(receiver->Bodies() == Numbers(4, 6));
}

TEST_CASE("memory: a consumer holds no more than its prefetch") {
    Fixture f;
    const auto receiver = MakeReceiver(Receive::kHold);
    const auto consumer = f.Subscribe(receiver, "g", 3);
    f.PublishNumbers(1, 20);
    REQUIRE(receiver->WaitForHeld(3));
    REQUIRE(f.WaitForDepth({.ready = 17, .unsettled = 3}));
    for (std::size_t i = 1; i <= 17; ++i) {
        receiver->SettleHeld(1);
        REQUIRE(receiver->WaitForMessages(3 + i));
    }
    receiver->SettleHeld();
    REQUIRE(f.WaitForDepth({}));
    CHECK(receiver->MostHeld() == 3);
    CHECK(receiver->Bodies() == Numbers(1, 20));
}

TEST_CASE("memory: settling twice, in any order and after the end is harmless") {
    Fixture f;
    const auto receiver = MakeReceiver(Receive::kHold);
    auto consumer = f.Subscribe(receiver);
    f.PublishNumbers(1, 4);
    REQUIRE(receiver->WaitForHeld(4));
    auto held = receiver->TakeHeld();
    held[2]->Settle();
    held[0]->Settle();
    held[0]->Settle();
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 0, .unsettled = 2});
    std::thread{[&] { held[1]->Settle(); }}.join();
    CHECK(f.broker.Settled("t", "g") == 3);
    consumer.reset();
    CHECK(held[3]->Stale());
    held[3]->Settle();
    f.publisher.reset();
    f.backend.reset();
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 1, .unsettled = 0});
    held.clear();
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 1, .unsettled = 0});
}

TEST_CASE("memory: what a closed consumer left unsettled is delivered again, before what is newer") {
    Fixture f;
    const auto first = MakeReceiver(Receive::kHold);
    auto consumer = f.Subscribe(first, "g", 4);
    f.PublishNumbers(1, 6);
    REQUIRE(first->WaitForHeld(4));
    auto held = first->TakeHeld();
    held[1]->Settle();
    REQUIRE(first->WaitForHeld(1));
    consumer->Stop();
    consumer->Close(After());
    CHECK(held[0]->Stale());

    const auto second = MakeReceiver();
    const auto next = f.Subscribe(second);
    REQUIRE(second->WaitForMessages(5));
    CHECK(second->Bodies() == Bodies{"1", "3", "4", "5", "6"});
    std::vector<bool> redelivered;
    for (const auto& message : second->Messages()) redelivered.push_back(message.redelivered);
    CHECK(redelivered == std::vector<bool>{true, true, true, true, false});
}

TEST_CASE("memory: a message destroyed unsettled comes again only when its consumer is closed") {
    Fixture f;
    const auto dropping = MakeReceiver(Receive::kDrop);
    auto consumer = f.Subscribe(dropping, "g", 2);
    const auto other = MakeReceiver();
    const auto stays = f.Subscribe(other, "g", 1);
    f.PublishNumbers(1, 10);
    REQUIRE(f.WaitForDepth({.ready = 0, .unsettled = 2}));
    CHECK(dropping->Count() == 2);
    CHECK(other->Count() == 8);
    consumer.reset();
    REQUIRE(other->WaitForMessages(10));
    CHECK(other->Messages().back().redelivered);
    CHECK(f.broker.Total().redelivered == 2);
}

TEST_CASE("memory: messages of one key stay with one member while any is unsettled") {
    Fixture f;
    const auto first = MakeReceiver(Receive::kHold);
    const auto second = MakeReceiver(Receive::kHold);
    const auto one = f.Subscribe(first, "g", 2);
    auto two = f.Subscribe(second, "g", 2);
    for (int i = 0; i < 3; ++i) {
        f.Publish("a" + std::to_string(i), "a");
        f.Publish("b" + std::to_string(i), "b");
    }
    // Each member has two of its key; the third waits for it and for nobody else.
    REQUIRE(first->WaitForHeld(2));
    REQUIRE(second->WaitForHeld(2));
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 2, .unsettled = 4});
    const std::string key = first->Messages().front().key;
    CHECK(first->Messages().back().key == key);

    second->SettleHeld();
    REQUIRE(second->WaitForHeld(1));
    second->SettleHeld();
    REQUIRE(f.WaitForDepth({.ready = 1, .unsettled = 2}));
    CHECK(second->Count() == 3);

    SECTION("and go on to another once the member is closed") {
        two.reset();
        const auto third = MakeReceiver(Receive::kHold);
        const auto three = f.Subscribe(third, "g", 10);
        f.Publish("c", "c");
        REQUIRE(third->WaitForHeld(1));
        CHECK(third->Bodies() == Bodies{"c"});
    }
    SECTION("and are not taken by others when the member stops, until it has settled") {
        one->Stop();
        f.Publish(key + "3", key);
        REQUIRE(f.WaitForDepth({.ready = 2, .unsettled = 2}));
        first->SettleHeld(1);
        REQUIRE(f.WaitForDepth({.ready = 2, .unsettled = 1}));
        first->SettleHeld(1);
        REQUIRE(second->WaitForHeld(2));
        CHECK(second->Bodies().at(3) == key + "2");
        CHECK(second->Bodies().at(4) == key + "3");
        CHECK_FALSE(second->Messages().at(3).redelivered);
    }
    SECTION("and all of them go on in order when the member closes with some unsettled") {
        one->Close(After());
        REQUIRE(second->WaitForHeld(2));
        second->SettleHeld();
        REQUIRE(second->WaitForHeld(1));
        const auto bodies = second->Bodies();
        CHECK(Bodies(bodies.begin() + 3, bodies.end()) == Bodies{key + "0", key + "1", key + "2"});
    }
}

TEST_CASE("memory: a key whose member is busy does not hold up other keys") {
    Fixture f;
    const auto busy = MakeReceiver(Receive::kHold);
    const auto one = f.Subscribe(busy, "g", 1);
    f.Publish("first", "slow");
    REQUIRE(busy->WaitForHeld(1));
    const auto free = MakeReceiver();
    const auto two = f.Subscribe(free, "g", 5);
    for (int i = 0; i < 50; ++i) {
        f.Publish("slow", "slow");
        f.Publish("other", "key-" + std::to_string(i));
        f.Publish("none");
    }
    REQUIRE(free->WaitForMessages(100));
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 50, .unsettled = 1});
    busy->Set(Receive::kSettle);
    busy->SettleHeld();
    REQUIRE(f.WaitForDepth({}));
    CHECK(busy->Count() == 51);
}

TEST_CASE("memory: nothing is delivered after Stop has returned") {
    Fixture f;
    for (int round = 0; round < 50; ++round) {
        std::atomic<bool> stopped = false;
        std::atomic<int> late = 0;
        const auto receiver =
            std::make_shared<RecordingReceiver>([&](std::unique_ptr<mq::backend::Inbound> inbound) {
                if (stopped) ++late;
                inbound->Settle();
            });
        const auto consumer = f.Subscribe(receiver, "g", 8);
        std::thread publishing{[&] { f.PublishNumbers(1, 200); }};
        REQUIRE(receiver->WaitForMessages(10));
        consumer->Stop();
        stopped = true;
        publishing.join();
        consumer->Close(After());
        CHECK(late == 0);
    }
    const auto receiver = MakeReceiver();
    const auto consumer = f.Subscribe(receiver);
    REQUIRE(f.WaitForDepth({}));
    CHECK(f.broker.Settled("t", "g") == 50 * 200);
}

TEST_CASE("memory: Stop waits for the delivery that runs") {
    Fixture f;
    std::promise<void> entered;
    std::promise<void> leave;
    std::atomic<bool> left = false;
    const auto receiver = std::make_shared<RecordingReceiver>(
        [&, released = leave.get_future().share()](std::unique_ptr<mq::backend::Inbound> inbound) {
            entered.set_value();
            released.wait();
            inbound->Settle();
            left = true;
        });
    const auto consumer = f.Subscribe(receiver, "g", 1);
    f.PublishNumbers(1, 2);
    entered.get_future().wait();
    auto stopping = std::async(std::launch::async, [&] {
        consumer->Stop();
        return left.load();
    });
    CHECK(stopping.wait_for(20ms) == std::future_status::timeout);
    leave.set_value();
    CHECK(stopping.get());
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 1, .unsettled = 0});
}

TEST_CASE("memory: what a stopped consumer holds can still be settled") {
    Fixture f;
    const auto receiver = MakeReceiver(Receive::kHold);
    const auto consumer = f.Subscribe(receiver, "g", 2);
    f.PublishNumbers(1, 5);
    REQUIRE(receiver->WaitForHeld(2));
    consumer->Stop();
    consumer->Stop();
    receiver->SettleHeld(1);
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 3, .unsettled = 1});
    receiver->SettleHeld(1);
    consumer->Close(After());
    consumer->Close(After());
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 3, .unsettled = 0});
    CHECK(f.broker.Members("t", "g") == 0);
}

TEST_CASE("memory: Close lets the receiver go") {
    Fixture f;
    auto receiver = MakeReceiver();
    const std::weak_ptr<RecordingReceiver> watched = receiver;
    const auto consumer = f.Subscribe(std::move(receiver));
    CHECK_FALSE(watched.expired());
    consumer->Stop();
    CHECK_FALSE(watched.expired());
    consumer->Close(After());
    CHECK(watched.expired());
}

TEST_CASE("memory: a consumer follows its broker down and up again") {
    Fixture f;
    const auto receiver = MakeReceiver(Receive::kHold);
    const auto consumer = f.Subscribe(receiver, "g", 3);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
    f.PublishNumbers(1, 5);
    REQUIRE(receiver->WaitForHeld(3));
    auto handled = receiver->TakeHeld(1);

    f.broker.Stop();
    CHECK(handled.front()->Stale());
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
    REQUIRE(receiver->WaitForStale(1));
    CHECK(receiver->Held() == 0);
    const auto state = consumer->State();
    REQUIRE(state.error != nullptr);
    CHECK(state.error->code() == ErrorCode::kUnavailable);
    CHECK(Has(state.error->what(), f.broker.name()));
    CHECK(f.broker.Members("t", "g") == 0);
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 5, .unsettled = 0});

    f.broker.Start();
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
    CHECK(consumer->State().error == nullptr);
    // The one that is handled still counts until it is let go.
    REQUIRE(receiver->WaitForHeld(2));
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 3, .unsettled = 2});
    handled.front()->Settle();
    REQUIRE(receiver->WaitForHeld(3));
    CHECK(f.broker.Settled("t", "g") == 0);
    receiver->Set(Receive::kSettle);
    receiver->SettleHeld();
    REQUIRE(f.WaitForDepth({}));
    CHECK(receiver->Bodies() == Bodies{"1", "2", "3", "1", "2", "3", "4", "5"});
    const auto messages = receiver->Messages();
    CHECK(messages.at(3).redelivered);
    CHECK_FALSE(messages.at(7).redelivered);
}

TEST_CASE("memory: a consumer that subscribes to a stopped broker waits for its start") {
    Fixture f;
    f.Publish("1");
    f.broker.Stop();
    const auto receiver = MakeReceiver();
    const auto consumer = f.Subscribe(receiver);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
    const auto closed = f.Subscribe(MakeReceiver());
    closed->Close(After());
    f.broker.Start();
    REQUIRE(receiver->WaitForMessages(1));
    CHECK(f.broker.Members("t", "g") == 1);
}

TEST_CASE("memory: publications wait for a stopped broker, and keep their order") {
    Fixture f;
    f.broker.Stop();
    f.PublishNumbers(1, 100);
    CHECK(f.broker.Messages("t").empty());
    CHECK(f.sink.Count() == 0);
    f.broker.Start();
    f.PublishNumbers(101, 200);
    REQUIRE(f.sink.WaitForConfirmed(200));
    CHECK(StoredBodies(f.broker) == Numbers(1, 200));
    CHECK_FALSE(f.sink.At(0).possible_duplicate);
    CHECK_FALSE(f.broker.Messages("t").front().possible_duplicate);
}

TEST_CASE("memory: unconfirmed publications are repeated in their order after a restart") {
    Fixture f;
    f.broker.SetConfirmDelay(1h);
    f.PublishNumbers(1, 3);
    REQUIRE(f.broker.WaitUntil([&] { return f.broker.Messages("t").size() == 3; }, After()));
    f.broker.Stop();
    f.PublishNumbers(4, 5);
    f.broker.SetConfirmDelay(0ms);
    f.broker.Start();
    REQUIRE(f.sink.WaitForConfirmed(5));
    CHECK(f.sink.Bodies() == Numbers(1, 5));
    CHECK(StoredBodies(f.broker) == Bodies{"1", "2", "3", "1", "2", "3", "4", "5"});
    CHECK(f.sink.At(2).possible_duplicate);
    CHECK_FALSE(f.sink.At(3).possible_duplicate);
    CHECK_FALSE(f.broker.Messages("t").at(2).possible_duplicate);
    CHECK(f.broker.Messages("t").at(5).possible_duplicate);

    const auto receiver = MakeReceiver();
    const auto consumer = f.Subscribe(receiver);
    REQUIRE(receiver->WaitForMessages(8));
    CHECK_FALSE(receiver->Messages().at(0).redelivered);
    CHECK(receiver->Messages().at(3).redelivered);
    CHECK_FALSE(receiver->Messages().at(7).redelivered);
}

TEST_CASE("memory: the deadline of a publication holds while the broker is stopped") {
    Fixture f;
    f.broker.SetConfirmDelay(1h);
    f.Publish("taken", {}, kShort);
    REQUIRE(f.broker.WaitUntil([&] { return f.broker.Messages("t").size() == 1; }, After()));
    f.broker.Stop();
    f.Publish("never", {}, kShort);
    REQUIRE(f.sink.WaitForFailed(2));
    CHECK(f.sink.Bodies() == Bodies{"taken", "never"});
    CHECK(f.sink.At(0).error->code() == ErrorCode::kUnavailable);
    CHECK(f.sink.At(0).error->outcome() == Outcome::kUnknown);
    CHECK(f.sink.At(1).error->code() == ErrorCode::kUnavailable);
    CHECK(f.sink.At(1).error->outcome() == Outcome::kNotSent);
    CHECK(Has(f.sink.At(1).error->what(), "memory broker " + f.broker.name() + " is stopped"));
    f.broker.Start();
    CHECK(StoredBodies(f.broker) == Bodies{"taken"});
}

TEST_CASE("memory: a publication whose deadline has passed is not sent") {
    Fixture f;
    f.Publish("late", {}, -1ms);
    REQUIRE(f.sink.WaitForFailed(1));
    CHECK(f.sink.At(0).error->code() == ErrorCode::kTimeout);
    CHECK(f.sink.At(0).error->outcome() == Outcome::kNotSent);
    CHECK(f.broker.Topics().empty());
}

TEST_CASE("memory: a lost confirm leaves the message stored and its outcome unknown") {
    Fixture f;
    f.broker.LoseConfirms(1);

    SECTION("at the deadline") {
        f.Publish("1", {}, kShort);
        f.Publish("2");
        REQUIRE(f.sink.WaitForFailed(1));
        CHECK(f.sink.Bodies() == Bodies{"2", "1"});
        CHECK(f.sink.At(1).error->code() == ErrorCode::kTimeout);
        CHECK(f.sink.At(1).error->outcome() == Outcome::kUnknown);
        CHECK(StoredBodies(f.broker) == Bodies{"1", "2"});
    }
    SECTION("until a restart has it repeated") {
        f.Publish("1");
        f.Publish("2");
        REQUIRE(f.sink.WaitForConfirmed(1));
        f.broker.Stop();
        f.broker.Start();
        REQUIRE(f.sink.WaitForConfirmed(2));
        CHECK(f.sink.At(1).message.body == "1");
        CHECK(f.sink.At(1).possible_duplicate);
        CHECK(StoredBodies(f.broker) == Bodies{"1", "2", "1"});
    }
}

TEST_CASE("memory: the broker refuses what it is told to") {
    Fixture f;
    f.broker.RefuseNext(1);
    f.Publish("1");
    f.Publish("2");
    REQUIRE(f.sink.WaitForFinished(2));
    REQUIRE(f.sink.At(0).error != nullptr);
    CHECK(f.sink.At(0).error->code() == ErrorCode::kRefused);
    CHECK(f.sink.At(0).error->outcome() == Outcome::kNotSent);
    CHECK(f.sink.At(1).error == nullptr);

    f.broker.RefuseIf([](const std::string& address, const mq::Message& message) {
        return address == "t" && message.body == "3";
    });
    f.PublishNumbers(3, 4);
    f.broker.RefuseIf({});
    f.Publish("3");
    REQUIRE(f.sink.WaitForFinished(5));
    CHECK(f.sink.Failed() == 2);
    CHECK(StoredBodies(f.broker) == Bodies{"2", "4", "3"});
    const auto totals = f.broker.Total();
    CHECK(totals.published == 3);
    CHECK(totals.confirmed == 3);
    CHECK(totals.failed == 2);
}

TEST_CASE("memory: confirms come after the delay, and at once when it is taken away") {
    Fixture f;
    f.broker.SetConfirmDelay(40ms);
    const auto start = Clock::now();
    f.Publish("1");
    REQUIRE(f.sink.WaitForConfirmed(1));
    CHECK(Clock::now() - start >= 40ms);
    f.broker.SetConfirmDelay(1h);
    f.Publish("2");
    REQUIRE(f.broker.WaitUntil([&] { return f.broker.Messages("t").size() == 2; }, After()));
    CHECK(f.sink.Count() == 1);
    f.broker.SetConfirmDelay(0ms);
    REQUIRE(f.sink.WaitForConfirmed(2));
}

TEST_CASE("memory: a delay set on a broker that sleeps takes effect without another event") {
    Fixture f;
    f.broker.SetConfirmDelay(30ms);
    // Taken by this thread's own look into the broker rather than by the broker's thread.
    f.Publish("1");
    CHECK(f.broker.Messages("t").size() == 1);
    REQUIRE(f.sink.WaitForConfirmed(1));
}

TEST_CASE("memory: deliveries come after the delay, and at once when it is taken away") {
    Fixture f;
    const auto receiver = MakeReceiver();
    const auto consumer = f.Subscribe(receiver);
    f.broker.DelayDeliveries(40ms);
    const auto start = Clock::now();
    f.PublishNumbers(1, 2);
    REQUIRE(receiver->WaitForMessages(2));
    CHECK(Clock::now() - start >= 40ms);
    f.broker.DelayDeliveries(1h);
    f.PublishNumbers(3, 4);
    REQUIRE(f.sink.WaitForConfirmed(4));
    CHECK(f.broker.Backlog("t", "g") == Depth{.ready = 2, .unsettled = 0});
    f.broker.DelayDeliveries(0ms);
    REQUIRE(receiver->WaitForMessages(4));
    CHECK(receiver->Bodies() == Numbers(1, 4));
}

TEST_CASE("memory: a full topic makes publications wait for the slowest group") {
    Fixture f{{{"capacity", "3"}}};
    const auto slow = MakeReceiver(Receive::kHold);
    const auto consumer = f.Subscribe(slow, "slow");
    const auto fast = MakeReceiver();
    const auto other = f.Subscribe(fast, "fast");
    f.PublishNumbers(1, 3);
    REQUIRE(fast->WaitForMessages(3));
    REQUIRE(slow->WaitForHeld(3));
    f.Publish("4");
    f.Publish("late", {}, kShort);
    REQUIRE(f.sink.WaitForFailed(1));
    const auto& failed = f.sink.At(3);
    CHECK(failed.message.body == "late");
    CHECK(failed.error->code() == ErrorCode::kTimeout);
    CHECK(failed.error->outcome() == Outcome::kNotSent);
    CHECK(Has(failed.error->what(), "topic t holds 3 messages"));
    CHECK(Has(failed.error->what(), "group slow has not settled 3"));
    CHECK(f.sink.Confirmed() == 3);

    // Another topic is not held up.
    const auto elsewhere = f.backend->MakePublisher(MakeDestination("elsewhere"));
    elsewhere->Publish(MakePublication("e"));
    REQUIRE(f.sink.WaitForConfirmed(4));

    auto held = slow->TakeHeld();
    held[1]->Settle();
    CHECK(f.broker.Messages("t").front().message.body == "1");
    held[0]->Settle();
    REQUIRE(f.sink.WaitForConfirmed(5));
    f.Publish("5");
    REQUIRE(f.sink.WaitForConfirmed(6));
    CHECK(StoredBodies(f.broker) == Numbers(3, 5));
    CHECK(f.broker.Messages("t").front().offset == 2);
}

TEST_CASE("memory: a full topic without a group takes nothing more") {
    Fixture f{{{"capacity", "2"}}};
    f.PublishNumbers(1, 2);
    f.Publish("3", {}, kShort);
    REQUIRE(f.sink.WaitForFailed(1));
    CHECK(Has(f.sink.At(2).error->what(), "topic t holds 2 messages and no group reads it"));
    CHECK(StoredBodies(f.broker) == Numbers(1, 2));

    SECTION("until a group has settled") {
        f.PublishNumbers(3, 9);
        const auto receiver = MakeReceiver();
        const auto consumer = f.Subscribe(receiver);
        REQUIRE(receiver->WaitForMessages(9));
        CHECK(receiver->Bodies() == Numbers(1, 9));
        CHECK(StoredBodies(f.broker) == Numbers(8, 9));
    }
    SECTION("until it is cleared") {
        f.Publish("3");
        f.broker.Clear("t");
        REQUIRE(f.sink.WaitForConfirmed(3));
        CHECK(StoredBodies(f.broker) == Bodies{"3"});
    }
}

TEST_CASE("memory: a topic is bounded in bytes as well") {
    const std::size_t weight = Weight(mq::Message{.body = std::string(1000, 'x')});
    Fixture f{{{"capacity_bytes", std::to_string(2 * weight)}}};
    for (int i = 0; i < 3; ++i) f.Publish(std::string(1000, 'x'), {}, kShort);
    REQUIRE(f.sink.WaitForFinished(3));
    CHECK(f.sink.Confirmed() == 2);
    f.Publish(std::string(3 * weight, 'x'));
    REQUIRE(f.sink.WaitForFinished(4));
    CHECK(f.sink.At(3).error->code() == ErrorCode::kTooLarge);
    CHECK(f.sink.At(3).error->outcome() == Outcome::kNotSent);
    f.broker.Declare("t", "g");
    CHECK(f.broker.Backlog("t", "g").ready == 2);
    const auto receiver = MakeReceiver();
    const auto consumer = f.Subscribe(receiver);
    REQUIRE(receiver->WaitForMessages(2));
    f.Publish("small");
    REQUIRE(f.sink.WaitForConfirmed(3));
}

TEST_CASE("memory: a client that does not declare needs the topic to be there") {
    Fixture f{{{"declare", "false"}}};
    f.Publish("1");
    REQUIRE(f.sink.WaitForFailed(1));
    CHECK(f.sink.At(0).error->code() == ErrorCode::kNotFound);
    CHECK(f.sink.At(0).error->outcome() == Outcome::kNotSent);
    const auto receiver = MakeReceiver();
    const auto consumer = f.Subscribe(receiver);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    REQUIRE(consumer->State().error != nullptr);
    CHECK(consumer->State().error->code() == ErrorCode::kNotFound);
    CHECK(f.backend->CheckListening(*f.topic, "g", After()).answer == Answer::kNo);

    f.broker.Declare("t");
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
    f.Publish("2");
    REQUIRE(receiver->WaitForMessages(1));
    f.broker.Remove("t");
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    f.broker.Stop();
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
    f.broker.Start();
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    Fixture declaring{f.broker.name(), {}};
    declaring.Publish("3");
    REQUIRE(receiver->WaitForMessages(2));
}

TEST_CASE("memory: who listens is known while the broker runs") {
    Fixture f;
    const auto ask = [&](const std::string& group) {
        return f.backend->CheckListening(*f.topic, group, After());
    };
    CHECK(ask("g").answer == Answer::kNo);
    CHECK(ask("").answer == Answer::kNo);
    f.broker.Declare("t", "g");
    CHECK(ask("g").answer == Answer::kNo);
    CHECK(Has(ask("g").reason, "no member of group g is subscribed to t"));
    const auto consumer = f.Subscribe(MakeReceiver());
    CHECK(ask("g").answer == Answer::kYes);
    CHECK(ask("").answer == Answer::kYes);
    CHECK(ask("other").answer == Answer::kNo);
    f.broker.Stop();
    CHECK(ask("g").answer == Answer::kUnknown);
    CHECK(Has(ask("g").reason, "is stopped"));
    f.broker.Start();
    CHECK(ask("g").answer == Answer::kYes);
    consumer->Stop();
    CHECK(ask("g").answer == Answer::kNo);
    consumer->Close(After());
    CHECK(ask("").answer == Answer::kNo);
}

TEST_CASE("memory: the backlog counts what is ready and what is unsettled") {
    Fixture f;
    const auto ask = [&](const std::string& group) {
        return f.backend->CheckBacklog(*f.topic, group, After());
    };
    CHECK(ask("g").answer == Left::kDrained);
    CHECK(ask("g").exact);
    f.PublishNumbers(1, 5);
    CHECK(ask("g").answer == Left::kNotDrained);
    CHECK(ask("never seen").messages == 5);
    const auto receiver = MakeReceiver(Receive::kHold);
    const auto consumer = f.Subscribe(receiver, "g", 2);
    REQUIRE(receiver->WaitForHeld(2));
    CHECK(ask("g").messages == 5);
    receiver->Set(Receive::kSettle);
    auto last = receiver->TakeHeld(1);
    receiver->SettleHeld();
    REQUIRE(f.WaitForDepth({.ready = 0, .unsettled = 1}));
    CHECK(ask("g").answer == Left::kNotDrained);
    CHECK(ask("g").messages == 1);
    last.front()->Settle();
    CHECK(ask("g").answer == Left::kDrained);
    CHECK(ask("other").messages == 5);
    f.broker.Stop();
    CHECK(ask("g").answer == Left::kUnknown);
    CHECK_FALSE(ask("g").reason.empty());
}

TEST_CASE("memory: what was there before is known to be settled while more comes") {
    Fixture f;
    const auto ask = [&](const std::string& group = "g") {
        return f.backend->CheckBacklog(*f.topic, group, After());
    };
    const auto publish = [&](int first, int last) {
        const auto count = f.sink.Confirmed() + static_cast<std::size_t>(last - first + 1);
        f.PublishNumbers(first, last);
        REQUIRE(f.sink.WaitForConfirmed(count));
        return Clock::now();
    };
    const auto empty = Clock::now();
    CHECK(ask().settled_before >= empty);
    const auto receiver = MakeReceiver(Receive::kHold);
    const auto consumer = f.Subscribe(receiver);
    const auto first = publish(1, 3);
    CHECK(ask().settled_before >= empty);
    CHECK_FALSE(ask().settled_before >= first);
    const auto second = publish(4, 5);
    REQUIRE(receiver->WaitForHeld(5));
    auto held = receiver->TakeHeld();

    // What is done with behind one that is not does not count yet.
    for (const std::size_t index : {4u, 2u, 1u}) held[index]->Settle();
    CHECK_FALSE(ask().settled_before >= first);
    held[0]->Settle();
    CHECK(ask().answer == Left::kNotDrained);
    CHECK(ask().settled_before >= first);
    CHECK_FALSE(ask().settled_before >= second);
    CHECK_FALSE(ask("other").settled_before >= first);

    SECTION("what is given back unsettled is not settled") {
        held.clear();
        consumer->Stop();
        consumer->Close(After());
        publish(6, 6);
        CHECK(ask().settled_before >= first);
        CHECK_FALSE(ask().settled_before >= second);
    }
    SECTION("what nobody has been given is not settled") {
        f.broker.DelayDeliveries(1h);
        publish(6, 6);
        held[3]->Settle();
        CHECK(ask().messages == 1);
        CHECK(ask().settled_before >= second);
        const auto third = publish(7, 7);
        CHECK_FALSE(ask().settled_before >= third);
    }
    SECTION("a group that begins again has settled nothing") {
        f.broker.RemoveGroup("t", "g");
        CHECK_FALSE(ask().settled_before >= first);
    }
    SECTION("nothing is left") {
        held[3]->Settle();
        const auto now = Clock::now();
        CHECK(ask().answer == Left::kDrained);
        CHECK(ask().settled_before >= now);
    }
}

TEST_CASE("memory: closing a backend hands back what is in flight with its true outcome") {
    Fixture f;

    SECTION("confirmed, where the confirms come before the deadline") {
        f.broker.SetConfirmDelay(30ms);
        f.PublishNumbers(1, 10);
        f.backend->Close(After());
        CHECK(f.sink.Confirmed() == 10);
    }
    SECTION("unknown, where the broker has taken it") {
        f.broker.SetConfirmDelay(1h);
        f.PublishNumbers(1, 10);
        f.backend->Close(After(20ms));
        REQUIRE(f.sink.Failed() == 10);
        CHECK(f.sink.Bodies() == Numbers(1, 10));
        CHECK(f.sink.At(0).error->code() == ErrorCode::kClosed);
        CHECK(f.sink.At(0).error->outcome() == Outcome::kUnknown);
    }
    SECTION("not sent, where the broker never had it") {
        f.broker.Stop();
        f.PublishNumbers(1, 10);
        f.backend->Close(Clock::now());
        REQUIRE(f.sink.Failed() == 10);
        CHECK(f.sink.At(9).error->code() == ErrorCode::kClosed);
        CHECK(f.sink.At(9).error->outcome() == Outcome::kNotSent);
        f.broker.Start();
        CHECK(f.broker.Messages("t").empty());
    }
    const std::size_t before = f.sink.Count();
    f.backend->Close(After());
    f.Publish("late");
    REQUIRE(f.sink.WaitForFinished(before + 1));
    CHECK(f.sink.At(before).error->code() == ErrorCode::kClosed);
    CHECK(f.sink.At(before).error->outcome() == Outcome::kNotSent);
}

TEST_CASE("memory: a client may have so many publications unconfirmed and no more") {
    Fixture f;
    f.broker.SetConfirmDelay(1h);
    for (std::size_t i = 0; i < Broker::kMaxInFlight; ++i) f.Publish("x", {}, 10min);
    CHECK(f.sink.Count() == 0);
    const auto start = Clock::now();
    f.Publish("late", {}, 40ms);
    CHECK(Clock::now() - start >= 40ms);
    REQUIRE(f.sink.WaitForFailed(1));
    CHECK(f.sink.At(0).message.body == "late");
    CHECK(f.sink.At(0).error->code() == ErrorCode::kTimeout);
    CHECK(f.sink.At(0).error->outcome() == Outcome::kNotSent);

    auto waiting = std::async(std::launch::async, [&] { f.Publish("next"); });
    f.broker.SetConfirmDelay(0ms);
    CHECK(waiting.wait_for(mq::test::kPatience) == std::future_status::ready);
    REQUIRE(f.sink.WaitForConfirmed(Broker::kMaxInFlight + 1));
    CHECK(f.sink.Bodies().back() == "next");
}

TEST_CASE("memory: a topic or a group can be removed under its members") {
    Fixture f;
    const auto receiver = MakeReceiver(Receive::kHold);
    const auto consumer = f.Subscribe(receiver, "g", 2);
    f.PublishNumbers(1, 4);
    REQUIRE(receiver->WaitForHeld(2));

    SECTION("the messages alone") {
        f.broker.Clear("t");
        REQUIRE(receiver->WaitForStale(1));
        CHECK(f.broker.Groups("t") == Bodies{"g"});
        CHECK(f.broker.Messages("t").empty());
        f.Publish("5");
        REQUIRE(receiver->WaitForMessages(3));
        CHECK(receiver->Bodies().back() == "5");
        CHECK_FALSE(receiver->Messages().back().redelivered);
    }
    SECTION("the group alone: it starts again at the beginning") {
        receiver->SettleHeld();
        REQUIRE(receiver->WaitForHeld(2));
        f.broker.RemoveGroup("t", "g");
        REQUIRE(receiver->WaitForStale(1));
        REQUIRE(receiver->WaitForHeld(2));
        CHECK(receiver->Bodies() == Bodies{"1", "2", "3", "4", "1", "2"});
    }
    SECTION("the topic") {
        f.broker.Remove("t");
        REQUIRE(receiver->WaitForStale(1));
        CHECK(f.broker.Topics() == Bodies{"t"});
        f.Publish("5");
        REQUIRE(receiver->WaitForMessages(3));
        CHECK(receiver->Bodies().back() == "5");
        f.broker.Clear("no such topic");
        f.broker.Remove("no such topic");
        f.broker.RemoveGroup("t", "no such group");
    }
    SECTION("everything") {
        f.broker.RefuseNext(100);
        f.broker.RefuseIf([](const std::string&, const mq::Message&) { return true; });
        f.broker.Stop();
        f.broker.Reset();
        CHECK(f.broker.Running());
        f.Publish("5");
        REQUIRE(receiver->WaitForMessages(3));
        CHECK(f.broker.Total().published == 1);
    }
    CHECK(f.broker.Members("t", "g") == 1);
}

TEST_CASE("memory: a removed topic is gone where nobody uses it") {
    Fixture f;
    f.Publish("1");
    REQUIRE(f.sink.WaitForConfirmed(1));
    f.broker.Remove("t");
    CHECK(f.broker.Topics().empty());
    CHECK(f.broker.Groups("t").empty());
    CHECK(f.broker.Backlog("t", "g") == Depth{});
    CHECK(f.backend->CheckBacklog(*f.topic, "g", After()).answer == Left::kDrained);
}

TEST_CASE("memory: waiting on a broker ends at the deadline") {
    Fixture f;
    const auto start = Clock::now();
    CHECK_FALSE(f.broker.WaitUntil([] { return false; }, After(30ms)));
    CHECK(Clock::now() - start >= 30ms);
}

TEST_CASE("memory: callbacks may publish") {
    Fixture f;
    const auto receiver =
        std::make_shared<RecordingReceiver>([&](std::unique_ptr<mq::backend::Inbound> inbound) {
            const int number = std::stoi(inbound->message.body);
            if (number < 1000) f.Publish(std::to_string(number + 1));
            inbound->Settle();
        });
    const auto consumer = f.Subscribe(receiver, "g", 1);
    f.Publish("1");
    REQUIRE(receiver->WaitForMessages(1000));
    CHECK(receiver->Bodies() == Numbers(1, 1000));
    consumer->Stop();
}

TEST_CASE("memory: an address or a group without a name is an error") {
    Fixture f;
    mq::backend::Destination nameless;
    nameless.topic = "orders";
    const auto destination = std::make_shared<const mq::backend::Destination>(nameless);
    CHECK_THROWS_AS(f.backend->MakePublisher(destination), mq::Error);
    CHECK_THROWS_AS(f.backend->Subscribe({.destination = destination, .group = "g"}, MakeReceiver()),
                    mq::Error);
    CHECK_THROWS_AS(f.Subscribe(MakeReceiver(), ""), mq::Error);
}

TEST_CASE("memory: its URL is a name and nothing else") {
    CHECK(CheckUrl("memory://name").empty());
    for (const std::string url :
         {"memory://user@name", "memory://:secret@name", "memory://name:1", "memory://name/",
          "memory://name/path", "memory://name?x=1", "memory://one,two"}) {
        INFO(url);
        const auto problems = CheckUrl(url);
        REQUIRE(problems.size() == 1);
        CHECK(problems.front().key == "url");
        CHECK(Has(problems.front().text, "expected memory://NAME"));
        CHECK_FALSE(Has(problems.front().text, "secret"));
    }
}

TEST_CASE("memory: every wrong option is reported") {
    CHECK(CheckUrl("memory://n", {{"capacity", "1"}, {"capacity_bytes", "99"}, {"declare", "false"}})
              .empty());
    const auto problems = CheckUrl(
        "memory://n",
        {{"capacity", "0"}, {"capacity_bytes", "many"}, {"declare", "perhaps"}, {"linger.ms", "5"}});
    REQUIRE(problems.size() == 4);
    CHECK(problems[0].key == "options.capacity");
    CHECK(problems[1].key == "options.capacity_bytes");
    CHECK(problems[2].key == "options.declare");
    CHECK(problems[3].key == "options.\"linger.ms\"");
    CHECK(Has(problems[3].text, "no such option"));
}

namespace {

// Records what a whole group gets, in the order of the deliveries, and settles it on another thread.
class Audit {
public:
    explicit Audit(int settlers) {
        for (int i = 0; i < settlers; ++i) threads_.emplace_back([this] { SettleAll(); });
    }
    Audit(const Audit&) = delete;
    Audit& operator=(const Audit&) = delete;

    ~Audit() {
        {
            const std::lock_guard lock{mutex_};
            done_ = true;
        }
        changed_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    auto Receiver() {
        return std::make_shared<RecordingReceiver>(
            [this](std::unique_ptr<mq::backend::Inbound> inbound) { Take(std::move(inbound)); });
    }

    bool WaitForDistinct(std::size_t count) {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, mq::test::kPatience, [&] { return seen_.size() >= count; });
    }

    // How often a message came for the first time although a later one of its key had come before.
    int Reordered() {
        const std::lock_guard lock{mutex_};
        return reordered_;
    }

private:
    void Take(std::unique_ptr<mq::backend::Inbound> inbound) {
        const std::lock_guard lock{mutex_};
        const int number = std::stoi(inbound->message.body);
        if (seen_.insert({inbound->message.key, number}).second) {
            int& last = last_[inbound->message.key];
            if (number < last) ++reordered_;
            last = std::max(last, number);
        }
        held_.push_back(std::move(inbound));
        changed_.notify_all();
    }

    void SettleAll() {
        std::unique_lock lock{mutex_};
        while (true) {
            changed_.wait(lock, [&] { return done_ || !held_.empty(); });
            if (held_.empty()) return;
            const auto inbound = std::move(held_.front());
            held_.pop_front();
            lock.unlock();
            inbound->Settle();
            lock.lock();
        }
    }

    std::mutex mutex_ = {};  // guards everything below
    std::condition_variable changed_ = {};
    std::deque<std::unique_ptr<mq::backend::Inbound>> held_ = {};
    std::set<std::pair<std::string, int>> seen_ = {};
    std::map<std::string, int> last_ = {};
    int reordered_ = 0;
    bool done_ = false;
    std::vector<std::thread> threads_ = {};
};

}  // namespace

TEST_CASE("memory: nothing is lost or reordered while members come and go and the broker restarts") {
    constexpr int kProducers = 3;
    constexpr int kMessages = 2000;
    Fixture f;
    Audit audit{2};
    Audit other{1};
    std::vector<std::unique_ptr<mq::backend::Consumer>> consumers;
    for (int i = 0; i < 3; ++i) consumers.push_back(f.Subscribe(audit.Receiver(), "g", 7));
    consumers.push_back(f.Subscribe(other.Receiver(), "other", 50));

    std::vector<std::thread> producers;
    for (int producer = 0; producer < kProducers; ++producer) {
        producers.emplace_back([&f, producer] {
            for (int i = 1; i <= kMessages; ++i) {
                f.Publish(std::to_string(i), std::to_string(producer) + "-" + std::to_string(i % 5));
            }
        });
    }
    f.broker.SetConfirmDelay(1ms);
    for (std::uint64_t round = 1; round <= 10; ++round) {
        const std::uint64_t until = round * kProducers * kMessages / 12;
        REQUIRE(f.broker.WaitUntil([&] { return f.broker.Settled("t", "other") >= until; }, After()));
        f.broker.Stop();
        consumers.erase(consumers.begin());
        f.broker.LoseConfirms(3);
        f.broker.Start();
        consumers.insert(consumers.begin() + 2, f.Subscribe(audit.Receiver(), "g", 7));
        // The last one is the only member of its group: it stays.
        REQUIRE(consumers.size() == 4);
    }
    for (auto& producer : producers) producer.join();
    f.broker.SetConfirmDelay(0ms);
    f.broker.LoseConfirms(0);
    f.broker.Stop();
    f.broker.Start();
    REQUIRE(f.sink.WaitForConfirmed(kProducers * kMessages));
    CHECK(f.sink.Failed() == 0);
    CHECK(audit.WaitForDistinct(kProducers * kMessages));
    CHECK(other.WaitForDistinct(kProducers * kMessages));
    CHECK(audit.Reordered() == 0);
    CHECK(other.Reordered() == 0);
    REQUIRE(f.WaitForDepth({}));
    REQUIRE(f.WaitForDepth({}, "other"));
    for (const auto& consumer : consumers) consumer->Stop();
    consumers.clear();
}
