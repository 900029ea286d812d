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
#include <mq/migration/standstill.hpp>
#include <mq/migration/topic.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dispatcher.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
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
            topic_.Say(error.what(), WaitingCode::kProblem);
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
    // How often in one hold handlers may send on behind what is handled, and how long sends then go on
    // before they are held again.
    static constexpr int kRounds = 3;
    static constexpr std::chrono::seconds kHoldAgain{1};
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

    // A move of publishing: sends are held until all is confirmed on the side that it leaves, and on
    // the way back handled as well. Those of handlers pass on the way back, unless it is closed.
    struct Move {
        Side to = Side::kOld;
        Clock::time_point since = {};
        std::uint64_t sent = 0;   // ever, at the last look; also what gives up in the middle
        std::uint64_t ended = 0;  // of these
        int rounds = 0;           // looks by which more had been sent
        std::optional<Clock::time_point> confirmed_at = {};  // all that had ended
        std::string unproved = {};  // why it goes on though not all is handled; empty: it does not
    };

    // A fence that is up, and what it waits for.
    struct Fence {
        explicit Fence(const FencePosition& raised) : watch(raised) {}
        FenceWatch watch;
        Verdict waits_for = {};
    };

    // What a fence that has become narrow still waits for.
    struct Narrow {
        std::uint64_t mark = 0;  // of what it holds
        std::vector<runtime::Followed> behind = {};
        Clock::time_point since = {};
    };

    // What a fence holds, and what for.
    struct Holding {
        Side side = Side::kOld;
        std::string group = {};
        std::string what = {};  // tells it from others
        std::string text = {};
        std::string progress = {};
        bool due = true;  // it waits for something that should go on
    };

    using Key = std::pair<std::shared_ptr<Listener>, Side>;

    Clock::time_point Go() {
        while (true) {
            const View view = topic_.Look();
            if (std::exchange(last_policy_, view.policy) != view.policy) backoff_.Reset();
            if (view.closed) return Clock::time_point::max();
            WarnOfUnnamed(view);
            TakeAgain();
            Clock::time_point tended =
                stopped_.empty() ? Clock::time_point::max() : Clock::now() + kLastLook;
            tended = std::min(tended, TendFences(view));
            tended = std::min(tended, TendFailover(view));
            const std::optional<Goal> goal = NextGoal(view);
            CallOffMove(goal);
            if (!goal) {
                if (LookBack(view)) continue;
                return std::min({tended, look_back_at_, Conclude(view, SubscriptionTrouble(view))});
            }
            const Verdict verdict = Try(view, *goal);
            if (verdict.passed) {
                Reach(goal->rung);
                continue;
            }
            const auto again = Clock::now() + backoff_.Next();
            return std::min({tended, again, Conclude(view, verdict)});
        }
    }

    // Says what the rung waits for, and every fence that holds something, and looks after what stands
    // still. When to look again.
    Clock::time_point Conclude(const View& view, const Verdict& rung) {
        const auto look = TendStandstills(view, rung);
        std::string text = rung.waiting_for;
        WaitingCode code = rung.code;
        for (const auto& [key, holding] : holdings_) {
            if (text.empty()) code = WaitingCode::kFence;
            text += (text.empty() ? "" : "; ") + holding.text;
        }
        const auto standing = standstills_.Standing();
        if (text.empty() && !standing.empty()) {
            code = WaitingCode::kStandstill;
            text = standing.front().text;
        }
        topic_.Say(std::move(text), code);
        return look;
    }

    // Producers that go back ask for the groups that the config names, and cannot know of others. Said
    // once a group.
    void WarnOfUnnamed(const View& view) {
        if (view.config.order != Order::kKey || !view.migrates || !view.config.guard) return;
        const auto& groups = view.config.groups;
        for (const auto& listener : view.listeners) {
            const std::string& group = listener->group();
            if (std::find(groups.begin(), groups.end(), group) != groups.end()) continue;
            if (!warned_of_.insert(group).second) continue;
            topic_.Log(LogLevel::kWarning,
                       GroupInWords(group) +
                           " is not named in `groups`: on the way back, producers do not wait until it "
                           "has handled what they sent, and it may get messages of one key out of "
                           "order; name it in the config of every service");
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
        if (!move_ || (goal && goal->step.publish == move_->to)) return;
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
        return Verdict::Wait(WaitingCode::kHandled,
                             "the groups to be less far behind on " + topic_.link(left).name());
    }

    // Where nobody can say that everything is handled, the groups get the time that they should need:
    // it is not said which groups there are, their broker does not see what members elsewhere hold, or
    // it tells only whether anything at all is left, and other producers see to that for as long as
    // they go on. Subscriptions keep the order then, as far as they can (see TendFence).
    bool GoesBackUnproved(const View& view) const {
        if (proof_ == Proof::kPositions) return false;
        return WantedFor(Patience(view) * (proof_ == Proof::kNone ? 1 : kUnproved) + kFollow, view);
    }

    static bool WantedFor(std::chrono::milliseconds time, const View& view) {
        return Clock::now() - view.policy_since >= time;
    }

    // How long sends may be held.
    [[nodiscard]] std::chrono::milliseconds LongestHold() const { return topic_.send_timeout() / 2; }

    // Whether every group is known to have settled what this client has sent to a side, and what else
    // was there at that moment: those that the config names, and those of subscriptions here.
    Verdict HandledBefore(const View& view, Side side, Clock::time_point moment) {
        proof_ = Proof::kPositions;
        if (topic_.outlet(side).Published() == 0) return Verdict::Pass();  // by this client, ever
        runtime::BrokerLink& link = topic_.link(side);
        std::set<std::string> groups{view.config.groups.begin(), view.config.groups.end()};
        for (const auto& listener : view.listeners) groups.insert(listener->group());
        for (const std::string& group : groups) {
            if (topic_.closed()) return Closed();
            const Drain drain = Ask(side, group);
            if (!drain.known || drain.settled_before >= moment) continue;
            if (!drain.settled_before && drain.left) {
                proof_ = drain.verdict.passed ? Proof::kNone : Proof::kEmptiness;
            }
            if (drain.verdict.passed) {
                return Verdict::Wait(
                    WaitingCode::kHandled,
                    GroupInWords(group) + " to settle what it took from " + link.name());
            }
            Verdict left = drain.verdict;
            if (left.code == WaitingCode::kBacklog) left.code = WaitingCode::kHandled;
            return left;
        }
        if (!view.config.groups.empty()) return Verdict::Pass();
        proof_ = Proof::kNone;
        return Verdict::Wait(WaitingCode::kHandled,
                             "groups that `groups` does not name to handle what is on " + link.name());
    }

    static Verdict Closed() {
        return Verdict::Wait(WaitingCode::kNothing, "nothing: the client is closed");
    }

    // Once for each direction: says in what the broker that the topic moves to differs.
    void CompareLimits(Side side) {
        if (std::exchange(compared_[static_cast<std::size_t>(side)], true)) return;
        runtime::BrokerLink& from = topic_.link(Other(side));
        runtime::BrokerLink& to = topic_.link(side);
        const auto ask = [&](runtime::BrokerLink& link, Side its) -> NamedLimits {
            const auto begin = Clock::now();
            if (link.IsSilent(begin)) return {link.name(), link.Get().GetLimits()};
            const auto limits = link.Get().AskLimits(*topic_.destination(its), begin + kGuardTimeout);
            NoteUnanswered(link, begin);
            return {link.name(), limits};
        };
        for (const std::string& difference : Differences(ask(from, Other(side)), ask(to, side))) {
            topic_.Log(LogLevel::kWarning, "its two brokers differ in " + difference);
        }
    }

    Verdict TrySubscribe(Side side) {
        for (const auto& listener : topic_.Join(side)) {
            if (auto trouble = TroubleOf(*listener, side); !trouble.empty()) {
                return Verdict::Wait(WaitingCode::kSubscription, std::move(trouble));
            }
        }
        return Verdict::Pass();
    }

    Verdict TryPublish(const View& view, Side side) {
        runtime::Outlet& before = topic_.outlet(Other(side));
        if (!move_) {
            if (Clock::now() < hold_again_at_) return SendOn(before);
            if (Verdict listens = MayPublish(view, side); !listens.passed) return listens;
            // What the first send there would have to wait for is made now.
            topic_.outlet(side).Warm();
            leaves_nothing_ = false;
            if (view.config.order != Order::kKey) return Verdict::Pass();
            if (GoesBack(view, side)) {
                if (Verdict back = MayGoBack(view, Other(side)); !back.passed) return back;
            }
            HoldPublishing(side, GoesBack(view, side));
        }
        if (Verdict left = LeavesNothing(view, before); !left.passed) return left;
        before.Watch(false);
        move_.reset();
        return Verdict::Pass();
    }

    void HoldPublishing(Side side, bool back) {
        runtime::Outlet& before = topic_.outlet(Other(side));
        before.Watch(true);
        topic_.HoldPublishing(back);
        move_ = {.to = side, .since = Clock::now(), .sent = before.Published()};
        backoff_.Reset();
    }

    // In order, the last message of a side is confirmed before the first of the other one is sent; and
    // what goes back leaves nothing unhandled behind. Where that takes too long, sends go on where they
    // were, and it is tried again.
    Verdict LeavesNothing(const View& view, runtime::Outlet& before) {
        if (!GoesBack(view, move_->to)) return AllConfirmed(before);
        // Sends of handlers pass, and begin it anew: with each that has ended since the last look.
        // Those are counted before it is seen that nothing is in flight, so that none is missed.
        const std::uint64_t sent = before.Published();
        if (std::exchange(move_->sent, sent) < sent) ++move_->rounds;
        const std::uint64_t ended = before.Finished();
        if (std::exchange(move_->ended, ended) != ended) move_->confirmed_at.reset();
        Verdict waits = AllConfirmed(before);
        if (waits.passed) {
            if (!move_->unproved.empty()) return GoesUnproved();
            if (!move_->confirmed_at) move_->confirmed_at = Clock::now();
            waits = HandledBefore(view, Other(move_->to), *move_->confirmed_at);
            if (waits.passed && ClosesBehind(before, ended)) {
                leaves_nothing_ = true;
                return waits;
            }
            if (waits.passed) {
                waits = SendOn(before);
            } else if (GoesBackUnproved(view)) {
                return GoUnproved(before, waits.waiting_for);
            }
        }
        if (!move_->unproved.empty()) return waits;
        if (move_->rounds >= kRounds) {
            // Handlers go on sending because of what they handle: it never ends, and they are what the
            // messages follow. Fences on the other side keep the order.
            if (WantedFor(Patience(view) + kFollow, view)) {
                return GoUnproved(before, "waiting for handlers that send on");
            }
            hold_again_at_ = Clock::now() + kHoldAgain;
            GoOnPublishing();
            return SendOn(before);
        }
        if (Clock::now() - move_->since >= LongestHold()) GoOnPublishing();
        return waits;
    }

    Verdict AllConfirmed(const runtime::Outlet& before) {
        const auto in_flight = before.InFlight();
        if (in_flight == 0) return Verdict::Pass();
        return Verdict::Wait(WaitingCode::kConfirms,
                             before.link().name() + " to confirm " + std::to_string(in_flight) +
                                 " messages before the first goes to " + topic_.link(move_->to).name());
    }

    static Verdict SendOn(const runtime::Outlet& before) {
        return Verdict::Wait(
            WaitingCode::kHandled,
            "handlers that send on when they handle what is on " + before.link().name());
    }

    // Lets no send pass any more. False where one has passed since `ended` had: they pass again.
    bool ClosesBehind(const runtime::Outlet& before, std::uint64_t ended) {
        topic_.HoldPublishing(false);
        if (before.InFlight() == 0 && before.Finished() == ended) return true;
        topic_.HoldPublishing(true);
        return false;
    }

    // Publishing moves as soon as what has passed is confirmed; nothing passes any more.
    Verdict GoUnproved(const runtime::Outlet& before, std::string what) {
        move_->unproved = std::move(what);
        topic_.HoldPublishing(false);
        Verdict confirmed = AllConfirmed(before);
        return confirmed.passed ? GoesUnproved() : confirmed;
    }

    Verdict GoesUnproved() {
        topic_.Log(LogLevel::kWarning, "publishing goes back without " + move_->unproved +
                                           ": messages of one key may be handled out of order");
        return Verdict::Pass();
    }

    void GoOnPublishing() {
        topic_.outlet(Other(move_->to)).Watch(false);
        move_.reset();
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
            return Verdict::Wait(WaitingCode::kConfirms, outlet.link().name() + " to confirm " +
                                                             std::to_string(in_flight) + " messages");
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
            if (topic_.closed()) return Closed();
            const Drain drain = AskDrained(side, listener->group());
            if (!drain.verdict.passed) return drain.verdict;
        }
        return Verdict::Pass();
    }

    Drain AskDrained(Side side, const std::string& group) {
        Drain drain = Ask(side, group);
        topic_.SetBacklog(side, drain.left);
        return drain;
    }

    // What is left for the group. One that has been there with this client is known, whatever its
    // broker has forgotten.
    Drain Ask(Side side, const std::string& group) {
        Drain drain = CheckDrained(topic_.link(side), *topic_.destination(side), group);
        const bool answered = drain.verdict.passed || drain.left || drain.settled_before;
        answers_[static_cast<std::size_t>(side)].Note(answered, Clock::now());
        drain.known = drain.known || topic_.HasBeenOn(side, group);
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
        return Verdict::Wait(WaitingCode::kQuiet, "no arrival on " + topic_.link(side).name() +
                                                      " for " + InWords(view.config.quiet) + " (" +
                                                      InWords(so_far) + " so far)");
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
        return Verdict::Wait(WaitingCode::kHandlers, "handlers of " + GroupInWords(listener.group()) +
                                                         " to settle what came from " +
                                                         topic_.link(side).name());
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
            const Drain drain = Ask(left, listener->group());
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
        const auto gone = [](const auto& entry) { return entry.first.first->closed(); };
        std::erase_if(fences_, gone);
        std::erase_if(narrow_, gone);
        holdings_.clear();
        for (const auto& listener : view.listeners) {
            for (const Side side : Topic::kSides) {
                TendNarrow(listener, side);
                if (const auto noticed = listener->FenceOn(side)) {
                    again = std::min(again, TendFence(view, listener, side, *noticed));
                } else {
                    fences_.erase({listener, side});
                }
                NoteHeld(view, listener, side);
            }
        }
        if (again == Clock::time_point::max()) fence_backoff_.Reset();
        return again;
    }

    Clock::time_point TendFence(const View& view, const std::shared_ptr<Listener>& listener, Side side,
                                std::uint64_t noticed) {
        const Side other = Other(side);
        runtime::Dispatcher& dispatcher = listener->dispatcher();
        const FencePosition here = FencePosition::Take(noticed, [&] { return dispatcher.Mark(side); });
        const auto entry = fences_.try_emplace({listener, side}, here).first;
        const bool subscribed = view.attached[static_cast<std::size_t>(other)];
        if (!subscribed && !view.config.guard) return OpenFence(listener, side, here, here);
        const auto in_hand = InHand(view, listener->group(), other);
        const runtime::Intake before = dispatcher.Counts(other);
        const Drain drain =
            subscribed ? AskDrained(other, listener->group()) : Ask(other, listener->group());
        const auto followed = Follow(in_hand, other, drain);
        const auto now = Clock::now();
        const FenceDecision decision = entry->second.watch.Decide(
            {.here = here,
             .now = now,
             .side = side,
             .subscribed = subscribed,
             .unanswered = answers_[static_cast<std::size_t>(other)].Unanswered(now),
             .drain = drain,
             .there = dispatcher.Counts(other),
             .in_hand = followed.size(),
             .waits_for_newer = WaitsForNewer(*listener, side, drain, before),
             .quiet = view.config.quiet,
             .patience = Patience(view)});
        entry->second.waits_for = drain.verdict;
        switch (decision.kind) {
            case FenceDecision::Kind::kWait:
                return std::min(now + fence_backoff_.Next(), decision.again);
            case FenceDecision::Kind::kRejoin:
                Rejoin(other, listener->group(), *drain.left);
                return now;
            case FenceDecision::Kind::kOpen: break;
            case FenceDecision::Kind::kNarrow:
                return NarrowFence(listener, side, decision.position, followed);
            case FenceDecision::Kind::kOpenUnasked:
                topic_.Log(LogLevel::kWarning,
                           "goes on without having asked for older messages: waited " +
                               InWords(backend::kStandstill) + " for " + drain.verdict.waiting_for);
                break;
            case FenceDecision::Kind::kOpenUnproved:
                topic_.Log(LogLevel::kWarning, "lets go of what came from " + topic_.link(side).name() +
                                                   " without " + drain.verdict.waiting_for +
                                                   ": messages of one key may be handled out of order");
                break;
        }
        return OpenFence(listener, side, here, decision.position);
    }

    // Lets go of what had arrived by `position`, and of all where nobody has come over since.
    Clock::time_point OpenFence(const std::shared_ptr<Listener>& listener, Side side,
                                const FencePosition& here, const FencePosition& position) {
        listener->Narrow(side, position.noticed, position.mark, {});
        narrow_.erase({listener, side});
        fences_.erase({listener, side});
        return here.since;
    }

    // The same but for the keys of what is in hand, which wait for just that.
    Clock::time_point NarrowFence(const std::shared_ptr<Listener>& listener, Side side,
                                  const FencePosition& position,
                                  const std::vector<runtime::Followed>& behind) {
        const Narrow narrow{.mark = position.mark, .behind = behind, .since = SinceOf(listener, side)};
        narrow_.insert_or_assign({listener, side}, narrow);
        listener->Narrow(side, position.noticed, position.mark, KeysOf(behind));
        fences_.erase({listener, side});
        return position.since;
    }

    // Lets go of the keys whose last message in hand is settled. One that was given back may come to
    // another member: all wait again, for an answer of the broker's.
    void TendNarrow(const std::shared_ptr<Listener>& listener, Side side) {
        const auto entry = narrow_.find({listener, side});
        if (entry == narrow_.end()) return;
        if (listener->dispatcher().KeysHeld(side) == 0) {  // fences are off, or nothing has a key
            narrow_.erase(entry);
            return;
        }
        auto& [mark, behind, since] = entry->second;
        const auto before = behind.size();
        bool given_back = false;
        std::erase_if(behind, [&](const runtime::Followed& each) {
            const runtime::Fate fate = each.fate->load();
            given_back = given_back || fate == runtime::Fate::kGivenBack;
            return fate == runtime::Fate::kSettled;
        });
        if (given_back) {
            narrow_.erase(entry);
            return listener->Raise(side);
        }
        if (behind.size() == before) return;
        listener->Keep(side, mark, KeysOf(behind));
        if (behind.empty()) narrow_.erase(entry);
    }

    static std::set<std::string> KeysOf(const std::vector<runtime::Followed>& followed) {
        std::set<std::string> keys;
        for (const runtime::Followed& each : followed) {
            if (!each.key.empty()) keys.insert(each.key);
        }
        return keys;
    }

    // What this client has in hand of a group from a side: with each subscription of the group.
    using Hands = std::vector<std::pair<std::shared_ptr<Listener>, std::vector<std::uint64_t>>>;

    static Hands InHand(const View& view, const std::string& group, Side side) {
        Hands hands;
        for (const auto& listener : view.listeners) {
            if (listener->group() != group) continue;
            hands.emplace_back(listener, listener->dispatcher().InHand(side));
        }
        return hands;
    }

    // What of it still is, where that may be all that is left.
    static std::vector<runtime::Followed> Follow(const Hands& hands, Side side, const Drain& drain) {
        std::vector<runtime::Followed> followed;
        std::size_t count = 0;
        for (const auto& [listener, arrivals] : hands) count += arrivals.size();
        if (!drain.complete || count == 0 || drain.left.value_or(0) > count) return followed;
        for (const auto& [listener, arrivals] : hands) {
            for (auto& each : listener->dispatcher().Follow(side, arrivals)) {
                followed.push_back(std::move(each));
            }
        }
        return followed;
    }

    Clock::time_point SinceOf(const std::shared_ptr<Listener>& listener, Side side) const {
        const auto fence = fences_.find({listener, side});
        return fence != fences_.end() ? fence->second.watch.since() : Clock::now();
    }

    // Notes what is held of a subscription, for the status.
    void NoteHeld(const View& view, const std::shared_ptr<Listener>& listener, Side side) {
        const runtime::Intake here = listener->dispatcher().Counts(side);
        const auto fence = fences_.find({listener, side});
        const auto narrow = narrow_.find({listener, side});
        if (here.held == 0 || (fence == fences_.end() && narrow == narrow_.end())) return;
        const std::string& there = topic_.link(Other(side)).name();
        Holding holding{.side = side,
                        .group = listener->group(),
                        .what = "fence " + NameOf(*listener, side),
                        .text = std::to_string(here.held) + " messages of " +
                                GroupInWords(listener->group()) + " from " + topic_.link(side).name() +
                                " are held"};
        std::uint64_t handled = 0;
        for (const auto& each : view.listeners) {
            if (each->group() != listener->group()) continue;
            handled += each->dispatcher().Counts(Other(side)).processed;
        }
        holding.progress = std::to_string(handled);
        if (fence != fences_.end()) {
            const auto& [watch, waits_for] = fence->second;
            const bool quiet = waits_for.passed;
            holding.text +=
                " since " + TimeOfDay(watch.since()) + " for older ones on " + there + ": waits for " +
                (quiet ? "no arrival there for " + InWords(view.config.quiet) : waits_for.waiting_for);
            holding.progress += ' ' + std::to_string(watch.progress());
            holding.due = !quiet;
        } else {
            holding.text += " since " + TimeOfDay(narrow->second.since) + " for " +
                            std::to_string(narrow->second.behind.size()) + " of their keys from " +
                            there + " that are with handlers here";
        }
        holdings_.insert_or_assign({listener, side}, std::move(holding));
    }

    // Tells a subscription on one side from others.
    [[nodiscard]] std::string NameOf(const Listener& listener, Side side) const {
        return GroupInWords(listener.group()) + ' ' + std::string{ToString(side)} + ' ' +
               std::to_string(reinterpret_cast<std::uintptr_t>(&listener));
    }

    // "06:50:23 UTC"
    static std::string TimeOfDay(Clock::time_point moment) {
        using std::chrono::system_clock;
        const auto ago = std::chrono::duration_cast<system_clock::duration>(Clock::now() - moment);
        const std::time_t time = system_clock::to_time_t(system_clock::now() - ago);
        std::tm parts{};
        gmtime_r(&time, &parts);
        std::array<char, 16> text{};
        const auto length = std::strftime(text.data(), text.size(), "%H:%M:%S UTC", &parts);
        return {text.data(), length};
    }

    // Whether all that is left on the other side is held here, behind a fence of its own that waits for
    // this one, and producers that were seen on both sides show that it came later. It was held from
    // before the question, and still is: what came meanwhile must not stand in for an older message
    // that another member has.
    bool WaitsForNewer(const Listener& listener, Side side, const Drain& drain,
                       const runtime::Intake& before) const {
        const Side other = Other(side);
        if (!drain.left || !listener.FenceOn(other)) return false;
        const runtime::Intake there = listener.dispatcher().Counts(other);
        const bool kept = there.held - before.held == there.received - before.received;
        if (!kept || *drain.left > before.held || there.outstanding > there.held) return false;
        const auto went_to = topic_.producers().WentTo();
        return went_to[static_cast<std::size_t>(other)] && !went_to[static_cast<std::size_t>(side)];
    }

    // While the topic is on both sides, either may stand in for the other, provided that everybody who
    // is to get what is sent there listens there.
    Clock::time_point TendFailover(const View& view) {
        const bool both = Subscribes(view.stage, Side::kOld) && Subscribes(view.stage, Side::kNew);
        if (!view.config.failover || !view.migrates || !both || move_) {
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

    // ---- what stands still: standstill.hpp defines it

    // When to look again.
    Clock::time_point TendStandstills(const View& view, const Verdict& rung) {
        const auto now = Clock::now();
        std::vector<Observation> seen;
        ObserveSubscriptions(view, seen);
        ObserveHandlers(view, seen);
        for (const auto& [key, holding] : holdings_) {
            if (!holding.due) continue;
            seen.push_back({.what = holding.what,
                            .side = holding.side,
                            .group = holding.group,
                            .text = holding.text,
                            .progress = holding.progress});
        }
        const bool sends = ObserveSends(seen);
        ObserveWalk(view, rung, seen);
        const bool due = sends || !seen.empty() || !view.listeners.empty();
        const auto news = standstills_.Look(std::move(seen), now, std::chrono::system_clock::now());
        topic_.SetStandstills(standstills_.Standing());
        for (const auto& [begins, text] : news) {
            if (begins) {
                topic_.Log(LogLevel::kWarning, "stands still: " + text);
            } else {
                topic_.Log(LogLevel::kInfo, "goes on: " + text);
            }
        }
        MendSubscriptions(view);
        return due ? now + kLook : Clock::time_point::max();
    }

    void ObserveSubscriptions(const View& view, std::vector<Observation>& seen) const {
        for (const auto& listener : view.listeners) {
            for (const Side side : Topic::kSides) {
                const auto state = listener->State(side);
                if (!state) continue;
                const std::string name = "the subscription of " + GroupInWords(listener->group()) +
                                         " on " + topic_.link(side).name();
                Observation each{.side = side, .group = listener->group()};
                if (!state->standstill.empty()) {
                    each.what = DeliveryOf(*listener, side);
                    each.text = name + ": " + state->standstill;
                    each.patience = std::chrono::milliseconds{0};
                } else if (state->phase != backend::ConsumerState::Phase::kActive) {
                    each.what = "subscription " + NameOf(*listener, side);
                    each.text = name + " is not active";
                    if (state->error != nullptr) each.text += std::string{": "} + state->error->what();
                } else {
                    continue;
                }
                seen.push_back(std::move(each));
            }
        }
    }

    [[nodiscard]] std::string DeliveryOf(const Listener& listener, Side side) const {
        return "delivery " + NameOf(listener, side);
    }

    void ObserveHandlers(const View& view, std::vector<Observation>& seen) const {
        for (const auto& listener : view.listeners) {
            const runtime::Dispatcher& dispatcher = listener->dispatcher();
            const std::string group = GroupInWords(listener->group());
            for (const runtime::Blocking& each : dispatcher.Blockers()) {
                std::string text = "message " + each.id + " from " + topic_.link(each.side).name();
                if (each.attempts == 0) {
                    text.append(": a slow handler of ").append(group).append(" has not settled it");
                } else {
                    text.append(": the handler of ").append(group).append(" has failed ");
                    text.append(std::to_string(each.attempts)).append(" times");
                }
                text.append(", and ").append(std::to_string(each.waiting));
                text.append(" messages of its key wait behind it");
                seen.push_back({.what = "message " + NameOf(*listener, each.side) + ' ' +
                                        std::to_string(each.arrival),
                                .side = each.side,
                                .group = listener->group(),
                                .text = std::move(text)});
            }
            if (const std::size_t waiting = dispatcher.WaitingForHandlers(); waiting > 0) {
                const auto handled =
                    dispatcher.Counts(Side::kOld).processed + dispatcher.Counts(Side::kNew).processed;
                seen.push_back({.what = "handlers " + NameOf(*listener, Side::kOld),
                                .side = topic_.Primary(),
                                .group = listener->group(),
                                .text = "slow handlers of " + group + ": none has ended, and " +
                                        std::to_string(waiting) + " messages wait for one",
                                .progress = std::to_string(handled)});
            }
        }
    }

    // Whether something is sent: it was since the last look, or is on its way.
    bool ObserveSends(std::vector<Observation>& seen) {
        bool sends = false;
        for (const Side side : Topic::kSides) {
            if (!topic_.HasSide(side)) continue;
            runtime::Outlet& outlet = topic_.outlet(side);
            const std::uint64_t published = outlet.Published();
            std::uint64_t in_flight = outlet.InFlight();
            if (std::exchange(seen_published_[static_cast<std::size_t>(side)], published) ==
                    published &&
                in_flight == 0) {
                outlet.Rest();
                in_flight = outlet.InFlight();  // of one that entered before
            } else {
                sends = true;
            }
            if (in_flight == 0) continue;
            sends = true;
            seen.push_back({.what = "sends " + std::string{ToString(side)},
                            .side = side,
                            .text = std::to_string(in_flight) + " sends to " + outlet.link().name() +
                                    " have not ended, and none does",
                            .progress = std::to_string(outlet.Confirmed() + outlet.Failed())});
        }
        return sends;
    }

    void ObserveWalk(const View& view, const Verdict& rung, std::vector<Observation>& seen) {
        if (move_) {
            const auto patience = std::min<std::chrono::milliseconds>(kSilence, LongestHold());
            seen.push_back(
                {.what = "hold",
                 .side = Other(move_->to),
                 .text = "sends are held since " + TimeOfDay(move_->since) + " for " + rung.waiting_for,
                 .progress = std::to_string(move_->since.time_since_epoch().count()),
                 .patience = patience});
        }
        const WaitingCode code = rung.code;
        if (code != WaitingCode::kAnswer && code != WaitingCode::kBacklog &&
            code != WaitingCode::kHandled && code != WaitingCode::kHandlers) {
            return;
        }
        // What arrives makes no difference, and what is handled elsewhere shows in what is left.
        if (rung.left && left_ && *rung.left < *left_) ++less_left_;
        left_ = rung.left;
        std::uint64_t handled = 0;
        for (const auto& listener : view.listeners) {
            for (const Side side : Topic::kSides) {
                handled += listener->dispatcher().Counts(side).processed;
            }
        }
        seen.push_back({.what = "walk",
                        .side = Other(PublishSide(view.policy)),
                        .text = "the way from " + std::string{ToString(view.stage)} + " to " +
                                std::string{ToString(view.policy)} + " waits for " + rung.waiting_for,
                        .progress = std::string{ToString(view.stage)} + ' ' +
                                    std::string{ToString(code)} + ' ' + std::to_string(less_left_) +
                                    ' ' + std::to_string(handled)});
    }

    // A subscription that its adapter could not mend is made anew: when its handlers have settled what
    // they have, so that nothing is handled twice, and after as long again in any case.
    void MendSubscriptions(const View& view) {
        const auto now = Clock::now();
        for (const auto& listener : view.listeners) {
            for (const Side side : Topic::kSides) {
                const Key key{listener, side};
                const auto still = standstills_.StillSince(DeliveryOf(*listener, side));
                if (!still) {
                    mended_.erase(key);
                    continue;
                }
                const auto mended = mended_.find(key);
                const auto since = mended != mended_.end() ? mended->second : *still;
                const runtime::Intake intake = listener->dispatcher().Counts(side);
                const bool idle = intake.outstanding == intake.held;
                if (now - since < (idle ? 1 : 2) * backend::kStandstill) continue;
                topic_.Log(LogLevel::kWarning, "subscribes anew for " +
                                                   GroupInWords(listener->group()) + " on " +
                                                   topic_.link(side).name() + ", which stands still");
                mended_.insert_or_assign(key, now);
                listener->Detach(side, now + kLeave);
                topic_.JoinAgain(*listener, side);
            }
        }
        std::erase_if(mended_, [](const auto& entry) { return entry.first.first->closed(); });
    }

    [[nodiscard]] Verdict SubscriptionTrouble(const View& view) const {
        for (const auto& listener : view.listeners) {
            for (const Side side : Topic::kSides) {
                if (auto trouble = TroubleOf(*listener, side); !trouble.empty()) {
                    return Verdict::Wait(WaitingCode::kSubscription, std::move(trouble));
                }
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
    bool leaves_nothing_ = false;                   // the move of publishing that is under way
    std::optional<Move> move_;                      // publishing is held
    Clock::time_point hold_again_at_{};             // sends go on until then
    std::optional<Clock::time_point> asked_since_;  // whether all that was sent is handled
    Proof proof_ = Proof::kPositions;               // of the broker that was asked last
    // Subscriptions that take nothing from a side any more, and have not left it.
    std::vector<std::pair<std::shared_ptr<Listener>, Side>> stopped_;
    std::array<bool, 2> compared_{};  // the limits, on the way to that side
    Clock::time_point stage_since_ = Clock::now();
    std::array<Clock::time_point, 2> not_drained_at_{};
    Clock::time_point failover_check_at_{};
    Clock::time_point look_back_at_{};      // none: it is yet to be seen whether there is a need
    std::map<Key, Fence> fences_;           // those that are up
    std::map<Key, Narrow> narrow_;          // those that have become narrow
    std::map<Key, Holding> holdings_;       // those that hold something
    std::array<AnswerWatch, 2> answers_{};  // of the brokers, by side
    std::set<std::string> warned_of_;       // groups that `groups` does not name
    StandstillWatch standstills_;
    std::map<Key, Clock::time_point> mended_;        // when it was made anew
    std::array<std::uint64_t, 2> seen_published_{};  // by the last look
    std::optional<std::uint64_t> left_;              // what the rung waited for at the last look
    std::uint64_t less_left_ = 0;                    // how often it was less than before
    detail::Backoff backoff_{kFirstLook, kLastLook};
    detail::Backoff fence_backoff_{std::chrono::milliseconds{2}, std::chrono::milliseconds{50}};
};

}  // namespace mq::migration
