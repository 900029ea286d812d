/// @file broker.hpp
/// A memory broker: the handle of the tests, and the thread that brings messages from publishers to
/// members. A part of backends/memory.hpp.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/memory/group.hpp>
#include <mq/backends/memory/intake.hpp>
#include <mq/backends/memory/log.hpp>
#include <mq/backends/memory/topic.hpp>
#include <mq/detail/process.hpp>
#include <mq/error.hpp>
#include <mq/message.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mq::memory {

/// A message as the broker keeps it.
struct StoredMessage {
    std::uint64_t offset =
        0;  ///< Its place in the log of its topic: one more than the message before it.
    Message message = {};
    bool possible_duplicate = false;  ///< Whether it was repeated after a lost connection.
};

/// What has happened since the broker was made (or reset), in messages.
struct Totals {
    std::uint64_t published = 0;    ///< Taken into a log, repeats included.
    std::uint64_t confirmed = 0;    ///< Publications handed back without an error.
    std::uint64_t failed = 0;       ///< Publications handed back with one.
    std::uint64_t delivered = 0;    ///< Handed to members, redeliveries included.
    std::uint64_t redelivered = 0;  ///< Of these: marked as redelivered.
    std::uint64_t settled = 0;      ///< Settled, once for each group.
};

namespace detail {

/// What became of an inbound message.
struct Settlement {
    std::shared_ptr<Member> member = {};
    std::uint64_t offset = 0;
    std::uint64_t epoch = 0;
    bool settled = false;  ///< False: destroyed unsettled.
};

class MemoryBackend;
class MemoryConsumer;
class MemoryInbound;
class MemoryPublisher;

}  // namespace detail

/// A broker within the process, and a test's hand on it. Every function is thread-safe and may be
/// called at any time, also from the callbacks of the adapter; none blocks, except WaitUntil.
///
/// What was published or settled before a call began is taken into account by it. What a call causes
/// (confirms, deliveries, state changes) reaches the clients soon after, from the broker's own thread.
/// That thread runs while any client uses the broker, and sleeps while there is nothing to do.
class Broker {
public:
    /// How many publications of one client may be unconfirmed; Publish waits beyond it.
    static constexpr std::size_t kMaxInFlight = 65'536;

    /// Whether to refuse a message that is published to an address. Must not throw.
    using Refusal = std::function<bool(const std::string& address, const Message& message)>;

    /// The broker of that name, made where it does not exist yet. The reference stays good until the
    /// process ends.
    static Broker& Find(const std::string& name);

    Broker(const Broker&) = delete;
    Broker& operator=(const Broker&) = delete;

    /// Stops the broker: every connection to it is lost, and what it has stored stays. Unconfirmed
    /// publications are repeated after Start as possible duplicates; messages that consumers hold are
    /// stale and will be delivered again. Without effect on a stopped broker.
    void Stop();

    /// Starts a stopped broker: consumers subscribe again, publications that waited are published in
    /// their order. Without effect on a running broker. A new broker is running.
    void Start();

    [[nodiscard]] bool Running();

    /// Confirms come this long after the broker has taken a message; also for those on their way.
    void SetConfirmDelay(std::chrono::milliseconds delay);

    /// New messages are delivered at the earliest this long after they were taken, in their order.
    void DelayDeliveries(std::chrono::milliseconds delay);

    /// The next `count` publications that reach the broker fail with ErrorCode::kRefused.
    void RefuseNext(std::size_t count);

    /// Every publication fails with ErrorCode::kRefused for which `refusal` answers true. It is asked
    /// on the publishing thread, with no lock held, at each Publish; an empty one ends the refusing.
    void RefuseIf(Refusal refusal);

    /// The broker takes the next `count` publications, and their confirms never arrive: each fails at
    /// its deadline with Outcome::kUnknown, or is repeated when the broker was stopped and started.
    void LoseConfirms(std::size_t count);

    /// Creates the topic, and the group where one is named, without anybody publishing or subscribing.
    void Declare(const std::string& address, const std::string& group = {});

    /// Throws away the stored messages of a topic; groups stay, and what their members hold is stale.
    void Clear(const std::string& address);

    /// Removes a topic with its messages and groups. Members that are connected come back at once with
    /// a new group where their client declares; the others are refused until the topic is there again.
    void Remove(const std::string& address);

    /// Removes a group with its position. Members that are connected come back at once, at the
    /// beginning of the log.
    void RemoveGroup(const std::string& address, const std::string& group);

    /// Removes every topic, ends every delay, refusal and loss, sets the totals to zero, and starts the
    /// broker where it is stopped.
    void Reset();

    /// The addresses of the topics, in alphabetical order.
    [[nodiscard]] std::vector<std::string> Topics();

    /// What the log of a topic holds, oldest first; empty where there is no such topic.
    [[nodiscard]] std::vector<StoredMessage> Messages(const std::string& address);

