/// @file reload_test.cpp
/// The flag changes in the config of a running service: by Reload, and by an edit of the file that it
/// watches, under traffic. A bad edit changes nothing.
#include "../support/catch.hpp"
#include "fleet.hpp"
#include <mq/toml.hpp>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace mq::test;
using mq::Order;
using mq::Policy;

// A config file in a folder of its own, which is removed at the end.
class ConfigFile {
public:
    ConfigFile() : folder_(std::filesystem::temp_directory_path() / UniqueId("mq-migration")) {
        std::filesystem::create_directories(folder_);
    }
    ConfigFile(const ConfigFile&) = delete;
    ConfigFile& operator=(const ConfigFile&) = delete;
    ~ConfigFile() {
        std::error_code ignored;
        std::filesystem::remove_all(folder_, ignored);
    }

    [[nodiscard]] std::filesystem::path path() const { return folder_ / "mq.toml"; }

    // In one go, as an editor does.
    void Write(std::string_view text) const {
        std::ofstream{folder_ / "draft"} << text;
        std::filesystem::rename(folder_ / "draft", path());
    }

private:
    std::filesystem::path folder_;
};

void CheckBooks(Fleet& fleet) {
    const bool complete = fleet.Settle();
    const AuditVerdict verdict = fleet.audit().Check();
    INFO(verdict);
    INFO(fleet.Describe());
    CHECK(complete);
    CHECK(verdict.confirmed == verdict.sent);
    CHECK(verdict.lost == 0);
    CHECK(verdict.reordered == 0);
    CHECK(verdict.crossed == 0);
}

TEST_CASE("Reload walks a topic under traffic", "[reload]") {
    const Scene scene{.order = Order::kKey};
    Fleet fleet{scene, Policy::kOld};
    fleet.StartTraffic();
    for (const Policy rung :
         {Policy::kDualSubscribe, Policy::kNew, Policy::kNewPublish, Policy::kOld}) {
        fleet.ForEach([&](const Service& service) { service.client->Reload(ConfigOf(scene, rung)); });
        const bool reached = fleet.Reaches(rung);
        INFO(fleet.Describe());
        REQUIRE(reached);
        CHECK(fleet.audit().WaitProcessed(100));
    }
    CheckBooks(fleet);
}

TEST_CASE("A Reload with anything wrong in it changes nothing", "[reload]") {
    const Scene scene;
    const Service service{scene, Policy::kOld};
    mq::Config wrong = ConfigOf(scene, Policy::kNew);
    wrong.topics["other"].broker = "no such broker";
    CHECK_THROWS_AS(service.client->Reload(wrong), mq::Error);
    CHECK(service.At(Policy::kOld));

    mq::Config moved = ConfigOf(scene, Policy::kNew);
    moved.topics[kTopic].old_address = "elsewhere";
    CHECK_THROWS_AS(service.client->Reload(moved), mq::Error);
    CHECK(service.At(Policy::kOld));
    service.client->SendMsg(kTopic, "as before");
    CHECK(scene.OldBroker().Messages(scene.address).size() == 1);
}

TEST_CASE("A topic that loses its old side in the config walks to the new one and rests there",
          "[reload]") {
    const Scene scene{.order = Order::kKey};
    Fleet fleet{scene, Policy::kOld};
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(50));
    mq::Config done = ConfigOf(scene, Policy::kNew);
    mq::TopicConfig& topic = done.topics[kTopic];
    topic.broker = "next";
    topic.address = scene.address;
    topic.old_broker = topic.new_broker = topic.old_address = topic.new_address = {};
    topic.policy = Policy::kOld;
    fleet.ForEach([&](const Service& service) { service.client->Reload(done); });
    const bool reached = fleet.Reaches(Policy::kNew);
    INFO(fleet.Describe());
    REQUIRE(reached);
    CheckBooks(fleet);
}

TEST_CASE("An edit of the watched file walks the topic, and a bad one changes nothing", "[reload]") {
    const Scene scene{.order = Order::kKey};
    const ConfigFile file;
    file.Write(TomlOf(scene, "old"));
    Fleet fleet{scene, Policy::kOld};
    fleet.ForEach([&](const Service& service) { service.client->Watch(file.path()); });
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(50));

    file.Write(TomlOf(scene, "new-publish"));
    bool reached = fleet.Reaches(Policy::kNewPublish);
    INFO(fleet.Describe());
    REQUIRE(reached);

    // It asks for another rung, and has a mistake elsewhere.
    file.Write(TomlOf(scene, "new") + "colour = \"blue\"\n");
    fleet.ForEach([](const Service& service) { CHECK(service.log->WaitForLine("was not applied")); });
    CHECK(fleet.Reaches(Policy::kNewPublish));
    file.Write(TomlOf(scene, "newest"));
    file.Write("this is no TOML");
    std::filesystem::remove(file.path());
    CHECK(fleet.audit().WaitProcessed(100));
    CHECK(fleet.Reaches(Policy::kNewPublish));

    file.Write(TomlOf(scene, "new"));
    reached = fleet.Reaches(Policy::kNew);
    REQUIRE(reached);
    file.Write(TomlOf(scene, "old"));
    reached = fleet.Reaches(Policy::kOld);
    REQUIRE(reached);
    CheckBooks(fleet);
}

}  // namespace
