/// @file walk.hpp
/// The walk of a topic from the rung where it is to the one that the config asks for. Every step waits
/// for its guard: publishing moves when everybody listens, a side is left when nothing is left there.
/// Beside the steps the walk looks after fences, after failover, and after what was left behind.
#pragma once

#include <mq/detail/backoff.hpp>
#include <mq/migration/fence.hpp>
#include <mq/migration/guards.hpp>
#include <mq/migration/ladder.hpp>
#include <mq/migration/limits.hpp>
#include <mq/migration/listener.hpp>
#include <mq/migration/topic.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dispatcher.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace mq::migration {

/// Of one topic, which outlives it. Belongs to one thread, the walker's: nothing here has a lock.
class Walk {
public:
    explicit Walk(Topic& topic) : topic_(topic) {}
    Walk(const Walk&) = delete;
    Walk& operator=(const Walk&) = delete;

    /// Where the topic was woken, or it is time, walks as far as the guards allow. Says when to be
    /// called again at the latest. Blocks on brokers for a few guard timeouts at most.
    Clock::time_point Advance() noexcept {
        if (!topic_.TakeWake() && Clock::now() < due_) return due_;
        try {
            due_ = Go();
        } catch (const std::exception& error) {
            topic_.Say(error.what());
            due_ = Clock::now() + backoff_.Next();
        }
        return due_;
    }

private:
    using View = Topic::View;
    using Listeners = Topic::Listeners;

    static constexpr std::chrono::milliseconds kFirstLook{10};
    static constexpr std::chrono::milliseconds kLastLook{250};
    static constexpr std::chrono::seconds kLeave{5};
    // What a cycle of fences costs at least, and what subscriptions get to open theirs.
    static constexpr std::chrono::milliseconds kPatience{5000};
    // How many times as long publishing waits for a broker that tells only whether anything is left.
    static constexpr int kUnproved = 10;
    // How long a service takes at the most to follow a changed file.
    static constexpr std::chrono::seconds kFollow{1};
    // How often a side that was left is looked at, at the most.
    static constexpr std::chrono::milliseconds kLookBack{250};
    // How often it is asked who listens on the side that may stand in for the other.
    static constexpr std::chrono::seconds kFailoverCheck{5};
    static constexpr std::chrono::seconds kFailoverRetry{1};

    // The next step and the rung that it leads to.
    struct Goal {
        Step step = {};
        Policy rung = Policy::kOld;
    };

    // What a broker can tell of a group: by which moment everything was settled; whether nothing is
    // left at all; or not even that for certain.
    enum class Proof : unsigned char { kPositions, kEmptiness, kNone };

    Clock::time_point Go() {
        while (true) {
            const View view = topic_.Look();
            if (std::exchange(last_policy_, view.policy) != view.policy) backoff_.Reset();
            if (view.closed) return Clock::time_point::max();
            TakeAgain();
            Clock::time_point tended =
                stopped_.empty() ? Clock::time_point::max() : Clock::now() + kLastLook;
            tended = std::min(tended, TendFences(view));
            tended = std::min(tended, TendFailover(view));
            const std::optional<Goal> goal = NextGoal(view);
            CallOffMove(goal);
            if (!goal) {
                topic_.Say(SubscriptionTrouble(view));
                if (LookBack(view)) continue;
                return std::min(tended, look_back_at_);
            }
            const Verdict verdict = Try(view, *goal);
            if (verdict.passed) {
                Reach(goal->rung);
                continue;
            }
            topic_.Say(verdict.waiting_for);
            return std::min(tended, Clock::now() + backoff_.Next());
        }
    }

    [[nodiscard]] static std::optional<Goal> NextGoal(const View& view) {
        const Policy next = NextRung(view.stage, view.policy);
        if (next != view.stage) return Goal{.step = StepBetween(view.stage, next), .rung = next};
        // A change of mind before the rung was reached leaves a side attached that is not needed.
        for (const Side side : Topic::kSides) {
            if (view.attached[static_cast<std::size_t>(side)] && !Subscribes(view.stage, side)) {
                return Goal{.step = {.leave = side}, .rung = view.stage};
            }
        }
        return std::nullopt;
    }

