/// @file callback_runner.hpp
/// Runs the callbacks of pipelined sends on a thread of its own, so that business code never runs on an
/// adapter's thread, where a slow callback would hold up confirms and a blocking send would wait for
/// itself.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

namespace mq::runtime {

/// `Batch` is a movable queue with `empty()` and `Append(Batch&&)`; `run` empties one.
/// Thread-safe. The thread starts with the first batch.
template <typename Batch>
class CallbackRunner {
public:
    using Clock = std::chrono::steady_clock;
    using Run = void (*)(Batch batch);

    explicit CallbackRunner(Run run) noexcept : run_(run) {}
    CallbackRunner(const CallbackRunner&) = delete;
    CallbackRunner& operator=(const CallbackRunner&) = delete;

    /// Runs what is queued, then ends.
    ~CallbackRunner() { Stop(); }

    /// Has WaitIdle wait until the Retract that follows: for those who let it be known that something
    /// has ended before they queue its callback. Never blocks.
    void Announce() noexcept { announced_.fetch_add(1); }

    /// Ends what Announce began.
    void Retract() noexcept {
        if (announced_.fetch_sub(1) != 1 || waiting_.load() == 0) return;
        // The lock orders this with a waiter between its test and its wait.
        { const std::lock_guard lock{mutex_}; }
        changed_.notify_all();
    }

    /// Queues a batch. Never blocks.
    void Post(Batch batch) {
        {
            const std::lock_guard lock{mutex_};
            queue_.Append(std::move(batch));
            if (!thread_.joinable()) thread_ = std::thread{[this] { Loop(); }};
        }
        changed_.notify_all();
    }

    /// Waits until nothing is announced and every queued callback has returned. False where the
    /// deadline passed first, and on the callback thread itself.
    bool WaitIdle(Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        if (thread_.get_id() == std::this_thread::get_id()) return false;
        waiting_.fetch_add(1);
        const bool idle = changed_.wait_until(
            lock, deadline, [this] { return announced_.load() == 0 && queue_.empty() && !running_; });
        waiting_.fetch_sub(1);
        return idle;
    }

    /// Runs what is queued and ends the thread. Waits for the callbacks. Not on the callback thread.
    void Stop() {
        {
            const std::lock_guard lock{mutex_};
            stopping_ = true;
        }
        changed_.notify_all();
        if (thread_.joinable()) thread_.join();
    }

    /// Whether the calling thread is the callback thread of any client.
    static bool OnCallbackThread() noexcept { return on_callback_thread_; }

private:
    void Loop() {
        on_callback_thread_ = true;
        std::unique_lock lock{mutex_};
        while (true) {
            changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
            if (queue_.empty()) return;
            Batch batch = std::exchange(queue_, Batch{});
            running_ = true;
            lock.unlock();
            run_(std::move(batch));
            lock.lock();
            running_ = false;
            changed_.notify_all();
        }
    }

    static inline thread_local bool on_callback_thread_ = false;

    const Run run_;
    std::atomic<int> announced_{0};
    std::atomic<int> waiting_{0};  // threads in WaitIdle
    std::mutex mutex_;  // guards all that follows but for joining thread_, which Stop alone does
    std::condition_variable changed_;
    Batch queue_{};
    bool running_ = false;
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace mq::runtime
