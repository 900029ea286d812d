/// @file client_close_test.cpp
/// How a client ends: by whom, in which order, beside what, and what it answers afterwards.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "../support/wait.hpp"
#include "probe_backend.hpp"
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

using mq::Client;
using mq::Config;
using mq::Error;
using mq::ErrorCode;
using mq::Message;
using mq::Policy;
using mq::SendResult;
using mq::Subscription;
using mq::test::Counter;
using mq::test::Eventually;
using mq::test::Gate;
using mq::test::kGlance;
using mq::test::kPatience;
using mq::test::Probe;
using mq::test::SendLog;
using std::chrono::milliseconds;

namespace {

// A broker that no other test uses, with a topic on it, and a config that a second one can be added to.
struct Bench {
    Bench() {
        config.client.group = "billing";
        config.brokers["only"].url = "memory://" + name;
        config.topics["orders"].broker = "only";
        config.topics["invoices"].broker = "only";
    }

    [[nodiscard]] bool WaitForMembers(std::size_t count) const {
        return broker.WaitUntil([&] { return broker.Members("orders", "billing") == count; },
                                mq::test::After());
    }

    [[nodiscard]] bool WaitForNothingLeft() const {
        return broker.WaitUntil(
            [&] { return broker.Backlog("orders", "billing") == mq::memory::Depth{}; },
            mq::test::After());
    }

    const std::string name = mq::test::UniqueId("only");
    mq::memory::Broker& broker = mq::memory::Broker::Find(name);
    Config config = {};
    mq::test::RecordingLog log = {};
};

// A client on a broker that writes down in which order things are closed.
struct ProbeBench {
    ProbeBench() {
        mq::test::RegisterProbe();
        config.brokers["only"].url = "probe://" + name;
        config.topics["orders"].broker = "only";
        client = std::make_unique<Client>(config);
    }

    const std::string name = mq::test::UniqueId("probe");
    Probe& probe = Probe::Of(name);
    Config config = {};
    std::unique_ptr<Client> client = {};
};

// Options by which a test sees when a client, with all that it owns, is gone.
class Life {
public:
    mq::ClientOptions Options(mq::test::RecordingLog& log) {
        auto alive = std::make_shared<int>(0);
        alive_ = alive;
        return {.log = [alive, sink = log.Sink()](mq::LogLevel level, std::string_view line) {
            sink(level, line);
        }};
    }