    // A move of publishing that waits for its confirms is called off where it is no longer wanted.
    void CallOffMove(const std::optional<Goal>& goal) {
        if (!moving_to_ || (goal && goal->step.publish == moving_to_)) return;
        GoOnPublishing();
    }

    Verdict Try(const View& view, const Goal& goal) {
        if (goal.step.subscribe) {
            CompareLimits(*goal.step.subscribe);
            return TrySubscribe(*goal.step.subscribe);
        }
        if (goal.step.publish) return TryPublish(view, *goal.step.publish);
        if (goal.step.leave) return TryLeave(view, *goal.step.leave);
        return Verdict::Pass();
    }

    void Reach(Policy rung) {
        const bool moved = topic_.Reach(rung, leaves_nothing_);
        stage_since_ = Clock::now();
        look_back_at_ = {};
        failover_check_at_ = {};
        not_drained_at_ = {};
        backoff_.Reset();
        if (moved) topic_.Log(LogLevel::kInfo, "reached " + std::string{ToString(rung)});
    }

    // What subscriptions get to open their fences, and what nothing is handled in before a fence opens
    // that may wait for itself. A group may be busy sharing out its partitions meanwhile, which takes
    // seconds.
    static std::chrono::milliseconds Patience(const View& view) {
        return std::max(2 * view.config.quiet, kPatience);
    }

    // Whether publishing goes back to where it came from, here or in other services.
    static bool GoesBack(const View& view, Side side) {
        return view.config.guard && side == Side::kOld;
    }

    // In order, publishing goes back only when all that was sent to the side that it leaves is handled
    // by every group: what goes back then has nothing to wait for. So only the new side has fences, and
    // none waits for one that waits for it. Asked here while sends go on: they are held only when the
    // groups are not so far behind that sends would not be in time (see LeavesNothing).
    Verdict MayGoBack(const View& view, Side left) {
        const auto now = Clock::now();
        if (!asked_since_) asked_since_ = now;
        Verdict handled = HandledBefore(view, left, *asked_since_);
        if (!handled.passed) return GoesBackUnproved(view) ? Verdict::Pass() : handled;
        const auto behind = now - *std::exchange(asked_since_, std::nullopt);
        if (behind < LongestHold()) return handled;
        return Verdict::Wait("the groups to be less far behind on " + topic_.link(left).name());
    }

    // Where nobody can say that everything is handled, the groups get the time that they should need:
    // it is not said which groups there are, their broker does not see what members elsewhere hold, or
    // it tells only whether anything at all is left, and other producers see to that for as long as
    // they go on. Subscriptions keep the order then, as far as they can (see TendFence).
    bool GoesBackUnproved(const View& view) const {
        const bool nobody_knows = view.config.groups.empty() || proof_ == Proof::kNone;
        if (!nobody_knows && proof_ == Proof::kPositions) return false;
        const auto patience = Patience(view) * (nobody_knows ? 1 : kUnproved) + kFollow;
        return Clock::now() - view.policy_since >= patience;
    }

    // How long sends may be held.
    [[nodiscard]] std::chrono::milliseconds LongestHold() const { return topic_.send_timeout() / 2; }

    // Whether every group is known to have settled what this client has sent to a side, and what else
    // was there at that moment.
    Verdict HandledBefore(const View& view, Side side, Clock::time_point moment) {
        if (topic_.outlet(side).Published() == 0) return Verdict::Pass();  // by this client, ever
        runtime::BrokerLink& link = topic_.link(side);
        if (view.config.groups.empty()) {
            return Verdict::Wait("groups that `groups` does not name to handle what is on " +
                                 link.name());
        }
        for (const std::string& group : view.config.groups) {
            if (topic_.closed()) return Verdict::Wait("nothing: the client is closed");
            const Drain drain = CheckDrained(link, *topic_.destination(side), group);
            if (!drain.known || drain.settled_before >= moment) continue;
            if (drain.settled_before) {
                proof_ = Proof::kPositions;
            } else if (drain.left) {
                proof_ = drain.verdict.passed ? Proof::kNone : Proof::kEmptiness;
            }
            if (!drain.verdict.passed) return drain.verdict;
            return Verdict::Wait(GroupInWords(group) + " to settle what it took from " + link.name());
        }
        return Verdict::Pass();
    }

