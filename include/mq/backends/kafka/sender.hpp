/// @file sender.hpp
/// The producer of a broker, and the thread that takes its delivery reports.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/early_deadlines.hpp>
#include <mq/backends/kafka/handle.hpp>
#include <mq/detail/signal.hpp>

#include <librdkafka/rdkafka.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mq::kafka::detail {

/// One producer handle. After a fatal error it is retired and another one takes its place.
class Producer {
public:
    Producer(std::shared_ptr<const Broker> broker, HandleEvents& events)
        : handle_(std::in_place, broker, Role::kProducer, Properties::Of(*broker, Role::kProducer),
                  &events),
          queue_(rd_kafka_queue_get_main(handle_->get())) {}

    Producer(const Producer&) = delete;
    Producer& operator=(const Producer&) = delete;
    ~Producer() { Shut(); }

    /// The producer can be used until Leave. False once it is retired. Thread-safe.
    bool Enter() noexcept {
        if ((users_.fetch_add(1) & kRetired) == 0) return true;
        Leave();
        return false;
    }

    void Leave() noexcept { users_.fetch_sub(1); }

    /// From here on Enter is refused. Thread-safe.
    void Retire() noexcept { users_.fetch_or(kRetired); }

    [[nodiscard]] bool Retired() const noexcept { return (users_.load() & kRetired) != 0; }
    [[nodiscard]] bool InUse() const noexcept { return (users_.load() & ~kRetired) != 0; }

    /// Between Enter and Leave, and for the thread that polls.
    [[nodiscard]] rd_kafka_t* get() const noexcept { return handle_->get(); }
    [[nodiscard]] const Handle& handle() const noexcept { return *handle_; }

    /// The topic, for as long as the producer lives; null where librdkafka refuses it. Between Enter
    /// and Leave. Thread-safe.
    rd_kafka_topic_t* Topic(const std::string& name) {
        const std::lock_guard lock{mutex_};
        Owned<rd_kafka_topic_t>& topic = topics_[name];
        if (topic == nullptr) topic.reset(rd_kafka_topic_new(handle_->get(), name.c_str(), nullptr));
        return topic.get();
    }

    /// Has the poll under way, or the next one, return at once. Thread-safe until Shut.
    void Wake() noexcept { rd_kafka_queue_yield(queue_.get()); }

    /// Destroys the handle. When it is retired and not in use.
    void Shut() {
        topics_.clear();
        queue_.reset();
        handle_.reset();
    }

private:
    static constexpr std::uint64_t kRetired = 1ULL << 63u;

    std::optional<Handle> handle_;
    Owned<rd_kafka_queue_t> queue_;
    std::atomic<std::uint64_t> users_{0};
    std::mutex mutex_ = {};  // guards topics_
    std::map<std::string, Owned<rd_kafka_topic_t>> topics_ = {};
};

/// Sends: owns the producer and the thread that takes its delivery reports and hands back what is
/// finished, in batches.
class Sender final : public HandleEvents {
public:
    explicit Sender(std::shared_ptr<const Broker> broker)
        : broker_(std::move(broker)),
          slack_(std::max(broker_->context.send_timeout / 10, milliseconds{500})) {}

    Sender(const Sender&) = delete;
    Sender& operator=(const Sender&) = delete;
    ~Sender() { Close(Clock::now()); }

    /// The producer to send with, made where there is none. Thread-safe.
    /// @throws Error kClosed after Close, kConfig where librdkafka does not take the options.
    std::shared_ptr<Producer> Current() {
        const std::lock_guard lock{mutex_};
        if (closing_) throw Error{ErrorCode::kClosed, broker_->Text("it is closed")};
        if (producer_ == nullptr) producer_ = std::make_shared<Producer>(broker_, *this);
        StartLocked();
        return producer_;
    }

    /// Hands back a publication that was never sent. Thread-safe.
    void Fail(std::unique_ptr<backend::Publication> publication, Error error) {
        publication->error = std::make_unique<Error>(std::move(error));
        const std::lock_guard lock{mutex_};
        if (finished_) return;
        failed_.PushBack(std::move(publication));
        StartLocked();
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
        room_.Raise();
        const std::lock_guard joining{join_mutex_};
        if (thread_.joinable()) thread_.join();
    }

    /// Whether a deadline is so near that librdkafka, which gives every message the same time, would
    /// report the message too late.
    [[nodiscard]] bool IsEarly(Clock::time_point deadline) const {
        return deadline < Clock::now() + broker_->context.send_timeout - slack_;
    }

    /// Where publications with such a deadline wait for it. Their message's opaque is Tag of their id.
    [[nodiscard]] EarlyDeadlines& early() noexcept { return early_; }

    // An address is even.
    static void* Tag(EarlyDeadlines::Id id) noexcept {
        return reinterpret_cast<void*>(id << 1u | 1u);  // NOLINT(performance-no-int-to-ptr): no address
    }

    /// The earliest deadline is another one. Thread-safe.
    void WakeForDeadline() {
        const std::lock_guard lock{mutex_};
        WakeLocked();
    }

    void OnReport(const rd_kafka_message_t& report) noexcept override {
        std::unique_ptr<backend::Publication> publication = Reported(report._private);
        if (publication == nullptr) return;
        if (report.err != RD_KAFKA_RESP_ERR_NO_ERROR) SetError(*publication, report);
        batch_.PushBack(std::move(publication));
        if (++batched_ >= kBatch) HandBackReports();
    }

private:
    static constexpr std::size_t kBatch = 128;
    static constexpr milliseconds kIdle{1000};
    static constexpr milliseconds kSlice{50};
    /// How long purged messages may take to come back after the deadline of Close.
    static constexpr milliseconds kPurge{1000};

