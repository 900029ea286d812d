/// @file mailbox.hpp
/// What other threads leave for the thread of a RabbitMQ connection, and the questions among it. Knows
/// nothing of the client library.
#pragma once

#include <mq/backends/rabbitmq/failure.hpp>
#include <mq/detail/mailbox.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::rabbitmq::detail {

/// What a broker was asked about one queue, and its answer. Thread-safe.
class Inquiry {
public:
    struct Answer {
        std::optional<Failure> failure = {};  ///< Why there is no answer; kNotFound: no such queue.
        std::uint32_t ready = 0;              ///< Messages that wait, without the unsettled ones.
        std::uint32_t consumers = 0;          ///< Of the whole group.
        std::size_t own_consumers = 0;        ///< Of them, those of the connection that was asked.
        std::uint64_t own_unsettled = 0;      ///< Messages that these hold.
        bool single_consumer = false;         ///< Where it was asked for: it has a single active one.
    };

    Inquiry(std::string queue_name, bool settled) : queue(std::move(queue_name)), exact(settled) {}

    const std::string queue;
    /// Whether the answer must hold for ready and unsettled messages together, at one moment.
    const bool exact;
    /// The exchange that the queue must be bound to, and the key; empty: the bindings do not matter.
    std::string exchange = {};
    std::string binding_key = {};
    /// Whether it is to be found out if the queue has a single active consumer.
    bool about_single_consumer = false;

    void Finish(Answer answer) {
        const std::lock_guard lock{mutex_};
        if (!answer_) answer_ = std::move(answer);
        finished_.notify_all();
    }

    /// Blocks until the answer is there, at most until the deadline; nothing then.
    std::optional<Answer> Wait(std::chrono::steady_clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        finished_.wait_until(lock, deadline, [this] { return answer_.has_value(); });
        return answer_;
    }

private:
    std::mutex mutex_ = {};  // guards answer_
    std::condition_variable finished_ = {};
    std::optional<Answer> answer_ = {};
};

/// What every I/O thread can be left. Outlives the thread, and whoever holds something of it.
class Mailbox : public mq::detail::Mailbox {
public:
    /// Leaves a question for the I/O thread. Returns false where there is no connection to ask by.
    bool Ask(std::shared_ptr<Inquiry> inquiry) {
        return PostIfConnected([&] { inquiries.push_back(std::move(inquiry)); });
    }

    /// Guarded by the lock: touched by the callbacks of Post, Collect and End alone.
    std::vector<std::shared_ptr<Inquiry>> inquiries = {};
};

}  // namespace mq::rabbitmq::detail