    // Once for each direction: says in what the broker that the topic moves to differs.
    void CompareLimits(Side side) {
        if (std::exchange(compared_[static_cast<std::size_t>(side)], true)) return;
        runtime::BrokerLink& from = topic_.link(Other(side));
        runtime::BrokerLink& to = topic_.link(side);
        const auto ask = [&](runtime::BrokerLink& link, Side its) -> NamedLimits {
            const auto begin = Clock::now();
            if (link.IsSilent(begin)) return {link.name(), link.Get().GetLimits()};
            auto limits = link.Get().AskLimits(*topic_.destination(its), begin + kGuardTimeout);
            NoteUnanswered(link, begin);
            return {link.name(), std::move(limits)};
        };
        for (const std::string& difference : Differences(ask(from, Other(side)), ask(to, side))) {
            topic_.Log(LogLevel::kWarning, "its two brokers differ in " + difference);
        }
    }

    Verdict TrySubscribe(Side side) {
        for (const auto& listener : topic_.Join(side)) {
            if (auto trouble = TroubleOf(*listener, side); !trouble.empty()) {
                return Verdict::Wait(std::move(trouble));
            }
        }
        return Verdict::Pass();
    }

    Verdict TryPublish(const View& view, Side side) {
        runtime::Outlet& before = topic_.outlet(Other(side));
        if (!moving_to_) {
            if (Verdict listens = MayPublish(view, side); !listens.passed) return listens;
            // What the first send there would have to wait for is made now.
            topic_.outlet(side).Warm();
            leaves_nothing_ = false;
            if (view.config.order != Order::kKey) return Verdict::Pass();
            if (GoesBack(view, side)) {
                if (Verdict back = MayGoBack(view, Other(side)); !back.passed) return back;
            }
            HoldPublishing(side);
        }
        // In order: the last message of this side is confirmed before the first of the other is sent.
        if (const auto in_flight = before.InFlight(); in_flight > 0) {
            return Verdict::Wait(before.link().name() + " to confirm " + std::to_string(in_flight) +
                                 " messages before the first goes to " + topic_.link(side).name());
        }
        if (GoesBack(view, side)) {
            if (Verdict back = LeavesNothing(view, Other(side)); !back.passed) return back;
        }
        before.Watch(false);
        moving_to_.reset();
        return Verdict::Pass();
    }

    void HoldPublishing(Side side) {
        moving_to_ = side;
        confirmed_at_.reset();
        backoff_.Reset();
        topic_.outlet(Other(side)).Watch(true);
        topic_.HoldPublishing();
    }

    // Publishing is held, and everything is confirmed: whether all of it is handled as well. Where that
    // takes too long, sends go on where they were, and it is tried again.
    Verdict LeavesNothing(const View& view, Side left) {
        if (!confirmed_at_) confirmed_at_ = Clock::now();
        Verdict handled = HandledBefore(view, left, *confirmed_at_);
        leaves_nothing_ = handled.passed;
        if (handled.passed) return handled;
        if (GoesBackUnproved(view)) {
            topic_.Log(LogLevel::kWarning, "publishing goes back without " + handled.waiting_for +
                                               ": messages of one key may be handled out of order");
            return Verdict::Pass();
        }
        if (Clock::now() - *confirmed_at_ >= LongestHold()) GoOnPublishing();
        return handled;
    }

    void GoOnPublishing() {
        topic_.outlet(Other(*moving_to_)).Watch(false);
        moving_to_.reset();
        topic_.GoOnPublishing();
    }

    Verdict MayPublish(const View& view, Side side) {
        if (view.config.guard) {
            return CheckEverybodyListens(topic_.link(side), *topic_.destination(side),
                                         view.config.groups);
        }
        topic_.Log(LogLevel::kWarning, "guard is off: publishing moves to " + topic_.link(side).name() +
                                           " without asking who listens there");
        return Verdict::Pass();
    }

