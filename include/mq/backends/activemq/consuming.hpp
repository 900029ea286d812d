/// @file consuming.hpp
/// The consuming connection's thread: one link for each subscription, credit for as many messages as it
/// may hold, settlements sent back in batches, and every link made again after whatever ended it.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/activemq/codec.hpp>
#include <mq/backends/activemq/given_back.hpp>
#include <mq/backends/activemq/io_loop.hpp>
#include <mq/backends/activemq/links.hpp>
#include <mq/backends/activemq/mailbox.hpp>
#include <mq/backends/activemq/proton.hpp>
#include <mq/backends/activemq/standstill.hpp>
#include <mq/backends/activemq/topology.hpp>
#include <mq/detail/backoff.hpp>
#include <mq/detail/gate.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
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

namespace mq::activemq::detail {

struct Subscription;

/// One life of a subscription's link: what its deliveries can be settled by. Shared with them.
struct LinkLife {
    std::atomic<bool> gone = false;           ///< Set by the I/O thread, once.
    Subscription* owner = nullptr;            ///< The I/O thread's; valid until gone.
    std::mutex mutex = {};                    ///< Guards settled.
    std::vector<std::uint64_t> settled = {};  ///< Numbers of deliveries; bounded by the prefetch.
};

/// A request to the consuming loop about one subscription.
struct Command {
    enum class Kind : unsigned char { kOpen, kStop, kClose };
    Kind kind = Kind::kOpen;
    std::shared_ptr<Subscription> subscription = {};
};

/// What other threads leave for the consuming loop. Bounded by the number of subscriptions.
class ConsumingMailbox final : public Mailbox {
public:
    /// Notes that a delivery is settled. Thread-safe; never blocks.
    void Settle(const std::shared_ptr<LinkLife>& life, std::uint64_t number) {
        if (life->gone) return;
        {
            const std::lock_guard lock{life->mutex};
            life->settled.push_back(number);
            if (life->settled.size() > 1) return;
        }
        Post([&] { to_settle.push_back(life); });
    }

    std::vector<Command> commands = {};
    std::vector<std::shared_ptr<LinkLife>> to_settle = {};
    std::optional<Clock::time_point> close_by = {};
};

/// A delivery that is not settled, and by which name it is known when it comes again.
struct Unsettled {
    proton::delivery delivery = {};
    GivenBack::Mark mark = 0;
};

/// One subscription, from Subscribe to Close. The Consumer and the I/O thread share it.
struct Subscription {
    enum class Stage : unsigned char {
        kIdle,     ///< No link; tried again at retry_at, where it is still wanted.
        kOpening,  ///< The link is being made.
        kConsuming,
        kClosing,  ///< The end of the link is on its way.
        kClosed,
    };

    Subscription(backend::Subscribing subscribing, const GroupSource& from,
                 std::shared_ptr<backend::Receiver> to)
        : what(std::move(subscribing)), source(from), receiver(std::move(to)) {}

    const backend::Subscribing what;
    const GroupSource source;

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
    std::string name = {};  ///< Of the link.
    proton::receiver link = {};
    std::shared_ptr<LinkLife> life = {};
    std::unordered_map<std::uint64_t, Unsettled> unsettled = {};  ///< Bounded by the prefetch.
    std::uint64_t next_number = 1;
    Clock::time_point asked_at = {};
    Clock::time_point consuming_since = {};
    Clock::time_point retry_at = {};
    mq::detail::Backoff backoff{std::chrono::milliseconds{100}, std::chrono::seconds{10}};
    StandstillWatch watch = {};
    std::shared_ptr<Inquiry> asking = {};  ///< What the queue has; asked by the watch.
    bool standstill_told = false;          ///< The state says that it stands still.
    bool replacing = false;                ///< The link ends for another one to be made at once.
};

/// A received message, on its way up.
class ReceivedMessage final : public backend::Inbound {
public:
    ReceivedMessage(std::shared_ptr<ConsumingMailbox> mailbox, std::shared_ptr<LinkLife> life,
                    std::uint64_t number)
        : mailbox_(std::move(mailbox)), life_(std::move(life)), number_(number) {}

