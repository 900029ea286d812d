/// @file intake.hpp
/// What becomes of a publication between its client and the log of a memory broker: refused, stored,
/// confirmed, waiting for room or for the broker's start, repeated after it. A part of
/// backends/memory.hpp.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/memory/group.hpp>
#include <mq/backends/memory/log.hpp>
#include <mq/backends/memory/topic.hpp>
#include <mq/error.hpp>
#include <mq/message.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace mq::memory::detail {

/// The publishing side of one client.
struct Connection {
    Connection(Limits its_limits, backend::PublicationSink& its_sink)
        : limits(its_limits), sink(its_sink) {}

    const Limits limits;
    backend::PublicationSink& sink;

    // The broker's mutex guards these.
    backend::PublicationList finished = {};  // to be handed to the sink
    std::size_t finished_count = 0;

    std::once_flag attached = {};  // to the broker's thread, by the first publication

    // The broker's inbox mutex guards these.
    std::size_t in_flight = 0;  // publications that are not back at the sink
    bool closing = false;
};

/// A publication on its way, between Publish and the broker.
struct Arrival {
    std::unique_ptr<backend::Publication> publication = {};
    std::shared_ptr<const Message> message = {};  // what the log is to keep
    std::size_t weight = 0;
    Connection* connection = nullptr;
    Topic* topic = nullptr;
    bool refused = false;
};

/// A publication that the broker could not deal with at once.
struct Pending {
    enum class State : unsigned char {
        kWaiting,      ///< For the broker to start, or for room.
        kUnconfirmed,  ///< The broker has it and will confirm it.
        kLost,         ///< The broker has it, and its confirm went missing.
        kFinished,
    };

    Arrival arrival = {};
    Clock::time_point deadline = {};
    State state = State::kWaiting;
    bool written = false;  ///< The broker has had it, on this connection or an earlier one.
};

/// Publications on their way back to one sink.
struct Batch {
    Connection* connection = nullptr;
    backend::PublicationList finished = {};
    std::size_t count = 0;
};

/// What a test has asked to go wrong with publications.
struct Faults {
    Clock::duration confirm_delay = {};
    std::size_t refuse_next = 0;
    std::size_t lose_confirms = 0;
};

/// How many publications came to which end.
struct IntakeCounts {
    std::uint64_t published = 0;
    std::uint64_t confirmed = 0;
    std::uint64_t failed = 0;
};

/// The publications of every client of one broker. Bookkeeping without threads: the broker's mutex
/// guards it.
class Intake {
public:
    /// `stored` is called when a message was appended to the log of a topic.
    Intake(std::string name, std::function<void(Topic&)> stored)
        : name_(std::move(name)), stored_(std::move(stored)) {}

    /// Every connection is lost: what was written and not confirmed is to be repeated.
    void Stop() {
        running_ = false;
        unconfirmed_.clear();
        for (auto& [sequence, pending] : pending_) {
            if (!pending.written) continue;
            pending.arrival.publication->possible_duplicate = true;
            if (pending.state == Pending::State::kWaiting) continue;
            pending.state = Pending::State::kWaiting;
            Wait(sequence, *pending.arrival.topic);
        }
    }

    void Start() { running_ = true; }

    /// A publication comes in.
    void Admit(Arrival arrival, Clock::time_point now) {
        Pending pending{.arrival = std::move(arrival)};
        pending.deadline = pending.arrival.publication->deadline;
        if (pending.arrival.publication->error != nullptr) {
            Finish(pending);
        } else if (pending.deadline <= now) {
            FailLate(pending);
        } else {
            // Behind those that wait already, so that the order is kept.
            if (running_ && pending.arrival.topic->waiting.empty()) Offer(pending, now);
            if (pending.state != Pending::State::kFinished) Keep(std::move(pending), now);
        }
    }

    /// Does what is due: confirms, what waits and can be stored now, deadlines.
    void Advance(Clock::time_point now) {
        ConfirmDue(now);
        if (running_) PublishWaiting(now);
        Expire(now);
    }

