/// @file publishing.hpp
/// The publishing connection's thread: a link for each destination, messages sent as fast as the
/// broker's credit and the window of unconfirmed ones allow, and each finished when the broker has
/// accepted it, refused it or not answered in time.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/activemq/codec.hpp>
#include <mq/backends/activemq/declarations.hpp>
#include <mq/backends/activemq/engine.hpp>
#include <mq/backends/activemq/in_flight.hpp>
#include <mq/backends/activemq/io_loop.hpp>
#include <mq/backends/activemq/links.hpp>
#include <mq/backends/activemq/mailbox.hpp>
#include <mq/backends/activemq/proton.hpp>
#include <mq/backends/activemq/topology.hpp>
#include <mq/detail/backoff.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mq::activemq {

/// One description of a route's destination, as a publisher was made with it. Immutable.
struct Description {
    Description(const backend::Destination& destination, Flavor flavor, const Options& options)
        : groups(destination.groups) {
        const Topology topology{destination, flavor, options};
        // The one queue of an address comes to be with the link that is published by.
        if (topology.IsQueue()) return;
        for (const std::string& group : groups) sources.push_back(topology.SourceOf(group));
    }

    std::vector<std::string> groups = {};
    std::vector<GroupSource> sources = {};  ///< What must be there before a message is sent.
};

/// The way to one address of a topic, however its destination is described: what is published to one
/// address goes by one link and keeps its order, also where a reload names other groups in between.
/// The topic, the address and the topology are immutable; `descriptions` belongs to
/// PublishingLoop::RouteTo, the rest to the I/O thread.
struct Route {
    enum class Stage : unsigned char {
        kIdle,     ///< No link; made at retry_at, where something waits.
        kOpening,  ///< The link is being made.
        kOpen,
    };

    Route(const backend::Destination& where, Flavor flavor, const Options& options)
        : topic(where.topic), address(where.address), topology(where, flavor, options) {}

    const std::string topic;
    const std::string address;
    const Topology topology;
    std::deque<Description> descriptions = {};  ///< None moves or goes away.

    Stage stage = Stage::kIdle;
    detail::Declarations declarations = {};         ///< Of the groups' queues or subscriptions.
    std::shared_ptr<detail::Inquiry> looking = {};  ///< Whether the one under way is there.
    const Description* ready = nullptr;  ///< Its queues are all there, to be relied on until then.
    backend::Clock::time_point ready_until = {};
    proton::sender sender = {};
    std::uint64_t max_size = 0;        ///< The broker's limit for a message in bytes; 0 for none.
    std::deque<Pending> waiting = {};  ///< Accepted and not yet sent, in order.
    backend::Clock::time_point retry_at = {};
    backend::Clock::time_point asked_at = {};  ///< When the link was asked for.
    backend::Clock::time_point open_since = {};
    mq::detail::Backoff backoff{std::chrono::milliseconds{100}, std::chrono::seconds{10}};
    std::string why_not = {};  ///< Why there is no link.
    bool used = false;         ///< Whether the loop knows it.
};

namespace detail {

/// What other threads leave for the publishing loop. Not bounded here: the caller of Publish bounds
/// what is in flight, for each broker and in bytes.
class PublishingMailbox final : public Mailbox {
public:
    std::vector<Pending> arrived = {};
    std::optional<Clock::time_point> close_at = {};
};

class PublishingLoop final : public IoLoop {
public:
    explicit PublishingLoop(std::shared_ptr<const Settings> settings)
        : PublishingLoop(std::move(settings), std::make_shared<PublishingMailbox>()) {}

    ~PublishingLoop() override { Close(Clock::now()); }

    /// A publisher's way: the route of its topic and address, and how it describes the destination.
    struct Way {
        Route* route = nullptr;
        const Description* description = nullptr;
    };

    /// The way to a destination. Thread-safe.
    /// @throws Error (kInvalidArgument) where the address is not one for the broker.
    Way WayTo(const backend::Destination& destination) {
        const std::lock_guard lock{routes_mutex_};
        Route& route = RouteTo(destination);
        for (const Description& known : route.descriptions) {
            if (known.groups == destination.groups) return {&route, &known};
        }
        return {&route,
                &route.descriptions.emplace_back(destination, settings_->flavor, settings_->options)};
    }

