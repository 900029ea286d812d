/// @file waker.hpp
/// A file descriptor by which one thread wakes another that sleeps in poll.
#pragma once

#include <mq/error.hpp>

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <system_error>

namespace mq::detail {

/// Ends a poll from another thread. Thread-safe.
class Waker {
public:
    /// @throws Error (kInternal) where the process has no file descriptor left.
    Waker() : fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
        if (fd_ < 0) {
            throw Error(ErrorCode::kInternal, "eventfd: " + std::generic_category().message(errno));
        }
    }
    Waker(const Waker&) = delete;
    Waker& operator=(const Waker&) = delete;
    ~Waker() { ::close(fd_); }

    [[nodiscard]] int Fd() const noexcept { return fd_; }

    void Wake() const noexcept {
        const std::uint64_t one = 1;
        // It fails only where the counter is full, and then the sleeper is being woken anyway.
        static_cast<void>(!::write(fd_, &one, sizeof(one)));
    }

    void Clear() const noexcept {
        std::uint64_t count = 0;
        static_cast<void>(!::read(fd_, &count, sizeof(count)));
    }

private:
    int fd_;
};

}  // namespace mq::detail
