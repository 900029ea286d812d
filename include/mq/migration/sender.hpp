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
#include <vector>

namespace mq::migration {

/// A producer at one moment of its life.
struct Sender {
    std::string_view id = {};  ///< Of the client; without a space.
    Policy stage = Policy::kOld;
    std::uint64_t moves = 0;  ///< How often its publishing has gone from one side to the other.

    friend bool operator==(const Sender&, const Sender&) = default;
};

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

    /// The side that publishing went to last, as the producers show that have moved; nothing where none
    /// has, or where they do not agree.
    [[nodiscard]] std::optional<Side> Newer() const {
        const std::lock_guard lock{mutex_};
        const std::uint64_t old_moves = MostMoves(sides_[static_cast<std::size_t>(Side::kOld)]);
        const std::uint64_t new_moves = MostMoves(sides_[static_cast<std::size_t>(Side::kNew)]);
        if (old_moves == new_moves) return std::nullopt;
        return new_moves > old_moves ? Side::kNew : Side::kOld;
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

    static std::uint64_t MostMoves(const Producers& producers) {
        std::uint64_t most = 0;
        for (const auto& [id, producer] : producers) most = std::max(most, producer.moves);
        return most;
    }

    mutable std::mutex mutex_;  // guards sides_
    std::array<Producers, 2> sides_;
};

}  // namespace mq::migration
