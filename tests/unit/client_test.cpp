#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "../support/wait.hpp"
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using mq::Client;
using mq::Config;
using mq::Delivery;
using mq::Error;
using mq::ErrorCode;
using mq::Message;
using mq::Outcome;
using mq::Policy;
using mq::SendResult;
using mq::Subscription;
using mq::test::Collector;
using mq::test::Counter;
using mq::test::DeliveryBox;
using mq::test::Eventually;
using mq::test::Gate;
using mq::test::kGlance;
using mq::test::kPatience;
using mq::test::SendLog;
using std::chrono::milliseconds;

namespace {

// Two brokers that no other test uses, a topic that migrates between them and one that does not.
struct Bench {
    Bench() {
        config.client.group = "billing";
        config.brokers["legacy"].url = "memory://" + legacy_name;
        config.brokers["next"].url = "memory://" + next_name;
        config.topics["orders"] = {
            .old_broker = "legacy", .new_broker = "next", .quiet = milliseconds{50}};
        config.topics["invoices"] = {.broker = "legacy"};
    }

    Client& Start() {
        client = std::make_unique<Client>(config, mq::ClientOptions{.log = log.Sink()});
        return *client;
    }

    // Waits for a rung by the broker's events and the client's status.
    bool WaitForStage(std::string_view topic, Policy stage) {
        const auto deadline = mq::test::After();
        while (client->Status(topic).stage != stage) {
            if (mq::backend::Clock::now() >= deadline) return false;
            // Nothing tells of a rung: looked at again and again, with a pause.
            never.WaitFor(1, milliseconds{2});
        }
        return true;
    }

    const std::string legacy_name = mq::test::UniqueId("legacy");
    const std::string next_name = mq::test::UniqueId("next");
    mq::memory::Broker& legacy = mq::memory::Broker::Find(legacy_name);
    mq::memory::Broker& next = mq::memory::Broker::Find(next_name);
    Config config = {};
    mq::test::RecordingLog log = {};
    Counter never = {};
    std::unique_ptr<Client> client = {};
};

template <typename Call>
std::optional<Error> ErrorOf(Call&& call) {
    try {
        std::forward<Call>(call)();
    } catch (const Error& error) {
        return error;
    }
    return std::nullopt;
}

bool Contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

// A file that is gone with the test.
class TemporaryFile {
public:
    TemporaryFile() : path_(std::filesystem::temp_directory_path() / mq::test::UniqueId("mq")) {
        std::filesystem::create_directory(path_);
    }
    ~TemporaryFile() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;

    [[nodiscard]] std::filesystem::path path() const { return path_ / "mq.toml"; }
    void Write(const std::string& text) const { std::ofstream{path()} << text; }

private:
    std::filesystem::path path_;
};

std::string Toml(const Bench& bench, std::string_view policy) {
    return "[client]\ngroup = \"billing\"\n[brokers.legacy]\nurl = \"memory://" + bench.legacy_name +
           "\"\n[brokers.next]\nurl = \"memory://" + bench.next_name +
           "\"\n[topics.orders]\nold = \"legacy\"\nnew = \"next\"\nquiet = \"50ms\"\npolicy = \"" +
           std::string{policy} + "\"\n[topics.invoices]\nbroker = \"legacy\"\n";
}

static_assert(!std::is_copy_constructible_v<Client>);
static_assert(!std::is_copy_constructible_v<Delivery> && std::is_move_constructible_v<Delivery>);
static_assert(!std::is_copy_constructible_v<Subscription> &&
              std::is_nothrow_move_constructible_v<Subscription>);
static_assert(std::is_base_of_v<std::runtime_error, Error>);

}  // namespace

