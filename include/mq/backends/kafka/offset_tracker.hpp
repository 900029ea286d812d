/// @file offset_tracker.hpp
/// How far a group has come in one partition. Kafka knows one number for it, the position that is
/// committed, while messages are settled one by one and in any order: the tracker turns the one into
/// the other. Knows nothing of the client library.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>

namespace mq::kafka {

/// The offsets that were delivered from one partition, from the first unsettled one on. Offsets rise
/// and may leave gaps (compaction, transaction markers); a gap counts as settled. Not thread-safe.
class OffsetTracker {
public:
    /// The message at `offset` is handed over. False, and nothing has changed, where that is not above
    /// all that came before: the partition was rewound, and a new tracker has to begin. O(1).
    bool Deliver(std::int64_t offset) {
        if (end_ && offset < *end_) return false;
        if (offsets_.empty()) position_ = offset;
        offsets_.push_back({offset, false});
        end_ = offset + 1;
        ++unsettled_;
        return true;
    }

    /// The message at `offset` is done with. Without effect where it is not an unsettled one. True
    /// where the position has moved. Amortised O(1) where offsets have no gaps, else O(log n).
    bool Settle(std::int64_t offset) {
        Entry* const entry = Find(offset);
        if (entry == nullptr || entry->settled) return false;
        entry->settled = true;
        --unsettled_;
        if (entry != &offsets_.front()) return false;
        while (!offsets_.empty() && offsets_.front().settled) offsets_.pop_front();
        position_ = offsets_.empty() ? *end_ : offsets_.front().offset;
        return true;
    }

    /// Everything below `offset` was delivered, or is nothing that a consumer sees. True where the
    /// position has moved.
    bool ReachEnd(std::int64_t offset) {
        if (end_ && offset <= *end_) return false;
        end_ = offset;
        if (!offsets_.empty()) return false;
        position_ = offset;
        return true;
    }

    /// What to commit: everything below is settled. Nothing before the first Deliver or ReachEnd.
    [[nodiscard]] std::optional<std::int64_t> Position() const { return position_; }

    /// One above the last offset that was delivered or is known to hold nothing.
    [[nodiscard]] std::optional<std::int64_t> End() const { return end_; }

    /// How many delivered messages are unsettled.
    [[nodiscard]] std::size_t Unsettled() const { return unsettled_; }

    /// How many delivered messages are remembered: from the first unsettled one on, settled or not.
    [[nodiscard]] std::size_t Window() const { return offsets_.size(); }

private:
    struct Entry {
        std::int64_t offset = 0;
        bool settled = false;
    };

    // Without gaps the place follows from the difference; gaps only move it toward the front.
    Entry* Find(std::int64_t offset) {
        if (offsets_.empty() || offset < offsets_.front().offset || offset > offsets_.back().offset) {
            return nullptr;
        }
        const auto distance = static_cast<std::size_t>(offset - offsets_.front().offset);
        const std::size_t last = std::min(distance, offsets_.size() - 1);
        if (offsets_[last].offset == offset) return &offsets_[last];
        const auto found = std::lower_bound(
            offsets_.begin(), offsets_.begin() + static_cast<std::ptrdiff_t>(last), offset,
            [](const Entry& entry, std::int64_t value) { return entry.offset < value; });
        return found->offset == offset ? &*found : nullptr;
    }

    std::deque<Entry> offsets_ = {};  // the front is unsettled
    std::optional<std::int64_t> position_ = {};
    std::optional<std::int64_t> end_ = {};
    std::size_t unsettled_ = 0;
};

}  // namespace mq::kafka