    Verdict TryLeave(const View& view, Side side) {
        const runtime::Outlet& outlet = topic_.outlet(side);
        if (const auto in_flight = outlet.InFlight(); in_flight > 0) {
            return Verdict::Wait(outlet.link().name() + " to confirm " + std::to_string(in_flight) +
                                 " messages");
        }
        for (const auto& [listener, stopped] : stopped_) {
            if (stopped == side) return HandlersAtWork(*listener, side);
        }
        if (!view.config.guard) {
            topic_.Log(LogLevel::kWarning, "guard is off: leaving " + outlet.link().name() +
                                               " without asking what is left there");
        } else if (!view.listeners.empty()) {
            if (Verdict drained = Drained(view.listeners, side); !drained.passed) {
                not_drained_at_[static_cast<std::size_t>(side)] = Clock::now();
                return drained;
            }
            if (Verdict quiet = Quiet(view, side); !quiet.passed) return quiet;
        }
        return Leave(view, side);
    }

    Verdict Drained(const Listeners& listeners, Side side) {
        std::set<std::string> asked;
        for (const auto& listener : listeners) {
            if (!asked.insert(listener->group()).second) continue;
            if (topic_.closed()) return Verdict::Wait("nothing: the client is closed");
            const Drain drain = AskDrained(side, listener->group());
            if (!drain.verdict.passed) return drain.verdict;
        }
        return Verdict::Pass();
    }

    Drain AskDrained(Side side, const std::string& group) {
        Drain drain = CheckDrained(topic_.link(side), *topic_.destination(side), group);
        topic_.SetBacklog(side, drain.left);
        return drain;
    }

