/// @file abandoned.hpp
/// A bound for what a client library may never return from: it is done on a thread of its own, waited
/// for until a deadline, and then left to itself.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace mq::detail {

/// Threads that were given up, each with what it still uses. Nobody joins one that has not ended: where
/// the library inside never returns, it goes on until the process has ended. So what it is given must
/// be its own, and it must call nobody. Thread-safe.
class Abandoned {
public:
    using Clock = std::chrono::steady_clock;

    /// How long the end of the program waits for them, together: those that are about to end should not
    /// use what other libraries take down after that.
    static constexpr std::chrono::seconds kExitPatience{2};

    /// Runs `work` on a thread of its own, destroys it there, and waits for that until the deadline at
    /// most. Whether it has ended; where not, it is abandoned.
    /// @throws std::system_error where the system gives no thread; `work` is then not run.
    template <typename Work>
    static bool RunUntil(Work work, Clock::time_point deadline) {
        const auto end = std::make_shared<End>();
        std::thread thread{[end, its = std::move(work)]() mutable {
            {
                Work mine{std::move(its)};
                mine();
            }
            end->Set();
        }};
        if (end->Wait(deadline)) {
            thread.join();
            return true;
        }
        Keep(std::move(thread), nullptr, [end] { return end->IsSet(); });
        return false;
    }

    /// Abandons a thread that does not end. `kept` is what it uses: destroyed once `ended` has answered
    /// true, which says that the thread is about to return, and else never.
    static void Keep(std::thread thread, std::shared_ptr<void> kept, std::function<bool()> ended) {
        Abandoned& all = Instance();
        std::vector<One> over;
        {
            const std::lock_guard lock{all.mutex_};
            over = all.TakeEndedLocked();
            all.ones_.push_back({std::move(kept), std::move(thread), std::move(ended)});
        }
        AwaitAtExit();
        Join(over);
    }

    /// Keeps what must not be destroyed for as long as the process lives.
    static void KeepForEver(std::shared_ptr<void> kept) {
        Abandoned& all = Instance();
        const std::lock_guard lock{all.mutex_};
        all.for_ever_.push_back(std::move(kept));
    }

    /// How many have not ended.
    static std::size_t Count() {
        Abandoned& all = Instance();
        std::vector<One> over;
        std::size_t left = 0;
        {
            const std::lock_guard lock{all.mutex_};
            over = all.TakeEndedLocked();
            left = all.ones_.size();
        }
        Join(over);
        return left;
    }

    Abandoned(const Abandoned&) = delete;
    Abandoned& operator=(const Abandoned&) = delete;

private:
    /// Whether a thread is about to return.
    class End {
    public:
        void Set() {
            const std::lock_guard lock{mutex_};
            set_ = true;
            changed_.notify_all();
        }
        bool Wait(Clock::time_point deadline) {
            std::unique_lock lock{mutex_};
            return changed_.wait_until(lock, deadline, [this] { return set_; });
        }
        [[nodiscard]] bool IsSet() const {
            const std::lock_guard lock{mutex_};
            return set_;
        }

    private:
        mutable std::mutex mutex_ = {};  // guards set_
        std::condition_variable changed_ = {};
        bool set_ = false;
    };

    struct One {
        std::shared_ptr<void> kept = {};
        std::thread thread = {};
        std::function<bool()> ended = {};
    };

    Abandoned() = default;
    ~Abandoned() = default;

    // Never destroyed: the threads outlive every static object.
    static Abandoned& Instance() {
        static Abandoned& all = *new Abandoned;
        return all;
    }

    std::vector<One> TakeEndedLocked() {
        const auto ended = std::stable_partition(ones_.begin(), ones_.end(),
                                                 [](const One& one) { return !one.ended(); });
        std::vector<One> over{std::make_move_iterator(ended), std::make_move_iterator(ones_.end())};
        ones_.erase(ended, ones_.end());
        return over;
    }

    // With no lock held: what was kept may take others when it is destroyed.
    static void Join(std::vector<One>& over) {
        for (One& one : over) one.thread.join();
        over.clear();
    }

    // Registered with the first one, and so called before what the libraries inside have registered.
    static void AwaitAtExit() {
        struct AtExit {
            AtExit() = default;
            AtExit(const AtExit&) = delete;
            AtExit& operator=(const AtExit&) = delete;
            ~AtExit() {
                constexpr std::chrono::milliseconds kLook{10};
                const auto deadline = Clock::now() + kExitPatience;
                while (Count() > 0 && Clock::now() < deadline) {
                    End never;
                    never.Wait(std::min(deadline, Clock::now() + kLook));
                }
            }
        };
        static const AtExit at_exit;
    }

    std::mutex mutex_ = {};  // guards both below
    std::vector<One> ones_ = {};
    std::vector<std::shared_ptr<void>> for_ever_ = {};
};

}  // namespace mq::detail