TEST_CASE("a wrong config is refused with every problem in one error") {
    Bench bench;
    bench.config.brokers["strange"].url = "carrier-pigeon://loft";
    bench.config.topics["orders"].new_broker = "nobody";
    bench.config.client.prefetch = 0;
    const auto error = ErrorOf([&] { bench.Start(); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kConfig);
    CHECK(Contains(error->what(), "carrier-pigeon"));
    CHECK(Contains(error->what(), "nobody"));
    CHECK(Contains(error->what(), "prefetch"));
}

TEST_CASE("an unknown topic is an error of every call, and the callback form gets it in the callback") {
    Bench bench;
    Client& client = bench.Start();
    const auto check = [](const std::optional<Error>& error) {
        REQUIRE(error);
        CHECK(error->code() == ErrorCode::kUnknownTopic);
        CHECK(error->outcome() == Outcome::kNotSent);
        CHECK(Contains(error->what(), "nowhere"));
    };
    check(ErrorOf([&] { client.SendMsg("nowhere", "b"); }));
    check(ErrorOf([&] { const auto none = client.RecvMsg("nowhere", [](const Message&) {}); }));
    check(ErrorOf([&] { client.SetPolicy("nowhere", Policy::kNew); }));
    check(ErrorOf([&] { static_cast<void>(client.Status("nowhere")); }));
    SendLog sends;
    client.SendMsg("nowhere", Message{.id = "my id"}, sends.Callback());
    REQUIRE(sends.WaitForCount(1));
    REQUIRE(sends.Failures().size() == 1);
    CHECK(sends.Failures()[0].code == ErrorCode::kUnknownTopic);
    CHECK(sends.Failures()[0].id == "my id");
    client.Close(kPatience);
}

TEST_CASE("headers that belong to the library, and headers without a name, are refused") {
    Bench bench;
    Client& client = bench.Start();
    for (const char* const name : {"mq-id", "mq-", ""}) {
        const Message message{.body = "b", .headers = {{"fine", "x"}, {name, "y"}}};
        const auto error = ErrorOf([&] { client.SendMsg("orders", message); });
        REQUIRE(error);
        CHECK(error->code() == ErrorCode::kInvalidArgument);
        SendLog sends;
        client.SendMsg("orders", message, sends.Callback());
        REQUIRE(sends.WaitForCount(1));
        CHECK(sends.Failures().size() == 1);
    }
    CHECK_NOTHROW(client.SendMsg("orders", Message{.headers = {{"mqtt", "x"}, {"MQ-id", "y"}}}));
    CHECK(bench.legacy.Messages("orders").size() == 1);
}

TEST_CASE("everything that can carry text may be given as a view, a literal or a string") {
    Collector received;
    Bench bench;
    Client& client = bench.Start();
    const std::string topic = "orders";
    const std::string body = "string";
    const Subscription subscription = client.RecvMsg(std::string_view{topic}, received.Handler());
    client.SendMsg(topic, body);
    client.SendMsg("orders", "literal");
    client.SendMsg(std::string_view{"orders"}, std::string_view{"vi\0ew", 5});
    client.SendMsg(topic, body, [](const SendResult&) {});
    REQUIRE(received.WaitForCount(4));
    CHECK(received.Bodies() ==
          std::vector<std::string>{"string", "literal", std::string("vi\0ew", 5), "string"});
}

TEST_CASE("handlers and callbacks may own what cannot be copied") {
    Counter handled;
    Counter called;
    Bench bench;
    Client& client = bench.Start();
    const Subscription a =
        client.RecvMsg("orders", [owned = std::make_unique<int>(1), &handled](const Message&) mutable {
            handled.Add(static_cast<std::size_t>(*owned));
        });
    const Subscription b =
        client.RecvMsg("invoices", [owned = std::make_unique<int>(1), &handled](Delivery delivery) {
            delivery.Ack();
            handled.Add(static_cast<std::size_t>(*owned));
        });
    const auto callback = [&] {
        return [owned = std::make_unique<int>(1), &called](const SendResult& result) {
            if (result.ok()) called.Add(static_cast<std::size_t>(*owned));
        };
    };
    client.SendMsg("orders", "b", callback());
    client.SendMsg("invoices", Message{.body = "b"}, callback());
    CHECK(handled.WaitFor(2));
    CHECK(called.WaitFor(2));
    // A function and a const function object do as well.
    const std::function<void(const Message&)> function = [&](const Message&) { handled.Add(); };
    const Subscription c = client.RecvMsg("orders", function, {.group = "audit"});
    CHECK(handled.WaitFor(3));
}

TEST_CASE("a callback runs on a thread of the library, one at a time, in the order of the confirms") {
    constexpr std::size_t kCount = 2000;
    std::vector<std::string> ids;
    std::vector<std::string> called;  // by one callback at a time
    std::atomic<int> inside{0};
    std::atomic<bool> overlapped{false};
    std::atomic<bool> foreign{true};
    const auto test_thread = std::this_thread::get_id();
    Bench bench;
    Client& client = bench.Start();
    for (std::size_t i = 0; i < kCount; ++i) {
        ids.push_back(std::to_string(i));
        client.SendMsg("orders", Message{.id = ids.back()}, [&](const SendResult& result) {
            if (inside.fetch_add(1) != 0) overlapped = true;
            if (std::this_thread::get_id() == test_thread) foreign = false;
            called.push_back(result.id());
            inside.fetch_sub(1);
        });
    }
    REQUIRE(client.Flush(kPatience));
    CHECK(called == ids);
    CHECK_FALSE(overlapped);
    CHECK(foreign);
}

TEST_CASE("a callback that throws is logged and harms nobody") {
    SendLog sends;
    Bench bench;
    Client& client = bench.Start();
    client.SendMsg("orders", Message{.id = "the first"},
                   [](const SendResult&) { throw std::runtime_error{"callback trouble"}; });
    client.SendMsg("orders", Message{.id = "the second"}, [](const SendResult&) { throw 1; });
    client.SendMsg("orders", "b", sends.Callback());
    REQUIRE(sends.WaitForCount(1));
    CHECK(sends.Failures().empty());
    CHECK(bench.log.WaitForLine("callback trouble"));
    CHECK(bench.log.WaitForLine("the second"));
}

TEST_CASE("a blocking send works inside a handler and inside a callback") {
    Collector invoices;
    SendLog sends;
    std::atomic<int> failures{0};
    Bench bench;
    Client& client = bench.Start();
    const Subscription b = client.RecvMsg("invoices", invoices.Handler());
    const Subscription a = client.RecvMsg("orders", [&](const Message&) {
        if (ErrorOf([&] { client.SendMsg("invoices", "from the handler"); })) ++failures;
    });
    client.SendMsg("orders", "b", [&](const SendResult& result) {
        if (ErrorOf([&] { client.SendMsg("invoices", "from the callback"); })) ++failures;
        sends.Add(result);
    });
    CHECK(sends.WaitForCount(1));
    CHECK(invoices.WaitForCount(2));
    CHECK(failures == 0);
}

TEST_CASE("a client cannot be closed or flushed by what it would wait for") {
    std::optional<Error> from_handler;
    std::optional<Error> from_callback;
    std::atomic<bool> flushed{true};
    Counter done;
    Bench bench;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders", [&](const Message&) {
        from_handler = ErrorOf([&] { client.Close(kPatience); });
        done.Add();
    });
    client.SendMsg("orders", "b", [&](const SendResult&) {
        from_callback = ErrorOf([&] { client.Close(kPatience); });
        flushed = client.Flush(kPatience);
        done.Add();
    });
    REQUIRE(done.WaitFor(2));
    REQUIRE(client.Flush(kPatience));
    REQUIRE(from_handler);
    CHECK(from_handler->code() == ErrorCode::kInvalidArgument);
    REQUIRE(from_callback);
    CHECK(from_callback->code() == ErrorCode::kInvalidArgument);
    CHECK_FALSE(flushed);
    CHECK_NOTHROW(client.SendMsg("orders", "still open"));
}

