/// @file in_flight.hpp
/// What is on the wire and not yet settled by the broker, by the number that is its delivery tag.
/// Knows nothing of the client library.
#pragma once

#include <mq/backend.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>

namespace mq::activemq {

struct Route;

/// A publication on its way through the adapter.
struct Pending {
    std::unique_ptr<backend::Publication> publication = {};
    Route* route = nullptr;
};

/// The unsettled messages of one connection. Bounded by its limit, which also counts messages that have
/// expired: the broker still owes their dispositions. Not thread-safe.
class InFlight {
public:
    /// `limit`: how many messages may be unsettled, at least 1.
    explicit InFlight(std::size_t limit) : limit_(std::max<std::size_t>(limit, 1)) {}

    [[nodiscard]] bool Full() const noexcept { return entries_.size() >= limit_; }
    [[nodiscard]] std::size_t Size() const noexcept { return entries_.size(); }
    /// How many publications are still to be finished.
    [[nodiscard]] std::size_t Unfinished() const noexcept { return unfinished_; }

    /// Takes the next number. `position` is where the stream of bytes to the broker stood, given back
    /// by TakeAll.
    std::uint64_t Add(Pending pending, std::uint64_t position) {
        const std::uint64_t number = next_++;
        entries_.emplace_hint(entries_.end(), number, Entry{std::move(pending), position});
        ++unfinished_;
        return number;
    }

    /// The broker has settled this one. What it returns holds nothing where it has expired, or is not
    /// known.
    Pending Settle(std::uint64_t number) {
        const auto found = entries_.find(number);
        if (found == entries_.end()) return {};
        Pending pending = std::move(found->second.pending);
        entries_.erase(found);
        if (pending.publication != nullptr) --unfinished_;
        return pending;
    }

    /// Calls `finish(Pending)` for each publication whose deadline has passed. Returns the earliest
    /// deadline of the others, time_point::max() for none.
    template <typename Finish>
    backend::Clock::time_point Expire(backend::Clock::time_point now, Finish finish) {
        auto earliest = backend::Clock::time_point::max();
        for (auto& [number, entry] : entries_) {
            if (entry.pending.publication == nullptr) continue;
            if (entry.pending.publication->deadline > now) {
                earliest = std::min(earliest, entry.pending.publication->deadline);
                continue;
            }
            --unfinished_;
            expired_.push_back({now, number});
            finish(Pending{std::move(entry.pending.publication), entry.pending.route});
        }
        return earliest;
    }

    /// When the one expired for which the broker has owed its disposition for longest; nothing where it
    /// owes none for those that have expired.
    std::optional<backend::Clock::time_point> OldestExpired() {
        while (!expired_.empty() && !entries_.contains(expired_.front().number)) expired_.pop_front();
        if (expired_.empty()) return std::nullopt;
        return expired_.front().at;
    }

    /// The link of a route, or with null the whole connection, is gone: calls `take(Pending, position)`
    /// for each of its publications that was in flight, in the order of sending.
    template <typename Take>
    void TakeAll(const Route* route, Take take) {
        for (auto entry = entries_.begin(); entry != entries_.end();) {
            if (route != nullptr && entry->second.pending.route != route) {
                ++entry;
                continue;
            }
            if (entry->second.pending.publication != nullptr) {
                --unfinished_;
                take(std::move(entry->second.pending), entry->second.position);
            }
            entry = entries_.erase(entry);
        }
    }

private:
    struct Entry {
        Pending pending = {};
        std::uint64_t position = 0;
    };

    struct Expired {
        backend::Clock::time_point at = {};
        std::uint64_t number = 0;
    };

    std::size_t limit_;
    std::map<std::uint64_t, Entry> entries_ = {};
    std::uint64_t next_ = 1;
    std::size_t unfinished_ = 0;
    std::deque<Expired> expired_ = {};  // in the order of time; may name some that are settled
};

}  // namespace mq::activemq
