/// @file codec.hpp
/// A message in AMQP's native form and back: properties, a table of headers, and no envelope, so that
/// programs without this library read and write the same messages. Included by rabbitmq.hpp alone,
/// behind the library's headers.
#pragma once

#include <mq/backends/rabbitmq/connection.hpp>
#include <mq/backends/rabbitmq/failure.hpp>
#include <mq/backends/rabbitmq/options.hpp>
#include <mq/backends/rabbitmq/topology.hpp>
#include <mq/message.hpp>

#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::rabbitmq::detail {

/// Headers of this library. Those with the prefix are never shown to business code.
inline constexpr std::string_view kOwnPrefix = "mq-";
inline constexpr std::string_view kKeyHeader = "mq-key";
inline constexpr std::string_view kDuplicateHeader = "mq-possible-duplicate";
inline constexpr std::string_view kProbeHeader = "mq-probe";
/// What only a probe of this library is marked with: the value of its header begins with this, its type
/// is the header's name, it comes from this application, has no body and wants an answer. Anything less
/// is a message of somebody's, whatever its headers are.
inline constexpr std::string_view kProbeMark = "mq-probe/1 ";
inline constexpr std::string_view kProbeApplication = "mq";
inline constexpr std::string_view kSenderHeader = "mq-sender";
/// The property `timestamp` has whole seconds only; RabbitMQ's own timestamp interceptor puts the
/// milliseconds under this name.
inline constexpr std::string_view kTimestampHeader = "timestamp_in_ms";
/// How often a quorum queue has delivered the message before.
inline constexpr std::string_view kDeliveryCountHeader = "x-delivery-count";
/// Where the message stands in a stream: nothing else has such a place.
inline constexpr std::string_view kStreamOffsetHeader = "x-stream-offset";

/// Finds what keeps a message from being sent at all; nothing where it can be. The names and the
/// short strings of AMQP have one byte for their length, and all properties together must fit one
/// frame.
inline std::optional<Failure> FindUnsendable(const Message& message, const Options& options,
                                             const std::string& where) {
    const auto fail = [&where](ErrorCode code, const std::string& text) {
        return Failure{code, where + ": " + text, {}};
    };
    if (message.body.size() > options.max_message_size) {
        return fail(ErrorCode::kTooLarge, "a body of " + std::to_string(message.body.size()) +
                                              " bytes is larger than max_message_size, which is " +
                                              std::to_string(options.max_message_size));
    }
    const std::array<std::pair<const char*, const std::string*>, 4> short_strings{
        {{"id", &message.id},
         {"content_type", &message.content_type},
         {"correlation_id", &message.correlation_id},
         {"reply_to", &message.reply_to}}};
    for (const auto& [name, value] : short_strings) {
        if (value->size() <= kLongestName) continue;
        return fail(ErrorCode::kInvalidArgument, std::string{"the message's "} + name + " has " +
                                                     std::to_string(value->size()) +
                                                     " bytes, and AMQP takes at most 255");
    }
    constexpr std::size_t kFrame = 131072;
    constexpr std::size_t kRest = 2048;  // more than all short strings, our headers and the frame need
    std::size_t bytes = kRest + message.key.size();
    for (const auto& [name, value] : message.headers) {
        if (name.size() > kLongestName) {
            return fail(ErrorCode::kInvalidArgument,
                        "the header " + mq::detail::Shown(name) +
                            " has a name of more than 255 bytes, and AMQP takes no longer one");
        }
        bytes += name.size() + value.size() + 6;  // two lengths and a type
    }
    if (bytes > kFrame) {
        return fail(ErrorCode::kTooLarge, "the headers and the key have " + std::to_string(bytes) +
                                              " bytes, and all of them must fit one frame of 131072");
    }
    return std::nullopt;
}

