/// @file group_consumer.hpp
/// A member of a consumer group: the thread that polls it, its assignments and its positions.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/admin.hpp>
#include <mq/backends/kafka/fetch_waker.hpp>
#include <mq/backends/kafka/handle.hpp>
#include <mq/backends/kafka/native.hpp>
#include <mq/backends/kafka/pulse.hpp>
#include <mq/backends/kafka/record.hpp>
#include <mq/backends/kafka/standstill.hpp>
#include <mq/backends/kafka/stream.hpp>
#include <mq/detail/abandoned.hpp>
#include <mq/detail/backoff.hpp>
#include <mq/detail/duration.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace mq::kafka::detail {

/// One member of one group: a consumer handle for any number of topics, and the thread that alone uses
/// it. Each topic's partitions are led into a queue of the topic's own, which is read only as far as
/// its subscription has credit: a slow topic holds up no other.
class GroupConsumer final : public HandleEvents, public std::enable_shared_from_this<GroupConsumer> {
public:
    /// How long the end takes at most where librdkafka comes to one: leaving, and the handle's end.
    static constexpr std::chrono::seconds kEndPatience = Handle::kEndPatience + std::chrono::seconds{3};

    GroupConsumer(std::shared_ptr<const Broker> broker, Admin& admin, std::string group,
                  std::size_t index)
        : broker_(std::move(broker)),
          admin_(admin),
          group_(std::move(group)),
          index_(index),
          waker_(std::make_shared<Waker>()),
          verdicts_(std::make_shared<Verdicts>()),
          findings_(std::make_shared<Findings>()),
          told_(std::make_shared<Told>()) {}

    GroupConsumer(const GroupConsumer&) = delete;
    GroupConsumer& operator=(const GroupConsumer&) = delete;

    ~GroupConsumer() {
        BeginEnd();
        if (thread_.joinable()) thread_.join();
    }

    [[nodiscard]] const std::string& group() const noexcept { return group_; }
    [[nodiscard]] std::size_t index() const noexcept { return index_; }

    /// Adds a subscription. Null where this consumer has one to the topic already, or is ending.
    /// Thread-safe; never blocks.
    std::shared_ptr<Stream> TryAdd(const backend::Subscribing& subscribing,
                                   const std::shared_ptr<backend::Receiver>& receiver,
                                   std::shared_ptr<Received> received) {
        const std::lock_guard lock{mutex_};
        const std::string& address = subscribing.destination->address;
        if (ending_ || streams_.contains(address)) return nullptr;
        auto stream = std::make_shared<Stream>(subscribing, receiver, waker_, std::move(received));
        streams_.emplace(address, stream);
        added_.push_back(stream);
        if (!thread_.joinable()) thread_ = std::thread{[this] { Run(); }};
        waker_->signal.Raise();
        return stream;
    }

    /// Commits what is settled, and leaves the topic, or the group with the last one. Blocks until the
    /// deadline at most; what is not done then goes on by itself for a second or so. Thread-safe.
    void Remove(const std::shared_ptr<Stream>& stream, Clock::time_point deadline) {
        {
            const std::lock_guard lock{mutex_};
            removed_.emplace_back(stream, deadline);
            waker_->signal.Raise();
        }
        stream->AwaitLeft(deadline);
    }

    /// Commits positions of a topic that the group had, as this member of it: those below 0 are left
    /// out. A group that has members takes them from nobody else. False where it is none at present.
    /// Never blocks. Thread-safe.
    bool Commit(const std::string& topic, const std::vector<std::int64_t>& positions) {
        const std::lock_guard lock{mutex_};
        if (!member_ || ending_ || streams_.contains(topic)) return false;
        to_commit_[topic] = positions;
        waker_->signal.Raise();
        return true;
    }

    /// The subscriptions by the address of their topic. Thread-safe.
    [[nodiscard]] std::map<std::string, std::shared_ptr<Stream>> Streams() const {
        const std::lock_guard lock{mutex_};
        return streams_;
    }

    /// Whether the thread has ended: the consumer can be destroyed without waiting. Thread-safe.
    [[nodiscard]] bool Ended() const {
        const std::lock_guard lock{mutex_};
        return ended_;
    }

    /// Has the thread end. Whoever holds a subscription has closed it before. Never blocks.
    void BeginEnd() {
        for (const auto& [topic, stream] : Streams()) Remove(stream, Clock::now());
    }

    /// The same, and waits for it until the deadline at most: a second or so where the deadline of a
    /// subscription was shorter than leaving took, and up to kEndPatience where librdkafka takes its
    /// time. A thread that it does not give back is left to itself, with this consumer and with `used`,
    /// what that uses besides. Idempotent, for one caller.
    void End(Clock::time_point deadline, std::shared_ptr<void> used) {
        BeginEnd();
        if (!thread_.joinable()) return;
        if (AwaitEnded(deadline)) return thread_.join();
        broker_->Log(LogLevel::kWarning,
                     "librdkafka does not give back the thread of the consumer of group '" + group_ +
                         "', which is left to itself until the process ends");
        // Its callbacks call nobody who has gone: the streams are detached, and so is the log at last.
        const auto kept = std::make_shared<std::pair<std::shared_ptr<void>, std::shared_ptr<void>>>(
            shared_from_this(), std::move(used));
        mq::detail::Abandoned::Keep(std::move(thread_), kept, [this] { return Ended(); });
    }

    void OnRebalance(rd_kafka_resp_err_t what,
                     rd_kafka_topic_partition_list_t& partitions) noexcept override {
        if (what == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
            Assign(partitions);
        } else if (what == RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS) {
            Revoke(partitions);
        } else {
            broker_->Log(LogLevel::kWarning,
                         "group '" + group_ + "' could not rebalance: " + rd_kafka_err2str(what));
            GiveUp(Everything());
            for (const auto& [topic, lane] : lanes_) lane->active = false;
            rd_kafka_assign(handle_->get(), nullptr);
        }
    }

    void OnCommitted(rd_kafka_resp_err_t error,
                     const rd_kafka_topic_partition_list_t* offsets) noexcept override {
        NoteCommitted(error, offsets);
    }

private:
    using Phase = backend::ConsumerState::Phase;