    void Settle() noexcept override {
        if (!settled_.exchange(true)) mailbox_->Settle(life_, number_);
    }

    [[nodiscard]] bool Stale() const noexcept override { return life_->gone; }

private:
    std::shared_ptr<ConsumingMailbox> mailbox_;
    std::shared_ptr<LinkLife> life_;
    std::uint64_t number_;
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
        return mailbox_->Post([&] { mailbox_->commands.push_back({kind, subscription_}); });
    }

    const std::shared_ptr<ConsumingMailbox> mailbox_;
    const std::shared_ptr<Subscription> subscription_;
    std::atomic<bool> stop_posted_ = false;
    std::atomic<bool> close_posted_ = false;
    std::mutex release_mutex_ = {};  // against a Close beside a Close
};

class ConsumingLoop final : public IoLoop {
public:
    explicit ConsumingLoop(std::shared_ptr<const Settings> settings)
        : ConsumingLoop(std::move(settings), std::make_shared<ConsumingMailbox>()) {}

    ~ConsumingLoop() override { Close(Clock::now()); }

    /// As Backend::Subscribe. Thread-safe.
    std::unique_ptr<backend::Consumer> Subscribe(backend::Subscribing subscribing,
                                                 std::shared_ptr<backend::Receiver> receiver) {
        const Topology topology{*subscribing.destination, settings_->flavor, settings_->options};
        const GroupSource source = topology.SourceOf(subscribing.group);
        auto subscription =
            std::make_shared<Subscription>(std::move(subscribing), source, std::move(receiver));
        try {
            Start();
        } catch (const std::system_error& error) {
            throw Error(ErrorCode::kInternal,
                        settings_->broker + ": cannot start a thread: " + error.what());
        }
        if (!mailbox_->Post([&] {
                mailbox_->commands.push_back({Command::Kind::kOpen, subscription});
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
        return AnyActive([&](const Subscription& subscription) {
            return subscription.what.destination->address == address;
        });
    }

    /// Whether one of this loop's consumers takes from a queue. Thread-safe.
    [[nodiscard]] bool ConsumesQueue(const std::string& queue) const {
        return AnyActive(
            [&](const Subscription& subscription) { return subscription.source.queue == queue; });
    }

    /// Asks the thread to hang up, by a deadline. Thread-safe.
    void BeginClose(Clock::time_point deadline) noexcept {
        mailbox_->Post(
            [&] { mailbox_->close_by = std::min(mailbox_->close_by.value_or(deadline), deadline); });
    }

    /// The same, and joins the thread; consumers that are still open become kRetrying. Thread-safe.
    void Close(Clock::time_point deadline) noexcept {
        BeginClose(deadline);
        Join();
        mailbox_->End([] {});
    }

    [[nodiscard]] Mailbox& Questions() const noexcept { return *mailbox_; }

private:
    using Shared = std::shared_ptr<Subscription>;
    using Phase = backend::ConsumerState::Phase;
    using Stage = Subscription::Stage;

    // How long the broker may take to answer that a link is to be made or ended.
    static constexpr std::chrono::seconds kPatience{30};
    // How long it may take to say what a queue has.
    static constexpr std::chrono::seconds kLook{5};

    static bool IsWatched(const Subscription& subscription) {
        return subscription.stage == Stage::kConsuming && !subscription.stopped &&
               subscription.unsettled.empty();
    }

    ConsumingLoop(std::shared_ptr<const Settings> settings, std::shared_ptr<ConsumingMailbox> mailbox)
        : IoLoop(std::move(settings), mailbox, "consume"), mailbox_(std::move(mailbox)) {}

    void Turn(Clock::time_point now) override;
    [[nodiscard]] Clock::time_point NextTurn() const override;
    [[nodiscard]] bool Finished(Clock::time_point /*now*/) const override {
        return close_by_.has_value();
    }
    [[nodiscard]] Clock::time_point EndBy() const override { return close_by_.value_or(Clock::now()); }
    void OnEnd() override;
    void OnUp() override {
        for (const Shared& subscription : subscriptions_) subscription->retry_at = {};
    }
    void OnDown(const Failure& failure) override;
    void OnReceiverOpen(proton::receiver& receiver) override;
    void OnReceiverGone(proton::receiver& receiver, const std::optional<Failure>& why) override;
    void OnMessage(proton::delivery& delivery, proton::message& message) override;

    void Do(const Command& command);
    void Open(const Shared& subscription);
    void Stop(Subscription& subscription);
    void BeginClose(const Shared& subscription);
    void CloseLink(Subscription& subscription);
    void FinishClose(const Shared& subscription);
    void Settle(Subscription& subscription);
    void EndLife(Subscription& subscription);
    void Retry(Subscription& subscription, const Failure& failure, bool refused);
    void AskDeliveryLimit(const std::string& address);
    void FinishDeliveryLimit();
    void Watch(Subscription& subscription, Clock::time_point now);
    void Mend(Subscription& subscription, StandstillWatch::Advice advice);
    void TellStandstill(Subscription& subscription);
    void SetState(Subscription& subscription, Phase phase, std::shared_ptr<const Error> error);

    template <typename Predicate>
    [[nodiscard]] bool AnyActive(Predicate predicate) const {
        const std::lock_guard lock{known_mutex_};
        return std::any_of(known_.begin(), known_.end(), [&](const auto& each) {
            const Shared subscription = each.lock();
            if (subscription == nullptr || subscription->deliveries.IsShut()) return false;
            if (!predicate(*subscription)) return false;
            const std::lock_guard state_lock{subscription->mutex};
            return subscription->state.phase == Phase::kActive;
        });
    }

    [[nodiscard]] Shared Find(const proton::link& link) const {
        const auto found = by_link_.find(link.name());
        return found == by_link_.end() ? nullptr : found->second;
    }

    const std::shared_ptr<ConsumingMailbox> mailbox_;
    mutable std::mutex known_mutex_ = {};  // guards known_
    std::vector<std::weak_ptr<Subscription>> known_ = {};

    // Of the I/O thread alone:
    std::set<Shared> subscriptions_ = {};
    std::unordered_map<std::string, Shared> by_link_ = {};
    GivenBack given_back_ = {};
    bool limit_asked_ = false;  // once, by the first subscription there is
    std::shared_ptr<Inquiry> asking_limit_ = {};
    std::optional<Clock::time_point> close_by_ = {};
};

inline void ConsumingLoop::Turn(Clock::time_point now) {
    std::vector<Command> commands;
    std::vector<std::shared_ptr<LinkLife>> to_settle;
    std::vector<std::shared_ptr<Inquiry>> inquiries;
    mailbox_->Collect([&] {
        commands.swap(mailbox_->commands);
        to_settle.swap(mailbox_->to_settle);
        inquiries.swap(mailbox_->inquiries);
        close_by_ = mailbox_->close_by;
    });
    for (const auto& life : to_settle) {
        if (!life->gone) Settle(*life->owner);
    }
    for (const Command& command : commands) Do(command);
    for (auto& inquiry : inquiries) Ask(std::move(inquiry));
    if (asking_limit_ != nullptr) FinishDeliveryLimit();
    if (!Up()) return;
    for (const Shared& subscription : subscriptions_) {
        if (subscription->stage == Stage::kIdle && !subscription->stopped &&
            now >= subscription->retry_at) {
            Open(subscription);
        }
        Watch(*subscription, now);
        const bool asked =
            subscription->stage == Stage::kOpening || subscription->stage == Stage::kClosing;
        if (asked && now >= subscription->asked_at + kPatience) {
            Lose({ErrorCode::kUnavailable,
                  Wire().Where() + ": no answer to a link from " + subscription->source.address,
                  {}});
        }
    }
}

inline Clock::time_point ConsumingLoop::NextTurn() const {
    auto next = Clock::time_point::max();
    if (!Up()) return next;
    for (const Shared& subscription : subscriptions_) {
        if (subscription->stage == Stage::kIdle && !subscription->stopped) {
            next = std::min(next, subscription->retry_at);
        } else if (subscription->stage == Stage::kOpening || subscription->stage == Stage::kClosing) {
            next = std::min(next, subscription->asked_at + kPatience);
        } else if (IsWatched(*subscription)) {
            next = std::min(next, subscription->watch.NextAt());
        }
    }
    return next;
}

inline void ConsumingLoop::Do(const Command& command) {
    switch (command.kind) {
        case Command::Kind::kOpen: {
            Subscription& subscription = *command.subscription;
            subscriptions_.insert(command.subscription);
            // Without a connection it begins with the next one; until then it shows why there is none.
            if (!Up() && LastFailure()) {
                const bool refused = LastFailure()->NeedsSomebody();
                SetState(subscription, refused ? Phase::kRefused : Phase::kRetrying,
                         std::make_shared<const Error>(LastFailure()->ToError()));
            }
            return;
        }
        case Command::Kind::kStop: Stop(*command.subscription); return;
        case Command::Kind::kClose: BeginClose(command.subscription); return;
    }
}

inline void ConsumingLoop::Open(const Shared& subscription) {
    subscription->stage = Stage::kOpening;
    subscription->asked_at = Clock::now();
    subscription->name = FreshLinkName(subscription->source.link);
    subscription->life = std::make_shared<LinkLife>();
    subscription->life->owner = subscription.get();
    by_link_[subscription->name] = subscription;
    subscription->link = OpenReceiver(Wire().Amqp(), subscription->source, subscription->name,
                                      settings_->flavor == Flavor::kArtemis);
}

inline void ConsumingLoop::OnReceiverOpen(proton::receiver& receiver) {
    const Shared subscription = Find(receiver);
    // A link that the broker refuses is answered without a source, and closed at once.
    if (subscription == nullptr || receiver.source().address().empty()) return;
    if (subscription->stage != Stage::kOpening) return;
    subscription->stage = Stage::kConsuming;
    subscription->consuming_since = Clock::now();
    subscription->watch.Replaced(Clock::now());
    if (!subscription->stopped) {
        receiver.add_credit(static_cast<std::uint32_t>(subscription->what.prefetch));
    }
    SetState(*subscription, Phase::kActive, nullptr);
    AskDeliveryLimit(subscription->source.address);
}

// Artemis counts a delivery for all that a lost connection had, begun with or not, and makes a dead
// letter of what has as many as it allows.
inline void ConsumingLoop::AskDeliveryLimit(const std::string& address) {
    if (settings_->flavor != Flavor::kArtemis || std::exchange(limit_asked_, true)) return;
    asking_limit_ = std::make_shared<Inquiry>(Question{.name = "broker",
                                                       .kind = Question::Kind::kCall,
                                                       .operation = "getAddressSettingsAsJSON",
                                                       .arguments = TextArgument(address)},
                                              Clock::now() + kLook);
    Ask(asking_limit_);
}

inline void ConsumingLoop::FinishDeliveryLimit() {
    const auto answer = asking_limit_->TryAnswer();
    if (!answer) return;
    asking_limit_ = nullptr;
    const auto limit = answer->failure ? std::nullopt : ReadDeliveryLimit(answer->text);
    if (!limit) return;
    settings_->context.log(LogLevel::kWarning,
                           settings_->broker +
                               ": a message is set aside as a dead letter by the broker after " +
                               std::to_string(*limit) +
                               " deliveries (max-delivery-attempts), and each lost connection counts "
                               "as one for what it had, "
                               "handled or not: -1 leaves the counting to this library");
}

inline void ConsumingLoop::OnMessage(proton::delivery& delivery, proton::message& message) {
    const Shared subscription = Find(delivery.receiver());
    if (subscription == nullptr || subscription->stage != Stage::kConsuming) return;
    if (subscription->unsettled.empty()) subscription->watch.Progress(Clock::now());
    const std::uint64_t number = subscription->next_number++;
    auto inbound = std::make_unique<ReceivedMessage>(mailbox_, subscription->life, number);
    inbound->message.topic = subscription->what.destination->topic;
    try {
        inbound->sender = Decode(message, inbound->message);
    } catch (const std::exception& error) {
        settings_->context.log(LogLevel::kError,
                               Wire().Where() + ": a message of " + subscription->source.address +
                                   " cannot be read, and is rejected: " + error.what());
        delivery.reject();
        if (!subscription->stopped) subscription->link.add_credit(1);
        return;
    }
    const auto mark = GivenBack::MarkOf(subscription->source.queue, inbound->message.id);
    if (given_back_.Take(mark)) inbound->message.redelivered = true;
    subscription->unsettled.emplace(number, Unsettled{delivery, mark});
    subscription->deliveries.Pass([&] { subscription->receiver->OnDelivery(std::move(inbound)); });
}

inline void ConsumingLoop::Settle(Subscription& subscription) {
    std::vector<std::uint64_t> settled;
    {
        const std::lock_guard lock{subscription.life->mutex};
        settled.swap(subscription.life->settled);
    }
    if (!Up() || subscription.stage != Stage::kConsuming) return;
    // In the order of receipt, neighbours become one frame.
    std::sort(settled.begin(), settled.end());
    for (const std::uint64_t number : settled) {
        const auto found = subscription.unsettled.find(number);
        if (found == subscription.unsettled.end()) continue;
        found->second.delivery.accept();
        subscription.unsettled.erase(found);
    }
    if (!subscription.stopped) subscription.link.add_credit(static_cast<std::uint32_t>(settled.size()));
    if (subscription.unsettled.empty()) subscription.watch.Progress(Clock::now());
}

// Asks for no more: what is left of the credit is taken back. What is on its way arrives unsettled, and
// goes back when the link ends.
inline void ConsumingLoop::Stop(Subscription& subscription) {
    if (std::exchange(subscription.stopped, true)) return;
    if (!Up() || subscription.stage != Stage::kConsuming) return;
    const int credit = subscription.link.credit();
    // Proton adds the number as one with a sign.
    if (credit > 0) subscription.link.add_credit(static_cast<std::uint32_t>(-credit));
}

inline void ConsumingLoop::BeginClose(const Shared& subscription) {
    subscription->stopped = subscription->closing = true;
    if (Up() && subscription->stage == Stage::kConsuming) Settle(*subscription);
    if (Up() && (subscription->stage == Stage::kConsuming || subscription->stage == Stage::kOpening)) {
        CloseLink(*subscription);
    } else if (subscription->stage != Stage::kClosing) {
        FinishClose(subscription);
    }
}

// The broker puts what is unsettled back into the queue.
inline void ConsumingLoop::CloseLink(Subscription& subscription) {
    subscription.stage = Stage::kClosing;
    subscription.asked_at = Clock::now();
    if (subscription.source.subscription) {
        // Closed, the subscription would be gone with its messages.
        subscription.link.detach();
    } else {
        subscription.link.close();
    }
}

// Also where the connection was lost in this very turn: nothing of a link outlives its subscription.
inline void ConsumingLoop::FinishClose(const Shared& subscription) {
    if (subscription->life != nullptr && !subscription->life->gone) EndLife(*subscription);
    subscription->stage = Stage::kClosed;
    subscriptions_.erase(subscription);
    {
        const std::lock_guard lock{subscription->mutex};
        subscription->closed = true;
    }
    subscription->closed_changed.notify_all();
}

inline void ConsumingLoop::OnReceiverGone(proton::receiver& receiver,
                                          const std::optional<Failure>& why) {
    const Shared subscription = Find(receiver);
    if (subscription == nullptr) return;
    const bool opening = subscription->stage == Stage::kOpening;
    if (!opening && Clock::now() - subscription->consuming_since >= kSettled) {
        subscription->backoff.Reset();
    }
    EndLife(*subscription);
    subscription->stage = Stage::kIdle;
    if (subscription->closing) return FinishClose(subscription);
    if (std::exchange(subscription->replacing, false)) {
        subscription->retry_at = {};
        return;
    }
    const Failure failure = why.value_or(
        Failure{ErrorCode::kUnavailable,
                Wire().Where() + ": the broker has ended the link from " + subscription->source.address,
                {}});
    // Over what happened while it consumed it can begin anew; what keeps it from beginning is a matter
    // of permissions or names.
    Retry(*subscription, failure, opening && failure.code != ErrorCode::kUnavailable);
}

inline void ConsumingLoop::EndLife(Subscription& subscription) {
    if (subscription.life != nullptr) subscription.life->gone = true;
    by_link_.erase(subscription.name);
    for (const auto& [number, unsettled] : subscription.unsettled) given_back_.Add(unsettled.mark);
    subscription.unsettled.clear();
    subscription.asking = nullptr;
    subscription.link = {};
    subscription.events.Pass([&] { subscription.receiver->OnStale(); });
}

inline void ConsumingLoop::Retry(Subscription& subscription, const Failure& failure, bool refused) {
    subscription.retry_at = Clock::now() + subscription.backoff.Next();
    settings_->context.log(LogLevel::kWarning, failure.text + "; the group " + subscription.what.group +
                                                   " of " + subscription.what.destination->topic +
                                                   " tries again");
    SetState(subscription, refused ? Phase::kRefused : Phase::kRetrying,
             std::make_shared<const Error>(failure.ToError()));
}

// Asks what the queue has where nothing comes, and acts on the answer.
inline void ConsumingLoop::Watch(Subscription& subscription, Clock::time_point now) {
    using Advice = StandstillWatch::Advice;
    StandstillWatch& watch = subscription.watch;
    if (IsWatched(subscription)) {
        if (subscription.asking == nullptr) {
            if (watch.Decide(now) != Advice::kAsk) return TellStandstill(subscription);
            subscription.asking =
                std::make_shared<Inquiry>(QuestionAbout(subscription.source), now + kLook);
            Ask(subscription.asking);
        }
        if (const auto answer = subscription.asking->TryAnswer()) {
            subscription.asking = nullptr;
            if (answer->failure || !answer->queue) {
                watch.Unanswered(now);
            } else {
                Mend(subscription, watch.Answer(*answer->queue, now));
            }
        }
    }
    TellStandstill(subscription);
}

inline void ConsumingLoop::Mend(Subscription& subscription, StandstillWatch::Advice advice) {
    using Advice = StandstillWatch::Advice;
    if (advice != Advice::kReplaceLink && advice != Advice::kReconnect) return;
    const std::string what =
        Wire().Where() + ": nothing comes of what the queue " + subscription.source.queue + " has";
    if (advice == Advice::kReconnect) return Lose({ErrorCode::kUnavailable, what, {}});
    settings_->context.log(LogLevel::kInfo, what + ": its link is made again");
    subscription.replacing = true;
    CloseLink(subscription);
}

// Where it has changed.
inline void ConsumingLoop::TellStandstill(Subscription& subscription) {
    const auto since = subscription.watch.Since();
    if (subscription.standstill_told == since.has_value()) return;
    subscription.standstill_told = since.has_value();
    {
        const std::lock_guard lock{subscription.mutex};
        subscription.state.standstill.clear();
        if (since) {
            const auto age = std::chrono::floor<std::chrono::seconds>(Clock::now() - *since);
            subscription.state.standstill =
                settings_->broker + " has messages in the queue " + subscription.source.queue +
                " and has sent none for " + std::to_string(age.count()) +
                " s, although there is room for them; the link is made again";
        }
    }
    subscription.events.Pass([&] { subscription.receiver->OnStateChange(); });
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

inline void ConsumingLoop::OnDown(const Failure& failure) {
    const auto error = std::make_shared<const Error>(failure.ToError());
    const Phase phase = failure.NeedsSomebody() ? Phase::kRefused : Phase::kRetrying;
    // All of them first: whoever looks at one then sees the others as well.
    for (const Shared& subscription : subscriptions_) {
        if (subscription->life != nullptr) subscription->life->gone = true;
    }
    for (const Shared& subscription : std::set<Shared>{subscriptions_}) {
        const bool had_link =
            subscription->stage != Stage::kIdle && subscription->stage != Stage::kClosed;
        if (had_link) EndLife(*subscription);
        subscription->stage = Stage::kIdle;
        subscription->replacing = false;
        if (subscription->closing) {
            FinishClose(subscription);
        } else {
            SetState(*subscription, phase, error);
        }
    }
    by_link_.clear();
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
    for (const auto& inquiry : inquiries) inquiry->Fail(closed);
    for (const Command& command : commands) {
        subscriptions_.insert(command.subscription);
        if (command.kind == Command::Kind::kClose) command.subscription->closing = true;
    }
    OnDown(closed);
    subscriptions_.clear();
}

}  // namespace mq::activemq::detail
