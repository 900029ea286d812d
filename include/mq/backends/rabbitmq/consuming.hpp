/// @file consuming.hpp
/// The consuming connection's thread: one channel for each subscription, messages put together from
/// frames and handed up, settlements sent back in batches, and every subscription made again after
/// whatever ended it. Included by rabbitmq.hpp alone, behind the library's headers.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/rabbitmq/ack_ranges.hpp>
#include <mq/backends/rabbitmq/codec.hpp>
#include <mq/backends/rabbitmq/io_loop.hpp>
#include <mq/backends/rabbitmq/mailbox.hpp>
#include <mq/backends/rabbitmq/policy_desk.hpp>
#include <mq/backends/rabbitmq/probing.hpp>
#include <mq/backends/rabbitmq/topology.hpp>
#include <mq/backends/rabbitmq/watch.hpp>
#include <mq/detail/backoff.hpp>
#include <mq/detail/gate.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mq::rabbitmq::detail {

struct Subscription;

/// One life of a subscription's channel: what its deliveries can be settled by. Shared with them.
struct ChannelLife {
    std::atomic<bool> gone = false;           ///< Set by the I/O thread, once.
    Subscription* owner = nullptr;            ///< The I/O thread's; valid until gone.
    std::mutex mutex = {};                    ///< Guards settled.
    std::vector<std::uint64_t> settled = {};  ///< Delivery tags; bounded by the prefetch.
};

/// A request to the consuming loop about one subscription.
struct Command {
    enum class Kind : unsigned char { kOpen, kStop, kClose, kPolicy };
    Kind kind = Kind::kOpen;
    std::shared_ptr<Subscription> subscription = {};
    QueuePolicy policy = {};    ///< kPolicy: the answer,
    std::uint64_t inquiry = 0;  ///< and to which question.
};

/// What other threads leave for the consuming loop. Bounded by the number of subscriptions.
class ConsumingMailbox : public Mailbox {
public:
    /// Notes that a delivery is settled. Thread-safe; never blocks.
    void Settle(const std::shared_ptr<ChannelLife>& life, std::uint64_t tag) {
        if (life->gone) return;
        {
            const std::lock_guard lock{life->mutex};
            life->settled.push_back(tag);
            if (life->settled.size() > 1) return;
        }
        Post([&] { to_settle.push_back(life); });
    }

    std::vector<Command> commands = {};
    std::vector<std::shared_ptr<ChannelLife>> to_settle = {};
    bool closing = false;
};

/// How often a quorum queue takes a message back before it drops it.
struct DeliveryLimit {
    std::int64_t returns = 0;
    bool assumed = false;  ///< The queue itself says nothing, and the broker has a default.
};

/// Nothing where there is no limit, or none that can be known by AMQP: a policy may set one.
inline std::optional<DeliveryLimit> DeliveryLimitOf(const std::optional<QueueArguments>& arguments,
                                                    const Server& server) {
    constexpr std::int64_t kDefault = 20;
    if (!arguments || !arguments->IsOfType("quorum")) return std::nullopt;
    const auto said = arguments->DeliveryLimit();
    if (said && *said >= 0) return DeliveryLimit{*said, false};
    if (said) {
        // Without limit from 4.0 on; what is older takes it for 0.
        if (server.HasDefaultDeliveryLimit()) return std::nullopt;
        return DeliveryLimit{0, false};
    }
    if (server.HasDefaultDeliveryLimit()) return DeliveryLimit{kDefault, true};
    return std::nullopt;
}

/// Whether a connection was broken by something that the client library cannot read.
inline bool IsUnreadable(const Failure& failure) noexcept {
    return failure.native.code == AMQP_STATUS_BAD_AMQP_DATA ||
           failure.native.code == AMQP_STATUS_TABLE_TOO_BIG;
}

/// A message that is being put together from its frames.
struct Assembly {
    std::unique_ptr<backend::Inbound> inbound = {};
    std::uint64_t tag = 0;
    std::uint64_t missing = 0;  ///< Bytes of the body.
    Received received = {};
};

/// A probe that waits for what was delivered before it to be settled; see probing.hpp.
struct ReceivedProbe {
    std::uint64_t tag = 0;
    std::string reply_to = {};
    std::string number = {};
};

/// One subscription, from Subscribe to Close. The Consumer and the I/O thread share it.
struct Subscription {
    enum class Stage : unsigned char {
        kIdle,       ///< No channel; tried again at retry_at, where it is still wanted.
        kSettingUp,  ///< The queue is being looked for, and then its policies.
        kOpening,    ///< The channel is being opened.
        kConsuming,
        kClosing,  ///< channel.close is on its way.
        kClosed,
    };

    Subscription(backend::Subscribing subscribing, const Options& options,
                 std::shared_ptr<backend::Receiver> to)
        : what(std::move(subscribing)),
          topology(*what.destination, options),
          queue(topology.Queue(what.group)),
          binding_key(topology.BindingKey(what.group)),
          receiver(std::move(to)) {}

    const backend::Subscribing what;
    const Topology topology;
    const std::string queue;
    const std::string binding_key;

    mq::detail::Gate deliveries = {};  ///< Shut by Stop.
    mq::detail::Gate events = {};      ///< Shut by Close.
    /// Called inside a gate only; given up by Close behind both.
    std::shared_ptr<backend::Receiver> receiver;

    std::mutex mutex = {};  ///< Guards state and closed.
    std::condition_variable closed_changed = {};
    backend::ConsumerState state = {};
    bool closed = false;  ///< The broker has nothing of it any more, as far as can be told.

    // Of the I/O thread alone:
    Stage stage = Stage::kIdle;
    bool stopped = false;
    bool closing = false;
    std::uint16_t channel = 0;
    std::shared_ptr<ChannelLife> life = {};
    AckRanges acks = {};
    std::uint64_t unsettled = 0;  ///< Delivered by the broker, and not acknowledged to it.
    std::size_t prefetch = 1;     ///< What the broker was told.
    /// Whether a member gets messages only while no other does; true where that is not known.
    bool takes_turns = true;
    bool may_be_stream = true;
    bool limited = false;  ///< The queue drops what was returned too often.
    Assembly assembly = {};
    std::deque<ReceivedProbe> probes = {};
    SetupResult found = {};      ///< What its setup has shown, while policies are asked for.
    std::uint64_t inquiry = 0;   ///< The number of that question.
    std::uint64_t barriers = 0;  ///< Questions to the channel that are not answered yet.
    Clock::time_point asked_at = {};
    Clock::time_point retry_at = {};
    Clock::time_point consuming_since = {};
    Clock::time_point looked_after_at = {};  ///< The exchange and the binding were there.
    ConsumerWatch watch = {};
    bool arrived = false;     ///< Something has, since the watch was told.
    bool standing = false;    ///< The state shows a standstill.
    unsigned mended = 0;      ///< Standstills in turn.
    unsigned unreadable = 0;  ///< Connections in turn that one of its messages has broken.
    bool warned_of_limit = false;
    std::set<std::string> losses_said = {};
    std::string logged = {};
    mq::detail::Backoff backoff{std::chrono::milliseconds{100}, std::chrono::seconds{10}};
};