    /// The names of a topic's groups, in alphabetical order.
    [[nodiscard]] std::vector<std::string> Groups(const std::string& address);

    /// What a group has left to do. A group that does not exist has the whole log before it.
    [[nodiscard]] Depth Backlog(const std::string& address, const std::string& group);

    /// How many members of a group take messages at present; 0 while the broker is stopped.
    [[nodiscard]] std::size_t Members(const std::string& address, const std::string& group);

    /// How many messages the group of that name has settled, since it was first there.
    [[nodiscard]] std::uint64_t Settled(const std::string& address, const std::string& group);

    [[nodiscard]] Totals Total();

    /// Waits until `predicate` answers true, asking it again each time that something has happened in
    /// the broker. It is asked with no lock held, and usually asks this broker. Blocks until the
    /// deadline at most.
    /// @return whether it answered true.
    bool WaitUntil(const std::function<bool()>& predicate, Clock::time_point deadline);

    [[nodiscard]] const std::string& name() const noexcept { return name_; }

private:
    friend class detail::MemoryBackend;
    friend class detail::MemoryConsumer;
    friend class detail::MemoryInbound;
    friend class detail::MemoryPublisher;

    /// A longer delay would overflow the clock.
    static constexpr std::chrono::hours kLongest{24 * 365};

    /// Holds the mutex with everything applied that came before, and lets the service thread know of
    /// what was caused.
    class Access {
    public:
        explicit Access(Broker& broker) : broker_(broker), lock_(broker.mutex_) {
            broker_.Advance(Clock::now());
        }
        Access(const Access&) = delete;
        Access& operator=(const Access&) = delete;
        ~Access() {
            broker_.Advance(Clock::now());
            if (broker_.served_ != broker_.version_) broker_.Wake();
        }

        [[nodiscard]] std::unique_lock<std::mutex>& lock() { return lock_; }

    private:
        Broker& broker_;
        std::unique_lock<std::mutex> lock_;
    };

    explicit Broker(const std::string& name)
        : name_(name), intake_(name, [this](detail::Topic& topic) { OnStored(topic); }) {}
    ~Broker() = default;

    // Called by the adapter's classes.
    void Attach();
    void Detach();
    void Leave(detail::Connection& connection);
    void Publish(detail::Connection& connection, detail::Topic& topic,
                 std::unique_ptr<backend::Publication> publication);
    bool Refuses(const std::string& address, const Message& message);
    void CloseConnection(detail::Connection& connection, Clock::time_point deadline);
    void Subscribe(const std::shared_ptr<detail::Member>& member);
    void StopMember(detail::Member& member);
    void CloseMember(const std::shared_ptr<detail::Member>& member);
    void Report(detail::Settlement settlement);
    backend::Listening CheckListening(const backend::Destination& destination,
                                      const std::string& group);
    backend::Backlog CheckBacklog(const backend::Destination& destination, const std::string& group);
    detail::Topic& TopicAt(const std::string& address);

    // The service thread.
    void Serve();
    bool Sleep(std::optional<Clock::time_point> until);
    void HandBack(std::vector<detail::Batch> batches);
    void Call(const std::shared_ptr<detail::Member>& member);
    static std::size_t HandOver(const std::shared_ptr<detail::Member>& member,
                                backend::Receiver& receiver, std::vector<detail::Handout>& handouts,
                                std::uint64_t epoch);
    void Wake();
    [[nodiscard]] bool OnServiceThread() const {
        return service_id_.load() == std::this_thread::get_id();
    }

    // Everything from here on is called with mutex_ held.
    void TakeBack(detail::Member& member, const std::vector<detail::Handout>& handouts,
                  std::uint64_t epoch);
    static std::uint64_t CountRedelivered(const std::vector<detail::Handout>& handouts);
    void Advance(Clock::time_point now);
    void ApplyInbox(Clock::time_point now);
    void Apply(const detail::Settlement& settlement);
    void Dispatch(Clock::time_point now);
    std::optional<Clock::time_point> NextEvent();
    void OnStored(detail::Topic& topic);

    void CreateTopic(detail::Topic& topic);
    detail::Group& CreateGroup(detail::Topic& topic, const std::string& name);
    void RemoveTopic(detail::Topic& topic);
    void Join(const std::shared_ptr<detail::Member>& member);
    std::vector<std::shared_ptr<detail::Member>> Disconnect(detail::Group& group);
    void Disconnect(detail::Member& member);
    void SetState(const std::shared_ptr<detail::Member>& member, backend::ConsumerState::Phase phase,
                  std::shared_ptr<const Error> error);
    void Queue(const std::shared_ptr<detail::Member>& member);
    void MarkDirty(detail::Group& group);
    [[nodiscard]] detail::Topic* FindTopic(const std::string& address) const;
    [[nodiscard]] Depth Left(const std::string& address, const std::string& group) const;
    [[nodiscard]] std::optional<Clock::time_point> SettledBefore(const std::string& address,
                                                                 const std::string& group) const;
    [[nodiscard]] bool KnowsGroup(const std::string& address, const std::string& group) const;
    [[nodiscard]] static std::size_t Live(const detail::Group& group);

