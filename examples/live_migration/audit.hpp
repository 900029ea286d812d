/// @file audit.hpp
/// The books of the demonstration: which messages a broker has confirmed, and in which order each group
/// has handled them. Kept by message id, and compared id by id and key by key, not by totals.
#pragma once

#include <mq/message.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace live {

/// What the books say in the end.
struct Verdict {
    std::uint64_t sent = 0;         ///< Confirmed by a broker.
    std::uint64_t unconfirmed = 0;  ///< Handed to SendMsg, and not confirmed.
    std::uint64_t processed = 0;    ///< Of those sent: handled by every group.
    std::uint64_t lost = 0;         ///< Of those sent: missing in at least one group.
    std::uint64_t duplicated = 0;   ///< Handled by a group once more.
    std::uint64_t reordered = 0;    ///< Handled by a group after a later message of its key.
    std::uint64_t foreign = 0;      ///< Handled, and never sent here, or not as it was sent.
};

/// Thread-safe.
class Audit {
public:
    /// `run` begins the id of every message, and is unlike that of any other run.
    Audit(std::string run, const std::vector<std::string>& groups, std::size_t producers)
        : run_(std::move(run)), sent_(producers) {
        for (const std::string& group : groups) groups_[group].handled.resize(producers);
    }

    /// The next message of a producer, with an id of its own and one of the producer's keys.
    mq::Message Make(std::size_t producer) {
        const std::lock_guard lock{mutex_};
        return Compose({producer, sent_[producer].made++});
    }

    /// The send of the message with this id has ended well.
    void Confirmed(const std::string& id) {
        const std::lock_guard lock{mutex_};
        ++ended_;
        const auto number = Find(id);
        if (number && Mark(sent_[number->producer].confirmed, number->sequence)) ++confirmed_;
    }

    /// A send has ended with an error. @returns how many have by now.
    std::uint64_t Failed() {
        const std::lock_guard lock{mutex_};
        ++ended_;
        return ++failed_;
    }

    void Processed(const std::string& group, const mq::Message& message) {
        const std::lock_guard lock{mutex_};
        const auto number = Find(message.id);
        if (!number || !IsAsSent(message, *number)) {
            ++foreign_;
            return;
        }
        Group& books = groups_.at(group);
        if (!Mark(books.handled[number->producer], number->sequence)) {
            ++books.duplicated;
            return;
        }
        ++books.processed;
        std::uint64_t& next = books.next_of_key[message.key];
        if (number->sequence < next) {
            ++books.reordered;
        } else {
            next = number->sequence + 1;
        }
    }

    /// How many sends have not ended.
    [[nodiscard]] std::uint64_t InFlight() const {
        const std::lock_guard lock{mutex_};
        return Made() - ended_;
    }

    /// How many messages all groups together have handled, without repeats.
    [[nodiscard]] std::uint64_t Handled() const {
        const std::lock_guard lock{mutex_};
        std::uint64_t handled = 0;
        for (const auto& [name, group] : groups_) handled += group.processed;
        return handled;
    }

    /// Whether every group has handled everything that was confirmed.
    [[nodiscard]] bool Complete() const { return Check().lost == 0; }

    [[nodiscard]] Verdict Check() const {
        const std::lock_guard lock{mutex_};
        Verdict verdict{.sent = confirmed_, .unconfirmed = Made() - confirmed_, .foreign = foreign_};
        for (std::size_t producer = 0; producer < sent_.size(); ++producer) {
            const Marks& confirmed = sent_[producer].confirmed;
            for (std::uint64_t sequence = 0; sequence < confirmed.size(); ++sequence) {
                if (confirmed[sequence] && !HandledByAll({producer, sequence})) ++verdict.lost;
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
    // What an id stands for; each id of this run stands for another one.
    struct Number {
        std::size_t producer = 0;
        std::uint64_t sequence = 0;
    };
    using Marks = std::vector<bool>;  // by sequence
    struct Producer {
        std::uint64_t made = 0;
        Marks confirmed = {};
    };
    struct Group {
        std::vector<Marks> handled = {};  // by producer
        std::map<std::string, std::uint64_t> next_of_key = {};
        std::uint64_t processed = 0;
        std::uint64_t duplicated = 0;
        std::uint64_t reordered = 0;
    };

    [[nodiscard]] std::string Id(const Number& number) const {
        return run_ + "." + std::to_string(number.producer) + "." + std::to_string(number.sequence);
    }

    [[nodiscard]] mq::Message Compose(const Number& number) const {
        constexpr std::uint64_t kKeys = 16;
        const std::string producer = std::to_string(number.producer);
        return {.body = "order " + std::to_string(number.sequence) + " of producer " + producer,
                .key = "customer-" + producer + "-" + std::to_string(number.sequence % kKeys),
                .headers = {{"kind", "order"}},
                .id = Id(number)};
    }

    // Nothing for an id that was not made here: anybody may write to the topic.
    [[nodiscard]] std::optional<Number> Find(std::string_view id) const {
        std::uint64_t producer = 0;
        std::uint64_t sequence = 0;
        std::string_view rest = id.substr(std::min(run_.size(), id.size()));
        for (std::uint64_t* const part : {&producer, &sequence}) {
            if (rest.empty()) return std::nullopt;
            const char* const end = rest.data() + rest.size();
            const auto [behind, code] = std::from_chars(rest.data() + 1, end, *part);
            if (code != std::errc{}) return std::nullopt;
            rest = {behind, static_cast<std::size_t>(end - behind)};
        }
        if (producer >= sent_.size() || sequence >= sent_[producer].made) return std::nullopt;
        const Number number{static_cast<std::size_t>(producer), sequence};
        // What only resembles an id, by a leading zero say, is none.
        return Id(number) == id ? std::optional{number} : std::nullopt;
    }

    [[nodiscard]] bool IsAsSent(const mq::Message& message, const Number& number) const {
        const mq::Message sent = Compose(number);
        return message.body == sent.body && message.key == sent.key;
    }

    // False where it was marked before.
    static bool Mark(Marks& marks, std::uint64_t sequence) {
        if (marks.size() <= sequence) marks.resize(sequence + 1);
        if (marks[sequence]) return false;
        marks[sequence] = true;
        return true;
    }

    [[nodiscard]] bool HandledByAll(const Number& number) const {
        return std::all_of(groups_.begin(), groups_.end(), [&number](const auto& group) {
            const Marks& handled = group.second.handled[number.producer];
            return number.sequence < handled.size() && handled[number.sequence];
        });
    }

    [[nodiscard]] std::uint64_t Made() const {
        std::uint64_t made = 0;
        for (const Producer& producer : sent_) made += producer.made;
        return made;
    }

    const std::string run_;
    mutable std::mutex mutex_;    // guards all that follows
    std::vector<Producer> sent_;  // by producer
    std::uint64_t confirmed_ = 0;
    std::uint64_t failed_ = 0;
    std::uint64_t ended_ = 0;  // confirmed or failed
    std::map<std::string, Group> groups_;
    std::uint64_t foreign_ = 0;
};

}  // namespace live
