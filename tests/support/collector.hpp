/// @file collector.hpp
/// What business code sees, recorded for a test: the messages that handlers got, the results that send
/// callbacks got, deliveries that are settled later, and a gate that handlers wait at. All of them wait
/// by conditions with a deadline, never by sleeping.
#pragma once

#include "backend_fakes.hpp"
#include <mq/delivery.hpp>
#include <mq/error.hpp>
#include <mq/message.hpp>
#include <mq/send_result.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace mq::test {

/// How long to look for something that must not happen. A test that looks for longer finds more, one
/// that looks for less finds less; none passes because of it.
inline constexpr std::chrono::milliseconds kGlance{300};

/// Every message that handlers got, in the order in which they were recorded. Thread-safe; outlives the
/// client whose handlers use it.
class Collector {
public:
    /// A handler that records and settles.
    [[nodiscard]] auto Handler() {
        return [this](const Message& message) { Add(message); };
    }

    void Add(const Message& message) {
        const std::lock_guard lock{mutex_};
        messages_.push_back(message);
        ++by_id_[message.id];
        changed_.notify_all();
    }

    /// Waits until `count` messages have come, repeated ones included; false at the deadline.
    bool WaitForCount(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] { return messages_.size() >= count; });
    }

    /// Waits until messages with `count` different ids have come; false at the deadline.
    bool WaitForDistinct(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] { return by_id_.size() >= count; });
    }

    /// Waits until each of the ids has come; false at the deadline.
    bool WaitForIds(const std::vector<std::string>& ids,
                    std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] {
            return std::all_of(ids.begin(), ids.end(),
                               [&](const std::string& id) { return by_id_.count(id) > 0; });
        });
    }

    [[nodiscard]] std::vector<Message> Messages() const {
        const std::lock_guard lock{mutex_};
        return messages_;
    }

    [[nodiscard]] std::vector<std::string> Bodies() const {
        const std::lock_guard lock{mutex_};
        std::vector<std::string> bodies;
        for (const Message& message : messages_) bodies.push_back(message.body);
        return bodies;
    }

    [[nodiscard]] std::set<std::string> Ids() const {
        const std::lock_guard lock{mutex_};
        std::set<std::string> ids;
        for (const auto& [id, times] : by_id_) ids.insert(id);
        return ids;
    }

    /// How many messages have come, repeated ones included.
    [[nodiscard]] std::size_t Count() const {
        const std::lock_guard lock{mutex_};
        return messages_.size();
    }

    /// The messages that have come more than once, each as "ID: N times".
    [[nodiscard]] std::vector<std::string> Repeated() const {
        const std::lock_guard lock{mutex_};
        std::vector<std::string> repeated;
        for (const auto& [id, times] : by_id_) {
            if (times > 1) repeated.push_back(id + ": " + std::to_string(times) + " times");
        }
        return repeated;
    }

    /// How often the message with that id has come.
    [[nodiscard]] std::size_t Times(const std::string& id) const {
        const std::lock_guard lock{mutex_};
        const auto found = by_id_.find(id);
        return found == by_id_.end() ? 0 : found->second;
    }

private:
    template <typename Predicate>
    bool Wait(std::chrono::milliseconds patience, Predicate predicate) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, predicate);
    }

    mutable std::mutex mutex_ = {};  // guards everything below
    mutable std::condition_variable changed_ = {};
    std::vector<Message> messages_ = {};
    std::map<std::string, std::size_t> by_id_ = {};
};

/// How pipelined sends ended. Thread-safe; outlives the client whose callbacks use it.
class SendLog {
public:
    struct Failure {
        std::string id = {};
        ErrorCode code = ErrorCode::kInternal;
        Outcome outcome = Outcome::kNotSent;
        std::string what = {};
    };

    /// A callback that records.
    [[nodiscard]] auto Callback() {
        return [this](const SendResult& result) { Add(result); };
    }

    void Add(const SendResult& result) {
        const std::lock_guard lock{mutex_};
        most_ = std::max(most_, ++by_id_[result.id()]);
        if (result.ok()) {
            confirmed_.push_back(result.id());
        } else {
            const Error& error = result.error();
            failures_.push_back({.id = result.id(),
                                 .code = error.code(),
                                 .outcome = error.outcome(),
                                 .what = error.what()});
        }
        changed_.notify_all();
    }