    const std::string name_;

    // mutex_ is taken before inbox_mutex_; neither is held while other layers' code runs.
    std::mutex mutex_ = {};  // guards everything down to the inbox
    detail::Intake intake_;
    Clock::duration delivery_delay_ = {};
    std::map<std::string, std::unique_ptr<detail::Topic>> topics_ = {};
    std::vector<std::shared_ptr<detail::Member>> unjoined_ = {};  // subscribed, and in no group
    std::vector<detail::Group*> dirty_ = {};    // groups that may have something to give
    std::vector<detail::Group*> delayed_ = {};  // groups whose next message is too young
    std::optional<Clock::time_point> delayed_until_ = {};
    std::vector<std::shared_ptr<detail::Member>> busy_ = {};  // with something for their receivers
    Totals totals_ = {};
    std::vector<detail::Arrival> applying_arrivals_ = {};  // keep their memory between two rounds
    std::vector<detail::Settlement> applying_settlements_ = {};
    std::condition_variable idle_ = {};     // a call of a receiver has ended
    std::condition_variable changed_ = {};  // version_ has changed
    std::uint64_t intake_seen_ = 0;         // of the changes of intake_
    std::uint64_t version_ = 0;             // counts what happens
    std::uint64_t announced_ = 0;           // the version that waiters know of
    std::uint64_t served_ = 0;              // the version that the service thread knows of

    std::mutex inbox_mutex_ = {};                       // guards everything down to the lifecycle
    std::vector<detail::Arrival> arrivals_ = {};        // bounded by kMaxInFlight for each client
    std::vector<detail::Settlement> settlements_ = {};  // bounded by the members' prefetch
    std::condition_variable room_ = {};                 // publications have gone back to their sinks
    std::condition_variable wake_ = {};
    std::shared_ptr<const Refusal> refusal_ = {};
    bool sleeping_ = false;
    bool woken_ = false;
    bool quit_ = false;

    std::mutex lifecycle_mutex_ = {};  // guards these two; taken before all others
    std::size_t attached_ = 0;
    std::thread service_ = {};

    std::atomic<std::thread::id> service_id_ = {};
    std::atomic<bool> refusing_ = false;  // written under the inbox mutex
};

namespace detail {

/// One delivery.
class MemoryInbound final : public backend::Inbound {
public:
    MemoryInbound(std::shared_ptr<Member> member, const Handout& handout, std::uint64_t epoch)
        : member_(std::move(member)), offset_(handout.offset), epoch_(epoch) {
        message = *handout.message;
        message.topic = member_->subscribing.destination->topic;
        message.redelivered = handout.redelivered;
        sender = handout.sender;
    }

    ~MemoryInbound() override { End(false); }

    void Settle() noexcept override { End(true); }

    [[nodiscard]] bool Stale() const noexcept override { return member_->epoch.load() != epoch_; }

private:
    void End(bool settled) noexcept {
        if (ended_.exchange(true) || member_->epoch.load() == Member::kGone) return;
        member_->broker.Report(
            {.member = member_, .offset = offset_, .epoch = epoch_, .settled = settled});
    }

    const std::shared_ptr<Member> member_;
    const std::uint64_t offset_;
    const std::uint64_t epoch_;
    std::atomic<bool> ended_ = false;
};

}  // namespace detail

inline Broker& Broker::Find(const std::string& name) {
    struct Brokers {
        std::mutex mutex = {};  // guards by_name
        std::map<std::string, Broker*> by_name = {};
        mq::detail::ForkMark process = {};
    };
    // Never destroyed: clients that are destroyed while the process ends still find their broker. In
    // the child of a fork there are other ones: the threads of these are the parent's.
    static std::atomic<Brokers*> present{new Brokers};
    Brokers* brokers = present.load();
    if (brokers->process.InChild()) {
        mq::detail::LeaveBehind(brokers);
        auto* const fresh = new Brokers;
        if (present.compare_exchange_strong(brokers, fresh)) brokers = fresh;
    }
    const std::lock_guard lock{brokers->mutex};
    Broker*& broker = brokers->by_name[name];
    if (broker == nullptr) broker = new Broker(name);
    return *broker;
}

inline void Broker::Stop() {
    const Access access{*this};
    if (!intake_.running()) return;
    intake_.Stop();
    auto lost = std::exchange(unjoined_, {});
    for (const auto& [address, topic] : topics_) {
        for (const auto& [group_name, group] : topic->groups) {
            std::ranges::move(Disconnect(*group), std::back_inserter(lost));
        }
    }
    for (const auto& member : lost) Join(member);
    ++version_;
}

inline void Broker::Start() {
    const Access access{*this};
    if (intake_.running()) return;
    intake_.Start();
    for (const auto& member : std::exchange(unjoined_, {})) Join(member);
    ++version_;
}

