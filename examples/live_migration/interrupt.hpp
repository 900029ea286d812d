/// @file interrupt.hpp
/// Ctrl-C: the first one asks the demonstration to come to its end, the second one ends it at once.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>
#include <utility>

namespace live {

/// Takes SIGINT and SIGTERM as long as it lives. Made before any other thread, which then leaves the
/// signals to this one.
class Interrupt {
public:
    /// `at_first` is called at the first signal. `at_once` is called before the process ends by a
    /// second one, or because it has not ended in the 35 seconds after the first: a broker that does
    /// not answer can hold up a client for longer. Both run on a thread of their own.
    Interrupt(std::function<void()> at_first, std::function<void()> at_once)
        : at_first_(std::move(at_first)), at_once_(std::move(at_once)) {
        sigemptyset(&signals_);
        sigaddset(&signals_, SIGTERM);
        // A shell has its background jobs ignore it: those are to go on.
        struct sigaction current {};
        if (::sigaction(SIGINT, nullptr, &current) == 0 && current.sa_handler != SIG_IGN) {
            sigaddset(&signals_, SIGINT);
        }
        ::pthread_sigmask(SIG_BLOCK, &signals_, &before_);
        thread_ = std::thread{[this] { Watch(); }};
    }
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;
    ~Interrupt() {
        over_ = true;
        ::pthread_kill(thread_.native_handle(), SIGTERM);
        thread_.join();
        ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }

    /// The first signal; 0 before it. Thread-safe.
    [[nodiscard]] int Signal() const noexcept { return signal_; }

private:
    // timeout(1) signals a process and then its whole group, which is one request.
    static constexpr std::chrono::milliseconds kTogether{100};
    static constexpr std::chrono::seconds kPatience{35};

    void Watch() {
        int first = 0;
        ::sigwait(&signals_, &first);
        if (over_) return;
        signal_ = first;
        at_first_();
        Await(kTogether);
        if (over_) return;
        const int second = Await(kPatience);
        if (over_) return;
        std::fputs(second != 0 ? "ended at once\n" : "ended, because it took too long\n", stderr);
        at_once_();
        ::_exit(128 + first);
    }

    // The next signal; 0 where none comes in time.
    int Await(std::chrono::milliseconds limit) const {
        using std::chrono::steady_clock;
        const auto deadline = steady_clock::now() + limit;
        int signal = 0;
        do {
            const std::chrono::nanoseconds left{std::max(deadline - steady_clock::now(), {})};
            const timespec time{.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000),
                                .tv_nsec = static_cast<long>(left.count() % 1'000'000'000)};
            signal = ::sigtimedwait(&signals_, nullptr, &time);
        } while (signal < 0 && errno == EINTR);  // it was stopped, and goes on
        return std::max(signal, 0);
    }

    const std::function<void()> at_first_;
    const std::function<void()> at_once_;
    sigset_t signals_ = {};
    sigset_t before_ = {};
    std::atomic<int> signal_{0};
    std::atomic<bool> over_{false};
    std::thread thread_;
};

}  // namespace live
