/// @file sender.hpp
/// The producer of a broker, and the thread that takes its delivery reports.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/early_deadlines.hpp>
#include <mq/backends/kafka/handle.hpp>
#include <mq/backends/kafka/in_flight.hpp>
#include <mq/backends/kafka/native.hpp>
#include <mq/backends/kafka/producer.hpp>
#include <mq/detail/backoff.hpp>
#include <mq/detail/signal.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mq::kafka::detail {

/// Sends: owns the producer and the thread that takes its delivery reports and hands back what is
/// finished, in batches.
///
/// After a fatal error the producer is replaced. What it had certainly not sent is sent by the next
/// one, before anything that is published later, so that the order is kept; what it may have sent fails
/// with an unknown outcome, for another producer has another identity, by which the broker cannot tell
/// that it has the message already.
class Sender final : public HandleEvents {
public:
    /// Who knows about topics. What is called must not block; the sender's thread calls it.
    struct Topics {
        /// Messages of the topic do not go out, although a broker is connected: whether it exists
        /// should be looked after.
        std::function<void(const std::string& topic)> stuck = {};
        /// Why a topic could not be made or found; null for nothing.
        std::function<ErrorPtr(const std::string& topic)> trouble = {};
    };

    Sender(std::shared_ptr<const Broker> broker, Topics topics)
        : broker_(std::move(broker)),
          topics_(std::move(topics)),
          slack_(std::max(broker_->context.send_timeout / 10, milliseconds{500})) {}

    Sender(const Sender&) = delete;
    Sender& operator=(const Sender&) = delete;
    ~Sender() {
        Close(Clock::now());
        End(Clock::now() + Handle::kEndPatience);
    }

    /// After Close: ends the producers, and waits for that until the deadline at most.
    void End(Clock::time_point deadline) noexcept {
        for (auto* const producers : {&retired_, &spent_}) {
            for (const auto& producer : *producers) producer->Shut(deadline);
            producers->clear();
        }
    }

    /// The producer to send with, made where there is none. Blocks while a failed one is replaced,
    /// until the deadline at most. Thread-safe.
    /// @throws Error kClosed after Close, kUnavailable at the deadline, kConfig where librdkafka does
    /// not take the options.
    std::shared_ptr<Producer> Current(Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        replaced_.wait_until(lock, deadline, [&] { return !replacing_ || closing_; });
        if (closing_) throw Error{ErrorCode::kClosed, broker_->Text("it is closed")};
        if (replacing_) throw Failed(failure_, Outcome::kNotSent);
        MakeLocked();
        StartLocked();
        return producer_;
    }

    /// Gives a producer's librdkafka the message, and takes the publication over where that takes it.
    /// Between the producer's Enter and Leave, and for the thread that polls. Thread-safe.
    rd_kafka_resp_err_t Produce(Producer& producer, rd_kafka_topic_t* topic,
                                std::unique_ptr<backend::Publication>& publication) {
        if (IsEarly(publication->deadline)) return ProduceEarly(producer, topic, publication);
        const auto value = reinterpret_cast<InFlight::Value>(publication.get());
        const auto error = producer.Produce(topic, *publication, value, false);
        if (error == RD_KAFKA_RESP_ERR_NO_ERROR) static_cast<void>(publication.release());
        return error;
    }

    /// Hands back a publication that was never sent: on the thread that polls, or here and now where
    /// that has ended. Thread-safe.
    void Fail(std::unique_ptr<backend::Publication> publication, Error error) {
        publication->error = std::make_unique<Error>(std::move(error));
        backend::PublicationList failed;
        {
            const std::lock_guard lock{mutex_};
            if (!finished_) {
                failed_.PushBack(std::move(publication));
                StartLocked();
                return;
            }
        }
        failed.PushBack(std::move(publication));
        broker_->context.sink->OnFinished(std::move(failed));
    }

