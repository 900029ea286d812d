/// @file settled.hpp
/// Up to which moment everything that was on a queue is settled by its whole group, told also where the
/// queue is never empty. Knows nothing of the client library: it is given a way to ask.
///
/// Both brokers give a message a position when they take it, before they confirm it, and do not change
/// it: Artemis its number, from one sequence for all that the broker makes; Classic the time of its
/// arrival, by the broker's own clock. A **mark** is a moment here, and a position that the broker has
/// told after it: whatever was on the broker at that moment has a position that is no higher. So once
/// the queue has nothing unsettled with a position up to the mark's, all that was on it at that moment
/// is settled; a settled message does not come back, and the answer holds for good.
///
/// **Artemis** tells the first message that is ready, and all that are delivered and not settled. In
/// the memory of its queue the ready ones lie in the order of arrival, returned ones among them, and
/// what the queue has yet to take in came later: once a message behind the mark was seen in either
/// place, all older ones are in one of the two. A message moves between the two, so that both are asked
/// twice, in turn, the ready ones first: to be missed, each older one would have to be returned, handed
/// out and returned again in step with the four answers, which are given one right after the other.
/// Among the ready ones a higher priority comes first: with one above the default nothing is known, and
/// what has one below the default is not waited for. What waits for a time (a redelivery delay) is in
/// neither place, and nothing is known while there is any.
///
/// **Classic** shows a browser what it has read in from the store and nobody has settled, whether it
/// was handed out or not, as it is at one moment; it reads in the order of arrival. A first browser
/// finds a message behind the mark: all older ones were read in before it. A second one, after that,
/// finds none up to the mark: they are settled. A member that takes messages in a JMS transaction has
/// settled one, for a browser, when it has acknowledged it, before its commit. A broker's clock that is
/// set back makes later messages look older: the mark lies a second later than the clock says, so that
/// up to a second makes no difference.
///
/// What it costs is bounded: for one queue one look at a time, with pauses of several times what the
/// last one took. A look reads the messages that are delivered and not settled, at most the prefetch of
/// each member, or some hundreds of a queue's first messages; it takes none of them.
#pragma once

#include <mq/backends/activemq/inquirer.hpp>
#include <mq/backends/activemq/management.hpp>
#include <mq/backends/activemq/options.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace mq::activemq::detail {

/// Moments with positions, both rising. Bounded: of many, every second one is forgotten, so that they
/// lie the farther apart the longer they are ago. Not thread-safe.
class Marks {
public:
    struct Mark {
        Clock::time_point moment = {};
        std::int64_t position = 0;
    };

    static constexpr std::size_t kMost = 32;

    void Add(Mark mark) {
        // A position that is lower than one before it is not of the same sequence, or the clock was set
        // back: what was known is of no use any more.
        if (!marks_.empty() && mark.position < marks_.back().position) marks_.clear();
        marks_.push_back(mark);
        if (marks_.size() <= kMost) return;
        std::deque<Mark> kept;
        for (std::size_t i = 0; i < marks_.size(); i += 2) kept.push_back(marks_[i]);
        if (kept.back().moment != mark.moment) kept.push_back(mark);
        marks_.swap(kept);
    }

    void Clear() { marks_.clear(); }

    /// The first one after a moment.
    [[nodiscard]] std::optional<Mark> After(std::optional<Clock::time_point> moment) const {
        for (const Mark& mark : marks_) {
            if (!moment || mark.moment > *moment) return mark;
        }
        return std::nullopt;
    }

    /// The last one whose position is lower than that of the oldest message there is.
    [[nodiscard]] std::optional<Mark> Before(std::int64_t oldest) const {
        std::optional<Mark> last;
        for (const Mark& mark : marks_) {
            if (mark.position < oldest) last = mark;
        }
        return last;
    }

    [[nodiscard]] std::optional<Clock::time_point> Newest() const {
        if (marks_.empty()) return std::nullopt;
        return marks_.back().moment;
    }

private:
    std::deque<Mark> marks_ = {};
};

/// Looks at the queues of one broker. Thread-safe.
class SettledLook {
public:
    /// Asks the broker, and blocks until it has answered or the asker's own deadline.
    using Ask = std::function<Inquiry::Answer(Question)>;

    explicit SettledLook(Flavor flavor) : flavor_(flavor) {}

    /// Before which moment everything that was on the queue is settled, as far as it is known; looks
    /// where enough time has passed since the last look. `now` is no later than the call.
    std::optional<Clock::time_point> SettledBefore(const std::string& queue, Clock::time_point now,
                                                   const Ask& ask) {
        {
            const std::lock_guard lock{mutex_};
            Watched& watched = watched_[queue];
            if (watched.looking || now < watched.next_look) return watched.settled_before;
            watched.looking = true;
        }
        try {
            Look(queue, now, ask);
        } catch (const std::invalid_argument&) {
            // An answer that cannot be read tells nothing.
        }
        const std::lock_guard lock{mutex_};
        Watched& watched = watched_[queue];
        watched.looking = false;
        const auto end = Clock::now();
        watched.next_look = end + std::max<Clock::duration>(kPause, kRest * (end - now));
        return watched.settled_before;
    }

private:
    struct Watched {
        std::optional<Clock::time_point> settled_before = {};
        Clock::time_point next_look = {};
        bool looking = false;
    };

