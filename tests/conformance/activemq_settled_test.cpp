/// @file activemq_settled_test.cpp
/// What an ActiveMQ tells of a queue that is never empty: up to which moment all of it is settled.
#include "../support/activemq_fixture.hpp"
#include "../support/catch.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>

namespace {

using mq::backend::Backlog;
using mq::backend::Clock;
using mq::backend::Inbound;
using mq::test::After;
using mq::test::MakePublication;
using mq::test::RecordingReceiver;
using namespace mq::test::activemq;
using namespace std::chrono_literals;

/// Members of one group that take their time over each message; and a message that one of them does not
/// finish before it is told to.
class SlowGroup {
public:
    explicit SlowGroup(std::chrono::milliseconds each)
        : receiver(std::make_shared<RecordingReceiver>(
              [this](std::unique_ptr<Inbound> inbound) { Take(std::move(inbound)); })),
          worker_([this, each] { Work(each); }) {}
    SlowGroup(const SlowGroup&) = delete;
    SlowGroup& operator=(const SlowGroup&) = delete;
    ~SlowGroup() {
        {
            const std::lock_guard lock{mutex_};
            ended_ = true;
        }
        changed_.notify_all();
        worker_.join();
    }

    /// Keeps that one back from now on, and lets it go.
    void Keep(const std::string& body) {
        const std::lock_guard lock{mutex_};
        kept_ = body;
    }
    void LetGo() {
        const std::lock_guard lock{mutex_};
        kept_.clear();
        if (held_ != nullptr) queue_.push_front(std::move(held_));
        changed_.notify_all();
    }

    [[nodiscard]] std::set<std::string> Settled() const {
        const std::lock_guard lock{mutex_};
        return settled_;
    }

    const std::shared_ptr<RecordingReceiver> receiver;

private:
    void Take(std::unique_ptr<Inbound> inbound) {
        const std::lock_guard lock{mutex_};
        queue_.push_back(std::move(inbound));
        changed_.notify_all();
    }

    void Work(std::chrono::milliseconds each) {
        std::unique_lock lock{mutex_};
        while (true) {
            changed_.wait(lock, [this] { return ended_ || !queue_.empty(); });
            if (ended_) return;
            auto inbound = std::move(queue_.front());
            queue_.pop_front();
            if (inbound->message.body == kept_) {
                held_ = std::move(inbound);
                continue;
            }
            // The work of a handler.
            if (changed_.wait_for(lock, each, [this] { return ended_; })) return;
            // Recorded first: whoever is told that it is settled then finds it here.
            settled_.insert(inbound->message.body);
            inbound->Settle();
        }
    }

    mutable std::mutex mutex_ = {};  // guards all below
    std::condition_variable changed_ = {};
    std::deque<std::unique_ptr<Inbound>> queue_ = {};
    std::unique_ptr<Inbound> held_ = {};
    std::string kept_ = {};
    std::set<std::string> settled_ = {};
    bool ended_ = false;
    std::thread worker_;
};

/// Sends a message after the other, so that a queue is never empty.
class LateProducer {
public:
    LateProducer(Connected& client, const Destination& destination, std::chrono::milliseconds every)
        : thread_([this, &client, destination, every] {
              const auto publisher = client.backend->MakePublisher(destination);
              std::unique_lock lock{mutex_};
              while (!changed_.wait_for(lock, every, [this] { return ended_; })) {
                  publisher->Publish(MakePublication("late-" + std::to_string(sent_++)));
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
    std::mutex mutex_ = {};  // guards ended_
    std::condition_variable changed_ = {};
    bool ended_ = false;
    std::size_t sent_ = 0;
    std::thread thread_;
};

}  // namespace

TEST_CASE("ActiveMQ: a queue that is never empty tells up to which moment all of it is settled",
          "[activemq][artemis]") {
    for (const std::string kind : {kClassic, kArtemis}) {
        const std::string url = BrokerUrl(VariableOf(kind));
        if (url.empty()) continue;
        INFO("on " << kind);
        constexpr std::size_t kOld = 150;
        Connected client{url};
        Connected late{url};
        Connected asking{url};
        const Destination destination = Fresh();
        SlowGroup group{4ms};
        group.Keep("old-20");
        for (std::size_t i = 0; i < kOld; ++i) {
            client.backend->MakePublisher(destination)
                ->Publish(MakePublication("old-" + std::to_string(i)));
        }
        REQUIRE(client.sink.WaitForConfirmed(kOld));
        const auto moment = Clock::now();
        // Faster than the group: what is there grows.
        const LateProducer producer{late, destination, 3ms};
        const auto consumer = client.SubscribeActive(destination, "g", group.receiver, 20);
        const auto ask = [&] { return asking.backend->CheckBacklog(*destination, "g", After()); };
        const auto settled_old = [&] {
            const auto settled = group.Settled();
            return static_cast<std::size_t>(
                std::count_if(settled.begin(), settled.end(),
                              [](const std::string& body) { return body.starts_with("old-"); }));
        };
        // One that is handled for long holds it up, however much is settled behind it.
        const auto patience = After();
        while (!group.Settled().contains("late-50")) {
            REQUIRE(Clock::now() < patience);
            const Backlog backlog = ask();
            CHECK(backlog.answer != Backlog::Answer::kDrained);
            CHECK_FALSE(backlog.settled_before >= moment);
        }
        CHECK(settled_old() == kOld - 1);
        group.LetGo();
        // What has come since does not.
        const auto let_go = Clock::now();
        Backlog backlog = ask();
        while (!(backlog.settled_before >= moment)) {
            REQUIRE(Clock::now() < let_go + 30s);
            backlog = ask();
        }
        CHECK(backlog.answer == Backlog::Answer::kNotDrained);
        CHECK(settled_old() == kOld);
        // And it moves on with the group.
        const auto next = Clock::now();
        while (!(ask().settled_before >= next)) REQUIRE(Clock::now() < next + 30s);
    }
}
