/// @file backoff.hpp
/// How long to wait before trying again: twice as long each time up to a limit, and spread at random so
/// that many clients do not come back in step.
#pragma once

#include <algorithm>
#include <chrono>
#include <random>

namespace mq::detail {

/// Delays that grow. One owner; not thread-safe.
class Backoff {
public:
    using Duration = std::chrono::milliseconds;

    Backoff(Duration first, Duration limit) : first_(first), limit_(limit), next_(first) {}

    /// The next delay: between half of the present step and the whole of it.
    Duration Next() {
        const Duration step = next_;
        next_ = std::min(limit_, next_ * 2);
        std::uniform_int_distribution<Duration::rep> spread{step.count() / 2, step.count()};
        return Duration{spread(random_)};
    }

    /// Begins again with the first step: what was tried has worked.
    void Reset() noexcept { next_ = first_; }

private:
    Duration first_;
    Duration limit_;
    Duration next_;
    std::minstd_rand random_{std::random_device{}()};
};

}  // namespace mq::detail
