/// @file group.hpp
/// A consumer group of a memory broker and its members: who is given which message, and what becomes of
/// what a member leaves. Bookkeeping without threads. A part of backends/memory.hpp.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/memory/log.hpp>
#include <mq/message.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mq::memory {

class Broker;

/// What a group has left to do, in messages.
struct Depth {
    std::uint64_t ready = 0;      ///< Handed to no member at present.
    std::uint64_t unsettled = 0;  ///< Handed to a member, and not settled.

    friend bool operator==(const Depth&, const Depth&) = default;
};

namespace detail {

class Group;

/// A message that was given to a member and is on its way to the receiver.
struct Handout {
    std::shared_ptr<const Message> message = {};
    std::uint64_t offset = 0;
    bool redelivered = false;
    std::string sender = {};
};

/// A consumer, as its broker sees it. It outlives its consumer where inbound messages of it do.
struct Member : std::enable_shared_from_this<Member> {
    /// The epoch of a member that has been closed.
    static constexpr std::uint64_t kGone = std::numeric_limits<std::uint64_t>::max();

    Member(Broker& its_broker, backend::Subscribing its_subscribing, bool may_declare)
        : broker(its_broker), subscribing(std::move(its_subscribing)), declare(may_declare) {}

    /// How many more messages it may be given.
    [[nodiscard]] std::size_t Credit() const {
        if (stopping || stale_told != stale_asked) return 0;
        const std::size_t used = unsettled + stale;
        return used < subscribing.prefetch ? subscribing.prefetch - used : 0;
    }

    Broker& broker;
    const backend::Subscribing subscribing;
    const bool declare;

    /// Counts how often the broker has taken back what it had given. What was handed over in an
    /// earlier epoch is stale. Written under the broker's mutex, read by anyone.
    std::atomic<std::uint64_t> epoch = 1;
    /// Set by Stop. Written under the broker's mutex, read by anyone.
    std::atomic<bool> stopping = false;

    // The broker's mutex guards everything below.
    std::shared_ptr<backend::Receiver> receiver = {};
    backend::ConsumerState state = {};
    Group* group = nullptr;               // null while it has not joined
    std::size_t unsettled = 0;            // given to it in this epoch and not settled
    std::size_t dropped = 0;              // of these: destroyed unsettled
    std::size_t stale = 0;                // handed over in an earlier epoch, and still there
    std::set<std::uint64_t> parked = {};  // for it, by their keys, as soon as it has credit
    std::vector<Handout> outgoing = {};   // given to it, and to be handed over by the service thread
    std::uint64_t stale_asked = 0;        // OnStale is due while this is ahead of stale_told
    std::uint64_t stale_told = 0;
    bool state_changed = false;  // OnStateChange is due
    bool queued = false;         // in the broker's list of members with something due
    bool calling = false;        // the service thread is in a call of the receiver
    bool closed = false;
};

/// A consumer group on one topic: a cursor, and what became of each message between the first that is
/// not settled and the cursor. Pure bookkeeping, without threads: the broker's mutex guards it.
class Group {
public:
    Group(std::string name, const Log& log) : name_(std::move(name)), log_(log) { Restart(); }

    /// Forgets everything and starts at the beginning of the log. Nobody may be a member.
    void Restart() {
        low_ = next_ = log_.begin();
        slots_.clear();
        keys_.clear();
        returned_.clear();
        handed_ = settled_ahead_ = 0;
    }

    void Join(std::shared_ptr<Member> member) {
        member->group = this;
        members_.push_back(std::move(member));
    }

    /// Takes everything back that the member has, and lets it go.
    void Leave(Member& member) {
        for (std::size_t i = 0; i < slots_.size(); ++i) {
            if (slots_[i].member == &member) TakeBack(slots_[i], low_ + i);
        }
        std::erase_if(keys_, [&](const auto& key) { return key.second.member == &member; });
        member.parked.clear();
        member.unsettled = member.dropped = 0;
        member.group = nullptr;
        std::erase_if(members_, [&](const auto& other) { return other.get() == &member; });
    }

