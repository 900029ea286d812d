/// @file conformance_kafka_test.cpp
/// The conformance suite on a Kafka that runs already: MQ_TEST_KAFKA_DIR names the folder of
/// tests/brokers/kafka.sh, whose file `url` says where it is. Without one it runs on librdkafka's mock
/// cluster, and says so.
#include "../support/mock_kafka.hpp"
#include "suite.hpp"
#include <mq/backends/kafka.hpp>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

namespace {

std::string UrlOfKafka() {
    const char* const folder = std::getenv("MQ_TEST_KAFKA_DIR");
    if (folder == nullptr) return {};
    std::string url;
    std::ifstream{std::string{folder} + "/url"} >> url;
    return url;
}

class KafkaTarget final : public mq::conformance::Target {
public:
    [[nodiscard]] std::string WhyUnavailable() override {
        if (!url_.empty()) return {};
        std::cout << "note: there is no Kafka (MQ_TEST_KAFKA_DIR): "
                     "the conformance suite runs on librdkafka's mock cluster"
                  << std::endl;
        mock_ = std::make_unique<mq::test::MockCluster>();
        url_ = mock_->url();
        return {};
    }

    // A commit that meets a rebalance can fail and cost the member its partitions (librdkafka issue
    // 4059): what it had not committed comes again.
    [[nodiscard]] mq::conformance::Traits traits() const override {
        return {.new_group_sees_older = true,
                .repeats_while_members_change = true,
                .lives_in_process = Mocked()};
    }

    // When a group changes, the mock cluster waits for its members almost as long as a session lasts,
    // which is 45 seconds where nothing is said; a new group waits three seconds.
    [[nodiscard]] mq::BrokerConfig Broker() override {
        if (!Mocked()) return {.url = url_};
        return {.url = url_,
                .options = {{"session.timeout.ms", "6000"}, {"heartbeat.interval.ms", "500"}}};
    }

    // The mock cluster makes every topic that anybody asks for.
    [[nodiscard]] std::optional<mq::BrokerConfig> BrokerThatDeclaresNothing() override {
        if (Mocked()) return std::nullopt;
        return mq::BrokerConfig{.url = url_, .options = {{"declare", "false"}}};
    }

private:
    [[nodiscard]] bool Mocked() const { return mock_ != nullptr; }

    std::unique_ptr<mq::test::MockCluster> mock_ = {};
    std::string url_ = UrlOfKafka();
};

// The migration tests walk between all kinds.
const bool kRegistered =
    mq::conformance::RegisterSuite<KafkaTarget>("kafka", "[kafka]", {.pairs = false});

}  // namespace