    /// When Advance has something to do next, if nothing happens before.
    [[nodiscard]] std::optional<Clock::time_point> NextEvent() const {
        std::optional<Clock::time_point> next;
        if (!deadlines_.empty()) next = deadlines_.begin()->first;
        if (!unconfirmed_.empty()) {
            const auto due = unconfirmed_.front().first + faults_.confirm_delay;
            next = std::min(due, next.value_or(due));
        }
        return next;
    }

    /// Hands back everything that a client still has on its way; the client is closing.
    void FailAll(const Connection& connection) {
        for (auto next = pending_.begin(); next != pending_.end();) {
            auto& [sequence, pending] = *next++;
            if (pending.arrival.connection != &connection) continue;
            Fail(pending, ErrorCode::kClosed, "was left before the confirm");
            Forget(sequence);
        }
    }

    /// What is finished, for the sinks.
    std::vector<Batch> TakeFinished() {
        std::vector<Batch> batches;
        for (Connection* const connection : finished_) {
            batches.push_back({connection, std::move(connection->finished),
                               std::exchange(connection->finished_count, 0)});
        }
        finished_.clear();
        return batches;
    }

    [[nodiscard]] bool running() const { return running_; }
    [[nodiscard]] Faults& faults() { return faults_; }
    [[nodiscard]] IntakeCounts& counts() { return counts_; }

    /// Grows with every publication that is finished.
    [[nodiscard]] std::uint64_t changes() const { return changes_; }

private:
    static bool TakeOne(std::size_t& count) { return count > 0 && count-- > 0; }

    void ConfirmDue(Clock::time_point now) {
        while (!unconfirmed_.empty()) {
            const auto [taken_at, sequence] = unconfirmed_.front();
            const auto found = pending_.find(sequence);
            const bool failed = found == pending_.end();
            if (!failed && taken_at + faults_.confirm_delay > now) return;
            unconfirmed_.pop_front();
            if (failed) continue;
            Confirm(found->second);
            Forget(sequence);
        }
    }

    void PublishWaiting(Clock::time_point now) {
        const auto publish_all = [&](Topic& topic) {
            while (!topic.waiting.empty()) {
                const std::uint64_t sequence = *topic.waiting.begin();
                Pending& pending = pending_.at(sequence);
                Offer(pending, now);
                if (pending.state == Pending::State::kWaiting) return false;
                topic.waiting.erase(topic.waiting.begin());
                if (pending.state == Pending::State::kUnconfirmed) {
                    unconfirmed_.emplace_back(now, sequence);
                } else if (pending.state == Pending::State::kFinished) {
                    Forget(sequence);
                }
            }
            return true;
        };
        std::erase_if(stalled_, [&](Topic* topic) { return publish_all(*topic); });
    }

