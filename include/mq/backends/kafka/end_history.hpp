/// @file end_history.hpp
/// Where the partitions of a topic ended at moments in the past. Kafka knows how far a group has come,
/// and not since when: held against the ends of a moment, its positions tell whether everything that
/// was there by then is settled, also where more comes all the time. Knows nothing of the client
/// library.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::kafka {

/// One offset for each partition of a topic, by its number.
using Offsets = std::vector<std::int64_t>;

/// The ends of one topic, at the moments that matter to one group. Not thread-safe.
class EndHistory {
public:
    using Clock = std::chrono::steady_clock;

    /// How many moments are remembered.
    static constexpr std::size_t kMost = 16;

    /// Whatever was on the topic by `moment` lies below `ends`, which were therefore read later. A
    /// moment that is not newer than the last one is left out. What ended higher before is forgotten:
    /// the topic has been made anew, or two questions have overtaken each other.
    /// O(kMost · partitions).
    void Note(Clock::time_point moment, const Offsets& ends) {
        if (!entries_.empty() && moment <= entries_.back().moment) return;
        std::erase_if(entries_, [&](const Entry& entry) { return !Reaches(ends, entry.ends); });
        if (!entries_.empty() && entries_.back().ends == ends) {
            entries_.back().moment = moment;
            return;
        }
        entries_.push_back({moment, ends});
        if (entries_.size() > kMost) Thin();
    }

    /// The newest moment by which everything was settled, given that the group has settled what is
    /// below `positions`; nothing where that is not known. Forgets what is older.
    /// O(kMost · partitions).
    std::optional<Clock::time_point> SettledBefore(const Offsets& positions) {
        const auto newest = std::find_if(entries_.rbegin(), entries_.rend(), [&](const Entry& entry) {
            return Reaches(positions, entry.ends);
        });
        if (newest == entries_.rend()) return std::nullopt;
        entries_.erase(entries_.begin(), std::prev(newest.base()));
        return entries_.front().moment;
    }

    [[nodiscard]] std::size_t size() const { return entries_.size(); }

private:
    struct Entry {
        Clock::time_point moment = {};
        Offsets ends = {};
    };

    /// A partition that `ends` does not have was not there at the time, and counts for nothing.
    static bool Reaches(const Offsets& positions, const Offsets& ends) {
        return ends.size() <= positions.size() &&
               std::equal(ends.begin(), ends.end(), positions.begin(),
                          [](std::int64_t end, std::int64_t position) { return position >= end; });
    }

    /// Drops the moment that leaves the smallest gap, but for the one that is settled and the one that
    /// is to be next. What remains is spread evenly over the time that the group lags behind, however
    /// long that is, so that an answer is late by a fraction of it.
    void Thin() {
        std::size_t least = 2;
        for (std::size_t i = 3; i + 1 < entries_.size(); ++i) {
            if (GapWithout(i) < GapWithout(least)) least = i;
        }
        entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(least));
    }

    [[nodiscard]] Clock::duration GapWithout(std::size_t i) const {
        return entries_[i + 1].moment - entries_[i - 1].moment;
    }

    std::vector<Entry> entries_ = {};  // the oldest first; from one to the next, ends only grow
};

/// The histories of all groups and topics that are asked about. Thread-safe.
class EndHistories {
public:
    using Clock = EndHistory::Clock;

    /// How many histories are kept: each holds up to EndHistory::kMost offsets of every partition.
    static constexpr std::size_t kMost = 1024;

    /// Notes that whatever was on `topic` by `moment` lies below `ends`, and answers by which moment
    /// everything was settled, given that `group` has settled what is below `positions`; nothing where
    /// that is not known. Never blocks.
    std::optional<Clock::time_point> Ask(const std::string& topic, const std::string& group,
                                         Clock::time_point moment, const Offsets& ends,
                                         const Offsets& positions) {
        const std::lock_guard lock{mutex_};
        Kept& kept = kept_[{topic, group}];
        kept.asked = ++asked_;
        kept.history.Note(moment, ends);
        const auto answer = kept.history.SettledBefore(positions);
        if (kept_.size() > kMost) {
            kept_.erase(std::min_element(kept_.begin(), kept_.end(), [](const auto& a, const auto& b) {
                return a.second.asked < b.second.asked;
            }));
        }
        return answer;
    }

    [[nodiscard]] std::size_t size() const {
        const std::lock_guard lock{mutex_};
        return kept_.size();
    }

private:
    struct Kept {
        EndHistory history = {};
        std::uint64_t asked = 0;  // the number of the last question about it
    };

    mutable std::mutex mutex_ = {};                                  // guards everything below
    std::map<std::pair<std::string, std::string>, Kept> kept_ = {};  // by topic and group
    std::uint64_t asked_ = 0;
};

}  // namespace mq::kafka