TEST_CASE("after the close every call fails in its own way, and callbacks still run exactly once") {
    SendLog sends;
    Bench bench;
    Client& client = bench.Start();
    client.Close(kPatience);
    client.Close(kPatience);
    for (const char* const topic : {"orders", "invoices"}) {
        const auto error = ErrorOf([&] { client.SendMsg(topic, "b"); });
        REQUIRE(error);
        CHECK(error->code() == ErrorCode::kClosed);
        CHECK(error->outcome() == Outcome::kNotSent);
        client.SendMsg(topic, "b", sends.Callback());
    }
    REQUIRE(sends.WaitForCount(2));
    CHECK(sends.MostForOne() == 1);
    for (const auto& failure : sends.Failures()) CHECK(failure.code == ErrorCode::kClosed);
    const auto subscribed =
        ErrorOf([&] { const auto none = client.RecvMsg("orders", [](const Message&) {}); });
    REQUIRE(subscribed);
    CHECK(subscribed->code() == ErrorCode::kClosed);
    CHECK(client.Status("orders").stage == Policy::kOld);
    CHECK(client.Flush(kPatience));
    CHECK(bench.legacy.Messages("orders").empty());
}

TEST_CASE("sends that are not confirmed when the client closes fail with what is certain of them") {
    SendLog sends;
    Bench bench;
    bench.legacy.LoseConfirms(3);
    Client& client = bench.Start();
    for (int i = 0; i < 3; ++i) client.SendMsg("orders", "lost", sends.Callback());
    bench.legacy.WaitUntil([&] { return bench.legacy.Total().published == 3; }, mq::test::After());
    client.Close(milliseconds{50});
    REQUIRE(sends.WaitForCount(3));
    for (const auto& failure : sends.Failures()) {
        CHECK(failure.code == ErrorCode::kClosed);
        CHECK(failure.outcome == Outcome::kUnknown);
    }
    CHECK(sends.Failures().size() == 3);
    CHECK(sends.MostForOne() == 1);
}

TEST_CASE("a client that is destroyed runs the callbacks of all its sends first") {
    constexpr std::size_t kCount = 500;
    SendLog sends;
    Bench bench;
    Client& client = bench.Start();
    for (std::size_t i = 0; i < kCount; ++i) client.SendMsg("orders", "b", sends.Callback());
    bench.client.reset();
    CHECK(sends.Count() == kCount);
    CHECK(sends.Confirmed().size() == kCount);
    CHECK(bench.legacy.Messages("orders").size() == kCount);
}

TEST_CASE("a subscription may outlive its client") {
    Collector received;
    Bench bench;
    Client& client = bench.Start();
    Subscription subscription = client.RecvMsg("orders", received.Handler());
    Subscription moved = std::move(subscription);
    CHECK_FALSE(subscription);  // NOLINT(bugprone-use-after-move): empty after a move, by contract
    CHECK(moved);
    client.SendMsg("orders", "b");
    REQUIRE(received.WaitForCount(1));
    bench.client.reset();
    CHECK(bench.legacy.Members("orders", "billing") == 0);
    moved.Close();
    CHECK_FALSE(moved);
}

TEST_CASE("a subscription that is dropped, assigned over or closed takes no more") {
    Collector received;
    Bench bench;
    Client& client = bench.Start();
    client.RecvMsg("orders", received.Handler());
    CHECK(bench.legacy.Members("orders", "billing") == 0);
    Subscription subscription = client.RecvMsg("orders", received.Handler());
    CHECK(bench.legacy.Members("orders", "billing") == 1);
    subscription = client.RecvMsg("invoices", received.Handler());
    CHECK(bench.legacy.Members("orders", "billing") == 0);
    CHECK(bench.legacy.Members("invoices", "billing") == 1);
    subscription.Close();
    subscription.Close();
    CHECK(bench.legacy.Members("invoices", "billing") == 0);
    client.SendMsg("orders", "for nobody");
    CHECK_FALSE(received.WaitForCount(1, milliseconds{50}));
}

TEST_CASE("closing a subscription waits for its handler, and for no longer than it is told") {
    Gate release;
    Gate inside;
    std::atomic<bool> finished{false};
    Bench bench;
    Client& client = bench.Start();
    Subscription subscription = client.RecvMsg("orders", [&](const Message&) {
        inside.Open();
        release.Wait();
        finished = true;
    });
    client.SendMsg("orders", "b");
    REQUIRE(inside.Wait());
    Subscription impatient = client.RecvMsg("orders", [](const Message&) {}, {.group = "other"});
    impatient.Close(milliseconds{0});
    std::thread opener{[&] {
        bench.legacy.WaitUntil([&] { return bench.legacy.Members("orders", "billing") == 0; },
                               mq::test::After());
        release.Open();
    }};
    subscription.Close(kPatience);
    CHECK(finished);
    opener.join();
    // Settled in the end: nothing is left for the next one.
    CHECK(bench.legacy.WaitUntil(
        [&] { return bench.legacy.Backlog("orders", "billing") == mq::memory::Depth{}; },
        mq::test::After()));
}

