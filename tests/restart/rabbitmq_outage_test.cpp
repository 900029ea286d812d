/// @file rabbitmq_outage_test.cpp
/// The RabbitMQ adapter while its broker is killed, stands still, or blocks its publishers.
/// MQ_TEST_RESTART_RABBITMQ_DIR names the folder of a broker that tests/brokers/rabbitmq.sh has started
/// and nobody else uses.
#include "../support/catch.hpp"
#include "../support/rabbitmq_fixture.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using mq::ErrorCode;
using mq::Outcome;
using mq::backend::Backlog;
using mq::test::After;
using mq::test::BrokerProcess;
using mq::test::kPrompt;
using mq::test::MakePublication;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using namespace mq::test::rabbitmq;
using namespace std::chrono_literals;

constexpr const char* kFolder = "MQ_TEST_RESTART_RABBITMQ_DIR";

/// Within which a message is written, also where many others want the processor.
constexpr std::chrono::seconds kWriting{5};

std::string Script() {
    return mq::test::FromEnvironment("MQ_TEST_BROKER_SCRIPTS").value_or("") + "/rabbitmq.sh";
}

bool Run(const std::string& command, const std::string& folder) {
    return mq::test::ChildProcess{Script(), command, folder}.Wait(120s) == 0;
}

/// The broker blocks its publishers as long as the object lives.
class Blocked {
public:
    explicit Blocked(std::string folder) : folder_(std::move(folder)) {
        REQUIRE(Run("block", folder_));
    }
    Blocked(const Blocked&) = delete;
    Blocked& operator=(const Blocked&) = delete;
    ~Blocked() { Run("unblock", folder_); }

private:
    std::string folder_;
};

/// Publishes to a broker that stands still, and returns when the message is on the wire: one that was
/// published behind it has been written, for its outcome is unknown, and fails first.
void Write(Connected& client, mq::backend::Publisher& publisher,
           std::unique_ptr<mq::backend::Publication> publication) {
    const std::size_t before = client.sink.Count();
    publisher.Publish(std::move(publication));
    publisher.Publish(MakePublication("behind it", "", kWriting));
    REQUIRE(client.sink.WaitForFinished(before + 1));
    const mq::backend::Publication& behind = client.sink.At(before);
    REQUIRE(behind.message.body == "behind it");
    REQUIRE(behind.error != nullptr);
    REQUIRE(behind.error->outcome() == Outcome::kUnknown);
}

/// Publishes numbered messages until it is told to end.
class SteadyPublisher {
public:
    SteadyPublisher(Connected& client, const Destination& destination)
        : thread_([this, &client, destination] {
              const auto publisher = client.backend->MakePublisher(destination);
              std::size_t sent = 0;
              // The sink bounds what is in flight, as the layer above an adapter does.
              while (!ended_ && client.sink.WaitForFinished(sent > 500 ? sent - 500 : 0, 300s)) {
                  publisher->Publish(MakePublication(std::to_string(sent++), "key", 600s));
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

/// Sends and receives while the broker goes and comes back twice. `end()` ends it, and what that
/// returns starts it.
template <typename End>
void RestartTwice(const std::string& url, const std::string& queue_type, End end) {
    Connected client{url, {{"queue_type", queue_type}}};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver, 50);
    SteadyPublisher publisher{client, destination};
    for (std::size_t round = 1; round <= 2; ++round) {
        REQUIRE(receiver->WaitForMessages(round * 1000));
        const auto start = end();
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
        CHECK(client.backend->CheckBacklog(*destination, "g", After()).answer ==
              Backlog::Answer::kUnknown);
        start();
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive, 60s));
    }
    REQUIRE(receiver->WaitForMessages(receiver->Count() + 1000));
    const std::size_t sent = publisher.End();
    REQUIRE(client.sink.WaitForFinished(sent, 120s));
    for (std::size_t i = 0; i < sent; ++i) {
        const mq::Error* const error = client.sink.At(i).error.get();
        INFO((error != nullptr ? error->what() : ""));
        REQUIRE(error == nullptr);
    }
    REQUIRE(receiver->WaitForDistinct(sent, 120s));

    // In order but for what was repeated or redelivered, which says so.
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

}  // namespace

TEST_CASE("RabbitMQ: killed and started twice in the middle of traffic, it loses nothing confirmed",
          "[rabbitmq][restart]") {
    const std::string url = BrokerUrl(kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"rabbitmq", *mq::test::FromEnvironment(kFolder)};
    RestartTwice(url, "classic", [&] {
        broker.Kill();
        return [&] { broker.Start(); };
    });
}

// Not killed: RabbitMQ 3.10 writes which log belongs to a quorum queue to the disk only minutes after
// its declaration (ra's names.dets), and finds an empty queue where it is killed before.
TEST_CASE("RabbitMQ: stopped and started twice in the middle of traffic, quorum queues lose nothing",
          "[rabbitmq][restart]") {
    const std::string url = BrokerUrl(kFolder);
    if (url.empty()) return;
    const std::string folder = *mq::test::FromEnvironment(kFolder);
    RestartTwice(url, "quorum", [&] {
        REQUIRE(Run("stop", folder));
        return [&] { REQUIRE(Run("start", folder)); };
    });
}

TEST_CASE("RabbitMQ: in an outage, what was written is of unknown outcome and the rest was not sent",
          "[rabbitmq][restart]") {
    const std::string url = BrokerUrl(kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"rabbitmq", *mq::test::FromEnvironment(kFolder)};
    Connected client{url};
    const Destination destination = Fresh();
    REQUIRE(client.Send(destination, "before") == nullptr);
    broker.Pause();
    const auto publisher = client.backend->MakePublisher(destination);
    publisher->Publish(MakePublication("written", "", kWriting));
    REQUIRE(client.sink.WaitForFailed(1));
    CHECK(client.sink.At(1).error->code() == ErrorCode::kTimeout);
    CHECK(client.sink.At(1).error->outcome() == Outcome::kUnknown);
    broker.Kill();
    REQUIRE(client.log.WaitForLine("reconnecting"));
    publisher->Publish(MakePublication("never written", "", 500ms));
    REQUIRE(client.sink.WaitForFailed(2));
    CHECK(client.sink.At(2).error->code() == ErrorCode::kUnavailable);
    CHECK(client.sink.At(2).error->outcome() == Outcome::kNotSent);
    broker.Start();
    CHECK(client.Send(destination, "after") == nullptr);
}

TEST_CASE("RabbitMQ: a repeated message says that it may be a duplicate", "[rabbitmq][restart]") {
    const std::string url = BrokerUrl(kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"rabbitmq", *mq::test::FromEnvironment(kFolder)};
    Connected client{url};
    const Destination destination = Fresh();
    REQUIRE(client.Send(destination, "before") == nullptr);
    broker.Pause();
    const auto publisher = client.backend->MakePublisher(destination);
    Write(client, *publisher, MakePublication("written", "", 300s));
    // A reconnection in the meantime is what repeats it.
    broker.Kill();
    broker.Start();
    REQUIRE(client.sink.WaitForConfirmed(2, 60s));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    REQUIRE(receiver->WaitForMessages(2));
    CHECK(receiver->Messages()[1].body == "written");
    CHECK(receiver->Messages()[1].redelivered);
    CHECK(receiver->Messages()[1].headers.empty());
}

TEST_CASE("RabbitMQ: a broker that stands still is noticed by its heartbeats, and used again after",
          "[rabbitmq][restart]") {
    const std::string url = BrokerUrl(kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"rabbitmq", *mq::test::FromEnvironment(kFolder)};
    Connected client{url, {{"heartbeat", "3s"}, {"connect_timeout", "3s"}}};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    REQUIRE(client.Send(destination, "held") == nullptr);
    REQUIRE(receiver->WaitForHeld(1));
    broker.Pause();
    const auto publisher = client.backend->MakePublisher(destination);
    // More than the socket's buffers hold: the rest must wait without keeping deadlines from being
    // kept.
    for (int i = 0; i < 100; ++i) {
        publisher->Publish(MakePublication(std::string(1 << 20, 'x'), "", i == 99 ? 1s : 300s));
    }
    REQUIRE(client.sink.WaitForFailed(1));
    for (const auto& [level, line] : client.log.Lines()) CHECK_FALSE(Contains(line, "two heartbeats"));
    REQUIRE(receiver->WaitForStale(1));
    CHECK(receiver->Held() == 0);
    REQUIRE(client.log.WaitForLine("two heartbeats"));
    broker.Resume();
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive, 60s));
    receiver->Set(Receive::kSettle);
    REQUIRE(client.sink.WaitForConfirmed(100, 120s));
    CHECK(receiver->WaitForDistinct(100, 120s));
}

