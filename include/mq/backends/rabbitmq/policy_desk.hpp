/// @file policy_desk.hpp
/// Asks a RabbitMQ's management, on a thread of its own, what a policy adds to the arguments of a
/// queue: the loops must not wait for HTTP.
#pragma once

#include <mq/backends/rabbitmq/management.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace mq::rabbitmq::detail {

/// One question after the other. Thread-safe.
class PolicyDesk {
public:
    using Clock = std::chrono::steady_clock;
    /// Called once, on the desk's thread, with no lock held; with nothing where nothing is known.
    using Done = std::function<void(QueuePolicy)>;

    /// How long one answer may take; also how long the destructor may.
    static constexpr std::chrono::seconds kPatience{2};
    /// After a management that did not answer, nobody waits for it for so long.
    static constexpr std::chrono::seconds kPause{30};

    /// `management` may be null: nothing is known then.
    PolicyDesk(std::shared_ptr<Management> management, std::string virtual_host)
        : management_(std::move(management)), virtual_host_(std::move(virtual_host)) {}
    PolicyDesk(const PolicyDesk&) = delete;
    PolicyDesk& operator=(const PolicyDesk&) = delete;
    ~PolicyDesk() { Close(); }

    [[nodiscard]] bool Open() const noexcept { return management_ != nullptr; }

    /// Never blocks. Returns false, with `done` not called, where nobody will answer.
    bool Ask(std::string queue, Done done) {
        if (!Open()) return false;
        const std::lock_guard lock{mutex_};
        if (closed_ || questions_.size() >= kMost) return false;
        try {
            if (!thread_.joinable()) thread_ = std::thread{[this] { Run(); }};
        } catch (const std::system_error&) {
            return false;
        }
        questions_.push_back({std::move(queue), std::move(done)});
        asked_.notify_one();
        return true;
    }

    /// Drops what was not asked yet, and waits for the answer that is under way. Idempotent.
    void Close() noexcept {
        std::thread ended;
        {
            const std::lock_guard lock{mutex_};
            closed_ = true;
            questions_.clear();
            ended.swap(thread_);
        }
        asked_.notify_one();
        if (ended.joinable()) ended.join();
    }

private:
    struct Question {
        std::string queue = {};
        Done done = {};
    };

    static constexpr std::size_t kMost = 10'000;

    void Run() {
        Clock::time_point silent_until = {};
        while (true) {
            Question question;
            {
                std::unique_lock lock{mutex_};
                asked_.wait(lock, [this] { return closed_ || !questions_.empty(); });
                if (closed_) return;
                question = std::move(questions_.front());
                questions_.pop_front();
            }
            QueuePolicy policy;
            if (Clock::now() >= silent_until) {
                try {
                    policy =
                        management_->PolicyOf(virtual_host_, question.queue, Clock::now() + kPatience);
                } catch (const std::exception&) {
                    silent_until = Clock::now() + kPause;
                }
            }
            question.done(std::move(policy));
        }
    }

    const std::shared_ptr<Management> management_;
    const std::string virtual_host_;
    std::mutex mutex_ = {};  // guards all below
    std::condition_variable asked_ = {};
    std::deque<Question> questions_ = {};
    std::thread thread_ = {};
    bool closed_ = false;
};

}  // namespace mq::rabbitmq::detail
