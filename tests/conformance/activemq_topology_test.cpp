/// @file activemq_topology_test.cpp
/// How topics lie on an ActiveMQ while the world changes around them: other groups in the config,
/// queues that somebody removes, a broker of the other kind.
#include "../support/activemq_fixture.hpp"
#include "../support/catch.hpp"

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using mq::ErrorCode;
using mq::Outcome;
using mq::backend::Backlog;
using mq::backend::Listening;
using mq::test::After;
using mq::test::MakeDestination;
using mq::test::MakePublication;
using mq::test::RecordingReceiver;
using mq::test::UniqueId;
using namespace mq::test::activemq;
using namespace std::chrono_literals;

/// The URL with the scheme of the other kind of broker.
std::string AsTheOther(const std::string& kind, const std::string& url) {
    const std::string other = kind == kClassic ? kArtemis : kClassic;
    return other + url.substr(url.find("://"));
}

}  // namespace

TEST_CASE("ActiveMQ: what is published to one address keeps its order whatever groups are named",
          "[activemq][artemis]") {
    for (const std::string kind : {kClassic, kArtemis}) {
        const std::string url = BrokerUrl(VariableOf(kind));
        if (url.empty()) continue;
        INFO("on " << kind);
        constexpr std::size_t kCount = 2400;
        Connected client{url, {{"confirm_window", "500"}}};
        const std::string address = UniqueId("orders");
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(MakeDestination("orders", address), "g", receiver);
        // As a reload does that names another group now and then, while sends are on their way.
        std::vector<std::string> groups;
        std::vector<std::unique_ptr<mq::backend::Publisher>> publishers;
        for (std::size_t i = 0; i < kCount; ++i) {
            if (i % (kCount / 4) == 0) {
                groups.push_back("g" + std::to_string(groups.size()));
                publishers.push_back(client.backend->MakePublisher(
                    MakeDestination("orders", address, groups, i % (kCount / 2) == 0)));
            }
            publishers.back()->Publish(MakePublication(std::to_string(i)));
        }
        REQUIRE(client.sink.WaitForFinished(kCount));
        for (std::size_t i = 0; i < kCount; ++i) {
            const auto& error = client.sink.At(i).error;
            INFO(i << ": " << (error == nullptr ? "" : error->what()));
            REQUIRE(error == nullptr);
        }
        REQUIRE(receiver->WaitForMessages(kCount));
        std::size_t out_of_order = 0;
        const auto bodies = receiver->Bodies();
        for (std::size_t i = 0; i < kCount; ++i) out_of_order += bodies[i] != std::to_string(i) ? 1 : 0;
        CHECK(out_of_order == 0);
        // Each group has all that was sent since it was named, and perhaps some of what was in flight.
        for (std::size_t i = 0; i < groups.size(); ++i) {
            const auto left =
                client.backend->CheckBacklog(*MakeDestination("orders", address), groups[i], After());
            CHECK(left.messages >= kCount - i * (kCount / 4));
        }
    }
}

TEST_CASE("ActiveMQ: a broker of the other kind is refused, and the error says what to write",
          "[activemq][artemis]") {
    for (const std::string kind : {kClassic, kArtemis}) {
        const std::string url = BrokerUrl(VariableOf(kind));
        if (url.empty()) continue;
        INFO("on " << kind);
        Connected client{AsTheOther(kind, url)};
        const Destination destination = Fresh();
        const mq::Error* const error = client.Send(destination, mq::test::MakeMessage("m"), 1h);
        REQUIRE(error != nullptr);
        INFO(error->what());
        CHECK(error->code() == ErrorCode::kConfig);
        CHECK(error->outcome() == Outcome::kNotSent);
        CHECK(Contains(error->what(), "expected " + kind + "://"));
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(destination, "g", receiver);
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
        CHECK(Contains(consumer->State().error->what(), "expected " + kind + "://"));
        const auto listening = client.backend->CheckListening(*destination, "g", After());
        CHECK(listening.answer == Listening::Answer::kUnknown);
        CHECK(Contains(listening.reason, "expected " + kind + "://"));
        CHECK(client.backend->CheckBacklog(*destination, "g", After()).answer ==
              Backlog::Answer::kUnknown);
        for (const auto& [level, line] : client.log.Lines()) {
            CHECK_FALSE(Contains(line, mq::ParseUrl(url).password));
        }
    }
}
