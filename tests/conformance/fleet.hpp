/// @file fleet.hpp
/// A small company of services that share a topic while it moves: producers and two consumer groups,
/// each member a client of its own, as if it were a process of its own.
#pragma once

#include "../support/audit.hpp"
#include "../support/wait.hpp"
#include <mq/backends/memory.hpp>
#include <mq/mq.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace mq::test {

inline constexpr const char* kTopic = "orders";
inline const std::vector<std::string> kGroups{"billing", "search"};
/// How long a rung may take on real brokers, under a sanitizer, on a busy machine.
inline constexpr std::chrono::seconds kRungPatience{60};

/// The broker behind a memory:// URL.
inline memory::Broker& BrokerAt(const std::string& url) {
    return memory::Broker::Find(url.substr(std::string_view{"memory://"}.size()));
}

/// A topic between two brokers. The address is new for each scene, so that what an earlier test has
/// left on a broker is not taken for a loss or a repeat.
struct Scene {
    std::string old_url = "memory://" + UniqueId("old");
    std::string new_url = "memory://" + UniqueId("new");
    Order order = Order::kNone;
    std::chrono::milliseconds quiet{300};
    std::vector<std::string> groups = kGroups;
    bool guard = true;
    std::chrono::milliseconds send_timeout = std::chrono::seconds{30};
    std::string address = UniqueId("orders");
    bool failover = false;
    bool migrates = true;  // false: the topic has the old broker only
    std::map<std::string, std::string> old_options = {};
    std::map<std::string, std::string> new_options = {};

    [[nodiscard]] memory::Broker& OldBroker() const { return BrokerAt(old_url); }
    [[nodiscard]] memory::Broker& NewBroker() const { return BrokerAt(new_url); }
};

/// A topic between two brokers that need more than a URL.
inline Scene SceneBetween(BrokerConfig old_broker, BrokerConfig new_broker) {
    return {.old_url = std::move(old_broker.url),
            .new_url = std::move(new_broker.url),
            .old_options = std::move(old_broker.options),
            .new_options = std::move(new_broker.options)};
}

/// What a service reads from its config file.
inline Config ConfigOf(const Scene& scene, Policy policy) {
    Config config;
    config.client.send_timeout = scene.send_timeout;
    config.client.subscribe_timeout = kSubscribeTimeout;
    config.brokers["legacy"] = {.url = scene.old_url, .options = scene.old_options};
    config.brokers["next"] = {.url = scene.new_url, .options = scene.new_options};
    TopicConfig& topic = config.topics[kTopic];
    topic.groups = scene.groups;
    if (scene.migrates) {
        topic.old_broker = "legacy";
        topic.new_broker = "next";
        topic.policy = policy;
        topic.old_address = scene.address;
        topic.new_address = scene.address;
    } else {
        topic.broker = "legacy";
        topic.address = scene.address;
    }
    topic.order = scene.order;
    topic.quiet = scene.quiet;
    topic.guard = scene.guard;
    topic.failover = scene.failover;
    return config;
}

/// The same as a file, for brokers without options.
inline std::string TomlOf(const Scene& scene, std::string_view policy) {
    std::string groups;
    for (const std::string& group : scene.groups) groups += "\"" + group + "\", ";
    return "[client]\nsend_timeout = \"" + std::to_string(scene.send_timeout.count()) + "ms\"\n" +
           "subscribe_timeout = \"" + std::to_string(kSubscribeTimeout.count()) + "s\"\n" +
           "[brokers.legacy]\nurl = \"" + scene.old_url + "\"\n[brokers.next]\nurl = \"" +
           scene.new_url + "\"\n[topics.orders]\nold = \"legacy\"\nnew = \"next\"\npolicy = \"" +
           std::string{policy} + "\"\ngroups = [" + groups + "]\naddress = { old = \"" + scene.address +
           "\", new = \"" + scene.address + "\" }\norder = \"" + std::string{ToString(scene.order)} +
           "\"\nquiet = \"" + std::to_string(scene.quiet.count()) + "ms\"\n";
}