/// Makes a message's properties, in memory that it keeps from one message to the next.
class PropertiesEncoder {
public:
    /// What it returns is valid until the next call, and as long as the publication.
    amqp_basic_properties_t& Encode(const backend::Publication& publication) {
        const Message& message = publication.message;
        properties_ = {};
        properties_._flags = AMQP_BASIC_DELIVERY_MODE_FLAG;
        properties_.delivery_mode = AMQP_DELIVERY_PERSISTENT;
        Text(message.id, AMQP_BASIC_MESSAGE_ID_FLAG, properties_.message_id);
        Text(message.content_type, AMQP_BASIC_CONTENT_TYPE_FLAG, properties_.content_type);
        Text(message.correlation_id, AMQP_BASIC_CORRELATION_ID_FLAG, properties_.correlation_id);
        Text(message.reply_to, AMQP_BASIC_REPLY_TO_FLAG, properties_.reply_to);
        headers_.clear();
        for (const auto& [name, value] : message.headers) Header(name, value);
        if (!message.key.empty()) Header(kKeyHeader, message.key);
        if (publication.possible_duplicate) Header(kDuplicateHeader, "true");
        if (!publication.sender.empty()) Header(kSenderHeader, publication.sender);
        Timestamp(message.timestamp);
        if (!headers_.empty()) {
            properties_._flags |= AMQP_BASIC_HEADERS_FLAG;
            properties_.headers = {static_cast<int>(headers_.size()), headers_.data()};
        }
        return properties_;
    }

private:
    void Text(std::string_view value, amqp_flags_t flag, amqp_bytes_t& property) {
        if (value.empty()) return;
        properties_._flags |= flag;
        property = Bytes(value);
    }

    // A long string, which holds any bytes.
    void Header(std::string_view name, std::string_view value) {
        amqp_table_entry_t& entry = headers_.emplace_back();
        entry.key = Bytes(name);
        entry.value.kind = AMQP_FIELD_KIND_UTF8;
        entry.value.value.bytes = Bytes(value);
    }

    void Timestamp(std::chrono::system_clock::time_point timestamp) {
        const auto since = timestamp.time_since_epoch();
        const auto milliseconds = std::chrono::floor<std::chrono::milliseconds>(since).count();
        if (milliseconds == 0) return;
        if (milliseconds > 0) {
            properties_._flags |= AMQP_BASIC_TIMESTAMP_FLAG;
            properties_.timestamp = static_cast<std::uint64_t>(milliseconds / 1000);
        }
        amqp_table_entry_t& entry = headers_.emplace_back();
        entry.key = Bytes(kTimestampHeader);
        entry.value.kind = AMQP_FIELD_KIND_I64;
        entry.value.value.i64 = milliseconds;
    }

    amqp_basic_properties_t properties_ = {};
    std::vector<amqp_table_entry_t> headers_ = {};
};

/// What the properties of a received message say beyond the message.
struct Received {
    bool possible_duplicate = false;
    bool probe = false;
    bool from_stream = false;
    std::string sender = {};
};

template <typename Number>
std::string NumberText(Number number) {
    std::array<char, 32> text{};
    const auto [end, code] = std::to_chars(text.data(), text.data() + text.size(), number);
    return {text.data(), end};
}

/// A header's value as text; nothing for tables and arrays, which have none.
inline std::optional<std::string> HeaderText(const amqp_field_value_t& value) {
    switch (value.kind) {
        case AMQP_FIELD_KIND_UTF8:
        case AMQP_FIELD_KIND_BYTES: return std::string{View(value.value.bytes)};
        case AMQP_FIELD_KIND_BOOLEAN: return value.value.boolean != 0 ? "true" : "false";
        case AMQP_FIELD_KIND_I8: return NumberText(static_cast<int>(value.value.i8));
        case AMQP_FIELD_KIND_U8: return NumberText(static_cast<int>(value.value.u8));
        case AMQP_FIELD_KIND_I16: return NumberText(value.value.i16);
        case AMQP_FIELD_KIND_U16: return NumberText(value.value.u16);
        case AMQP_FIELD_KIND_I32: return NumberText(value.value.i32);
        case AMQP_FIELD_KIND_U32: return NumberText(value.value.u32);
        case AMQP_FIELD_KIND_I64: return NumberText(value.value.i64);
        case AMQP_FIELD_KIND_U64:
        case AMQP_FIELD_KIND_TIMESTAMP: return NumberText(value.value.u64);
        case AMQP_FIELD_KIND_F32: return NumberText(value.value.f32);
        case AMQP_FIELD_KIND_F64: return NumberText(value.value.f64);
        case AMQP_FIELD_KIND_DECIMAL: {
            std::string digits = NumberText(value.value.decimal.value);
            const std::size_t decimals = value.value.decimal.decimals;
            if (decimals == 0) return digits;
            if (digits.size() <= decimals) digits.insert(0, decimals + 1 - digits.size(), '0');
            return digits.insert(digits.size() - decimals, ".");
        }
        case AMQP_FIELD_KIND_VOID: return std::string{};
        default: return std::nullopt;
    }
}

