/// @file topic.hpp
/// A topic of one client: its two sides, its subscriptions, the rung where it is, and the one that the
/// config asks for. Everybody says here what they want (SetPolicy, Configure, Subscribe) and wakes the
/// walk, which alone takes the topic from rung to rung; the send path never waits for it.
#pragma once

#include <mq/config.hpp>
#include <mq/detail/signal.hpp>
#include <mq/migration/ladder.hpp>
#include <mq/migration/listener.hpp>
#include <mq/migration/router.hpp>
#include <mq/migration/sender.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dedup_window.hpp>
#include <mq/runtime/forwarded.hpp>
#include <mq/status.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
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

using backend::Clock;

/// Thread-safe.
class Topic {
public:
    using Listeners = std::vector<std::shared_ptr<Listener>>;

    static constexpr std::array<Side, 2> kSides{Side::kOld, Side::kNew};

    Topic(std::string name, const TopicConfig& config, const FindLink& find_link,
          const runtime::Shared& shared, detail::Signal& signal)
        : name_(std::move(name)),
          shared_(shared),
          wake_(signal),
          router_(name_, shared),
          config_(config),
          policy_(config.broker.empty() ? config.policy : Policy::kOld),
          stage_(policy_) {
        dedups_ = config.dedup != std::chrono::milliseconds{0};
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
    void Send(std::unique_ptr<runtime::Sending> sending) noexcept {
        if (!sent_to_.load(std::memory_order_relaxed)) sent_to_.store(true);
        router_.Send(std::move(sending));
    }

    /// Gives a message that was received from this topic, and is sent on to it, an id of its own where
    /// a window would take it for a copy of the received one.
    void TellApart(Message& message) const {
        if (dedups_.load(std::memory_order_relaxed) && runtime::IsForwarded(message, name_)) {
            message.id = runtime::ForwardedId(message);
        }
    }

    /// Whether anything was ever sent here: the service may send again at any time.
    [[nodiscard]] bool sent_to() const noexcept { return sent_to_.load(); }

    /// Adds a subscription and attaches it to the sides that the topic listens to.
    /// @throws Error where the client is closed, or an adapter cannot subscribe at all.
    void Subscribe(const std::shared_ptr<Listener>& listener) {
        const std::lock_guard lock{mutex_};
        if (closed_) throw Error{ErrorCode::kClosed, "topic " + name_ + ": the client is closed"};
        SetFencing(*listener);
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
                   "move it, or restart the service";
        }
        if (!Is(Side::kOld, config.old_broker, config.old_address)) {
            return "the running client knows the topic with another `old`; restart the service to "
                   "begin another migration";
        }
        if (At(Side::kNew).link != nullptr && !Is(Side::kNew, config.new_broker, config.new_address)) {
            return "the running client knows the topic with another `new`; restart the service to "
                   "begin another migration";
        }
        return std::nullopt;
    }

    /// Whether this config, for which WhyNot says nothing, asks for another rung than the present one.
    [[nodiscard]] bool WouldMove(const TopicConfig& config) const {
        const std::lock_guard lock{mutex_};
        return Target(config) != stage_;
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
        dedups_ = config.dedup != std::chrono::milliseconds{0};
        if (redirect) Redirect();
        if (dedup) ResizeDedup();
        AimAt(Target(config));
        for (const auto& listener : listeners_) SetFencing(*listener);
        wake_.Raise();
    }

    /// Never blocks on a broker.
    [[nodiscard]] TopicStatus Status() const {
        const std::lock_guard lock{mutex_};
        return {.topic = name_,
                .policy = policy_,
                .stage = stage_,
                .waiting_for = waiting_for_,
                .waiting_code = waiting_code_,
                .standstills = standstills_,
                .failover = failover_,
                .old_side = StatusOf(Side::kOld),
                .new_side = StatusOf(Side::kNew)};
    }

