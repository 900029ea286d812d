/// @file native.hpp
/// What every part of the adapter needs of librdkafka: owned handles, time-outs, and its errors as
/// errors of this library. The only header that includes the client library's.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/options.hpp>

#include <librdkafka/rdkafka.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <utility>

static_assert(RD_KAFKA_VERSION >= 0x02000000, "mq needs librdkafka 2.0 or newer");

namespace mq::kafka::detail {

using backend::Clock;
using std::chrono::milliseconds;

struct Destroy {
    void operator()(rd_kafka_conf_t* it) const { rd_kafka_conf_destroy(it); }
    void operator()(rd_kafka_topic_t* it) const { rd_kafka_topic_destroy(it); }
    void operator()(rd_kafka_queue_t* it) const { rd_kafka_queue_destroy(it); }
    void operator()(rd_kafka_event_t* it) const { rd_kafka_event_destroy(it); }
    void operator()(rd_kafka_error_t* it) const { rd_kafka_error_destroy(it); }
    void operator()(rd_kafka_message_t* it) const { rd_kafka_message_destroy(it); }
    void operator()(rd_kafka_headers_t* it) const { rd_kafka_headers_destroy(it); }
    void operator()(rd_kafka_NewTopic_t* it) const { rd_kafka_NewTopic_destroy(it); }
    void operator()(rd_kafka_AdminOptions_t* it) const { rd_kafka_AdminOptions_destroy(it); }
    void operator()(const rd_kafka_metadata_t* it) const { rd_kafka_metadata_destroy(it); }
    void operator()(rd_kafka_topic_partition_list_t* it) const {
        rd_kafka_topic_partition_list_destroy(it);
    }
    void operator()(rd_kafka_ListConsumerGroupOffsets_t* it) const {
        rd_kafka_ListConsumerGroupOffsets_destroy(it);
    }
    void operator()(rd_kafka_AlterConsumerGroupOffsets_t* it) const {
        rd_kafka_AlterConsumerGroupOffsets_destroy(it);
    }
    void operator()(rd_kafka_ConfigResource_t* it) const { rd_kafka_ConfigResource_destroy(it); }
};

template <typename Type>
using Owned = std::unique_ptr<Type, Destroy>;

using ErrorPtr = std::shared_ptr<const Error>;

/// What is left until a deadline, for librdkafka's timeouts; never -1, which means forever there.
inline int RemainingMs(Clock::time_point deadline) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
    return static_cast<int>(std::clamp<std::int64_t>(left, 0, INT_MAX));
}

inline Owned<rd_kafka_topic_partition_list_t> MakeList(std::size_t size = 0) {
    return Owned<rd_kafka_topic_partition_list_t>{
        rd_kafka_topic_partition_list_new(static_cast<int>(size))};
}

/// Whether what is said still has somebody to hear it. Thread-safe.
class Audience {
public:
    template <typename Say>
    void Tell(Say say) const {
        const std::shared_lock lock{mutex_};
        if (!gone_) say();
    }

    /// Waits until nobody is saying anything; what is said later goes nowhere.
    void Dismiss() {
        const std::lock_guard lock{mutex_};
        gone_ = true;
    }

private:
    mutable std::shared_mutex mutex_ = {};  // guards gone_
    bool gone_ = false;
};

/// A broker of the config, as every part of its adapter sees it.
struct Broker {
    backend::Context context = {};
    Options options = {};
    /// Dismissed by the end of the adapter: what it had to leave to itself may go on for longer.
    std::shared_ptr<Audience> audience = std::make_shared<Audience>();

    [[nodiscard]] std::string Text(const std::string& what) const {
        return "broker '" + context.name + "' (Kafka): " + what;
    }

    /// What a sink throws ends here: many lines are said in callbacks, and librdkafka is written in C.
    void Log(LogLevel level, const std::string& what) const noexcept {
        try {
            audience->Tell([&] { context.log(level, Text(what)); });
        } catch (...) {  // there is nobody left to tell
        }
    }
};