inline bool Broker::Running() {
    const std::lock_guard lock{mutex_};
    return intake_.running();
}

inline void Broker::SetConfirmDelay(std::chrono::milliseconds delay) {
    const Access access{*this};
    intake_.faults().confirm_delay = std::min<std::chrono::milliseconds>(delay, kLongest);
    ++version_;
}

inline void Broker::DelayDeliveries(std::chrono::milliseconds delay) {
    const Access access{*this};
    delivery_delay_ = std::min<std::chrono::milliseconds>(delay, kLongest);
    ++version_;
}

inline void Broker::RefuseNext(std::size_t count) {
    const Access access{*this};
    intake_.faults().refuse_next = count;
}

inline void Broker::RefuseIf(Refusal refusal) {
    const bool refusing = static_cast<bool>(refusal);
    auto added = std::make_shared<const Refusal>(std::move(refusal));
    const std::lock_guard lock{inbox_mutex_};
    refusal_.swap(added);
    refusing_ = refusing;
}

inline void Broker::LoseConfirms(std::size_t count) {
    const Access access{*this};
    intake_.faults().lose_confirms = count;
}

inline void Broker::Declare(const std::string& address, const std::string& group) {
    detail::Topic& topic = TopicAt(address);
    const Access access{*this};
    CreateTopic(topic);
    if (!group.empty()) CreateGroup(topic, group);
}

inline void Broker::Clear(const std::string& address) {
    const Access access{*this};
    detail::Topic* const topic = FindTopic(address);
    if (topic == nullptr) return;
    std::vector<std::shared_ptr<detail::Member>> members;
    for (const auto& [name, group] : topic->groups) {
        std::ranges::move(Disconnect(*group), std::back_inserter(members));
    }
    topic->log.Clear();
    for (const auto& [name, group] : topic->groups) group->Restart();
    for (const auto& member : members) Join(member);
    ++version_;
}

inline void Broker::Remove(const std::string& address) {
    const Access access{*this};
    if (detail::Topic* const topic = FindTopic(address)) RemoveTopic(*topic);
}

inline void Broker::RemoveGroup(const std::string& address, const std::string& group) {
    const Access access{*this};
    const detail::Topic* const topic = FindTopic(address);
    detail::Group* const found = topic != nullptr ? topic->FindGroup(group) : nullptr;
    if (found == nullptr) return;
    const auto members = Disconnect(*found);
    found->Restart();
    found->exists = false;
    for (const auto& member : members) Join(member);
    ++version_;
}

inline void Broker::Reset() {
    RefuseIf({});
    {
        const Access access{*this};
        intake_.faults() = {};
        intake_.counts() = {};
        delivery_delay_ = {};
        totals_ = {};
        for (const auto& [address, topic] : topics_) {
            if (topic->exists) RemoveTopic(*topic);
        }
    }
    Start();
}

inline std::vector<std::string> Broker::Topics() {
    const Access access{*this};
    std::vector<std::string> addresses;
    for (const auto& [address, topic] : topics_) {
        if (topic->exists) addresses.push_back(address);
    }
    return addresses;
}

inline std::vector<StoredMessage> Broker::Messages(const std::string& address) {
    const Access access{*this};
    std::vector<StoredMessage> messages;
    const detail::Topic* const topic = FindTopic(address);
    if (topic == nullptr) return messages;
    for (std::uint64_t offset = topic->log.begin(); offset < topic->log.end(); ++offset) {
        const detail::Entry& entry = topic->log.At(offset);
        messages.push_back({offset, *entry.message, entry.possible_duplicate});
    }
    return messages;
}

inline std::vector<std::string> Broker::Groups(const std::string& address) {
    const Access access{*this};
    std::vector<std::string> names;
    const detail::Topic* const topic = FindTopic(address);
    if (topic == nullptr) return names;
    for (const auto& [name, group] : topic->groups) {
        if (group->exists) names.push_back(name);
    }
    return names;
}

inline Depth Broker::Backlog(const std::string& address, const std::string& group) {
    const Access access{*this};
    return Left(address, group);
}

inline std::size_t Broker::Members(const std::string& address, const std::string& group) {
    const Access access{*this};
    const detail::Topic* const topic = FindTopic(address);
    const detail::Group* const found = topic != nullptr ? topic->FindGroup(group) : nullptr;
    return found != nullptr ? Live(*found) : 0;
}

inline std::uint64_t Broker::Settled(const std::string& address, const std::string& group) {
    const Access access{*this};
    const detail::Topic* const topic = FindTopic(address);
    const detail::Group* const found = topic != nullptr ? topic->FindGroup(group) : nullptr;
    return found != nullptr ? found->settled() : 0;
}

inline Totals Broker::Total() {
    const Access access{*this};
    Totals totals = totals_;
    totals.published = intake_.counts().published;
    totals.confirmed = intake_.counts().confirmed;
    totals.failed = intake_.counts().failed;
    return totals;
}

