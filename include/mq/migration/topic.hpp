/// @file topic.hpp
/// A topic of one client: its two sides, its subscriptions, and the walk from the rung where the client
/// is to the one that the config asks for. Every step waits for its guard; the send path never waits
/// for a step.
///
/// The walk is driven by one thread, the walker, which calls Advance. Everybody else only says what
/// they want (SetPolicy, Configure, Subscribe) and wakes it.
#pragma once

#include <mq/config.hpp>
#include <mq/detail/backoff.hpp>
#include <mq/detail/signal.hpp>
#include <mq/migration/guards.hpp>
#include <mq/migration/ladder.hpp>
#include <mq/migration/limits.hpp>
#include <mq/migration/listener.hpp>
#include <mq/migration/router.hpp>
#include <mq/migration/sender.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dedup_window.hpp>
#include <mq/status.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace mq::migration {

/// Finds the link of a broker of the config. Every broker that a checked config names has one.
using FindLink = std::function<runtime::BrokerLink&(const std::string& broker)>;

/// Thread-safe, but for Advance.
class Topic {
public:
    Topic(std::string name, const TopicConfig& config, const FindLink& find_link,
          const runtime::Shared& shared, detail::Signal& signal)
        : name_(std::move(name)),
          shared_(shared),
          wake_(signal),
          router_(name_, shared),
          config_(config),
          policy_(config.broker.empty() ? config.policy : Policy::kOld),
          stage_(policy_),
          published_to_(PublishSide(stage_)) {
        MakeSide(Side::kOld, config.broker.empty() ? config.old_broker : config.broker,
                 config.broker.empty() ? config.old_address : config.address, find_link);
        if (config.broker.empty()) {
            MakeSide(Side::kNew, config.new_broker, config.new_address, find_link);
        }
        for (const Side side : kSides) {
            At(side).attached = At(side).link != nullptr && Subscribes(stage_, side);
        }
        PointTo(stage_);
    }

    Topic(const Topic&) = delete;
    Topic& operator=(const Topic&) = delete;

    [[nodiscard]] const std::string& name() const noexcept { return name_; }

    /// Sends a message by the present route; see Router::Send.
    void Send(std::unique_ptr<runtime::Sending> sending) noexcept { router_.Send(std::move(sending)); }

    /// Adds a subscription and attaches it to the sides that the topic listens to.
    /// @throws Error where the client is closed, or an adapter cannot subscribe at all.
    void Subscribe(const std::shared_ptr<Listener>& listener) {
        const std::lock_guard lock{mutex_};
        if (closed_) throw Error{ErrorCode::kClosed, "topic " + name_ + ": the client is closed"};
        listener->SetFencing(Fences());
        ApplyDedup(*listener);
        for (const Side side : kSides) {
            if (At(side).attached) Attach(*listener, side);
        }
        listeners_.push_back(listener);
        wake_.Raise();
    }

    /// The side that sends go to at the present rung.
    [[nodiscard]] Side Primary() const {
        const std::lock_guard lock{mutex_};
        return PublishSide(stage_);
    }

    [[nodiscard]] Order order() const {
        const std::lock_guard lock{mutex_};
        return config_.order;
    }

    /// Sets the rung to walk to.
    /// @throws Error where the topic has one broker only.
    void SetPolicy(Policy policy) {
        const std::lock_guard lock{mutex_};
        if (At(Side::kNew).link == nullptr) {
            throw Error{ErrorCode::kInvalidArgument,
                        "topic " + name_ + " has one broker; give it `old` and `new` to migrate it"};
        }
        AimAt(policy);
        wake_.Raise();
    }

    /// Why the topic cannot take this config while it runs; nothing where it can.
    [[nodiscard]] std::optional<std::string> WhyNot(const TopicConfig& config) const {
        const std::lock_guard lock{mutex_};
        if (config.order != config_.order && !listeners_.empty()) {
            return "`order` cannot change while the topic has a subscription; restart the service";
        }
        if (!config.broker.empty()) {
            if (Is(Side::kOld, config.broker, config.address) ||
                Is(Side::kNew, config.broker, config.address)) {
                return std::nullopt;
            }
            return "the running client knows the topic on other brokers; give it `old` and `new` to "
                   "move "
                   "it, or restart the service";
        }
        if (!Is(Side::kOld, config.old_broker, config.old_address)) {
            return "the running client knows the topic with another `old`; restart the service to "
                   "begin "
                   "another migration";
        }
        if (At(Side::kNew).link != nullptr && !Is(Side::kNew, config.new_broker, config.new_address)) {
            return "the running client knows the topic with another `new`; restart the service to "
                   "begin "
                   "another migration";
        }
        return std::nullopt;
    }

