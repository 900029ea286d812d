/// @file sending.hpp
/// A send on its way: the publication that an adapter gets, and who learns how it ended: a thread that
/// waits, or a callback.
#pragma once

#include <mq/backend.hpp>
#include <mq/detail/unique_function.hpp>
#include <mq/error.hpp>
#include <mq/send_result.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>

namespace mq {

/// Called once for each pipelined send.
using SendCallback = detail::UniqueFunction<void(const SendResult&)>;

}  // namespace mq

namespace mq::runtime {

class Outlet;
struct Shared;

/// The same error with a text of its own, for another thread. Copies of an exception share their text
/// by a count inside the C++ library, which ThreadSanitizer does not see: it would call the use of one
/// copy a race with the end of the other.
inline Error Detached(const Error& error) {
    return Error{error.code(), error.what(), error.outcome(),
                 NativeError{.code = error.native_code(), .text = error.native_text()}};
}

class Sending;
class Waiter;

/// Another way for a sending that certainly did not reach its broker. Implemented above.
class Failover {
public:
    /// Sends it by the other way, and takes it over with that; false, with nothing done, where there is
    /// none at present. Called on the callback thread, where it blocks only as the adapter's Publish
    /// does, or on the thread that waits for the send, where it may also wait for room in the window.
    virtual bool TakeOver(std::unique_ptr<Sending>& sending) noexcept = 0;

protected:
    ~Failover() = default;
};

/// One send. Has either a waiter or a callback.
class Sending final : public backend::Publication {
public:
    /// Whether it has failed, certainly without reaching its broker, and may go another way.
    [[nodiscard]] bool MayFailOver() const noexcept {
        return failover != nullptr && error != nullptr && error->outcome() == Outcome::kNotSent &&
               (error->code() == ErrorCode::kTimeout || error->code() == ErrorCode::kUnavailable);
    }

    const Shared* shared = nullptr;
    Outlet* outlet = nullptr;                       ///< Where it was published; null while it was not.
    Failover* failover = nullptr;                   ///< Who knows another way; null for nobody.
    backend::Clock::time_point last_deadline = {};  ///< Where failover is set: that of the whole send.
    std::size_t weight = 0;  ///< What it has reserved of the outlet's window, in bytes.
    std::shared_ptr<Waiter> waiter = {};
    SendCallback callback = {};
};

/// Where a blocking send waits. Shared by the sender and the sending, so that a sender which gives up
/// leaves nothing dangling. Thread-safe.
class Waiter {
public:
    void Finish(std::unique_ptr<Error> error) noexcept {
        {
            const std::lock_guard lock{mutex_};
            error_ = std::move(error);
            finished_ = true;
        }
        ended_.notify_one();
    }

    /// Hands a sending back that has failed and may go another way, which is for the waiting thread to
    /// see to. False, with nothing done, where the sender has given up.
    bool HandBack(std::unique_ptr<Sending>& sending) noexcept {
        {
            const std::lock_guard lock{mutex_};
            if (given_up_) return false;
            handed_back_ = std::move(sending);
        }
        ended_.notify_one();
        return true;
    }

    /// Waits until the send has ended or is handed back. False where the deadline passed first: the
    /// sender gives up with that.
    bool Wait(backend::Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        const bool woken =
            ended_.wait_until(lock, deadline, [this] { return finished_ || handed_back_ != nullptr; });
        given_up_ = !woken;
        return woken;
    }

    /// After Wait has returned true: what was handed back; null where the send has ended.
    std::unique_ptr<Sending> TakeBack() noexcept {
        const std::lock_guard lock{mutex_};
        return std::move(handed_back_);
    }

    /// Why the send failed, if it did. After its end.
    std::unique_ptr<Error> TakeError() noexcept {
        const std::lock_guard lock{mutex_};
        return std::move(error_);
    }

private:
    std::mutex mutex_;  // guards all that follows
    std::condition_variable ended_;
    std::unique_ptr<Error> error_;
    std::unique_ptr<Sending> handed_back_;
    bool finished_ = false;
    bool given_up_ = false;
};

}  // namespace mq::runtime