inline bool Broker::WaitUntil(const std::function<bool()>& predicate, Clock::time_point deadline) {
    while (true) {
        std::uint64_t seen = 0;
        {
            const Access access{*this};
            seen = version_;
        }
        if (predicate()) return true;
        std::unique_lock lock{mutex_};
        if (!changed_.wait_until(lock, deadline, [&] { return version_ != seen; })) return false;
    }
}

inline void Broker::Attach() {
    const std::lock_guard lock{lifecycle_mutex_};
    ++attached_;
    if (!service_.joinable()) service_ = std::thread{[this] { Serve(); }};
}

inline void Broker::Detach() {
    const std::lock_guard lock{lifecycle_mutex_};
    // A client that is destroyed on the service thread leaves it running, for the next one.
    if (--attached_ > 0 || OnServiceThread()) return;
    {
        const std::lock_guard inbox_lock{inbox_mutex_};
        quit_ = true;
    }
    wake_.notify_one();
    service_.join();
    const std::lock_guard inbox_lock{inbox_mutex_};
    quit_ = false;
}

/// The connection is closed and will be destroyed.
inline void Broker::Leave(detail::Connection& connection) {
    bool was_attached = true;
    std::call_once(connection.attached, [&] { was_attached = false; });
    if (was_attached) Detach();
}

inline void Broker::Publish(detail::Connection& connection, detail::Topic& topic,
                            std::unique_ptr<backend::Publication> publication) {
    std::call_once(connection.attached, [this] { Attach(); });
    detail::Arrival arrival{.message = std::make_shared<const Message>(publication->message),
                            .weight = Weight(publication->message),
                            .connection = &connection,
                            .topic = &topic,
                            .refused = Refuses(topic.address, publication->message)};
    std::unique_lock lock{inbox_mutex_};
    const auto may_go = [&] { return connection.closing || connection.in_flight < kMaxInFlight; };
    if (!may_go() && !OnServiceThread() && !room_.wait_until(lock, publication->deadline, may_go)) {
        publication->error = std::make_unique<Error>(
            ErrorCode::kTimeout, "memory broker " + name_ + " has not confirmed " +
                                     std::to_string(kMaxInFlight) + " messages of this client");
    }
    if (connection.closing) {
        // Close may have returned already: only this thread can still hand the publication back.
        lock.unlock();
        publication->error =
            std::make_unique<Error>(ErrorCode::kClosed, "memory broker " + name_ + " was left");
        backend::PublicationList finished;
        finished.PushBack(std::move(publication));
        connection.sink.OnFinished(std::move(finished));
        return;
    }
    arrival.publication = std::move(publication);
    arrivals_.push_back(std::move(arrival));
    ++connection.in_flight;
    const bool wake = std::exchange(sleeping_, false);
    lock.unlock();
    if (wake) wake_.notify_one();
}

inline bool Broker::Refuses(const std::string& address, const Message& message) {
    if (!refusing_) return false;
    std::shared_ptr<const Refusal> refusal;
    {
        const std::lock_guard lock{inbox_mutex_};
        refusal = refusal_;
    }
    return refusal != nullptr && *refusal && (*refusal)(address, message);
}

inline void Broker::CloseConnection(detail::Connection& connection, Clock::time_point deadline) {
    const auto all_back = [&] { return connection.in_flight == 0; };
    std::unique_lock lock{inbox_mutex_};
    connection.closing = true;
    room_.notify_all();
    if (all_back()) return;
    if (!OnServiceThread() && room_.wait_until(lock, deadline, all_back)) return;
    lock.unlock();
    std::vector<detail::Batch> batches;
    {
        const Access access{*this};
        intake_.FailAll(connection);
        if (OnServiceThread()) batches = intake_.TakeFinished();
    }
    HandBack(std::move(batches));
    if (OnServiceThread()) return;
    // What is left is on its way to the sink, which never blocks.
    lock.lock();
    room_.wait(lock, all_back);
}

inline void Broker::Subscribe(const std::shared_ptr<detail::Member>& member) {
    TopicAt(member->subscribing.destination->address);
    const Access access{*this};
    Join(member);
}

inline void Broker::StopMember(detail::Member& member) {
    Access access{*this};
    if (!member.stopping.exchange(true) && member.group != nullptr) {
        for (const detail::Handout& handout : member.outgoing) {
            member.group->GiveBack(member, handout.offset);
        }
        member.outgoing.clear();
        member.group->Retire(member);
        MarkDirty(*member.group);
        ++version_;
    }
    // No deadline: the call that this waits for never blocks. On the service thread there is none.
    if (!OnServiceThread()) idle_.wait(access.lock(), [&] { return !member.calling; });
}