    // Producers that have not moved yet show by their messages: a side is left only after none has come
    // for a while.
    Verdict Quiet(const View& view, Side side) {
        Clock::time_point last =
            std::max(stage_since_, not_drained_at_[static_cast<std::size_t>(side)]);
        for (const auto& listener : view.listeners) {
            last = std::max(last, listener->dispatcher().Counts(side).last_arrival);
        }
        const auto so_far = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - last);
        if (so_far >= view.config.quiet) return Verdict::Pass();
        return Verdict::Wait("no arrival on " + topic_.link(side).name() + " for " +
                             InWords(view.config.quiet) + " (" + InWords(so_far) + " so far)");
    }

    // Takes nothing more from the side, and looks once again: what came between the last look and the
    // stop must not be left behind.
    Verdict Leave(const View& view, Side side) {
        const auto deadline = Clock::now() + kLeave;
        for (const auto& listener : view.listeners) listener->StopTaking(side);
        Verdict left = Verdict::Pass();
        for (const auto& listener : view.listeners) {
            // Whoever closes the client waits for this step.
            const auto patience = topic_.closed() ? std::chrono::seconds{0} : kGuardTimeout;
            const bool settled = listener->dispatcher().WaitSettled(side, Clock::now() + patience);
            if (!settled && view.config.guard) left = HandlersAtWork(*listener, side);
        }
        if (left.passed && view.config.guard) left = Drained(view.listeners, side);
        if (!left.passed) {
            not_drained_at_[static_cast<std::size_t>(side)] = Clock::now();
            for (const auto& listener : view.listeners) stopped_.emplace_back(listener, side);
            TakeAgain();
            return left;
        }
        for (const auto& listener : topic_.Leave(side)) listener->Detach(side, deadline);
        return Verdict::Pass();
    }

    // Takes once more from a side that could not be left after all: each subscription as soon as it has
    // settled what it had, so that nothing is given back while its handler runs, and handled twice.
    void TakeAgain() {
        for (auto entry = stopped_.begin(); entry != stopped_.end();) {
            const auto& [listener, side] = *entry;
            if (!listener->closing()) {
                if (listener->dispatcher().Counts(side).outstanding > 0) {
                    ++entry;
                    continue;
                }
                listener->Detach(side, Clock::now() + kLeave);
                topic_.JoinAgain(*listener, side);
            }
            entry = stopped_.erase(entry);
        }
    }

    Verdict HandlersAtWork(const Listener& listener, Side side) {
        return Verdict::Wait("handlers of " + GroupInWords(listener.group()) +
                             " to settle what came from " + topic_.link(side).name());
    }

    // What is left on a side that nobody subscribes to is stranded: the message of a producer that
    // never moved, or what a member gave back when it died. A client at rest looks there once in a
    // while. Where it finds something for a group that has been there, it subscribes again, drains and
    // leaves again: true then. A broker that does not answer is left in peace: the rung does not need
    // it.
    bool LookBack(const View& view) {
        constexpr auto kNever = Clock::time_point::max();
        const bool one_attached = view.attached[0] != view.attached[1];
        if (!view.migrates || !one_attached || view.listeners.empty() || !view.config.guard) {
            look_back_at_ = kNever;
            return false;
        }
        const auto now = Clock::now();
        if (look_back_at_ == Clock::time_point{} || look_back_at_ == kNever) {
            look_back_at_ = now + LookBackEvery(view);
        }
        if (now < look_back_at_) return false;
        look_back_at_ = now + LookBackEvery(view);
        const Side left = view.attached[0] ? Side::kNew : Side::kOld;
        for (const auto& listener : view.listeners) {
            const Drain drain =
                CheckDrained(topic_.link(left), *topic_.destination(left), listener->group());
            if (drain.left.value_or(0) == 0 || !drain.known) continue;
            Rejoin(left, listener->group(), *drain.left);
            return true;
        }
        return false;
    }

    static std::chrono::milliseconds LookBackEvery(const View& view) {
        return std::max<std::chrono::milliseconds>(view.config.quiet, kLookBack);
    }

    // Subscribes once more to a side that the rung does not need. What is left there is older than what
    // comes now.
    void Rejoin(Side side, const std::string& group, std::uint64_t left) {
        topic_.Log(LogLevel::kWarning, "subscribes to " + topic_.link(side).name() + " again, where " +
                                           std::to_string(left) + " messages of " +
                                           GroupInWords(group) +
                                           " are left: a producer has not moved, or a member has died");
        TrySubscribe(side);
    }

    // Opens fences once everything that was sent before has been handled.
    Clock::time_point TendFences(const View& view) {
        Clock::time_point again = Clock::time_point::max();
        std::erase_if(fences_, [](const auto& entry) { return entry.first.first->closed(); });
        for (const auto& listener : view.listeners) {
            for (const Side side : Topic::kSides) {
                if (const auto noticed = listener->FenceOn(side)) {
                    again = std::min(again, TendFence(view, listener, side, *noticed));
                } else {
                    fences_.erase({listener, side});
                }
            }
        }
        if (again == Clock::time_point::max()) fence_backoff_.Reset();
        return again;
    }

    Clock::time_point TendFence(const View& view, const std::shared_ptr<Listener>& listener, Side side,
                                std::uint64_t noticed) {
        const Side other = Other(side);
        runtime::Dispatcher& dispatcher = listener->dispatcher();
        const std::uint64_t mark = dispatcher.Mark(side);
        const auto begin = Clock::now();  // behind the mark: what was sent before it is there by now
        const FencePosition here{.noticed = noticed, .mark = mark, .since = begin};
        const auto entry = fences_.try_emplace({listener, side}, here).first;
        const auto open = [&](const FencePosition& position) {
            if (!listener->Open(side, position.noticed)) dispatcher.Release(side, position.mark);
            fences_.erase(entry);
            return begin;
        };
        const bool subscribed = view.attached[static_cast<std::size_t>(other)];
        if (!subscribed && !view.config.guard) return open(here);
        const Drain drain = subscribed ? AskDrained(other, listener->group())
                                       : CheckDrained(topic_.link(other), *topic_.destination(other),
                                                      listener->group());
        const auto now = Clock::now();
        const FenceDecision decision =
            entry->second.Decide({.here = here,
                                  .now = now,
                                  .side = side,
                                  .subscribed = subscribed,
                                  .asked_long = asked_for_older_,
                                  .drain = drain,
                                  .there = dispatcher.Counts(other),
                                  .waits_for_newer = WaitsForNewer(*listener, side, drain),
                                  .quiet = view.config.quiet,
                                  .patience = Patience(view)});
        switch (decision.kind) {
            case FenceDecision::Kind::kWait:
                return std::min(now + fence_backoff_.Next(), decision.again);
            case FenceDecision::Kind::kRejoin:
                Rejoin(other, listener->group(), *drain.left);
                return now;
            case FenceDecision::Kind::kOpen: break;
            case FenceDecision::Kind::kOpenUnasked:
                asked_for_older_ = true;
                topic_.Log(LogLevel::kWarning,
                           "goes on without having asked for older messages: waited for " +
                               drain.verdict.waiting_for);
                break;
            case FenceDecision::Kind::kOpenUnproved:
                topic_.Log(LogLevel::kWarning, "lets go of what came from " + topic_.link(side).name() +
                                                   " without " + drain.verdict.waiting_for +
                                                   ": messages of one key may be handled out of order");
                break;
        }
        return open(decision.position);
    }

    // Whether all that is left on the other side is held here, behind a fence of its own that waits for
    // this one, and producers that were seen on both sides show that it came later.
    bool WaitsForNewer(const Listener& listener, Side side, const Drain& drain) const {
        const Side other = Other(side);
        if (!drain.left || !listener.FenceOn(other)) return false;
        const runtime::Intake there = listener.dispatcher().Counts(other);
        if (*drain.left > there.held || there.outstanding > there.held) return false;
        const auto went_to = topic_.producers().WentTo();
        return went_to[static_cast<std::size_t>(other)] && !went_to[static_cast<std::size_t>(side)];
    }

    // While the topic is on both sides, either may stand in for the other, provided that everybody who
    // is to get what is sent there listens there.
    Clock::time_point TendFailover(const View& view) {
        const bool both = Subscribes(view.stage, Side::kOld) && Subscribes(view.stage, Side::kNew);
        if (!view.config.failover || !view.migrates || !both || moving_to_) {
            topic_.SetFailover(false);
            return Clock::time_point::max();
        }
        if (Clock::now() < failover_check_at_) return failover_check_at_;
        const Side other = Other(PublishSide(view.stage));
        const bool ready =
            !view.config.guard ||
            CheckEverybodyListens(topic_.link(other), *topic_.destination(other), view.config.groups)
                .passed;
        if (ready) topic_.outlet(other).Warm();
        topic_.SetFailover(ready);
        failover_check_at_ = Clock::now() + (ready ? kFailoverCheck : kFailoverRetry);
        return failover_check_at_;
    }

    [[nodiscard]] std::string SubscriptionTrouble(const View& view) const {
        for (const auto& listener : view.listeners) {
            for (const Side side : Topic::kSides) {
                if (auto trouble = TroubleOf(*listener, side); !trouble.empty()) return trouble;
            }
        }
        return {};
    }

    [[nodiscard]] std::string TroubleOf(const Listener& listener, Side side) const {
        const auto state = listener.State(side);
        if (!state || state->phase == backend::ConsumerState::Phase::kActive) return {};
        std::string text =
            "the subscription of " + GroupInWords(listener.group()) + " on " + topic_.link(side).name();
        if (state->error != nullptr) text += std::string{": "} + state->error->what();
        return text;
    }

    Topic& topic_;
    Clock::time_point due_ = Clock::time_point::min();
    std::optional<Policy> last_policy_;
    bool leaves_nothing_ = false;    // the move of publishing that is under way
    std::optional<Side> moving_to_;  // publishing is held until the other side has confirmed
    std::optional<Clock::time_point> asked_since_;   // whether all that was sent is handled
    Proof proof_ = Proof::kPositions;                // of the broker that was asked last
    std::optional<Clock::time_point> confirmed_at_;  // all that was sent, since publishing is held
    // Subscriptions that take nothing from a side any more, and have not left it.
    std::vector<std::pair<std::shared_ptr<Listener>, Side>> stopped_;
    std::array<bool, 2> compared_{};  // the limits, on the way to that side
    Clock::time_point stage_since_ = Clock::now();
    std::array<Clock::time_point, 2> not_drained_at_{};
    Clock::time_point failover_check_at_{};
    Clock::time_point look_back_at_{};  // none: it is yet to be seen whether there is a need
    std::map<std::pair<std::shared_ptr<Listener>, Side>, FenceWatch> fences_;  // those that are up
    bool asked_for_older_ = false;  // a broker that no rung needs has had the time to be connected
    detail::Backoff backoff_{kFirstLook, kLastLook};
    detail::Backoff fence_backoff_{std::chrono::milliseconds{2}, std::chrono::milliseconds{50}};
};

}  // namespace mq::migration