    /// One who waits for room in the producer's queue: reads Seen, tries, and waits.
    class RoomWaiter {
    public:
        explicit RoomWaiter(Sender& sender) : sender_(sender) { sender_.waiters_.fetch_add(1); }
        RoomWaiter(const RoomWaiter&) = delete;
        RoomWaiter& operator=(const RoomWaiter&) = delete;
        ~RoomWaiter() { sender_.waiters_.fetch_sub(1); }

        [[nodiscard]] std::uint64_t Seen() const { return sender_.room_.Generation(); }
        void Wait(std::uint64_t seen, Clock::time_point deadline) const {
            sender_.room_.WaitChange(seen, deadline);
        }

    private:
        Sender& sender_;
    };

    /// See Backend::Close.
    void Close(Clock::time_point deadline) noexcept {
        {
            const std::lock_guard lock{mutex_};
            if (!closing_) close_deadline_ = deadline;
            closing_ = true;
            finished_ = finished_ || !thread_.joinable();
            WakeLocked();
        }
        replaced_.notify_all();
        room_.Raise();
        const std::lock_guard joining{join_mutex_};
        if (thread_.joinable()) thread_.join();
    }

    void OnReport(const rd_kafka_message_t& report) noexcept override {
        reported_at_ = Clock::now();
        const InFlight::Entry entry = InFlight::Take(report._private);
        std::unique_ptr<backend::Publication> publication = PublicationOf(entry.value);
        if (publication == nullptr) return;
        if (report.err != RD_KAFKA_RESP_ERR_NO_ERROR) {
            const Outcome outcome = OutcomeOf(report);
            if (!FailedWithProducer(report)) {
                SetError(*publication, report, outcome);
            } else if (outcome == Outcome::kNotSent) {
                returned_.push_back(
                    {entry.number, rd_kafka_topic_name(report.rkt), std::move(publication)});
                return;
            } else {
                SetError(*publication, Failed(*polled_->FatalError(), outcome));
            }
        }
        PushBack(std::move(publication));
        if (batched_ >= kBatch) HandBackReports();
    }

private:
    static constexpr std::size_t kBatch = 128;
    static constexpr milliseconds kIdle{1000};
    static constexpr milliseconds kSlice{50};
    /// How long purged messages may take to come back after the deadline of Close.
    static constexpr milliseconds kPurge{1000};
    /// A producer that has worked for so long is replaced at once.
    static constexpr std::chrono::seconds kSettled{10};
    /// How long librdkafka may take to give back what a failed producer has.
    static constexpr std::chrono::seconds kTakeBack{10};
    /// Without a report for so long, while something is out, it is seen whether the topics exist.
    static constexpr std::chrono::seconds kStuck{3};

    /// A message that a producer had not sent when it failed.
    struct Returned {
        std::uint64_t number = 0;  // in the order in which that producer was given it
        std::string topic = {};
        std::unique_ptr<backend::Publication> publication = {};
    };

    // Whether a deadline is so near that librdkafka, which gives every message the same time, would
    // report the message too late.
    [[nodiscard]] bool IsEarly(Clock::time_point deadline) const {
        return deadline < Clock::now() + broker_->context.send_timeout - slack_;
    }