    /// Refuses subscriptions from now on, and hands over those that have not ended, to be closed.
    Listeners TakeListeners() {
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

    [[nodiscard]] detail::Wake& wake() noexcept { return wake_; }
    [[nodiscard]] SeenProducers& producers() noexcept { return producers_; }

    // ---- for the walk: one thread calls these

    /// What the walk looks at, taken in one go.
    struct View {
        bool closed = false;
        TopicConfig config = {};
        Policy policy = Policy::kOld;
        Clock::time_point policy_since = {};
        Policy stage = Policy::kOld;
        bool migrates = false;     ///< The config names two sides.
        Listeners listeners = {};  ///< Those that are open.
        std::array<bool, 2> attached = {};
    };

    [[nodiscard]] View Look() {
        Listeners forgotten;  // destroyed behind the lock
        const std::lock_guard lock{mutex_};
        forgotten = ForgetClosed();
        Listeners open;
        std::copy_if(listeners_.begin(), listeners_.end(), std::back_inserter(open),
                     [](const auto& listener) { return !listener->closing(); });
        return {.closed = closed_,
                .config = config_,
                .policy = policy_,
                .policy_since = policy_since_,
                .stage = stage_,
                .migrates = config_.broker.empty(),
                .listeners = std::move(open),
                .attached = {At(Side::kOld).attached, At(Side::kNew).attached}};
    }

    /// Whether something was said or has happened since the last call.
    bool TakeWake() noexcept { return wake_.Take(); }

    [[nodiscard]] bool closed() const {
        const std::lock_guard lock{mutex_};
        return closed_;
    }

    /// Whether it has that side.
    [[nodiscard]] bool HasSide(Side side) const {
        const std::lock_guard lock{mutex_};
        return At(side).link != nullptr;
    }

    /// Of a side that the topic has: both where it migrates. They live as long as the topic.
    [[nodiscard]] runtime::BrokerLink& link(Side side) noexcept { return *At(side).link; }
    [[nodiscard]] runtime::Outlet& outlet(Side side) noexcept { return *At(side).outlet; }

    [[nodiscard]] std::shared_ptr<const backend::Destination> destination(Side side) const {
        const std::lock_guard lock{mutex_};
        return At(side).destination;
    }

    /// Takes messages from a side, for the subscriptions that there are, which it returns, and for
    /// those to come. Never blocks on the broker.
    /// @throws Error where the adapter cannot subscribe there at all.
    Listeners Join(Side side) {
        const std::lock_guard lock{mutex_};
        At(side).attached = true;
        for (const auto& listener : listeners_) Attach(*listener, side);
        return listeners_;
    }

    /// Lets a subscription take messages once more from a side that it has left, and the topic has not.
    /// @throws Error as Join does.
    void JoinAgain(Listener& listener, Side side) {
        const std::lock_guard lock{mutex_};
        if (At(side).attached) Attach(listener, side);
    }

    /// Takes nothing from a side for subscriptions to come, and returns those that there are: the walk
    /// detaches them.
    Listeners Leave(Side side) {
        const std::lock_guard lock{mutex_};
        At(side).attached = false;
        At(side).backlog.reset();
        return listeners_;
    }

    /// Notes what a broker has said of a side.
    void SetBacklog(Side side, std::optional<std::uint64_t> backlog) {
        const std::lock_guard lock{mutex_};
        At(side).backlog = backlog;
    }

    /// Moves to a rung, and sends go where it publishes. `leaves_nothing` says that all that was sent
    /// before is handled by every group. False, with nothing done, where the topic is there.
    bool Reach(Policy rung, bool leaves_nothing) {
        const std::lock_guard lock{mutex_};
        if (rung == stage_) return false;
        if (PublishSide(rung) != PublishSide(stage_)) moves_ = NextMoves(moves_, leaves_nothing);
        stage_ = rung;
        waiting_for_.clear();  // that was the rung before
        waiting_code_ = WaitingCode::kNothing;
        failover_ = false;  // until it is seen who listens at this rung
        held_ = false;
        PointTo(rung);
        return true;
    }

    /// Sends wait, until their deadlines, for publishing to go on or another rung to be reached. Where
    /// `handlers_pass`, those of handlers and send callbacks go where publishing still is.
    void HoldPublishing(bool handlers_pass) {
        const std::lock_guard lock{mutex_};
        held_ = true;
        runtime::Outlet* const pass = handlers_pass ? At(PublishSide(stage_)).outlet.get() : nullptr;
        router_.Hold(pass, SenderAt(stage_));
    }

    void GoOnPublishing() {
        const std::lock_guard lock{mutex_};
        held_ = false;
        PointTo(stage_);
    }

    /// Whether sends may go to the side that the rung does not publish to, where it certainly takes
    /// what its own does not.
    void SetFailover(bool failover) {
        const std::lock_guard lock{mutex_};
        if (std::exchange(failover_, failover) != failover && !held_) PointTo(stage_);
    }

    /// What the walk waits for; empty for nothing.
    void Say(std::string waiting_for, WaitingCode code) {
        const std::lock_guard lock{mutex_};
        waiting_for_ = std::move(waiting_for);
        waiting_code_ = waiting_for_.empty() ? WaitingCode::kNothing : code;
    }

    /// What stands still.
    void SetStandstills(std::vector<Standstill> standstills) {
        const std::lock_guard lock{mutex_};
        standstills_ = std::move(standstills);
    }

    /// Whether a subscription of this client has taken messages of the group from a side.
    [[nodiscard]] bool HasBeenOn(Side side, const std::string& group) const {
        const std::lock_guard lock{mutex_};
        return At(side).groups.contains(group);
    }

    void Log(LogLevel level, const std::string& text) const {
        shared_.log(level, "topic " + name_ + ": " + text);
    }

    /// How long a send takes at the most.
    [[nodiscard]] std::chrono::milliseconds send_timeout() const { return shared_.config.send_timeout; }

private:
    struct SideState {
        runtime::BrokerLink* link = nullptr;  // null where the topic has no such side
        std::shared_ptr<const backend::Destination> destination = {};
        std::unique_ptr<runtime::Outlet> outlet = {};
        bool attached = false;      // the subscriptions take messages from here
        runtime::Intake past = {};  // of subscriptions that are closed
        std::optional<std::uint64_t> backlog = {};
        std::set<std::string> groups = {};  // of the subscriptions that have ever taken from here
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
        runtime::Outlet* const other = failover_ ? At(Other(side)).outlet.get() : nullptr;
        router_.PointTo(*At(side).outlet, other, SenderAt(rung));
    }

    // What stands beside each message; empty where there is nobody to tell.
    [[nodiscard]] std::string SenderAt(Policy rung) const {
        if (At(Side::kNew).link == nullptr) return {};
        return ToText({.id = shared_.client_id, .stage = rung, .moves = moves_});
    }

    // The rung that a config asks for. A migration that is done, or called off, goes to rest on the
    // broker that is left.
    [[nodiscard]] Policy Target(const TopicConfig& config) const {
        if (config.broker.empty()) return config.policy;
        return Is(Side::kOld, config.broker, config.address) ? Policy::kOld : Policy::kNew;
    }

    void AimAt(Policy policy) {
        if (policy == policy_) return;
        policy_ = policy;
        policy_since_ = Clock::now();
    }

    void Attach(Listener& listener, Side side) {
        listener.Attach(side, *At(side).link, At(side).destination);
        At(side).groups.insert(listener.group());
    }

    // Whether messages wait behind what their producers sent to the other side before.
    [[nodiscard]] bool Fences() const { return config_.order == Order::kKey && config_.broker.empty(); }

    // A group that `groups` does not name is not asked for by producers that go back.
    void SetFencing(Listener& listener) const {
        const bool named = config_.groups.empty() ||
                           std::find(config_.groups.begin(), config_.groups.end(), listener.group()) !=
                               config_.groups.end();
        listener.SetFencing(Fences(), named);
    }

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

    const std::string name_;
    const runtime::Shared& shared_;
    detail::Wake wake_;
    Router router_;
    SeenProducers producers_;
    std::atomic<bool> sent_to_{false};
    std::atomic<bool> dedups_{false};  // config_ has a window; written with mutex_ held

    mutable std::mutex mutex_;  // guards what follows; link and outlet of a side never change once set
    TopicConfig config_;
    Policy policy_;
    Clock::time_point policy_since_ = {};  // when policy_ last changed
    Policy stage_;             // the rung where it is; written by the walk alone, like the next three
    bool failover_ = false;    // sends may go to the other side
    bool held_ = false;        // sends wait
    std::uint64_t moves_ = 0;  // as in Sender
    bool closed_ = false;
    std::string waiting_for_;
    WaitingCode waiting_code_ = WaitingCode::kNothing;
    std::vector<Standstill> standstills_;
    std::array<SideState, 2> sides_;
    Listeners listeners_;
    std::map<std::string, std::shared_ptr<runtime::DedupWindow>> dedup_;  // by group; empty for off
};

}  // namespace mq::migration
