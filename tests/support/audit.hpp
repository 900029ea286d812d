/// @file audit.hpp
/// The books of a test: what was sent, how each send ended, and what each group has handled, message by
/// message. It compares ids, and per-key sequences, for every group, never totals: one message lost and
/// another handled twice do not cancel out.
#pragma once

#include "backend_fakes.hpp"
#include <mq/message.hpp>
#include <mq/send_result.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::test {

/// What the books say. Messages are counted once for each group that they concern, sends once.
struct AuditVerdict {
    std::uint64_t sent = 0;         ///< Sends that were begun.
    std::uint64_t confirmed = 0;    ///< Sends that the broker has confirmed.
    std::uint64_t refused = 0;      ///< Sends that ended with Outcome::kNotSent.
    std::uint64_t unknown = 0;      ///< Sends that ended with Outcome::kUnknown.
    std::uint64_t pending = 0;      ///< Sends that have not ended.
    std::uint64_t ended_twice = 0;  ///< Sends whose callback ran more than once.
    std::uint64_t lost = 0;         ///< Confirmed, and not handled by a group.
    std::uint64_t duplicated = 0;   ///< Handled by a group once more.
    std::uint64_t reordered = 0;    ///< First handled by a group after a later message of its key.
    std::uint64_t crossed = 0;      ///< Handled by a group from both sides.
    std::uint64_t phantom = 0;      ///< Handled, though the send ended with Outcome::kNotSent.
    std::uint64_t foreign = 0;      ///< Handled, but not as it was sent, or never sent at all.
    std::string first_lost = {};    ///< Some of the lost ones, for a person to read.
    std::string first_reordered = {};

    friend std::ostream& operator<<(std::ostream& out, const AuditVerdict& verdict) {
        return out << "sent=" << verdict.sent << " confirmed=" << verdict.confirmed
                   << " refused=" << verdict.refused << " unknown=" << verdict.unknown
                   << " pending=" << verdict.pending << " ended_twice=" << verdict.ended_twice
                   << " lost=" << verdict.lost << " duplicated=" << verdict.duplicated
                   << " reordered=" << verdict.reordered << " crossed=" << verdict.crossed
                   << " phantom=" << verdict.phantom << " foreign=" << verdict.foreign
                   << (verdict.first_lost.empty() ? "" : "; lost:" + verdict.first_lost)
                   << (verdict.first_reordered.empty() ? "" : "; reordered:" + verdict.first_reordered);
    }
};

/// Thread-safe.
class Audit {
public:
    using Clock = std::chrono::steady_clock;

    /// `keys` of each producer; 0 for messages without a key.
    explicit Audit(std::vector<std::string> groups, std::uint64_t keys = 8)
        : groups_(std::move(groups)), keys_(keys) {}

    Audit(const Audit&) = delete;
    Audit& operator=(const Audit&) = delete;

    /// The next message of a producer; it counts as sent.
    Message Make(std::size_t producer) {
        const std::lock_guard lock{mutex_};
        std::vector<Entry>& entries = sent_[producer];
        const std::uint64_t sequence = entries.size();
        entries.push_back(Entry{.handled = std::vector<Handled>(groups_.size())});
        ++pending_;
        return Compose(producer, sequence);
    }

    /// How a send ended.
    void Ended(const SendResult& result) {
        Ended(result.id(), result.ok() ? std::nullopt : std::optional{result.error().outcome()});
    }

    /// How a send ended: with no outcome it was confirmed.
    void Ended(const std::string& id, std::optional<Outcome> failure) {
        {
            const std::lock_guard lock{mutex_};
            Entry* const entry = Find(id);
            if (entry == nullptr) {
                ++foreign_;
                return;
            }
            if (entry->end != End::kPending) {
                ++ended_twice_;
                return;
            }
            --pending_;
            entry->end = !failure                        ? End::kConfirmed
                         : *failure == Outcome::kNotSent ? End::kNotSent
                                                         : End::kUnknown;
            if (entry->end == End::kConfirmed) {
                for (const Handled& handled : entry->handled)
                    outstanding_ += handled.times == 0 ? 1 : 0;
            }
        }
        changed_.notify_all();
    }

    /// A group has handled a message.
    void Processed(const std::string& group, const Message& message) {
        {
            const std::lock_guard lock{mutex_};
            ++processed_;
            Enter(group, message);
        }
        changed_.notify_all();
    }

    /// Waits until every send has ended and every group has handled every confirmed message.
    bool WaitComplete(std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, [this] { return pending_ == 0 && outstanding_ == 0; });
    }

    /// Waits until that many more messages have been handled.
    bool WaitProcessed(std::uint64_t more, std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience,
                                 [this, wanted = processed_ + more] { return processed_ >= wanted; });
    }

    /// Waits until every group has handled something that came from a side.
    bool WaitHandledFrom(Side side, std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, [this, side] {
            return std::all_of(groups_.begin(), groups_.end(), [&](const std::string& group) {
                return from_.count({group, side}) > 0;
            });
        });
    }

    [[nodiscard]] AuditVerdict Check() const {
        const std::lock_guard lock{mutex_};
        AuditVerdict verdict{.pending = pending_,
                             .ended_twice = ended_twice_,
                             .duplicated = duplicated_,
                             .reordered = reordered_,
                             .crossed = crossed_,
                             .foreign = foreign_,
                             .first_reordered = first_reordered_};
        for (const auto& [producer, entries] : sent_) {
            verdict.sent += entries.size();
            for (std::uint64_t sequence = 0; sequence < entries.size(); ++sequence) {
                CheckEntry(producer, sequence, entries[sequence], verdict);
            }
        }
        return verdict;
    }