    /// Gives members what they have credit for: first what waits for a member because of its key, then
    /// what was taken back, then what is new and at least `delay` old. Calls `given` with each member
    /// that got something.
    /// @return when the next message is old enough, where there is credit for it.
    template <typename Given>
    std::optional<Clock::time_point> Dispatch(Clock::time_point now, Clock::duration delay,
                                              const Given& given) {
        std::size_t credit = 0;
        for (const auto& member : members_) {
            GiveParked(*member, given);
            credit += member->Credit();
        }
        while (credit > 0 && !returned_.empty()) {
            const std::uint64_t offset = *returned_.begin();
            returned_.erase(returned_.begin());
            if (Place(offset, given)) --credit;
        }
        while (credit > 0 && next_ < log_.end()) {
            if (const auto due = log_.At(next_).stored_at + delay; due > now) return due;
            slots_.emplace_back();
            if (Place(next_++, given)) --credit;
        }
        return std::nullopt;
    }

    /// The member is done with a message. False where the message is not its own to settle.
    bool Settle(Member& member, std::uint64_t offset) {
        if (offset < low_ || offset >= next_) return false;
        Slot& slot = At(offset);
        if (slot.member != &member || slot.state != State::kGiven) return false;
        Key* const key = slot.key;
        slot = Slot{.state = State::kSettled};
        --member.unsettled;
        --handed_;
        ++settled_ahead_;
        ++settled_;
        if (key != nullptr) Unbind(member, *key);
        while (!slots_.empty() && slots_.front().state == State::kSettled) {
            slots_.pop_front();
            ++low_;
            --settled_ahead_;
        }
        return true;
    }

    /// Takes back what was given to the member and never reached its receiver.
    void GiveBack(Member& member, std::uint64_t offset) {
        Slot& slot = At(offset);
        --slot.attempts;
        --handed_;
        --member.unsettled;
        if (slot.key == nullptr) {
            slot.state = State::kParked;
            TakeBack(slot, offset);
            return;
        }
        Park(member, slot, offset);
        --slot.key->given;
    }

    /// The member gets no more: what waits for it goes to others, except behind messages of the same
    /// key that it still has.
    void Retire(Member& member) {
        std::vector<Key*> idle;
        for (const std::uint64_t offset : member.parked) {
            Key* const key = At(offset).key;
            if (key->given == 0 && (idle.empty() || idle.back() != key)) idle.push_back(key);
        }
        std::sort(idle.begin(), idle.end());
        idle.erase(std::unique(idle.begin(), idle.end()), idle.end());
        for (Key* const key : idle) Release(member, *key);
    }

    [[nodiscard]] Depth Left() const {
        return {.ready = log_.end() - low_ - handed_ - settled_ahead_, .unsettled = handed_};
    }

    [[nodiscard]] const std::string& name() const { return name_; }
    /// Every message below this offset is settled.
    [[nodiscard]] std::uint64_t low() const { return low_; }
    [[nodiscard]] std::uint64_t settled() const { return settled_; }
    [[nodiscard]] const std::vector<std::shared_ptr<Member>>& members() const { return members_; }

    bool exists = true;  ///< A removed group stays as an object, so that pointers to it stay good.
    bool dirty = false;  ///< In the broker's list of groups that may have something to give.

private:
    enum class State : unsigned char { kReturned, kParked, kGiven, kSettled };

    /// A key of which a member has messages.
    struct Key {
        const std::string* name = nullptr;
        Member* member = nullptr;
        std::size_t given = 0;                // given to the member and not settled
        std::set<std::uint64_t> parked = {};  // waiting for the member's credit
    };

    /// What became of one message.
    struct Slot {
        State state = State::kReturned;
        std::uint32_t attempts = 0;  // how often it was given to a member
        Member* member = nullptr;    // for kParked and kGiven
        Key* key = nullptr;          // the same, and the message has a key
    };