    /// Takes a config for which WhyNot says nothing. Its policy becomes the rung to walk to.
    void Configure(const TopicConfig& config, const FindLink& find_link) {
        const std::lock_guard lock{mutex_};
        if (config.broker.empty() && At(Side::kNew).link == nullptr) {
            MakeSide(Side::kNew, config.new_broker, config.new_address, find_link);
            PointTo(stage_);  // there is a sender to tell of now
        }
        const bool redirect = config.groups != config_.groups || config.order != config_.order;
        const bool dedup = config.dedup != config_.dedup || config.dedup_max != config_.dedup_max;
        config_ = config;
        if (redirect) Redirect();
        if (dedup) ResizeDedup();
        if (config.broker.empty()) {
            AimAt(config.policy);
        } else {
            // A migration that is done, or called off: the topic goes to rest on the broker that is
            // left.
            AimAt(Is(Side::kOld, config.broker, config.address) ? Policy::kOld : Policy::kNew);
        }
        for (const auto& listener : listeners_) listener->SetFencing(Fences());
        wake_.Raise();
    }

    /// Never blocks on a broker.
    [[nodiscard]] TopicStatus Status() const {
        const std::lock_guard lock{mutex_};
        return {.topic = name_,
                .policy = policy_,
                .stage = stage_,
                .waiting_for = waiting_for_,
                .failover = failover_,
                .old_side = StatusOf(Side::kOld),
                .new_side = StatusOf(Side::kNew)};
    }

    /// Refuses subscriptions from now on, and hands over those that have not ended, to be closed.
    std::vector<std::shared_ptr<Listener>> TakeListeners() {
        Listeners forgotten;  // destroyed behind the lock
        const std::lock_guard lock{mutex_};
        closed_ = true;
        forgotten = ForgetClosed();
        return listeners_;
    }

    /// Sends fail from now on.
    void Shut() { router_.Shut(); }

    /// Whether a subscription is open.
    [[nodiscard]] bool HasListeners() const {
        const std::lock_guard lock{mutex_};
        return std::any_of(listeners_.begin(), listeners_.end(),
                           [](const auto& listener) { return !listener->closing(); });
    }

    /// Sends that have not ended, on both sides.
    [[nodiscard]] std::uint64_t InFlight() const {
        std::uint64_t count = 0;
        const std::lock_guard lock{mutex_};
        for (const SideState& side : sides_) {
            if (side.outlet != nullptr) count += side.outlet->InFlight();
        }
        return count;
    }

    /// Whether the client's signal is raised when a side has nothing in flight any more. Counted: one
    /// call with false for each with true.
    void WatchInFlight(bool watched) {
        const std::lock_guard lock{mutex_};
        for (const SideState& side : sides_) {
            if (side.outlet != nullptr) side.outlet->Watch(watched);
        }
    }

    /// Whether something was said or has happened since the last Advance.
    bool TakeWake() noexcept { return wake_.Take(); }

    [[nodiscard]] detail::Wake& wake() noexcept { return wake_; }
    [[nodiscard]] SeenProducers& producers() noexcept { return producers_; }

    /// Walks as far as the guards allow, and says when to be called again at the latest. Blocks on
    /// brokers for a few guard timeouts at most. Called by the walker alone.
    Clock::time_point Advance() noexcept {
        try {
            return Walk();
        } catch (const std::exception& error) {
            Say(error.what());
        }
        return Clock::now() + backoff_.Next();
    }

private:
    using Listeners = std::vector<std::shared_ptr<Listener>>;

    static constexpr std::array<Side, 2> kSides{Side::kOld, Side::kNew};
    static constexpr std::chrono::milliseconds kLook{10};
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

    struct SideState {
        runtime::BrokerLink* link = nullptr;  // null where the topic has no such side
        std::shared_ptr<const backend::Destination> destination = {};
        std::unique_ptr<runtime::Outlet> outlet = {};
        bool attached = false;      // the subscriptions take messages from here
        runtime::Intake past = {};  // of subscriptions that are closed
        std::optional<std::uint64_t> backlog = {};
    };

