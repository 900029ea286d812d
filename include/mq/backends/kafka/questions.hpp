/// @file questions.hpp
/// What the consumers of one broker want to know of it, asked on a thread of its own: theirs must not
/// wait.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace mq::kafka::detail {

/// One thread that asks one question after another. Thread-safe.
class Questions {
public:
    /// How many may wait: each consumer has one under way at most.
    static constexpr std::size_t kMost = 1024;

    Questions() = default;
    Questions(const Questions&) = delete;
    Questions& operator=(const Questions&) = delete;
    ~Questions() { Close(); }

    /// Calls `question` on the thread, with no lock held; it throws nothing, and blocks for some
    /// seconds at most. False, and it is not called, where too many wait or the end has begun. Never
    /// blocks.
    bool Ask(std::function<void()> question) {
        const std::lock_guard lock{mutex_};
        if (closing_ || waiting_.size() >= kMost) return false;
        waiting_.push_back(std::move(question));
        if (!thread_.joinable()) thread_ = std::thread{[this] { Run(); }};
        changed_.notify_all();
        return true;
    }

    /// Drops what waits, and blocks for the question under way. Idempotent, for one caller.
    void Close() noexcept {
        {
            const std::lock_guard lock{mutex_};
            closing_ = true;
            changed_.notify_all();
        }
        if (thread_.joinable()) thread_.join();
    }

private:
    void Run() {
        while (true) {
            std::function<void()> question;
            {
                std::unique_lock lock{mutex_};
                while (waiting_.empty() && !closing_) changed_.wait_for(lock, std::chrono::hours{1});
                if (closing_) return;
                question = std::move(waiting_.front());
                waiting_.pop_front();
            }
            question();
        }
    }

    std::mutex mutex_ = {};  // guards everything below, but for joining thread_
    std::condition_variable changed_ = {};
    std::deque<std::function<void()>> waiting_ = {};
    bool closing_ = false;
    std::thread thread_ = {};
};

}  // namespace mq::kafka::detail
