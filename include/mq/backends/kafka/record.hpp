/// @file record.hpp
/// A message as a Kafka record: which field is a header, and back.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/native.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mq::kafka::detail {

inline constexpr std::string_view kIdHeader = "mq-id";
inline constexpr std::string_view kContentTypeHeader = "mq-content-type";
inline constexpr std::string_view kCorrelationIdHeader = "mq-correlation-id";
inline constexpr std::string_view kReplyToHeader = "mq-reply-to";
inline constexpr std::string_view kPossibleDuplicateHeader = "mq-possible-duplicate";
inline constexpr std::string_view kSenderHeader = "mq-sender";
/// No message of a user's has such a header. What this version knows nothing of is left out: it may be
/// a later one's, or, as RabbitMQ's mq-probe, of no meaning here.
inline constexpr std::string_view kReservedPrefix = "mq-";

/// Headers as librdkafka wants them: the message's own, then what Kafka has no field for.
inline Owned<rd_kafka_headers_t> MakeHeaders(const backend::Publication& publication) {
    const Message& message = publication.message;
    std::size_t count = message.headers.size() + (publication.possible_duplicate ? 1U : 0U) +
                        (publication.sender.empty() ? 0U : 1U);
    for (const std::string* const text :
         {&message.id, &message.content_type, &message.correlation_id, &message.reply_to}) {
        if (!text->empty()) ++count;
    }
    Owned<rd_kafka_headers_t> headers{rd_kafka_headers_new(count)};
    const auto add = [&](std::string_view name, std::string_view value) {
        rd_kafka_header_add(headers.get(), name.data(), static_cast<ssize_t>(name.size()), value.data(),
                            static_cast<ssize_t>(value.size()));
    };
    for (const auto& [name, value] : message.headers) add(name, value);
    if (!message.id.empty()) add(kIdHeader, message.id);
    if (!message.content_type.empty()) add(kContentTypeHeader, message.content_type);
    if (!message.correlation_id.empty()) add(kCorrelationIdHeader, message.correlation_id);
    if (!message.reply_to.empty()) add(kReplyToHeader, message.reply_to);
    if (publication.possible_duplicate) add(kPossibleDuplicateHeader, "1");
    if (!publication.sender.empty()) add(kSenderHeader, publication.sender);
    return headers;
}

/// Sorts one received header.
inline void TakeHeader(backend::Inbound& inbound, std::string_view name, std::string_view value) {
    Message& message = inbound.message;
    if (!name.starts_with(kReservedPrefix)) {
        message.headers.emplace_back(name, value);
    } else if (name == kIdHeader) {
        message.id = value;
    } else if (name == kContentTypeHeader) {
        message.content_type = value;
    } else if (name == kCorrelationIdHeader) {
        message.correlation_id = value;
    } else if (name == kReplyToHeader) {
        message.reply_to = value;
    } else if (name == kPossibleDuplicateHeader) {
        message.redelivered = true;
    } else if (name == kSenderHeader) {
        inbound.sender = value;
    }
}

/// Fills in what a record says.
inline void ReadRecord(const rd_kafka_message_t& record, backend::Inbound& inbound) {
    Message& message = inbound.message;
    if (record.payload != nullptr) {
        message.body.assign(static_cast<const char*>(record.payload), record.len);
    }
    if (record.key != nullptr) {
        message.key.assign(static_cast<const char*>(record.key), record.key_len);
    }
    rd_kafka_timestamp_type_t type = RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    const std::int64_t timestamp = rd_kafka_message_timestamp(&record, &type);
    if (type != RD_KAFKA_TIMESTAMP_NOT_AVAILABLE) {
        message.timestamp = std::chrono::system_clock::time_point{milliseconds{timestamp}};
    }
    rd_kafka_headers_t* headers = nullptr;
    if (rd_kafka_message_headers(&record, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR) return;
    const char* name = nullptr;
    const void* value = nullptr;
    std::size_t size = 0;
    for (std::size_t i = 0;
         rd_kafka_header_get_all(headers, i, &name, &value, &size) == RD_KAFKA_RESP_ERR_NO_ERROR; ++i) {
        const std::string_view text = value != nullptr
                                          ? std::string_view{static_cast<const char*>(value), size}
                                          : std::string_view{};
        TakeHeader(inbound, name, text);
    }
}

}  // namespace mq::kafka::detail