    /// Never blocks. Thread-safe.
    void Submit(std::unique_ptr<backend::Publication> publication, Way way) noexcept {
        Pending pending{std::move(publication), way.route, way.description};
        try {
            if (!Started()) Start();
        } catch (const std::system_error& error) {
            GiveBack(std::move(pending),
                     {ErrorCode::kInternal,
                      settings_->broker + ": cannot start a thread: " + error.what(),
                      {}});
            return;
        }
        if (!mailbox_->Post([&] { mailbox_->arrived.push_back(std::move(pending)); })) {
            GiveBack(std::move(pending), ClosedFailure());
        }
    }

    /// Asks the thread to end when nothing is in flight, and at a deadline at the latest. Thread-safe.
    void BeginClose(Clock::time_point deadline) noexcept {
        mailbox_->Post(
            [&] { mailbox_->close_at = std::min(mailbox_->close_at.value_or(deadline), deadline); });
    }

    /// As Backend::Close. Idempotent; thread-safe.
    void Close(Clock::time_point deadline) noexcept {
        BeginClose(deadline);
        Join();
        // Only where the thread was never started is anything left.
        std::vector<Pending> left;
        mailbox_->End([&] { left.swap(mailbox_->arrived); });
        for (Pending& pending : left) GiveBack(std::move(pending), ClosedFailure());
    }

    [[nodiscard]] Mailbox& Questions() const noexcept { return *mailbox_; }

private:
    using Stage = Route::Stage;
    using Step = Declarations::Step;

    // What is encoded before the socket gets it, in bytes. Little, so that a broker that has just given
    // credit is at work on the first messages while the rest are encoded.
    static constexpr std::size_t kMostUnsent = std::size_t{64} << 10u;
    // How long the broker may take to answer that a link is to be made.
    static constexpr std::chrono::seconds kPatience{30};
    // How long it may take to say whether a queue is there.
    static constexpr std::chrono::seconds kLook{10};

    // How long, from the deadline of a message on, it may take to answer what became of it. A broker
    // that lives and never says so would keep a place of the window for ever.
    [[nodiscard]] std::chrono::milliseconds Overdue() const { return 3 * settings_->options.heartbeat; }

    PublishingLoop(std::shared_ptr<const Settings> settings, std::shared_ptr<PublishingMailbox> mailbox)
        : IoLoop(std::move(settings), mailbox, "publish"),
          mailbox_(std::move(mailbox)),
          in_flight_(settings_->options.confirm_window) {}

    void Turn(Clock::time_point now) override;
    void Report() override {
        if (!finished_.empty()) settings_->context.sink->OnFinished(std::move(finished_));
    }
    [[nodiscard]] Clock::time_point NextTurn() const override;
    [[nodiscard]] bool Finished(Clock::time_point now) const override {
        return close_at_ && (now >= *close_at_ || Idle());
    }
    [[nodiscard]] Clock::time_point EndBy() const override { return close_at_.value_or(Clock::now()); }
    void OnEnd() override;
    void OnUp() override {
        for (Route* const route : used_) route->retry_at = {};
    }
    void OnDown(const Failure& failure) override;
    void OnSenderOpen(proton::sender& sender) override;
    void OnSendable(proton::sender& /*sender*/) override {
    }  // the turn that follows looks at all routes
    void OnSenderGone(proton::sender& sender, const std::optional<Failure>& why) override;
    void OnSettled(proton::tracker& tracker, enum proton::transfer::state state) override;
    void OnReceiverOpen(proton::receiver& receiver) override;
    void OnReceiverGone(proton::receiver& receiver, const std::optional<Failure>& why) override;

    // With routes_mutex_ held.
    Route& RouteTo(const backend::Destination& destination) {
        for (Route& route : routes_) {
            if (route.topic == destination.topic && route.address == destination.address) return route;
        }
        return routes_.emplace_back(destination, settings_->flavor, settings_->options);
    }

