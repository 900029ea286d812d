/// @file conformance_memory_test.cpp
/// The conformance suite on the in-memory broker, and what its handle alone makes testable: confirms
/// that are lost.
#include "suite.hpp"
#include <mq/backends/memory.hpp>

#include <chrono>
#include <optional>
#include <string>

namespace {

class MemoryTarget final : public mq::conformance::Target {
public:
    [[nodiscard]] mq::conformance::Traits traits() const override {
        return {.new_group_sees_older = true, .tells_redelivered = true};
    }

    // The log is small enough to be full before the memory is measured for the first time.
    [[nodiscard]] mq::BrokerConfig Broker() override {
        return {.url = kUrl, .options = {{"capacity", "2000"}}};
    }

    [[nodiscard]] std::optional<mq::BrokerConfig> BrokerThatDeclaresNothing() override {
        return mq::BrokerConfig{.url = kUrl, .options = {{"declare", "false"}}};
    }

    bool Stop() override {
        broker_.Stop();
        return true;
    }
    void Start() override { broker_.Start(); }
    bool LoseConfirm() override {
        broker_.LoseConfirms(1);
        return true;
    }

private:
    static constexpr const char* kUrl = "memory://conformance";

    mq::memory::Broker& broker_ = mq::memory::Broker::Find("conformance");
};

// The migration tests walk between two brokers in memory.
const bool kRegistered =
    mq::conformance::RegisterSuite<MemoryTarget>("memory", "[memory]", {.pairs = false});

/// A broker that nothing else uses, and a client of it with a short deadline for sends.
struct Lossy {
    explicit Lossy(std::chrono::milliseconds send_timeout) {
        world.config.client.send_timeout = send_timeout;
    }

    const std::string name = mq::test::UniqueId("lossy");
    MemoryTarget target = {};
    mq::conformance::World world{target, {.url = "memory://" + name}};
    mq::memory::Broker& broker = mq::memory::Broker::Find(name);
};

}  // namespace

TEST_CASE("memory: a send whose confirm is lost is of unknown outcome, and the message is there",
          "[conformance][memory]") {
    mq::test::Collector received;
    Lossy lossy{std::chrono::milliseconds{400}};
    mq::Client& client = lossy.world.NewClient();
    const mq::Subscription subscription = client.RecvMsg("orders", received.Handler());
    lossy.broker.LoseConfirms(1);
    const auto error =
        mq::conformance::ErrorOf([&] { client.SendMsg("orders", mq::Message{.id = "lost confirm"}); });
    REQUIRE(error);
    CHECK(error->code() == mq::ErrorCode::kTimeout);
    CHECK(error->outcome() == mq::Outcome::kUnknown);
    CHECK(received.WaitForIds({"lost confirm"}));
    CHECK_NOTHROW(client.SendMsg("orders", mq::Message{.id = "next"}));
    CHECK(received.WaitForIds({"next"}));
    CHECK(received.Times("lost confirm") == 1);
}

TEST_CASE("memory: a send whose confirm is lost with the connection is repeated and says so",
          "[conformance][memory]") {
    mq::test::Collector received;
    mq::test::SendLog sends;
    Lossy lossy{mq::test::kPatience};
    mq::Client& client = lossy.world.NewClient();
    const mq::Subscription subscription = client.RecvMsg("orders", received.Handler());
    lossy.broker.LoseConfirms(1);
    client.SendMsg("orders", mq::Message{.id = "repeated"}, sends.Callback());
    REQUIRE(received.WaitForIds({"repeated"}));
    CHECK(sends.Count() == 0);
    // What is not settled when the broker stops would be delivered once more.
    const std::string address = lossy.world.Topic().address;
    const std::string group = lossy.world.group;
    REQUIRE(lossy.broker.WaitUntil([&] { return lossy.broker.Settled(address, group) == 1; },
                                   mq::test::After()));
    lossy.broker.Stop();
    lossy.broker.Start();
    REQUIRE(sends.WaitForCount(1));
    CHECK(sends.Failures().empty());
    REQUIRE(received.WaitForCount(2));
    CHECK(received.Times("repeated") == 2);
    CHECK_FALSE(received.Messages()[0].redelivered);
    CHECK(received.Messages()[1].redelivered);
}

TEST_CASE("memory: a refused send fails with the broker's refusal, and the next one is not affected",
          "[conformance][memory]") {
    mq::test::Collector received;
    Lossy lossy{mq::test::kPatience};
    mq::Client& client = lossy.world.NewClient();
    const mq::Subscription subscription = client.RecvMsg("orders", received.Handler());
    lossy.broker.RefuseNext(1);
    const auto error = mq::conformance::ErrorOf([&] { client.SendMsg("orders", "refused"); });
    REQUIRE(error);
    CHECK(error->code() == mq::ErrorCode::kRefused);
    CHECK(error->outcome() == mq::Outcome::kNotSent);
    client.SendMsg("orders", "taken");
    REQUIRE(received.WaitForCount(1));
    CHECK(received.Bodies() == std::vector<std::string>{"taken"});
}
