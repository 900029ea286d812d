/// @file callback_runner.hpp
/// Runs the callbacks of pipelined sends on a thread of its own, so that business code never runs on an
/// adapter's thread, where a slow callback would hold up confirms and a blocking send would wait for
/// itself.
#pragma once

#include <mq/detail/process.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace mq::runtime {

/// `Batch` is a movable queue with `empty()` and `Append(Batch&&)`; `run` empties one.
/// Thread-safe. The thread starts with the first batch, or before by Start.
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

    /// Makes sure that there is a thread, so that every batch is run whatever the system may refuse
    /// later. Costs next to nothing where there is one. Before Stop.
    /// @throws std::system_error where the system gives none.
    void Start() {
        if (started_.load(std::memory_order_acquire)) return;
        const std::lock_guard lock{mutex_};
        StartThread();
    }

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

    /// Runs no callback from now on: what is queued, or comes yet, is dropped.
    void Silence() noexcept {
        const std::lock_guard lock{mutex_};
        silent_ = true;
    }

    /// Queues a batch. Never blocks. Where there is no thread, and none is to be had, the next batch or
    /// Stop has it run.
    void Post(Batch batch) noexcept {
        {
            const std::lock_guard lock{mutex_};
            if (silent_) return;
            queue_.Append(std::move(batch));
            try {
                StartThread();
            } catch (const std::exception&) {
                return;
            }
        }
        changed_.notify_all();
    }

    /// Waits until nothing is announced and every queued callback has returned. False where the
    /// deadline passed first, and on the callback thread itself.
    bool WaitIdle(Clock::time_point deadline) {
        if (OnOwnThread()) return false;
        std::unique_lock lock{mutex_};
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
        Batch rest{};
        {
            const std::lock_guard lock{mutex_};
            rest = std::exchange(queue_, Batch{});
            if (silent_) return;
        }
        if (!rest.empty()) run_(std::move(rest));
    }

    /// Whether the calling thread is this one's.
    [[nodiscard]] bool OnOwnThread() const noexcept { return current_ == this; }

private:
    // Call with mutex_ held.
    void StartThread() {
        if (thread_.joinable()) return;
        thread_ = std::thread{[this] { Loop(); }};
        started_.store(true, std::memory_order_release);
    }

    void Loop() {
        current_ = this;
        detail::ThreadEnd::Watch();
        std::unique_lock lock{mutex_};
        while (true) {
            changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
            if (queue_.empty()) return;
            Batch batch = std::exchange(queue_, Batch{});
            if (silent_) continue;
            running_ = true;
            lock.unlock();
            run_(std::move(batch));
            if (process_.InChild()) detail::EndChild();  // a callback has forked and returned there
            lock.lock();
            running_ = false;
            changed_.notify_all();
        }
    }

    static inline thread_local const CallbackRunner* current_ = nullptr;

    const detail::ForkMark process_;
    const Run run_;
    std::atomic<int> announced_{0};
    std::atomic<int> waiting_{0};       // threads in WaitIdle
    std::atomic<bool> started_{false};  // thread_ runs
    std::mutex mutex_;  // guards all that follows but for joining thread_, which Stop alone does
    std::condition_variable changed_;
    Batch queue_{};
    bool running_ = false;
    bool stopping_ = false;
    bool silent_ = false;
    std::thread thread_;
};

}  // namespace mq::runtime
