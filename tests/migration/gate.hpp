/// @file gate.hpp
/// A handler that a test keeps from finishing, and lets go when it has seen enough.
#pragma once

#include "../support/backend_fakes.hpp"
#include <mq/message.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace mq::test {

// The conformance suite, a part of which these tests are linked with, has a Gate of its own.
inline namespace handlers {

/// Where handlers wait, and what has passed. Thread-safe.
class Gate {
public:
    explicit Gate(bool open = false) : open_(open) {}

    /// Waits for the gate to open, for kPatience at most, then records the message.
    void Pass(const Message& message) {
        std::unique_lock lock{mutex_};
        ++waiting_;
        changed_.notify_all();
        changed_.wait_for(lock, kPatience, [this] { return open_; });
        --waiting_;
        Record(message);
    }

    /// Throws while the gate is shut; records the message where it is open.
    void PassOrThrow(const Message& message) {
        const std::lock_guard lock{mutex_};
        if (open_) return Record(message);
        ++thrown_;
        changed_.notify_all();
        throw std::runtime_error{"the gate is shut"};
    }

    void Open() {
        {
            const std::lock_guard lock{mutex_};
            open_ = true;
        }
        changed_.notify_all();
    }

    /// Waits until that many handlers wait at the gate.
    bool WaitWaiting(std::size_t count) const {
        return Wait([&] { return waiting_ >= count; });
    }

    /// Waits until that many handlers have thrown.
    bool WaitThrown(std::size_t count) const {
        return Wait([&] { return thrown_ >= count; });
    }

    /// Waits until that many messages have passed.
    bool WaitPassed(std::size_t count) const {
        return Wait([&] { return bodies_.size() >= count; });
    }

    /// The bodies of what has passed, in its order.
    [[nodiscard]] std::vector<std::string> Passed() const {
        const std::lock_guard lock{mutex_};
        return bodies_;
    }

    /// When the last message passed.
    [[nodiscard]] backend::Clock::time_point LastPassed() const {
        const std::lock_guard lock{mutex_};
        return last_passed_;
    }

private:
    void Record(const Message& message) {
        bodies_.push_back(message.body);
        last_passed_ = backend::Clock::now();
        changed_.notify_all();
    }

    template <typename Predicate>
    bool Wait(Predicate predicate) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, kPatience, predicate);
    }

    mutable std::mutex mutex_;  // guards all that follows
    mutable std::condition_variable changed_;
    bool open_;
    std::size_t waiting_ = 0;
    std::size_t thrown_ = 0;
    std::vector<std::string> bodies_;
    backend::Clock::time_point last_passed_ = {};
};

/// Opens a gate at the end of a test, however it ends, before the clients whose handlers wait there are
/// closed: declare it after them.
class OpenAtEnd {
public:
    explicit OpenAtEnd(Gate& gate) : gate_(gate) {}
    OpenAtEnd(const OpenAtEnd&) = delete;
    OpenAtEnd& operator=(const OpenAtEnd&) = delete;
    ~OpenAtEnd() { gate_.Open(); }

private:
    Gate& gate_;
};

}  // namespace handlers

}  // namespace mq::test
