/// @file restart_test.cpp
/// Brokers die and come back in the middle of sending and receiving, also in the middle of a migration:
/// what was confirmed is handled by every group, what is not certain is reported so, and nothing hangs.
/// The real brokers here are the tests' own, since others would notice.
#include "../support/catch.hpp"
#include "fleet.hpp"

#include <chrono>
#include <optional>
#include <string>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Order;
using mq::Policy;

// A broker that can be taken away: a real one by a signal to its process, one in memory by its handle.
class Victim {
public:
    explicit Victim(BrokerKind kind) {
        if (kind == BrokerKind::kMemory) {
            url_ = "memory://" + UniqueId("victim");
        } else if (const auto folder = FolderOf(kind, true)) {
            process_.emplace(std::string{ToString(kind)}, *folder);
            url_ = process_->Url();
        }
    }

    [[nodiscard]] bool available() const { return !url_.empty(); }
    [[nodiscard]] const std::string& url() const { return url_; }

    void Kill() { process_ ? process_->Kill() : BrokerAt(url_).Stop(); }
    void Start() { process_ ? process_->Start() : BrokerAt(url_).Start(); }
    void Pause() { process_->Pause(); }
    void Resume() { process_->Resume(); }

private:
    std::optional<BrokerProcess> process_;
    std::string url_;
};

constexpr std::chrono::seconds kRecovery{90};

void CheckBooks(Fleet& fleet) {
    const bool complete = fleet.Settle(kRecovery);
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    INFO(fleet.Describe());
    CHECK(complete);
    CHECK(verdict.pending == 0);
    CHECK(verdict.lost == 0);
    CHECK(verdict.phantom == 0);
    CHECK(verdict.foreign == 0);
    CHECK(verdict.crossed == 0);
    CHECK(verdict.ended_twice == 0);
    CHECK(verdict.reordered == 0);
}

void SkipVictim(BrokerKind kind) {
    SkipCase("there is no " + std::string{ToString(kind)} + " that may be killed");
}

void SurvivesTwoKills(BrokerKind kind) {
    Victim victim{kind};
    if (!victim.available()) return SkipVictim(kind);
    Fleet fleet{
        {.old_url = victim.url(), .order = Order::kKey, .send_timeout = 120s, .migrates = false},
        Policy::kOld};
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(300));
    for (int kill = 0; kill < 2; ++kill) {
        victim.Kill();
        victim.Start();
        const bool goes_on = fleet.audit().WaitProcessed(300, kRecovery);
        INFO(fleet.Describe());
        REQUIRE(goes_on);
    }
    CheckBooks(fleet);
    // Every send waited for the broker to come back.
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    CHECK(verdict.confirmed == verdict.sent);
}

void SurvivesKillsDuringTheWalk(Pair pair, BrokerKind kind) {
    Victim victim{kind};
    if (!victim.available()) return SkipVictim(kind);
    Scene scene{.order = Order::kKey};
    (pair.from == kind ? scene.old_url : scene.new_url) = victim.url();
    Fleet fleet{scene, Policy::kOld};
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(100));
    REQUIRE(fleet.WalkTo(Policy::kDualSubscribe));

    // Down while publishing is to move, and again while the old side is to be left.
    for (const Policy rung : {Policy::kNewPublish, Policy::kNew}) {
        INFO("to " << mq::ToString(rung));
        victim.Kill();
        fleet.SetPolicy(rung);
        victim.Start();
        const bool reached = fleet.Reaches(rung, kRecovery);
        INFO(fleet.Describe());
        REQUIRE(reached);
        CHECK(fleet.audit().WaitProcessed(200, kRecovery));
    }
    CheckBooks(fleet);
}

void StandsStill(BrokerKind kind) {
    Victim victim{kind};
    if (!victim.available()) return SkipVictim(kind);
    Fleet fleet{{.old_url = victim.url(), .order = Order::kKey, .send_timeout = 3s, .migrates = false},
                Policy::kOld};
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(100));
    victim.Pause();
    // What the broker may have got, and has not confirmed, is uncertain when its deadline comes.
    CHECK(Eventually([&] { return fleet.audit().Check().unknown > 0; }));
    const auto begin = mq::backend::Clock::now();
    CHECK_THROWS_AS(fleet.producers().front()->client->SendMsg(
                        kTopic, mq::Message{.body = "", .key = "", .id = "not in the books"}),
                    mq::Error);
    CHECK(mq::backend::Clock::now() - begin < fleet.scene().send_timeout + kPrompt);
    victim.Resume();
    CHECK(fleet.audit().WaitProcessed(200, kRecovery));
    const bool complete = fleet.Settle(kRecovery);
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    INFO(fleet.Describe());
    CHECK(complete);
    CHECK(verdict.pending == 0);
    CHECK(verdict.lost == 0);
    CHECK(verdict.phantom == 0);
    CHECK(verdict.reordered == 0);
    CHECK(verdict.ended_twice == 0);
}