inline void Broker::CloseMember(const std::shared_ptr<detail::Member>& member) {
    std::shared_ptr<backend::Receiver> receiver;  // let go after the lock
    Access access{*this};
    if (!OnServiceThread()) idle_.wait(access.lock(), [&] { return !member->calling; });
    if (std::exchange(member->closed, true)) return;
    Disconnect(*member);
    member->epoch = detail::Member::kGone;
    std::erase(unjoined_, member);
    std::erase(busy_, member);
    receiver = std::move(member->receiver);
    ++version_;
}

inline void Broker::Report(detail::Settlement settlement) {
    std::unique_lock lock{inbox_mutex_};
    settlements_.push_back(std::move(settlement));
    const bool wake = std::exchange(sleeping_, false);
    lock.unlock();
    if (wake) wake_.notify_one();
}

inline backend::Listening Broker::CheckListening(const backend::Destination& destination,
                                                 const std::string& group) {
    using Answer = backend::Listening::Answer;
    const Access access{*this};
    if (!intake_.running()) return {Answer::kUnknown, "memory broker " + name_ + " is stopped"};
    if (const detail::Topic* const topic = FindTopic(destination.address)) {
        for (const auto& [name, candidate] : topic->groups) {
            if ((group.empty() || name == group) && Live(*candidate) > 0) return {Answer::kYes, {}};
        }
    }
    const std::string who = group.empty() ? "no group" : "no member of group " + group;
    return {Answer::kNo,
            who + " is subscribed to " + destination.address + " on memory broker " + name_};
}

inline backend::Backlog Broker::CheckBacklog(const backend::Destination& destination,
                                             const std::string& group) {
    using Answer = backend::Backlog::Answer;
    const auto now = Clock::now();  // before what has come by then is applied
    const Access access{*this};
    if (!intake_.running()) {
        return {.answer = Answer::kUnknown, .reason = "memory broker " + name_ + " is stopped"};
    }
    const auto [ready, unsettled] = Left(destination.address, group);
    const std::uint64_t left = ready + unsettled;
    return {.answer = left == 0 ? Answer::kDrained : Answer::kNotDrained,
            .messages = left,
            .exact = true,
            .reason = {},
            .settled_before = SettledBefore(destination.address, group).value_or(now),
            .complete = true,
            .known = KnowsGroup(destination.address, group)};
}

inline detail::Topic& Broker::TopicAt(const std::string& address) {
    const std::lock_guard lock{mutex_};
    auto& topic = topics_[address];
    if (topic == nullptr) topic = std::make_unique<detail::Topic>(address);
    return *topic;
}

inline void Broker::Serve() {
    service_id_ = std::this_thread::get_id();
    while (true) {
        std::vector<detail::Batch> batches;
        std::vector<std::shared_ptr<detail::Member>> busy;
        std::optional<Clock::time_point> next;
        {
            const std::lock_guard lock{mutex_};
            Advance(Clock::now());
            batches = intake_.TakeFinished();
            busy.swap(busy_);
            next = NextEvent();
            served_ = version_;
        }
        const bool worked = !batches.empty() || !busy.empty();
        HandBack(std::move(batches));
        for (const auto& member : busy) Call(member);
        if (!worked && !Sleep(next)) break;
    }
    service_id_ = std::thread::id{};
}

/// Returns at once where something has come in. False where the thread is to end.
inline bool Broker::Sleep(std::optional<Clock::time_point> until) {
    std::unique_lock lock{inbox_mutex_};
    const auto awake = [this] {
        return quit_ || woken_ || !arrivals_.empty() || !settlements_.empty();
    };
    while (!awake()) {
        sleeping_ = true;
        if (!until) {
            wake_.wait(lock);
        } else if (wake_.wait_until(lock, *until) == std::cv_status::timeout) {
            break;
        }
    }
    sleeping_ = false;
    woken_ = false;
    return !quit_;
}

inline void Broker::Wake() {
    {
        const std::lock_guard lock{inbox_mutex_};
        woken_ = true;
        sleeping_ = false;
    }
    wake_.notify_one();
}

inline void Broker::HandBack(std::vector<detail::Batch> batches) {
    for (detail::Batch& batch : batches) {
        batch.connection->sink.OnFinished(std::move(batch.finished));
        const std::lock_guard lock{inbox_mutex_};
        batch.connection->in_flight -= batch.count;
        // Under the lock: once it is let go, the connection may be destroyed.
        room_.notify_all();
    }
}

/// Makes the calls of the receiver that are due.
inline void Broker::Call(const std::shared_ptr<detail::Member>& member) {
    std::unique_lock lock{mutex_};
    member->queued = false;
    if (member->closed) return;
    const std::uint64_t stale_asked = member->stale_asked;
    const bool stale = member->stale_told != stale_asked;
    const bool state_changed = std::exchange(member->state_changed, false);
    std::vector<detail::Handout> handouts = std::exchange(member->outgoing, {});
    const std::uint64_t epoch = member->epoch;
    std::shared_ptr<backend::Receiver> receiver = member->receiver;
    member->calling = true;
    // Counted before, so that whoever has got a message finds it counted.
    totals_.delivered += handouts.size();
    totals_.redelivered += CountRedelivered(handouts);
    ++version_;
    lock.unlock();

    if (stale) receiver->OnStale();
    if (state_changed) receiver->OnStateChange();
    const std::size_t handed = HandOver(member, *receiver, handouts, epoch);
    receiver.reset();

    lock.lock();
    member->calling = false;
    member->stale_told = stale_asked;
    handouts.erase(handouts.begin(), handouts.begin() + static_cast<std::ptrdiff_t>(handed));
    TakeBack(*member, handouts, epoch);
    if (member->group != nullptr) MarkDirty(*member->group);
    idle_.notify_all();
}

