/// @file mailbox.hpp
/// How other threads reach an I/O thread that sleeps in poll: a lock around what they leave for it, and
/// a file descriptor that wakes it only where it sleeps.
#pragma once

#include <mq/detail/waker.hpp>

#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace mq::detail {

/// The lock and the waking; what is left is for the derived class to have.
class Mailbox {
public:
    Mailbox() = default;
    Mailbox(const Mailbox&) = delete;
    Mailbox& operator=(const Mailbox&) = delete;

    /// Calls `put` under the lock and sees to it that the I/O thread looks. Returns false, with nothing
    /// done, where the thread has ended. Thread-safe.
    template <typename Put>
    bool Post(Put put) {
        bool wake = false;
        {
            const std::lock_guard lock{mutex_};
            if (ended_) return false;
            put();
            mail_ = true;
            wake = std::exchange(asleep_, false);
        }
        if (wake) waker_->Wake();
        return true;
    }

    /// Calls `take` under the lock; what was put before is thereby seen. For the I/O thread.
    template <typename Take>
    void Collect(Take take) {
        const std::lock_guard lock{mutex_};
        mail_ = false;
        take();
    }

    /// The last Collect: nothing is taken after it. For the I/O thread.
    template <typename Take>
    void End(Take take) {
        const std::lock_guard lock{mutex_};
        ended_ = true;
        connected_ = false;
        take();
    }

    /// As Post, where there is a connection; returns false, with nothing done, where there is none.
    template <typename Put>
    bool PostIfConnected(Put put) {
        bool connected = false;
        Post([&] {
            connected = connected_;
            if (connected) put();
        });
        return connected;
    }

    /// False where something waits to be collected, so that the I/O thread must not sleep.
    bool BeginSleep() {
        const std::lock_guard lock{mutex_};
        asleep_ = !mail_;
        return asleep_;
    }

    void EndSleep() {
        const std::lock_guard lock{mutex_};
        asleep_ = false;
    }

    /// Whether questions can be asked; where not, `why` is the text for a person.
    void SetConnected(bool connected, std::string why) {
        const std::lock_guard lock{mutex_};
        connected_ = connected;
        why_not_ = std::move(why);
    }

    [[nodiscard]] bool Connected() const {
        const std::lock_guard lock{mutex_};
        return connected_;
    }

    [[nodiscard]] std::string WhyNotConnected() const {
        const std::lock_guard lock{mutex_};
        return why_not_;
    }

    [[nodiscard]] const std::shared_ptr<Waker>& GetWaker() const noexcept { return waker_; }

protected:
    ~Mailbox() = default;

private:
    mutable std::mutex mutex_ = {};  // guards everything but waker_
    bool asleep_ = false;
    bool mail_ = false;
    bool ended_ = false;
    bool connected_ = false;
    std::string why_not_ = "connecting";
    const std::shared_ptr<Waker> waker_ = std::make_shared<Waker>();
};

}  // namespace mq::detail