    [[nodiscard]] bool WaitForEnd() const {
        return Eventually([this] { return alive_.expired(); });
    }

private:
    std::weak_ptr<int> alive_;
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

}  // namespace

TEST_CASE("a client may live and end in a handler or a callback of another one") {
    Bench bench;
    Client client{bench.config};
    Counter done;
    std::atomic<bool> flushed{false};
    std::optional<Error> closed;
    const auto use = [&](std::string_view topic) {
        auto other = std::make_unique<Client>(bench.config);
        bench.broker.SetConfirmDelay(milliseconds{20});
        SendLog sends;
        other->SendMsg(topic, "b", sends.Callback());
        flushed = other->Flush(kPatience) && sends.Count() == 1;
        closed = ErrorOf([&] { other->Close(kPatience); });
        other.reset();
        done.Add();
    };
    SECTION("in a handler") {
        const Subscription subscription =
            client.RecvMsg("orders", [&](const Message&) { use("invoices"); });
        client.SendMsg("orders", "b");
        REQUIRE(done.WaitFor(1));
    }
    SECTION("in a callback") {
        client.SendMsg("orders", "b", [&](const SendResult&) { use("invoices"); });
        REQUIRE(done.WaitFor(1));
    }
    CHECK(flushed);
    CHECK_FALSE(closed);
}

TEST_CASE("a client that one of its own handlers destroys ends when the handler has returned") {
    Bench bench;
    Life life;
    auto client = std::make_unique<Client>(bench.config, life.Options(bench.log));
    Gate ready;
    Gate release;
    Counter handled;
    Subscription subscription = client->RecvMsg("orders", [&](const Message&) {
        ready.Wait();
        client.reset();
        handled.Add();
        release.Wait();
    });
    client->SendMsg("orders", "b");
    ready.Open();
    REQUIRE(handled.WaitFor(1));
    CHECK(bench.log.WaitForLine("has destroyed its own client"));
    release.Open();
    CHECK(bench.WaitForMembers(0));
    CHECK(bench.WaitForNothingLeft());  // the message of that handler is settled
    subscription.Close();               // it knows the log as well
    CHECK(life.WaitForEnd());
}

TEST_CASE("a client that one of its own callbacks destroys ends when the callback has returned") {
    Bench bench;
    Life life;
    SendLog sends;
    auto client = std::make_shared<Client>(bench.config, life.Options(bench.log));
    SECTION("by dropping it") {
        Gate ready;
        client->SendMsg("orders", "b", [&](const SendResult& result) {
            ready.Wait();
            client.reset();
            sends.Add(result);
        });
        client->SendMsg("orders", "b", sends.Callback());
        ready.Open();
        REQUIRE(sends.WaitForCount(2));
    }
    SECTION("by being the last to own it") {
        Client& last = *client;
        last.SendMsg("orders", "b", [&sends, owner = std::move(client)](const SendResult& result) {
            sends.Add(result);
        });
        REQUIRE(sends.WaitForCount(1));
    }
    CHECK(life.WaitForEnd());
    CHECK(sends.Failures().empty());
}

TEST_CASE("a handler is destroyed with what it owns when its subscription is closed") {
    Bench bench;
    Client client{bench.config};
    auto owned = std::make_shared<Subscription>();
    const std::weak_ptr<Subscription> alive = owned;
    // It owns the very subscription that it handles, and asks the client for its status at its end.
    struct Ending {
        explicit Ending(Client& owner) : client(owner) {}
        Ending(const Ending&) = delete;
        Ending& operator=(const Ending&) = delete;
        ~Ending() { static_cast<void>(client.Status("orders")); }
        Client& client;
    };
    auto ending = std::make_unique<Ending>(client);
    *owned = client.RecvMsg("orders", [owned, ending = std::move(ending)](const Message&) {});
    Subscription& subscription = *owned;
    owned.reset();
    CHECK_FALSE(alive.expired());
    SECTION("by its subscription") { subscription.Close(); }
    SECTION("by its client") { client.Close(kPatience); }
    CHECK(alive.expired());
}

TEST_CASE("a client's close waits for a subscription that another thread is closing") {
    ProbeBench bench;
    Subscription subscription = bench.client->RecvMsg("orders", [](const Message&) {});
    std::thread subscriber{[&] { subscription.Close(); }};
    REQUIRE(bench.probe.WaitFor("consumer begins to close"));
    std::thread owner{[&] { bench.client.reset(); }};
    CHECK_FALSE(bench.probe.WaitFor("backend is closed", kGlance));
    bench.probe.close_consumer.Open();
    subscriber.join();
    owner.join();
    const auto events = bench.probe.Events();
    CHECK(std::find(events.begin(), events.end(), "consumer is closed") <
          std::find(events.begin(), events.end(), "backend is closed"));
}

TEST_CASE("a client's close leaves the broker in place of a close that takes longer") {
    ProbeBench bench;
    bench.probe.deliver = true;
    bench.probe.close_consumer.Open();
    Gate inside;
    Gate release;
    Subscription subscription = bench.client->RecvMsg("orders", [&](const Message&) {
        inside.Open();
        release.Wait();
    });
    REQUIRE(inside.Wait());
    std::thread subscriber{[&] { subscription.Close(kPatience); }};
    REQUIRE(bench.probe.WaitFor("consumer stops"));
    std::thread owner{[&] {
        bench.client->Close(milliseconds{20});
        bench.client.reset();
    }};
    CHECK(bench.probe.WaitFor("backend is closed"));
    release.Open();
    subscriber.join();
    owner.join();
    const auto events = bench.probe.Events();
    const auto closed = std::find(events.begin(), events.end(), "consumer is closed");
    CHECK(closed < std::find(events.begin(), events.end(), "backend is closed"));
    CHECK(bench.probe.Count("consumer is closed") == 1);
}

TEST_CASE("a client's close waits for a subscription that its own handler has closed") {
    ProbeBench bench;
    bench.probe.deliver = true;
    bench.probe.close_consumer.Open();
    Gate assigned;
    Gate closed;
    Gate release;
    Subscription subscription;
    subscription = bench.client->RecvMsg("orders", [&](const Message&) {
        assigned.Wait();
        subscription.Close();
        closed.Open();
        release.Wait();
    });
    assigned.Open();
    REQUIRE(closed.Wait());
    std::thread owner{[&] { bench.client->Close(kPatience); }};
    CHECK_FALSE(bench.probe.WaitFor("backend is closed", kGlance));
    release.Open();
    owner.join();
    const auto events = bench.probe.Events();
    const auto at = [&](const std::string& event) {
        return std::find(events.begin(), events.end(), event);
    };
    CHECK(at("message is settled") < at("consumer is closed"));
    CHECK(at("consumer is closed") < at("backend is closed"));
}

TEST_CASE("a subscription that has not begun ends with its client") {
    Bench bench;
    bench.config.client.subscribe_timeout = 2 * kPatience;
    Client client{bench.config};
    bench.broker.Stop();
    std::optional<Error> error;
    std::thread subscriber{[&] {
        error = ErrorOf([&] { const auto none = client.RecvMsg("orders", [](const Message&) {}); });
    }};
    CHECK(Eventually([&] { return client.Status("orders").old_side.subscribed; }));
    client.Close(kPatience);
    subscriber.join();
    bench.broker.Start();
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kClosed);
}

