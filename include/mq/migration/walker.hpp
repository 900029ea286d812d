/// @file walker.hpp
/// The one thread of a client that walks its topics from rung to rung. It sleeps until a topic wakes it
/// or is due to be looked at again: a client at rest uses no time.
#pragma once

#include <mq/detail/signal.hpp>
#include <mq/migration/topic.hpp>
#include <mq/migration/walk.hpp>

#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace mq::migration {

/// Thread-safe. Topics outlive it.
class Walker {
public:
    explicit Walker(detail::Signal& signal) : signal_(signal), thread_([this] { Loop(); }) {}
    Walker(const Walker&) = delete;
    Walker& operator=(const Walker&) = delete;
    ~Walker() { Stop(); }

    void Add(Topic& topic) {
        {
            const std::lock_guard lock{mutex_};
            topics_.push_back(&topic);
        }
        signal_.Raise();
    }

    /// Ends the thread, after the step that it is in. Not on the thread itself.
    void Stop() {
        {
            const std::lock_guard lock{mutex_};
            stopping_ = true;
        }
        signal_.Raise();
        if (thread_.joinable()) thread_.join();
    }

private:
    void Loop() {
        std::map<Topic*, Walk> walks;
        while (true) {
            const auto seen = signal_.Generation();
            const auto topics = Topics();
            if (topics.empty() && Stopping()) return;
            Clock::time_point next = Clock::time_point::max();
            for (Topic* const topic : topics) {
                if (Stopping()) return;
                Walk& walk = walks.try_emplace(topic, *topic).first->second;
                next = std::min(next, walk.Advance());
            }
            signal_.WaitChange(seen, next);
        }
    }

    [[nodiscard]] std::vector<Topic*> Topics() const {
        const std::lock_guard lock{mutex_};
        return topics_;
    }

    [[nodiscard]] bool Stopping() const {
        const std::lock_guard lock{mutex_};
        return stopping_;
    }

    detail::Signal& signal_;
    mutable std::mutex mutex_;  // guards topics_ and stopping_
    std::vector<Topic*> topics_;
    bool stopping_ = false;
    std::thread thread_;  // last: it uses all of the above
};

}  // namespace mq::migration