    static constexpr milliseconds kTick{1000};
    static constexpr std::size_t kBatch = 256;
    /// How often a long wait looks around: whether somebody closes, say.
    static constexpr milliseconds kSlice{100};
    static constexpr milliseconds kStoreInterval{100};
    /// How long librdkafka has to commit a position by itself, and how often that is looked after.
    static constexpr milliseconds kLook{1000};
    /// How long a commit may take at the end of an assignment.
    static constexpr milliseconds kCommitPatience{3000};
    /// How long leaving may go on beside the caller's deadline.
    static constexpr milliseconds kGrace{1000};
    /// How long the first subscription waits for others that are about to come.
    static constexpr milliseconds kGather{50};
    /// How long less than a batch of credit is left to grow.
    static constexpr milliseconds kCreditPause{5};
    /// The most messages remembered of one partition behind one that is not settled.
    static constexpr std::size_t kMostRemembered = 1u << 18u;
    /// How often it is looked whether everything goes on.
    static constexpr milliseconds kWatchInterval{500};
    /// How long a question of the watch may take.
    static constexpr milliseconds kLookPatience{4000};
    /// How long a consumer that is replaced gets for its handlers, its commit and its good-bye.
    static constexpr milliseconds kReplacePatience{3000};
    /// How long librdkafka gets to answer before a call that waits for it.
    static constexpr milliseconds kPulse{1000};
    /// How long librdkafka gets to begin with its partitions after it has failed to.
    static constexpr milliseconds kDoubt{2000};
    /// How often a member that has given way asks whether its place is free.
    static constexpr milliseconds kPlaceInterval{10'000};
    /// How long a position is not committed while it is asked what the group had before.
    static constexpr milliseconds kHold{5000};
    /// How long without a replacement until the next one is the first again.
    static constexpr std::chrono::minutes kCalm{5};
    /// The number that stands for all partitions of a topic together.
    static constexpr std::int32_t kNoPartition = -1;

    /// A partition, and how much of its position librdkafka and the broker have.
    struct Assigned {
        std::shared_ptr<Partition> partition = {};
        std::optional<std::int64_t> stored = {};
        std::optional<std::int64_t> committed = {};
        /// Everything below has come, or is nothing that comes; nothing before the first fetch.
        std::optional<std::int64_t> next = {};
        Clock::time_point hold_until = {};  ///< Not committed before.
        DeliveryWatch watch{};
        bool told = false;  ///< `committed` is what the broker has: nothing where it has nothing.
        Clock::time_point look_at = Clock::time_point::max();  ///< Whether the broker has the position.

        /// Something is handled that lies below what counts as handled.
        [[nodiscard]] bool Rewound() const { return stored && committed && *stored < *committed; }
    };

    enum class Admission : unsigned char { kAsking, kAdmitted, kWaiting };

    /// What the thread has of one subscription.
    struct Lane {
        explicit Lane(std::shared_ptr<Stream> its) : stream(std::move(its)) {}

        const std::shared_ptr<Stream> stream;
        Owned<rd_kafka_queue_t> queue = {};
        std::atomic<bool> readable{true};  ///< Set by librdkafka when the queue is not empty any more.
        bool unread = true;
        Clock::time_point resume_at = Clock::time_point::max();

        Admission admission = Admission::kAsking;
        Clock::time_point ask_at = {};
        mq::detail::Backoff backoff{milliseconds{200}, milliseconds{5000}};
        bool active = false;
        ErrorPtr trouble = {};

        std::map<std::int32_t, Assigned> assigned = {};
        DeliveryWatch watch{};                 ///< Of having any partition.
        std::size_t message_size = 0;          ///< On average, of those read last.
        std::set<std::int32_t> standing = {};  ///< The partitions that stand still, or kNoPartition.
        Clock::time_point standing_since = {};
        std::string standstill = {};  ///< That, for a person to read.
        bool asking_positions = false;
        bool leaving = false;
        Clock::time_point leave_by = {};
    };

    /// Answers of Admin::Ensure on their way to the thread.
    struct Verdicts {
        std::mutex mutex = {};  // guards answers
        std::vector<std::pair<std::string, ErrorPtr>> answers = {};
    };

    using Place = Admin::Place;

    /// Where a group had been before this member began to read.
    struct Before {
        Place place = {};
        std::int64_t committed = 0;
        std::int64_t begin = 0;
    };

    /// What the watch wants to know.
    struct Question {
        std::vector<Place> places = {};
        bool stable = false;                   ///< See Admin::Ends.
        bool members = false;                  ///< Also who has which partitions,
        std::vector<std::string> topics = {};  ///< and how many these have.
    };

    /// What it has learnt; what could not be told is missing.
    struct Finding {
        Clock::time_point asked = {};
        bool stable = false;
        std::map<Place, std::int64_t> ends = {};
        std::optional<Admin::Members> members = {};
        bool members_unsupported = false;
        std::map<std::string, int> counts = {};
    };

    /// Findings on their way to the thread.
    struct Findings {
        std::mutex mutex = {};  // guards everything below
        bool asking = false;
        std::optional<Finding> finding = {};
        std::vector<Before> before = {};
    };

    /// Positions of a topic at the broker, on their way to the thread; nothing where it has not
    /// answered.
    struct Positions {
        std::string topic = {};
        std::optional<std::vector<std::int64_t>> committed = {};
    };
    struct Told {
        std::mutex mutex = {};  // guards answers
        std::vector<Positions> answers = {};
    };

    void Run() {
        while (true) {
            const std::uint64_t seen = waker_->signal.Generation();
            TakeOrders();
            if (Ending()) break;
            TakeVerdicts();
            CommitForOthers();
            AskAgain();
            Subscribe();
            Poll();
            const bool more = ReadLanes();
            StoreWhenDue();
            Watch();
            LookAfterRewinds();
            FinishLeaving();
            ShowStates();
            if (!more) waker_->signal.WaitChange(seen, NextWake());
        }
        Leave();
        const std::lock_guard lock{mutex_};
        ended_ = true;
        has_ended_.notify_all();
    }

    bool AwaitEnded(Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        return has_ended_.wait_until(lock, deadline, [this] { return ended_; });
    }

    // -- What is asked of the thread ------------------------------------------------------------

    void TakeOrders() {
        std::vector<std::shared_ptr<Stream>> added;
        std::vector<std::pair<std::shared_ptr<Stream>, Clock::time_point>> removed;
        {
            const std::lock_guard lock{mutex_};
            added = std::move(added_);
            removed = std::move(removed_);
            added_.clear();
            removed_.clear();
        }
        for (auto& stream : added) {
            const std::string address = stream->destination().address;
            auto lane = std::make_unique<Lane>(std::move(stream));
            if (handle_ != nullptr) OpenQueue(*lane);
            Ask(*lane);
            lanes_.insert_or_assign(address, std::move(lane));
        }
        for (const auto& [stream, deadline] : removed) {
            const auto lane = lanes_.find(stream->destination().address);
            if (lane == lanes_.end() || lane->second->stream != stream) continue;
            if (lane->second->leaving) continue;
            lane->second->leaving = true;
            lane->second->leave_by = std::max(deadline, Clock::now() + kGrace);
        }
    }

    // Once nobody is left, nobody is let in.
    bool Ending() {
        const bool leaving = std::all_of(lanes_.begin(), lanes_.end(),
                                         [](const auto& entry) { return entry.second->leaving; });
        const std::lock_guard lock{mutex_};
        ending_ = leaving && added_.empty();
        return ending_;
    }

    void Ask(Lane& lane) {
        lane.admission = Admission::kAsking;
        const std::string topic = lane.stream->destination().address;
        admin_.Ensure(topic, [topic, verdicts = verdicts_, waker = waker_](const auto& verdict) {
            {
                const std::lock_guard lock{verdicts->mutex};
                verdicts->answers.emplace_back(topic, verdict.error);
            }
            waker->signal.Raise();
        });
    }

    void TakeVerdicts() {
        std::vector<std::pair<std::string, ErrorPtr>> answers;
        {
            const std::lock_guard lock{verdicts_->mutex};
            answers = std::move(verdicts_->answers);
            verdicts_->answers.clear();
        }
        for (auto& [topic, error] : answers) {
            const auto lane = lanes_.find(topic);
            if (lane == lanes_.end() || lane->second->admission != Admission::kAsking) continue;
            if (error == nullptr) {
                lane->second->admission = Admission::kAdmitted;
                lane->second->trouble = nullptr;
                lane->second->active = InGroup();
                resubscribe_ = true;
            } else {
                Postpone(*lane->second, std::move(error));
            }
        }
    }

    // Then a further topic needs no word of the group's: it begins with its earliest message, whenever
    // the partitions are shared out anew, for which librdkafka may take a second, and the handlers of
    // other topics longer.
    [[nodiscard]] bool InGroup() const {
        return std::any_of(lanes_.begin(), lanes_.end(),
                           [](const auto& entry) { return entry.second->active; });
    }

    // The topic is not to be had at present.
    void Postpone(Lane& lane, ErrorPtr error) {
        lane.admission = Admission::kWaiting;
        lane.trouble = std::move(error);
        lane.active = false;
        lane.ask_at = Clock::now() + lane.backoff.Next();
    }

    void AskAgain() {
        for (const auto& [topic, lane] : lanes_) {
            if (lane->admission == Admission::kWaiting && Clock::now() >= lane->ask_at) Ask(*lane);
        }
    }

    // -- The handle -----------------------------------------------------------------------------

    bool Start() {
        if (Clock::now() < start_at_ || !PlaceIsFree()) return false;
        try {
            std::vector<Property> required{{"group.id", group_}};
            if (const auto instance = Instance()) required.emplace_back(kInstanceId, *instance);
            if (!assignors_.empty()) required.emplace_back(Properties::kAssignors, assignors_);
            const auto properties = Properties::Of(*broker_, Role::kConsumer, required);
            fetch_waker_ = FetchWaker{properties};
            handle_ = std::make_unique<Handle>(broker_, Role::kConsumer, properties, this,
                                               [waker = waker_] { waker->signal.Raise(); });
        } catch (const Error& error) {
            start_at_ = Clock::now() + restart_.Next();
            for (const auto& [topic, lane] : lanes_) lane->trouble = std::make_shared<Error>(error);
            return false;
        }
        rd_kafka_poll_set_consumer(handle_->get());
        main_queue_.reset(rd_kafka_queue_get_consumer(handle_->get()));
        rd_kafka_queue_cb_event_enable(main_queue_.get(), &GroupConsumer::OnMainQueue, waker_.get());
        for (const auto& [topic, lane] : lanes_) OpenQueue(*lane);
        return true;
    }

    static constexpr const char* kInstanceId = "group.instance.id";

    /// The group.instance.id of this member: each consumer of this client has one of its own.
    [[nodiscard]] std::optional<std::string> Instance() const {
        const auto options = Properties::FromOptions(broker_->options, Role::kConsumer);
        auto instance = FindProperty(options, kInstanceId);
        if (instance && index_ > 0) *instance += "-" + std::to_string(index_);
        return instance;
    }

    // Called by librdkafka with locks of its own held.
    static void OnMainQueue(rd_kafka_t*, void* opaque) { static_cast<Waker*>(opaque)->signal.Raise(); }

    static void OnLaneQueue(rd_kafka_t*, void* opaque) {
        Lane& lane = *static_cast<Lane*>(opaque);
        lane.readable.store(true);
        lane.stream->waker().signal.Raise();
    }

    void OpenQueue(Lane& lane) {
        lane.queue.reset(rd_kafka_queue_new(handle_->get()));
        rd_kafka_queue_cb_event_enable(lane.queue.get(), &GroupConsumer::OnLaneQueue, &lane);
    }

    static void CloseQueue(Owned<rd_kafka_queue_t>& queue) {
        if (queue == nullptr) return;
        rd_kafka_queue_cb_event_enable(queue.get(), nullptr, nullptr);
        queue.reset();
    }

    void Stop() {
        for (const auto& [topic, lane] : lanes_) {
            DropPartitions(*lane);
            CloseQueue(lane->queue);
            lane->active = false;
            lane->resume_at = Clock::time_point::max();
            lane->watch.Progress(Clock::now());
        }
        CloseQueue(main_queue_);
        DropPostponed();
        pulse_.Forget();
        if (joining_) Handle::Abandon(std::move(handle_));
        handle_.reset();
        joining_ = assigned_ = false;
        doubt_at_ = Clock::time_point::max();
        subscribed_.clear();
    }

    // While the group shares its partitions out, librdkafka postpones a subscription. One that comes
    // into effect during the end trips an assertion there (rd_kafka_cgrp_destroy_final, seen with
    // 2.0.2); unsubscribing forgets it. False where the library does not answer.
    bool DropPostponed() {
        if (handle_ == nullptr || rd_kafka_consumer_closed(handle_->get()) != 0) return true;
        if (!pulse_.Answers(handle_->get(), kPulse)) {
            joining_ = true;  // nor could it be destroyed
            return false;
        }
        static_cast<void>(rd_kafka_unsubscribe(handle_->get()));
        joining_ = IsJoining();
        return true;
    }

    // Between the answer to its first JoinGroup and its first assignment a cooperative consumer must
    // not be destroyed: librdkafka ends the process (rd_kafka_sticky_assignor_state_destroy, its issue
    // 4312, mended in 2.3).
    [[nodiscard]] bool IsJoining() const {
        constexpr int kMended = 0x020300ff;
        return !assigned_ && rd_kafka_version() < kMended && Cooperative();
    }

    // Tells librdkafka the topics, whenever they have changed.
    void Subscribe() {
        std::set<std::string> wanted;
        bool asking = false;
        for (const auto& [topic, lane] : lanes_) {
            if (lane->leaving) continue;
            if (lane->admission == Admission::kAdmitted) wanted.insert(topic);
            asking = asking || lane->admission == Admission::kAsking;
        }
        if (wanted == subscribed_ && !resubscribe_) {
            gather_until_ = Clock::time_point::max();
            return;
        }
        if (handle_ == nullptr && (wanted.empty() || !Start())) return;
        if (!pulse_.Answers(handle_->get(), kPulse)) return;
        if (asking &&
            !std::includes(subscribed_.begin(), subscribed_.end(), wanted.begin(), wanted.end())) {
            gather_until_ = std::min(gather_until_, Clock::now() + kGather);
            if (Clock::now() < gather_until_) return;
        }
        gather_until_ = Clock::time_point::max();
        resubscribe_ = false;
        const auto list = MakeList(wanted.size());
        for (const std::string& topic : wanted) {
            rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), RD_KAFKA_PARTITION_UA);
        }
        const auto error = wanted.empty() ? rd_kafka_unsubscribe(handle_->get())
                                          : rd_kafka_subscribe(handle_->get(), list.get());
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR) {
            Restart("subscribing failed", error);
            return;
        }
        subscribed_ = std::move(wanted);
    }

    void Poll() {
        if (handle_ == nullptr) return;
        constexpr int kMost = 1000;
        for (int i = 0; i < kMost; ++i) {
            const Owned<rd_kafka_message_t> message{rd_kafka_consumer_poll(handle_->get(), 0)};
            if (message == nullptr) break;
            if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR) OnTrouble(*message);
        }
        std::array<char, 512> text{};
        const auto fatal = rd_kafka_fatal_error(handle_->get(), text.data(), text.size());
        if (fatal == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID) {
            GiveWay();
        } else if (fatal != RD_KAFKA_RESP_ERR_NO_ERROR) {
            Restart(text.data(), fatal);
        } else if (misfit_ != nullptr) {
            TryOtherAssignors();
        }
    }

    // -- Places in the group --------------------------------------------------------------------

    // The group shares out its partitions by a protocol that this member does not know: it has members
    // of another version of librdkafka, or of another program. Whoever has not set the assignor joins
    // by theirs; with neither, the error stands and both are tried by turns.
    void TryOtherAssignors() {
        const ErrorPtr error = std::exchange(misfit_, nullptr);
        if (assignors_.empty()) assignors_ = PreferredAssignors(rd_kafka_version());
        assignors_ = OtherAssignors(assignors_);
        const bool first = std::exchange(misfits_, misfits_ + 1) == 0;
        if (first) {
            broker_->Log(LogLevel::kWarning,
                         "group '" + group_ +
                             "' has members that share out its partitions otherwise: " +
                             "this one tries " + assignors_ + (HasHangingAssignor() ? kHanging : ""));
        }
        Stop();
        if (!first) {
            for (const auto& [topic, lane] : lanes_) lane->trouble = error;
        }
        start_at_ = Clock::now() + (first ? milliseconds{0} : restart_.Next());
        resubscribe_ = true;
    }

    static constexpr const char* kHanging =
        ", with which this version of librdkafka can hang where members have different topics: have "
        "all "
        "members of the group stopped at a time, or use librdkafka 2.6.1";

    [[nodiscard]] bool HasHangingAssignor() const {
        return NamesCooperative(assignors_) && !CooperativeIsSound(rd_kafka_version());
    }

    // Another consumer has joined with the group.instance.id of this one, and the group has taken that
    // for a new start of it. Whoever came last stays: to come back would only drive the other out,
    // again and again, and have messages handled by both.
    void GiveWay() {
        const std::string text =
            "another consumer has joined with the same group.instance.id '" + Instance().value_or("") +
            "': this one gives way, and gets nothing until the other is gone. Give "
            "each process a group.instance.id of its own, or none";
        const auto error = std::make_shared<Error>(
            MakeError(*broker_, "group '" + group_ + "'", RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, text));
        broker_->Log(LogLevel::kError, "group '" + group_ + "': " + text);
        Stop();
        for (const auto& [topic, lane] : lanes_) lane->trouble = error;
        fenced_ = true;
        start_at_ = Clock::now() + kPlaceInterval;
        come_back_at_ = Clock::now() + fenced_pause_.Next();
        resubscribe_ = true;
        TakeFinding();
    }

    // Who has given way comes back only when nobody has its group.instance.id. Where the group cannot
    // be asked, its pauses grow.
    bool PlaceIsFree() {
        if (!fenced_) return true;
        const auto now = Clock::now();
        const auto finding = TakeFinding();
        if (!finding) {
            start_at_ = now + kTick;
            Ask({.members = true});
            return false;
        }
        start_at_ = now + kPlaceInterval;
        if (finding->members_unsupported) return now >= come_back_at_;
        return finding->members && !finding->members->rebalancing &&
               !finding->members->instances.contains(Instance().value_or(""));
    }

    // Gives the handle up and makes another one after a while.
    void Restart(const std::string& reason, rd_kafka_resp_err_t code) {
        const auto error = std::make_shared<Error>(
            MakeError(*broker_, "the consumer of group '" + group_ + "' has failed", code, reason));
        broker_->Log(LogLevel::kError, "the consumer of group '" + group_ + "' is replaced: " + reason);
        Stop();
        for (const auto& [topic, lane] : lanes_) lane->trouble = error;
        start_at_ = Clock::now() + restart_.Next();
        resubscribe_ = true;
    }

    // An error of a topic, a partition or the group, which librdkafka reports as a message.
    [[nodiscard]] ErrorPtr TroubleOf(const rd_kafka_message_t& message, const std::string& text) const {
        const std::string what = "group '" + group_ + "'";
        // A topic that has just been created is not known to every broker at once.
        if (message.err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART && broker_->options.declare) {
            return std::make_shared<Error>(ErrorCode::kUnavailable, broker_->Text(what + ": " + text),
                                           Outcome::kNotSent, NativeError{message.err, text});
        }
        return std::make_shared<Error>(MakeError(*broker_, what, message.err, text));
    }

    [[nodiscard]] bool ChoosesAssignors() const {
        return FindProperty(Properties::FromOptions(broker_->options, Role::kConsumer),
                            Properties::kAssignors)
            .has_value();
    }

    void OnTrouble(const rd_kafka_message_t& message) {
        const std::string text = rd_kafka_message_errstr(&message);
        const auto lane =
            message.rkt != nullptr ? lanes_.find(rd_kafka_topic_name(message.rkt)) : lanes_.end();
        const auto error = TroubleOf(message, text);
        // librdkafka (seen with 2.0.2; its issue 5586) never asks again, nor begins with the
        // partitions.
        if (text.starts_with("Failed to fetch committed offsets")) doubt_at_ = Clock::now() + kDoubt;
        if (log_throttle_.Allow(rd_kafka_err2name(message.err))) {
            broker_->Log(LogLevel::kWarning, "group '" + group_ + "': " + text);
        }
        switch (message.err) {
            case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
            case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
            case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
                if (lane != lanes_.end()) Postpone(*lane->second, error);
                break;
            case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
                if (lane != lanes_.end()) {
                    lane->second->trouble = error;
                    lane->second->active = false;
                }
                break;
            case RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL:
                if (!ChoosesAssignors()) misfit_ = error;
                [[fallthrough]];
            case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
                for (const auto& [topic, any] : lanes_) {
                    any->trouble = error;
                    any->active = false;
                }
                break;
            default: break;
        }
    }

    // -- Assignments ----------------------------------------------------------------------------

    Lane* FindLane(const char* topic) {
        const auto lane = lanes_.find(topic);
        return lane == lanes_.end() ? nullptr : lane->second.get();
    }

    [[nodiscard]] bool Cooperative() const {
        const char* const protocol = rd_kafka_rebalance_protocol(handle_->get());
        return protocol != nullptr && std::string_view{protocol} == "COOPERATIVE";
    }

    void Assign(rd_kafka_topic_partition_list_t& partitions) {
        assigned_ = true;
        for (int i = 0; i < partitions.cnt; ++i) {
            const rd_kafka_topic_partition_t& entry = partitions.elems[i];
            Lane* const lane = FindLane(entry.topic);
            if (lane == nullptr || lane->leaving) continue;
            // Before librdkafka begins to fetch: it keeps a way that was set before.
            const Owned<rd_kafka_queue_t> queue{
                rd_kafka_queue_get_partition(handle_->get(), entry.topic, entry.partition)};
            rd_kafka_queue_forward(queue.get(), lane->queue.get());
            Renew(*lane, entry.partition);
        }
        if (Cooperative()) {
            Report(rd_kafka_incremental_assign(handle_->get(), &partitions));
        } else {
            rd_kafka_assign(handle_->get(), &partitions);
        }
        restart_.Reset();
        fenced_ = false;
        misfits_ = 0;
        ActivateSubscribed();
        ForgetStanding();
    }

    void Report(rd_kafka_error_t* error) const {
        const Owned<rd_kafka_error_t> owned{error};
        if (error == nullptr) return;
        broker_->Log(LogLevel::kWarning, "group '" + group_ + "': " + rd_kafka_error_string(error));
    }

    static void Renew(Lane& lane, std::int32_t number) {
        auto partition = std::make_shared<Partition>(lane.stream->destination().address, number);
        lane.stream->SetPartition(number, partition);
        lane.assigned[number] = {std::move(partition)};
    }

    // The partition begins again below what has come of it: what is out of it is stale, and what the
    // broker has of its position is not.
    static void Rewind(Lane& lane, backend::Receiver& receiver, std::int32_t number) {
        const Assigned before = lane.assigned[number];
        before.partition->Seal();
        Renew(lane, number);
        Assigned& renewed = lane.assigned[number];
        renewed.committed = before.committed ? before.committed : before.stored;
        renewed.told = before.told;
        receiver.OnStale();
    }

    // A rebalance is complete: each topic that was part of it is listened to, even where all its
    // partitions are with other members.
    void ActivateSubscribed() {
        rd_kafka_topic_partition_list_t* list = nullptr;
        if (rd_kafka_subscription(handle_->get(), &list) != RD_KAFKA_RESP_ERR_NO_ERROR) return;
        const Owned<rd_kafka_topic_partition_list_t> owned{list};
        for (int i = 0; i < list->cnt; ++i) {
            Lane* const lane = FindLane(list->elems[i].topic);
            if (lane == nullptr || lane->admission != Admission::kAdmitted) continue;
            lane->active = true;
            lane->trouble = nullptr;
            lane->backoff.Reset();
        }
    }

    /// Partitions by their subscription.
    using Partitions = std::map<Lane*, std::vector<std::int32_t>>;

    void Revoke(rd_kafka_topic_partition_list_t& partitions) {
        Partitions going;
        for (int i = 0; i < partitions.cnt; ++i) {
            Lane* const lane = FindLane(partitions.elems[i].topic);
            if (lane != nullptr && lane->assigned.contains(partitions.elems[i].partition)) {
                going[lane].push_back(partitions.elems[i].partition);
            }
        }
        GiveUp(going);
        if (Cooperative()) {
            Report(rd_kafka_incremental_unassign(handle_->get(), &partitions));
        } else {
            rd_kafka_assign(handle_->get(), nullptr);
        }
    }

    [[nodiscard]] Partitions Everything() const {
        Partitions all;
        for (const auto& [topic, lane] : lanes_) {
            for (const auto& [number, assigned] : lane->assigned) all[lane.get()].push_back(number);
        }
        return all;
    }

    // Before librdkafka lets them go: handlers end, and what is settled is committed, unless the
    // partitions are with somebody else already.
    void GiveUp(const Partitions& going) {
        const bool lost = rd_kafka_assignment_lost(handle_->get()) != 0;
        if (lost) {
            broker_->Log(LogLevel::kWarning,
                         "group '" + group_ + "': its partitions are lost to others");
        }
        for (const auto& [lane, numbers] : going) Fence(*lane, numbers);
        if (!lost) AwaitHandlers(going);
        for (const auto& [lane, numbers] : going) {
            for (const std::int32_t number : numbers) lane->assigned[number].partition->Seal();
            if (lost) lane->active = false;
        }
        if (!lost) CommitNow(going);
        for (const auto& [lane, numbers] : going) {
            for (const std::int32_t number : numbers) {
                lane->assigned.erase(number);
                lane->stream->SetPartition(number, nullptr);
            }
        }
    }

    static void Fence(Lane& lane, const std::vector<std::int32_t>& numbers) {
        for (const std::int32_t number : numbers) lane.assigned[number].partition->Fence();
        lane.stream->WithReceiver([](backend::Receiver& receiver) { receiver.OnStale(); });
    }

    // Those that run may still settle. Whoever closes has waited for its handlers before. Blocks this
    // thread, and with it the delivery to the whole group, but not the heartbeats: those are sent by a
    // thread of librdkafka.
    void AwaitHandlers(const Partitions& going) {
        const std::chrono::milliseconds patience = broker_->options.RevokeWait();
        const auto deadline = std::min(Clock::now() + patience, closing_by_);
        bool ended = true;
        for (const auto& [lane, numbers] : going) {
            for (const std::int32_t number : numbers) {
                ended = AwaitHandlers(*lane, *lane->assigned[number].partition, deadline) && ended;
            }
        }
        if (ended) return;
        broker_->Log(LogLevel::kWarning, "group '" + group_ +
                                             "': a partition goes to another member while handlers of "
                                             "its messages are at work, after revoke_wait (" +
                                             mq::detail::FormatDuration(patience) +
                                             "): what they have is delivered again there");
    }

    // Whether they have ended, or belong to a subscription that is about to leave.
    bool AwaitHandlers(const Lane& lane, Partition& partition, Clock::time_point deadline) {
        while (!IsLeaving(lane)) {
            // Who comes or goes in the meantime does not wait for them.
            TakeOrders();
            TakeVerdicts();
            ShowStates();
            const auto now = Clock::now();
            if (partition.WaitReleased(std::min(deadline, now + kSlice))) return true;
            if (now >= deadline) return false;
        }
        return true;
    }

    // Also where this thread has not been told yet.
    [[nodiscard]] bool IsLeaving(const Lane& lane) const {
        if (lane.leaving) return true;
        const std::lock_guard lock{mutex_};
        return std::any_of(removed_.begin(), removed_.end(),
                           [&](const auto& order) { return order.first == lane.stream; });
    }

    static void DropPartitions(Lane& lane) {
        if (lane.assigned.empty()) return;
        for (const auto& [number, assigned] : lane.assigned) {
            assigned.partition->Seal();
            lane.stream->SetPartition(number, nullptr);
        }
        lane.assigned.clear();
        lane.stream->WithReceiver([](backend::Receiver& receiver) { receiver.OnStale(); });
    }

    // -- Messages -------------------------------------------------------------------------------

    // Whether there is more to read at once.
    bool ReadLanes() {
        bool more = false;
        for (const auto& [topic, lane] : lanes_) more = ReadLane(*lane) || more;
        return more;
    }

    bool ReadLane(Lane& lane) {
        if (lane.readable.exchange(false)) lane.unread = true;
        if (!lane.unread || lane.queue == nullptr || lane.stream->Stopped()) return false;
        const std::size_t room = Room(lane);
        if (room == 0) return false;
        const auto count = rd_kafka_consume_batch_queue(lane.queue.get(), 0, batch_.data(), room);
        // Less than asked for: it was empty, and what comes now announces itself.
        lane.unread = count >= 0 && static_cast<std::size_t>(count) == room;
        if (count <= 0) return lane.unread;
        const auto taken = static_cast<std::size_t>(count);
        std::size_t size = 0;
        for (std::size_t i = 0; i < taken; ++i) size += batch_[i]->len + batch_[i]->key_len;
        fetch_waker_.OnRead(handle_->get(), taken, size);
        lane.message_size = size / taken;
        read_at_ = Clock::now();
        lane.stream->WithReceiver([&](backend::Receiver& receiver) {
            for (std::size_t i = 0; i < taken; ++i) {
                const Owned<rd_kafka_message_t> message{batch_[i]};
                Take(lane, receiver, *message);
            }
        });
        return lane.unread;
    }

    // How many messages may be read now: 0 until a batch of credit has come together, or what there
    // is has waited a little.
    std::size_t Room(Lane& lane) {
        if (TooFarAhead(lane)) {
            lane.resume_at = Clock::time_point::max();
            return 0;
        }
        Credit& credit = lane.stream->credit();
        std::size_t available = credit.Available();
        if (available == 0 || credit.Starved()) {
            credit.SetStarved(true);
            available = credit.Available();
            if (available == 0) return 0;
            if (available < credit.batch()) {
                const auto now = Clock::now();
                if (lane.resume_at == Clock::time_point::max()) lane.resume_at = now + kCreditPause;
                if (now < lane.resume_at) return 0;
            }
            credit.SetStarved(false);
            lane.resume_at = Clock::time_point::max();
        }
        return std::min(available, kBatch);
    }

    // One message that is never settled would have all behind it remembered for ever.
    static bool TooFarAhead(const Lane& lane) {
        return std::any_of(lane.assigned.begin(), lane.assigned.end(), [](const auto& entry) {
            return entry.second.partition->Window() >= kMostRemembered;
        });
    }

    void Take(Lane& lane, backend::Receiver& receiver, const rd_kafka_message_t& record) {
        if (record.err != RD_KAFKA_RESP_ERR_NO_ERROR &&
            record.err != RD_KAFKA_RESP_ERR__PARTITION_EOF) {
            OnTrouble(record);
            return;
        }
        const auto found = lane.assigned.find(record.partition);
        if (found == lane.assigned.end() || lane.stream->Stopped()) return;
        const bool end = record.err == RD_KAFKA_RESP_ERR__PARTITION_EOF;
        NoteProgress(lane, record.partition, found->second, record.offset, end);
        if (end) {
            const auto progress = found->second.partition->GetProgress();
            if (progress.position && record.offset < progress.end) {
                Rewind(lane, receiver, record.partition);
                found->second.next = record.offset;
            }
            if (found->second.partition->ReachEnd(record.offset)) waker_->SetDirty();
            return;
        }
        if (!found->second.partition->Deliver(record.offset)) {
            Rewind(lane, receiver, record.partition);
            found->second.partition->Deliver(record.offset);
            found->second.next = record.offset + 1;
        }
        lane.stream->credit().Take();
        if (!found->second.stored) waker_->SetDirty();
        auto inbound = std::make_unique<Inbound>(lane.stream, found->second.partition, record.offset);
        ReadRecord(record, *inbound);
        Message& message = inbound->message;
        message.topic = lane.stream->destination().topic;
        message.redelivered =
            lane.stream->received().Again(record.partition, record.offset) || message.redelivered;
        receiver.OnDelivery(std::move(inbound));
    }

    // -- What is not there any more -------------------------------------------------------------

    void NoteProgress(Lane& lane, std::int32_t number, Assigned& assigned, std::int64_t offset,
                      bool end) {
        assigned.watch.Progress(read_at_);
        if (!lane.standing.empty() && lane.standing.erase(number) > 0) ShowStanding(lane);
        if (!assigned.next) {
            unbegun_pause_.Reset();
            AskBefore(lane, number, assigned, offset);
        } else if (offset > *assigned.next) {
            const auto low = LowWatermark(lane, number).value_or(*assigned.next);
            NoteRemoved(lane.stream->destination().address, number, *assigned.next,
                        std::min(low, offset));
        }
        assigned.next = offset + (end ? 0 : 1);
    }

    // As the last fetch has said it.
    [[nodiscard]] std::optional<std::int64_t> LowWatermark(const Lane& lane,
                                                           std::int32_t number) const {
        std::int64_t low = RD_KAFKA_OFFSET_INVALID;
        std::int64_t high = RD_KAFKA_OFFSET_INVALID;
        const auto error = rd_kafka_get_watermark_offsets(
            handle_->get(), lane.stream->destination().address.c_str(), number, &low, &high);
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR || low < 0) return std::nullopt;
        return low;
    }

    void NoteRemoved(const std::string& topic, std::int32_t number, std::int64_t from,
                     std::int64_t to) const {
        if (to <= from) return;
        const std::string count = std::to_string(to - from);
        broker_->Log(LogLevel::kWarning,
                     "group '" + group_ + "': up to " + count + " messages of partition " +
                         std::to_string(number) + " of '" + topic + "' (offsets " +
                         std::to_string(from) + " to " + std::to_string(to - 1) +
                         ") are lost to it: the broker has removed them before they were handled, by "
                         "retention.ms, retention.bytes or a deletion of records");
    }

    // Where the log begins is also where a group begins that had a position below: whether it had one
    // is asked before that is overwritten.
    void AskBefore(Lane& lane, std::int32_t number, Assigned& assigned, std::int64_t begin) {
        if (begin <= 0 || LowWatermark(lane, number) != begin) return;
        const std::string topic = lane.stream->destination().address;
        const bool asked = admin_.AskLater([this_admin = &admin_, group = group_, topic, number, begin,
                                            findings = findings_, waker = waker_] {
            Before before{{topic, number}, begin, begin};
            try {
                const auto deadline = Clock::now() + kLookPatience;
                before.committed = this_admin->Committed(group, topic, number + 1, deadline).back();
            } catch (const std::exception&) {  // then it is not known
            }
            {
                const std::lock_guard lock{findings->mutex};
                findings->before.push_back(std::move(before));
            }
            waker->signal.Raise();
        });
        if (asked) assigned.hold_until = Clock::now() + kHold;
    }

    void TakeBefore() {
        std::vector<Before> answers;
        {
            const std::lock_guard lock{findings_->mutex};
            answers = std::move(findings_->before);
            findings_->before.clear();
        }
        for (const auto& [place, committed, begin] : answers) {
            if (committed >= 0) NoteRemoved(place.first, place.second, committed, begin);
            Lane* const lane = FindLane(place.first.c_str());
            if (lane == nullptr) continue;
            const auto assigned = lane->assigned.find(place.second);
            if (assigned != lane->assigned.end()) assigned->second.hold_until = {};
            waker_->SetDirty();
        }
    }

    // -- Whether everything goes on -------------------------------------------------------------

    void Watch() {
        TakeBefore();
        const auto now = Clock::now();
        if (now < watch_at_) return;
        const bool late =
            now > watch_at_ + kTick * 3;  // this thread was held up, which is nobody's fault
        watch_at_ = now + kWatchInterval;
        for (const auto& [topic, lane] : lanes_) Excuse(*lane, now, late);
        // A member that has given way has questions of its own.
        if (fenced_) return;
        if (handle_ != nullptr) pulse_.Feel(handle_->get(), now);
        if (!late && pulse_.Lost(now)) return ReplaceStuck();
        if (now >= doubt_at_) return ReplaceUnbegun();
        if (const auto finding = TakeFinding()) Judge(*finding);
        Look(now);
    }

    // Nothing can be asked of the library any more, least of all to leave the group, which goes on
    // without this member after session.timeout.ms.
    void ReplaceStuck() {
        const std::string reason = "group '" + group_ + "': librdkafka has not answered for " +
                                   mq::detail::FormatDuration(Pulse::kPatience) +
                                   ": its consumer is given up and replaced";
        broker_->Log(LogLevel::kError, reason);
        for (const auto& [topic, lane] : lanes_) {
            lane->standing.insert(kNoPartition);
            lane->standstill = reason;
        }
        GiveUpHandle(reason);
        start_at_ = Clock::now() + restart_.Next();
    }

    // Partitions that this member has, and that librdkafka has said it cannot begin with.
    void ReplaceUnbegun() {
        doubt_at_ = Clock::time_point::max();
        std::size_t unbegun = 0;
        for (const auto& [topic, lane] : lanes_) {
            for (const auto& [number, assigned] : lane->assigned) unbegun += assigned.next ? 0U : 1U;
        }
        if (unbegun == 0) return;
        const std::string reason = "group '" + group_ + "': librdkafka does not begin with " +
                                   std::to_string(unbegun) +
                                   " partitions of this member: its consumer is replaced";
        broker_->Log(LogLevel::kWarning, reason);
        Replace(reason);
        start_at_ = Clock::now() + unbegun_pause_.Next();
    }

    // While nothing can come, nothing stands still.
    void Excuse(Lane& lane, Clock::time_point now, bool late) {
        const bool waits = !late && handle_ != nullptr && handle_->connectivity().AnyUp() &&
                           (lane.trouble == nullptr || !IsRefusal(*lane.trouble)) && !lane.leaving &&
                           subscribed_.contains(lane.stream->destination().address);
        if (!waits || !lane.assigned.empty()) lane.watch.Progress(now);
        if (waits && lane.stream->credit().Available() > 0 && !lane.stream->Stopped() &&
            !TooFarAhead(lane) &&
            !fetch_waker_.MayBeFull(rd_kafka_queue_length(lane.queue.get()), lane.message_size)) {
            return;
        }
        for (auto& [number, assigned] : lane.assigned) assigned.watch.Progress(now);
    }

    /// Asks where those end that have been quiet for a while, and who has the partitions of a topic of
    /// which this member has none.
    void Look(Clock::time_point now) {
        if (now < next_look_) return;
        Question question;
        question.stable = std::exchange(ask_stable_, false);
        for (const auto& [topic, lane] : lanes_) {
            for (const auto& [number, assigned] : lane->assigned) {
                if (assigned.watch.Due(now)) question.places.emplace_back(topic, number);
            }
            if (lane->assigned.empty() && lane->watch.Due(now)) question.topics.push_back(topic);
        }
        question.members = !question.topics.empty();
        if (question.places.empty() && !question.members) return;
        if (Ask(std::move(question))) next_look_ = now + DeliveryWatch::kAskAgain;
    }

    bool Ask(Question question) {
        {
            const std::lock_guard lock{findings_->mutex};
            if (findings_->asking) return false;
            findings_->asking = true;
        }
        const bool asked =
            admin_.AskLater([this_admin = &admin_, group = group_, question = std::move(question),
                             findings = findings_, waker = waker_] {
                Finding finding = FindOut(*this_admin, group, question);
                {
                    const std::lock_guard lock{findings->mutex};
                    findings->finding = std::move(finding);
                    findings->asking = false;
                }
                waker->signal.Raise();
            });
        if (!asked) {
            const std::lock_guard lock{findings_->mutex};
            findings_->asking = false;
        }
        return asked;
    }

    static Finding FindOut(Admin& admin, const std::string& group, const Question& question) {
        Finding finding;
        finding.asked = Clock::now();
        finding.stable = question.stable;
        const auto deadline = Clock::now() + kLookPatience;
        try {
            if (!question.places.empty()) {
                finding.ends = admin.Ends(question.places, question.stable, deadline);
            }
            for (const std::string& topic : question.topics) {
                const auto count = admin.PartitionCount(topic, deadline, kLookPatience);
                if (count) finding.counts[topic] = *count;
            }
            if (question.members) finding.members = admin.DescribeAll(group, deadline);
        } catch (const Error& error) {
            finding.members_unsupported = error.code() == ErrorCode::kUnsupported;
        } catch (const std::exception&) {  // what is not known is not there
        }
        return finding;
    }

    std::optional<Finding> TakeFinding() {
        const std::lock_guard lock{findings_->mutex};
        return std::exchange(findings_->finding, std::nullopt);
    }

    void Judge(const Finding& finding) {
        bool standing = false;
        bool sure = finding.stable;
        for (const auto& [topic, lane] : lanes_) {
            for (auto& [number, assigned] : lane->assigned) {
                const auto end = finding.ends.find({topic, number});
                if (end == finding.ends.end()) continue;
                assigned.watch.Answer(finding.asked, assigned.next, end->second);
                if (!assigned.watch.StandsStill()) continue;
                standing = true;
                sure = sure || !assigned.next;
            }
            if (!lane->assigned.empty() || !finding.members || !finding.counts.contains(topic))
                continue;
            const auto served = Unserved(*finding.members, topic, finding.counts.at(topic));
            lane->watch.Answer(finding.asked, served, 1);
            standing = standing || lane->watch.StandsStill();
            sure = sure || lane->watch.StandsStill();
            if (served && lane->standing.erase(kNoPartition) > 0) ShowStanding(*lane);
        }
        if (!standing) return;
        if (sure) return Mend();
        // The end may lie behind a transaction that is open.
        ask_stable_ = true;
        next_look_ = {};
    }

    /// As a position for DeliveryWatch::Answer beside an end of 1: none where some partition is
    /// nobody's in a group that is at rest.
    static std::optional<std::int64_t> Unserved(const Admin::Members& members, const std::string& topic,
                                                int count) {
        for (std::int32_t number = 0; number < count && !members.rebalancing; ++number) {
            if (!members.partitions.contains({topic, number})) return std::nullopt;
        }
        return 1;
    }

    // Another consumer begins where this one has come to; what holds it up stays behind. Where that
    // does not help, there is more and more time between one and the next.
    void Mend() {
        const auto now = Clock::now();
        std::string what;
        for (const auto& [topic, lane] : lanes_) {
            if (!NoteStanding(*lane)) continue;
            ShowStanding(*lane);
            if (!what.empty()) what += "; ";
            what += lane->standstill;
        }
        if (what.empty() || now < mend_at_) return;
        if (now - mend_at_ > kCalm) mend_pause_.Reset();
        mend_at_ = now + mend_pause_.Next();
        what += ": its consumer is replaced";
        broker_->Log(LogLevel::kWarning, what);
        Replace(what);
    }

    // Whether something of the topic stands still.
    static bool NoteStanding(Lane& lane) {
        bool any = false;
        const auto note = [&](std::int32_t number, const DeliveryWatch& watch) {
            if (!watch.StandsStill()) return;
            any = true;
            if (lane.standing.empty()) lane.standing_since = watch.since();
            lane.standing.insert(number);
        };
        for (const auto& [number, assigned] : lane.assigned) note(number, assigned.watch);
        if (lane.assigned.empty()) note(kNoPartition, lane.watch);
        return any;
    }

    void ShowStanding(Lane& lane) const {
        lane.standstill.clear();
        if (lane.standing.empty()) return;
        const std::string topic = "'" + lane.stream->destination().address + "'";
        std::string what = "this member has no partition of " + topic + ", of which nobody has some";
        if (!lane.standing.contains(kNoPartition)) {
            const bool one = lane.standing.size() == 1;
            what = one ? "partition " : "partitions ";
            for (const std::int32_t number : lane.standing) {
                if (number != *lane.standing.begin()) what += ", ";
                what += std::to_string(number);
            }
            what += " of " + topic + (one ? " gives" : " give") +
                    " nothing, though the broker has messages there";
        }
        lane.standstill = "group '" + group_ + "': " + what + ", since " + InUtc(lane.standing_since);
    }

    // The partitions that stood still and are with others now, or one that has come.
    void ForgetStanding() {
        for (const auto& [topic, lane] : lanes_) {
            if (lane->standing.empty()) continue;
            const bool some = !lane->assigned.empty();
            std::erase_if(lane->standing, [&, &mine = lane->assigned](std::int32_t number) {
                return number == kNoPartition ? some : !mine.contains(number);
            });
            ShowStanding(*lane);
        }
    }

    static std::string InUtc(Clock::time_point moment) {
        const auto ago = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - moment);
        const std::time_t time =
            std::chrono::system_clock::to_time_t(std::chrono::system_clock::now() - ago);
        std::tm parts{};
        gmtime_r(&time, &parts);
        std::array<char, 32> text{};
        std::strftime(text.data(), text.size(), "%H:%M:%S UTC", &parts);
        return text.data();
    }

    void Replace(const std::string& reason) {
        closing_by_ = Clock::now() + kReplacePatience;
        if (CanCommit()) LeaveGroup();
        closing_by_ = Clock::time_point::max();
        GiveUpHandle(reason);
    }

    void GiveUpHandle(const std::string& reason) {
        Stop();
        const auto error = std::make_shared<Error>(ErrorCode::kUnavailable, broker_->Text(reason));
        for (const auto& [topic, lane] : lanes_) lane->trouble = error;
        start_at_ = Clock::now();
        resubscribe_ = true;
    }

    // -- Positions ------------------------------------------------------------------------------

    static void AddPosition(rd_kafka_topic_partition_list_t& list, const Assigned& assigned,
                            const std::optional<std::int64_t>& known) {
        const auto position = assigned.partition->GetProgress().position;
        if (!position || position == known) return;
        rd_kafka_topic_partition_list_add(&list, assigned.partition->topic().c_str(),
                                          assigned.partition->number())
            ->offset = *position;
    }

    // Hands the positions to librdkafka, which commits them every auto.commit.interval.ms, unless the
    // group is rebalancing: a commit of a generation that has passed would cost the whole assignment.
    void StoreWhenDue() {
        const auto now = Clock::now();
        if (handle_ == nullptr || !waker_->dirty.load() || now < store_at_) return;
        waker_->dirty.store(false);
        store_at_ = now + kStoreInterval;
        const auto list = MakeList();
        for (const auto& [topic, lane] : lanes_) {
            for (const auto& [number, assigned] : lane->assigned) {
                if (now < assigned.hold_until) {
                    waker_->dirty.store(true);
                    continue;
                }
                AddPosition(*list, assigned, assigned.stored);
            }
        }
        Store(*list);
    }

    void Store(rd_kafka_topic_partition_list_t& list) {
        if (list.cnt == 0) return;
        rd_kafka_offsets_store(handle_->get(), &list);
        for (int i = 0; i < list.cnt; ++i) {
            Assigned* const assigned = FindAssigned(list.elems[i]);
            if (assigned == nullptr || list.elems[i].err != RD_KAFKA_RESP_ERR_NO_ERROR) continue;
            if (!assigned->stored) assigned->look_at = Clock::now() + kLook;
            assigned->stored = list.elems[i].offset;
            if (assigned->Rewound()) look_at_ = assigned->look_at = Clock::now();
        }
    }

    // librdkafka commits by itself only what lies above the position that was committed last (its issue
    // 1558). Where the log was lost or its topic made anew, that would be nothing for as long as the
    // new log is shorter, and whoever takes over then would begin behind what has never been handled:
    // such a position is committed here. A commit during a rebalance may cost the assignment, so it is
    // made only where the broker is known to have a higher one.
    void LookAfterRewinds() {
        TakePositions();
        const auto now = Clock::now();
        if (handle_ == nullptr || now < look_at_) return;
        look_at_ = now + kLook;
        const auto rewound = MakeList();
        for (const auto& [topic, lane] : lanes_) {
            bool ask = false;
            for (auto& [number, assigned] : lane->assigned) {
                if (now < assigned.look_at) continue;
                if (assigned.Rewound()) {
                    AddPosition(*rewound, assigned, std::nullopt);
                    assigned.look_at = now + kLook;
                } else {
                    ask = ask || (!assigned.committed && !assigned.told);
                }
            }
            if (ask && !lane->asking_positions) AskPositions(*lane);
        }
        if (rewound->cnt > 0 && CanCommit()) CommitRewound(*rewound);
    }

    void CommitRewound(rd_kafka_topic_partition_list_t& list) {
        if (log_throttle_.Allow("rewound")) {
            broker_->Log(LogLevel::kWarning,
                         "group '" + group_ + "': " + std::to_string(list.cnt) + " partitions ('" +
                             list.elems[0].topic + "' [" + std::to_string(list.elems[0].partition) +
                             "], …) begin again below what the group has committed: their log was "
                             "lost, or their topic made anew");
        }
        constexpr int kAsync = 1;
        const auto error = rd_kafka_commit(handle_->get(), &list, kAsync);
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR) NoteNotCommitted(rd_kafka_err2str(error));
    }

    void AskPositions(Lane& lane) {
        lane.asking_positions = true;
        const std::string topic = lane.stream->destination().address;
        const int count = lane.assigned.rbegin()->first + 1;
        admin_.Post([this_group = group_, &admin = admin_, topic, count, told = told_, waker = waker_] {
            Positions answer{topic, {}};
            try {
                answer.committed =
                    admin.Committed(this_group, topic, count, Clock::now() + kCommitPatience);
            } catch (const std::exception&) {  // it is asked again
            }
            {
                const std::lock_guard lock{told->mutex};
                told->answers.push_back(std::move(answer));
            }
            waker->signal.Raise();
        });
    }

    void TakePositions() {
        std::vector<Positions> answers;
        {
            const std::lock_guard lock{told_->mutex};
            answers = std::exchange(told_->answers, {});
        }
        for (const Positions& answer : answers) {
            Lane* const lane = FindLane(answer.topic.c_str());
            if (lane == nullptr) continue;
            lane->asking_positions = false;
            look_at_ = Clock::now();
            for (auto& [number, assigned] : lane->assigned) {
                if (assigned.committed || assigned.told) continue;
                const auto place = static_cast<std::size_t>(number);
                if (!answer.committed) {
                    assigned.look_at = std::max(assigned.look_at, Clock::now() + kLook);
                } else if (place < answer.committed->size()) {
                    assigned.told = true;
                    if ((*answer.committed)[place] >= 0) {
                        assigned.committed = (*answer.committed)[place];
                    }
                }
            }
        }
    }

    [[nodiscard]] bool CanCommit() const {
        return handle_ != nullptr && handle_->connectivity().CoordinatorUp();
    }

    // At the end of an assignment, when librdkafka waits for us and the generation is the present one.
    void CommitNow(const Partitions& going) {
        const auto list = MakeList();
        for (const auto& [lane, numbers] : going) {
            for (const std::int32_t number : numbers) {
                const Assigned& assigned = lane->assigned[number];
                AddPosition(*list, assigned, assigned.committed);
            }
        }
        if (list->cnt == 0) return;
        Store(*list);
        if (!CanCommit()) return NoteNotCommitted("its coordinator is not connected");
        const Owned<rd_kafka_queue_t> queue{rd_kafka_queue_new(handle_->get())};
        rd_kafka_commit_queue(handle_->get(), list.get(), queue.get(), nullptr, nullptr);
        const auto deadline = std::min(closing_by_, Clock::now() + kCommitPatience);
        const Owned<rd_kafka_event_t> event{rd_kafka_queue_poll(queue.get(), RemainingMs(deadline))};
        if (event == nullptr) {
            NoteCommitted(RD_KAFKA_RESP_ERR__TIMED_OUT, nullptr);
        } else {
            NoteCommitted(rd_kafka_event_error(event.get()),
                          rd_kafka_event_topic_partition_list(event.get()));
        }
    }

    void NoteCommitted(rd_kafka_resp_err_t error, const rd_kafka_topic_partition_list_t* offsets) {
        rd_kafka_resp_err_t trouble = error;
        for (int i = 0; offsets != nullptr && i < offsets->cnt; ++i) {
            const rd_kafka_topic_partition_t& entry = offsets->elems[i];
            Assigned* const assigned = FindAssigned(entry);
            if (assigned == nullptr || entry.offset < 0) continue;
            if (entry.err != RD_KAFKA_RESP_ERR_NO_ERROR) {
                trouble = entry.err;
                if (entry.err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) NoteGone(entry);
            } else if (error == RD_KAFKA_RESP_ERR_NO_ERROR) {
                assigned->committed = entry.offset;
            }
        }
        if (trouble == RD_KAFKA_RESP_ERR_NO_ERROR || trouble == RD_KAFKA_RESP_ERR__NO_OFFSET) return;
        NoteNotCommitted(rd_kafka_err2str(trouble));
    }

    // librdkafka says once that a topic does not exist, perhaps at a moment when others still find it,
    // and no more then.
    void NoteGone(const rd_kafka_topic_partition_t& entry) {
        Lane* const lane = FindLane(entry.topic);
        if (lane == nullptr || lane->leaving || lane->admission != Admission::kAdmitted) return;
        Postpone(*lane,
                 std::make_shared<Error>(MakeError(
                     *broker_, "group '" + group_ + "': topic '" + entry.topic + "'", entry.err)));
    }

    void NoteNotCommitted(std::string_view reason) const {
        broker_->Log(LogLevel::kInfo,
                     "group '" + group_ + "': positions were not committed: " + std::string{reason});
    }

    Assigned* FindAssigned(const rd_kafka_topic_partition_t& entry) {
        Lane* const lane = FindLane(entry.topic);
        if (lane == nullptr) return nullptr;
        const auto found = lane->assigned.find(entry.partition);
        return found == lane->assigned.end() ? nullptr : &found->second;
    }

    // -- Leaving --------------------------------------------------------------------------------

    // A topic has been left when its partitions are gone; at its time also without.
    void FinishLeaving() {
        std::vector<std::shared_ptr<Stream>> left;
        for (auto entry = lanes_.begin(); entry != lanes_.end();) {
            Lane& lane = *entry->second;
            const bool gone = lane.assigned.empty() && !subscribed_.contains(entry->first);
            if (!lane.leaving || (!gone && Clock::now() < lane.leave_by)) {
                ++entry;
                continue;
            }
            DropPartitions(lane);
            CloseQueue(lane.queue);
            left.push_back(lane.stream);
            entry = lanes_.erase(entry);
        }
        if (!left.empty()) SetLeft(left);
    }

    void SetLeft(const std::vector<std::shared_ptr<Stream>>& left) {
        {
            const std::lock_guard lock{mutex_};
            for (const auto& stream : left) streams_.erase(stream->destination().address);
        }
        for (const auto& stream : left) stream->SetLeft();
    }

    // What the group has of topics that it has left, so that the broker keeps it.
    void CommitForOthers() {
        std::map<std::string, std::vector<std::int64_t>> orders;
        {
            const std::lock_guard lock{mutex_};
            member_ = handle_ != nullptr && assigned_ && CanCommit();
            orders = std::exchange(to_commit_, {});
        }
        const auto list = MakeList();
        for (const auto& [topic, positions] : orders) {
            if (lanes_.contains(topic)) continue;  // it is about to be left, or has come back
            for (std::size_t i = 0; i < positions.size(); ++i) {
                if (positions[i] < 0) continue;
                rd_kafka_topic_partition_list_add(list.get(), topic.c_str(),
                                                  static_cast<std::int32_t>(i))
                    ->offset = positions[i];
            }
        }
        if (list->cnt == 0 || !CanCommit()) return;
        constexpr int kAsync = 1;
        const auto error = rd_kafka_commit(handle_->get(), list.get(), kAsync);
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR) NoteNotCommitted(rd_kafka_err2str(error));
    }

    // The last one turns off the light.
    void Leave() {
        closing_by_ = Clock::now() + kGrace;
        std::vector<std::shared_ptr<Stream>> left;
        for (const auto& [topic, lane] : lanes_) {
            closing_by_ = std::max(closing_by_, lane->leave_by);
            left.push_back(lane->stream);
        }
        // Without a coordinator there is nobody to tell.
        if (CanCommit()) LeaveGroup();
        for (const auto& [topic, lane] : lanes_) DropPartitions(*lane);
        SetLeft(left);
        Stop();
    }

    void LeaveGroup() {
        const Owned<rd_kafka_queue_t> queue{rd_kafka_queue_new(handle_->get())};
        rd_kafka_queue_cb_event_enable(main_queue_.get(), nullptr, nullptr);
        if (!DropPostponed()) return;
        const Owned<rd_kafka_error_t> error{rd_kafka_consumer_close_queue(handle_->get(), queue.get())};
        if (error != nullptr) return;
        // The revocation is served in any case, also where the calls before have taken all the time:
        // without it librdkafka (seen with 2.0.2) burns a processor for ever when the handle is ended.
        const auto by = std::max(closing_by_, Clock::now() + kGrace);
        while (rd_kafka_consumer_closed(handle_->get()) == 0 && Clock::now() < by) {
            rd_kafka_queue_poll_callback(queue.get(),
                                         std::min(RemainingMs(by), static_cast<int>(kSlice.count())));
        }
    }

    // -- What others see ------------------------------------------------------------------------

    // A topic that this client has created, and that the cluster does not know yet, is on its way.
    [[nodiscard]] bool IsRefusal(const Error& trouble) const {
        const bool coming = trouble.code() == ErrorCode::kNotFound && broker_->options.declare;
        return !coming && trouble.code() != ErrorCode::kUnavailable &&
               trouble.code() != ErrorCode::kTimeout;
    }

    void ShowStates() {
        const bool up = handle_ != nullptr && handle_->connectivity().AnyUp();
        been_up_ = been_up_ || up;
        ErrorPtr down;
        if (handle_ != nullptr && !up && been_up_) {
            down = std::make_shared<Error>(handle_->Unavailable("no connection"));
        }
        for (const auto& [topic, lane] : lanes_) {
            if (lane->leaving) continue;
            if (lane->trouble != nullptr) {
                const bool refused = IsRefusal(*lane->trouble);
                lane->stream->SetState(refused ? Phase::kRefused : Phase::kRetrying, lane->trouble,
                                       lane->standstill);
            } else if (down != nullptr) {
                lane->stream->SetState(Phase::kRetrying, down, lane->standstill);
            } else if (lane->active) {
                lane->stream->SetState(Phase::kActive, {}, lane->standstill);
            } else if (lane->stream->State().phase == Phase::kActive) {
                lane->stream->SetState(Phase::kRetrying, Expelled(), lane->standstill);
            } else {
                const auto state = lane->stream->State();
                lane->stream->SetState(state.phase, state.error, lane->standstill);
            }
        }
    }

    [[nodiscard]] ErrorPtr Expelled() const {
        return std::make_shared<Error>(
            ErrorCode::kUnavailable,
            broker_->Text("group '" + group_ + "' has gone on without this member, which joins again"));
    }

    [[nodiscard]] Clock::time_point NextWake() const {
        auto next = Clock::now() + kTick;
        if (handle_ != nullptr && waker_->dirty.load()) next = std::min({next, store_at_, look_at_});
        if (handle_ == nullptr && resubscribe_) next = std::min(next, start_at_);
        next = std::min({next, gather_until_, std::max(doubt_at_, watch_at_)});
        for (const auto& [topic, lane] : lanes_) {
            if (!lane->stream->Stopped()) next = std::min(next, lane->resume_at);
            if (lane->admission == Admission::kWaiting) next = std::min(next, lane->ask_at);
            if (lane->leaving) next = std::min(next, lane->leave_by);
        }
        return next;
    }

    const std::shared_ptr<const Broker> broker_;
    Admin& admin_;
    const std::string group_;
    const std::size_t index_;
    const std::shared_ptr<Waker> waker_;
    const std::shared_ptr<Verdicts> verdicts_;
    const std::shared_ptr<Findings> findings_;
    const std::shared_ptr<Told> told_;

    // Of the thread alone:
    std::map<std::string, std::unique_ptr<Lane>> lanes_ = {};
    std::unique_ptr<Handle> handle_ = {};
    bool assigned_ = false;  // the handle has been
    bool joining_ = false;   // see IsJoining, as it was when the handle was last unsubscribed
    Owned<rd_kafka_queue_t> main_queue_ = {};
    std::set<std::string> subscribed_ = {};
    bool resubscribe_ = false;
    Clock::time_point gather_until_ = Clock::time_point::max();
    Clock::time_point start_at_ = {};
    mq::detail::Backoff restart_{milliseconds{500}, milliseconds{10'000}};
    FetchWaker fetch_waker_ = {};
    Pulse pulse_ = {};
    Clock::time_point read_at_ = {};  // the batch that is being taken
    std::string assignors_ = {};      // other ones than are preferred; see TryOtherAssignors
    ErrorPtr misfit_ = {};            // the group does not know them
    int misfits_ = 0;                 // how often, one after another
    bool fenced_ = false;             // it has given way, and is not back
    mq::detail::Backoff fenced_pause_{milliseconds{15'000}, milliseconds{600'000}};
    Clock::time_point come_back_at_ = {};
    Clock::time_point watch_at_ = {};
    Clock::time_point next_look_ = {};
    bool ask_stable_ = false;
    Clock::time_point doubt_at_ = Clock::time_point::max();  // whether partitions are begun with
    mq::detail::Backoff unbegun_pause_{milliseconds{500}, milliseconds{5000}};
    Clock::time_point mend_at_ = {};
    mq::detail::Backoff mend_pause_{milliseconds{20'000}, milliseconds{300'000}};
    LogThrottle log_throttle_ = {};
    bool been_up_ = false;
    Clock::time_point store_at_ = {};
    Clock::time_point look_at_ = {};
    Clock::time_point closing_by_ = Clock::time_point::max();
    std::array<rd_kafka_message_t*, kBatch> batch_ = {};

    mutable std::mutex mutex_ = {};  // guards everything below, but for joining thread_
    std::map<std::string, std::shared_ptr<Stream>> streams_ = {};
    std::vector<std::shared_ptr<Stream>> added_ = {};
    std::vector<std::pair<std::shared_ptr<Stream>, Clock::time_point>> removed_ = {};
    std::map<std::string, std::vector<std::int64_t>> to_commit_ = {};
    bool member_ = false;  // the broker takes positions of the group from here
    bool ending_ = false;
    bool ended_ = false;
    std::condition_variable has_ended_ = {};
    std::thread thread_ = {};
};

/// One subscription, as the layers above hold it.
class Consumer final : public backend::Consumer {
public:
    /// `leaving` is called once, before the topic is left.
    Consumer(std::shared_ptr<GroupConsumer> group, std::shared_ptr<Stream> stream,
             std::function<void(const Stream&)> leaving)
        : group_(std::move(group)), stream_(std::move(stream)), leaving_(std::move(leaving)) {}

    ~Consumer() override { Close(Clock::now()); }

    [[nodiscard]] backend::ConsumerState State() const override { return stream_->State(); }

    void Stop() noexcept override { stream_->Stop(); }

    void Close(Clock::time_point deadline) noexcept override {
        if (closed_.exchange(true)) return;
        stream_->Stop();
        leaving_(*stream_);
        group_->Remove(stream_, deadline);
        stream_->Detach();
    }

private:
    const std::shared_ptr<GroupConsumer> group_;
    const std::shared_ptr<Stream> stream_;
    const std::function<void(const Stream&)> leaving_;
    std::atomic<bool> closed_{false};
};

}  // namespace mq::kafka::detail
