/// @file publishing.hpp
/// The publishing connection's thread: sends messages as fast as the window of unconfirmed ones and the
/// socket allow, and finishes each when the broker has confirmed it, refused it or not answered in
/// time. Included by rabbitmq.hpp alone, behind the library's headers.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/rabbitmq/codec.hpp>
#include <mq/backends/rabbitmq/confirm_window.hpp>
#include <mq/backends/rabbitmq/io_loop.hpp>
#include <mq/backends/rabbitmq/mailbox.hpp>
#include <mq/backends/rabbitmq/topology.hpp>
#include <mq/backends/rabbitmq/watch.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::rabbitmq {

/// What is published to one address waits here, for as long as something is being declared for it: all
/// of it, whatever description of the address it came by, or what needs nothing would overtake what was
/// sent before it. The I/O thread's.
struct Lane {
    std::deque<Pending> parked = {};
    bool setting_up = false;  ///< For one of its routes.
    bool listed = false;      ///< Whether the loop knows it.
};

/// One description of a destination. Its first three members are immutable; the others are the I/O
/// thread's.
struct Route {
    Route(std::shared_ptr<const backend::Destination> where, const Options& options, Lane& way)
        : destination(std::move(where)), topology(*destination, options), lane(way) {}

    const std::shared_ptr<const backend::Destination> destination;
    const Topology topology;
    Lane& lane;
    /// The exchange, the queues and the bindings were there, when they were last looked at.
    bool ready = false;
    std::chrono::steady_clock::time_point looked_at = {};
    bool used = false;    ///< Published to since then.
    bool listed = false;  ///< Whether the loop knows it.
};

namespace detail {

/// What other threads leave for the publishing loop. Not bounded here: the caller of Publish bounds
/// what is in flight, for each broker and in bytes.
class PublishingMailbox : public Mailbox {
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
    /// @throws Error (kInvalidArgument) where the address is not one for RabbitMQ.
    Route* RouteTo(std::shared_ptr<const backend::Destination> destination) {
        const std::lock_guard lock{routes_mutex_};
        for (Route& route : routes_) {
            const backend::Destination& known = *route.destination;
            if (known.topic == destination->topic && known.address == destination->address &&
                known.groups == destination->groups && known.ordered == destination->ordered) {
                return &route;
            }
        }
        static_cast<void>(Topology{*destination, settings_->options});  // throws before a lane is made
        Lane& lane = LaneOf(destination->address);
        return &routes_.emplace_back(std::move(destination), settings_->options, lane);
    }

    /// Never blocks. Thread-safe.
    void Submit(std::unique_ptr<backend::Publication> publication, Route* route) noexcept {
        Pending pending;
        pending.publication = std::move(publication);
        pending.route = route;
        try {
            if (!Started()) Start();
        } catch (const std::system_error& error) {
            const Failure failure{ErrorCode::kInternal,
                                  settings_->broker + ": cannot start a thread: " + error.what(),
                                  {}};
            GiveBack(std::move(pending), failure);
            return;
        }
        if (!mailbox_->Post([&] { mailbox_->arrived.push_back(std::move(pending)); })) {
            GiveBack(std::move(pending), ClosedFailure());
        }
    }

    /// As Backend::Close. Idempotent; thread-safe.
    void Close(Clock::time_point deadline) noexcept {
        mailbox_->Post(
            [&] { mailbox_->close_at = std::min(mailbox_->close_at.value_or(deadline), deadline); });
        Join(deadline);
        // Only where the thread was never started is anything left.
        std::vector<Pending> left;
        mailbox_->End([&] { left.swap(mailbox_->arrived); });
        for (Pending& pending : left) GiveBack(std::move(pending), ClosedFailure());
    }

    [[nodiscard]] Mailbox& Questions() const noexcept { return *mailbox_; }

private:
    static constexpr std::uint16_t kChannel = 2;
    // As much as goes to the socket in one piece; beyond it, encoding waits for the socket.
    static constexpr std::size_t kMostUnsent = std::size_t{256} << 10u;
    // What is published to is looked at again so often, in between and without anybody waiting for it.
    static constexpr std::chrono::seconds kLookEvery{10};
    // A message waits for another look where the last one is older: other programs may have deleted or
    // unbound something, and the broker confirms a message that a missing queue does not get.
    static constexpr std::chrono::seconds kLookIsGood{20};
    // An exchange that vanishes again and again although it is declared each time.
    static constexpr unsigned kMostClosures = 2;

