/// @file ack_ranges.hpp
/// Turns the deliveries that handlers have settled, in any order, into as few basic.ack as are exact:
/// one with `multiple` for what lies without a gap behind everything acknowledged before, and single
/// ones for the rest. Knows nothing of the client library.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <vector>

namespace mq::rabbitmq {

/// The acknowledgements of one channel. Its memory is bounded by the number of gaps, and so by the
/// prefetch, however many messages pass. Not thread-safe.
class AckRanges {
public:
    /// Notes that a delivery is settled. Each tag once.
    void Add(std::uint64_t tag) { fresh_.push_back(tag); }

    /// Everything up to this tag has been acknowledged.
    [[nodiscard]] std::uint64_t Through() const noexcept { return through_; }

    [[nodiscard]] bool Empty() const noexcept { return fresh_.empty(); }

    /// Calls `send(tag, multiple)` for each acknowledgement that is due. Returns how many deliveries
    /// they acknowledge.
    template <typename Send>
    std::size_t Flush(Send send) {
        const std::size_t count = fresh_.size();
        std::sort(fresh_.begin(), fresh_.end());
        const std::size_t joined = Advance();
        // Everything up to this tag is settled or was acknowledged before, so nothing more is hit.
        if (joined > 0) send(fresh_[joined - 1], joined > 1);
        for (std::size_t i = joined; i < fresh_.size(); ++i) {
            send(fresh_[i], false);
            AddIsland(fresh_[i]);
        }
        fresh_.clear();
        return count;
    }

private:
    // Moves through_ as far as there is no gap; returns how many fresh tags that took.
    std::size_t Advance() {
        std::size_t joined = 0;
        while (true) {
            if (const auto island = islands_.find(through_ + 1); island != islands_.end()) {
                through_ = island->second;
                islands_.erase(island);
            } else if (joined < fresh_.size() && fresh_[joined] == through_ + 1) {
                through_ = fresh_[joined++];
            } else {
                return joined;
            }
        }
    }

    void AddIsland(std::uint64_t tag) {
        std::uint64_t first = tag;
        std::uint64_t last = tag;
        auto next = islands_.upper_bound(tag);
        if (next != islands_.begin()) {
            const auto before = std::prev(next);
            if (before->second + 1 == tag) {
                first = before->first;
                islands_.erase(before);
            }
        }
        if (next != islands_.end() && next->first == tag + 1) {
            last = next->second;
            islands_.erase(next);
        }
        islands_[first] = last;
    }

    std::vector<std::uint64_t> fresh_ = {};
    std::uint64_t through_ = 0;                            // everything up to this tag is acknowledged
    std::map<std::uint64_t, std::uint64_t> islands_ = {};  // acknowledged beyond it: first → last
};

}  // namespace mq::rabbitmq
