/// @file given_back.hpp
/// Which messages this process has had and given back unsettled: when they come again they are
/// redelivered, whether the broker counts it or not. Knows nothing of the client library.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <unordered_set>

namespace mq::activemq {

/// Bounded: of more than it holds, the oldest are forgotten, and then shown as the broker counts them.
/// Not thread-safe.
class GivenBack {
public:
    /// What a message of a queue is known by; two that differ have the same one hardly ever.
    using Mark = std::size_t;

    /// How many are remembered at most.
    static constexpr std::size_t kMost = 20'000;

    /// 0 for a message without an id, which is not known again.
    [[nodiscard]] static Mark MarkOf(const std::string& queue, const std::string& id) {
        if (id.empty()) return 0;
        const std::hash<std::string> hash;
        constexpr Mark kSpread = 0x9E3779B9u;
        return hash(id) ^ (hash(queue) * kSpread);
    }

    void Add(Mark mark) {
        if (mark == 0 || !known_.insert(mark).second) return;
        order_.push_back(mark);
        if (order_.size() <= kMost) return;
        known_.erase(order_.front());
        order_.pop_front();
    }

    /// Whether the message was given back; it is then forgotten.
    bool Take(Mark mark) { return !known_.empty() && known_.erase(mark) > 0; }

private:
    std::unordered_set<Mark> known_ = {};
    std::deque<Mark> order_ = {};  ///< May name some that were taken.
};

}  // namespace mq::activemq