    // A message that comes back: what is known of it before its properties arrive.
    struct Return {
        Returned returned = {};
        std::string exchange = {};
        std::string routing_key = {};
    };

    PublishingLoop(std::shared_ptr<const Settings> settings, std::shared_ptr<PublishingMailbox> mailbox)
        : IoLoop(std::move(settings), mailbox, "publish"),
          mailbox_(std::move(mailbox)),
          window_(settings_->options.confirm_window) {}

    void Turn(Clock::time_point now) override;
    void Report() override {
        if (!finished_.empty()) settings_->context.sink->OnFinished(std::move(finished_));
    }
    [[nodiscard]] Clock::time_point NextTurn() const override;
    [[nodiscard]] bool Finished(Clock::time_point now) const override {
        return close_at_ && (now >= *close_at_ || Idle());
    }
    void OnEnd() override;
    void OnUp() override { OpenChannel(); }
    void OnDown(const Failure& failure) override;
    void OnMethod(std::uint16_t channel, const amqp_method_t& method) override;
    void OnProperties(std::uint16_t channel, const amqp_basic_properties_t& properties,
                      std::uint64_t body_size) override;
    void OnBody(std::uint16_t /*channel*/, std::string_view /*fragment*/) override {}

    // Call with routes_mutex_ held.
    Lane& LaneOf(const std::string& address) {
        for (const Route& route : routes_) {
            if (route.destination->address == address) return route.lane;
        }
        return lanes_.emplace_back();
    }

    void Accept(Pending pending);
    [[nodiscard]] static bool MustWait(const Route& route, Clock::time_point now) {
        return !route.ready || now - route.looked_at >= kLookIsGood || !route.lane.parked.empty();
    }
    void LookAfterRoutes(Clock::time_point now);
    void OnRouteLookedAt(Route& route, const SetupResult& result);
    void OpenChannel();
    void Pump(Clock::time_point now);
    [[nodiscard]] bool MaySend() const;
    void Send(Pending pending);
    void Park(Pending pending);
    void OnRouteSetUp(Route& route, const SetupResult& result);
    void OnConfirm(std::uint64_t tag, bool multiple, bool positive);
    void OnChannelClosed(const amqp_channel_close_t& close);
    std::size_t Requeue(bool channel_only);
    void Expire(Clock::time_point now);
    void ExpireAll(std::deque<Pending>& waiting, Clock::time_point now);
    [[nodiscard]] Failure WaitedTooLong() const;
    [[nodiscard]] Failure NotConfirmed() const;
    void FailWaiting(const Failure& failure);
    void FinishReturned(Pending pending, const Returned& returned);
    void Answer(std::shared_ptr<Inquiry> inquiry);