/// A client whose log lines are kept.
struct Service {
    Service(const Scene& scene, Policy policy)
        : client(std::make_unique<Client>(ConfigOf(scene, policy), ClientOptions{.log = log->Sink()})) {
    }

    [[nodiscard]] TopicStatus Status() const { return client->Status(kTopic); }

    /// Whether it is at the rung and wants no other one.
    [[nodiscard]] bool At(Policy rung) const {
        const TopicStatus status = Status();
        return status.policy == rung && status.stage == rung;
    }

    void SetPolicy(Policy policy) const { client->SetPolicy(kTopic, policy); }

    [[nodiscard]] bool Reaches(Policy rung, std::chrono::milliseconds patience = kRungPatience) const {
        return Eventually([&] { return At(rung); }, patience);
    }

    /// Waits until waiting_for contains `part`.
    [[nodiscard]] bool WaitsFor(std::string_view part,
                                std::chrono::milliseconds patience = kPatience) const {
        return Eventually([&] { return Has(Status().waiting_for, part); }, patience);
    }

    // The sink outlives the client, which logs until it is closed.
    std::shared_ptr<RecordingLog> log = std::make_shared<RecordingLog>();
    std::unique_ptr<Client> client;
    Subscription subscription = {};
};

/// Sends at a steady rate until it is destroyed, and enters the outcome of each send in the books.
class Traffic {
public:
    Traffic(Client& client, Audit& audit, std::size_t producer, unsigned per_second)
        : thread_([this, &client, &audit, producer, per_second] {
              Produce(client, audit, producer, std::chrono::microseconds{1'000'000 / per_second});
          }) {}
    Traffic(const Traffic&) = delete;
    Traffic& operator=(const Traffic&) = delete;
    ~Traffic() {
        {
            const std::lock_guard lock{mutex_};
            stop_ = true;
        }
        stopped_.notify_all();
        thread_.join();
    }

private:
    void Produce(Client& client, Audit& audit, std::size_t producer, std::chrono::microseconds pace) {
        auto next = backend::Clock::now();
        while (!WaitStop(next)) {
            // After a blocked send it goes on at its rate, without making up for the lost time at once.
            next = std::max(next + pace, backend::Clock::now() - 10 * pace);
            client.SendMsg(kTopic, audit.Make(producer),
                           [&audit](const SendResult& result) { audit.Ended(result); });
        }
    }

    bool WaitStop(backend::Clock::time_point until) {
        std::unique_lock lock{mutex_};
        return stopped_.wait_until(lock, until, [this] { return stop_; });
    }

    std::mutex mutex_;  // guards stop_
    std::condition_variable stopped_;
    bool stop_ = false;
    std::thread thread_;  // last: it uses all of the above
};

/// Producers and the members of two groups, with the books.
class Fleet {
public:
    struct Size {
        std::size_t producers = 2;
        std::size_t members = 2;  // of each group
        std::size_t concurrency = 4;
        unsigned rate = 300;  // messages a second, of each producer
    };

    Fleet(const Scene& scene, Policy policy) : Fleet(scene, policy, Size{.rate = RateFor(scene)}) {}

    Fleet(Scene scene, Policy policy, Size size) : scene_(std::move(scene)), size_(size) {
        for (const std::string& group : kGroups) {
            for (std::size_t i = 0; i < size_.members; ++i) {
                consumers_.push_back(MakeConsumer(group, policy));
            }
        }
        for (std::size_t i = 0; i < size_.producers; ++i) {
            producers_.push_back(std::make_unique<Service>(scene_, policy));
        }
    }
    Fleet(const Fleet&) = delete;
    Fleet& operator=(const Fleet&) = delete;
    ~Fleet() { StopTraffic(); }