    using Messages = std::vector<ListedMessage>;

    static constexpr std::chrono::milliseconds kPause{50};
    // How many times the length of a look passes before the next one.
    static constexpr int kRest = 4;
    // How many marks one look tries, each with two browsers.
    static constexpr int kMostTried = 3;
    static constexpr std::chrono::milliseconds kClockStep{1000};
    static constexpr int kDefaultPriority = 4;

    void Look(const std::string& queue, Clock::time_point now, const Ask& ask) {
        if (!AddMark(now, ask)) return;
        flavor_ == Flavor::kArtemis ? LookAtArtemis(queue, ask) : LookAtClassic(queue, ask);
    }

    // The moment comes first, then the position.
    bool AddMark(Clock::time_point now, const Ask& ask) {
        const Inquiry::Answer answer = ask({.kind = Question::Kind::kMark});
        if (answer.failure) return false;
        const std::lock_guard lock{mutex_};
        Enter(answer.connection);
        if (marks_.Newest() < now) {
            marks_.Add({now, answer.position + (flavor_ == Flavor::kClassic ? kClockStep.count() : 0)});
        }
        return true;
    }

    // With mutex_ held. Another connection may lead to another broker.
    void Enter(std::uint64_t connection) {
        if (std::exchange(connection_, connection) != connection) marks_.Clear();
    }

    void LookAtArtemis(const std::string& queue, const Ask& ask) {
        const auto list = [&](const char* operation, Messages& all) {
            const Inquiry::Answer answer =
                ask({.name = "queue." + queue, .kind = Question::Kind::kCall, .operation = operation});
            if (answer.failure || !SameConnection(answer)) return false;
            const Messages listed = ReadMessages(answer.text);
            all.insert(all.end(), listed.begin(), listed.end());
            return true;
        };
        constexpr const char* kDelivered = "listDeliveringMessagesAsJSON";
        constexpr const char* kReady = "getFirstMessageAsJSON";
        Messages first;
        if (!list(kReady, first) || !list(kDelivered, first) || first.empty()) return;
        // The ready ones first: in this order a message hides only by being given back twice. Most
        // looks end here: the rest is asked only where it can bring something.
        if (!SettledUpTo(first)) return;
        Messages all = first;
        if (!list(kReady, all) || !list(kDelivered, all)) return;
        if (const auto mark = SettledUpTo(all)) Note(queue, mark->moment);
    }

    // The newest mark that lies before all of these.
    std::optional<Marks::Mark> SettledUpTo(const Messages& messages) {
        std::int64_t oldest = messages.front().number;
        for (const ListedMessage& message : messages) {
            if (message.priority > kDefaultPriority) return std::nullopt;
            oldest = std::min(oldest, message.number);
        }
        const std::lock_guard lock{mutex_};
        return marks_.Before(oldest);
    }

    void LookAtClassic(const std::string& queue, const Ask& ask) {
        const auto has = [&](const Marks::Mark& mark, const char* which) -> std::optional<bool> {
            const Inquiry::Answer answer =
                ask({.name = queue,
                     .kind = Question::Kind::kBrowse,
                     .operation = std::string{"JMSActiveMQBrokerInTime "} + which + " " +
                                  std::to_string(mark.position)});
            if (answer.failure || !SameConnection(answer)) return std::nullopt;
            return answer.found;
        };
        for (int tried = 0; tried < kMostTried; ++tried) {
            const auto mark = NextMark(queue);
            if (!mark || !has(*mark, ">").value_or(false) || has(*mark, "<=").value_or(true)) return;
            Note(queue, mark->moment);
        }
    }

    // The first one that the queue is not known to have settled.
    std::optional<Marks::Mark> NextMark(const std::string& queue) {
        const std::lock_guard lock{mutex_};
        return marks_.After(watched_[queue].settled_before);
    }

    void Note(const std::string& queue, Clock::time_point moment) {
        const std::lock_guard lock{mutex_};
        auto& settled_before = watched_[queue].settled_before;
        settled_before = std::max(settled_before.value_or(moment), moment);
    }

    bool SameConnection(const Inquiry::Answer& answer) {
        const std::lock_guard lock{mutex_};
        return answer.connection == connection_;
    }

    const Flavor flavor_;
    std::mutex mutex_ = {};  // guards all below; not held while asking
    Marks marks_ = {};
    std::uint64_t connection_ = 0;  // that the marks are of
    std::map<std::string, Watched> watched_ = {};
};

}  // namespace mq::activemq::detail