/// An integer header's value, whatever its width; nothing where it is no integer.
inline std::optional<std::int64_t> IntegerOf(const amqp_field_value_t& value) {
    switch (value.kind) {
        case AMQP_FIELD_KIND_I8: return value.value.i8;
        case AMQP_FIELD_KIND_U8: return value.value.u8;
        case AMQP_FIELD_KIND_I16: return value.value.i16;
        case AMQP_FIELD_KIND_U16: return value.value.u16;
        case AMQP_FIELD_KIND_I32: return value.value.i32;
        case AMQP_FIELD_KIND_U32: return value.value.u32;
        case AMQP_FIELD_KIND_I64: return value.value.i64;
        case AMQP_FIELD_KIND_U64: return static_cast<std::int64_t>(value.value.u64);
        default: return std::nullopt;
    }
}

inline std::chrono::system_clock::time_point FromMilliseconds(std::int64_t milliseconds) {
    using Time = std::chrono::system_clock::time_point;
    // A nonsensical time from another program must not overflow the clock's finer ticks.
    constexpr std::int64_t kMost =
        Time::duration::max().count() /
        std::chrono::duration_cast<Time::duration>(std::chrono::milliseconds{1}).count();
    if (milliseconds > kMost || milliseconds < -kMost) return {};
    return Time{std::chrono::duration_cast<Time::duration>(std::chrono::milliseconds{milliseconds})};
}

inline void DecodeHeader(const amqp_table_entry_t& entry, Message& message, Received& received) {
    const std::string_view name = View(entry.key);
    if (name.starts_with(kOwnPrefix)) {
        if (name == kKeyHeader) message.key = HeaderText(entry.value).value_or("");
        if (name == kDuplicateHeader) received.possible_duplicate = true;
        if (name == kProbeHeader) {
            received.probe = HeaderText(entry.value).value_or("").starts_with(kProbeMark);
        }
        if (name == kSenderHeader) received.sender = HeaderText(entry.value).value_or("");
        return;
    }
    const auto integer = IntegerOf(entry.value);
    if (name == kTimestampHeader && integer) {
        message.timestamp = FromMilliseconds(*integer);
        return;
    }
    if (name == kStreamOffsetHeader) received.from_stream = true;
    if (name == kDeliveryCountHeader && integer.value_or(0) > 0) received.possible_duplicate = true;
    if (auto text = HeaderText(entry.value)) message.headers.emplace_back(name, std::move(*text));
}

/// Reads a received message's properties into `message`, whose key is the routing key so far.
inline Received DecodeProperties(const amqp_basic_properties_t& properties, Message& message) {
    Received received;
    const auto text = [&properties](amqp_flags_t flag, const amqp_bytes_t& value) {
        return (properties._flags & flag) != 0 ? std::string{View(value)} : std::string{};
    };
    message.id = text(AMQP_BASIC_MESSAGE_ID_FLAG, properties.message_id);
    message.content_type = text(AMQP_BASIC_CONTENT_TYPE_FLAG, properties.content_type);
    message.correlation_id = text(AMQP_BASIC_CORRELATION_ID_FLAG, properties.correlation_id);
    message.reply_to = text(AMQP_BASIC_REPLY_TO_FLAG, properties.reply_to);
    if ((properties._flags & AMQP_BASIC_TIMESTAMP_FLAG) != 0 &&
        properties.timestamp < static_cast<std::uint64_t>(INT64_MAX) / 1000) {
        message.timestamp = FromMilliseconds(static_cast<std::int64_t>(properties.timestamp) * 1000);
    }
    if ((properties._flags & AMQP_BASIC_HEADERS_FLAG) != 0) {
        const amqp_table_t& headers = properties.headers;
        message.headers.reserve(static_cast<std::size_t>(headers.num_entries));
        for (int i = 0; i < headers.num_entries; ++i) {
            DecodeHeader(headers.entries[i], message, received);
        }
    }
    received.probe = received.probe && !message.reply_to.empty() &&
                     text(AMQP_BASIC_TYPE_FLAG, properties.type) == kProbeHeader &&
                     text(AMQP_BASIC_APP_ID_FLAG, properties.app_id) == kProbeApplication;
    return received;
}

}  // namespace mq::rabbitmq::detail
