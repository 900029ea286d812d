/// @file publishing.hpp
/// The publishing connection's thread: a link for each destination, messages sent as fast as the
/// broker's credit and the window of unconfirmed ones allow, and each finished when the broker has
/// accepted it, refused it or not answered in time.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/activemq/codec.hpp>
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

/// The way to one destination. Its first two members are immutable; the others are the I/O thread's.
struct Route {
    enum class Stage : unsigned char {
        kIdle,       ///< No link; made at retry_at, where something waits.
        kDeclaring,  ///< The groups' queues or subscriptions are being made, one after the other.
        kOpening,    ///< The link is being made.
        kOpen,
    };

    Route(std::shared_ptr<const backend::Destination> where, Flavor flavor, const Options& options)
        : destination(std::move(where)), topology(*destination, flavor, options) {}

    const std::shared_ptr<const backend::Destination> destination;
    const Topology topology;
    Stage stage = Stage::kIdle;
    std::size_t declared = 0;     ///< How many of the groups are.
    std::string declaring = {};   ///< The name of the link that declares one.
    bool declaring_open = false;  ///< That link stands, and is being closed again.
    proton::sender sender = {};
    std::uint64_t max_size = 0;        ///< The broker's limit for a message in bytes; 0 for none.
    std::deque<Pending> waiting = {};  ///< Accepted and not yet sent, in order.
    backend::Clock::time_point retry_at = {};
    backend::Clock::time_point asked_at = {};
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

    /// The route of a destination; an equal destination has the same one. Thread-safe.
    /// @throws Error (kInvalidArgument) where the address is not one for the broker.
    Route* RouteTo(std::shared_ptr<const backend::Destination> destination) {
        const std::lock_guard lock{routes_mutex_};
        for (Route& route : routes_) {
            const backend::Destination& known = *route.destination;
            if (known.topic == destination->topic && known.address == destination->address &&
                known.groups == destination->groups && known.ordered == destination->ordered) {
                return &route;
            }
        }
        return &routes_.emplace_back(std::move(destination), settings_->flavor, settings_->options);
    }

    /// Never blocks. Thread-safe.
    void Submit(std::unique_ptr<backend::Publication> publication, Route* route) noexcept {
        Pending pending{std::move(publication), route};
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

    // What is encoded before the socket gets it, in bytes. Little, so that a broker that has just given
    // credit is at work on the first messages while the rest are encoded.
    static constexpr std::size_t kMostUnsent = std::size_t{64} << 10u;
    // How long the broker may take to answer that a link is to be made.
    static constexpr std::chrono::seconds kPatience{30};

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

    void Accept(Pending pending);
    void Advance(Route& route, Clock::time_point now);
    void DeclareNext(Route& route);
    void OnDeclared(Route& route, bool stands);
    void OnDeclarationGone(Route& route, const std::optional<Failure>& why);
    void OpenLink(Route& route);
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
    std::mutex routes_mutex_ = {};  // guards the container routes_; a route never moves or goes away
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
        if (route->stage == Stage::kIdle) {
            next = std::min(next, route->retry_at);
        } else if (route->stage != Stage::kOpen) {
            next = std::min(next, route->asked_at + kPatience);
        } else if (MaySend(*route) && !Wire().WriteBlocked()) {
            next = Clock::time_point::min();
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

inline void PublishingLoop::Advance(Route& route, Clock::time_point now) {
    if (route.stage == Stage::kIdle && now >= route.retry_at) {
        route.asked_at = now;
        route.stage = Stage::kDeclaring;
        DeclareNext(route);
    }
    if (route.stage == Stage::kOpen) {
        Pump(route, now);
    } else if (route.stage != Stage::kIdle && now >= route.asked_at + kPatience) {
        Lose({ErrorCode::kUnavailable,
              Wire().Where() + ": no answer to a link to " + route.topology.Target(),
              {}});
    }
}

// A queue of Classic comes to be when somebody means to send to it; a subscription of Artemis with its
// first reader, which takes nothing here.
inline void PublishingLoop::DeclareNext(Route& route) {
    const auto& groups = route.destination->groups;
    if (route.declared >= groups.size() || route.topology.IsQueue()) return OpenLink(route);
    const GroupSource source = route.topology.SourceOf(groups[route.declared]);
    route.declaring = FreshLinkName(source.link);
    route.declaring_open = false;
    by_link_[route.declaring] = &route;
    if (source.subscription) {
        static_cast<void>(OpenReceiver(Wire().Amqp(), source, route.declaring));
    } else {
        proton::target_options target;
        target.address(source.address);
        static_cast<void>(Wire().Amqp().open_sender(
            source.address, proton::sender_options{}.name(route.declaring).target(target)));
    }
}

// The broker has answered that the declaring link stands, or will say at once why it does not.
inline void PublishingLoop::OnDeclared(Route& route, bool stands) { route.declaring_open = stands; }

inline void PublishingLoop::OnDeclarationGone(Route& route, const std::optional<Failure>& why) {
    by_link_.erase(route.declaring);
    route.declaring.clear();
    if (!route.declaring_open) {
        return OnRouteFailed(
            route,
            why.value_or(Failure{ErrorCode::kUnavailable,
                                 Wire().Where() + ": the broker has refused a group's queue of " +
                                     route.topology.Target(),
                                 {}}));
    }
    ++route.declared;
    DeclareNext(route);
}

inline void PublishingLoop::OpenLink(Route& route) {
    route.stage = Stage::kOpening;
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
    if (sender.name() == route->declaring) {
        OnDeclared(*route, stands);
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
    OnDeclared(*route, true);
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
    if (sender.name() == route->declaring) return OnDeclarationGone(*route, why);
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
    route.declared = 0;
    route.retry_at = Clock::now() + route.backoff.Next();
    route.why_not = failure.text;
    if (failure.code != ErrorCode::kUnavailable) FailWaiting(route, failure);
}

inline bool PublishingLoop::MaySend(const Route& route) const {
    return route.stage == Stage::kOpen && !route.waiting.empty() && !in_flight_.Full() &&
           route.sender.credit() > 0 && route.sender.session().outgoing_bytes() < kMostUnsent;
}

inline void PublishingLoop::Pump(Route& route, Clock::time_point now) {
    while (MaySend(route)) {
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
        route->declared = 0;
        route->declaring.clear();
        // The next attempt is refused like this one, until somebody has changed something.
        if (failure.code == ErrorCode::kAccessDenied) FailWaiting(*route, failure);
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