    // What the walker looks at, taken in one go.
    struct View {
        bool closed = false;
        TopicConfig config = {};
        Policy policy = Policy::kOld;
        Clock::time_point policy_since = {};
        Policy stage = Policy::kOld;
        bool migrates = false;  // the config names two sides
        Listeners listeners = {};
        std::array<bool, 2> attached = {};
    };

    // The next step and the rung that it leads to.
    struct Goal {
        Step step = {};
        Policy rung = Policy::kOld;
    };

    // A moment among what a subscription holds: what had arrived by then.
    struct Position {
        std::uint64_t noticed = 0;  // producers that had come over
        std::uint64_t mark = 0;
        Clock::time_point since = {};
    };

    // What is seen of the side that a fence waits for.
    struct Progress {
        std::optional<std::uint64_t> left = {};
        std::optional<Clock::time_point> settled_before = {};
        std::uint64_t processed = 0;

        // Whether something has been handled there since `earlier`: what arrives makes no difference.
        [[nodiscard]] bool Since(const Progress& earlier) const {
            return processed != earlier.processed || settled_before > earlier.settled_before ||
                   (left && earlier.left && *left < *earlier.left);
        }
    };

    // What a broker can tell of a group: by which moment everything was settled; whether nothing is
    // left at all; or not even that for certain.
    enum class Proof : unsigned char { kPositions, kEmptiness, kNone };

    // How far the walker is with one fence.
    struct Gate {
        Clock::time_point begun = {};
        Position position = {};              // opens when what was sent before is known to be settled
        std::optional<Position> quiet = {};  // opens when the other side has looked drained for long
        Progress progress = {};
        Clock::time_point progress_at = {};
    };

    [[nodiscard]] SideState& At(Side side) noexcept { return sides_[static_cast<std::size_t>(side)]; }
    [[nodiscard]] const SideState& At(Side side) const noexcept {
        return sides_[static_cast<std::size_t>(side)];
    }

    // ---- called with mutex_ held, or from the constructor

    void MakeSide(Side side, const std::string& broker, const std::string& address,
                  const FindLink& find_link) {
        SideState& state = At(side);
        state.link = &find_link(broker);
        state.destination = Describe(address);
        state.outlet = std::make_unique<runtime::Outlet>(*state.link, state.destination, wake_);
    }

    [[nodiscard]] std::shared_ptr<const backend::Destination> Describe(
        const std::string& address) const {
        return std::make_shared<backend::Destination>(
            backend::Destination{.topic = name_,
                                 .address = address.empty() ? name_ : address,
                                 .groups = config_.groups,
                                 .ordered = config_.order == Order::kKey});
    }

    void Redirect() {
        for (SideState& side : sides_) {
            if (side.link == nullptr) continue;
            side.destination = Describe(side.destination->address);
            side.outlet->Redirect(side.destination);
        }
    }

    [[nodiscard]] bool Is(Side side, const std::string& broker, const std::string& address) const {
        const SideState& state = At(side);
        return state.link != nullptr && state.link->name() == broker &&
               state.destination->address == (address.empty() ? name_ : address);
    }

    // Sends go where a client at this rung publishes to.
    void PointTo(Policy rung) {
        const Side side = PublishSide(rung);
        if (side != std::exchange(published_to_, side)) moves_ = NextMoves(moves_, leaves_nothing_);
        std::string sender;
        if (At(Side::kNew).link != nullptr) {
            sender = ToText({.id = shared_.client_id, .stage = rung, .moves = moves_});
        }
        runtime::Outlet* const other = failover_ ? At(Other(side)).outlet.get() : nullptr;
        router_.PointTo(*At(side).outlet, other, std::move(sender));
    }

    void AimAt(Policy policy) {
        if (policy == policy_) return;
        policy_ = policy;
        policy_since_ = Clock::now();
    }

    void Attach(Listener& listener, Side side) {
        listener.Attach(side, *At(side).link, At(side).destination);
    }

    // Whether messages wait behind what their producers sent to the other side before.
    [[nodiscard]] bool Fences() const { return config_.order == Order::kKey && config_.broker.empty(); }