/// A received message, on its way up.
class ReceivedMessage final : public backend::Inbound {
public:
    ReceivedMessage(std::shared_ptr<ConsumingMailbox> mailbox, std::shared_ptr<ChannelLife> life,
                    std::uint64_t tag)
        : mailbox_(std::move(mailbox)), life_(std::move(life)), tag_(tag) {}

    void Settle() noexcept override {
        if (!settled_.exchange(true)) mailbox_->Settle(life_, tag_);
    }

    [[nodiscard]] bool Stale() const noexcept override { return life_->gone; }

private:
    std::shared_ptr<ConsumingMailbox> mailbox_;
    std::shared_ptr<ChannelLife> life_;
    std::uint64_t tag_;
    std::atomic<bool> settled_ = false;
};

/// A subscription in the hands of the layer above.
class SubscriptionHandle final : public backend::Consumer {
public:
    SubscriptionHandle(std::shared_ptr<ConsumingMailbox> mailbox,
                       std::shared_ptr<Subscription> subscription)
        : mailbox_(std::move(mailbox)), subscription_(std::move(subscription)) {}
    SubscriptionHandle(const SubscriptionHandle&) = delete;
    SubscriptionHandle& operator=(const SubscriptionHandle&) = delete;
    ~SubscriptionHandle() override { Close(Clock::now()); }

    [[nodiscard]] backend::ConsumerState State() const override {
        const std::lock_guard lock{subscription_->mutex};
        return subscription_->state;
    }

    void Stop() noexcept override {
        subscription_->deliveries.Shut();
        if (!stop_posted_.exchange(true)) PostCommand(Command::Kind::kStop);
    }

    void Close(Clock::time_point deadline) noexcept override {
        Stop();
        if (!close_posted_.exchange(true) && !PostCommand(Command::Kind::kClose)) {
            const std::lock_guard lock{subscription_->mutex};
            subscription_->closed = true;
        }
        {
            std::unique_lock lock{subscription_->mutex};
            subscription_->closed_changed.wait_until(lock, deadline,
                                                     [this] { return subscription_->closed; });
        }
        subscription_->events.Shut();
        std::shared_ptr<backend::Receiver> released;
        const std::lock_guard lock{release_mutex_};
        released.swap(subscription_->receiver);
    }

private:
    bool PostCommand(Command::Kind kind) {
        return mailbox_->Post([&] { mailbox_->commands.push_back({kind, subscription_, {}, 0}); });
    }

    const std::shared_ptr<ConsumingMailbox> mailbox_;
    const std::shared_ptr<Subscription> subscription_;
    std::atomic<bool> stop_posted_ = false;
    std::atomic<bool> close_posted_ = false;
    std::mutex release_mutex_ = {};  // against a Close beside a Close
};

class ConsumingLoop final : public IoLoop {
public:
    /// `probing` answers the probes that this loop receives, `policies` what it asks of queues; both
    /// are there as long as the loop.
    ConsumingLoop(std::shared_ptr<const Settings> settings, ProbingLoop& probing, PolicyDesk& policies)
        : ConsumingLoop(std::move(settings), probing, policies, std::make_shared<ConsumingMailbox>()) {}

    ~ConsumingLoop() override { Close(); }

    /// As Backend::Subscribe. Thread-safe.
    std::unique_ptr<backend::Consumer> Subscribe(backend::Subscribing subscribing,
                                                 std::shared_ptr<backend::Receiver> receiver) {
        auto subscription = std::make_shared<Subscription>(std::move(subscribing), settings_->options,
                                                           std::move(receiver));
        try {
            Start();
        } catch (const std::system_error& error) {
            throw Error(ErrorCode::kInternal,
                        settings_->broker + ": cannot start a thread: " + error.what());
        }
        if (!mailbox_->Post([&] {
                mailbox_->commands.push_back({Command::Kind::kOpen, subscription, {}, 0});
            })) {
            throw Error(ErrorCode::kClosed, settings_->broker + ": the client is closed");
        }
        {
            const std::lock_guard lock{known_mutex_};
            std::erase_if(known_, [](const auto& each) { return each.expired(); });
            known_.push_back(subscription);
        }
        return std::make_unique<SubscriptionHandle>(mailbox_, std::move(subscription));
    }

    /// Whether one of this loop's consumers gets what is sent to an address. Thread-safe.
    [[nodiscard]] bool Consumes(const std::string& address) const {
        const std::lock_guard lock{known_mutex_};
        return std::any_of(known_.begin(), known_.end(), [&](const auto& each) {
            const Shared subscription = each.lock();
            if (subscription == nullptr || subscription->deliveries.IsShut()) return false;
            if (subscription->what.destination->address != address) return false;
            const std::lock_guard state_lock{subscription->mutex};
            return subscription->state.phase == Phase::kActive;
        });
    }

    /// Hangs up and joins the thread; consumers that are still open become kRetrying. Thread-safe.
    void Close() noexcept {
        mailbox_->Post([&] { mailbox_->closing = true; });
        Join(Clock::now());
        mailbox_->End([] {});
    }

    [[nodiscard]] Mailbox& Questions() const noexcept { return *mailbox_; }

private:
    using Shared = std::shared_ptr<Subscription>;
    using Phase = backend::ConsumerState::Phase;

    static constexpr std::uint16_t kFirstChannel = SetupChannel::kChannel + 1;
    // What is reserved for a body before any of it has come.
    static constexpr std::uint64_t kMostReserved = std::uint64_t{1} << 20u;
    // How often exchange and binding of a consumer are looked at, and how often it is seen who is due.
    static constexpr std::chrono::seconds kLookAfterEvery{10};
    static constexpr std::chrono::seconds kCareEvery{1};
    // A message that breaks the connection is asked for again after so long, then twice, up to the
    // most.
    static constexpr std::chrono::minutes kUnreadablePause{1};
    static constexpr std::chrono::minutes kLongestUnreadablePause{16};