    [[nodiscard]] const Scene& scene() const noexcept { return scene_; }
    [[nodiscard]] Audit& audit() noexcept { return audit_; }
    [[nodiscard]] const std::vector<std::unique_ptr<Service>>& producers() const { return producers_; }
    [[nodiscard]] const std::vector<std::unique_ptr<Service>>& consumers() const { return consumers_; }

    // What the brokers keep up with: ActiveMQ Classic waits for the disk once for each message of a
    // connection and group.
    static unsigned RateFor(const Scene& scene) {
        const auto is_classic = [](const std::string& url) { return url.starts_with("activemq"); };
        return is_classic(scene.old_url) || is_classic(scene.new_url) ? 50 : 300;
    }

    void StartTraffic() {
        for (std::size_t i = 0; i < producers_.size(); ++i) {
            traffic_.push_back(
                std::make_unique<Traffic>(*producers_[i]->client, audit_, i, size_.rate));
        }
    }

    void StopTraffic() { traffic_.clear(); }

    /// Ends a consumer, and starts another one in its place, at the rung that it was asked for.
    void RestartConsumer(std::size_t index) {
        std::unique_ptr<Service>& consumer = consumers_.at(index);
        const Policy policy = consumer->Status().policy;
        consumer.reset();
        consumer = MakeConsumer(kGroups.at(index / size_.members), policy);
    }

    /// Asks every service for the rung.
    void SetPolicy(Policy policy) const {
        ForEach([policy](const Service& service) { service.SetPolicy(policy); });
    }

    /// Asks every service for the rung and waits until all are there.
    bool WalkTo(Policy rung) const {
        SetPolicy(rung);
        return Reaches(rung);
    }

    [[nodiscard]] bool Reaches(Policy rung, std::chrono::milliseconds patience = kRungPatience) const {
        return Eventually(
            [&] {
                bool all = true;
                ForEach([&](const Service& service) { all = all && service.At(rung); });
                return all;
            },
            patience);
    }

    /// Stops sending and waits until everything that was confirmed is handled.
    bool Settle(std::chrono::milliseconds patience = kRungPatience) {
        StopTraffic();
        return audit_.WaitComplete(patience);
    }

    void ForEach(const std::function<void(const Service&)>& visit) const {
        for (const auto& service : producers_) visit(*service);
        for (const auto& service : consumers_) visit(*service);
    }

    /// Where everybody is and what they said, for a test that failed.
    [[nodiscard]] std::string Describe() const {
        std::string text;
        ForEach([&](const Service& service) {
            const TopicStatus status = service.Status();
            text += "\npolicy " + std::string{mq::ToString(status.policy)} + ", stage " +
                    std::string{mq::ToString(status.stage)} + ", waits for \"" + status.waiting_for +
                    "\"" + DescribeSide(status.old_side) + DescribeSide(status.new_side);
            for (const auto& [level, line] : service.log->Lines()) {
                if (level >= LogLevel::kInfo) text += "\n    " + line;
            }
        });
        return text;
    }

private:
    static std::string DescribeSide(const SideStatus& side) {
        return "; " + side.broker + ": published " + std::to_string(side.published) + ", confirmed " +
               std::to_string(side.confirmed) + ", received " + std::to_string(side.received) +
               ", processed " + std::to_string(side.processed) + ", held " + std::to_string(side.held) +
               ", unsettled " + std::to_string(side.unsettled);
    }

    std::unique_ptr<Service> MakeConsumer(const std::string& group, Policy policy) {
        auto consumer = std::make_unique<Service>(scene_, policy);
        consumer->subscription = consumer->client->RecvMsg(
            kTopic, [this, group](const Message& message) { audit_.Processed(group, message); },
            {.group = group, .concurrency = size_.concurrency});
        return consumer;
    }

    const Scene scene_;
    const Size size_;
    Audit audit_{kGroups};
    std::vector<std::unique_ptr<Service>> producers_;
    std::vector<std::unique_ptr<Service>> consumers_;
    std::vector<std::unique_ptr<Traffic>> traffic_;
};

}  // namespace mq::test
