/// @file ending.hpp
/// How a client ends within bounds, whatever a client library below it does: on a thread aside, which
/// is left behind where it does not come back.
#pragma once

#include <mq/detail/process.hpp>
#include <mq/detail/stragglers.hpp>
#include <mq/log.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace mq::detail {

/// A log sink that can be taken away from threads that may still write to it. In the child of a fork it
/// writes nothing. Thread-safe.
class LogGate {
public:
    explicit LogGate(LogSink sink) : sink_(std::move(sink)) {}

    void Write(LogLevel level, std::string_view line) {
        if (process_.InChild() || !Enter()) return;  // the lock may be held there for ever
        // Should the sink end the program or destroy the client, that is seen here; see Inside.
        ThreadEnd::Watch();
        const LogGate* const outer = std::exchange(inside_, this);
        try {
            sink_(level, line);
        } catch (...) {
            Leave(outer);
            throw;
        }
        Leave(outer);
    }

    /// Whether the calling thread is in the sink.
    [[nodiscard]] bool Inside() const noexcept { return inside_ == this; }

    /// Drops every line from now on, and waits for those that are being written, for a second at most.
    void Shut() {
        constexpr std::chrono::seconds kPatience{1};
        std::unique_lock lock{mutex_};
        shut_ = true;
        left_.wait_for(lock, kPatience, [this] { return writing_ == 0; });
    }

private:
    bool Enter() {
        const std::lock_guard lock{mutex_};
        if (!shut_) ++writing_;
        return !shut_;
    }

    void Leave(const LogGate* outer) {
        inside_ = outer;
        const std::lock_guard lock{mutex_};
        if (--writing_ == 0 && shut_) left_.notify_all();
    }

    static inline thread_local const LogGate* inside_ = nullptr;

    const ForkMark process_;
    const LogSink sink_;
    std::mutex mutex_ = {};  // guards the rest
    std::condition_variable left_ = {};
    std::size_t writing_ = 0;
    bool shut_ = false;
};

/// What a thread that ends something is at, for the one that waits for it. Thread-safe.
class Progress {
public:
    using Clock = std::chrono::steady_clock;

    /// Begins with something that must be done by `due`. With time_point::max() it may take as long as
    /// it likes: it waits for what is not the library's.
    void Begin(std::string what, Clock::time_point due) {
        const std::lock_guard lock{mutex_};
        what_ = std::move(what);
        due_ = due;
        changed_.notify_all();
    }

    void Done() {
        const std::lock_guard lock{mutex_};
        done_ = true;
        changed_.notify_all();
    }

    /// Waits until all is done. False where something was not done when it was due.
    bool Await() {
        std::unique_lock lock{mutex_};
        while (!done_) {
            const auto due = due_;
            const auto changed = [&] { return done_ || due_ != due; };
            if (due == Clock::time_point::max()) {
                changed_.wait(lock, changed);
            } else if (!changed_.wait_until(lock, due, changed)) {
                return false;
            }
        }
        return true;
    }

    /// What is being done, or was done last.
    [[nodiscard]] std::string what() const {
        const std::lock_guard lock{mutex_};
        return what_;
    }

private:
    mutable std::mutex mutex_ = {};  // guards the rest
    std::condition_variable changed_ = {};
    std::string what_ = {};
    Clock::time_point due_ = Clock::time_point::max();
    bool done_ = false;
};

/// Has `work` done by a thread aside, which is left behind where something of it is not done when it is
/// due: `work` then goes on with what it owns. Where the system gives no thread, it is done here.
/// @returns whether it is done.
template <typename Work>
bool DoAside(const std::shared_ptr<Progress>& progress, Work work) {
    const auto shared = std::make_shared<Work>(std::move(work));
    try {
        Stragglers::Run([progress, work = shared]() mutable {
            (*work)();
            work.reset();
            progress->Done();
        });
    } catch (const std::system_error&) {
        (*shared)();
        return true;
    }
    return progress->Await();
}

}  // namespace mq::detail