    void Accept(Pending pending);
    void Advance(Route& route, Clock::time_point now);
    void LoseWhereSilent(const Route& route, Clock::time_point now);
    bool IsReady(Route& route, Clock::time_point now);
    void Declare(Route& route, const GroupSource& source, Clock::time_point now);
    void MakeQueue(Route& route, const GroupSource& source, Clock::time_point now);
    void FinishLooking(Route& route, Clock::time_point now);
    void OnDeclarationGone(Route& route, const std::optional<Failure>& why);
    void OnDeclarationFailed(Route& route, const Failure& failure);
    void OpenLink(Route& route, Clock::time_point now);
    void OnRouteFailed(Route& route, const Failure& failure);
    [[nodiscard]] bool MaySend(const Route& route) const;
    void Pump(Route& route, Clock::time_point now);
    void Send(Route& route, Pending pending);
    void Requeue(Route& route);
    void Expire(Clock::time_point now);
    [[nodiscard]] Failure WaitedTooLong(const Route& route) const;
    void FailWaiting(Route& route, const Failure& failure);
    [[nodiscard]] Route* RouteOf(const proton::link& link) const;

    [[nodiscard]] bool Idle() const {
        return in_flight_.Unfinished() == 0 &&
               std::all_of(used_.begin(), used_.end(),
                           [](const Route* route) { return route->waiting.empty(); });
    }

    [[nodiscard]] Failure ClosedFailure() const {
        return {ErrorCode::kClosed, settings_->broker + ": the client is closed", {}};
    }

    // What a failed message must be taken to be: possible_duplicate is set on all that may have reached
    // a broker.
    static Outcome OutcomeOf(const Pending& pending) {
        return pending.publication->possible_duplicate ? Outcome::kUnknown : Outcome::kNotSent;
    }

    void Finish(Pending pending, std::unique_ptr<Error> error) {
        pending.publication->error = std::move(error);
        finished_.PushBack(std::move(pending.publication));
    }

    void Fail(Pending pending, const Failure& failure) {
        const Outcome outcome = OutcomeOf(pending);
        Finish(std::move(pending), failure.ForMessage(outcome));
    }

    // On the caller's thread, where there is no other that could.
    void GiveBack(Pending pending, const Failure& failure) const {
        pending.publication->error = failure.ForMessage(OutcomeOf(pending));
        backend::PublicationList list;
        list.PushBack(std::move(pending.publication));
        settings_->context.sink->OnFinished(std::move(list));
    }

    const std::shared_ptr<PublishingMailbox> mailbox_;
    // Guards the container routes_, and the descriptions in them; a route never moves or goes away.
    std::mutex routes_mutex_ = {};
    std::deque<Route> routes_ = {};