    ConsumingLoop(std::shared_ptr<const Settings> settings, ProbingLoop& probing, PolicyDesk& policies,
                  std::shared_ptr<ConsumingMailbox> mailbox)
        : IoLoop(std::move(settings), mailbox, "consume"),
          mailbox_(std::move(mailbox)),
          probing_(probing),
          policies_(policies) {}

    void Turn(Clock::time_point now) override;
    [[nodiscard]] Clock::time_point NextTurn() const override;
    [[nodiscard]] bool Finished(Clock::time_point /*now*/) const override { return closing_; }
    void OnEnd() override;
    void OnUp() override;
    void OnDown(const Failure& failure) override;
    void OnMethod(std::uint16_t channel, const amqp_method_t& method) override;
    void OnProperties(std::uint16_t channel, const amqp_basic_properties_t& properties,
                      std::uint64_t body_size) override;
    void OnBody(std::uint16_t channel, std::string_view fragment) override;

    void Do(const Command& command);
    void Open(const Shared& subscription);
    void OnSetUp(const Shared& subscription, const SetupResult& result);
    void OnPolicy(const Command& command);
    void OpenChannel(const Shared& subscription, const SetupResult& result);
    void WarnOfLosses(Subscription& subscription, const QueueArguments& arguments);
    void NoteArguments(Subscription& subscription, const SetupResult& result);
    void Refuse(const Shared& subscription);
    void Care(Clock::time_point now);
    void LookAfter(const Shared& subscription);
    void Look(const Shared& subscription, Clock::time_point now);
    void OnLook(const Shared& subscription, const std::shared_ptr<ChannelLife>& life,
                const SetupResult& result);
    void Mend(const Shared& subscription, std::uint64_t ready, Clock::time_point quiet_since);
    void ForgetUnreadable(const Shared& subscription, Clock::time_point now);
    void SetAside(Subscription& subscription, const Failure& failure);
    void SetStandstill(Subscription& subscription, std::string text);
    void SendQos(const Subscription& subscription);
    void SendConsume(const Subscription& subscription);
    void OnConsuming(Subscription& subscription);
    void Stop(Subscription& subscription);
    void BeginClose(const Shared& subscription);
    void FinishClose(Subscription& subscription);
    void CloseChannel(Subscription& subscription);
    void OnChannelClosed(Subscription& subscription, const amqp_channel_close_t& close);
    void OnCancelled(Subscription& subscription);
    void OnDeliver(Subscription& subscription, const amqp_basic_deliver_t& deliver);
    void HandUp(Subscription& subscription);
    void FlushAcks(Subscription& subscription);
    void SendAcks(Subscription& subscription);
    void EndLife(Subscription& subscription);
    void Retry(Subscription& subscription, const Failure& failure, bool refused);
    void Release(Subscription& subscription);
    void SetState(Subscription& subscription, Phase phase, std::shared_ptr<const Error> error);

    void Answer(std::shared_ptr<Inquiry> inquiry);
    void OnInspected(const std::shared_ptr<Inquiry>& inquiry, const SetupResult& result);
    void NextBarrier();
    void OnBarrierAnswer();
    void FailBarriers(const Failure& failure);
    [[nodiscard]] Inquiry::Answer OwnShare(const std::string& queue, const SetupResult& result) const;
    [[nodiscard]] std::string ConsumerTag(const Subscription& subscription) const {
        // Shown by the broker's own tools; it must differ only within the channel.
        return settings_->context.client_id.substr(0, 200) + "/" + std::to_string(subscription.channel);
    }

    [[nodiscard]] Subscription* On(std::uint16_t channel) const {
        const auto found = by_channel_.find(channel);
        return found == by_channel_.end() ? nullptr : found->second.get();
    }

    // The lowest free channel number; 0 where the broker allows no more.
    [[nodiscard]] std::uint16_t FreeChannel() const {
        const std::uint32_t most = Wire().ChannelMax();
        for (std::uint32_t channel = kFirstChannel; channel <= most; ++channel) {
            const auto number = static_cast<std::uint16_t>(channel);
            if (!by_channel_.contains(number)) return number;
        }
        return 0;
    }

    const std::shared_ptr<ConsumingMailbox> mailbox_;
    ProbingLoop& probing_;
    PolicyDesk& policies_;
    mutable std::mutex known_mutex_ = {};  // guards known_
    std::vector<std::weak_ptr<Subscription>> known_ = {};

    // Of the I/O thread alone:
    std::set<Shared> subscriptions_ = {};
    std::unordered_map<std::uint16_t, Shared> by_channel_ = {};
    // Questions whose answer needs all that the broker has sent to our consumers before: one at a time,
    // and how many of the consumers' channels have not answered yet.
    std::deque<std::shared_ptr<Inquiry>> barriers_ = {};
    std::uint64_t barrier_missing_ = 0;
    // Whose message is being read: delivered, and its properties have not come yet.
    Subscription* reading_ = nullptr;
    bool looking_after_ = false;
    Clock::time_point care_at_ = {};
    bool closing_ = false;
};

inline void ConsumingLoop::Turn(Clock::time_point now) {
    std::vector<Command> commands;
    std::vector<std::shared_ptr<ChannelLife>> to_settle;
    std::vector<std::shared_ptr<Inquiry>> inquiries;
    mailbox_->Collect([&] {
        commands.swap(mailbox_->commands);
        to_settle.swap(mailbox_->to_settle);
        inquiries.swap(mailbox_->inquiries);
        closing_ = mailbox_->closing;
    });
    for (const auto& life : to_settle) {
        if (!life->gone) FlushAcks(*life->owner);
    }
    for (const Command& command : commands) Do(command);
    for (auto& inquiry : inquiries) Answer(std::move(inquiry));
    if (!Up()) return;
    for (const Shared& subscription : subscriptions_) {
        if (subscription->stage == Subscription::Stage::kIdle && !subscription->stopped &&
            now >= subscription->retry_at) {
            Open(subscription);
        }
        const bool asked = subscription->stage == Subscription::Stage::kOpening ||
                           subscription->stage == Subscription::Stage::kClosing;
        if (asked && now >= subscription->asked_at + SetupChannel::kPatience) {
            Lose({ErrorCode::kUnavailable, Wire().Where() + ": a channel does not answer", {}});
        }
    }
    if (now >= care_at_) Care(now);
}