/// Whether what a broker answers, or librdkafka for it, is about a state that passes by itself: a
/// leader or coordinator that is about to be another, a broker that starts or is fenced, a quota that
/// is used up. INVALID_REPLICATION_FACTOR is what a controller says while its brokers are fenced, too;
/// where the cluster really has too few, waiting for them does no harm.
inline bool PassesByItself(rd_kafka_resp_err_t code) {
    switch (code) {
        case RD_KAFKA_RESP_ERR__TRANSPORT:
        case RD_KAFKA_RESP_ERR__RESOLVE:
        case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
        case RD_KAFKA_RESP_ERR__TIMED_OUT:
        case RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE:
        case RD_KAFKA_RESP_ERR__MSG_TIMED_OUT:
        case RD_KAFKA_RESP_ERR__WAIT_COORD:
        case RD_KAFKA_RESP_ERR__WAIT_CACHE:
        case RD_KAFKA_RESP_ERR__BAD_MSG:
        case RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION:
        case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT:
        case RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_STALE_CTRL_EPOCH:
        case RD_KAFKA_RESP_ERR_NETWORK_EXCEPTION:
        case RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS:
        case RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_NOT_COORDINATOR:
        case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS:
        case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND:
        case RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS:
        case RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR:
        case RD_KAFKA_RESP_ERR_NOT_CONTROLLER:
        case RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR:
        case RD_KAFKA_RESP_ERR_REASSIGNMENT_IN_PROGRESS:
        case RD_KAFKA_RESP_ERR_FETCH_SESSION_ID_NOT_FOUND:
        case RD_KAFKA_RESP_ERR_LISTENER_NOT_FOUND:
        case RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH:
        case RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH:
        case RD_KAFKA_RESP_ERR_STALE_BROKER_EPOCH:
        case RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_PREFERRED_LEADER_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_ELIGIBLE_LEADERS_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT:
        case RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED: return true;
        default: return false;
    }
}

inline ErrorCode CodeOf(rd_kafka_resp_err_t code) {
    switch (code) {
        case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
        case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE: return ErrorCode::kTooLarge;
        case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
        case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
        case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION: return ErrorCode::kNotFound;
        case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
        case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
        case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
        case RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED:
        case RD_KAFKA_RESP_ERR__AUTHENTICATION: return ErrorCode::kAccessDenied;
        case RD_KAFKA_RESP_ERR__MSG_TIMED_OUT:
        case RD_KAFKA_RESP_ERR__TIMED_OUT:
        case RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE:
        case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT: return ErrorCode::kTimeout;
        case RD_KAFKA_RESP_ERR__TRANSPORT:
        case RD_KAFKA_RESP_ERR__RESOLVE:
        case RD_KAFKA_RESP_ERR__SSL:
        case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
        case RD_KAFKA_RESP_ERR__FATAL:
        case RD_KAFKA_RESP_ERR__BAD_MSG:
        case RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE:
        case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS:
        case RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND: return ErrorCode::kUnavailable;
        case RD_KAFKA_RESP_ERR__QUEUE_FULL: return ErrorCode::kOverflow;
        case RD_KAFKA_RESP_ERR__PURGE_QUEUE:
        case RD_KAFKA_RESP_ERR__PURGE_INFLIGHT:
        case RD_KAFKA_RESP_ERR__DESTROY: return ErrorCode::kClosed;
        case RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE:
        case RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION: return ErrorCode::kUnsupported;
        case RD_KAFKA_RESP_ERR__INVALID_ARG:
        case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION: return ErrorCode::kInvalidArgument;
        default: return PassesByItself(code) ? ErrorCode::kUnavailable : ErrorCode::kRefused;
    }
}

/// Whether what has failed may work when it is tried again, without anybody doing something.
inline bool PassesByItself(const Error& error) {
    return error.code() == ErrorCode::kUnavailable || error.code() == ErrorCode::kTimeout;
}

/// An error in librdkafka's words; `text` where those say more than the code.
inline Error MakeError(const Broker& broker, const std::string& what, rd_kafka_resp_err_t code,
                       std::string text = {}, Outcome outcome = Outcome::kNotSent) {
    if (text.empty()) text = rd_kafka_err2str(code);
    return {CodeOf(code), broker.Text(what + ": " + text), outcome, {static_cast<int>(code), text}};
}

}  // namespace mq::kafka::detail
