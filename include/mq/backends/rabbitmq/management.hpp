/// @file management.hpp
/// What a RabbitMQ's management knows of a queue and AMQP does not tell: how many messages its
/// consumers hold unsettled, in whatever process. The questions and what follows from their answers
/// stand here; <mq/backends/rabbitmq_management.hpp> knows how they are asked.
#pragma once

#include <mq/url.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace mq::rabbitmq {

/// What a queue had when its counts were last collected.
struct QueueTotals {
    std::uint64_t ready = 0;
    std::uint64_t unsettled = 0;  ///< Delivered to consumers, and not acknowledged.
};

/// What the policies in effect say of a queue, by their names ("delivery-limit"): texts, and numbers in
/// decimals.
using QueuePolicy = std::map<std::string, std::string>;

/// Asks the management of one broker. Thread-safe.
class Management {
public:
    virtual ~Management() = default;

    /// The totals of a queue; nothing where there is no such queue, or where none were collected yet.
    /// Blocks until the deadline at most.
    /// @throws std::runtime_error saying why there is no answer, without the password.
    virtual std::optional<QueueTotals> TotalsOf(const std::string& virtual_host,
                                                const std::string& queue,
                                                std::chrono::steady_clock::time_point deadline) = 0;

    /// What policies say of a queue; nothing where none does, or there is no such queue. Blocks until
    /// the deadline at most.
    /// @throws std::runtime_error saying why there is no answer, without the password.
    virtual QueuePolicy PolicyOf(const std::string& /*virtual_host*/, const std::string& /*queue*/,
                                 std::chrono::steady_clock::time_point /*deadline*/) {
        return {};
    }
};

/// What a Management is made with.
struct ManagementSettings {
    std::string broker = {};  ///< The beginning of every error text.
    Url url = {};             ///< http:// or https://, with one host or several, tried in turn.
    std::string user = {};
    std::string password = {};
    bool tls_verify = true;
    std::string tls_ca = {};  ///< A PEM file; empty: the certificates that the system trusts.
};

using MakeManagement = std::unique_ptr<Management> (*)(ManagementSettings settings);

/// How the program makes one; null where it has not included <mq/backends/rabbitmq_management.hpp>.
inline std::atomic<MakeManagement>& ManagementMaker() noexcept {
    static std::atomic<MakeManagement> maker{nullptr};
    return maker;
}

namespace detail {

/// Since when queues have been seen empty. RabbitMQ collects its counts once in a while, so that zero
/// is believed only after it has been seen for longer than the counts are old. Thread-safe.
class EmptyQueues {
public:
    using Clock = std::chrono::steady_clock;

    /// `age` is how old a count may be.
    explicit EmptyQueues(std::chrono::milliseconds age) : age_(age) {}

    /// Notes that a queue has something in it.
    void NoteUsed(const std::string& queue) {
        const std::lock_guard lock{mutex_};
        runs_.erase(queue);
    }

    /// Notes that a queue looks empty, and tells for how long it has. Looks that are further apart than
    /// the counts are old begin anew: between them anything may have been there.
    std::chrono::milliseconds NoteEmpty(const std::string& queue, Clock::time_point now) {
        const std::lock_guard lock{mutex_};
        std::erase_if(runs_, [&](const auto& entry) { return now - entry.second.last > age_; });
        Run& run = runs_.try_emplace(queue, Run{now, now}).first->second;
        run.last = now;
        return std::chrono::duration_cast<std::chrono::milliseconds>(now - run.first);
    }

    [[nodiscard]] std::chrono::milliseconds age() const noexcept { return age_; }

private:
    struct Run {
        Clock::time_point first;
        Clock::time_point last;
    };

    const std::chrono::milliseconds age_;
    std::mutex mutex_ = {};  // guards runs_
    std::map<std::string, Run> runs_ = {};
};

}  // namespace detail
}  // namespace mq::rabbitmq