inline Clock::time_point ConsumingLoop::NextTurn() const {
    auto next = Clock::time_point::max();
    if (!Up()) return next;
    for (const Shared& subscription : subscriptions_) {
        if (subscription->stage == Subscription::Stage::kIdle && !subscription->stopped) {
            next = std::min(next, subscription->retry_at);
        } else if (subscription->stage == Subscription::Stage::kOpening ||
                   subscription->stage == Subscription::Stage::kClosing) {
            next = std::min(next, subscription->asked_at + SetupChannel::kPatience);
        }
    }
    if (!subscriptions_.empty()) next = std::min(next, care_at_);
    return next;
}

// Sees to what other programs and the broker itself may have taken from those that consume.
inline void ConsumingLoop::Care(Clock::time_point now) {
    care_at_ = now + kCareEvery;
    if (Blocked()) return;
    // So many a second that the turn of each comes when it is due, and no burst holds up other
    // questions.
    constexpr std::size_t kFew = 20;
    std::size_t looks = kFew + subscriptions_.size() / 8;
    Shared oldest;
    for (const Shared& subscription : std::set<Shared>{subscriptions_}) {
        if (!Up()) return;
        if (subscription->stage != Subscription::Stage::kConsuming || subscription->stopped) continue;
        if (oldest == nullptr || subscription->looked_after_at < oldest->looked_after_at) {
            oldest = subscription;
        }
        if (subscription->unreadable > 0) ForgetUnreadable(subscription, now);
        const bool full = subscription->unsettled >= subscription->prefetch;
        if (std::exchange(subscription->arrived, false) || full) {
            subscription->watch.NoteProgress(now);
        } else if (looks > 0 && subscription->watch.LookIsDue(now)) {
            --looks;
            Look(subscription, now);
        }
    }
    const bool due = oldest != nullptr && now - oldest->looked_after_at >= kLookAfterEvery;
    if (Up() && due && !looking_after_) LookAfter(oldest);
}

// The message that broke connections is gone, as far as can be told: with the whole prefetch again.
inline void ConsumingLoop::ForgetUnreadable(const Shared& subscription, Clock::time_point now) {
    constexpr std::chrono::seconds kSound{10};
    if (now - subscription->consuming_since < kSound || subscription->unsettled > 0) return;
    subscription->unreadable = 0;
    SetStandstill(*subscription, {});
    CloseChannel(*subscription);
    subscription->retry_at = {};
}

// One at a time, so that hundreds of consumers make a trickle and no burst. A queue that is deleted
// says so by itself (basic.cancel), a binding does not.
inline void ConsumingLoop::LookAfter(const Shared& subscription) {
    subscription->looked_after_at = Clock::now();
    care_at_ = {};
    if (!subscription->topology.HasExchange() || !settings_->options.declare) return;
    looking_after_ = true;
    setup_.Run(StepsForUpkeep(subscription->topology, subscription->what.group,
                              subscription->what.destination->ordered, settings_->options),
               [this, subscription](const SetupResult& result) {
                   looking_after_ = false;
                   care_at_ = {};
                   if (!Up() || subscription->stage != Subscription::Stage::kConsuming) return;
                   const std::string why = result.failure ? result.failure->text : std::string{};
                   if (why.empty() || std::exchange(subscription->logged, why) == why) return;
                   Log(LogLevel::kWarning,
                       "the queue " + subscription->queue +
                           " is consumed, but its binding cannot be seen to: " + why);
               });
}

inline void ConsumingLoop::Look(const Shared& subscription, Clock::time_point now) {
    subscription->watch.NoteLook(now);
    Steps steps;
    steps.push_back({Step::Kind::kInspect, subscription->queue, {}, {}, false});
    setup_.Run(std::move(steps),
               [this, subscription, life = subscription->life](const SetupResult& result) {
                   OnLook(subscription, life, result);
               });
}

inline void ConsumingLoop::OnLook(const Shared& subscription, const std::shared_ptr<ChannelLife>& life,
                                  const SetupResult& result) {
    if (!Up() || subscription->life != life || subscription->stopped || result.failure) return;
    if (subscription->stage != Subscription::Stage::kConsuming) return;
    if (result.ready == 0) {
        subscription->mended = 0;
        if (subscription->unreadable == 0) SetStandstill(*subscription, {});
    }
    // The broker's own count may lag: what has no consumer at all is ours all the more.
    const bool entitled = !subscription->takes_turns || result.consumers <= 1;
    const auto quiet_since = subscription->watch.QuietSince();
    if (subscription->watch.StandsStill(result.ready, entitled, Clock::now())) {
        Mend(subscription, result.ready, quiet_since);
    }
}

// First with a channel of its own anew, then with a connection.
inline void ConsumingLoop::Mend(const Shared& subscription, std::uint64_t ready,
                                Clock::time_point quiet_since) {
    const auto quiet = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - quiet_since);
    const std::string text = Wire().Where() + ": the queue " + subscription->queue + " has " +
                             std::to_string(ready) + " messages ready, and none of them has come for " +
                             std::to_string(quiet.count()) + " seconds";
    SetStandstill(*subscription, text);
    const Failure failure{ErrorCode::kUnavailable, text, {}};
    if (++subscription->mended > 1) return Lose(failure);
    FlushAcks(*subscription);
    CloseChannel(*subscription);
    Retry(*subscription, failure, false);
    subscription->retry_at = {};
}

inline void ConsumingLoop::SetStandstill(Subscription& subscription, std::string text) {
    subscription.standing = !text.empty();
    {
        const std::lock_guard lock{subscription.mutex};
        if (subscription.state.standstill == text) return;
        subscription.state.standstill = std::move(text);
    }
    subscription.events.Pass([&] { subscription.receiver->OnStateChange(); });
}

inline void ConsumingLoop::Do(const Command& command) {
    switch (command.kind) {
        case Command::Kind::kOpen: {
            Subscription& subscription = *command.subscription;
            subscriptions_.insert(command.subscription);
            // Without a connection it begins with the next one; until then it shows why there is none.
            if (!Up() && LastFailure()) {
                const bool refused = LastFailure()->code == ErrorCode::kAccessDenied;
                SetState(subscription, refused ? Phase::kRefused : Phase::kRetrying,
                         std::make_shared<const Error>(LastFailure()->ToError()));
            }
            return;
        }
        case Command::Kind::kStop: Stop(*command.subscription); return;
        case Command::Kind::kClose: BeginClose(command.subscription); return;
        case Command::Kind::kPolicy: OnPolicy(command); return;
    }
}

