/// @file in_flight.hpp
/// What is on the wire and not yet settled by the broker, by the number that is its delivery tag.
/// Knows nothing of the client library.
#pragma once

#include <mq/backend.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

namespace mq::activemq {

struct Route;
struct Description;

/// A publication on its way through the adapter.
struct Pending {
    std::unique_ptr<backend::Publication> publication = {};
    Route* route = nullptr;
    const Description* description = nullptr;  ///< Of the route's destination, at that publisher.
};

/// The unsettled messages of one connection, by numbers that rise. Bounded by its limit, which also
/// counts messages that have expired: the broker still owes their dispositions. Not thread-safe.
class InFlight {
public:
    /// `limit`: how many messages may be unsettled, at least 1.
    explicit InFlight(std::size_t limit) : limit_(std::max<std::size_t>(limit, 1)) {}

    [[nodiscard]] bool Full() const noexcept {
        return owed_ >= limit_ || entries_.size() / kSpan >= limit_;
    }
    [[nodiscard]] std::size_t Size() const noexcept { return owed_; }
    /// How many publications are still to be finished.
    [[nodiscard]] std::size_t Unfinished() const noexcept { return unfinished_; }

    /// Takes the next number. `position` is where the stream of bytes to the broker stood, given back
    /// by TakeAll.
    std::uint64_t Add(Pending pending, std::uint64_t position) {
        entries_.push_back({std::move(pending), position});
        ++owed_;
        ++unfinished_;
        return first_ + entries_.size() - 1;
    }

    /// The broker has settled this one. What it returns holds nothing where it has expired, or is not
    /// known.
    Pending Settle(std::uint64_t number) {
        if (!IsOwed(number)) return {};
        Entry& entry = entries_[static_cast<std::size_t>(number - first_)];
        Pending pending = std::move(entry.pending);
        if (pending.publication != nullptr) --unfinished_;
        Forget(entry);
        DropForgotten();
        return pending;
    }

    /// Calls `finish(Pending)` for each publication whose deadline has passed. Returns the earliest
    /// deadline of the others, time_point::max() for none.
    template <typename Finish>
    backend::Clock::time_point Expire(backend::Clock::time_point now, Finish finish) {
        auto earliest = backend::Clock::time_point::max();
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            Pending& pending = entries_[i].pending;
            if (pending.publication == nullptr) continue;
            if (pending.publication->deadline > now) {
                earliest = std::min(earliest, pending.publication->deadline);
                continue;
            }
            --unfinished_;
            expired_.push_back({now, first_ + i});
            finish(Pending{std::move(pending.publication), pending.route, pending.description});
        }
        return earliest;
    }

    /// When the one expired for which the broker has owed its disposition for longest; nothing where it
    /// owes none for those that have expired.
    std::optional<backend::Clock::time_point> OldestExpired() {
        while (!expired_.empty() && !IsOwed(expired_.front().number)) expired_.pop_front();
        if (expired_.empty()) return std::nullopt;
        return expired_.front().at;
    }

    /// The link of a route, or with null the whole connection, is gone: calls `take(Pending, position)`
    /// for each of its publications that was in flight, in the order of sending.
    template <typename Take>
    void TakeAll(const Route* route, Take take) {
        for (Entry& entry : entries_) {
            if (!entry.owed || (route != nullptr && entry.pending.route != route)) continue;
            if (entry.pending.publication != nullptr) {
                --unfinished_;
                take(std::move(entry.pending), entry.position);
            }
            Forget(entry);
        }
        DropForgotten();
    }

private:
    struct Entry {
        Pending pending = {};
        std::uint64_t position = 0;
        bool owed = true;  // the broker's disposition
    };

    struct Expired {
        backend::Clock::time_point at = {};
        std::uint64_t number = 0;
    };

    // How many times the limit lie between the oldest and the newest at the most, where a broker
    // settles all others and not the oldest.
    static constexpr std::size_t kSpan = 16;

    [[nodiscard]] bool IsOwed(std::uint64_t number) const {
        return number >= first_ && number - first_ < entries_.size() &&
               entries_[static_cast<std::size_t>(number - first_)].owed;
    }

    void Forget(Entry& entry) {
        entry.owed = false;
        --owed_;
    }

    void DropForgotten() {
        for (; !entries_.empty() && !entries_.front().owed; ++first_) entries_.pop_front();
    }

    std::size_t limit_;
    std::deque<Entry> entries_ = {};  // from the oldest that is owed on
    std::uint64_t first_ = 1;         // the number of the front one
    std::size_t owed_ = 0;
    std::size_t unfinished_ = 0;
    std::deque<Expired> expired_ = {};  // in the order of time; may name some that are settled
};

}  // namespace mq::activemq
