/// @file activemq_outage_test.cpp
/// The ActiveMQ adapter while its broker is killed or stands still. MQ_TEST_RESTART_ACTIVEMQ_DIR and
/// MQ_TEST_RESTART_ARTEMIS_DIR name the folders of brokers that tests/brokers has started and nobody
/// else uses.
#include "../support/activemq_fixture.hpp"
#include "../support/catch.hpp"

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
using mq::test::MakePublication;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using namespace mq::test::activemq;
using namespace std::chrono_literals;

/// A case runs on both brokers: the body is called with the URL and the process of each that is there.
template <typename Body>
void OnEach(Body body) {
    for (const char* const kind : {kClassic, kArtemis}) {
        const std::string variable = VariableOf(kind, "MQ_TEST_RESTART_");
        const std::string url = BrokerUrl(variable);
        if (url.empty()) continue;
        INFO("on " << kind);
        BrokerProcess broker{kind, *mq::test::FromEnvironment(variable.c_str())};
        body(url, broker);
    }
}

/// Which of the messages numbered below `sent` have not come, for a test that fails.
std::string Missing(const RecordingReceiver& receiver, std::size_t sent) {
    std::vector<bool> came(sent);
    for (const std::string& body : receiver.Bodies()) came.at(std::stoul(body)) = true;
    std::string text = "of " + std::to_string(sent) + " are missing:";
    for (std::size_t i = 0; i < sent; ++i) {
        if (!came[i]) text += " " + std::to_string(i);
    }
    return text;
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

}  // namespace

TEST_CASE("ActiveMQ: killed and started twice in the middle of traffic, it loses nothing confirmed",
          "[activemq][artemis][restart]") {
    OnEach([](const std::string& url, BrokerProcess& broker) {
        Connected client{url};
        const Destination destination = Fresh();
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(destination, "g", receiver, 50);
        SteadyPublisher publisher{client, destination};
        for (std::size_t round = 1; round <= 2; ++round) {
            REQUIRE(receiver->WaitForMessages(round * 1000));
            broker.Kill();
            REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
            CHECK(client.backend->CheckBacklog(*destination, "g", After()).answer ==
                  Backlog::Answer::kUnknown);
            broker.Start();
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
        const bool all_came = receiver->WaitForDistinct(sent, 120s);
        INFO(Missing(*receiver, sent));
        REQUIRE(all_came);

        // In order but for what came again. Neither broker knows after a restart what it had delivered
        // before, so that only the producer's repeats are marked.
        std::size_t next = 0;
        for (const mq::Message& message : receiver->Messages()) {
            if (std::stoul(message.body) == next) ++next;
        }
        CHECK(next == sent);
    });
}

TEST_CASE("ActiveMQ: in an outage, what was written is of unknown outcome and the rest was not sent",
          "[activemq][artemis][restart]") {
    OnEach([](const std::string& url, BrokerProcess& broker) {
        Connected client{url};
        const Destination destination = Fresh();
        REQUIRE(client.Send(destination, "before") == nullptr);
        broker.Pause();
        const auto publisher = client.backend->MakePublisher(destination);
        publisher->Publish(MakePublication("written", "", 5s));
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
    });
}

TEST_CASE("ActiveMQ: a repeated message says that it may be a duplicate",
          "[activemq][artemis][restart]") {
    OnEach([](const std::string& url, BrokerProcess& broker) {
        Connected client{url};
        const Destination destination = Fresh();
        REQUIRE(client.Send(destination, "before") == nullptr);
        broker.Pause();
        const auto publisher = client.backend->MakePublisher(destination);
        publisher->Publish(MakePublication("written", "", 300s));
        publisher->Publish(MakePublication("failed", "", 5s));
        // By then both are written.
        REQUIRE(client.sink.WaitForFailed(1));
        REQUIRE(client.sink.At(1).error->outcome() == Outcome::kUnknown);
        broker.Kill();
        broker.Start();
        REQUIRE(client.sink.WaitForConfirmed(2, 60s));
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(destination, "g", receiver);
        REQUIRE(receiver->WaitForMessages(2));
        CHECK(receiver->Messages()[1].body == "written");
        CHECK(receiver->Messages()[1].redelivered);
        CHECK(receiver->Messages()[1].headers.empty());
    });
}

TEST_CASE("ActiveMQ: a broker that stands still is noticed by its heartbeats, and used again after",
          "[activemq][artemis][restart]") {
    OnEach([](const std::string& url, BrokerProcess& broker) {
        // Long enough that nobody who has to wait for the processor is taken for dead.
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
            publisher->Publish(MakePublication(std::string(1 << 20, 'x'), "", i == 99 ? 1s : 100s));
        }
        REQUIRE(client.sink.WaitForFailed(1));
        REQUIRE(receiver->WaitForStale(1));
        CHECK(receiver->Held() == 0);
        REQUIRE(client.log.WaitForLine("idle-timeout"));
        broker.Resume();
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive, 60s));
        receiver->Set(Receive::kSettle);
        REQUIRE(client.sink.WaitForConfirmed(100, 60s));
        CHECK(receiver->WaitForDistinct(100, 60s));
    });
}

TEST_CASE("ActiveMQ: closing is prompt while the broker stands still", "[activemq][artemis][restart]") {
    OnEach([](const std::string& url, BrokerProcess& broker) {
        Connected client{url};
        Connected newcomer{url};
        const Destination destination = Fresh();
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(destination, "g", receiver);
        REQUIRE(client.Send(destination, "before") == nullptr);
        broker.Pause();
        const auto publisher = client.backend->MakePublisher(destination);
        publisher->Publish(MakePublication("written", "", 300s));
        publisher->Publish(MakePublication("failed", "", 5s));
        // By then both are written.
        REQUIRE(client.sink.WaitForFailed(1));
        REQUIRE(client.sink.At(1).error->outcome() == Outcome::kUnknown);
        newcomer.backend->MakePublisher(destination)->Publish(MakePublication("never written"));
        const auto begin = mq::backend::Clock::now();
        consumer->Stop();
        consumer->Close(After(200ms));
        client.backend->Close(After(200ms));
        newcomer.backend->Close(After(200ms));
        // Not as long as a link, a heartbeat or a login is waited for.
        CHECK(mq::backend::Clock::now() < begin + 9s);
        REQUIRE(client.sink.Count() == 3);
        CHECK(client.sink.At(2).error->code() == ErrorCode::kClosed);
        CHECK(client.sink.At(2).error->outcome() == Outcome::kUnknown);
        REQUIRE(newcomer.sink.Count() == 1);
        CHECK(newcomer.sink.At(0).error->outcome() == Outcome::kNotSent);
    });
}