    Slot& At(std::uint64_t offset) { return slots_[offset - low_]; }

    /// Gives the message to a member, or parks it for the one that has its key. There is credit.
    /// @return whether it was given.
    template <typename Given>
    bool Place(std::uint64_t offset, const Given& given) {
        const std::string& name = log_.At(offset).message->key;
        if (name.empty()) {
            Give(PickMember(), offset, nullptr, given);
            return true;
        }
        const auto [position, is_new] = keys_.try_emplace(name);
        Key& key = position->second;
        if (is_new) {
            key.name = &position->first;
            key.member = &PickMember();
            Give(*key.member, offset, &key, given);
            return true;
        }
        if (key.member->Credit() == 0 || !key.parked.empty()) {
            At(offset).key = &key;
            Park(*key.member, At(offset), offset);
            return false;
        }
        Give(*key.member, offset, &key, given);
        return true;
    }

    template <typename Given>
    void Give(Member& member, std::uint64_t offset, Key* key, const Given& given) {
        const Entry& entry = log_.At(offset);
        Slot& slot = At(offset);
        slot.state = State::kGiven;
        slot.member = &member;
        slot.key = key;
        if (key != nullptr) ++key->given;
        ++member.unsettled;
        ++handed_;
        member.outgoing.push_back({.message = entry.message,
                                   .offset = offset,
                                   .redelivered = slot.attempts > 0 || entry.possible_duplicate,
                                   .sender = entry.sender});
        ++slot.attempts;
        given(member);
    }

    template <typename Given>
    void GiveParked(Member& member, const Given& given) {
        while (!member.parked.empty() && member.Credit() > 0) {
            const std::uint64_t offset = *member.parked.begin();
            member.parked.erase(member.parked.begin());
            Key* const key = At(offset).key;
            key->parked.erase(offset);
            Give(member, offset, key, given);
        }
    }

    void Park(Member& member, Slot& slot, std::uint64_t offset) {
        slot.state = State::kParked;
        slot.member = &member;
        slot.key->parked.insert(offset);
        member.parked.insert(offset);
    }

    void TakeBack(Slot& slot, std::uint64_t offset) {
        if (slot.state == State::kGiven) --handed_;
        slot.state = State::kReturned;
        slot.member = nullptr;
        slot.key = nullptr;
        returned_.insert(offset);
    }

    /// One message of the key is settled.
    void Unbind(Member& member, Key& key) {
        if (--key.given > 0) return;
        if (key.parked.empty()) {
            keys_.erase(*key.name);
        } else if (member.stopping) {
            Release(member, key);
        }
    }

    /// Lets the key go to another member. The member has none of its messages.
    void Release(Member& member, Key& key) {
        for (const std::uint64_t offset : key.parked) {
            member.parked.erase(offset);
            TakeBack(At(offset), offset);
        }
        keys_.erase(*key.name);
    }

    /// The member with the most credit; among equals, by turns.
    Member& PickMember() {
        std::size_t best = turn_ % members_.size();
        for (std::size_t i = 1; i < members_.size(); ++i) {
            const std::size_t candidate = (turn_ + i) % members_.size();
            if (members_[candidate]->Credit() > members_[best]->Credit()) best = candidate;
        }
        turn_ = best + 1;
        return *members_[best];
    }

    const std::string name_;
    const Log& log_;
    std::uint64_t low_ = 0;                  // the first offset that is not settled
    std::uint64_t next_ = 0;                 // the first offset that was given to nobody yet
    std::deque<Slot> slots_ = {};            // from low_ to next_
    std::set<std::uint64_t> returned_ = {};  // taken back, to be given again
    std::unordered_map<std::string, Key> keys_ = {};
    std::vector<std::shared_ptr<Member>> members_ = {};
    std::size_t turn_ = 0;
    std::uint64_t handed_ = 0;         // slots in kGiven
    std::uint64_t settled_ahead_ = 0;  // slots in kSettled
    std::uint64_t settled_ = 0;
};

}  // namespace detail

}  // namespace mq::memory
