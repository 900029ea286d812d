/// @file position_memory.hpp
/// The positions of groups as this client has seen them last. A broker forgets those of a group that
/// has left for a week, and what a late producer sends then would count as nobody's. Knows nothing of
/// the client library.
#pragma once

#include <mq/backends/kafka/end_history.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace mq::kafka {

/// Thread-safe. Never blocks.
class PositionMemory {
public:
    using Clock = std::chrono::steady_clock;
    using WallClock = std::chrono::system_clock;

    /// How many groups are remembered, counted for each of their topics: the ones noted last.
    static constexpr std::size_t kMost = 1024;
    /// How old what the broker has may be, where nobody is there who commits.
    static constexpr std::chrono::hours kRefresh{6};

    struct Remembered {
        Offsets positions = {};           ///< Negative where there was none.
        WallClock::time_point seen = {};  ///< When the broker, or a member of ours, had them last.
    };

    /// The group has settled what is below `positions`; where one is negative, what was noted before
    /// stays.
    void Note(const std::string& topic, const std::string& group, const Offsets& positions,
              WallClock::time_point now) {
        if (std::all_of(positions.begin(), positions.end(), [](auto each) { return each < 0; })) return;
        const std::lock_guard lock{mutex_};
        Kept& kept = kept_[{topic, group}];
        Offsets& known = kept.remembered.positions;
        known.resize(std::max(known.size(), positions.size()), -1);
        bool whole = true;
        for (std::size_t i = 0; i < known.size(); ++i) {
            const std::int64_t position = i < positions.size() ? positions[i] : -1;
            if (position >= 0) known[i] = position;
            whole = whole && (position >= 0 || known[i] < 0);
        }
        // What is only remembered is as old as it was.
        if (whole) kept.remembered.seen = now;
        kept.noted = ++noted_;
        DropLocked();
    }

    [[nodiscard]] std::optional<Remembered> Find(const std::string& topic,
                                                 const std::string& group) const {
        const std::lock_guard lock{mutex_};
        const auto kept = kept_.find({topic, group});
        if (kept == kept_.end()) return std::nullopt;
        return kept->second.remembered;
    }

    /// The log that they were about is not there any more.
    void Forget(const std::string& topic, const std::string& group) {
        const std::lock_guard lock{mutex_};
        kept_.erase({topic, group});
    }

    /// Whether what the broker has should be written once more: at first, and every kRefresh. The one
    /// who is told so does it.
    bool TakeRefresh(const std::string& topic, const std::string& group, Clock::time_point now) {
        const std::lock_guard lock{mutex_};
        const auto kept = kept_.find({topic, group});
        if (kept == kept_.end()) return false;
        if (kept->second.refreshed && now - *kept->second.refreshed < kRefresh) return false;
        kept->second.refreshed = now;
        return true;
    }

    [[nodiscard]] std::size_t size() const {
        const std::lock_guard lock{mutex_};
        return kept_.size();
    }

private:
    struct Kept {
        Remembered remembered = {};
        std::optional<Clock::time_point> refreshed = {};
        std::uint64_t noted = 0;  // the number of the last Note
    };

    void DropLocked() {
        if (kept_.size() <= kMost) return;
        kept_.erase(std::min_element(kept_.begin(), kept_.end(), [](const auto& a, const auto& b) {
            return a.second.noted < b.second.noted;
        }));
    }

    mutable std::mutex mutex_ = {};                                  // guards everything below
    std::map<std::pair<std::string, std::string>, Kept> kept_ = {};  // by topic and group
    std::uint64_t noted_ = 0;
};

}  // namespace mq::kafka
