/// @file sender.hpp
/// What a producer writes beside each message of a topic that has two sides: who it is, on which rung
/// it stands, and how often it has moved its publishing. Consumers learn from it who is late.
#pragma once

#include <mq/policy.hpp>
#include <mq/status.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::migration {

/// A producer at one moment of its life.
struct Sender {
    std::string_view id = {};  ///< Of the client; without a space.
    Policy stage = Policy::kOld;
    /// Rises whenever its publishing goes from one side to the other. Odd: what it sent before may not
    /// be handled yet; even: all of it was.
    std::uint64_t moves = 0;

    friend bool operator==(const Sender&, const Sender&) = default;
};

/// The number of the next move.
constexpr std::uint64_t NextMoves(std::uint64_t moves, bool leaves_nothing) noexcept {
    const bool even = moves % 2 == 0;
    return moves + (even == leaves_nothing ? 2 : 1);
}

/// As it goes over the wire: "mq-7Q2M… new-publish 1".
inline std::string ToText(const Sender& sender) {
    return std::string{sender.id} + ' ' + std::string{ToString(sender.stage)} + ' ' +
           std::to_string(sender.moves);
}

/// Reads what ToText has written; nothing where it is something else. What it returns points into
/// `text`.
inline std::optional<Sender> ParseSender(std::string_view text) noexcept {
    const auto first = text.find(' ');
    const auto last = text.rfind(' ');
    if (first == std::string_view::npos || first == last || first == 0) return std::nullopt;
    const auto stage = ParsePolicy(text.substr(first + 1, last - first - 1));
    if (!stage) return std::nullopt;
    Sender sender{.id = text.substr(0, first), .stage = *stage};
    const std::string_view moves = text.substr(last + 1);
    const auto [end, error] = std::from_chars(moves.data(), moves.data() + moves.size(), sender.moves);
    if (error != std::errc{} || end != moves.data() + moves.size()) return std::nullopt;
    return sender;
}

/// The producers whose messages a topic's subscriptions have seen lately, by side. Thread-safe. Holds
/// kMost producers a side at most; the one that was seen least lately makes room.
class SeenProducers {
public:
    /// Notes that a message arrived from a side. `text` is its sender, as it came over the wire.
    void Note(Side side, std::string_view text) {
        const auto sender = ParseSender(text);
        if (!sender) return;
        const auto now = std::chrono::system_clock::now();
        const std::lock_guard lock{mutex_};
        auto& producers = sides_[static_cast<std::size_t>(side)];
        auto known = producers.find(sender->id);
        if (known == producers.end()) {
            if (producers.size() >= kMost) producers.erase(LeastLately(producers));
            known = producers.emplace(std::string{sender->id}, ProducerStatus{}).first;
            known->second.client = sender->id;
        }
        // A message that was sent before another one may arrive after it.
        if (sender->moves < known->second.moves) return;
        known->second.stage = sender->stage;
        known->second.moves = sender->moves;
        known->second.last_seen = now;
    }

    /// Those that were seen within kLately, by the names of their clients.
    [[nodiscard]] std::vector<ProducerStatus> Lately(Side side) const {
        const auto since = std::chrono::system_clock::now() - kLately;
        std::vector<ProducerStatus> lately;
        const std::lock_guard lock{mutex_};
        for (const auto& [id, producer] : sides_[static_cast<std::size_t>(side)]) {
            if (producer.last_seen >= since) lately.push_back(producer);
        }
        return lately;
    }

    /// Where producers have gone that were seen lately, each by its last move: [old, new]. Those that
    /// were seen on both sides have shown in which order they were there, and are believed first; of
    /// the others it is only known that they came from somewhere else. Counts of different producers
    /// say nothing about one another.
    [[nodiscard]] std::array<bool, 2> WentTo() const {
        const auto since = std::chrono::system_clock::now() - kLately;
        std::array<bool, 2> proved{};
        std::array<bool, 2> shown{};
        const std::lock_guard lock{mutex_};
        for (const Side side : {Side::kOld, Side::kNew}) {
            const Producers& there = sides_[static_cast<std::size_t>(Other(side))];
            for (const auto& [id, producer] : sides_[static_cast<std::size_t>(side)]) {
                if (producer.moves == 0 || producer.last_seen < since) continue;
                const auto elsewhere = there.find(id);
                if (elsewhere == there.end()) {
                    shown[static_cast<std::size_t>(side)] = true;
                } else if (elsewhere->second.moves < producer.moves) {
                    proved[static_cast<std::size_t>(side)] = true;
                }
            }
        }
        return proved[0] || proved[1] ? proved : shown;
    }

private:
    using Producers = std::map<std::string, ProducerStatus, std::less<>>;

    static constexpr std::size_t kMost = 1000;
    static constexpr std::chrono::minutes kLately{10};

    static Producers::const_iterator LeastLately(const Producers& producers) {
        return std::min_element(producers.begin(), producers.end(), [](const auto& a, const auto& b) {
            return a.second.last_seen < b.second.last_seen;
        });
    }

    mutable std::mutex mutex_;  // guards sides_
    std::array<Producers, 2> sides_;
};

/// What one subscription knows of the producers whose messages came from one side. Not thread-safe.
/// Holds kMost producers at most; one that is forgotten is noticed once more.
class KnownMoves {
public:
    /// Whether this message is the first to show that its producer has come over, and that what it sent
    /// to the other side before may not have been handled. `text` is its sender, as it came over the
    /// wire. That a producer says that all of it was handled counts only for a group that it asks:
    /// where it is `vouched`.
    bool Note(std::string_view text, bool vouched = true) {
        const auto sender = ParseSender(text);
        if (!sender || sender->moves == 0) return false;
        if (vouched && sender->moves % 2 == 0) return false;
        const auto known = moves_.find(sender->id);
        if (known == moves_.end()) {
            if (moves_.size() >= kMost) moves_.clear();
            moves_.emplace(sender->id, sender->moves);
            return true;
        }
        if (sender->moves <= known->second) return false;
        known->second = sender->moves;
        return true;
    }

private:
    static constexpr std::size_t kMost = 1000;

    std::map<std::string, std::uint64_t, std::less<>> moves_;
};

}  // namespace mq::migration