inline void ConsumingLoop::Open(const Shared& subscription) {
    subscription->stage = Subscription::Stage::kSettingUp;
    const backend::Subscribing& what = subscription->what;
    setup_.Run(StepsForGroup(subscription->topology, what.group, what.destination->ordered,
                             settings_->options),
               [this, subscription](const SetupResult& result) { OnSetUp(subscription, result); });
}

// A policy may say what the queue itself does not. Only a quorum queue counts returns, and for that the
// answer is waited for.
inline void ConsumingLoop::OnSetUp(const Shared& subscription, const SetupResult& result) {
    const bool known = !result.failure && result.arguments;
    if (!known || !Up() || subscription->stage != Subscription::Stage::kSettingUp) {
        return OpenChannel(subscription, result);
    }
    subscription->found = result;
    const std::uint64_t inquiry = ++subscription->inquiry;
    const bool asked = policies_.Ask(
        subscription->queue, [mailbox = mailbox_, subscription, inquiry](QueuePolicy policy) {
            mailbox->Post([&] {
                mailbox->commands.push_back(
                    {Command::Kind::kPolicy, subscription, std::move(policy), inquiry});
            });
        });
    if (!asked || !result.arguments->IsOfType("quorum")) OpenChannel(subscription, result);
}

inline void ConsumingLoop::OnPolicy(const Command& command) {
    Subscription& subscription = *command.subscription;
    if (command.inquiry != subscription.inquiry || !subscription.found.arguments) return;
    SetupResult result = std::exchange(subscription.found, {});
    result.arguments->Add(command.policy);
    WarnOfLosses(subscription, *result.arguments);
    if (subscription.stage == Subscription::Stage::kSettingUp) {
        OpenChannel(command.subscription, result);
    }
}

inline void ConsumingLoop::OpenChannel(const Shared& subscription, const SetupResult& result) {
    if (subscription->stage != Subscription::Stage::kSettingUp || !Up()) return;
    subscription->stage = Subscription::Stage::kIdle;
    if (subscription->stopped) return;
    if (result.failure) {
        Retry(*subscription, *result.failure, result.failure->code != ErrorCode::kUnavailable);
        return;
    }
    if (result.arguments && result.arguments->IsOfType("stream")) return Refuse(subscription);
    NoteArguments(*subscription, result);
    const std::uint16_t channel = FreeChannel();
    if (channel == 0) {
        Retry(*subscription,
              {ErrorCode::kRefused,
               Wire().Where() + ": no channel is free for one more subscription: the broker allows " +
                   std::to_string(Wire().ChannelMax()) + " on a connection (channel_max)",
               {}},
              true);
        return;
    }
    subscription->stage = Subscription::Stage::kOpening;
    subscription->asked_at = Clock::now();
    subscription->channel = channel;
    subscription->life = std::make_shared<ChannelLife>();
    subscription->life->owner = subscription.get();
    subscription->acks = {};
    subscription->unsettled = 0;
    subscription->barriers = 0;
    by_channel_[channel] = subscription;
    amqp_channel_open_t open{};
    Wire().SendMethod(channel, AMQP_CHANNEL_OPEN_METHOD, &open);
    SendQos(*subscription);
    SendConsume(*subscription);
}

inline void ConsumingLoop::WarnOfLosses(Subscription& subscription, const QueueArguments& arguments) {
    for (const std::string& loss : arguments.Losses()) {
        if (!subscription.losses_said.insert(loss).second) continue;
        Log(LogLevel::kWarning,
            "the queue " + subscription.queue + " does not keep all that is confirmed: " + loss);
    }
}

// What follows from what the queue was declared with.
inline void ConsumingLoop::NoteArguments(Subscription& subscription, const SetupResult& result) {
    subscription.may_be_stream = !result.arguments;
    subscription.takes_turns = !result.arguments || result.arguments->HasSingleActiveConsumer();
    if (subscription.what.destination->ordered && !result.SingleConsumer()) {
        const std::string why = result.arguments ? "it was declared without x-single-active-consumer"
                                                 : result.why_not_known;
        Log(LogLevel::kWarning,
            "the queue " + subscription.queue +
                " is not known to have a single active consumer, so that members of the group " +
                subscription.what.group + " may overtake each other: " + why);
    }
    if (result.arguments) WarnOfLosses(subscription, *result.arguments);
    constexpr std::size_t kMost = UINT16_MAX;
    subscription.prefetch = std::min(subscription.what.prefetch, kMost);
    // One after the other: what breaks the connection then takes no other message with it.
    if (subscription.unreadable > 0) subscription.prefetch = 1;
    const auto limit = DeliveryLimitOf(result.arguments, Wire().GetServer());
    subscription.limited = limit.has_value();
    if (!limit) return;
    const auto most = static_cast<std::size_t>(std::max<std::int64_t>(limit->returns, 1));
    subscription.prefetch = std::min(subscription.prefetch, most);
    if (std::exchange(subscription.warned_of_limit, true)) return;
    Log(LogLevel::kWarning,
        "the quorum queue " + subscription.queue +
            " drops or dead-letters a message that was returned " + std::to_string(limit->returns) +
            " times (" +
            (limit->assumed ? "the default of RabbitMQ 4 where neither x-delivery-limit nor a policy "
                              "says otherwise"
                            : "x-delivery-limit") +
            "), and each connection that ends returns all that was prefetched: at most " +
            std::to_string(subscription.prefetch) + " of its messages are held at a time");
}

// A consumer of a stream without a place of its own gets what comes from now on: what was sent before,
// and between two runs, would never be handled, and nobody would know.
inline void ConsumingLoop::Refuse(const Shared& subscription) {
    Retry(*subscription,
          {ErrorCode::kUnsupported,
           Wire().Where() + ": the queue " + subscription->queue +
               " is a stream: it keeps no place for the group, so that what is sent while nobody "
               "consumes would never be handled, expected a classic or a quorum queue",
           {}},
          true);
}

inline void ConsumingLoop::SendQos(const Subscription& subscription) {
    amqp_basic_qos_t qos{};
    qos.prefetch_count = static_cast<std::uint16_t>(subscription.prefetch);
    Wire().SendMethod(subscription.channel, AMQP_BASIC_QOS_METHOD, &qos);
}

