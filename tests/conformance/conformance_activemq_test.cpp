/// @file conformance_activemq_test.cpp
/// The conformance suite on brokers that run already: MQ_TEST_ACTIVEMQ_DIR and MQ_TEST_ARTEMIS_DIR name
/// the folders of tests/brokers/activemq.sh and artemis.sh, whose file `url` says where they are.
#include "suite.hpp"
#include <mq/backends/activemq.hpp>

#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>

namespace {

class AmqpTarget : public mq::conformance::Target {
public:
    explicit AmqpTarget(const char* variable) : variable_(variable) {
        if (const char* const folder = std::getenv(variable)) {
            std::ifstream{std::string{folder} + "/url"} >> url_;
        }
    }

    [[nodiscard]] std::string WhyUnavailable() override {
        return url_.empty() ? "there is no broker (" + variable_ + ")" : "";
    }

    // Neither broker counts what a consumer that was closed in good order had not settled.
    [[nodiscard]] mq::conformance::Traits traits() const override { return {}; }

    [[nodiscard]] mq::BrokerConfig Broker() override { return {.url = url_}; }

    // Both make an address of every name, unless they are configured not to.
    [[nodiscard]] std::optional<mq::BrokerConfig> BrokerThatDeclaresNothing() override {
        return std::nullopt;
    }

private:
    const std::string variable_;
    std::string url_ = {};
};

class ClassicTarget final : public AmqpTarget {
public:
    ClassicTarget() : AmqpTarget("MQ_TEST_ACTIVEMQ_DIR") {}
};

class ArtemisTarget final : public AmqpTarget {
public:
    ArtemisTarget() : AmqpTarget("MQ_TEST_ARTEMIS_DIR") {}
};

// The migration tests walk between all kinds.
const bool kRegistered =
    mq::conformance::RegisterSuite<ClassicTarget>("activemq", "[activemq]", {.pairs = false}) &&
    mq::conformance::RegisterSuite<ArtemisTarget>("artemis", "[artemis]", {.pairs = false});

}  // namespace
