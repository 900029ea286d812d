/// @file standstill.hpp
/// What stands still: what should go on and does not, for no reason of its own. The definition stands
/// here; walk.hpp looks, and StandstillWatch judges.
///
/// - **A subscription** that is not active is to become so; one to which its adapter says that nothing
///   comes is to be delivered to.
/// - **A handler** is to return, or settle, while others of its key wait behind its message, or all
///   handlers are busy and more messages wait.
/// - **A fence** that holds something is to see less on the other side, or more of it settled, or
///   something from there handled here; the quiet period alone is no reason.
/// - **A publisher** with sends in flight is to see one end, well or not.
/// - **Held sends** are to go on, for publishing has moved or not.
/// - **A walk** that waits for a broker's answer, a drain, or for what groups handle, is to wait for
///   something else, or less, or see something handled here.
///
/// Silence for kSilence is a standstill; a subscription's adapter judges by itself. A topic with
/// something of that kind is looked at each kLook at the least, so that a standstill is noticed within
/// backend::kStandstill of the last progress. It is in the status for as long as it lasts, and in the
/// log twice: when it is noticed, and when it is over. What waits for people is none: a group that does
/// not listen yet, a quiet period, a policy.
#pragma once

#include <mq/backend.hpp>
#include <mq/policy.hpp>
#include <mq/status.hpp>

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::migration {

using backend::Clock;

/// How often a topic is looked at on which something should go on.
inline constexpr std::chrono::seconds kLook{5};

/// How long without progress is a standstill, when a look finds it so.
inline constexpr std::chrono::seconds kSilence = backend::kStandstill - kLook;

/// Something that should go on, as it is seen at one moment.
struct Observation {
    std::string what = {};  ///< Tells it from others, from look to look.
    Side side = Side::kOld;
    std::string group = {};     ///< Empty for what is sent.
    std::string text = {};      ///< What stands still, where it does, as a sentence.
    std::string progress = {};  ///< Another text than at the last look is progress.
    std::chrono::milliseconds patience = kSilence;  ///< Zero: it is judged already.
};

/// Follows what should go on, from look to look. Not thread-safe.
class StandstillWatch {
public:
    /// What a look has found to be new.
    struct News {
        bool begins = false;  ///< Otherwise it is over.
        std::string text = {};
    };

    /// `seen` is all that should go on at this moment: what is not among it any more has gone on.
    std::vector<News> Look(std::vector<Observation> seen, Clock::time_point now,
                           std::chrono::system_clock::time_point today) {
        std::vector<News> news;
        std::map<std::string, Watched> watched;
        for (Observation& each : seen) {
            const auto known = watched_.find(each.what);
            Watched next{.seen = std::move(each), .since = now};
            if (known != watched_.end() && known->second.seen.progress == next.seen.progress) {
                next.since = known->second.since;
                next.noticed = known->second.noticed;
                next.still_since = known->second.still_since;
            } else if (known != watched_.end() && known->second.noticed) {
                news.push_back({.begins = false, .text = known->second.seen.text});
            }
            if (!next.noticed && now - next.since >= next.seen.patience) {
                next.noticed = today;
                next.still_since = now;
                news.push_back({.begins = true, .text = next.seen.text});
            }
            std::string what = next.seen.what;
            watched.insert_or_assign(std::move(what), std::move(next));
        }
        for (const auto& [what, before] : watched_) {
            if (before.noticed && !watched.contains(what)) {
                news.push_back({.begins = false, .text = before.seen.text});
            }
        }
        watched_.swap(watched);
        return news;
    }

    /// All that stands still.
    [[nodiscard]] std::vector<Standstill> Standing() const {
        std::vector<Standstill> standing;
        for (const auto& [what, each] : watched_) {
            if (!each.noticed) continue;
            standing.push_back({.side = each.seen.side,
                                .group = each.seen.group,
                                .text = each.seen.text,
                                .since = *each.noticed});
        }
        return standing;
    }

    /// When it was noticed that this stands still; nothing where it does not.
    [[nodiscard]] std::optional<Clock::time_point> StillSince(const std::string& what) const {
        const auto known = watched_.find(what);
        if (known == watched_.end() || !known->second.noticed) return std::nullopt;
        return known->second.still_since;
    }

    /// Whether there is anything that should go on.
    [[nodiscard]] bool empty() const noexcept { return watched_.empty(); }

private:
    struct Watched {
        Observation seen = {};
        Clock::time_point since = {};  // of the last progress
        std::optional<std::chrono::system_clock::time_point> noticed = {};
        Clock::time_point still_since = {};  // the same, on the other clock
    };

    std::map<std::string, Watched> watched_ = {};
};

}  // namespace mq::migration
