/// @file gate.hpp
/// What an adapter's thread calls back through, so that whoever closes can wait until the last call has
/// returned.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

namespace mq::detail {

/// Lets a thread call back as long as nobody has shut it, and the one who shuts it wait until the last
/// call has returned. Thread-safe.
class Gate {
public:
    /// Calls `call` where the gate is open. One thread at a time.
    template <typename Call>
    void Pass(Call call) {
        {
            const std::lock_guard lock{mutex_};
            if (shut_) return;
            inside_ = std::this_thread::get_id();
        }
        call();
        const std::lock_guard lock{mutex_};
        inside_ = {};
        if (shut_) left_.notify_all();
    }

    /// When it returns, nobody is inside any more, and nobody will be; the caller itself, shutting it
    /// from within a call, is left out. Calls never block, so this does not for long.
    void Shut() {
        std::unique_lock lock{mutex_};
        shut_ = true;
        left_.wait(lock, [this] {
            return inside_ == std::thread::id{} || inside_ == std::this_thread::get_id();
        });
    }

    [[nodiscard]] bool IsShut() const {
        const std::lock_guard lock{mutex_};
        return shut_;
    }

private:
    mutable std::mutex mutex_ = {};  // guards both below
    std::condition_variable left_ = {};
    bool shut_ = false;
    std::thread::id inside_ = {};
};

}  // namespace mq::detail