private:
    static constexpr int kExamples = 5;

    enum class End : unsigned char { kPending, kConfirmed, kNotSent, kUnknown };
    struct Handled {
        std::uint32_t times = 0;
        Side side = Side::kOld;
        bool crossed = false;
    };
    struct Entry {
        End end = End::kPending;
        std::vector<Handled> handled = {};  // by group
    };
    using Place = std::pair<std::size_t, std::uint64_t>;  // producer and sequence

    // ---- all with mutex_ held

    [[nodiscard]] Message Compose(std::size_t producer, std::uint64_t sequence) const {
        const std::string name = std::to_string(producer) + ":" + std::to_string(sequence);
        return {.body = "message " + name,
                .key = keys_ == 0
                           ? ""
                           : "key-" + std::to_string(producer) + "-" + std::to_string(sequence % keys_),
                .headers = {{"producer", std::to_string(producer)}},
                .id = run_ + ":" + name};
    }

    [[nodiscard]] std::optional<Place> PlaceOf(std::string_view id) const {
        if (!id.starts_with(run_ + ":")) return std::nullopt;
        id.remove_prefix(run_.size() + 1);
        const std::size_t colon = id.find(':');
        if (colon == std::string_view::npos) return std::nullopt;
        Place place{};
        std::from_chars(id.data(), id.data() + colon, place.first);
        std::from_chars(id.data() + colon + 1, id.data() + id.size(), place.second);
        return place;
    }

    [[nodiscard]] Entry* Find(const Place& place) {
        const auto entries = sent_.find(place.first);
        if (entries == sent_.end() || place.second >= entries->second.size()) return nullptr;
        return &entries->second[place.second];
    }

    [[nodiscard]] Entry* Find(const std::string& id) {
        const auto place = PlaceOf(id);
        return place ? Find(*place) : nullptr;
    }

    void Enter(const std::string& group, const Message& message) {
        const auto known = std::find(groups_.begin(), groups_.end(), group);
        const auto place = PlaceOf(message.id);
        Entry* const entry = place ? Find(*place) : nullptr;
        if (known == groups_.end() || entry == nullptr || !AsSent(*place, message)) {
            ++foreign_;
            return;
        }
        from_.insert({group, message.side});
        const auto number = static_cast<std::size_t>(known - groups_.begin());
        Handled& handled = entry->handled[number];
        if (handled.times++ > 0) {
            ++duplicated_;
            if (handled.side != message.side && !std::exchange(handled.crossed, true)) ++crossed_;
            return;
        }
        handled.side = message.side;
        if (entry->end == End::kConfirmed) --outstanding_;
        if (!message.key.empty()) EnterOrder(group, *place, message.key);
    }

    [[nodiscard]] bool AsSent(const Place& place, const Message& message) const {
        const Message sent = Compose(place.first, place.second);
        return message.body == sent.body && message.key == sent.key && message.headers == sent.headers;
    }

    void EnterOrder(const std::string& group, const Place& place, const std::string& key) {
        std::uint64_t& next = next_of_key_[{group, key}];
        if (place.second + 1 >= next) {
            next = place.second + 1;
            return;
        }
        if (reordered_++ < kExamples) {
            first_reordered_ += " " + group + "/" + key + " " + std::to_string(place.second) +
                                " after " + std::to_string(next - 1);
        }
    }

    void CheckEntry(std::size_t producer, std::uint64_t sequence, const Entry& entry,
                    AuditVerdict& verdict) const {
        verdict.confirmed += entry.end == End::kConfirmed ? 1 : 0;
        verdict.refused += entry.end == End::kNotSent ? 1 : 0;
        verdict.unknown += entry.end == End::kUnknown ? 1 : 0;
        for (std::size_t group = 0; group < groups_.size(); ++group) {
            const bool handled = entry.handled[group].times > 0;
            if (entry.end == End::kNotSent && handled) ++verdict.phantom;
            if (entry.end != End::kConfirmed || handled) continue;
            if (verdict.lost++ < kExamples) {
                verdict.first_lost += " " + groups_[group] + "/" + std::to_string(producer) + ":" +
                                      std::to_string(sequence);
            }
        }
    }

    const std::string run_ = UniqueId("audit");
    const std::vector<std::string> groups_;
    const std::uint64_t keys_;

    mutable std::mutex mutex_;  // guards all that follows
    mutable std::condition_variable changed_;
    std::map<std::size_t, std::vector<Entry>> sent_;  // by producer, in send order
    std::map<std::pair<std::string, std::string>, std::uint64_t> next_of_key_;  // by group and key
    std::set<std::pair<std::string, Side>> from_;  // groups and the sides they had messages from
    std::uint64_t pending_ = 0;
    std::uint64_t outstanding_ = 0;  // confirmed and not yet handled, once for each group
    std::uint64_t processed_ = 0;
    std::uint64_t ended_twice_ = 0;
    std::uint64_t duplicated_ = 0;
    std::uint64_t reordered_ = 0;
    std::uint64_t crossed_ = 0;
    std::uint64_t foreign_ = 0;
    std::string first_reordered_;
};

}  // namespace mq::test
