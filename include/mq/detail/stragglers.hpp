/// @file stragglers.hpp
/// Where threads go that nobody can wait for: what they are busy with cannot be interrupted, or is the
/// end of the very thread that would wait.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace mq::detail {

/// Threads that could not be waited for when they were no longer needed, because the system's resolver
/// or a TLS handshake held them, or because they end a client that one of its own handlers dropped.
/// They touch nothing but what they own, and are joined when the program ends, at the latest.
class Stragglers {
public:
    static void Add(std::thread thread) {
        Stragglers& stragglers = Instance();
        const std::lock_guard lock{stragglers.mutex_};
        stragglers.threads_.push_back({.thread = std::move(thread), .ended = nullptr});
    }

    /// Runs `work` on a thread of its own.
    /// @throws std::system_error where the system gives no thread; `work` is then not run.
    template <typename Work>
    static void Run(Work work) {
        Stragglers& stragglers = Instance();
        const std::lock_guard lock{stragglers.mutex_};
        stragglers.ForgetEnded();
        auto ended = std::make_shared<std::atomic<bool>>(false);
        stragglers.threads_.emplace_back();
        try {
            stragglers.threads_.back().thread = std::thread{[work = std::move(work), ended]() mutable {
                work();
                ended->store(true);
            }};
        } catch (...) {
            stragglers.threads_.pop_back();
            throw;
        }
        stragglers.threads_.back().ended = std::move(ended);
    }

    Stragglers(const Stragglers&) = delete;
    Stragglers& operator=(const Stragglers&) = delete;

private:
    struct Straggler {
        std::thread thread = {};
        std::shared_ptr<const std::atomic<bool>> ended = {};  // null where it cannot be told
    };

    Stragglers() = default;
    ~Stragglers() {
        // One that is waited for may add another.
        while (true) {
            std::vector<Straggler> threads;
            {
                const std::lock_guard lock{mutex_};
                threads.swap(threads_);
            }
            if (threads.empty()) return;
            for (Straggler& straggler : threads) straggler.thread.join();
        }
    }

    static Stragglers& Instance() {
        static Stragglers stragglers;
        return stragglers;
    }

    // Call with mutex_ held. Those that have ended are joined without waiting.
    void ForgetEnded() {
        for (auto straggler = threads_.begin(); straggler != threads_.end();) {
            if (straggler->ended == nullptr || !straggler->ended->load()) {
                ++straggler;
                continue;
            }
            straggler->thread.join();
            straggler = threads_.erase(straggler);
        }
    }

    std::mutex mutex_ = {};  // guards threads_
    std::vector<Straggler> threads_ = {};
};

}  // namespace mq::detail
