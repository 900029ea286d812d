/// @file conformance.cpp
/// All that it takes to hold an adapter to the conformance suite.
#include "toy.hpp"
#include <mq/conformance.hpp>

#include <optional>

namespace {

class ToyTarget final : public mq::conformance::Target {
public:
    [[nodiscard]] mq::conformance::Traits traits() const override {
        return {.new_group_sees_older = true, .tells_redelivered = true, .lives_in_process = true};
    }

    [[nodiscard]] mq::BrokerConfig Broker() override { return {.url = "toy://conformance"}; }

    [[nodiscard]] std::optional<mq::BrokerConfig> BrokerThatDeclaresNothing() override {
        return mq::BrokerConfig{.url = "toy://conformance", .options = {{"declare", "false"}}};
    }

    // The broker behind the toy.
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
    mq::memory::Broker& broker_ = mq::memory::Broker::Find("conformance");
};

const bool kRegistered = mq::conformance::RegisterSuite<ToyTarget>("toy", "[toy]");

}  // namespace
