/// @file activemq_fixture.hpp
/// What the live tests of the ActiveMQ adapter share: where the brokers are, and one backend with what
/// it reports to.
#pragma once

#include "backend_fakes.hpp"
#include "broker_process.hpp"
#include "catch.hpp"
#include <mq/backends/activemq.hpp>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::test::activemq {

using Options = std::map<std::string, std::string>;
using Destination = std::shared_ptr<const backend::Destination>;
using Phase = backend::ConsumerState::Phase;

inline bool Contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

/// The two brokers, by the names of their scripts.
inline constexpr const char* kClassic = "activemq";
inline constexpr const char* kArtemis = "artemis";

/// The environment variable that names the folder of a broker.
inline std::string VariableOf(const std::string& kind, const std::string& prefix = "MQ_TEST_") {
    return prefix + (kind == kArtemis ? "ARTEMIS_DIR" : "ACTIVEMQ_DIR");
}

/// The first line of a file in a broker's folder; empty, with the test case skipped, where there is no
/// such broker.
inline std::string BrokerUrl(const std::string& variable, const std::string& file_name = "url") {
    const auto folder = FromEnvironment(variable.c_str());
    std::string url;
    if (folder) {
        std::ifstream file{std::filesystem::path{*folder} / file_name};
        std::getline(file, url);
    }
    if (url.empty()) SkipCase(variable + " names no running broker with " + file_name);
    return url;
}

/// One backend, and what it reports to.
struct Connected {
    explicit Connected(const std::string& url, Options options = {})
        : backend(MakeBackend(url, sink, std::move(options), log.Sink())) {}

    /// Publishes one message and waits for its end; null where it was confirmed.
    const Error* Send(const Destination& destination, Message message,
                      std::chrono::milliseconds timeout = kPatience) {
        const std::size_t before = sink.Count();
        backend->MakePublisher(destination)->Publish(MakePublication(std::move(message), timeout));
        REQUIRE(sink.WaitForFinished(before + 1));
        return sink.At(before).error.get();
    }

    const Error* Send(const Destination& destination, std::string body) {
        return Send(destination, MakeMessage(std::move(body)));
    }

    std::unique_ptr<backend::Consumer> Subscribe(const Destination& destination,
                                                 const std::string& group,
                                                 std::shared_ptr<RecordingReceiver> receiver,
                                                 std::size_t prefetch = 100) {
        return backend->Subscribe({destination, group, prefetch}, std::move(receiver));
    }

    /// The same, and waits until the broker has it.
    std::unique_ptr<backend::Consumer> SubscribeActive(const Destination& destination,
                                                       const std::string& group,
                                                       std::shared_ptr<RecordingReceiver> receiver,
                                                       std::size_t prefetch = 100) {
        auto consumer = Subscribe(destination, group, receiver, prefetch);
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
        return consumer;
    }

    RecordingSink sink = {};
    RecordingLog log = {};
    std::unique_ptr<backend::Backend> backend;
};

inline Destination Fresh(std::vector<std::string> groups = {"g"}) {
    return MakeDestination("orders", UniqueId("orders"), std::move(groups));
}

}  // namespace mq::test::activemq