    /// Waits until `count` callbacks have run; false at the deadline.
    bool WaitForCount(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience,
                                 [&] { return confirmed_.size() + failures_.size() >= count; });
    }

    [[nodiscard]] std::size_t Count() const {
        const std::lock_guard lock{mutex_};
        return confirmed_.size() + failures_.size();
    }

    /// The ids of confirmed messages, in the order of their callbacks.
    [[nodiscard]] std::vector<std::string> Confirmed() const {
        const std::lock_guard lock{mutex_};
        return confirmed_;
    }

    [[nodiscard]] std::vector<Failure> Failures() const {
        const std::lock_guard lock{mutex_};
        return failures_;
    }

    /// The most callbacks that one message has had.
    [[nodiscard]] std::size_t MostForOne() const {
        const std::lock_guard lock{mutex_};
        return most_;
    }

private:
    mutable std::mutex mutex_ = {};  // guards everything below
    mutable std::condition_variable changed_ = {};
    std::vector<std::string> confirmed_ = {};
    std::vector<Failure> failures_ = {};
    std::map<std::string, std::size_t> by_id_ = {};
    std::size_t most_ = 0;
};

/// Deliveries that a handler has put aside. Thread-safe; outlives the client whose handlers use it.
class DeliveryBox {
public:
    /// A handler that puts every delivery aside.
    [[nodiscard]] auto Handler() {
        return [this](Delivery delivery) { Put(std::move(delivery)); };
    }

    void Put(Delivery delivery) {
        const std::lock_guard lock{mutex_};
        deliveries_.push_back(std::move(delivery));
        changed_.notify_all();
    }

    /// Waits until at least `count` deliveries lie here; false at the deadline.
    bool WaitForCount(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, [&] { return deliveries_.size() >= count; });
    }

    /// Takes everything out.
    [[nodiscard]] std::vector<Delivery> Take() {
        const std::lock_guard lock{mutex_};
        return std::exchange(deliveries_, {});
    }

    [[nodiscard]] std::size_t Count() const {
        const std::lock_guard lock{mutex_};
        return deliveries_.size();
    }

private:
    mutable std::mutex mutex_ = {};  // guards everything below
    mutable std::condition_variable changed_ = {};
    std::vector<Delivery> deliveries_ = {};
};

/// A door that is opened once. Thread-safe.
class Gate {
public:
    void Open() {
        const std::lock_guard lock{mutex_};
        open_ = true;
        changed_.notify_all();
    }

    /// Waits until it is open; false at the deadline.
    bool Wait(std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, [&] { return open_; });
    }

    [[nodiscard]] bool IsOpen() const {
        const std::lock_guard lock{mutex_};
        return open_;
    }

private:
    mutable std::mutex mutex_ = {};  // guards open_
    mutable std::condition_variable changed_ = {};
    bool open_ = false;
};

/// Counts up. Thread-safe.
class Counter {
public:
    std::size_t Add(std::size_t count = 1) {
        const std::lock_guard lock{mutex_};
        value_ += count;
        changed_.notify_all();
        return value_;
    }

    /// Waits until it stands at `count` or more; false at the deadline.
    bool WaitFor(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, [&] { return value_ >= count; });
    }

    [[nodiscard]] std::size_t Value() const {
        const std::lock_guard lock{mutex_};
        return value_;
    }

private:
    mutable std::mutex mutex_ = {};  // guards value_
    mutable std::condition_variable changed_ = {};
    std::size_t value_ = 0;
};

/// Lines that other threads than the test's own want to see in an assertion, which Catch2 takes from
/// the test's thread only. Thread-safe.
class Notes {
public:
    void Add(std::string line) {
        const std::lock_guard lock{mutex_};
        lines_.push_back(std::move(line));
    }

    [[nodiscard]] std::vector<std::string> All() const {
        const std::lock_guard lock{mutex_};
        return lines_;
    }

private:
    mutable std::mutex mutex_ = {};  // guards lines_
    std::vector<std::string> lines_ = {};
};

}  // namespace mq::test