void JoinsLate(BrokerKind kind) {
    Victim victim{kind};
    if (!victim.available()) return SkipVictim(kind);
    victim.Kill();
    Fleet fleet{{.new_url = victim.url(), .order = Order::kKey}, Policy::kDualSubscribe};
    fleet.StartTraffic();
    CHECK(fleet.audit().WaitProcessed(100));
    CHECK(fleet.consumers().front()->WaitsFor("the subscription of group billing on next"));
    fleet.SetPolicy(Policy::kNew);
    victim.Start();
    const bool reached = fleet.Reaches(Policy::kNew, kRecovery);
    INFO(fleet.Describe());
    REQUIRE(reached);
    CHECK(fleet.audit().WaitProcessed(100, kRecovery));
    CheckBooks(fleet);
}

TEST_CASE("A memory broker stops and starts twice, and every confirmed message is handled",
          "[restart]") {
    SurvivesTwoKills(BrokerKind::kMemory);
}
TEST_CASE("A memory broker stops and starts twice during a walk away from it", "[restart]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kMemory, BrokerKind::kKafka}, BrokerKind::kMemory);
}
TEST_CASE("A memory broker that is down when it is to be joined is joined later", "[restart]") {
    JoinsLate(BrokerKind::kMemory);
}

TEST_CASE("RabbitMQ is killed twice, and every confirmed message is handled", "[restart][rabbitmq]") {
    SurvivesTwoKills(BrokerKind::kRabbitmq);
}
TEST_CASE("RabbitMQ is killed twice during a walk away from it", "[restart][rabbitmq]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kRabbitmq, BrokerKind::kMemory}, BrokerKind::kRabbitmq);
}
TEST_CASE("RabbitMQ is killed twice during a walk to it", "[restart][rabbitmq]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kMemory, BrokerKind::kRabbitmq}, BrokerKind::kRabbitmq);
}
TEST_CASE("RabbitMQ stands still: sends end in time, and say that they do not know",
          "[restart][rabbitmq]") {
    StandsStill(BrokerKind::kRabbitmq);
}
TEST_CASE("RabbitMQ is down when it is to be joined, and is joined later", "[restart][rabbitmq]") {
    JoinsLate(BrokerKind::kRabbitmq);
}

TEST_CASE("Kafka is killed twice, and every confirmed message is handled", "[restart][kafka]") {
    SurvivesTwoKills(BrokerKind::kKafka);
}
TEST_CASE("Kafka is killed twice during a walk away from it", "[restart][kafka]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kKafka, BrokerKind::kMemory}, BrokerKind::kKafka);
}
TEST_CASE("Kafka is killed twice during a walk to it", "[restart][kafka]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kMemory, BrokerKind::kKafka}, BrokerKind::kKafka);
}
TEST_CASE("Kafka stands still: sends end in time, and say that they do not know", "[restart][kafka]") {
    StandsStill(BrokerKind::kKafka);
}
TEST_CASE("Kafka is down when it is to be joined, and is joined later", "[restart][kafka]") {
    JoinsLate(BrokerKind::kKafka);
}

TEST_CASE("ActiveMQ is killed twice, and every confirmed message is handled", "[restart][activemq]") {
    SurvivesTwoKills(BrokerKind::kActivemq);
}
TEST_CASE("ActiveMQ is killed twice during a walk away from it", "[restart][activemq]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kActivemq, BrokerKind::kMemory}, BrokerKind::kActivemq);
}
TEST_CASE("ActiveMQ is killed twice during a walk to it", "[restart][activemq]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kMemory, BrokerKind::kActivemq}, BrokerKind::kActivemq);
}
TEST_CASE("ActiveMQ stands still: sends end in time, and say that they do not know",
          "[restart][activemq]") {
    StandsStill(BrokerKind::kActivemq);
}
TEST_CASE("ActiveMQ is down when it is to be joined, and is joined later", "[restart][activemq]") {
    JoinsLate(BrokerKind::kActivemq);
}

TEST_CASE("Artemis is killed twice, and every confirmed message is handled", "[restart][artemis]") {
    SurvivesTwoKills(BrokerKind::kArtemis);
}
TEST_CASE("Artemis is killed twice during a walk away from it", "[restart][artemis]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kArtemis, BrokerKind::kMemory}, BrokerKind::kArtemis);
}
TEST_CASE("Artemis is killed twice during a walk to it", "[restart][artemis]") {
    SurvivesKillsDuringTheWalk({BrokerKind::kMemory, BrokerKind::kArtemis}, BrokerKind::kArtemis);
}
TEST_CASE("Artemis stands still: sends end in time, and say that they do not know",
          "[restart][artemis]") {
    StandsStill(BrokerKind::kArtemis);
}
TEST_CASE("Artemis is down when it is to be joined, and is joined later", "[restart][artemis]") {
    JoinsLate(BrokerKind::kArtemis);
}

}  // namespace