    void ApplyDedup(Listener& listener) {
        if (config_.dedup == std::chrono::milliseconds{0}) return listener.dispatcher().SetDedup({});
        // Groups that come and go leave nothing behind.
        std::erase_if(dedup_, [](const auto& entry) {
            return entry.second.use_count() == 1 && entry.second->Size() == 0;
        });
        std::shared_ptr<runtime::DedupWindow>& window = dedup_[listener.group()];
        if (window == nullptr) {
            window = std::make_shared<runtime::DedupWindow>(
                runtime::DedupWindow::Options{.limits = DedupLimits(),
                                              .topic = name_,
                                              .group = listener.group(),
                                              .client = shared_.client_id,
                                              .store = shared_.dedup_store,
                                              .log = shared_.log});
        }
        listener.dispatcher().SetDedup(window);
    }

    // What is remembered is kept as far as the new limits reach. Claims on ids outlive the windows.
    void ResizeDedup() {
        if (config_.dedup == std::chrono::milliseconds{0}) dedup_.clear();
        for (const auto& [group, window] : dedup_) window->Configure(DedupLimits());
        for (const auto& listener : listeners_) ApplyDedup(*listener);
    }

    [[nodiscard]] runtime::DedupLimits DedupLimits() const {
        return {.window = config_.dedup, .max = config_.dedup_max};
    }

    [[nodiscard]] SideStatus StatusOf(Side side) const {
        const SideState& state = At(side);
        SideStatus status;
        if (state.link == nullptr) return status;
        status.broker = state.link->name();
        status.publishing = PublishSide(stage_) == side;
        status.subscribed =
            state.attached && std::any_of(listeners_.begin(), listeners_.end(),
                                          [](const auto& listener) { return !listener->closing(); });
        // The end is read before the beginning, so that a snapshot never shows more ends than sends.
        status.confirmed = state.outlet->Confirmed();
        status.failed = state.outlet->Failed();
        status.in_flight = state.outlet->InFlight();
        status.published = state.outlet->Published();
        status.received = state.past.received;
        status.processed = state.past.processed;
        status.duplicates = state.past.duplicates;
        for (const auto& listener : listeners_) {
            const runtime::Intake intake = listener->dispatcher().Counts(side);
            status.received += intake.received;
            status.processed += intake.processed;
            status.duplicates += intake.duplicates;
            status.unsettled += intake.outstanding;
            status.held += intake.held;
        }
        status.backlog = state.backlog;
        status.producers = producers_.Lately(side);
        return status;
    }

    // Those that have ended, for the caller to destroy without the lock.
    Listeners ForgetClosed() {
        Listeners forgotten;
        std::erase_if(listeners_, [&](const auto& listener) {
            if (!listener->closed()) return false;
            for (const Side side : kSides) {
                const runtime::Intake intake = listener->dispatcher().Counts(side);
                At(side).past.received += intake.received;
                At(side).past.processed += intake.processed;
                At(side).past.duplicates += intake.duplicates;
            }
            forgotten.push_back(listener);
            return true;
        });
        return forgotten;
    }

    // ---- the walker's

    Clock::time_point Walk() {
        while (true) {
            const View view = Look();
            if (view.closed) return Clock::time_point::max();
            TakeAgain();
            Clock::time_point tended =
                stopped_.empty() ? Clock::time_point::max() : Clock::now() + kLastLook;
            tended = std::min(tended, TendFences(view));
            tended = std::min(tended, TendFailover(view));
            const std::optional<Goal> goal = NextGoal(view);
            CallOffMove(view, goal);
            if (!goal) {
                Say(SubscriptionTrouble(view));
                if (LookBack(view)) continue;
                return std::min(tended, look_back_at_);
            }
            const Verdict verdict = Try(view, *goal);
            if (verdict.passed) {
                Reach(goal->rung);
                continue;
            }
            Say(verdict.waiting_for);
            return std::min(tended, Clock::now() + backoff_.Next());
        }
    }

    [[nodiscard]] View Look() {
        Listeners forgotten;  // destroyed behind the lock
        const std::lock_guard lock{mutex_};
        forgotten = ForgetClosed();
        Listeners open;
        std::copy_if(listeners_.begin(), listeners_.end(), std::back_inserter(open),
                     [](const auto& listener) { return !listener->closing(); });
        if (last_policy_ != policy_) {
            last_policy_ = policy_;
            backoff_.Reset();
        }
        return {.closed = closed_,
                .config = config_,
                .policy = policy_,
                .policy_since = policy_since_,
                .stage = stage_,
                .migrates = config_.broker.empty(),
                .listeners = std::move(open),
                .attached = {At(Side::kOld).attached, At(Side::kNew).attached}};
    }