/// @return how many were handed over before the member was stopped or disconnected.
inline std::size_t Broker::HandOver(const std::shared_ptr<detail::Member>& member,
                                    backend::Receiver& receiver, std::vector<detail::Handout>& handouts,
                                    std::uint64_t epoch) {
    std::size_t handed = 0;
    for (const detail::Handout& handout : handouts) {
        if (member->stopping || member->epoch != epoch) break;
        receiver.OnDelivery(std::make_unique<detail::MemoryInbound>(member, handout, epoch));
        ++handed;
    }
    return handed;
}

/// The member was stopped or disconnected before these reached its receiver.
inline void Broker::TakeBack(detail::Member& member, const std::vector<detail::Handout>& handouts,
                             std::uint64_t epoch) {
    if (handouts.empty()) return;
    // Reset may have set the totals to zero meanwhile.
    totals_.delivered -= std::min<std::uint64_t>(totals_.delivered, handouts.size());
    totals_.redelivered -= std::min(totals_.redelivered, CountRedelivered(handouts));
    if (member.epoch != epoch) {
        member.stale -= handouts.size();
        return;
    }
    for (const detail::Handout& handout : handouts) member.group->GiveBack(member, handout.offset);
    member.group->Retire(member);
}

inline std::uint64_t Broker::CountRedelivered(const std::vector<detail::Handout>& handouts) {
    return static_cast<std::uint64_t>(std::ranges::count_if(
        handouts, [](const detail::Handout& handout) { return handout.redelivered; }));
}

inline void Broker::Advance(Clock::time_point now) {
    ApplyInbox(now);
    intake_.Advance(now);
    version_ += intake_.changes() - intake_seen_;
    intake_seen_ = intake_.changes();
    delayed_until_.reset();
    if (intake_.running()) Dispatch(now);
    if (std::exchange(announced_, version_) != version_) changed_.notify_all();
}

inline void Broker::ApplyInbox(Clock::time_point now) {
    {
        const std::lock_guard lock{inbox_mutex_};
        applying_arrivals_.swap(arrivals_);
        applying_settlements_.swap(settlements_);
    }
    if (applying_arrivals_.empty() && applying_settlements_.empty()) return;
    ++version_;
    for (const detail::Settlement& settlement : applying_settlements_) Apply(settlement);
    for (detail::Arrival& arrival : applying_arrivals_) intake_.Admit(std::move(arrival), now);
    applying_arrivals_.clear();
    applying_settlements_.clear();
}

inline void Broker::Apply(const detail::Settlement& settlement) {
    detail::Member& member = *settlement.member;
    if (member.closed) return;
    if (member.epoch != settlement.epoch) {
        --member.stale;
        if (member.group != nullptr) MarkDirty(*member.group);
    } else if (!settlement.settled) {
        ++member.dropped;
    } else if (member.group->Settle(member, settlement.offset)) {
        ++totals_.settled;
        MarkDirty(*member.group);
    }
}

inline void Broker::Dispatch(Clock::time_point now) {
    for (detail::Group* const group : std::exchange(delayed_, {})) MarkDirty(*group);
    for (detail::Group* const group : std::exchange(dirty_, {})) {
        group->dirty = false;
        const auto due = group->Dispatch(now, delivery_delay_, [this](detail::Member& member) {
            if (!member.queued) Queue(member.shared_from_this());
        });
        if (!due) continue;
        delayed_.push_back(group);
        delayed_until_ = std::min(*due, delayed_until_.value_or(*due));
    }
}

/// When the service thread has to look again, if nothing happens before.
inline std::optional<Clock::time_point> Broker::NextEvent() {
    const auto next = intake_.NextEvent();
    if (!next || !delayed_until_) return next ? next : delayed_until_;
    return std::min(*next, *delayed_until_);
}

inline void Broker::OnStored(detail::Topic& topic) {
    CreateTopic(topic);
    for (const auto& [name, group] : topic.groups) MarkDirty(*group);
}

inline void Broker::CreateTopic(detail::Topic& topic) {
    if (std::exchange(topic.exists, true)) return;
    ++version_;
    for (const auto& member : std::exchange(unjoined_, {})) Join(member);
}

