/// @file producer.hpp
/// One producer handle: its topics, who uses it, and what it has of the messages that it was given.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/handle.hpp>
#include <mq/backends/kafka/in_flight.hpp>
#include <mq/backends/kafka/native.hpp>
#include <mq/backends/kafka/record.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::kafka::detail {

/// One producer handle. After a fatal error it is retired and another one takes its place.
class Producer {
public:
    /// Why nothing can be sent with it any more.
    struct Failure {
        rd_kafka_resp_err_t code = RD_KAFKA_RESP_ERR_NO_ERROR;
        std::string text = {};
    };

    Producer(std::shared_ptr<const Broker> broker, HandleEvents& events)
        : handle_(std::in_place, broker, Role::kProducer, Properties::Of(*broker, Role::kProducer),
                  &events),
          queue_(rd_kafka_queue_get_main(handle_->get())) {
        handle_->Keep(bodies_);
    }

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
    [[nodiscard]] InFlight& in_flight() noexcept { return in_flight_; }

    /// The fatal error, where there was one. For the thread that polls.
    [[nodiscard]] std::optional<Failure> FatalError() const {
        std::array<char, 512> text{};
        const auto code = rd_kafka_fatal_error(handle_->get(), text.data(), text.size());
        if (code == RD_KAFKA_RESP_ERR_NO_ERROR) return std::nullopt;
        return Failure{code, text.data()};
    }

    /// The topic, for as long as the producer lives; null where librdkafka refuses it. Between Enter
    /// and Leave, and for the thread that polls. Thread-safe.
    rd_kafka_topic_t* Topic(const std::string& name) {
        const std::lock_guard lock{mutex_};
        Owned<rd_kafka_topic_t>& topic = topics_[name];
        if (topic == nullptr) topic.reset(rd_kafka_topic_new(handle_->get(), name.c_str(), nullptr));
        return topic.get();
    }

    /// The names of its topics. Thread-safe.
    [[nodiscard]] std::vector<std::string> TopicNames() {
        const std::lock_guard lock{mutex_};
        std::vector<std::string> names;
        for (const auto& [name, topic] : topics_) names.push_back(name);
        return names;
    }

    /// Gives librdkafka a message; where it takes it, the report comes with in_flight().Take's
    /// `value`. A body that is longer than kCopied is read in place until then, unless `copy`. It is
    /// ERR__FATAL where nothing can be sent any more. Never blocks. Between Enter and Leave, and for
    /// the thread that polls. Thread-safe.
    rd_kafka_resp_err_t Produce(rd_kafka_topic_t* topic, const backend::Publication& publication,
                                InFlight::Value value, bool copy) {
        void* const place = in_flight_.Add(value);
        copy = copy || publication.message.body.size() <= kCopied;
        const auto error = Produce(topic, publication, place, copy ? RD_KAFKA_MSG_F_COPY : 0);
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR) InFlight::Take(place);
        return error;
    }

    /// librdkafka has the message still, and may yet read its body: what it reads stays here, and the
    /// message gets a copy. For the thread that polls.
    void Detach(Message& message) {
        if (message.body.size() <= kCopied) return;
        bodies_->push_back(std::move(message.body));
        message.body = bodies_->back();
    }

    /// Has the poll under way, or the next one, return at once. Thread-safe until Shut.
    void Wake() noexcept { rd_kafka_queue_yield(queue_.get()); }

    /// Destroys the handle, and waits for that until the deadline at most. When it is retired and not
    /// in use.
    void Shut(Clock::time_point deadline = Clock::now() + Handle::kEndPatience) {
        DropParts();
        if (handle_) handle_->End(deadline);
        handle_.reset();
    }

    /// The same in the background, without waiting.
    void Release() {
        DropParts();
        if (handle_) handle_->Release();
        handle_.reset();
    }

private:
    static constexpr std::uint64_t kRetired = 1ULL << 63u;
    /// More than a string keeps within itself: a longer body stays where it is when its string moves.
    static constexpr std::size_t kCopied = 64;

    void DropParts() {
        topics_.clear();
        queue_.reset();
    }

    rd_kafka_resp_err_t Produce(rd_kafka_topic_t* topic, const backend::Publication& publication,
                                void* opaque, int flags) {
        const Message& message = publication.message;
        Owned<rd_kafka_headers_t> headers = MakeHeaders(publication);
        std::array<rd_kafka_vu_t, 7> fields;
        std::size_t count = 0;
        const auto add = [&](rd_kafka_vtype_t type) -> auto& {
            fields[count].vtype = type;
            return fields[count++].u;
        };
        add(RD_KAFKA_VTYPE_RKT).rkt = topic;
        add(RD_KAFKA_VTYPE_MSGFLAGS).i = flags;
        // A body of length 0 is not a missing one.
        auto& value = add(RD_KAFKA_VTYPE_VALUE).mem;
        value.ptr = const_cast<char*>(message.body.data());
        value.size = message.body.size();
        if (!message.key.empty()) {
            auto& key = add(RD_KAFKA_VTYPE_KEY).mem;
            key.ptr = const_cast<char*>(message.key.data());
            key.size = message.key.size();
        }
        add(RD_KAFKA_VTYPE_OPAQUE).ptr = opaque;
        add(RD_KAFKA_VTYPE_TIMESTAMP).i64 =
            std::chrono::duration_cast<milliseconds>(message.timestamp.time_since_epoch()).count();
        add(RD_KAFKA_VTYPE_HEADERS).headers = headers.get();
        const Owned<rd_kafka_error_t> failed{rd_kafka_produceva(get(), fields.data(), count)};
        if (failed == nullptr) {
            static_cast<void>(headers.release());
            return RD_KAFKA_RESP_ERR_NO_ERROR;
        }
        // It says what the producer has failed of.
        const bool fatal = rd_kafka_error_is_fatal(failed.get()) != 0;
        return fatal ? RD_KAFKA_RESP_ERR__FATAL : rd_kafka_error_code(failed.get());
    }

    // Outlive the handle.
    const std::shared_ptr<std::vector<std::string>> bodies_ =
        std::make_shared<std::vector<std::string>>();
    InFlight in_flight_ = {};
    std::optional<Handle> handle_;
    Owned<rd_kafka_queue_t> queue_;
    std::atomic<std::uint64_t> users_{0};
    std::mutex mutex_ = {};  // guards topics_
    std::map<std::string, Owned<rd_kafka_topic_t>> topics_ = {};
};

}  // namespace mq::kafka::detail