inline void ConsumingLoop::SendConsume(const Subscription& subscription) {
    const std::string tag = ConsumerTag(subscription);
    amqp_basic_consume_t consume{};
    consume.queue = Bytes(subscription.queue);
    consume.consumer_tag = Bytes(tag);
    Wire().SendMethod(subscription.channel, AMQP_BASIC_CONSUME_METHOD, &consume);
}

inline void ConsumingLoop::OnMethod(std::uint16_t channel, const amqp_method_t& method) {
    Subscription* const subscription = On(channel);
    if (subscription == nullptr) return;
    switch (method.id) {
        case AMQP_BASIC_DELIVER_METHOD:
            OnDeliver(*subscription, *static_cast<const amqp_basic_deliver_t*>(method.decoded));
            return;
        case AMQP_BASIC_CONSUME_OK_METHOD: OnConsuming(*subscription); return;
        case AMQP_BASIC_QOS_OK_METHOD:
            // The first one belongs to the opening.
            if (subscription->barriers > 0) {
                --subscription->barriers;
                OnBarrierAnswer();
            }
            return;
        case AMQP_BASIC_CANCEL_METHOD: OnCancelled(*subscription); return;
        case AMQP_CHANNEL_CLOSE_METHOD:
            OnChannelClosed(*subscription, *static_cast<const amqp_channel_close_t*>(method.decoded));
            return;
        case AMQP_CHANNEL_CLOSE_OK_METHOD: Release(*subscription); return;
        default: return;
    }
}

inline void ConsumingLoop::OnConsuming(Subscription& subscription) {
    if (subscription.stage != Subscription::Stage::kOpening) return;
    subscription.stage = Subscription::Stage::kConsuming;
    const auto now = Clock::now();
    subscription.consuming_since = subscription.looked_after_at = now;
    subscription.watch.NoteProgress(now);
    subscription.arrived = false;
    subscription.logged.clear();
    SetState(subscription, Phase::kActive, nullptr);
    if (subscription.stopped) Stop(subscription);
}

inline void ConsumingLoop::OnDeliver(Subscription& subscription, const amqp_basic_deliver_t& deliver) {
    if (subscription.stage == Subscription::Stage::kClosing) return;
    ++subscription.unsettled;
    reading_ = &subscription;
    subscription.arrived = true;
    Assembly& assembly = subscription.assembly;
    assembly = {};
    assembly.tag = deliver.delivery_tag;
    assembly.inbound =
        std::make_unique<ReceivedMessage>(mailbox_, subscription.life, deliver.delivery_tag);
    Message& message = assembly.inbound->message;
    message.topic = subscription.what.destination->topic;
    message.redelivered = deliver.redelivered != 0;
    // The routing key is the key of a message from another program, unless it only says which queue.
    if (deliver.exchange.len > 0 && subscription.topology.KeyIsRoutingKey()) {
        message.key = View(deliver.routing_key);
    }
}

inline void ConsumingLoop::OnProperties(std::uint16_t channel,
                                        const amqp_basic_properties_t& properties,
                                        std::uint64_t body_size) {
    reading_ = nullptr;
    Subscription* const subscription = On(channel);
    if (subscription == nullptr || subscription->assembly.inbound == nullptr) return;
    Assembly& assembly = subscription->assembly;
    Message& message = assembly.inbound->message;
    assembly.received = DecodeProperties(properties, message);
    if (assembly.received.from_stream && subscription->may_be_stream) {
        const Shared keep = by_channel_[channel];
        CloseChannel(*subscription);
        return Refuse(keep);
    }
    assembly.received.probe = assembly.received.probe && body_size == 0;
    message.redelivered = message.redelivered || assembly.received.possible_duplicate;
    assembly.inbound->sender = std::move(assembly.received.sender);
    assembly.missing = body_size;
    message.body.reserve(static_cast<std::size_t>(std::min(body_size, kMostReserved)));
    if (body_size == 0) HandUp(*subscription);
}

inline void ConsumingLoop::OnBody(std::uint16_t channel, std::string_view fragment) {
    Subscription* const subscription = On(channel);
    if (subscription == nullptr || subscription->assembly.inbound == nullptr) return;
    Assembly& assembly = subscription->assembly;
    assembly.inbound->message.body += fragment;
    assembly.missing -= std::min<std::uint64_t>(assembly.missing, fragment.size());
    if (assembly.missing == 0) HandUp(*subscription);
}

inline void ConsumingLoop::HandUp(Subscription& subscription) {
    Assembly assembly = std::move(subscription.assembly);
    subscription.assembly = {};
    subscription.mended = 0;
    if (subscription.standing && subscription.unreadable == 0) SetStandstill(subscription, {});
    if (assembly.received.probe) {
        Message& probe = assembly.inbound->message;
        subscription.probes.push_back(
            {assembly.tag, std::move(probe.reply_to), std::move(probe.correlation_id)});
        FlushAcks(subscription);
        return;
    }
    subscription.deliveries.Pass(
        [&] { subscription.receiver->OnDelivery(std::move(assembly.inbound)); });
}

inline void ConsumingLoop::FlushAcks(Subscription& subscription) {
    {
        const std::lock_guard lock{subscription.life->mutex};
        for (const std::uint64_t tag : subscription.life->settled) subscription.acks.Add(tag);
        subscription.life->settled.clear();
    }
    if (!Up() || subscription.stage != Subscription::Stage::kConsuming) return;
    SendAcks(subscription);
    auto& probes = subscription.probes;
    for (; !probes.empty() && probes.front().tag == subscription.acks.Through() + 1;
         probes.pop_front()) {
        subscription.acks.Add(probes.front().tag);
        SendAcks(subscription);
        if (probes.front().reply_to.empty()) continue;
        probing_.Reply(std::move(probes.front().reply_to), std::move(probes.front().number));
    }
}

inline void ConsumingLoop::SendAcks(Subscription& subscription) {
    subscription.unsettled -= subscription.acks.Flush([&](std::uint64_t tag, bool multiple) {
        amqp_basic_ack_t ack{};
        ack.delivery_tag = tag;
        ack.multiple = multiple ? 1 : 0;
        Wire().SendMethod(subscription.channel, AMQP_BASIC_ACK_METHOD, &ack);
    });
}