    // The publication waits for its deadline here; librdkafka gets a copy.
    rd_kafka_resp_err_t ProduceEarly(Producer& producer, rd_kafka_topic_t* topic,
                                     std::unique_ptr<backend::Publication>& publication) {
        const backend::Publication& message = *publication;
        const EarlyDeadlines::Id id = early_.Add(std::move(publication));
        const auto error = producer.Produce(topic, message, Tag(id), true);
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR) {
            publication = early_.Take(id);
        } else if (early_.Release(id)) {
            const std::lock_guard lock{mutex_};
            WakeLocked();
        }
        return error;
    }

    // What stands for a publication is its address, which is even, or the tag of its early deadline.
    static InFlight::Value Tag(EarlyDeadlines::Id id) noexcept { return id << 1u | 1u; }
    static bool IsTag(InFlight::Value value) noexcept { return (value & 1u) != 0; }

    // Null where it has been handed back before.
    std::unique_ptr<backend::Publication> PublicationOf(InFlight::Value value) {
        if (IsTag(value)) return early_.Take(value >> 1u);
        // NOLINTNEXTLINE(performance-no-int-to-ptr)
        return std::unique_ptr<backend::Publication>{reinterpret_cast<backend::Publication*>(value)};
    }

    void PushBack(std::unique_ptr<backend::Publication> publication) {
        batch_.PushBack(std::move(publication));
        ++batched_;
    }

    // librdkafka still has the message, and may send it yet: the outcome is open.
    void HandBackDue() {
        while (auto publication = early_.TakeDue(Clock::now())) {
            Error error{ErrorCode::kTimeout, broker_->Text("no confirm within the deadline"),
                        Outcome::kUnknown};
            if (const auto reason = Unreachable()) error = Combine(error, *reason);
            SetError(*publication, std::move(error));
            PushBack(std::move(publication));
        }
    }

    void MakeLocked() {
        if (producer_ != nullptr) return;
        producer_ = std::make_shared<Producer>(broker_, *this);
        made_at_ = Clock::now();
    }

    void StartLocked() {
        if (!thread_.joinable() && !closing_) thread_ = std::thread{[this] { Run(); }};
        WakeLocked();
    }

    void WakeLocked() {
        if (producer_ != nullptr) producer_->Wake();
        changed_.notify_all();
    }

    void Run() {
        while (!Closing()) {
            if (const std::shared_ptr<Producer> producer = WaitForProducer()) {
                Poll(*producer, PollTime());
                RetireAfterFatal(producer);
                LookAfterTopics(*producer);
            }
            HandBackDue();
            HandBackReports();
            HandBackFailed();
            ServeRetired(milliseconds{0});
            Replace();
            Bury();
        }
        Finish();
    }

    bool Closing() const {
        const std::lock_guard lock{mutex_};
        return closing_;
    }

    std::shared_ptr<Producer> WaitForProducer() {
        std::unique_lock lock{mutex_};
        if (producer_ == nullptr) {
            changed_.wait_for(lock, Time(),
                              [&] { return producer_ != nullptr || closing_ || !failed_.empty(); });
        }
        return producer_;
    }

    milliseconds PollTime() const {
        const auto due = early_.Next();
        const std::lock_guard lock{mutex_};
        if (closing_ || !failed_.empty()) return milliseconds{0};
        return due ? std::min(Time(), milliseconds{RemainingMs(*due)}) : Time();
    }

    [[nodiscard]] milliseconds Time() const { return retired_.empty() && !replacing_ ? kIdle : kSlice; }

    // Serves the callbacks of a producer: OnReport knows by it whose message it is about.
    void Poll(Producer& producer, milliseconds time) {
        polled_ = &producer;
        rd_kafka_poll(producer.get(), static_cast<int>(time.count()));
        polled_ = nullptr;
    }

    // What has nowhere to go waits in librdkafka without a word: for a topic that was deleted, say.
    void LookAfterTopics(Producer& producer) {
        const auto now = Clock::now();
        if (rd_kafka_outq_len(producer.get()) == 0) {
            reported_at_ = now;
        } else if (now - reported_at_ >= kStuck && topics_.stuck &&
                   producer.handle().connectivity().AnyUp()) {
            reported_at_ = now;  // and again after as long
            for (const std::string& topic : producer.TopicNames()) topics_.stuck(topic);
        }
    }

    // -- After a fatal error --------------------------------------------------------------------

    void RetireAfterFatal(const std::shared_ptr<Producer>& producer) {
        auto failure = producer->FatalError();
        if (!failure) return;
        producer->Retire();
        broker_->Log(LogLevel::kError, "the producer has failed and is replaced: " + failure->text);
        retired_.push_back(producer);
        retired_at_ = Clock::now();
        {
            const std::lock_guard lock{mutex_};
            replace_at_ = Clock::now();
            if (replace_at_ - made_at_ >= kSettled) {
                restart_.Reset();
            } else {
                replace_at_ += restart_.Next();
            }
            producer_.reset();
            replacing_ = true;
            failure_ = std::move(*failure);
        }
        room_.Raise();
    }

    // Takes back what retired producers hold. Whether none holds anything any more.
    bool ServeRetired(milliseconds time) {
        for (const auto& producer : retired_) {
            // Without waiting for librdkafka's threads, one of which may be waiting for a resolver.
            rd_kafka_purge(producer->get(), RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT |
                                                RD_KAFKA_PURGE_F_NON_BLOCKING);
            Poll(*producer, time);
            HandBackReports();
        }
        const auto holds = [](const std::shared_ptr<Producer>& producer) {
            return producer->InUse() || rd_kafka_outq_len(producer->get()) > 0;
        };
        if (!finishing_ && Clock::now() >= retired_at_ + kTakeBack) AbandonRetired();
        const auto empty = std::stable_partition(retired_.begin(), retired_.end(), holds);
        spent_.insert(spent_.end(), empty, retired_.end());
        retired_.erase(empty, retired_.end());
        return retired_.empty();
    }

    // What librdkafka does not give back must not hold up everybody else: nobody knows what became of
    // it.
    void AbandonRetired() {
        const auto held = [](const std::shared_ptr<Producer>& producer) { return producer->InUse(); };
        const auto free = std::stable_partition(retired_.begin(), retired_.end(), held);
        for (auto each = free; each != retired_.end(); ++each) {
            if (rd_kafka_outq_len((*each)->get()) > 0) {
                broker_->Log(LogLevel::kWarning,
                             "librdkafka does not give back what a failed producer has not sent: "
                             "whether the broker has it is unknown");
            }
            TakeBack(**each);
        }
        spent_.insert(spent_.end(), free, retired_.end());
        retired_.erase(free, retired_.end());
        HandBackReports();
    }

    // Sends on what was not sent, once all of it has come back, and lets everybody send again.
    void Replace() {
        if (!replacing_) return;
        if (retired_.empty()) KeepOrder();
        HandBackOverdue();
        if (!retired_.empty() || Clock::now() < replace_at_) return;
        try {
            std::shared_ptr<Producer> producer;
            {
                const std::lock_guard lock{mutex_};
                MakeLocked();
                producer = producer_;
            }
            if (!SendOn(*producer)) return;
        } catch (const Error& error) {
            for (Returned& each : waiting_) HandBack(std::move(each.publication), error);
            waiting_.clear();
            HandBackReports();
        }
        {
            const std::lock_guard lock{mutex_};
            replacing_ = false;
        }
        replaced_.notify_all();
    }

    // librdkafka gives messages back as it finds them. Those of the last producer come before what had
    // not even got to it.
    void KeepOrder() {
        std::sort(returned_.begin(), returned_.end(),
                  [](const Returned& a, const Returned& b) { return a.number < b.number; });
        waiting_.insert(waiting_.begin(), std::make_move_iterator(returned_.begin()),
                        std::make_move_iterator(returned_.end()));
        returned_.clear();
    }

    void HandBackOverdue() {
        const auto now = Clock::now();
        std::deque<Returned> in_time;
        for (Returned& each : waiting_) {
            if (now < each.publication->deadline) {
                in_time.push_back(std::move(each));
            } else {
                HandBack(std::move(each.publication), Failed(failure_, Outcome::kNotSent));
            }
        }
        waiting_ = std::move(in_time);
        HandBackReports();
    }

    // Whether nothing is left to send on.
    bool SendOn(Producer& producer) {
        while (!waiting_.empty()) {
            Returned& next = waiting_.front();
            rd_kafka_topic_t* const topic = producer.Topic(next.topic);
            const auto error =
                topic != nullptr ? Produce(producer, topic, next.publication) : rd_kafka_last_error();
            // The next turn makes room, or finds out why not.
            if (error == RD_KAFKA_RESP_ERR__QUEUE_FULL || error == RD_KAFKA_RESP_ERR__FATAL)
                return false;
            if (error != RD_KAFKA_RESP_ERR_NO_ERROR) {
                HandBack(std::move(next.publication),
                         MakeError(*broker_, "sending to '" + next.topic + "'", error));
            }
            waiting_.pop_front();
        }
        HandBackReports();
        return true;
    }

    // Ends the handles, which takes as long as the threads of librdkafka take, and so beside this
    // thread: reports are waiting. The publishers still know the producers.
    void Bury() {
        for (const auto& producer : spent_) producer->Release();
        spent_.clear();
    }

    // -- The end --------------------------------------------------------------------------------

    void Finish() {
        finishing_ = true;
        std::shared_ptr<Producer> producer;
        {
            const std::lock_guard lock{mutex_};
            producer = std::move(producer_);
        }
        if (producer != nullptr) {
            producer->Retire();
            room_.Raise();
            Drain(*producer);
            retired_.push_back(std::move(producer));
        }
        const auto last = std::max(close_deadline_, Clock::now()) + kPurge;
        while (!ServeRetired(kSlice) && Clock::now() < last) {
        }
        for (const auto& each : retired_) Abandon(*each);
        KeepOrder();
        for (Returned& each : waiting_) {
            HandBack(std::move(each.publication), Closed(Outcome::kNotSent));
        }
        waiting_.clear();
        HandBackReports();
        {
            const std::lock_guard lock{mutex_};
            finished_ = true;
        }
        HandBackFailed();
    }

    // Waits for reports in slices, so that what is finished is handed back meanwhile.
    void Drain(Producer& producer) {
        while (Clock::now() < close_deadline_ && !producer.FatalError()) {
            const int slice = std::min(RemainingMs(close_deadline_), static_cast<int>(kSlice.count()));
            polled_ = &producer;
            const auto result = rd_kafka_flush(producer.get(), slice);
            polled_ = nullptr;
            HandBackReports();
            if (result == RD_KAFKA_RESP_ERR_NO_ERROR && !producer.InUse()) return;
        }
    }

    // Hands back what librdkafka does not report, because a thread of its own is held up. It is not
    // polled again.
    void Abandon(Producer& producer) {
        // Who is between Enter and Leave is about to leave: nothing there blocks for long.
        while (producer.InUse()) Poll(producer, kSlice);
        TakeBack(producer);
    }

    void TakeBack(Producer& producer) {
        for (const InFlight::Entry& entry : producer.in_flight().TakeAll()) {
            std::unique_ptr<backend::Publication> publication = PublicationOf(entry.value);
            if (publication == nullptr) continue;
            if (!IsTag(entry.value)) producer.Detach(publication->message);
            HandBack(std::move(publication),
                     finishing_ ? Closed(Outcome::kUnknown) : Failed(failure_, Outcome::kUnknown));
        }
    }

    // -- Handing back ---------------------------------------------------------------------------

    void HandBack(std::unique_ptr<backend::Publication> publication, Error error) {
        SetError(*publication, std::move(error));
        PushBack(std::move(publication));
    }

    // With no lock held.
    void HandBackReports() {
        if (batched_ == 0) return;
        batched_ = 0;
        broker_->context.sink->OnFinished(std::move(batch_));
        if (waiters_.load() > 0) room_.Raise();
    }

    // With no lock held.
    void HandBackFailed() {
        backend::PublicationList failed;
        {
            const std::lock_guard lock{mutex_};
            failed = std::move(failed_);
        }
        if (!failed.empty()) broker_->context.sink->OnFinished(std::move(failed));
    }

    static Outcome OutcomeOf(const rd_kafka_message_t& report) {
        return rd_kafka_message_status(&report) == RD_KAFKA_MSG_STATUS_NOT_PERSISTED
                   ? Outcome::kNotSent
                   : Outcome::kUnknown;
    }

    // Whether a message failed because its producer has, and neither for its own sake nor because
    // everything ends.
    [[nodiscard]] bool FailedWithProducer(const rd_kafka_message_t& report) const {
        const auto failure = polled_->FatalError();
        const bool purged = report.err == RD_KAFKA_RESP_ERR__PURGE_QUEUE ||
                            report.err == RD_KAFKA_RESP_ERR__PURGE_INFLIGHT;
        return failure && (report.err == failure->code || (purged && !finishing_));
    }

    [[nodiscard]] Error Failed(const Producer::Failure& failure, Outcome outcome) const {
        return {ErrorCode::kUnavailable,
                broker_->Text("the producer has failed: " + failure.text),
                outcome,
                {failure.code, failure.text}};
    }

    [[nodiscard]] Error Closed(Outcome outcome) const {
        return {ErrorCode::kClosed, broker_->Text("it is closed"), outcome};
    }

    static void SetError(backend::Publication& publication, Error error) {
        publication.error = std::make_unique<Error>(std::move(error));
    }

    void SetError(backend::Publication& publication, const rd_kafka_message_t& report,
                  Outcome outcome) const {
        const std::string topic = rd_kafka_topic_name(report.rkt);
        Error error = MakeError(*broker_, "sending to '" + topic + "'", report.err, {}, outcome);
        if (error.code() == ErrorCode::kTimeout || error.code() == ErrorCode::kNotFound) {
            if (topics_.stuck) topics_.stuck(topic);
            if (const auto reason = Unreachable()) {
                error = Combine(error, *reason);
            } else if (const ErrorPtr trouble = TroubleOf(topic)) {
                error = Combine(error, *trouble);
            }
        }
        SetError(publication, std::move(error));
    }

    [[nodiscard]] ErrorPtr TroubleOf(const std::string& topic) const {
        return topics_.trouble ? topics_.trouble(topic) : nullptr;
    }

    // Why messages time out, where it is for want of a connection.
    [[nodiscard]] std::optional<Error> Unreachable() const {
        const std::lock_guard lock{mutex_};
        if (producer_ == nullptr || producer_->handle().connectivity().AnyUp()) return std::nullopt;
        return producer_->handle().Unavailable("no broker is connected");
    }

    static Error Combine(const Error& timeout, const Error& reason) {
        return {reason.code(),
                std::string{timeout.what()} + "; " + reason.native_text(),
                timeout.outcome(),
                {timeout.native_code(), timeout.native_text()}};
    }

    const std::shared_ptr<const Broker> broker_;
    const Topics topics_;
    const milliseconds slack_;  // how late a publication may be handed back
    EarlyDeadlines early_ = {};

    // Of the thread alone:
    backend::PublicationList batch_ = {};
    std::size_t batched_ = 0;
    Clock::time_point reported_at_ = Clock::now();
    Producer* polled_ = nullptr;                           // whose callbacks are served
    std::vector<std::shared_ptr<Producer>> retired_ = {};  // they hold messages, or are in use
    Clock::time_point retired_at_ = {};                    // the last of them
    std::vector<std::shared_ptr<Producer>> spent_ = {};    // retired, and nobody's any more
    std::vector<Returned> returned_ = {};                  // of the last producer, as they come
    std::deque<Returned> waiting_ = {};                    // for the next producer, in order
    mq::detail::Backoff restart_{milliseconds{100}, milliseconds{5000}};
    Clock::time_point replace_at_ = {};
    bool finishing_ = false;

    mq::detail::Signal room_ = {};  // raised when reports have made room, and by Close
    std::atomic<std::size_t> waiters_{0};

    mutable std::mutex mutex_ = {};          // guards everything below, but for joining thread_
    std::condition_variable changed_ = {};   // what the thread waits for
    std::condition_variable replaced_ = {};  // what Current waits for
    std::shared_ptr<Producer> producer_ = {};
    Clock::time_point made_at_ = {};
    bool replacing_ = false;          // written by the thread alone
    Producer::Failure failure_ = {};  // of the last one that failed; likewise
    backend::PublicationList failed_ = {};
    bool closing_ = false;
    bool finished_ = false;  // the thread hands nothing back any more
    Clock::time_point close_deadline_ = {};
    std::thread thread_ = {};
    std::mutex join_mutex_ = {};  // held while thread_ is joined
};

}  // namespace mq::kafka::detail
