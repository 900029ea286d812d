/// @file kafka_fixture.hpp
/// What the tests of the Kafka adapter share: where the broker is, and the layers above one backend.
#pragma once

#include "backend_fakes.hpp"
#include "catch.hpp"
#include "mock_kafka.hpp"
#include "wait.hpp"
#include <mq/backends/kafka.hpp>

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <utility>

namespace mq::test::kafka {

using mq::test::Eventually;
using mq::test::Has;
using DestinationPtr = std::shared_ptr<const backend::Destination>;

/// A file of the real broker's folder; empty where there is none.
inline std::string FromFolder(const std::string& file, const char* variable = "MQ_TEST_KAFKA_DIR") {
    const char* const folder = std::getenv(variable);
    if (folder == nullptr) return {};
    std::string line;
    std::ifstream{std::string{folder} + "/" + file} >> line;
    return line;
}

/// The real broker where there is one, else a mock cluster for this test.
class AnyKafka {
public:
    AnyKafka() : url_(FromFolder("url")) {
        if (!url_.empty()) return;
        SayOnce();
        mock_ = std::make_unique<MockCluster>();
        url_ = mock_->url();
    }
    [[nodiscard]] const std::string& url() const { return url_; }

    /// The mock lets a group that has members rebalance only when their session is nearly over.
    [[nodiscard]] std::map<std::string, std::string> options() const {
        if (mock_ == nullptr) return {};
        return {{"session.timeout.ms", "4000"}, {"heartbeat.interval.ms", "200"}};
    }

private:
    // The test command shows such a line, and once is enough.
    static void SayOnce() {
        static const bool said = [] {
            std::cout << "note: there is no Kafka (MQ_TEST_KAFKA_DIR): what can be is tested on "
                         "librdkafka's mock cluster"
                      << std::endl;
            return true;
        }();
        static_cast<void>(said);
    }

    std::unique_ptr<MockCluster> mock_ = {};
    std::string url_;
};

/// The URL of the real broker; empty, and the test case counted as skipped, where there is none.
inline std::string RealUrl(const std::string& file = "url",
                           const char* variable = "MQ_TEST_KAFKA_DIR") {
    std::string url = FromFolder(file, variable);
    if (url.empty()) SkipCase("there is no Kafka with " + file + " (" + variable + ")");
    return url;
}

/// The layers above one backend.
struct Client {
    explicit Client(const std::string& url, std::map<std::string, std::string> options = {},
                    std::chrono::milliseconds send_timeout = kPatience)
        : backend(MakeBackend(url, sink, std::move(options), log.Sink(), send_timeout)) {}

    ~Client() { backend->Close(After(std::chrono::seconds{10})); }

    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    std::unique_ptr<backend::Consumer> Subscribe(DestinationPtr destination, std::string group,
                                                 std::shared_ptr<RecordingReceiver> receiver,
                                                 std::size_t prefetch = 100) {
        return backend->Subscribe({std::move(destination), std::move(group), prefetch},
                                  std::move(receiver));
    }

    /// The same, and waits until it has joined its group.
    std::unique_ptr<backend::Consumer> SubscribeActive(
        DestinationPtr destination, std::string group,
        const std::shared_ptr<RecordingReceiver>& receiver, std::size_t prefetch = 100) {
        auto consumer = Subscribe(std::move(destination), std::move(group), receiver, prefetch);
        REQUIRE(receiver->WaitForPhase(*consumer, backend::ConsumerState::Phase::kActive));
        return consumer;
    }

    /// Sends `count` messages with the bodies 0, 1, … and waits until they are confirmed.
    void Send(const DestinationPtr& destination, std::size_t count, const std::string& key = {}) {
        const auto publisher = backend->MakePublisher(destination);
        const std::size_t before = sink.Confirmed();
        for (std::size_t i = 0; i < count; ++i) {
            publisher->Publish(MakePublication(std::to_string(i), key));
        }
        REQUIRE(sink.WaitForConfirmed(before + count));
    }

    RecordingLog log = {};
    RecordingSink sink = {};
    std::unique_ptr<backend::Backend> backend;
};

inline DestinationPtr Fresh() { return MakeDestination("orders", UniqueId("orders")); }

inline std::string Group() { return UniqueId("group"); }

inline void CloseNow(backend::Consumer& consumer) {
    consumer.Stop();
    consumer.Close(After());
}

inline backend::Backlog::Answer Drained(Client& client, const backend::Destination& destination,
                                        const std::string& group) {
    return client.backend->CheckBacklog(destination, group, After()).answer;
}

}  // namespace mq::test::kafka
