/// @file kafka_outage_test.cpp
/// The Kafka adapter while its broker is killed or stands still. MQ_TEST_RESTART_KAFKA_DIR names the
/// folder of a broker that tests/brokers/kafka.sh has started and nobody else uses.
#include "../support/broker_process.hpp"
#include "../support/catch.hpp"
#include "../support/kafka_fixture.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace {

using mq::Outcome;
using mq::backend::Backlog;
using mq::test::After;
using mq::test::BrokerProcess;
using mq::test::MakePublication;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using namespace mq::test::kafka;
using namespace std::chrono_literals;
using Phase = mq::backend::ConsumerState::Phase;

constexpr const char* kFolder = "MQ_TEST_RESTART_KAFKA_DIR";

/// Publishes numbered messages, some hundred ahead of their confirms, until it is told to end.
class SteadyPublisher {
public:
    SteadyPublisher(Client& client, DestinationPtr destination)
        : thread_([this, &client, its = std::move(destination)] {
              const auto publisher = client.backend->MakePublisher(its);
              std::size_t sent = 0;
              while (!ended_ && client.sink.WaitForFinished(sent > 200 ? sent - 200 : 0, 120s)) {
                  publisher->Publish(MakePublication(std::to_string(sent++), "key", 120s));
              }
              count_ = sent;
          }) {}
    SteadyPublisher(const SteadyPublisher&) = delete;
    SteadyPublisher& operator=(const SteadyPublisher&) = delete;
    ~SteadyPublisher() { End(); }

    /// Returns how many it has published.
    std::size_t End() {
        ended_ = true;
        if (thread_.joinable()) thread_.join();
        return count_;
    }

private:
    std::atomic<bool> ended_ = false;
    std::size_t count_ = 0;
    std::thread thread_;
};

}  // namespace

TEST_CASE("Kafka: killed and started twice in the middle of traffic, it loses and repeats nothing",
          "[kafka][restart]") {
    const std::string url = RealUrl("url", kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"kafka", std::getenv(kFolder)};
    Client client{url, {}, 120s};
    const auto destination = Fresh();
    const std::string group = Group();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, group, receiver, 50);
    SteadyPublisher publisher{client, destination};
    for (std::size_t round = 1; round <= 2; ++round) {
        REQUIRE(receiver->WaitForMessages(receiver->Count() + 500));
        broker.Kill();
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
        CHECK(client.backend->CheckBacklog(*destination, group, After()).answer ==
              Backlog::Answer::kUnknown);
        broker.Start();
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive, 60s));
    }
    REQUIRE(receiver->WaitForMessages(receiver->Count() + 500, 60s));
    const std::size_t sent = publisher.End();
    REQUIRE(client.sink.WaitForFinished(sent, 120s));
    for (std::size_t i = 0; i < sent; ++i) {
        const mq::Error* const error = client.sink.At(i).error.get();
        INFO((error != nullptr ? error->what() : ""));
        REQUIRE(error == nullptr);
    }
    REQUIRE(receiver->WaitForDistinct(sent, 60s));
    CHECK(
        Eventually([&] { return Drained(client, *destination, group) == Backlog::Answer::kDrained; }));

    // The producer is idempotent: in order, and what comes again says so.
    std::size_t next = 0;
    std::size_t unmarked = 0;
    for (const mq::Message& message : receiver->Messages()) {
        const std::size_t number = std::stoul(message.body);
        if (number < next && !message.redelivered) ++unmarked;
        if (number == next) ++next;
    }
    CHECK(next == sent);
    CHECK(unmarked == 0);
}

TEST_CASE("Kafka: while the broker stands still, deadlines are kept and nothing is lost",
          "[kafka][restart]") {
    const std::string url = RealUrl("url", kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"kafka", std::getenv(kFolder)};
    Client client{url, {}, 60s};
    const auto destination = Fresh();
    const std::string group = Group();
    client.Send(destination, 10);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForHeld(10));
    CHECK(Drained(client, *destination, group) == Backlog::Answer::kNotDrained);
    broker.Pause();
    const auto begun = mq::backend::Clock::now();
    CHECK(client.backend->CheckBacklog(*destination, group, After(500ms)).answer ==
          Backlog::Answer::kUnknown);
    CHECK(client.backend->CheckListening(*destination, "another", After(500ms)).answer ==
          mq::backend::Listening::Answer::kUnknown);
    CHECK(mq::backend::Clock::now() - begun < 10s);
    const auto publisher = client.backend->MakePublisher(destination);
    publisher->Publish(MakePublication("early", "", 500ms));
    // By itself librdkafka waits for a minute.
    REQUIRE(client.sink.WaitForFailed(1));
    CHECK(client.sink.At(10).error->outcome() == Outcome::kUnknown);
    publisher->Publish(MakePublication("late", "", 60s));
    receiver->Set(Receive::kSettle);
    receiver->SettleHeld();
    broker.Resume();
    REQUIRE(client.sink.WaitForConfirmed(11, 60s));
    REQUIRE(receiver->WaitForDistinct(12, 60s));
    CHECK(
        Eventually([&] { return Drained(client, *destination, group) == Backlog::Answer::kDrained; }));
}

TEST_CASE("Kafka: closing is prompt while the broker stands still", "[kafka][restart]") {
    const std::string url = RealUrl("url", kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"kafka", std::getenv(kFolder)};
    const auto destination = Fresh();
    auto client = std::make_unique<Client>(url);
    client->Send(destination, 10);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    auto consumer = client->Subscribe(destination, Group(), receiver);
    REQUIRE(receiver->WaitForHeld(10));
    broker.Pause();
    receiver->SettleHeld(5);
    client->backend->MakePublisher(destination)->Publish(MakePublication("written"));
    const auto begun = mq::backend::Clock::now();
    const auto since = [](auto time) { return mq::backend::Clock::now() - time; };
    consumer->Stop();
    consumer->Close(After(300ms));
    // The broker has until session.timeout.ms and socket.timeout.ms, 15 seconds, to answer a member.
    CHECK(since(begun) < 10s);
    const auto closed = mq::backend::Clock::now();
    client->backend->Close(After(300ms));
    // A producer's request is given up after a minute.
    CHECK(since(closed) < 20s);
    REQUIRE(client->sink.Count() == 11);
    CHECK(client->sink.At(10).error->code() == mq::ErrorCode::kClosed);
    consumer.reset();
    client.reset();
    // librdkafka lets no handle go before its last request is answered or given up: socket.timeout.ms,
    // which is a minute where the adapter does not say less.
    CHECK(since(begun) < 15s + 30s);
}