TEST_CASE("RabbitMQ: while the broker blocks publishers, deadlines are kept and nothing is lost",
          "[rabbitmq][restart]") {
    const std::string url = BrokerUrl(kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"rabbitmq", *mq::test::FromEnvironment(kFolder)};
    Connected client{url, {{"heartbeat", "3s"}}};
    const Destination destination = Fresh();
    REQUIRE(client.Send(destination, "before") == nullptr);
    {
        const Blocked blocked{*mq::test::FromEnvironment(kFolder)};
        const auto publisher = client.backend->MakePublisher(destination);
        publisher->Publish(MakePublication("first", "", 300s));
        REQUIRE(client.log.WaitForLine("publishing is blocked"));
        // Longer than three heartbeats, after which the broker closes a silent connection.
        const mq::Error* const error = client.Send(destination, mq::test::MakeMessage("in vain"), 10s);
        REQUIRE(error != nullptr);
        CHECK(error->code() == ErrorCode::kTimeout);
        CHECK(error->outcome() == Outcome::kNotSent);
        CHECK(Contains(error->what(), "blocked by the broker"));
        // Consuming goes on, by the other connection.
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(destination, "g", receiver);
        CHECK(receiver->WaitForMessages(1));
        publisher->Publish(MakePublication("second", "", 300s));
    }
    CHECK(client.sink.WaitForConfirmed(3));
    for (const auto& [level, line] : client.log.Lines()) CHECK_FALSE(Contains(line, "reconnecting"));
}

TEST_CASE("RabbitMQ: closing is prompt while the broker stands still", "[rabbitmq][restart]") {
    const std::string url = BrokerUrl(kFolder);
    if (url.empty()) return;
    BrokerProcess broker{"rabbitmq", *mq::test::FromEnvironment(kFolder)};
    Connected client{url};
    Connected newcomer{url};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    REQUIRE(client.Send(destination, "before") == nullptr);
    broker.Pause();
    Write(client, *client.backend->MakePublisher(destination), MakePublication("written", "", 300s));
    newcomer.backend->MakePublisher(destination)->Publish(MakePublication("never written", "", 300s));
    const auto begin = mq::backend::Clock::now();
    consumer->Stop();
    consumer->Close(After(200ms));
    client.backend->Close(After(200ms));
    newcomer.backend->Close(After(200ms));
    CHECK(mq::backend::Clock::now() < begin + kPrompt);
    REQUIRE(client.sink.Count() == 3);
    CHECK(client.sink.At(2).error->code() == ErrorCode::kClosed);
    CHECK(client.sink.At(2).error->outcome() == Outcome::kUnknown);
    REQUIRE(newcomer.sink.Count() == 1);
    CHECK(newcomer.sink.At(0).error->outcome() == Outcome::kNotSent);
}