    std::unique_ptr<backend::Publication> Reported(void* opaque) {
        const auto value = reinterpret_cast<std::uintptr_t>(opaque);
        if ((value & 1u) != 0) return early_.Take(value >> 1u);
        return std::unique_ptr<backend::Publication>{static_cast<backend::Publication*>(opaque)};
    }

    // librdkafka still has the message, and may send it yet: the outcome is open.
    void HandBackDue() {
        while (auto publication = early_.TakeDue(Clock::now())) {
            Error error{ErrorCode::kTimeout, broker_->Text("no confirm within the deadline"),
                        Outcome::kUnknown};
            if (const auto reason = Unreachable()) error = Combine(error, *reason);
            publication->error = std::make_unique<Error>(std::move(error));
            batch_.PushBack(std::move(publication));
            ++batched_;
        }
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
            const std::shared_ptr<Producer> producer = WaitForProducer();
            if (producer != nullptr) {
                rd_kafka_poll(producer->get(), static_cast<int>(PollTime().count()));
                RetireAfterFatal(producer);
            }
            HandBackDue();
            HandBackReports();
            HandBackFailed();
            ServeRetired(milliseconds{0});
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
            changed_.wait_for(lock, retired_.empty() ? kIdle : kSlice,
                              [&] { return producer_ != nullptr || closing_ || !failed_.empty(); });
        }
        return producer_;
    }

    milliseconds PollTime() const {
        const auto due = early_.Next();
        const std::lock_guard lock{mutex_};
        if (closing_ || !failed_.empty()) return milliseconds{0};
        const milliseconds time = retired_.empty() ? kIdle : kSlice;
        return due ? std::min(time, milliseconds{RemainingMs(*due)}) : time;
    }

    // What the producer still holds fails with its own outcome; later sends get a new one.
    void RetireAfterFatal(const std::shared_ptr<Producer>& producer) {
        std::array<char, 512> text{};
        if (rd_kafka_fatal_error(producer->get(), text.data(), text.size()) == 0) return;
        producer->Retire();
        {
            const std::lock_guard lock{mutex_};
            retired_.push_back(producer);
            producer_.reset();
        }
        room_.Raise();
        broker_->Log(LogLevel::kError,
                     std::string{"the producer has failed and is replaced: "} + text.data());
    }

    // Takes back what retired producers hold. Whether none is left.
    bool ServeRetired(milliseconds poll) {
        std::vector<std::shared_ptr<Producer>> retired;
        {
            const std::lock_guard lock{mutex_};
            retired = retired_;
        }
        for (const auto& producer : retired) {
            rd_kafka_purge(producer->get(), RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
            rd_kafka_poll(producer->get(), static_cast<int>(poll.count()));
            HandBackReports();
            if (producer->InUse() || rd_kafka_outq_len(producer->get()) > 0) continue;
            producer->Shut();
            const std::lock_guard lock{mutex_};
            std::erase(retired_, producer);
        }
        const std::lock_guard lock{mutex_};
        return retired_.empty();
    }

    void Finish() {
        std::shared_ptr<Producer> producer;
        {
            const std::lock_guard lock{mutex_};
            producer = std::move(producer_);
        }
        if (producer != nullptr) {
            producer->Retire();
            room_.Raise();
            Drain(*producer);
            const std::lock_guard lock{mutex_};
            retired_.push_back(std::move(producer));
        }
        const auto last = std::max(close_deadline_, Clock::now()) + kPurge;
        while (!ServeRetired(kSlice) && Clock::now() < last) {
        }
        {
            const std::lock_guard lock{mutex_};
            finished_ = true;
        }
        HandBackFailed();
    }

    // Waits for reports in slices, so that what is finished is handed back meanwhile.
    void Drain(Producer& producer) {
        while (Clock::now() < close_deadline_) {
            const int slice = std::min(RemainingMs(close_deadline_), static_cast<int>(kSlice.count()));
            const auto result = rd_kafka_flush(producer.get(), slice);
            HandBackReports();
            if (result == RD_KAFKA_RESP_ERR_NO_ERROR && !producer.InUse()) return;
        }
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

    void SetError(backend::Publication& publication, const rd_kafka_message_t& report) const {
        const Outcome outcome = rd_kafka_message_status(&report) == RD_KAFKA_MSG_STATUS_NOT_PERSISTED
                                    ? Outcome::kNotSent
                                    : Outcome::kUnknown;
        const std::string topic = rd_kafka_topic_name(report.rkt);
        Error error = MakeError(*broker_, "sending to '" + topic + "'", report.err, {}, outcome);
        if (error.code() == ErrorCode::kTimeout) {
            if (const auto reason = Unreachable()) error = Combine(error, *reason);
        }
        publication.error = std::make_unique<Error>(std::move(error));
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
    const milliseconds slack_;  // how late a publication may be handed back
    EarlyDeadlines early_ = {};

    // Of the thread alone:
    backend::PublicationList batch_ = {};
    std::size_t batched_ = 0;

    mq::detail::Signal room_ = {};  // raised when reports have made room, and by Close
    std::atomic<std::size_t> waiters_{0};

    mutable std::mutex mutex_ = {};  // guards everything below, but for joining thread_
    std::condition_variable changed_ = {};
    std::shared_ptr<Producer> producer_ = {};
    std::vector<std::shared_ptr<Producer>> retired_ = {};
    backend::PublicationList failed_ = {};
    bool closing_ = false;
    bool finished_ = false;  // nothing goes to the sink any more
    Clock::time_point close_deadline_ = {};
    std::thread thread_ = {};
    std::mutex join_mutex_ = {};  // held while thread_ is joined
};

}  // namespace mq::kafka::detail
