/// @file activemq_product_test.cpp
/// What a broker says it is, and what follows from that: on a broker that is told what to say.
#include "../support/activemq_fixture.hpp"
#include "../support/amqp_native.hpp"
#include "../support/catch.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

namespace {

using mq::activemq::Flavor;
using mq::activemq::FlavorOfProduct;
using mq::test::FakeBroker;
using mq::test::MakeDestination;
using mq::test::RecordingReceiver;
using namespace mq::test::activemq;
using namespace std::chrono_literals;

FakeBroker::Script Saying(std::string product) {
    FakeBroker::Script script;
    script.product = std::move(product);
    script.on_published = [](proton::delivery& delivery) { delivery.accept(); };
    return script;
}

}  // namespace

TEST_CASE("ActiveMQ product: both brokers are known by their names", "[activemq]") {
    CHECK(FlavorOfProduct("ActiveMQ") == Flavor::kClassic);
    CHECK(FlavorOfProduct("apache-activemq-artemis") == Flavor::kArtemis);
    CHECK(FlavorOfProduct("qpid-cpp") == std::nullopt);
    CHECK(FlavorOfProduct("") == std::nullopt);
}

TEST_CASE("ActiveMQ product: the wrong one is refused with the scheme that is right", "[activemq]") {
    const auto wrong = [](const char* url, const char* product) {
        const auto failure = mq::activemq::WrongProduct("there", mq::ParseUrl(url), product);
        return failure ? failure->text : std::string{};
    };
    CHECK(wrong("activemq://h", "ActiveMQ").empty());
    CHECK(wrong("artemiss://h", "apache-activemq-artemis").empty());
    CHECK(wrong("artemis://h", "something").empty());
    CHECK(Contains(wrong("activemq://h", "apache-activemq-artemis"), "expected artemis://"));
    CHECK(Contains(wrong("activemqs://h", "apache-activemq-artemis"), "expected artemiss://"));
    CHECK(Contains(wrong("artemiss://h", "ActiveMQ"), "expected activemqs://"));
}

TEST_CASE("ActiveMQ: a broker of another make is used as the URL says, with one warning",
          "[activemq]") {
    for (const std::string product : {"", "other-broker"}) {
        FakeBroker broker{Saying(product)};
        Connected client{broker.Url()};
        const auto destination = MakeDestination("orders", "queue://a");
        CHECK(client.Send(destination, "m") == nullptr);
        broker.HangUp();
        REQUIRE(client.log.WaitForLine("reconnecting"));
        CHECK(client.Send(destination, "m") == nullptr);
        const auto lines = client.log.Lines();
        CHECK(std::count_if(lines.begin(), lines.end(), [](const auto& line) {
                  return Contains(line.second, "does not say that it is an ActiveMQ");
              }) == 1);
    }
}

TEST_CASE("ActiveMQ: of several hosts, one that is of the other kind is passed over", "[activemq]") {
    FakeBroker wrong{Saying("ActiveMQ")};
    FakeBroker right{Saying("apache-activemq-artemis")};
    Connected client{wrong.Url() + "," + right.Url("").substr(3)};
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(MakeDestination("orders", "queue://a"), "g", receiver);
    CHECK(receiver->WaitForPhase(*consumer, Phase::kActive));
}