TEST_CASE("a subscription that is closed by its own handler ends when the handler has returned") {
    Counter handled;
    Gate assigned;
    Subscription subscription;
    Bench bench;
    Client& client = bench.Start();
    subscription = client.RecvMsg("orders", [&](const Message&) {
        assigned.Wait();
        subscription.Close();
        handled.Add();
    });
    client.SendMsg("orders", "one");
    client.SendMsg("orders", "two");
    assigned.Open();
    REQUIRE(handled.WaitFor(1));
    REQUIRE(bench.legacy.WaitUntil([&] { return bench.legacy.Members("orders", "billing") == 0; },
                                   mq::test::After()));
    CHECK(bench.legacy.WaitUntil(
        [&] { return bench.legacy.Backlog("orders", "billing") == mq::memory::Depth{.ready = 1}; },
        mq::test::After()));
    CHECK(handled.Value() == 1);
}

TEST_CASE("a discarded delivery counts as a nack, and a delivery may be settled twice") {
    Collector received;
    Bench bench;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders", [&](Delivery delivery) {
        received.Add(delivery.message());
        if (received.Count() == 1) return;
        delivery.Ack();
        delivery.Nack();
        delivery.Ack();
    });
    client.SendMsg("orders", "b");
    REQUIRE(received.WaitForCount(2));
    CHECK(received.Messages()[1].redelivered);
    REQUIRE(bench.legacy.WaitUntil(
        [&] { return bench.legacy.Backlog("orders", "billing") == mq::memory::Depth{}; },
        mq::test::After()));
    CHECK(bench.legacy.Settled("orders", "billing") == 1);
    CHECK(received.Count() == 2);
}

TEST_CASE("assigning over a delivery nacks the one that was there") {
    DeliveryBox box;
    Collector received;
    Bench bench;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders", [&](Delivery delivery) {
        received.Add(delivery.message());
        if (received.Count() <= 2) return box.Put(std::move(delivery));
        delivery.Ack();
    });
    client.SendMsg("orders", "one");
    client.SendMsg("orders", "two");
    REQUIRE(box.WaitForCount(2));
    auto deliveries = box.Take();
    deliveries[0] = std::move(deliveries[1]);
    REQUIRE(received.WaitForCount(3));
    CHECK(received.Messages()[2].body == "one");
    deliveries[0].Ack();
    CHECK(bench.legacy.WaitUntil([&] { return bench.legacy.Settled("orders", "billing") == 2; },
                                 mq::test::After()));
}

TEST_CASE("a handler that takes a message and one that takes a delivery are told apart") {
    static_assert(mq::MessageHandler<decltype([](const Message&) {})>);
    static_assert(!mq::DeliveryHandler<decltype([](const Message&) {})>);
    static_assert(mq::DeliveryHandler<decltype([](Delivery) {})>);
    static_assert(mq::MessageHandler<decltype([](Message) {})>);
    static_assert(mq::MessageHandler<decltype([](const auto&) {})>);
    static_assert(!mq::MessageHandler<decltype([](int) {})>);
    static_assert(!mq::DeliveryHandler<decltype([](int) {})>);
    SUCCEED();
}

TEST_CASE("concurrency 0 is refused") {
    Bench bench;
    Client& client = bench.Start();
    const auto error = ErrorOf(
        [&] { const auto none = client.RecvMsg("orders", [](const Message&) {}, {.concurrency = 0}); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kInvalidArgument);
}

TEST_CASE("a subscription asks for as many threads as its concurrency") {
    constexpr std::size_t kConcurrency = 24;
    Counter inside;
    Gate release;
    Bench bench;
    bench.config.client.handler_threads = 1;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders",
                                                     [&](const Message&) {
                                                         inside.Add();
                                                         release.Wait();
                                                     },
                                                     {.concurrency = kConcurrency});
    for (std::size_t i = 0; i < kConcurrency; ++i) client.SendMsg("orders", "b");
    CHECK(inside.WaitFor(kConcurrency));
    release.Open();
}

TEST_CASE("a send blocks while too much is unconfirmed, and fails at its deadline") {
    SendLog sends;
    Bench bench;
    bench.config.client.max_in_flight_bytes = 4000;
    bench.config.client.send_timeout = milliseconds{300};
    bench.legacy.SetConfirmDelay(std::chrono::hours{1});
    Client& client = bench.Start();
    const Message message{.body = std::string(1000, 'x')};
    const auto begin = mq::backend::Clock::now();
    // Two of them fit with their fixed part, the third does not.
    client.SendMsg("orders", message, sends.Callback());
    client.SendMsg("orders", message, sends.Callback());
    client.SendMsg("orders", message, sends.Callback());
    // There was no room before the first of them had failed.
    CHECK(mq::backend::Clock::now() - begin >= milliseconds{300});
    REQUIRE(sends.WaitForCount(3));
    for (const auto& failure : sends.Failures()) {
        INFO(failure.what);
        CHECK(failure.code == ErrorCode::kTimeout);
    }
    CHECK(sends.Failures().size() == 3);
    bench.legacy.SetConfirmDelay(milliseconds{0});
    // A loaded machine may take longer than the deadline for one of them.
    CHECK(Eventually([&] { return !ErrorOf([&] { client.SendMsg("orders", message); }); }));
}