TEST_CASE("a closed client stays closed") {
    Bench bench;
    bench.config.brokers["next"].url = "memory://" + mq::test::UniqueId("next");
    bench.config.topics["moving"] = {.old_broker = "only", .new_broker = "next"};
    Client client{bench.config};
    client.Close();
    Config config = bench.config;
    config.topics["fresh"].broker = "only";
    const auto check = [](const std::optional<Error>& error) {
        REQUIRE(error);
        CHECK(error->code() == ErrorCode::kClosed);
    };
    check(ErrorOf([&] { client.Reload(config); }));
    check(ErrorOf([&] { client.Watch("/nowhere/mq.toml"); }));
    check(ErrorOf([&] { client.SetPolicy("moving", Policy::kNew); }));
    CHECK(client.Status("moving").policy == Policy::kOld);
    const auto unknown = ErrorOf([&] { client.SendMsg("fresh", "b"); });
    REQUIRE(unknown);
    CHECK(unknown->code() == ErrorCode::kUnknownTopic);
}

TEST_CASE("the longest and the shortest timeouts are what they say") {
    Bench bench;
    Client client{bench.config};
    bench.broker.SetConfirmDelay(milliseconds{50});
    SendLog sends;
    client.SendMsg("orders", "b", sends.Callback());
    CHECK_FALSE(client.Flush(milliseconds::min()));
    CHECK(client.Flush(milliseconds::max()));
    CHECK(sends.Count() == 1);
    Subscription subscription = client.RecvMsg("orders", [](const Message&) {});
    subscription.Close(milliseconds::max());
    client.SendMsg("orders", "b", sends.Callback());
    client.Close(milliseconds::max());
    CHECK(sends.Confirmed().size() == 2);
}

TEST_CASE("a client whose adapter never comes back ends all the same, and says so") {
    Life life;
    mq::test::RecordingLog log;
    mq::test::RegisterProbe();
    const std::string name = mq::test::UniqueId("probe");
    Probe& probe = Probe::Of(name);
    Config config;
    config.brokers["only"].url = "probe://" + name;
    config.topics["orders"].broker = "only";
    auto client = std::make_unique<Client>(config, life.Options(log));
    Subscription subscription = client->RecvMsg("orders", [](const Message&) {});
    client->Close(milliseconds{0});
    CHECK(log.WaitForLine("the client ends without a subscription", milliseconds{0}));
    client.reset();
    // What was left behind goes when it comes back at last, and nobody hears of it.
    const std::size_t lines = log.Lines().size();
    probe.close_consumer.Open();
    subscription.Close();
    CHECK(life.WaitForEnd());
    CHECK(log.Lines().size() == lines);
}

TEST_CASE("the end of a client names the handler that it waits for") {
    Bench bench;
    auto client = std::make_unique<Client>(bench.config, mq::ClientOptions{.log = bench.log.Sink()});
    Gate inside;
    Gate release;
    Subscription subscription = client->RecvMsg("orders", [&](const Message&) {
        inside.Open();
        release.Wait();
    });
    client->SendMsg("orders", "b");
    REQUIRE(inside.Wait());
    std::thread owner{[&] {
        client->Close(milliseconds{20});
        client.reset();
    }};
    CHECK(bench.log.WaitForLine("a handler of topic orders, group billing has not returned"));
    release.Open();
    owner.join();
}