inline detail::Group& Broker::CreateGroup(detail::Topic& topic, const std::string& name) {
    auto& group = topic.groups[name];
    if (group == nullptr) {
        group = std::make_unique<detail::Group>(name, topic.log);
    } else if (!group->exists) {
        group->exists = true;
        group->Restart();
    }
    ++version_;
    return *group;
}

inline void Broker::RemoveTopic(detail::Topic& topic) {
    std::vector<std::shared_ptr<detail::Member>> members;
    for (const auto& [name, group] : topic.groups) {
        std::ranges::move(Disconnect(*group), std::back_inserter(members));
        group->exists = false;
    }
    topic.log.Clear();
    topic.exists = false;
    for (const auto& [name, group] : topic.groups) group->Restart();
    for (const auto& member : members) Join(member);
    ++version_;
}

inline void Broker::Join(const std::shared_ptr<detail::Member>& member) {
    using Phase = backend::ConsumerState::Phase;
    detail::Topic& topic = *topics_.at(member->subscribing.destination->address);
    if (intake_.running() && (topic.exists || member->declare)) {
        CreateTopic(topic);
        detail::Group& group = CreateGroup(topic, member->subscribing.group);
        group.Join(member);
        MarkDirty(group);
        SetState(member, Phase::kActive, nullptr);
        return;
    }
    unjoined_.push_back(member);
    if (!intake_.running()) {
        SetState(member, Phase::kRetrying,
                 std::make_shared<const Error>(ErrorCode::kUnavailable,
                                               "memory broker " + name_ + " is stopped"));
    } else {
        SetState(
            member, Phase::kRefused,
            std::make_shared<const Error>(ErrorCode::kNotFound,
                                          "memory broker " + name_ + " has no topic " + topic.address));
    }
}

/// Disconnects every member of the group, and returns them.
inline std::vector<std::shared_ptr<detail::Member>> Broker::Disconnect(detail::Group& group) {
    auto members = group.members();
    for (const auto& member : members) {
        Disconnect(*member);
        if (member->stale_asked != member->stale_told) Queue(member);
    }
    return members;
}

/// Takes the member out of its group; what it holds has become stale.
inline void Broker::Disconnect(detail::Member& member) {
    if (member.group == nullptr) return;
    MarkDirty(*member.group);
    // What the service thread is just about to hand over counts as well, until it says otherwise.
    const std::size_t stale = member.unsettled - member.dropped - member.outgoing.size();
    for (const detail::Handout& handout : member.outgoing) {
        member.group->GiveBack(member, handout.offset);
    }
    member.outgoing.clear();
    member.group->Leave(member);
    member.stale += stale;
    if (stale > 0) ++member.stale_asked;
    ++member.epoch;
    ++version_;
}

inline void Broker::SetState(const std::shared_ptr<detail::Member>& member,
                             backend::ConsumerState::Phase phase, std::shared_ptr<const Error> error) {
    if (member->state.phase == phase) return;
    member->state = {phase, std::move(error)};
    member->state_changed = true;
    Queue(member);
}

/// The member has something due.
inline void Broker::Queue(const std::shared_ptr<detail::Member>& member) {
    if (std::exchange(member->queued, true)) return;
    busy_.push_back(member);
    ++version_;
}

inline void Broker::MarkDirty(detail::Group& group) {
    if (std::exchange(group.dirty, true)) return;
    dirty_.push_back(&group);
}

/// The topic, where it exists.
inline detail::Topic* Broker::FindTopic(const std::string& address) const {
    const auto found = topics_.find(address);
    return found != topics_.end() && found->second->exists ? found->second.get() : nullptr;
}

inline Depth Broker::Left(const std::string& address, const std::string& group) const {
    const detail::Topic* const topic = FindTopic(address);
    if (topic == nullptr) return {};
    const detail::Group* const found = topic->FindGroup(group);
    return found != nullptr ? found->Left() : Depth{.ready = topic->log.size()};
}

/// The moment before the group's first unsettled message was stored, and with it all that are behind
/// it; nothing where the group has settled everything.
inline std::optional<Clock::time_point> Broker::SettledBefore(const std::string& address,
                                                              const std::string& group) const {
    const detail::Topic* const topic = FindTopic(address);
    if (topic == nullptr) return std::nullopt;
    const detail::Group* const found = topic->FindGroup(group);
    const std::uint64_t low = found != nullptr ? found->low() : topic->log.begin();
    if (low == topic->log.end()) return std::nullopt;
    // A tick less: who reads the same time from the clock may have read it after.
    return topic->log.At(low).stored_at - Clock::duration{1};
}

inline bool Broker::KnowsGroup(const std::string& address, const std::string& group) const {
    const detail::Topic* const topic = FindTopic(address);
    return topic != nullptr && topic->FindGroup(group) != nullptr;
}

/// How many members of the group take messages.
inline std::size_t Broker::Live(const detail::Group& group) {
    return static_cast<std::size_t>(
        std::ranges::count_if(group.members(), [](const auto& member) { return !member->stopping; }));
}

}  // namespace mq::memory