TEST_CASE("a send that waits for room goes on when confirms make it") {
    constexpr std::size_t kCount = 200;
    SendLog sends;
    Bench bench;
    bench.config.client.max_in_flight_bytes = 4000;
    bench.legacy.SetConfirmDelay(milliseconds{1});
    Client& client = bench.Start();
    const Message message{.body = std::string(1000, 'x')};
    for (std::size_t i = 0; i < kCount; ++i) client.SendMsg("orders", message, sends.Callback());
    REQUIRE(sends.WaitForCount(kCount));
    CHECK(sends.Failures().empty());
}

TEST_CASE("a message larger than the whole window goes through alone") {
    Collector received;
    Bench bench;
    bench.config.client.max_in_flight_bytes = 1000;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders", received.Handler());
    client.SendMsg("orders", Message{.body = std::string(50'000, 'x')});
    REQUIRE(received.WaitForCount(1));
    CHECK(received.Messages()[0].body.size() == 50'000);
}

TEST_CASE("a callback never waits for room, and fails at twice the bound") {
    SendLog sends;
    Gate done;
    Bench bench;
    bench.config.client.max_in_flight_bytes = 10'000;
    Client& client = bench.Start();
    bench.legacy.RefuseIf({});
    std::atomic<std::size_t> overflows{0};
    client.SendMsg("orders", "first", [&](const SendResult&) {
        bench.legacy.SetConfirmDelay(std::chrono::hours{1});
        for (int i = 0; i < 30; ++i) {
            client.SendMsg("orders", Message{.body = std::string(1000, 'x')}, sends.Callback());
        }
        done.Open();
    });
    REQUIRE(done.Wait());
    bench.legacy.SetConfirmDelay(milliseconds{0});
    REQUIRE(sends.WaitForCount(30));
    for (const auto& failure : sends.Failures()) {
        CHECK(failure.code == ErrorCode::kOverflow);
        ++overflows;
    }
    CHECK(overflows > 0);
    CHECK(sends.Confirmed().size() >= 6);
}

TEST_CASE("what is sent and never taken by a broker stays within its bound and fails at its deadline") {
    constexpr std::size_t kCount = 50;
    SendLog sends;
    Bench bench;
    bench.config.client.max_in_flight_bytes = 20'000;
    bench.config.client.send_timeout = milliseconds{200};
    bench.legacy.Stop();
    Client& client = bench.Start();
    for (std::size_t i = 0; i < kCount; ++i) {
        client.SendMsg("orders", Message{.body = std::string(1000, 'x')}, sends.Callback());
        const auto in_flight = client.Status("orders").old_side.in_flight;
        // A message counts 512 bytes beside its contents.
        if (in_flight > 14) FAIL_CHECK("in flight: " << in_flight);
    }
    REQUIRE(sends.WaitForCount(kCount));
    for (const auto& failure : sends.Failures()) CHECK(failure.outcome == Outcome::kNotSent);
    CHECK(sends.Failures().size() == kCount);
    CHECK(sends.MostForOne() == 1);
}

TEST_CASE("Flush tells whether everything was confirmed in time") {
    SendLog sends;
    Bench bench;
    bench.legacy.SetConfirmDelay(std::chrono::hours{1});
    Client& client = bench.Start();
    CHECK(client.Flush(milliseconds{0}));
    client.SendMsg("orders", "b", sends.Callback());
    CHECK_FALSE(client.Flush(milliseconds{50}));
    std::thread later{[&] { bench.legacy.SetConfirmDelay(milliseconds{0}); }};
    CHECK(client.Flush(kPatience));
    CHECK(sends.Count() == 1);
    later.join();
}

TEST_CASE("Flush waits for callbacks too") {
    std::atomic<bool> returned{false};
    Gate release;
    Gate inside;
    Bench bench;
    Client& client = bench.Start();
    client.SendMsg("orders", "b", [&](const SendResult&) {
        inside.Open();
        release.Wait();
        returned = true;
    });
    REQUIRE(inside.Wait());
    CHECK_FALSE(client.Flush(milliseconds{20}));
    release.Open();
    CHECK(client.Flush(kPatience));
    CHECK(returned);
}

TEST_CASE("Status counts what has gone through each side") {
    constexpr std::size_t kCount = 10;
    DeliveryBox box;
    Bench bench;
    Client& client = bench.Start();
    mq::TopicStatus status = client.Status("orders");
    CHECK(status.topic == "orders");
    CHECK(status.policy == Policy::kOld);
    CHECK(status.stage == Policy::kOld);
    CHECK(status.waiting_for.empty());
    CHECK(status.old_side.broker == "legacy");
    CHECK(status.new_side.broker == "next");
    CHECK(status.old_side.publishing);
    CHECK_FALSE(status.new_side.publishing);
    CHECK_FALSE(status.old_side.subscribed);

    Subscription subscription = client.RecvMsg("orders", box.Handler());
    for (std::size_t i = 0; i < kCount; ++i) client.SendMsg("orders", "b");
    bench.legacy.RefuseNext(1);
    CHECK(ErrorOf([&] { client.SendMsg("orders", "refused"); }));
    REQUIRE(box.WaitForCount(kCount));
    auto deliveries = box.Take();
    for (std::size_t i = 0; i < 4; ++i) deliveries[i].Ack();
    status = client.Status("orders");
    CHECK(status.old_side.subscribed);
    CHECK(status.old_side.published == kCount + 1);
    CHECK(status.old_side.confirmed == kCount);
    CHECK(status.old_side.failed == 1);
    CHECK(status.old_side.in_flight == 0);
    CHECK(status.old_side.received == kCount);
    CHECK(status.old_side.processed == 4);
    CHECK(status.old_side.unsettled == kCount - 4);
    CHECK(status.new_side.published == 0);
    CHECK(status.new_side.received == 0);
    // What a closed subscription has done still counts.
    for (Delivery& delivery : deliveries) delivery.Ack();
    subscription.Close();
    status = client.Status("orders");
    CHECK(status.old_side.received == kCount);
    CHECK(status.old_side.processed == kCount);

    status = client.Status("invoices");
    CHECK(status.old_side.broker == "legacy");
    CHECK(status.new_side.broker.empty());
}

TEST_CASE("a policy is walked to, and business code sees none of it") {
    Collector received;
    Bench bench;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders", received.Handler());
    for (const Policy policy :
         {Policy::kNew, Policy::kOld, Policy::kNewPublish, Policy::kDualSubscribe}) {
        INFO(ToString(policy));
        client.SetPolicy("orders", policy);
        CHECK(client.Status("orders").policy == policy);
        client.SendMsg("orders", Message{.id = "before " + std::string{ToString(policy)}});
        REQUIRE(bench.WaitForStage("orders", policy));
        const std::string id = "at " + std::string{ToString(policy)};
        client.SendMsg("orders", Message{.id = id});
        REQUIRE(received.WaitForIds({"before " + std::string{ToString(policy)}, id}));
        const mq::TopicStatus status = client.Status("orders");
        const bool at_new = policy == Policy::kNew || policy == Policy::kNewPublish;
        CHECK(status.new_side.publishing == at_new);
        CHECK(status.old_side.subscribed == (policy != Policy::kNew));
        CHECK(status.new_side.subscribed == (policy != Policy::kOld));
        CHECK(status.waiting_for.empty());
        for (const Message& message : received.Messages()) {
            if (message.id == id) CHECK(message.side == (at_new ? mq::Side::kNew : mq::Side::kOld));
        }
    }
    CHECK(received.Count() == 8);
}

TEST_CASE("a topic of one broker has no ladder to walk") {
    Bench bench;
    Client& client = bench.Start();
    const auto error = ErrorOf([&] { client.SetPolicy("invoices", Policy::kNew); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kInvalidArgument);
    CHECK(Contains(error->what(), "invoices"));
    CHECK(client.Status("invoices").policy == Policy::kOld);
}

TEST_CASE("a broker that cannot be reached fails RecvMsg at its deadline, saying why") {
    Bench bench;
    bench.config.client.subscribe_timeout = milliseconds{500};
    bench.legacy.Stop();
    Client& client = bench.Start();
    const auto begin = mq::backend::Clock::now();
    const auto error =
        ErrorOf([&] { const auto none = client.RecvMsg("orders", [](const Message&) {}); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kUnavailable);
    CHECK(Contains(error->what(), "stopped"));
    CHECK(mq::backend::Clock::now() - begin >= milliseconds{500});
    bench.legacy.Start();
    // What failed has left nothing behind.
    CHECK(bench.legacy.Members("orders", "billing") == 0);
    Collector received;
    Subscription subscription;
    // A loaded machine may take longer than the deadline for one of them.
    REQUIRE(Eventually([&] {
        return !ErrorOf([&] { subscription = client.RecvMsg("orders", received.Handler()); });
    }));
    client.SendMsg("orders", "b");
    CHECK(received.WaitForCount(1));
    bench.client.reset();
}

TEST_CASE("a reload applies a policy, quiet periods and groups, and adds brokers and topics") {
    Collector received;
    Bench bench;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders", received.Handler());
    Config wanted = bench.config;
    wanted.topics["orders"].policy = Policy::kNewPublish;
    wanted.topics["orders"].groups = {"billing"};
    wanted.brokers["third"].url = "memory://" + mq::test::UniqueId("third");
    wanted.topics["refunds"] = {.broker = "third"};
    client.Reload(wanted);
    CHECK(client.Status("orders").policy == Policy::kNewPublish);
    wanted.topics["returns"] = {.broker = "third"};
    client.Reload(wanted);
    CHECK_NOTHROW(client.SendMsg("refunds", "b"));
    REQUIRE(bench.WaitForStage("orders", Policy::kNewPublish));
    wanted.topics["orders"] = bench.config.topics["orders"];
    wanted.topics.erase("returns");
    client.Reload(wanted);
    CHECK(client.Status("orders").policy == Policy::kOld);
    const auto gone = ErrorOf([&] { client.SendMsg("returns", "b"); });
    REQUIRE(gone);
    CHECK(gone->code() == ErrorCode::kUnknownTopic);
    REQUIRE(bench.WaitForStage("orders", Policy::kOld));
}

TEST_CASE("a reload with any problem changes nothing, and names every problem") {
    Collector received;
    Bench bench;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("invoices", received.Handler());
    client.SendMsg("orders", "b");
    Config wanted = bench.config;
    wanted.topics["orders"].policy = Policy::kNew;             // fine by itself
    wanted.topics["refunds"] = {.broker = "next"};             // fine by itself
    wanted.brokers["legacy"].url = "memory://somewhere-else";  // in use
    wanted.topics.erase("invoices");                           // subscribed
    wanted.client.prefetch = 17;                               // fixed for a running client
    const auto error = ErrorOf([&] { client.Reload(wanted); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kConfig);
    CHECK(Contains(error->what(), "brokers.legacy.url"));
    CHECK(Contains(error->what(), "topics.invoices"));
    CHECK(Contains(error->what(), "client.prefetch"));
    CHECK(client.Status("orders").policy == Policy::kOld);
    CHECK(ErrorOf([&] { client.SendMsg("refunds", "b"); })->code() == ErrorCode::kUnknownTopic);
    CHECK_NOTHROW(client.SendMsg("invoices", "b"));
    CHECK(received.WaitForCount(1));

    Config wrong = bench.config;
    wrong.topics["orders"].policy = Policy::kNew;
    wrong.topics["orders"].new_broker = "nobody";
    CHECK(ErrorOf([&] { client.Reload(wrong); }));
    CHECK(client.Status("orders").policy == Policy::kOld);
}

TEST_CASE("a reload brings back what the config says after a SetPolicy") {
    Bench bench;
    Client& client = bench.Start();
    client.SetPolicy("orders", Policy::kDualSubscribe);
    REQUIRE(bench.WaitForStage("orders", Policy::kDualSubscribe));
    client.Reload(bench.config);
    CHECK(client.Status("orders").policy == Policy::kOld);
    CHECK(bench.WaitForStage("orders", Policy::kOld));
}

TEST_CASE("a watched file is followed, and a bad edit is reported and not applied") {
    TemporaryFile file;
    Bench bench;
    Client& client = bench.Start();
    file.Write(Toml(bench, "dual-subscribe"));
    client.Watch(file.path());
    CHECK(client.Status("orders").policy == Policy::kDualSubscribe);
    REQUIRE(bench.WaitForStage("orders", Policy::kDualSubscribe));

    file.Write(Toml(bench, "sideways"));
    REQUIRE(bench.log.WaitForLine("sideways"));
    CHECK(client.Status("orders").policy == Policy::kDualSubscribe);
    bool told_as_error = false;
    for (const auto& [level, line] : bench.log.Lines()) {
        if (Contains(line, "sideways")) told_as_error = level == mq::LogLevel::kError;
    }
    CHECK(told_as_error);

    file.Write(Toml(bench, "old"));
    CHECK(bench.WaitForStage("orders", Policy::kOld));

    // Another file instead: the first one is no longer followed.
    TemporaryFile second;
    second.Write(Toml(bench, "dual-subscribe"));
    client.Watch(second.path());
    REQUIRE(bench.WaitForStage("orders", Policy::kDualSubscribe));
    file.Write(Toml(bench, "crooked"));
    second.Write(Toml(bench, "old"));
    REQUIRE(bench.WaitForStage("orders", Policy::kOld));
    for (const auto& [level, line] : bench.log.Lines()) CHECK_FALSE(Contains(line, "crooked"));
    bench.client.reset();
}

TEST_CASE("many threads send, subscribe, change the policy and look at the status of one client") {
    constexpr std::size_t kSenders = 3;
    constexpr std::size_t kEach = 400;
    Collector received;
    SendLog sends;
    mq::test::Notes failures;
    Bench bench;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders", received.Handler(), {.concurrency = 4});
    std::atomic<bool> done{false};
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < kSenders; ++i) {
        threads.emplace_back([&] {
            for (std::size_t turn = 0; turn < kEach; ++turn) {
                client.SendMsg("orders", Message{.key = std::to_string(turn % 10)}, sends.Callback());
            }
        });
    }
    threads.emplace_back([&] {
        for (int turn = 0; !done; ++turn) {
            const auto error = ErrorOf([&] {
                client.SetPolicy("orders", mq::kPolicies[static_cast<std::size_t>(turn * 3 % 4)]);
                const Subscription other = client.RecvMsg("orders", [](const Message&) {},
                                                          {.group = "group " + std::to_string(turn)});
            });
            if (error) return failures.Add(error->what());
        }
    });
    threads.emplace_back([&] {
        while (!done) {
            const mq::SideStatus side = client.Status("orders").old_side;
            if (side.confirmed + side.failed > side.published) failures.Add("more ends than sends");
            const auto error = ErrorOf([&] { client.Reload(bench.config); });
            if (error) return failures.Add(error->what());
        }
    });
    const bool confirmed = sends.WaitForCount(kSenders * kEach);
    const bool all = received.WaitForIds(sends.Confirmed());
    done = true;
    for (std::thread& thread : threads) thread.join();
    CHECK(confirmed);
    CHECK(sends.Failures().empty());
    CHECK(sends.MostForOne() == 1);
    CHECK(failures.All() == std::vector<std::string>{});
    CHECK(all);
}

TEST_CASE("what a handler returns is dropped, also where it asks not to be") {
    struct [[nodiscard]] Answer {};
    Counter handled;
    Bench bench;
    Client& client = bench.Start();
    const auto handler = [&](const Message&) {
        handled.Add();
        return Answer{};
    };
    const Subscription a = client.RecvMsg("orders", handler);
    const Subscription b = client.RecvMsg("invoices", [&](Delivery delivery) {
        delivery.Ack();
        handled.Add();
        return Answer{};
    });
    client.SendMsg("orders", "b");
    client.SendMsg("invoices", "b", [](const SendResult&) { return Answer{}; });
    CHECK(handled.WaitFor(2));
}

TEST_CASE("an empty handler is refused") {
    Bench bench;
    Client& client = bench.Start();
    const auto check = [&](auto handler) {
        const auto error = ErrorOf([&] { const auto none = client.RecvMsg("orders", handler); });
        REQUIRE(error);
        CHECK(error->code() == ErrorCode::kInvalidArgument);
    };
    check(std::function<void(const Message&)>{});
    check(std::function<void(Delivery)>{});
    check(static_cast<void (*)(const Message&)>(nullptr));
    check(static_cast<std::string Message::*>(nullptr));
    std::function<void(const Message&)> nothing;
    check(std::ref(nothing));
    CHECK(bench.legacy.Members("orders", "billing") == 0);
}

TEST_CASE("an empty send callback is refused, and nothing is sent") {
    Bench bench;
    Client& client = bench.Start();
    const auto check = [&](auto callback) {
        for (const std::string_view topic : {"invoices", "nowhere"}) {
            const auto error = ErrorOf([&] { client.SendMsg(topic, Message{}, callback); });
            REQUIRE(error);
            CHECK(error->code() == ErrorCode::kInvalidArgument);
            CHECK(error->outcome() == Outcome::kNotSent);
        }
        CHECK(ErrorOf([&] { client.SendMsg("invoices", "b", callback); }));
    };
    check(std::function<void(const SendResult&)>{});
    check(static_cast<void (*)(const SendResult&)>(nullptr));
    check(static_cast<bool (SendResult::*)() const>(nullptr));
    std::function<void(const SendResult&)> nothing;
    check(std::ref(nothing));
    const auto empty = ErrorOf([&] { client.SendMsg("invoices", Message{}, mq::SendCallback{}); });
    REQUIRE(empty);
    CHECK(empty->code() == ErrorCode::kInvalidArgument);
    CHECK(client.Flush(kPatience));
    CHECK(bench.legacy.Messages("invoices").empty());
}

TEST_CASE("a prefetch that no broker can carry is refused, and 0 is the config's") {
    Bench bench;
    Client& client = bench.Start();
    const auto subscribe = [&](std::size_t prefetch) {
        return ErrorOf([&] {
            const auto none = client.RecvMsg("orders", [](const Message&) {}, {.prefetch = prefetch});
        });
    };
    for (const std::size_t prefetch : {std::size_t{65536}, static_cast<std::size_t>(-1)}) {
        const auto error = subscribe(prefetch);
        REQUIRE(error);
        CHECK(error->code() == ErrorCode::kInvalidArgument);
        CHECK(Contains(error->what(), "65535"));
    }
    for (const std::size_t prefetch : {0u, 1u, 65535u}) CHECK_FALSE(subscribe(prefetch));
}

TEST_CASE("a blocking send in a callback goes the other way as well, and counts as no failure") {
    Bench bench;
    bench.config.client.send_timeout = std::chrono::seconds{2};
    bench.config.topics["orders"].policy = Policy::kDualSubscribe;
    bench.config.topics["orders"].failover = true;
    Collector received;
    Client& client = bench.Start();
    const Subscription subscription = client.RecvMsg("orders", received.Handler());
    const auto deadline = mq::test::After();
    while (!client.Status("orders").failover && mq::backend::Clock::now() < deadline) {
        bench.never.WaitFor(1, milliseconds{2});
    }
    REQUIRE(client.Status("orders").failover);
    bench.legacy.Stop();
    std::optional<Error> error;
    Counter done;
    client.SendMsg("nowhere", "b", [&](const SendResult&) {
        error = ErrorOf([&] { client.SendMsg("orders", "from the callback"); });
        done.Add();
    });
    REQUIRE(done.WaitFor(1));
    CHECK_FALSE(error);
    CHECK(received.WaitForCount(1));
    CHECK(bench.next.Messages("orders").size() == 1);
    const mq::TopicStatus status = client.Status("orders");
    CHECK(status.old_side.failed == 0);
    CHECK(status.new_side.failed == 0);
    CHECK(status.old_side.in_flight + status.new_side.in_flight == 0);
    bench.legacy.Start();
}

TEST_CASE("nothing of an earlier file is applied once another one is watched") {
    // The files name a policy each; the loader is the test's own, so that it can change the first file
    // while the second is being read.
    const Bench bench;
    static const Bench* bench_of_loader = nullptr;
    static std::filesystem::path first_path;
    static std::atomic<bool> change_first{false};
    bench_of_loader = &bench;
    const TemporaryFile first;
    const TemporaryFile second;
    first_path = first.path();
    first.Write("old");
    second.Write("new");
    mq::detail::ConfigLoader const real = mq::detail::FindConfigLoader();
    mq::detail::RegisterConfigLoader([](const std::filesystem::path& path) {
        Config config = bench_of_loader->config;
        if (path == first_path) {
            config.topics["orders"].policy = Policy::kDualSubscribe;
            return config;
        }
        if (change_first.exchange(false)) {
            std::ofstream{first_path} << "again";
            Counter{}.WaitFor(1, kGlance);  // gives an earlier watcher the time to see it
        }
        return config;
    });
    {
        Client client{bench.config};
        client.Watch(first.path());
        CHECK(client.Status("orders").policy == Policy::kDualSubscribe);
        change_first = true;
        client.Watch(second.path());
        CHECK(client.Status("orders").policy == Policy::kOld);
    }
    mq::detail::RegisterConfigLoader(real);
}