    [[nodiscard]] bool Idle() const {
        return queue_.empty() && parked_ == 0 && window_.Unfinished() == 0;
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

    // On the caller's thread, where there is no other that could.
    void GiveBack(Pending pending, const Failure& failure) const {
        pending.publication->error = failure.ForMessage(OutcomeOf(pending));
        backend::PublicationList list;
        list.PushBack(std::move(pending.publication));
        settings_->context.sink->OnFinished(std::move(list));
    }

    const std::shared_ptr<PublishingMailbox> mailbox_;
    std::mutex routes_mutex_ =
        {};  // guards the two containers; what is in them never moves or goes away
    std::deque<Lane> lanes_ = {};
    std::deque<Route> routes_ = {};

    // Of the I/O thread alone:
    std::vector<Pending> taken_ = {};
    std::deque<Pending> queue_ = {};  // accepted and not yet sent, in order
    std::size_t parked_ = 0;          // messages in the lanes' parked queues
    std::vector<Lane*> lanes_used_ = {};
    std::vector<Route*> used_ = {};  // the routes that were published to
    ConfirmWindow window_;
    PropertiesEncoder encoder_ = {};
    std::optional<Return> return_ = {};
    backend::PublicationList finished_ = {};
    bool channel_ready_ = false;
    bool suspect_in_flight_ = false;
    bool looking_ = false;  // at a route that is in use
    Clock::time_point next_look_ = {};
    ConfirmWatch watch_ = {};
    Clock::time_point channel_asked_at_ = {};
    // No deadline of a message is earlier; a later one may be the earliest by now.
    Clock::time_point next_deadline_ = Clock::time_point::max();
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
    for (auto& inquiry : inquiries) Answer(std::move(inquiry));
    if (now >= next_deadline_) Expire(now);
    if (!Up()) return;
    if (Blocked() || window_.Size() == 0) watch_.NoteProgress(now);
    if (channel_ready_ && now >= watch_.Deadline()) {
        Lose({ErrorCode::kUnavailable,
              Wire().Where() + ": it has confirmed none of " + std::to_string(window_.Size()) +
                  " messages for " + std::to_string(ConfirmWatch::kPatience.count()) + " seconds",
              {}});
        return;
    }
    LookAfterRoutes(now);
    if (channel_ready_) {
        Pump(now);
    } else if (!Blocked() && now >= channel_asked_at_ + SetupChannel::kPatience) {
        Lose({ErrorCode::kUnavailable, Wire().Where() + ": no answer to channel.open", {}});
    }
}

inline Clock::time_point PublishingLoop::NextTurn() const {
    Clock::time_point next = next_deadline_;
    if (close_at_) next = std::min(next, *close_at_);
    if (Up() && MaySend() && Wire().Unsent() == 0) next = Clock::time_point::min();
    if (Up() && !channel_ready_ && !Blocked()) {
        next = std::min(next, channel_asked_at_ + SetupChannel::kPatience);
    }
    if (Up() && !Blocked()) {
        if (window_.Size() > 0) next = std::min(next, watch_.Deadline());
        if (!looking_ && !used_.empty()) next = std::min(next, next_look_);
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
    queue_.push_back(std::move(pending));
}

inline void PublishingLoop::OpenChannel() {
    channel_ready_ = false;
    suspect_in_flight_ = false;
    return_.reset();
    channel_asked_at_ = Clock::now();
    amqp_channel_open_t open{};
    Wire().SendMethod(kChannel, AMQP_CHANNEL_OPEN_METHOD, &open);
    amqp_confirm_select_t select{};
    Wire().SendMethod(kChannel, AMQP_CONFIRM_SELECT_METHOD, &select);
}

inline bool PublishingLoop::MaySend() const {
    if (!channel_ready_ || Blocked() || queue_.empty() || window_.Full()) return false;
    // A message that may be the one over which the broker closes the channel travels alone.
    const bool alone = queue_.front().suspect || suspect_in_flight_;
    return (!alone || window_.Size() == 0) && Wire().Unsent() < kMostUnsent;
}

inline void PublishingLoop::Pump(Clock::time_point now) {
    while (MaySend()) {
        Pending pending = std::move(queue_.front());
        queue_.pop_front();
        if (pending.publication->deadline <= now) {
            const Outcome outcome = OutcomeOf(pending);
            Finish(std::move(pending), WaitedTooLong().ForMessage(outcome));
        } else if (MustWait(*pending.route, now)) {
            Park(std::move(pending));
        } else {
            Send(std::move(pending));
        }
    }
}

inline void PublishingLoop::Send(Pending pending) {
    const Topology& topology = pending.route->topology;
    const backend::Publication& publication = *pending.publication;
    amqp_basic_publish_t publish{};
    publish.exchange = Bytes(topology.Exchange());
    publish.routing_key = Bytes(topology.RoutingKey(publication.message.key));
    publish.mandatory = 1;
    const std::uint64_t begin = Wire().Position();
    if (!Wire().SendMessage(kChannel, publish, encoder_.Encode(publication),
                            publication.message.body)) {
        const Failure failure{ErrorCode::kTooLarge,
                              Wire().Where() + ": the headers and the key do not fit one frame",
                              {}};
        const Outcome outcome = OutcomeOf(pending);
        Finish(std::move(pending), failure.ForMessage(outcome));
        return;
    }
    suspect_in_flight_ = pending.suspect;
    pending.route->used = true;
    window_.Add(std::move(pending), begin);
}

inline void PublishingLoop::Park(Pending pending) {
    Route& route = *pending.route;
    Lane& lane = route.lane;
    lane.parked.push_back(std::move(pending));
    ++parked_;
    if (!std::exchange(lane.listed, true)) lanes_used_.push_back(&lane);
    if (!std::exchange(route.listed, true)) used_.push_back(&route);
    // What is set up for an earlier description of the address comes first: the rest follows in turn.
    if (std::exchange(lane.setting_up, true)) return;
    setup_.Run(StepsForPublishing(route.topology, *route.destination, settings_->options),
               [this, &route](const SetupResult& result) { OnRouteSetUp(route, result); });
}

inline void PublishingLoop::OnRouteSetUp(Route& route, const SetupResult& result) {
    Lane& lane = route.lane;
    lane.setting_up = false;
    // Without a connection the parked messages wait for the next one, with all the others.
    if (!Up()) return;
    parked_ -= lane.parked.size();
    std::deque<Pending> waiting;
    for (Pending& pending : std::exchange(lane.parked, {})) {
        if (result.failure && pending.route == &route) {
            const Outcome outcome = OutcomeOf(pending);
            Finish(std::move(pending), result.failure->ForMessage(outcome));
        } else {
            waiting.push_back(std::move(pending));
        }
    }
    route.ready = !result.failure;
    route.looked_at = Clock::now();
    route.used = false;
    // What is still in the queue for this address came later.
    queue_.insert(queue_.begin(), std::make_move_iterator(waiting.begin()),
                  std::make_move_iterator(waiting.end()));
}

// One at a time, so that hundreds of destinations make a trickle and no burst.
inline void PublishingLoop::LookAfterRoutes(Clock::time_point now) {
    if (looking_ || Blocked() || now < next_look_) return;
    next_look_ = now + kLookEvery;
    Route* due = nullptr;
    for (Route* const route : used_) {
        if (!route->ready || !route->used) continue;
        next_look_ = std::min(next_look_, route->looked_at + kLookEvery);
        if (due == nullptr || route->looked_at < due->looked_at) due = route;
    }
    if (due == nullptr || now < due->looked_at + kLookEvery) return;
    looking_ = true;
    due->used = false;
    setup_.Run(StepsForPublishing(due->topology, *due->destination, settings_->options),
               [this, due](const SetupResult& result) { OnRouteLookedAt(*due, result); });
}

inline void PublishingLoop::OnRouteLookedAt(Route& route, const SetupResult& result) {
    looking_ = false;
    next_look_ = {};
    if (!Up() || !route.ready) return;
    route.looked_at = Clock::now();
    if (!result.failure) return;
    // The next message looks for itself, and fails where it still is so.
    route.ready = false;
    Log(LogLevel::kWarning, "the topic " + route.destination->topic +
                                " has not what it needs any more: " + result.failure->text);
}

inline void PublishingLoop::OnMethod(std::uint16_t channel, const amqp_method_t& method) {
    if (channel != kChannel) return;
    switch (method.id) {
        case AMQP_CONFIRM_SELECT_OK_METHOD: channel_ready_ = true; return;
        case AMQP_BASIC_ACK_METHOD: {
            const auto& ack = *static_cast<const amqp_basic_ack_t*>(method.decoded);
            OnConfirm(ack.delivery_tag, ack.multiple != 0, true);
            return;
        }
        case AMQP_BASIC_NACK_METHOD: {
            const auto& nack = *static_cast<const amqp_basic_nack_t*>(method.decoded);
            OnConfirm(nack.delivery_tag, nack.multiple != 0, false);
            return;
        }
        case AMQP_BASIC_RETURN_METHOD: {
            const auto& returned = *static_cast<const amqp_basic_return_t*>(method.decoded);
            return_ = Return{{returned.reply_code, std::string{View(returned.reply_text)}},
                             std::string{View(returned.exchange)},
                             std::string{View(returned.routing_key)}};
            return;
        }
        case AMQP_CHANNEL_CLOSE_METHOD:
            OnChannelClosed(*static_cast<const amqp_channel_close_t*>(method.decoded));
            return;
        default: return;
    }
}

// A returned message has no delivery tag: it is known by its id, where it went, and its place.
inline void PublishingLoop::OnProperties(std::uint16_t channel,
                                         const amqp_basic_properties_t& properties,
                                         std::uint64_t /*body_size*/) {
    if (channel != kChannel || !return_) return;
    Return returned = *std::exchange(return_, std::nullopt);
    const std::string_view id = View(properties.message_id);
    window_.MarkReturned(
        [&](const Pending& pending) {
            const Message& message = pending.publication->message;
            const Topology& topology = pending.route->topology;
            return message.id == id && topology.Exchange() == returned.exchange &&
                   topology.RoutingKey(message.key) == returned.routing_key;
        },
        std::move(returned.returned));
}

inline void PublishingLoop::OnConfirm(std::uint64_t tag, bool multiple, bool positive) {
    watch_.NoteProgress(Clock::now());
    window_.Confirm(tag, multiple, [&](Pending pending, const Returned* returned) {
        if (returned != nullptr) {
            FinishReturned(std::move(pending), *returned);
        } else if (positive) {
            Finish(std::move(pending), nullptr);
        } else {
            // One of several queues may have taken it, and an overflowing one refused it.
            const Failure refused{ErrorCode::kRefused,
                                  Wire().Where() + ": the broker refused the message (basic.nack)",
                                  {}};
            Finish(std::move(pending), refused.ForMessage(Outcome::kUnknown));
        }
    });
}

inline void PublishingLoop::FinishReturned(Pending pending, const Returned& returned) {
    const Topology& topology = pending.route->topology;
    // A queue or its binding may have gone: the next message looks, where the last look is not this
    // one's.
    const bool groups_named = !pending.route->destination->groups.empty() || !topology.HasExchange();
    constexpr std::chrono::seconds kJustLooked{1};
    if (groups_named && Clock::now() - pending.route->looked_at >= kJustLooked) {
        pending.route->ready = false;
    }
    std::string text = settings_->broker + ": ";
    if (topology.HasExchange()) {
        text += "no queue takes what is published to the exchange " + topology.Exchange();
        const auto key = topology.RoutingKey(pending.publication->message.key);
        if (!key.empty()) text += " with the routing key " + mq::detail::Shown(key);
    } else {
        text += "there is no queue " + std::string{topology.RoutingKey({})};
    }
    const Failure failure{ErrorCode::kUnroutable, std::move(text), {returned.code, returned.text}};
    const Outcome outcome = OutcomeOf(pending);
    Finish(std::move(pending), failure.ForMessage(outcome));
}

inline void PublishingLoop::OnChannelClosed(const amqp_channel_close_t& close) {
    const Failure failure =
        FromReply(Wire().Where(), close.reply_code, std::string{View(close.reply_text)});
    settings_->context.log(LogLevel::kWarning, failure.text + "; opening the channel again");
    amqp_channel_close_ok_t close_ok{};
    Wire().SendMethod(kChannel, AMQP_CHANNEL_CLOSE_OK_METHOD, &close_ok);
    const bool alone = window_.Size() == 1;
    const std::size_t requeued = Requeue(true);
    if (alone && requeued == 1) {
        // Nothing else was in flight: the channel was closed over this one, which was not taken.
        Pending& culprit = queue_.front();
        const bool vanished = failure.code == ErrorCode::kNotFound && settings_->options.declare;
        if (++culprit.closures > kMostClosures || !vanished) {
            const Outcome outcome = OutcomeOf(culprit);
            Finish(std::move(culprit), failure.ForMessage(outcome));
            queue_.pop_front();
        }
    }
    OpenChannel();
}

// Takes back what was in flight, and what waits for its route, in front of all that was never sent.
// Returns how many were in flight.
inline std::size_t PublishingLoop::Requeue(bool channel_only) {
    const std::uint64_t written = Wire().Written();
    const bool alone = channel_only && window_.Size() == 1;
    std::deque<Pending> first;
    window_.TakeAll([&](Pending pending, std::uint64_t begin, const Returned* returned) {
        if (returned != nullptr) {
            FinishReturned(std::move(pending), *returned);
            return;
        }
        if (begin < written && !alone) pending.publication->possible_duplicate = true;
        pending.suspect = channel_only || pending.suspect;
        first.push_back(std::move(pending));
    });
    const std::size_t taken = first.size();
    for (Route* const route : used_) route->ready = false;
    // Behind what was in flight; a setup that is under way goes on, and they are parked again until
    // then.
    for (Lane* const lane : lanes_used_) {
        std::move(lane->parked.begin(), lane->parked.end(), std::back_inserter(first));
        parked_ -= lane->parked.size();
        lane->parked.clear();
    }
    queue_.insert(queue_.begin(), std::make_move_iterator(first.begin()),
                  std::make_move_iterator(first.end()));
    suspect_in_flight_ = false;
    return taken;
}

inline void PublishingLoop::OnDown(const Failure& failure) {
    if (Connected()) Requeue(false);
    channel_ready_ = false;
    return_.reset();
    // The next attempt is refused like this one, until somebody has changed something.
    if (failure.code == ErrorCode::kAccessDenied) FailWaiting(failure);
}

inline void PublishingLoop::FailWaiting(const Failure& failure) {
    for (Pending& pending : std::exchange(queue_, {})) {
        const Outcome outcome = OutcomeOf(pending);
        Finish(std::move(pending), failure.ForMessage(outcome));
    }
}

inline void PublishingLoop::Expire(Clock::time_point now) {
    next_deadline_ = Clock::time_point::max();
    ExpireAll(queue_, now);
    for (Lane* const lane : lanes_used_) {
        parked_ -= lane->parked.size();
        ExpireAll(lane->parked, now);
        parked_ += lane->parked.size();
    }
    const auto earliest = window_.Expire(now, [this](Pending pending) {
        Finish(std::move(pending), NotConfirmed().ForMessage(Outcome::kUnknown));
    });
    next_deadline_ = std::min(next_deadline_, earliest);
}

inline void PublishingLoop::ExpireAll(std::deque<Pending>& waiting, Clock::time_point now) {
    std::deque<Pending> kept;
    for (Pending& pending : waiting) {
        const auto deadline = pending.publication->deadline;
        if (deadline > now) {
            next_deadline_ = std::min(next_deadline_, deadline);
            kept.push_back(std::move(pending));
            continue;
        }
        const Outcome outcome = OutcomeOf(pending);
        Finish(std::move(pending), WaitedTooLong().ForMessage(outcome));
    }
    waiting = std::move(kept);
}

inline Failure PublishingLoop::WaitedTooLong() const {
    if (!Up()) {
        Failure failure = LastFailure().value_or(
            Failure{ErrorCode::kUnavailable, settings_->broker + ": still connecting", {}});
        failure.code = ErrorCode::kUnavailable;
        failure.text = "not sent before its deadline: " + failure.text;
        return failure;
    }
    std::string text = Wire().Where() + ": not sent before its deadline: ";
    if (Blocked()) {
        text += "publishing is blocked by the broker (" + BlockedReason() + ")";
    } else if (window_.Full()) {
        text += "the broker has not confirmed the " + std::to_string(window_.Size()) +
                " messages before it";
    } else {
        text += "the broker does not take it";
    }
    return {ErrorCode::kTimeout, std::move(text), {}};
}

inline Failure PublishingLoop::NotConfirmed() const {
    std::string text = settings_->broker + ": not confirmed before its deadline";
    if (Blocked()) text += ": publishing is blocked by the broker (" + BlockedReason() + ")";
    return {ErrorCode::kTimeout, std::move(text), {}};
}

inline void PublishingLoop::Answer(std::shared_ptr<Inquiry> inquiry) {
    if (!Up() || Blocked()) {
        Inquiry::Answer answer;
        answer.failure = Failure{ErrorCode::kUnavailable, settings_->broker + ": not connected", {}};
        if (Up()) answer.failure->text = settings_->broker + ": blocked by the broker";
        inquiry->Finish(std::move(answer));
        return;
    }
    const Inquiry& question = *inquiry;
    Inspect(question, [inquiry = std::move(inquiry)](const SetupResult& result) {
        Inquiry::Answer answer;
        answer.failure = result.failure;
        answer.ready = result.ready;
        answer.consumers = result.consumers;
        answer.single_consumer = result.SingleConsumer();
        inquiry->Finish(std::move(answer));
    });
}

inline void PublishingLoop::OnEnd() {
    std::vector<std::shared_ptr<Inquiry>> inquiries;
    mailbox_->End([&] {
        taken_.swap(mailbox_->arrived);
        inquiries.swap(mailbox_->inquiries);
    });
    const Failure closed = ClosedFailure();
    for (auto& inquiry : inquiries) {
        Inquiry::Answer answer;
        answer.failure = closed;
        inquiry->Finish(std::move(answer));
    }
    setup_.Down(closed);
    window_.TakeAll([&](Pending pending, std::uint64_t /*begin*/, const Returned* returned) {
        if (returned != nullptr) {
            FinishReturned(std::move(pending), *returned);
        } else {
            Finish(std::move(pending), closed.ForMessage(Outcome::kUnknown));
        }
    });
    for (Lane* const lane : lanes_used_) {
        std::move(lane->parked.begin(), lane->parked.end(), std::back_inserter(queue_));
        lane->parked.clear();
    }
    parked_ = 0;
    std::move(taken_.begin(), taken_.end(), std::back_inserter(queue_));
    taken_.clear();
    FailWaiting(closed);
    Report();
}

}  // namespace detail
}  // namespace mq::rabbitmq