    [[nodiscard]] static std::optional<Goal> NextGoal(const View& view) {
        const Policy next = NextRung(view.stage, view.policy);
        if (next != view.stage) return Goal{.step = StepBetween(view.stage, next), .rung = next};
        // A change of mind before the rung was reached leaves a side attached that is not needed.
        for (const Side side : kSides) {
            if (view.attached[static_cast<std::size_t>(side)] && !Subscribes(view.stage, side)) {
                return Goal{.step = {.leave = side}, .rung = view.stage};
            }
        }
        return std::nullopt;
    }

    // A move of publishing that waits for its confirms is called off where it is no longer wanted.
    void CallOffMove(const View& view, const std::optional<Goal>& goal) {
        if (!moving_to_ || (goal && goal->step.publish == moving_to_)) return;
        GoOnPublishing(view.stage);
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
        const bool moved = [&] {
            const std::lock_guard lock{mutex_};
            if (std::exchange(stage_, rung) == rung) return false;
            failover_ = false;  // until it is seen who listens at this rung
            PointTo(rung);
            return true;
        }();
        stage_since_ = Clock::now();
        look_back_at_ = {};
        failover_check_at_ = {};
        not_drained_at_ = {};
        backoff_.Reset();
        if (moved) Log(LogLevel::kInfo, "reached " + std::string{ToString(rung)});
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
        return Verdict::Wait("the groups to be less far behind on " + At(left).link->name());
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
    [[nodiscard]] std::chrono::milliseconds LongestHold() const {
        return shared_.config.send_timeout / 2;
    }

    // Whether every group is known to have settled what this client has sent to a side, and what else
    // was there at that moment.
    Verdict HandledBefore(const View& view, Side side, Clock::time_point moment) {
        if (At(side).outlet->Published() == 0) return Verdict::Pass();  // by this client, ever
        runtime::BrokerLink& link = *At(side).link;
        if (view.config.groups.empty()) {
            return Verdict::Wait("groups that `groups` does not name to handle what is on " +
                                 link.name());
        }
        for (const std::string& group : view.config.groups) {
            if (Closed()) return Verdict::Wait("nothing: the client is closed");
            const Drain drain = CheckDrained(link, *DestinationOf(side), group);
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
        runtime::BrokerLink& from = *At(Other(side)).link;
        runtime::BrokerLink& to = *At(side).link;
        for (const std::string& difference :
             Differences({.broker = from.name(), .limits = from.Get().GetLimits()},
                         {.broker = to.name(), .limits = to.Get().GetLimits()})) {
            Log(LogLevel::kWarning, "its two brokers differ in " + difference);
        }
    }

    Verdict TrySubscribe(Side side) {
        const Listeners listeners = [&] {
            const std::lock_guard lock{mutex_};
            At(side).attached = true;
            for (const auto& listener : listeners_) {
                Attach(*listener, side);
            }
            return listeners_;
        }();
        for (const auto& listener : listeners) {
            if (auto trouble = TroubleOf(*listener, side); !trouble.empty()) {
                return Verdict::Wait(std::move(trouble));
            }
        }
        return Verdict::Pass();
    }

    Verdict TryPublish(const View& view, Side side) {
        runtime::Outlet& before = *At(Other(side)).outlet;
        if (!moving_to_) {
            if (Verdict listens = MayPublish(view, side); !listens.passed) return listens;
            // What the first send there would have to wait for is made now.
            At(side).outlet->Warm();
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
                                 " messages before the first goes to " + At(side).link->name());
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
        At(Other(side)).outlet->Watch(true);
        router_.Hold();
    }

    // Publishing is held, and everything is confirmed: whether all of it is handled as well. Where that
    // takes too long, sends go on where they were, and it is tried again.
    Verdict LeavesNothing(const View& view, Side left) {
        if (!confirmed_at_) confirmed_at_ = Clock::now();
        Verdict handled = HandledBefore(view, left, *confirmed_at_);
        leaves_nothing_ = handled.passed;
        if (handled.passed) return handled;
        if (GoesBackUnproved(view)) {
            Log(LogLevel::kWarning, "publishing goes back without " + handled.waiting_for +
                                        ": messages of one key may be handled out of order");
            return Verdict::Pass();
        }
        if (Clock::now() - *confirmed_at_ >= LongestHold()) GoOnPublishing(view.stage);
        return handled;
    }

    void GoOnPublishing(Policy stage) {
        At(Other(*moving_to_)).outlet->Watch(false);
        moving_to_.reset();
        const std::lock_guard lock{mutex_};
        PointTo(stage);
    }

    Verdict MayPublish(const View& view, Side side) {
        if (view.config.guard) {
            return CheckEverybodyListens(*At(side).link, *DestinationOf(side), view.config.groups);
        }
        Log(LogLevel::kWarning, "guard is off: publishing moves to " + At(side).link->name() +
                                    " without asking who listens there");
        return Verdict::Pass();
    }

    Verdict TryLeave(const View& view, Side side) {
        const runtime::Outlet& outlet = *At(side).outlet;
        if (const auto in_flight = outlet.InFlight(); in_flight > 0) {
            return Verdict::Wait(outlet.link().name() + " to confirm " + std::to_string(in_flight) +
                                 " messages");
        }
        if (!view.config.guard) {
            Log(LogLevel::kWarning,
                "guard is off: leaving " + outlet.link().name() + " without asking what is left there");
        } else if (!view.listeners.empty()) {
            if (Verdict drained = Drained(view.listeners, side); !drained.passed) {
                not_drained_at_[static_cast<std::size_t>(side)] = Clock::now();
                return drained;
            }
            if (Verdict quiet = Quiet(view, side); !quiet.passed) return quiet;
        }
        return Leave(view, side);
    }

    [[nodiscard]] bool Closed() const {
        const std::lock_guard lock{mutex_};
        return closed_;
    }

    Verdict Drained(const Listeners& listeners, Side side) {
        std::set<std::string> asked;
        for (const auto& listener : listeners) {
            if (!asked.insert(listener->group()).second) continue;
            if (Closed()) return Verdict::Wait("nothing: the client is closed");
            const Drain drain = AskDrained(side, listener->group());
            if (!drain.verdict.passed) return drain.verdict;
        }
        return Verdict::Pass();
    }

    Drain AskDrained(Side side, const std::string& group) {
        Drain drain = CheckDrained(*At(side).link, *DestinationOf(side), group);
        const std::lock_guard lock{mutex_};
        At(side).backlog = drain.left;
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
        return Verdict::Wait("no arrival on " + At(side).link->name() + " for " +
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
            const auto patience = Closed() ? std::chrono::seconds{0} : kGuardTimeout;
            const bool settled = listener->dispatcher().WaitSettled(side, Clock::now() + patience);
            if (!settled && view.config.guard) {
                left = Verdict::Wait("handlers of " + GroupInWords(listener->group()) +
                                     " to settle what came from " + At(side).link->name());
            }
        }
        if (left.passed && view.config.guard) left = Drained(view.listeners, side);
        if (!left.passed) {
            not_drained_at_[static_cast<std::size_t>(side)] = Clock::now();
            for (const auto& listener : view.listeners) stopped_.emplace_back(listener, side);
            TakeAgain();
            return left;
        }
        const Listeners listeners = [&] {
            const std::lock_guard lock{mutex_};
            At(side).attached = false;
            At(side).backlog.reset();
            return listeners_;
        }();
        for (const auto& listener : listeners) listener->Detach(side, deadline);
        return Verdict::Pass();
    }

    // Takes once more from a side that could not be left after all: each subscription as soon as it has
    // settled what it had, so that nothing is given back while its handler runs, and handled twice.
    void TakeAgain() {
        std::erase_if(stopped_, [this](const auto& entry) {
            const auto& [listener, side] = entry;
            if (listener->closing()) return true;
            if (listener->dispatcher().Counts(side).outstanding > 0) return false;
            listener->Detach(side, Clock::now() + kLeave);
            const std::lock_guard lock{mutex_};
            if (At(side).attached) Attach(*listener, side);
            return true;
        });
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
            const Drain drain = CheckDrained(*At(left).link, *DestinationOf(left), listener->group());
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
        Log(LogLevel::kWarning, "subscribes to " + At(side).link->name() + " again, where " +
                                    std::to_string(left) + " messages of " + GroupInWords(group) +
                                    " are left: a producer has not moved, or a member has died");
        TrySubscribe(side);
    }

    // Opens fences once everything that was sent before has been handled: whatever was on the other
    // side when the fence was raised, or later. A sender moves only after that side has confirmed, so
    // that what it sent before is there by then, or handled.
    Clock::time_point TendFences(const View& view) {
        Clock::time_point again = Clock::time_point::max();
        std::erase_if(gates_, [](const auto& entry) { return entry.first.first->closed(); });
        for (const auto& listener : view.listeners) {
            for (const Side side : kSides) {
                if (const auto fence = listener->FenceOn(side)) {
                    again = std::min(again, TendFence(view, listener, side, *fence));
                } else {
                    gates_.erase({listener, side});
                }
            }
        }
        if (again == Clock::time_point::max()) fence_backoff_.Reset();
        return again;
    }

    Clock::time_point TendFence(const View& view, const std::shared_ptr<Listener>& listener, Side side,
                                const Listener::Fence& fence) {
        const Side other = Other(side);
        runtime::Dispatcher& dispatcher = listener->dispatcher();
        const auto added = gates_.try_emplace({listener, side});
        const auto entry = added.first;
        Gate& gate = entry->second;
        const std::uint64_t mark = dispatcher.Mark(side);
        const auto begin = Clock::now();  // behind the mark: what was sent before it is there by now
        const Position here{fence.noticed, mark, begin};
        if (added.second) gate = {.begun = begin, .position = here, .progress_at = begin};
        const auto open = [&](const Position& position) {
            if (!listener->Open(side, position.noticed)) dispatcher.Release(side, position.mark);
            gates_.erase(entry);
            return begin;
        };
        const bool subscribed = view.attached[static_cast<std::size_t>(other)];
        if (!subscribed && !view.config.guard) return open(here);
        const Drain drain =
            subscribed ? AskDrained(other, listener->group())
                       : CheckDrained(*At(other).link, *DestinationOf(other), listener->group());
        if (drain.settled_before >= gate.position.since) return open(gate.position);
        const auto now = Clock::now();
        if (!subscribed) {
            if (drain.verdict.passed || !drain.known) return open(gate.position);
            if (drain.left) {
                Rejoin(other, listener->group(), *drain.left);
                return now;
            }
            return MayGoWithout(drain, now - gate.begun) ? open(gate.position) : now + kLook;
        }
        if (drain.verdict.passed) {
            // Members in other processes may still be at work on what they took: they get the quiet
            // period.
            if (!gate.quiet) gate.quiet = here;
            const auto last = std::max(gate.quiet->since, dispatcher.Counts(other).last_arrival);
            if (now - last >= view.config.quiet) return open(*gate.quiet);
            return std::min(now + fence_backoff_.Next(), last + view.config.quiet);
        }
        gate.quiet.reset();
        if (WaitsForNewer(*listener, side, drain)) return open(here);
        if (WaitsInVain(view, *listener, side, drain, gate)) {
            Log(LogLevel::kWarning, "lets go of what came from " + At(side).link->name() + " without " +
                                        drain.verdict.waiting_for +
                                        ": messages of one key may be handled out of order");
            return open(here);
        }
        return now + fence_backoff_.Next();
    }

    // The rung does not need the other side's broker, which may be down for good. At the start it is
    // yet to be connected; later on it need not be waited for.
    bool MayGoWithout(const Drain& drain, Clock::duration so_far) {
        if (!asked_for_older_ && so_far < kGuardTimeout) return false;
        asked_for_older_ = true;
        Log(LogLevel::kWarning,
            "goes on without having asked for older messages: waited for " + drain.verdict.waiting_for);
        return true;
    }

    // Whether all that is left on the other side is held here, behind a fence of its own that waits for
    // this one, and producers that were seen on both sides show that it came later.
    bool WaitsForNewer(const Listener& listener, Side side, const Drain& drain) const {
        const Side other = Other(side);
        if (!drain.left || !listener.FenceOn(other)) return false;
        const runtime::Intake there = listener.dispatcher().Counts(other);
        if (*drain.left > there.held || there.outstanding > there.held) return false;
        const auto went_to = producers_.WentTo();
        return went_to[static_cast<std::size_t>(other)] && !went_to[static_cast<std::size_t>(side)];
    }

    // Whether a fence waits for one that waits for it: nothing is handled on the other side for so long
    // that no handler is behind it. Only a producer that went back without proof can be the reason for
    // that, and raises its fence on the old side; one on the new side waits as long as it takes.
    bool WaitsInVain(const View& view, const Listener& listener, Side side, const Drain& drain,
                     Gate& gate) const {
        const auto now = Clock::now();
        const runtime::Intake there = listener.dispatcher().Counts(Other(side));
        const Progress progress{drain.left, drain.settled_before, there.processed};
        const bool at_work = there.outstanding > there.held;
        const bool unknown = !drain.left && !drain.settled_before;
        if (progress.Since(std::exchange(gate.progress, progress)) || at_work || unknown) {
            gate.progress_at = now;
        }
        if (side == Side::kNew) return false;
        return now - gate.progress_at >= Patience(view);
    }

    // While the topic is on both sides, either may stand in for the other, provided that everybody who
    // is to get what is sent there listens there.
    Clock::time_point TendFailover(const View& view) {
        const bool both = Subscribes(view.stage, Side::kOld) && Subscribes(view.stage, Side::kNew);
        if (!view.config.failover || !view.migrates || !both || moving_to_) {
            SetFailover(false);
            return Clock::time_point::max();
        }
        if (Clock::now() < failover_check_at_) return failover_check_at_;
        const Side other = Other(PublishSide(view.stage));
        const bool ready =
            !view.config.guard ||
            CheckEverybodyListens(*At(other).link, *DestinationOf(other), view.config.groups).passed;
        if (ready) At(other).outlet->Warm();
        SetFailover(ready);
        failover_check_at_ = Clock::now() + (ready ? kFailoverCheck : kFailoverRetry);
        return failover_check_at_;
    }

    void SetFailover(bool failover) {
        const std::lock_guard lock{mutex_};
        if (std::exchange(failover_, failover) == failover || moving_to_) return;
        PointTo(stage_);
    }

    [[nodiscard]] std::string SubscriptionTrouble(const View& view) const {
        for (const auto& listener : view.listeners) {
            for (const Side side : kSides) {
                if (auto trouble = TroubleOf(*listener, side); !trouble.empty()) return trouble;
            }
        }
        return {};
    }

    [[nodiscard]] std::string TroubleOf(const Listener& listener, Side side) const {
        const auto state = listener.State(side);
        if (!state || state->phase == backend::ConsumerState::Phase::kActive) return {};
        std::string text =
            "the subscription of " + GroupInWords(listener.group()) + " on " + At(side).link->name();
        if (state->error != nullptr) text += std::string{": "} + state->error->what();
        return text;
    }

    [[nodiscard]] std::shared_ptr<const backend::Destination> DestinationOf(Side side) const {
        const std::lock_guard lock{mutex_};
        return At(side).destination;
    }

    void Say(std::string waiting_for) {
        const std::lock_guard lock{mutex_};
        waiting_for_ = std::move(waiting_for);
    }

    void Log(LogLevel level, const std::string& text) const {
        shared_.log(level, "topic " + name_ + ": " + text);
    }

    const std::string name_;
    const runtime::Shared& shared_;
    detail::Wake wake_;
    Router router_;
    SeenProducers producers_;

    mutable std::mutex mutex_;  // guards what follows; link and outlet of a side never change once set
    TopicConfig config_;
    Policy policy_;
    Clock::time_point policy_since_ = {};  // when policy_ last changed
    Policy stage_;                         // written by the walker alone
    Side published_to_ = Side::kOld;       // where stage_ publishes
    bool failover_ = false;        // sends may go to the other side; written by the walker alone
    std::uint64_t moves_ = 0;      // as in Sender
    bool leaves_nothing_ = false;  // the next change of published_to_; written by the walker alone
    bool closed_ = false;
    std::string waiting_for_;
    std::array<SideState, 2> sides_;
    Listeners listeners_;
    std::map<std::string, std::shared_ptr<runtime::DedupWindow>> dedup_;  // by group; empty for off

    // The walker's own: no lock.
    std::optional<Policy> last_policy_;
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
    std::map<std::pair<std::shared_ptr<Listener>, Side>, Gate> gates_;
    bool asked_for_older_ = false;  // a broker that no rung needs has had the time to be connected
    detail::Backoff backoff_{kFirstLook, kLastLook};
    detail::Backoff fence_backoff_{std::chrono::milliseconds{2}, std::chrono::milliseconds{50}};
};

}  // namespace mq::migration