// Asks for no more. What is on its way arrives unsettled, and goes back when the channel is closed.
//
// In order, the consumer stays the active one until then: another member would get the messages behind
// those that are still being handled here.
inline void ConsumingLoop::Stop(Subscription& subscription) {
    subscription.stopped = true;
    if (subscription.what.destination->ordered) return;
    // A quorum queue takes a message that crosses the cancel back in front of what was delivered before
    // it: with a limit, the same messages would be returned each time and begun with never.
    if (subscription.limited) return;
    if (!Up() || subscription.stage != Subscription::Stage::kConsuming) return;
    const std::string tag = ConsumerTag(subscription);
    amqp_basic_cancel_t cancel{};
    cancel.consumer_tag = Bytes(tag);
    cancel.nowait = 1;
    Wire().SendMethod(subscription.channel, AMQP_BASIC_CANCEL_METHOD, &cancel);
}

inline void ConsumingLoop::BeginClose(const Shared& subscription) {
    subscription->stopped = subscription->closing = true;
    if (Up() && subscription->stage == Subscription::Stage::kConsuming) FlushAcks(*subscription);
    const bool has_channel = subscription->stage == Subscription::Stage::kConsuming ||
                             subscription->stage == Subscription::Stage::kOpening;
    if (Up() && has_channel) {
        CloseChannel(*subscription);
    } else if (subscription->stage != Subscription::Stage::kClosing) {
        FinishClose(*subscription);
    }
}

inline void ConsumingLoop::FinishClose(Subscription& subscription) {
    subscription.stage = Subscription::Stage::kClosed;
    {
        const std::lock_guard lock{subscription.mutex};
        subscription.closed = true;
    }
    subscription.closed_changed.notify_all();
    const auto found = std::find_if(subscriptions_.begin(), subscriptions_.end(),
                                    [&](const Shared& each) { return each.get() == &subscription; });
    if (found != subscriptions_.end()) subscriptions_.erase(found);
}

// The broker puts what is unsettled back into the queue.
inline void ConsumingLoop::CloseChannel(Subscription& subscription) {
    subscription.stage = Subscription::Stage::kClosing;
    subscription.asked_at = Clock::now();
    subscription.assembly = {};
    amqp_channel_close_t close{};
    close.reply_code = AMQP_REPLY_SUCCESS;
    close.reply_text = amqp_cstring_bytes("closed");
    Wire().SendMethod(subscription.channel, AMQP_CHANNEL_CLOSE_METHOD, &close);
}

// The channel is gone, by our wish: its number is free again.
inline void ConsumingLoop::Release(Subscription& subscription) {
    if (subscription.stage != Subscription::Stage::kClosing) return;
    const Shared keep = by_channel_[subscription.channel];
    EndLife(subscription);
    subscription.stage = Subscription::Stage::kIdle;
    if (subscription.closing) FinishClose(subscription);
}

inline void ConsumingLoop::EndLife(Subscription& subscription) {
    if (subscription.life != nullptr) subscription.life->gone = true;
    subscription.assembly = {};
    subscription.probes.clear();
    subscription.unsettled = 0;
    for (; subscription.barriers > 0; --subscription.barriers) OnBarrierAnswer();
    by_channel_.erase(subscription.channel);
    subscription.channel = 0;
    subscription.events.Pass([&] { subscription.receiver->OnStale(); });
}

inline void ConsumingLoop::OnChannelClosed(Subscription& subscription,
                                           const amqp_channel_close_t& close) {
    const Failure failure =
        FromReply(Wire().Where(), close.reply_code, std::string{View(close.reply_text)});
    amqp_channel_close_ok_t close_ok{};
    Wire().SendMethod(subscription.channel, AMQP_CHANNEL_CLOSE_OK_METHOD, &close_ok);
    const Shared keep = by_channel_[subscription.channel];
    // Where our own channel.close has crossed the broker's, no answer to it comes any more.
    const bool wanted = subscription.stage == Subscription::Stage::kClosing;
    // Over what happened while it consumed, such as a handler that took longer than consumer_timeout,
    // it can begin anew; what keeps it from beginning is a matter of permissions or names.
    const bool refused =
        subscription.stage == Subscription::Stage::kOpening && failure.code != ErrorCode::kUnavailable;
    EndLife(subscription);
    subscription.stage = Subscription::Stage::kIdle;
    if (subscription.closing) {
        FinishClose(subscription);
    } else if (!wanted) {
        Retry(subscription, failure, refused);
    }
}

// The broker has ended the consumer: its queue was deleted, or the queue's node is down.
inline void ConsumingLoop::OnCancelled(Subscription& subscription) {
    if (subscription.stage != Subscription::Stage::kConsuming) return;
    Retry(subscription,
          {ErrorCode::kNotFound,
           Wire().Where() + ": the broker has ended the consumer of the queue " + subscription.queue +
               ": it was deleted, or has become unavailable",
           {}},
          false);
    CloseChannel(subscription);
}

inline void ConsumingLoop::Retry(Subscription& subscription, const Failure& failure, bool refused) {
    // A consumer that is ended as soon as it is there must not be asked for again and again.
    const auto now = Clock::now();
    const bool consumed = subscription.consuming_since != Clock::time_point{};
    if (consumed && now - subscription.consuming_since >= kSettled) subscription.backoff.Reset();
    subscription.consuming_since = {};
    subscription.retry_at = now + subscription.backoff.Next();
    // What does not change is one line, not one for each attempt.
    const bool repeated = std::exchange(subscription.logged, failure.text) == failure.text;
    settings_->context.log(repeated ? LogLevel::kDebug : LogLevel::kWarning,
                           failure.text + "; the group " + subscription.what.group + " of " +
                               subscription.what.destination->topic + " tries again");
    SetState(subscription, refused ? Phase::kRefused : Phase::kRetrying,
             std::make_shared<const Error>(failure.ToError()));
}

inline void ConsumingLoop::SetState(Subscription& subscription, Phase phase,
                                    std::shared_ptr<const Error> error) {
    {
        const std::lock_guard lock{subscription.mutex};
        const auto& known = subscription.state.error;
        const bool same_error = (known == nullptr) == (error == nullptr) &&
                                (known == nullptr || std::string_view{known->what()} == error->what());
        if (subscription.state.phase == phase && same_error) return;
        subscription.state.phase = phase;
        subscription.state.error = std::move(error);
    }
    subscription.events.Pass([&] { subscription.receiver->OnStateChange(); });
}