    void Expire(Clock::time_point now) {
        while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
            const std::uint64_t sequence = deadlines_.begin()->second;
            FailLate(pending_.at(sequence));
            Forget(sequence);
        }
    }

    /// The publication reaches the running broker.
    void Offer(Pending& pending, Clock::time_point now) {
        const Arrival& arrival = pending.arrival;
        const Limits& limits = arrival.connection->limits;
        Topic& topic = *arrival.topic;
        if (arrival.refused || TakeOne(faults_.refuse_next)) {
            Fail(pending, ErrorCode::kRefused, "was told to refuse it");
        } else if (!topic.exists && !limits.declare) {
            Fail(pending, ErrorCode::kNotFound, "has no topic " + topic.address);
        } else if (arrival.weight > limits.capacity_bytes) {
            Fail(pending, ErrorCode::kTooLarge,
                 "was given a message of " + std::to_string(arrival.weight) +
                     " bytes, which is more than a topic holds (" +
                     std::to_string(limits.capacity_bytes) + ")");
        } else if (topic.MakeRoom(arrival.weight, limits)) {
            Store(pending, now);
        }
    }

    void Store(Pending& pending, Clock::time_point now) {
        const Arrival& arrival = pending.arrival;
        Topic& topic = *arrival.topic;
        topic.log.Append({.message = arrival.message,
                          .weight = arrival.weight,
                          .stored_at = now,
                          .possible_duplicate = arrival.publication->possible_duplicate,
                          .sender = std::string{arrival.publication->sender}});
        stored_(topic);
        ++counts_.published;
        pending.written = true;
        if (TakeOne(faults_.lose_confirms)) {
            pending.state = Pending::State::kLost;
        } else if (faults_.confirm_delay > Clock::duration::zero()) {
            pending.state = Pending::State::kUnconfirmed;
        } else {
            Confirm(pending);
        }
    }

    void Keep(Pending pending, Clock::time_point now) {
        const std::uint64_t sequence = next_sequence_++;
        deadlines_.emplace(pending.deadline, sequence);
        if (pending.state == Pending::State::kUnconfirmed) {
            unconfirmed_.emplace_back(now, sequence);
        } else if (pending.state == Pending::State::kWaiting) {
            Wait(sequence, *pending.arrival.topic);
        }
        pending_.emplace(sequence, std::move(pending));
    }

    void Wait(std::uint64_t sequence, Topic& topic) {
        topic.waiting.insert(sequence);
        stalled_.insert(&topic);
    }

    /// Removes a finished publication from every list but `unconfirmed_`, which looks for itself.
    void Forget(std::uint64_t sequence) {
        const auto found = pending_.find(sequence);
        deadlines_.erase({found->second.deadline, sequence});
        found->second.arrival.topic->waiting.erase(sequence);
        pending_.erase(found);
    }

    void Confirm(Pending& pending) {
        ++counts_.confirmed;
        Finish(pending);
    }

    void Fail(Pending& pending, ErrorCode code, const std::string& what) {
        ++counts_.failed;
        pending.arrival.publication->error =
            std::make_unique<Error>(code, "memory broker " + name_ + " " + what,
                                    pending.written ? Outcome::kUnknown : Outcome::kNotSent);
        Finish(pending);
    }

    /// Fails a publication whose deadline has passed.
    void FailLate(Pending& pending) {
        if (!running_) {
            Fail(pending, ErrorCode::kUnavailable, "is stopped");
        } else if (pending.state != Pending::State::kWaiting) {
            Fail(pending, ErrorCode::kTimeout, "did not confirm in time");
        } else if (pending.arrival.topic->waiting.empty()) {
            Fail(pending, ErrorCode::kTimeout, "got it too late");
        } else {
            Fail(pending, ErrorCode::kTimeout, "has no room: " + WhyFull(*pending.arrival.topic));
        }
    }

    void Finish(Pending& pending) {
        Connection& connection = *pending.arrival.connection;
        connection.finished.PushBack(std::move(pending.arrival.publication));
        if (connection.finished_count++ == 0) finished_.push_back(&connection);
        pending.state = Pending::State::kFinished;
        ++changes_;
    }

    std::string WhyFull(const Topic& topic) const {
        const std::string text =
            "topic " + topic.address + " holds " + std::to_string(topic.log.size()) + " messages ";
        const Group* const slowest = topic.Slowest();
        if (slowest == nullptr) return text + "and no group reads it";
        const auto [ready, unsettled] = slowest->Left();
        return text + "of which group " + slowest->name() + " has not settled " +
               std::to_string(ready + unsettled);
    }

    const std::string name_;
    const std::function<void(Topic&)> stored_;
    bool running_ = true;
    Faults faults_ = {};
    IntakeCounts counts_ = {};
    std::map<std::uint64_t, Pending> pending_ = {};  // by sequence
    std::uint64_t next_sequence_ = 0;
    std::set<std::pair<Clock::time_point, std::uint64_t>> deadlines_ = {};      // of pending_
    std::deque<std::pair<Clock::time_point, std::uint64_t>> unconfirmed_ = {};  // when taken, sequence
    std::set<Topic*> stalled_ = {};           // topics with waiting publications
    std::vector<Connection*> finished_ = {};  // with something for their sinks
    std::uint64_t changes_ = 0;
};

}  // namespace mq::memory::detail
