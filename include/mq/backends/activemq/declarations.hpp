/// @file declarations.hpp
/// Which of the groups' queues a publishing link may rely on: what was seen to be there, and when it
/// must be looked at again, since anybody may remove a queue. Knows nothing of the client library.
#pragma once

#include <mq/backends/activemq/topology.hpp>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::activemq::detail {

/// The declarations of one link. A queue is looked after while something is sent: once it was not seen
/// for kRenew it is looked for again beside the sends, and after kTrust nothing is sent before it was
/// seen, so that within that time it is there again or sends fail. One at a time is under way. Not
/// thread-safe.
class Declarations {
public:
    using Clock = std::chrono::steady_clock;

    static constexpr std::chrono::seconds kRenew{8};
    static constexpr std::chrono::seconds kTrust{20};

    /// How the queue that is under way is seen to.
    enum class Step : unsigned char {
        kNone,
        kLooking,  ///< The broker is asked whether it is there.
        kMaking,   ///< A link is being made, which makes it.
        kMade,     ///< That link stands, and is being ended again.
    };

    /// The next queue to see to; null where there is none, or one is under way.
    [[nodiscard]] const GroupSource* Next(const std::vector<GroupSource>& sources,
                                          Clock::time_point now) const {
        if (step_ != Step::kNone) return nullptr;
        for (const GroupSource& source : sources) {
            const auto seen = seen_.find(source.queue);
            if (seen == seen_.end() || now >= seen->second + kRenew) return &source;
        }
        return nullptr;
    }

    /// Whether it was seen on this connection: then looking is enough, and making it is not needed.
    [[nodiscard]] bool Seen(const std::string& queue) const { return seen_.contains(queue); }

    /// Until when messages may be sent that need all of these; nothing where one must be seen first.
    [[nodiscard]] std::optional<Clock::time_point> TrustedUntil(
        const std::vector<GroupSource>& sources) const {
        auto until = Clock::time_point::max();
        for (const GroupSource& source : sources) {
            const auto seen = seen_.find(source.queue);
            if (seen == seen_.end()) return std::nullopt;
            until = std::min(until, seen->second + kTrust);
        }
        return until;
    }

    void Begin(const GroupSource& source, Step step, std::string link, Clock::time_point now) {
        source_ = source;
        step_ = step;
        link_ = std::move(link);
        asked_at_ = now;
    }

    /// The link has been answered. `stands`: it makes the queue; else the broker says at once why not.
    void Answered(bool stands) { step_ = stands ? Step::kMade : Step::kMaking; }

    /// The queue under way is there, as of now.
    void Finish(Clock::time_point now) {
        seen_.insert_or_assign(source_.queue, now);
        End();
    }

    /// It is not there.
    void Missing() {
        seen_.erase(source_.queue);
        End();
    }

    /// Nothing is known of it: what was known before stays.
    void End() {
        step_ = Step::kNone;
        link_.clear();
    }

    /// What was seen counts no more; what is under way goes on.
    void Distrust() { seen_.clear(); }

    /// The connection is gone, and what it has shown.
    void Forget() {
        seen_.clear();
        End();
    }

    [[nodiscard]] Step step() const noexcept { return step_; }
    [[nodiscard]] const GroupSource& source() const noexcept { return source_; }
    [[nodiscard]] const std::string& link() const noexcept { return link_; }
    [[nodiscard]] Clock::time_point asked_at() const noexcept { return asked_at_; }

private:
    std::map<std::string, Clock::time_point> seen_ = {};  // by the names of queues
    Step step_ = Step::kNone;
    GroupSource source_ = {};
    std::string link_ = {};
    Clock::time_point asked_at_ = {};
};

}  // namespace mq::activemq::detail