inline void ConsumingLoop::OnUp() {
    reading_ = nullptr;
    for (const Shared& subscription : subscriptions_) {
        if (subscription->unreadable == 0) subscription->retry_at = {};
    }
}

inline void ConsumingLoop::OnDown(const Failure& failure) {
    const auto error = std::make_shared<const Error>(failure.ToError());
    const Phase phase = failure.code == ErrorCode::kAccessDenied ? Phase::kRefused : Phase::kRetrying;
    FailBarriers(failure);
    // All of them first: whoever looks at one then sees the others as well.
    for (const Shared& subscription : subscriptions_) {
        if (subscription->life != nullptr) subscription->life->gone = true;
    }
    for (const Shared& subscription : std::set<Shared>{subscriptions_}) {
        const bool had_channel = subscription->channel != 0;
        subscription->barriers = 0;
        subscription->found = {};
        if (had_channel) EndLife(*subscription);
        subscription->stage = Subscription::Stage::kIdle;
        if (subscription->closing) {
            FinishClose(*subscription);
        } else if (subscription.get() == reading_ && IsUnreadable(failure)) {
            SetAside(*subscription, failure);
        } else if (subscription->unreadable == 0) {
            SetState(*subscription, phase, error);
        }
    }
    reading_ = nullptr;
    by_channel_.clear();
}

// The message would break the next connection as well, and with it every other subscription: this one
// waits, longer each time.
inline void ConsumingLoop::SetAside(Subscription& subscription, const Failure& failure) {
    const auto pause = std::min<std::chrono::minutes>(
        kUnreadablePause * (1 << std::min(subscription.unreadable, 4u)), kLongestUnreadablePause);
    ++subscription.unreadable;
    subscription.retry_at = Clock::now() + pause;
    const std::string text =
        failure.text + ": a message at the front of the queue " + subscription.queue +
        " cannot be read, and breaks the connection; it has to be taken out of the queue by another "
        "program, and until then the group " +
        subscription.what.group + " of " + subscription.what.destination->topic +
        " gets no further than that";
    settings_->context.log(subscription.unreadable == 1 ? LogLevel::kError : LogLevel::kDebug, text);
    SetStandstill(subscription, text);
    SetState(subscription, Phase::kRefused,
             std::make_shared<const Error>(Error{ErrorCode::kRefused, text}));
}

inline void ConsumingLoop::OnEnd() {
    std::vector<Command> commands;
    std::vector<std::shared_ptr<Inquiry>> inquiries;
    mailbox_->End([&] {
        commands.swap(mailbox_->commands);
        inquiries.swap(mailbox_->inquiries);
        mailbox_->to_settle.clear();
    });
    const Failure closed{ErrorCode::kClosed, settings_->broker + ": the client is closed", {}};
    for (const auto& inquiry : inquiries) {
        Inquiry::Answer answer;
        answer.failure = closed;
        inquiry->Finish(std::move(answer));
    }
    for (const Command& command : commands) {
        if (command.kind == Command::Kind::kPolicy) continue;
        subscriptions_.insert(command.subscription);
        if (command.kind == Command::Kind::kClose) command.subscription->closing = true;
    }
    setup_.Down(closed);
    OnDown(closed);
    subscriptions_.clear();
}

inline void ConsumingLoop::Answer(std::shared_ptr<Inquiry> inquiry) {
    if (!Up()) {
        Inquiry::Answer answer;
        answer.failure = Failure{ErrorCode::kUnavailable, settings_->broker + ": not connected", {}};
        inquiry->Finish(std::move(answer));
        return;
    }
    const Inquiry& question = *inquiry;
    Inspect(question, [this, inquiry = std::move(inquiry)](const SetupResult& result) {
        OnInspected(inquiry, result);
    });
}

// That nothing is left can be said only when what the broker has already sent to our own consumers has
// been counted: their channels are asked something, and answer behind it. Then the queue is asked
// again.
inline void ConsumingLoop::OnInspected(const std::shared_ptr<Inquiry>& inquiry,
                                       const SetupResult& result) {
    Inquiry::Answer answer = OwnShare(inquiry->queue, result);
    const bool nothing_seen = !result.failure && result.ready == 0 && answer.own_unsettled == 0;
    if (!Up() || !inquiry->exact || !nothing_seen) {
        inquiry->Finish(std::move(answer));
        return;
    }
    barriers_.push_back(inquiry);
    if (barriers_.size() == 1) NextBarrier();
}

inline void ConsumingLoop::NextBarrier() {
    const std::string& queue = barriers_.front()->queue;
    barrier_missing_ = 1;  // our own, so that it ends here where there is no consumer
    for (auto& [channel, subscription] : by_channel_) {
        if (subscription->queue != queue || subscription->stage != Subscription::Stage::kConsuming) {
            continue;
        }
        SendQos(*subscription);
        ++subscription->barriers;
        ++barrier_missing_;
    }
    OnBarrierAnswer();
}

inline void ConsumingLoop::OnBarrierAnswer() {
    if (barriers_.empty() || --barrier_missing_ > 0) return;
    const std::shared_ptr<Inquiry> inquiry = std::move(barriers_.front());
    barriers_.pop_front();
    Inspect(*inquiry, [this, inquiry](const SetupResult& result) {
        inquiry->Finish(OwnShare(inquiry->queue, result));
    });
    if (!barriers_.empty()) NextBarrier();
}

inline void ConsumingLoop::FailBarriers(const Failure& failure) {
    for (const auto& inquiry : std::exchange(barriers_, {})) {
        Inquiry::Answer answer;
        answer.failure = failure;
        inquiry->Finish(std::move(answer));
    }
    barrier_missing_ = 0;
}

inline Inquiry::Answer ConsumingLoop::OwnShare(const std::string& queue,
                                               const SetupResult& result) const {
    Inquiry::Answer answer;
    answer.failure = result.failure;
    answer.ready = result.ready;
    answer.consumers = result.consumers;
    answer.single_consumer = result.SingleConsumer();
    for (const auto& [channel, subscription] : by_channel_) {
        if (subscription->queue != queue) continue;
        answer.own_unsettled += subscription->unsettled;
        const bool cancelled =
            subscription->stopped && !subscription->limited && !subscription->what.destination->ordered;
        if (subscription->stage == Subscription::Stage::kConsuming && !cancelled) {
            ++answer.own_consumers;
        }
    }
    return answer;
}

}  // namespace mq::rabbitmq::detail