    // Of the I/O thread alone:
    std::vector<Pending> taken_ = {};
    std::vector<Route*> used_ = {};                         // the routes that were published to
    std::size_t first_ = 0;                                 // the one that begins this turn
    std::unordered_map<std::string, Route*> by_link_ = {};  // by the names of their links
    InFlight in_flight_;
    proton::message encoded_ = {};
    proton::binary tag_ = proton::binary(sizeof(std::uint64_t));
    backend::PublicationList finished_ = {};
    Clock::time_point next_deadline_ = Clock::time_point::max();
    Clock::time_point overdue_at_ = Clock::time_point::max();  // of what has expired
    std::optional<Clock::time_point> close_at_ = {};
};

inline void PublishingLoop::Turn(Clock::time_point now) {
    std::vector<std::shared_ptr<Inquiry>> inquiries;
    mailbox_->Collect([&] {
        taken_.swap(mailbox_->arrived);
        inquiries.swap(mailbox_->inquiries);
        close_at_ = mailbox_->close_at;
    });
    for (Pending& pending : taken_) Accept(std::move(pending));
    taken_.clear();
    for (auto& inquiry : inquiries) Ask(std::move(inquiry));
    if (now >= next_deadline_) Expire(now);
    if (!Up()) return;
    const auto oldest = in_flight_.OldestExpired();
    overdue_at_ = oldest ? *oldest + Overdue() : Clock::time_point::max();
    if (now >= overdue_at_) {
        return Lose({ErrorCode::kUnavailable,
                     Wire().Where() + ": the broker does not say what became of a message",
                     {}});
    }
    // Each begins once: the window of what is in flight is common to all.
    if (++first_ >= used_.size()) first_ = 0;
    for (std::size_t i = 0; i < used_.size(); ++i) {
        Route& route = *used_[(first_ + i) % used_.size()];
        if (!route.waiting.empty()) Advance(route, now);
    }
}

inline Clock::time_point PublishingLoop::NextTurn() const {
    Clock::time_point next = next_deadline_;
    if (close_at_) next = std::min(next, *close_at_);
    if (!Up()) return next;
    next = std::min(next, overdue_at_);
    for (const Route* const route : used_) {
        if (route->waiting.empty()) continue;
        const Declarations& declarations = route->declarations;
        const bool ready = route->ready == route->waiting.front().description;
        if (MaySend(*route) && !Wire().WriteBlocked()) next = Clock::time_point::min();
        // A turn with this time behind it asks for the link, or for the queue that is missing.
        if (declarations.step() == Step::kNone && (route->stage == Stage::kIdle || !ready)) {
            next = std::min(next, route->retry_at);
        }
        if (route->stage == Stage::kOpening) next = std::min(next, route->asked_at + kPatience);
        if (declarations.step() != Step::kNone) {
            next = std::min(next, declarations.asked_at() + kPatience);
        }
    }
    return next;
}

inline void PublishingLoop::Accept(Pending pending) {
    if (const auto failure =
            FindUnsendable(pending.publication->message, settings_->options, settings_->broker)) {
        Finish(std::move(pending), failure->ForMessage(Outcome::kNotSent));
        return;
    }
    next_deadline_ = std::min(next_deadline_, pending.publication->deadline);
    Route& route = *pending.route;
    if (!std::exchange(route.used, true)) used_.push_back(&route);
    route.waiting.push_back(std::move(pending));
}

// For a route with something to send.
inline void PublishingLoop::Advance(Route& route, Clock::time_point now) {
    if (route.looking != nullptr) FinishLooking(route, now);
    if (now >= route.retry_at) {
        const auto& wanted = route.waiting.front().description->sources;
        if (const GroupSource* next = route.declarations.Next(wanted, now)) Declare(route, *next, now);
        if (route.stage == Stage::kIdle && IsReady(route, now)) OpenLink(route, now);
    }
    if (route.stage == Stage::kOpen) Pump(route, now);
    LoseWhereSilent(route, now);
}

inline void PublishingLoop::LoseWhereSilent(const Route& route, Clock::time_point now) {
    const auto lose = [this](const std::string& address) {
        Lose({ErrorCode::kUnavailable, Wire().Where() + ": no answer to a link to " + address, {}});
    };
    if (route.stage == Stage::kOpening && now >= route.asked_at + kPatience) {
        return lose(route.topology.Target());
    }
    const Declarations& declarations = route.declarations;
    if (declarations.step() != Step::kNone && now >= declarations.asked_at() + kPatience) {
        lose(declarations.source().address);
    }
}

// Whether the queues are there that the next message needs.
inline bool PublishingLoop::IsReady(Route& route, Clock::time_point now) {
    const Description* const wanted = route.waiting.front().description;
    if (route.ready == wanted && now < route.ready_until) return true;
    const auto until = route.declarations.TrustedUntil(wanted->sources);
    const bool ready = until && now < *until;
    route.ready = ready ? wanted : nullptr;
    route.ready_until = until.value_or(now);
    return ready;
}

// A queue of Classic comes to be when somebody means to send to it; a subscription of Artemis with its
// first reader, which takes nothing here. Such a reader counts as a listener for as long as it is
// there: whether a subscription is there still is asked instead.
inline void PublishingLoop::Declare(Route& route, const GroupSource& source, Clock::time_point now) {
    if (!source.subscription || !route.declarations.Seen(source.queue)) {
        return MakeQueue(route, source, now);
    }
    route.declarations.Begin(source, Step::kLooking, {}, now);
    route.looking = std::make_shared<Inquiry>(QuestionAbout(source), now + kLook);
    Ask(route.looking);
}

inline void PublishingLoop::MakeQueue(Route& route, const GroupSource& source, Clock::time_point now) {
    const std::string name = FreshLinkName(source.link);
    route.declarations.Begin(source, Step::kMaking, name, now);
    by_link_[name] = &route;
    if (source.subscription) {
        static_cast<void>(OpenReceiver(Wire().Amqp(), source, name));
    } else {
        proton::target_options target;
        target.address(source.address);
        static_cast<void>(Wire().Amqp().open_sender(
            source.address, proton::sender_options{}.name(name).target(target)));
    }
}

inline void PublishingLoop::FinishLooking(Route& route, Clock::time_point now) {
    const auto answer = route.looking->TryAnswer();
    if (!answer) return;
    route.looking = nullptr;
    // Who may not ask the broker can only rely on what was there.
    if (answer->failure || answer->queue) return route.declarations.Finish(now);
    settings_->context.log(LogLevel::kWarning, Wire().Where() + ": the queue " +
                                                   route.declarations.source().queue +
                                                   " was removed, and is made again");
    route.declarations.Missing();
    route.ready = nullptr;
}

inline void PublishingLoop::OnDeclarationGone(Route& route, const std::optional<Failure>& why) {
    by_link_.erase(route.declarations.link());
    if (route.declarations.step() != Step::kMade) {
        return OnDeclarationFailed(
            route,
            why.value_or(Failure{ErrorCode::kUnavailable,
                                 Wire().Where() + ": the broker has refused a group's queue of " +
                                     route.topology.Target(),
                                 {}}));
    }
    route.declarations.Finish(Clock::now());
    if (route.stage == Stage::kOpen) route.backoff.Reset();
}

// Where the broker says no, what needs the queue gets that answer; what does not is sent.
inline void PublishingLoop::OnDeclarationFailed(Route& route, const Failure& failure) {
    const std::string queue = route.declarations.source().queue;
    settings_->context.log(LogLevel::kWarning, failure.text + ", of the queue " + queue);
    const auto trusted = route.declarations.TrustedUntil({route.declarations.source()});
    route.declarations.End();
    route.retry_at = Clock::now() + route.backoff.Next();
    route.why_not = failure.text;
    if (failure.code == ErrorCode::kUnavailable || (trusted && Clock::now() < *trusted)) return;
    for (Pending& pending : std::exchange(route.waiting, {})) {
        const auto& sources = pending.description->sources;
        const bool needs_it = std::any_of(sources.begin(), sources.end(),
                                          [&](const auto& source) { return source.queue == queue; });
        if (needs_it) {
            Fail(std::move(pending), failure);
        } else {
            route.waiting.push_back(std::move(pending));
        }
    }
}

inline void PublishingLoop::OpenLink(Route& route, Clock::time_point now) {
    route.stage = Stage::kOpening;
    route.asked_at = now;
    const std::string name = FreshLinkName({});
    by_link_[name] = &route;
    proton::target_options target;
    target.address(route.topology.Target());
    if (settings_->flavor == Flavor::kArtemis) {
        target.capabilities({proton::symbol{route.topology.IsQueue() ? "queue" : "topic"}});
    }
    route.sender = Wire().Amqp().open_sender(route.topology.Target(),
                                             proton::sender_options{}.name(name).target(target));
}

inline void PublishingLoop::OnSenderOpen(proton::sender& sender) {
    Route* const route = RouteOf(sender);
    if (route == nullptr) return;
    // A link that the broker refuses is answered without a target, and closed at once.
    const bool stands = !sender.target().address().empty();
    if (sender.name() == route->declarations.link()) {
        route->declarations.Answered(stands);
        if (stands) sender.close();
    } else if (stands && route->stage == Stage::kOpening) {
        route->stage = Stage::kOpen;
        route->open_since = Clock::now();
        route->max_size = MaxMessageSizeOf(sender);
    }
}

inline void PublishingLoop::OnReceiverOpen(proton::receiver& receiver) {
    Route* const route = RouteOf(receiver);
    if (route == nullptr || receiver.source().address().empty()) return;
    route->declarations.Answered(true);
    // Closed, the subscription would be gone again.
    receiver.detach();
}

inline void PublishingLoop::OnReceiverGone(proton::receiver& receiver,
                                           const std::optional<Failure>& why) {
    if (Route* const route = RouteOf(receiver); route != nullptr) OnDeclarationGone(*route, why);
}

inline void PublishingLoop::OnSenderGone(proton::sender& sender, const std::optional<Failure>& why) {
    Route* const route = RouteOf(sender);
    if (route == nullptr) return;
    if (sender.name() == route->declarations.link()) return OnDeclarationGone(*route, why);
    by_link_.erase(sender.name());
    OnRouteFailed(*route, why.value_or(Failure{ErrorCode::kUnavailable,
                                               Wire().Where() + ": the broker has closed the link to " +
                                                   route->topology.Target(),
                                               {}}));
}

// What was in flight is repeated, unless the broker says no: then all that waits gets that answer.
inline void PublishingLoop::OnRouteFailed(Route& route, const Failure& failure) {
    settings_->context.log(LogLevel::kWarning,
                           failure.text + ", of the link to " + route.topology.Target());
    Requeue(route);
    if (route.stage == Stage::kOpen && Clock::now() - route.open_since >= kSettled) {
        route.backoff.Reset();
    }
    route.stage = Stage::kIdle;
    route.sender = {};
    // What has ended the link may have taken the queues along.
    route.declarations.Distrust();
    route.ready = nullptr;
    route.retry_at = Clock::now() + route.backoff.Next();
    route.why_not = failure.text;
    if (failure.code != ErrorCode::kUnavailable) FailWaiting(route, failure);
}

inline bool PublishingLoop::MaySend(const Route& route) const {
    return route.stage == Stage::kOpen && !route.waiting.empty() &&
           route.ready == route.waiting.front().description && !in_flight_.Full() &&
           route.sender.credit() > 0 && route.sender.session().outgoing_bytes() < kMostUnsent;
}

inline void PublishingLoop::Pump(Route& route, Clock::time_point now) {
    while (!route.waiting.empty() && IsReady(route, now) && MaySend(route)) {
        Pending pending = std::move(route.waiting.front());
        route.waiting.pop_front();
        if (pending.publication->deadline <= now) {
            Fail(std::move(pending), WaitedTooLong(route));
        } else {
            Send(route, std::move(pending));
        }
    }
}

inline void PublishingLoop::Send(Route& route, Pending pending) {
    const auto fail_by = [&](const std::exception& error) {
        Fail(std::move(pending),
             {ErrorCode::kInvalidArgument,
              settings_->broker + ": the message cannot be encoded: " + error.what(),
              {}});
    };
    const std::size_t size = pending.publication->message.body.size();
    if (route.max_size != 0 && size > route.max_size) {
        return Fail(std::move(pending),
                    {ErrorCode::kTooLarge,
                     Wire().Where() + ": the broker takes messages of at most " +
                         std::to_string(route.max_size) + " bytes for " + route.topology.Target() +
                         ", and the body alone has " + std::to_string(size),
                     {}});
    }
    encoded_.clear();
    try {
        Encode(*pending.publication, settings_->flavor, encoded_);
    } catch (const std::exception& error) {
        return fail_by(error);
    }
    const std::uint64_t number = in_flight_.Add(std::move(pending), Wire().Written());
    std::memcpy(tag_.data(), &number, sizeof(number));
    try {
        route.sender.send(encoded_, tag_);
    } catch (const std::exception& error) {
        pending = in_flight_.Settle(number);
        fail_by(error);
        // The engine has begun with it, and would go on with the next one in its place.
        Lose({ErrorCode::kUnavailable, Wire().Where() + ": " + error.what(), {}});
    }
}

inline void PublishingLoop::OnSettled(proton::tracker& tracker, enum proton::transfer::state state) {
    using proton::transfer;
    const proton::binary tag = tracker.tag();
    std::uint64_t number = 0;
    if (tag.size() != sizeof(number)) return;
    std::memcpy(&number, tag.data(), sizeof(number));
    Pending pending = in_flight_.Settle(number);
    if (pending.publication == nullptr) return;
    if (state == transfer::ACCEPTED) return Finish(std::move(pending), nullptr);
    const std::string where = Wire().Where() + ": the broker ";
    const std::string what = " the message for " + pending.route->topology.Target();
    if (state == transfer::REJECTED) {
        const Failure unexplained{ErrorCode::kRefused, where + "has rejected" + what, {}};
        Fail(std::move(pending), RejectionOf(tracker, unexplained.text).value_or(unexplained));
    } else if (state == transfer::RELEASED || state == transfer::MODIFIED) {
        Fail(std::move(pending), {ErrorCode::kRefused, where + "does not take" + what + " now", {}});
    } else {
        pending.publication->possible_duplicate = true;
        Fail(std::move(pending),
             {ErrorCode::kRefused, where + "does not say what became of" + what, {}});
    }
}

// Takes back what was in flight on a link that is gone, in front of all that was never sent.
inline void PublishingLoop::Requeue(Route& route) {
    const std::uint64_t written = Wire().Written();
    std::deque<Pending> first;
    in_flight_.TakeAll(&route, [&](Pending pending, std::uint64_t position) {
        // Where nothing was written since, it is still here.
        if (position < written) pending.publication->possible_duplicate = true;
        first.push_back(std::move(pending));
    });
    route.waiting.insert(route.waiting.begin(), std::make_move_iterator(first.begin()),
                         std::make_move_iterator(first.end()));
}

inline void PublishingLoop::OnDown(const Failure& failure) {
    for (Route* const route : used_) {
        if (WasOpen()) Requeue(*route);
        route->stage = Stage::kIdle;
        route->sender = {};
        route->declarations.Forget();
        route->looking = nullptr;
        route->ready = nullptr;
        // The next attempt is refused like this one, until somebody has changed something.
        if (failure.NeedsSomebody()) FailWaiting(*route, failure);
    }
    by_link_.clear();
}

inline void PublishingLoop::FailWaiting(Route& route, const Failure& failure) {
    for (Pending& pending : std::exchange(route.waiting, {})) Fail(std::move(pending), failure);
}

inline void PublishingLoop::Expire(Clock::time_point now) {
    next_deadline_ = in_flight_.Expire(now, [this](Pending pending) {
        const Failure late{
            ErrorCode::kTimeout, settings_->broker + ": not confirmed before its deadline", {}};
        Finish(std::move(pending), late.ForMessage(Outcome::kUnknown));
    });
    for (Route* const route : used_) {
        std::deque<Pending> kept;
        for (Pending& pending : route->waiting) {
            const auto deadline = pending.publication->deadline;
            if (deadline > now) {
                next_deadline_ = std::min(next_deadline_, deadline);
                kept.push_back(std::move(pending));
            } else {
                Fail(std::move(pending), WaitedTooLong(*route));
            }
        }
        route->waiting = std::move(kept);
    }
}

inline Failure PublishingLoop::WaitedTooLong(const Route& route) const {
    if (!Up()) {
        Failure failure = WhyNotUp();
        failure.code = ErrorCode::kUnavailable;
        failure.text = "not sent before its deadline: " + failure.text;
        return failure;
    }
    std::string text = Wire().Where() + ": not sent before its deadline: ";
    if (route.stage != Stage::kOpen) {
        text += "there is no link to " + route.topology.Target();
        if (!route.why_not.empty()) text += ": " + route.why_not;
    } else if (route.ready == nullptr && !route.declarations.source().queue.empty()) {
        text += "the queue " + route.declarations.source().queue + " is not known to be there";
        if (!route.why_not.empty()) text += ": " + route.why_not;
    } else if (in_flight_.Full()) {
        text += "the broker has not confirmed the " + std::to_string(in_flight_.Size()) +
                " messages before it";
    } else if (route.sender.credit() <= 0) {
        text += "the broker gives no credit for " + route.topology.Target();
    } else {
        text += "the broker does not take it";
    }
    return {ErrorCode::kTimeout, std::move(text), {}};
}

inline Route* PublishingLoop::RouteOf(const proton::link& link) const {
    const auto found = by_link_.find(link.name());
    return found == by_link_.end() ? nullptr : found->second;
}

inline void PublishingLoop::OnEnd() {
    std::vector<std::shared_ptr<Inquiry>> inquiries;
    mailbox_->End([&] {
        taken_.swap(mailbox_->arrived);
        inquiries.swap(mailbox_->inquiries);
    });
    const Failure closed = ClosedFailure();
    for (const auto& inquiry : inquiries) inquiry->Fail(closed);
    for (Pending& pending : taken_) Fail(std::move(pending), closed);
    taken_.clear();
    for (Route* const route : used_) FailWaiting(*route, closed);
    Report();
}

}  // namespace detail
}  // namespace mq::activemq
