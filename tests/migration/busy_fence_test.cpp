/// @file busy_fence_test.cpp
/// A fence in front of an ActiveMQ whose queue is never empty: another producer has not moved yet, and
/// sends as fast as the group handles.
#include "../support/catch.hpp"
#include "fleet.hpp"

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace mq::test;
using namespace std::chrono_literals;
using mq::Message;
using mq::Order;
using mq::Policy;

/// The numbers of the messages of one key, as they were handled, and of how many others were.
class Handled {
public:
    void Enter(const Message& message) {
        const std::lock_guard lock{mutex_};
        if (message.key == "moved") {
            moved_.push_back(message.body);
            changed_.notify_all();
        } else {
            ++others_;
        }
    }

    bool WaitForMoved(std::size_t count) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, kRungPatience, [&] { return moved_.size() >= count; });
    }

    [[nodiscard]] std::vector<std::string> Moved() const {
        const std::lock_guard lock{mutex_};
        return moved_;
    }

    [[nodiscard]] std::size_t Others() const {
        const std::lock_guard lock{mutex_};
        return others_;
    }

private:
    mutable std::mutex mutex_;  // guards all below
    mutable std::condition_variable changed_;
    std::vector<std::string> moved_;
    std::size_t others_ = 0;
};

/// A producer that stays where it is and sends a message every few milliseconds.
class LateProducer {
public:
    LateProducer(mq::Client& client, std::chrono::microseconds every)
        : thread_([this, &client, every] {
              std::unique_lock lock{mutex_};
              for (std::size_t i = 0; !changed_.wait_for(lock, every, [this] { return ended_; }); ++i) {
                  client.SendMsg(kTopic, Message{.body = "late", .key = std::to_string(i % 50)},
                                 [](const mq::SendResult&) {});
              }
          }) {}
    LateProducer(const LateProducer&) = delete;
    LateProducer& operator=(const LateProducer&) = delete;
    ~LateProducer() {
        {
            const std::lock_guard lock{mutex_};
            ended_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

private:
    std::mutex mutex_;  // guards ended_
    std::condition_variable changed_;
    bool ended_ = false;
    std::thread thread_;
};

// In order, what a producer sends after it has moved is handled behind what it sent before, and soon,
// whatever another one still sends to the old side.
void OvertakesNobodyAndWaitsForNoEmptyQueue(BrokerKind kind) {
    const auto url = UrlOf(kind);
    if (!url) return SkipCase(std::string{"there is no "} + std::string{ToString(kind)});
    Scene scene{.old_url = *url, .order = Order::kKey, .quiet = 300ms, .groups = {"billing"}};
    Handled handled;
    Service late{scene, Policy::kDualSubscribe};
    Service moving{scene, Policy::kDualSubscribe};
    Service billing{scene, Policy::kDualSubscribe};
    // 300 a second at most.
    constexpr std::size_t kHandlers = 6;
    billing.subscription =
        billing.client->RecvMsg(kTopic,
                                [&](const Message& message) {
                                    std::this_thread::sleep_for(20ms);  // the handler's work
                                    handled.Enter(message);
                                },
                                {.group = "billing", .concurrency = kHandlers});
    const LateProducer producer{*late.client, 3300us};
    std::size_t sent = 0;
    const auto send = [&] {
        moving.client->SendMsg(kTopic, Message{.body = std::to_string(sent++), .key = "moved"});
    };
    for (int i = 0; i < 20; ++i) send();
    moving.SetPolicy(Policy::kNewPublish);
    billing.SetPolicy(Policy::kNewPublish);
    REQUIRE(moving.Reaches(Policy::kNewPublish));
    const auto begin = mq::backend::Clock::now();
    for (int i = 0; i < 20; ++i) send();
    CHECK(handled.WaitForMoved(40));
    const auto took = mq::backend::Clock::now() - begin;
    INFO("after " << std::chrono::duration_cast<std::chrono::milliseconds>(took).count() << " ms and "
                  << handled.Others() << " messages of the other producer");
    const auto moved = handled.Moved();
    for (std::size_t i = 0; i < moved.size(); ++i) CHECK(moved[i] == std::to_string(i));
}

TEST_CASE("A fence in front of a busy ActiveMQ opens when what was there is handled",
          "[order][activemq]") {
    OvertakesNobodyAndWaitsForNoEmptyQueue(BrokerKind::kActivemq);
}

TEST_CASE("A fence in front of a busy Artemis opens when what was there is handled",
          "[order][artemis]") {
    OvertakesNobodyAndWaitsForNoEmptyQueue(BrokerKind::kArtemis);
}

}  // namespace
