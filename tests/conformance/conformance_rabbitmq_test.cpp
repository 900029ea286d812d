/// @file conformance_rabbitmq_test.cpp
/// The conformance suite on a RabbitMQ that runs already: MQ_TEST_RABBITMQ_DIR names the folder of
/// tests/brokers/rabbitmq.sh, whose file `url` says where it is. Once with classic queues, and the
/// cases on settlement once more with quorum queues.
#include "suite.hpp"
#include <mq/backends/rabbitmq.hpp>

#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>

namespace {

std::string UrlOfRabbit() {
    const char* const folder = std::getenv("MQ_TEST_RABBITMQ_DIR");
    if (folder == nullptr) return {};
    std::string url;
    std::ifstream{std::string{folder} + "/url"} >> url;
    return url;
}

class RabbitTarget : public mq::conformance::Target {
public:
    [[nodiscard]] std::string WhyUnavailable() override {
        return url_.empty() ? "there is no RabbitMQ (MQ_TEST_RABBITMQ_DIR)" : "";
    }

    [[nodiscard]] mq::conformance::Traits traits() const override {
        return {.reports_unroutable = true, .tells_redelivered = true};
    }

    [[nodiscard]] mq::BrokerConfig Broker() override { return {.url = url_}; }

    [[nodiscard]] std::optional<mq::BrokerConfig> BrokerThatDeclaresNothing() override {
        return mq::BrokerConfig{.url = url_, .options = {{"declare", "false"}}};
    }

private:
    const std::string url_ = UrlOfRabbit();
};

class QuorumTarget final : public RabbitTarget {
public:
    [[nodiscard]] mq::BrokerConfig Broker() override {
        mq::BrokerConfig broker = RabbitTarget::Broker();
        broker.options["queue_type"] = "quorum";
        return broker;
    }
};

const bool kRegistered = [] {
    using namespace mq::conformance;
    // The migration tests walk between all kinds, and the restart tests have brokers to kill.
    RegisterSuite<RabbitTarget>("rabbitmq", "[rabbitmq]", {.pairs = false});
    const auto add = [](auto register_case, const char* name) {
        register_case(std::string{"rabbitmq, quorum queues: "} + name, "[conformance][rabbitmq]");
    };
    add(RegisterCase<QuorumTarget, EachGroupGetsEveryMessage>, "each group gets every message");
    add(RegisterCase<QuorumTarget, MembersOfAGroupShareTheMessages>, "members of a group share");
    add(RegisterCase<QuorumTarget, NoMoreThanThePrefetchIsHandedOut>,
        "no more than the prefetch is handed out");
    add(RegisterCase<QuorumTarget, TheOrderOfAKeyIsKeptAmongMembers>,
        "the order of a key is kept among members");
    add(RegisterCase<QuorumTarget, WhatIsUnsettledAtTheCloseComesToTheNextOne>,
        "what is unsettled at the close comes to the next subscriber");
    add(RegisterCase<QuorumTarget, ClosingAndSubscribingAgainLosesNothing>,
        "closing and subscribing again loses nothing");
    return true;
}();

}  // namespace
