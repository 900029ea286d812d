/// @file audit.hpp
/// The books of the demonstration: which messages a broker has confirmed, and in which order each group
/// has handled them. It compares ids and sequence numbers, not totals.
#pragma once

#include <mq/message.hpp>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace live {

/// What the books say in the end.
struct Verdict {
    std::uint64_t sent = 0;        ///< Confirmed by a broker.
    std::uint64_t processed = 0;   ///< Of those, handled by every group.
    std::uint64_t lost = 0;        ///< Of those, missing in at least one group.
    std::uint64_t duplicated = 0;  ///< Handled by a group once more.
    std::uint64_t reordered = 0;   ///< Handled by a group after a later message of its key.
};

/// Thread-safe.
class Audit {
public:
    explicit Audit(const std::vector<std::string>& groups) {
        for (const std::string& group : groups) groups_[group];
    }

    /// A message as a producer makes it: number `sequence` of its producer, for one of its keys.
    static mq::Message Make(std::size_t producer, std::uint64_t sequence) {
        constexpr std::uint64_t kKeys = 16;
        const std::string name = std::to_string(producer);
        return {.body = name + ":" + std::to_string(sequence),
                .key = "customer-" + name + "-" + std::to_string(sequence % kKeys),
                .headers = {{"kind", "order"}}};
    }

    void Confirmed(std::size_t producer, std::uint64_t sequence) {
        const std::lock_guard lock{mutex_};
        Mark(confirmed_[producer], sequence);
        ++confirmed_count_;
    }

    void Processed(const std::string& group, const mq::Message& message) {
        const auto [producer, sequence] = Parse(message.body);
        const std::lock_guard lock{mutex_};
        Group& books = groups_.at(group);
        if (!Mark(books.seen[producer], sequence)) {
            ++books.duplicated;
            return;
        }
        ++books.processed;
        std::uint64_t& last = books.last_of_key[message.key];
        if (sequence + 1 < last) {
            ++books.reordered;
        } else {
            last = sequence + 1;
        }
    }

    /// Whether every group has handled everything that was confirmed.
    [[nodiscard]] bool Complete() const { return Check().lost == 0; }

    /// How many messages all groups together have handled, without repeats.
    [[nodiscard]] std::uint64_t Handled() const {
        const std::lock_guard lock{mutex_};
        std::uint64_t handled = 0;
        for (const auto& [name, group] : groups_) handled += group.processed;
        return handled;
    }

    [[nodiscard]] Verdict Check() const {
        const std::lock_guard lock{mutex_};
        Verdict verdict{.sent = confirmed_count_};
        for (const auto& [producer, sequences] : confirmed_) {
            for (std::uint64_t sequence = 0; sequence < sequences.size(); ++sequence) {
                if (sequences[sequence] && !SeenByAll(producer, sequence)) ++verdict.lost;
            }
        }
        verdict.processed = verdict.sent - verdict.lost;
        for (const auto& [name, group] : groups_) {
            verdict.duplicated += group.duplicated;
            verdict.reordered += group.reordered;
        }
        return verdict;
    }

private:
    using Sequences = std::vector<bool>;
    struct Group {
        std::map<std::size_t, Sequences> seen = {};  // by producer
        std::map<std::string, std::uint64_t> last_of_key = {};
        std::uint64_t processed = 0;
        std::uint64_t duplicated = 0;
        std::uint64_t reordered = 0;
    };

    static std::pair<std::size_t, std::uint64_t> Parse(std::string_view body) {
        const std::size_t colon = body.find(':');
        std::size_t producer = 0;
        std::uint64_t sequence = 0;
        std::from_chars(body.data(), body.data() + colon, producer);
        std::from_chars(body.data() + colon + 1, body.data() + body.size(), sequence);
        return {producer, sequence};
    }

    // False where it was marked before.
    static bool Mark(Sequences& sequences, std::uint64_t sequence) {
        if (sequences.size() <= sequence) sequences.resize(sequence + 1);
        if (sequences[sequence]) return false;
        sequences[sequence] = true;
        return true;
    }

    [[nodiscard]] bool SeenByAll(std::size_t producer, std::uint64_t sequence) const {
        for (const auto& [name, group] : groups_) {
            const auto seen = group.seen.find(producer);
            if (seen == group.seen.end() || seen->second.size() <= sequence) return false;
            if (!seen->second[sequence]) return false;
        }
        return true;
    }

    mutable std::mutex mutex_;                    // guards all that follows
    std::map<std::size_t, Sequences> confirmed_;  // by producer
    std::uint64_t confirmed_count_ = 0;
    std::map<std::string, Group> groups_;
};

}  // namespace live
