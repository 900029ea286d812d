/// @file send_stopwatch.hpp
/// What a change of policy costs those who send meanwhile: senders at a steady pace, and the longest of
/// their calls beside a change and beside none.
#pragma once

#include "../support/wait.hpp"
#include <mq/client.hpp>
#include <mq/message.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <ostream>
#include <string>
#include <thread>
#include <utility>

namespace mq::test {

using Microseconds = std::chrono::microseconds;

/// Sends at a steady pace on a thread of its own, and keeps how long the longest call took.
class SendStopwatch {
public:
    /// `make()` makes a message, and is not timed; `ended(result)` is called with the result of its
    /// send, perhaps after this is destroyed. The client must outlive this.
    template <typename Make, typename Ended>
    SendStopwatch(Client& client, std::string topic, unsigned per_second, Make make, Ended ended)
        : thread_([=, this, &client] {
              const Microseconds pace{1'000'000 / per_second};
              Run(pace, make,
                  [&](Message message) { client.SendMsg(topic, std::move(message), ended); });
          }) {}
    SendStopwatch(const SendStopwatch&) = delete;
    SendStopwatch& operator=(const SendStopwatch&) = delete;
    ~SendStopwatch() {
        stop_ = true;
        thread_.join();
    }

    /// The longest of the calls that have ended since the last question, once one that began after this
    /// question has ended: a call that was held up is among them.
    [[nodiscard]] Microseconds TakeLongest() {
        // The call that runs now began before, and may have ended already.
        const std::uint64_t wanted = calls() + 2;
        if (!Eventually([&] { return calls() >= wanted; })) return kPatience;
        return Microseconds{longest_.exchange(0)};
    }

    [[nodiscard]] std::uint64_t calls() const noexcept { return calls_; }

private:
    template <typename Make, typename Send>
    void Run(Microseconds pace, const Make& make, const Send& send) {
        std::mutex mutex;
        std::condition_variable never;
        std::unique_lock lock{mutex};
        for (auto next = backend::Clock::now(); !stop_;) {
            never.wait_until(lock, next);
            // It makes up for a thread that was late, but not for a call that was held up long.
            next = std::max(next + pace, backend::Clock::now() - std::chrono::milliseconds{100});
            Message message = make();
            const auto begin = backend::Clock::now();
            send(std::move(message));
            const auto took = std::chrono::duration_cast<Microseconds>(backend::Clock::now() - begin);
            // Between the two the watch may be read, and one call counts in the wrong measurement.
            if (took.count() > longest_) longest_ = took.count();
            ++calls_;
        }
    }

    std::atomic<bool> stop_{false};
    std::atomic<Microseconds::rep> longest_{0};
    std::atomic<std::uint64_t> calls_{0};
    std::thread thread_;  // last: it uses all of the above
};

/// The longest call beside a change of policy, and as long beside none, each the least of several
/// measurements: what a change adds is in every one, and what the machine adds now and then is not.
struct ChangeCost {
    Microseconds with = Microseconds::max();
    Microseconds without = Microseconds::max();

    /// What a send may take at the most: ten milliseconds, or what it takes on this machine anyway.
    [[nodiscard]] Microseconds Bound() const {
        return std::max<Microseconds>(std::chrono::milliseconds{10}, 3 * without);
    }

    void Add(const ChangeCost& measured) {
        with = std::min(with, measured.with);
        without = std::min(without, measured.without);
    }

    friend std::ostream& operator<<(std::ostream& out, const ChangeCost& cost) {
        return out << "the longest call took " << cost.with.count() << " microseconds beside a change, "
                   << cost.without.count() << " beside none";
    }
};

/// Measures one change. `change()` makes it, and returns when it is made; the first thousand sends or
/// so to the other side belong to it.
template <typename Senders, typename Change>
ChangeCost MeasureChange(const Senders& senders, Change change) {
    const auto longest = [&] {
        Microseconds all{0};
        for (SendStopwatch* const sender : senders) all = std::max(all, sender->TakeLongest());
        return all;
    };
    const auto watch_for = [](backend::Clock::duration time) {
        const auto end = backend::Clock::now() + time;
        Eventually([&] { return backend::Clock::now() >= end; });
    };
    ChangeCost cost;
    static_cast<void>(longest());
    const auto begin = backend::Clock::now();
    change();
    watch_for(std::chrono::milliseconds{100});
    cost.with = longest();
    // The same time again, in which nothing changes.
    watch_for(backend::Clock::now() - begin);
    cost.without = longest();
    return cost;
}

}  // namespace mq::test
