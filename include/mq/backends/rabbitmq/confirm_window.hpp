/// @file confirm_window.hpp
/// What is on the wire and not yet confirmed by the broker: publisher confirms name messages by their
/// number on the channel, in any order and several at once, and returned messages by nothing but their
/// contents. Knows nothing of the client library.
#pragma once

#include <mq/backend.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mq::rabbitmq {

struct Route;

/// A publication on its way through the adapter.
struct Pending {
    std::unique_ptr<backend::Publication> publication = {};
    Route* route = nullptr;
    /// How often a channel was closed while this was the only message in flight on it.
    unsigned closures = 0;
    /// Was in flight, among others, when the broker closed the channel: any of them may be the cause.
    bool suspect = false;
};

/// Why a broker gave a `mandatory` message back (basic.return).
struct Returned {
    std::uint16_t code = 0;
    std::string text = {};
};

/// The unconfirmed messages of one channel, by delivery tag. Bounded by its limit, which also counts
/// messages that have expired: the broker still owes their confirms. Not thread-safe.
class ConfirmWindow {
public:
    /// `limit`: how many messages may be unconfirmed, at least 1.
    explicit ConfirmWindow(std::size_t limit) : slots_(std::max<std::size_t>(limit, 1)) {}

    [[nodiscard]] bool Full() const noexcept { return next_ - first_ == slots_.size(); }

    /// How many publications are still to be finished.
    [[nodiscard]] std::size_t Unfinished() const noexcept { return unfinished_; }

    /// The delivery tags from the oldest unconfirmed one to the newest.
    [[nodiscard]] std::size_t Size() const noexcept { return static_cast<std::size_t>(next_ - first_); }

    /// Takes the next delivery tag, counting from 1 as the broker does. `wire_begin` is the position of
    /// the message in the stream of bytes to the broker, given back by TakeAll. Not while Full().
    std::uint64_t Add(Pending pending, std::uint64_t wire_begin) {
        Slot& slot = At(next_);
        slot.pending = std::move(pending);
        slot.wire_begin = wire_begin;
        slot.confirmed = false;
        ++unfinished_;
        return next_++;
    }

    /// Notes that the broker has returned a message: the oldest one for which `match(const Pending&)`
    /// is true and that was not returned before. The confirm that follows then finishes it as returned.
    /// Returns false where none matches.
    template <typename Match>
    bool MarkReturned(Match match, Returned returned) {
        // Returns come in the order of publishing, so the search goes on where the last one was found;
        // messages of one id are then told apart by their order.
        const std::uint64_t begin = std::clamp(return_cursor_, first_, next_);
        return MarkReturned(begin, next_, match, returned) ||
               MarkReturned(first_, begin, match, returned);
    }

    /// A confirm, positive or negative: calls `finish(Pending, const Returned*)` for each publication
    /// that it settles, in the order of their tags. With `multiple`, that is everything up to `tag`,
    /// and everything there is for tag 0 (AMQP 0-9-1, basic.ack). Unknown tags are ignored.
    template <typename Finish>
    void Confirm(std::uint64_t tag, bool multiple, Finish finish) {
        if (multiple && tag == 0) tag = next_ - 1;
        if (tag < first_ || tag >= next_) return;
        for (std::uint64_t each = multiple ? first_ : tag; each <= tag; ++each) {
            Slot& slot = At(each);
            if (std::exchange(slot.confirmed, true)) continue;
            if (slot.pending.publication != nullptr) {
                --unfinished_;
                finish(std::move(slot.pending), slot.returned.get());
            }
            slot.pending = {};
            slot.returned.reset();
        }
        while (first_ < next_ && At(first_).confirmed) ++first_;
    }

    /// Calls `finish(Pending)` for each publication whose deadline has passed. Its tag stays taken
    /// until the broker confirms it. Returns the earliest deadline of the others, time_point::max() for
    /// none.
    template <typename Finish>
    backend::Clock::time_point Expire(backend::Clock::time_point now, Finish finish) {
        auto earliest = backend::Clock::time_point::max();
        for (std::uint64_t tag = first_; tag < next_; ++tag) {
            Pending& pending = At(tag).pending;
            if (pending.publication == nullptr) continue;
            if (pending.publication->deadline > now) {
                earliest = std::min(earliest, pending.publication->deadline);
                continue;
            }
            --unfinished_;
            finish(std::exchange(pending, {}));
        }
        return earliest;
    }

    /// The channel is gone: calls `take(Pending, wire_begin, const Returned*)` for each publication
    /// that was in flight, in the order of publishing, and counts from 1 again.
    template <typename Take>
    void TakeAll(Take take) {
        for (std::uint64_t tag = first_; tag < next_; ++tag) {
            Slot& slot = At(tag);
            if (slot.pending.publication != nullptr) {
                take(std::move(slot.pending), slot.wire_begin, slot.returned.get());
            }
            slot = {};
        }
        first_ = next_ = return_cursor_ = 1;
        unfinished_ = 0;
    }

private:
    struct Slot {
        Pending pending = {};
        std::unique_ptr<Returned> returned = {};
        std::uint64_t wire_begin = 0;
        bool confirmed = false;
    };

    Slot& At(std::uint64_t tag) { return slots_[static_cast<std::size_t>(tag % slots_.size())]; }

    template <typename Match>
    bool MarkReturned(std::uint64_t begin, std::uint64_t end, Match& match, Returned& returned) {
        for (std::uint64_t tag = begin; tag < end; ++tag) {
            Slot& slot = At(tag);
            if (slot.pending.publication == nullptr || slot.returned != nullptr) continue;
            if (!match(static_cast<const Pending&>(slot.pending))) continue;
            slot.returned = std::make_unique<Returned>(std::move(returned));
            return_cursor_ = tag + 1;
            return true;
        }
        return false;
    }

    std::vector<Slot> slots_;
    std::uint64_t first_ = 1;  // the oldest unconfirmed tag
    std::uint64_t next_ = 1;   // the tag of the next message
    std::uint64_t return_cursor_ = 1;
    std::size_t unfinished_ = 0;
};

}  // namespace mq::rabbitmq
