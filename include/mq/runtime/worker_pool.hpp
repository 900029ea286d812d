/// @file worker_pool.hpp
/// The threads that run handlers, shared by all subscriptions of a client: five hundred quiet topics
/// need no thread, and a busy one takes what its concurrency allows.
#pragma once

#include <mq/detail/process.hpp>
#include <mq/detail/unique_function.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace mq::runtime {

/// Runs tasks, at once or later. Thread-safe. Threads start when a task finds none idle, up to the
/// limit; beyond it, and where the system gives no further thread, tasks queue. The number of queued
/// tasks is bounded by those who post: a subscription posts one for each handler that may run, and one
/// for each retry that it waits for.
class WorkerPool {
public:
    using Clock = std::chrono::steady_clock;
    using Task = detail::UniqueFunction<void()>;

    explicit WorkerPool(std::size_t limit) noexcept : limit_(limit) {}
    WorkerPool(const WorkerPool&) = delete;
    WorkerPool& operator=(const WorkerPool&) = delete;
    ~WorkerPool() { Stop(); }

    /// Lets at least this many tasks run at once.
    void RaiseLimit(std::size_t limit) {
        const std::lock_guard lock{mutex_};
        limit_ = std::max(limit_, limit);
    }

    /// Makes sure that there is a thread, so that what is posted from now on is run whatever the system
    /// may refuse later. Nothing where the pool has stopped.
    /// @throws std::system_error where the system gives none.
    void Start() {
        const std::lock_guard lock{mutex_};
        if (threads_.empty() && !stopping_) threads_.emplace_back([this] { Loop(); });
    }

    /// Runs the task soon. Dropped where the pool has stopped.
    void Post(Task task) {
        const std::lock_guard lock{mutex_};
        if (stopping_) return;
        ready_.push_back(std::move(task));
        WakeOne();
    }

    /// Runs the task at that time. Dropped where the pool has stopped, or stops before.
    void PostAt(Clock::time_point when, Task task) {
        const std::lock_guard lock{mutex_};
        if (stopping_) return;
        later_.emplace(when, std::move(task));
        // Whoever waits may have to wait for less, and somebody must wait.
        WakeOne();
    }

    /// Drops what is queued and waits for what runs. Not on a thread of the pool.
    void Stop() {
        std::vector<std::thread> threads;
        {
            const std::lock_guard lock{mutex_};
            stopping_ = true;
            threads.swap(threads_);
        }
        changed_.notify_all();
        for (std::thread& thread : threads) thread.join();
        // Destroyed without the lock: a task may own what its user gave us.
        std::deque<Task> ready;
        std::multimap<Clock::time_point, Task> later;
        const std::lock_guard lock{mutex_};
        ready.swap(ready_);
        later.swap(later_);
    }

    /// How many threads wait for a task.
    [[nodiscard]] std::size_t Idle() const {
        const std::lock_guard lock{mutex_};
        return idle_;
    }

    /// Whether the calling thread is one of this pool: it runs a handler.
    [[nodiscard]] bool OnOwnThread() const noexcept { return current_ == this; }

private:
    // Call with mutex_ held.
    void WakeOne() noexcept {
        if (idle_ > 0) {
            changed_.notify_one();
        } else if (threads_.size() < limit_) {
            try {
                threads_.emplace_back([this] { Loop(); });
            } catch (const std::exception&) {
                // The threads that there are come to the task when they are done with theirs.
                return;
            }
        }
    }

    void Loop() {
        current_ = this;
        detail::ThreadEnd::Watch();
        std::unique_lock lock{mutex_};
        while (!stopping_) {
            TakeDue();
            if (ready_.empty()) {
                Wait(lock);
                continue;
            }
            Task task = std::move(ready_.front());
            ready_.pop_front();
            // A thread that goes to work sees to it that somebody watches the queue and the clock.
            if (!ready_.empty() || !later_.empty()) WakeOne();
            lock.unlock();
            task();
            if (process_.InChild()) detail::EndChild();  // a handler has forked and returned there
            task = Task{};
            lock.lock();
        }
    }

    // Call with mutex_ held.
    void TakeDue() {
        const auto now = Clock::now();
        while (!later_.empty() && later_.begin()->first <= now) {
            ready_.push_back(std::move(later_.begin()->second));
            later_.erase(later_.begin());
        }
    }

    void Wait(std::unique_lock<std::mutex>& lock) {
        ++idle_;
        if (later_.empty()) {
            changed_.wait(lock);
        } else {
            const auto next = later_.begin()->first;
            changed_.wait_until(lock, next);
        }
        --idle_;
    }

    static inline thread_local const WorkerPool* current_ = nullptr;

    const detail::ForkMark process_;
    mutable std::mutex mutex_;  // guards all that follows
    std::condition_variable changed_;
    std::size_t limit_;
    std::size_t idle_ = 0;
    bool stopping_ = false;
    std::deque<Task> ready_;
    std::multimap<Clock::time_point, Task> later_;
    std::vector<std::thread> threads_;
};

}  // namespace mq::runtime
