/// @file stragglers.hpp
/// Where threads go that nobody can wait for: what they are busy with cannot be interrupted, or is the
/// end of the very thread that would wait.
#pragma once

#include <mq/detail/process.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace mq::detail {

/// Threads that could not be waited for when they were no longer needed, because the system's resolver
/// or a TLS handshake held them, or because they end a client that one of its own handlers dropped.
/// They touch nothing but what they own. The program's end waits for them, for kPatience at most, and
/// not for one that waits for the thread which ends the program. Thread-safe.
class Stragglers {
public:
    /// How long the program's end waits for all of them.
    static constexpr std::chrono::seconds kPatience{10};

    /// Takes a thread over. `ended` says whether it is about to end, and is called on other threads.
    static void Add(std::thread thread, std::function<bool()> ended) {
        Stragglers& stragglers = Instance();
        const std::lock_guard lock{stragglers.mutex_};
        stragglers.ForgetEnded();
        stragglers.threads_.push_back({.thread = std::move(thread), .ended = std::move(ended)});
        stragglers.AwaitAtExit();
    }

    /// Runs `work` on a thread of its own. `waits_for` is the thread that it waits for, where there is
    /// one; what is run by `work` in its turn waits for the same.
    /// @throws std::system_error where the system gives no thread; `work` is then not run.
    template <typename Work>
    static void Run(Work work, std::optional<std::thread::id> waits_for = std::nullopt) {
        Stragglers& stragglers = Instance();
        const std::lock_guard lock{stragglers.mutex_};
        stragglers.ForgetEnded();
        if (!waits_for) waits_for = waits_for_;
        const auto ended = std::make_shared<std::atomic<bool>>(false);
        stragglers.threads_.push_back(
            {.ended = [ended] { return ended->load(); }, .waits_for = waits_for});
        try {
            stragglers.threads_.back().thread = std::thread{
                [ended, waits_for, work = std::make_unique<Work>(std::move(work))]() mutable {
                    waits_for_ = waits_for;
                    (*work)();
                    work.reset();  // what it owns may have a destructor that takes its time
                    ended->store(true);
                }};
        } catch (...) {
            stragglers.threads_.pop_back();
            throw;
        }
        stragglers.AwaitAtExit();
    }

    Stragglers(const Stragglers&) = delete;
    Stragglers& operator=(const Stragglers&) = delete;

private:
    struct Straggler {
        std::thread thread = {};
        std::function<bool()> ended = {};
        std::optional<std::thread::id> waits_for = {};
    };

    Stragglers() = default;
    ~Stragglers() = default;

    // Never destroyed: static clients, and threads that the program's end has not waited for, come here
    // whatever was destroyed before. A child of a fork begins anew: the threads are the parent's.
    static Stragglers& Instance() {
        static std::atomic<Stragglers*> instance{new Stragglers};
        Stragglers* present = instance.load();
        if (!present->process_.InForkedChild()) return *present;
        auto* const fresh = new Stragglers;
        LeaveBehind(present);
        return instance.compare_exchange_strong(present, fresh) ? *fresh : *present;
    }

    // Call with mutex_ held. Once more after the program's end has waited: a static client may be
    // destroyed after that.
    void AwaitAtExit() {
        if (!std::exchange(awaited_, true)) std::atexit([] { Instance().AwaitAll(); });
    }

    void AwaitAll() {
        constexpr std::chrono::milliseconds kLook{10};  // nothing tells of the end of a thread
        const auto deadline = std::chrono::steady_clock::now() + kPatience;
        std::unique_lock lock{mutex_};
        awaited_ = false;
        while (true) {
            ForgetEnded();
            const bool nobody =
                std::all_of(threads_.begin(), threads_.end(), [](const auto& straggler) {
                    return straggler.waits_for == std::this_thread::get_id();
                });
            if (nobody || std::chrono::steady_clock::now() >= deadline) return;
            never_.wait_for(lock, kLook);
        }
    }

    // Call with mutex_ held. Those that have ended are joined, which takes next to no time.
    void ForgetEnded() {
        for (auto straggler = threads_.begin(); straggler != threads_.end();) {
            if (!straggler->ended()) {
                ++straggler;
                continue;
            }
            straggler->thread.join();
            straggler = threads_.erase(straggler);
        }
    }

    // Of the straggler that the calling thread is.
    static inline thread_local std::optional<std::thread::id> waits_for_ = std::nullopt;

    const ProcessMark process_ = {};
    std::mutex mutex_ = {};  // guards the rest
    std::condition_variable never_ = {};
    std::vector<Straggler> threads_ = {};
    bool awaited_ = false;  // the program's end will wait
};

}  // namespace mq::detail
