/// @file codec.hpp
/// A message in AMQP 1.0's native form and back: a data section, properties, application properties,
/// and no envelope, so that programs without this library read and write the same messages.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/activemq/failure.hpp>
#include <mq/backends/activemq/header_list.hpp>
#include <mq/backends/activemq/options.hpp>
#include <mq/backends/activemq/proton.hpp>
#include <mq/message.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace mq::activemq::detail {

/// Application properties of this library. Those with the prefix are never shown to business code.
inline constexpr std::string_view kOwnPrefix = "mq-";
inline constexpr const char* kHeadersProperty = "mq-headers";
inline constexpr const char* kIdProperty = "mq-id";
inline constexpr const char* kContentTypeProperty = "mq-content-type";
inline constexpr const char* kKeyProperty = "mq-key";
inline constexpr const char* kReplyToProperty = "mq-reply-to";
inline constexpr const char* kDuplicateProperty = "mq-possible-duplicate";
inline constexpr const char* kSenderProperty = "mq-sender";

/// Finds what keeps a message from being sent at all; nothing where it can be.
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
    for (const auto& [name, value] : message.headers) {
        if (!IsUtf8(name)) {
            return fail(ErrorCode::kInvalidArgument, "the name of a header is not text in UTF-8");
        }
    }
    const bool ascii = std::all_of(message.content_type.begin(), message.content_type.end(),
                                   [](char c) { return c > 0; });
    if (!ascii) return fail(ErrorCode::kInvalidArgument, "the message's content_type is not in ASCII");
    return std::nullopt;
}

/// An id as the broker takes it: text where it is text, else bytes.
inline proton::message_id ToId(const std::string& id) {
    return IsUtf8(id) ? proton::message_id{id} : proton::message_id{proton::binary{id}};
}

inline constexpr const char* kBytes = "application/octet-stream";

/// Whether Classic would give back other bytes than it got. A body whose content type says that it is
/// text becomes a TextMessage, which keeps its text in Java's modified UTF-8 (seen with 5.18): what
/// lies beyond U+FFFF, and U+0000, is written otherwise there.
inline bool IsChangedByClassic(const Message& message) {
    return !message.content_type.empty() &&
           std::any_of(message.body.begin(), message.body.end(), [](char c) {
               const auto byte = static_cast<unsigned char>(c);
               return byte == 0 || byte >= 0xF0;
           });
}

/// Fills in `encoded`, a message without content, from a publication.
///
/// Classic (seen with 5.18) takes a message-id for one of its own when a STOMP client acknowledges the
/// message, fails to read a number in it, and closes that client's connection: there the id is an
/// application property.
inline void Encode(const backend::Publication& publication, Flavor flavor, proton::message& encoded) {
    const Message& message = publication.message;
    encoded.durable(true);
    // A data section, which JMS and STOMP clients read as bytes.
    encoded.inferred(true);
    encoded.body() = proton::binary{message.body};
    auto& properties = encoded.properties();
    if (!message.id.empty() && flavor == Flavor::kArtemis) encoded.id(ToId(message.id));
    if (!message.id.empty() && flavor == Flavor::kClassic) {
        properties.put(kIdProperty, PercentEncoded(message.id));
    }
    if (!message.correlation_id.empty()) encoded.correlation_id(ToId(message.correlation_id));
    if (flavor == Flavor::kClassic && IsChangedByClassic(message)) {
        encoded.content_type(kBytes);
        properties.put(kContentTypeProperty, message.content_type);
    } else if (!message.content_type.empty()) {
        encoded.content_type(message.content_type);
    }
    const auto since = message.timestamp.time_since_epoch();
    encoded.creation_time(
        proton::timestamp{std::chrono::floor<std::chrono::milliseconds>(since).count()});
    if (!message.key.empty()) {
        const bool plain = IsPlainText(message.key);
        const std::string key = plain ? message.key : PercentEncoded(message.key);
        encoded.group_id(key);
        if (!plain) properties.put(kKeyProperty, key);
    }
    if (!message.reply_to.empty()) {
        // Classic makes the name of a destination of it, and gives that back.
        if (IsPlainText(message.reply_to)) encoded.reply_to(message.reply_to);
        properties.put(kReplyToProperty, PercentEncoded(message.reply_to));
    }
    if (!message.headers.empty()) {
        const HeaderMap map = MapOf(message.headers);
        for (const auto& [name, value] : map) properties.put(name, value);
        if (!MapSuffices(message.headers)) {
            properties.put(kHeadersProperty, ListOf(message.headers, map));
        }
    }
    if (publication.possible_duplicate) properties.put(kDuplicateProperty, std::string{"true"});
    if (!publication.sender.empty()) properties.put(kSenderProperty, std::string{publication.sender});
}

/// What is a text or bytes as it is, anything else as Proton writes it: numbers, true and false,
/// times in milliseconds, uuids.
template <typename Value>
std::string TextOf(const Value& value) {
    switch (value.type()) {
        case proton::NULL_TYPE: return {};
        case proton::STRING: return proton::get<std::string>(value);
        case proton::BINARY: {
            const auto bytes = proton::get<proton::binary>(value);
            return {bytes.begin(), bytes.end()};
        }
        default: return proton::to_string(value);
    }
}

/// What `read` returns, as text; empty where another program wrote a type that has no place there.
template <typename Read>
std::string TextFrom(Read read) {
    try {
        return TextOf(read());
    } catch (const proton::error&) {
        return {};
    }
}

/// Reads the application properties: the map of headers, and what is our own. Takes whatever another
/// program has written: nothing in them is a reason not to receive a message.
struct Properties {
    explicit Properties(const proton::message& message) {
        const proton::value& all = message.properties().value();
        if (all.empty() || all.type() != proton::MAP) return;
        proton::codec::decoder decoder{all};
        proton::codec::start start;
        decoder >> start;
        for (std::size_t i = 0; i + 1 < start.size; i += 2) {
            std::string name = Next(decoder);
            // Artemis gives messages of other protocols a property without a value.
            const bool nothing = decoder.next_type() == proton::NULL_TYPE;
            std::string value = Next(decoder);
            if (!nothing) Add(std::move(name), std::move(value));
        }
    }

    HeaderMap headers = {};
    std::string list = {};
    std::optional<std::string> id = {};
    std::optional<std::string> key = {};
    std::optional<std::string> reply_to = {};
    std::optional<std::string> content_type = {};
    bool possible_duplicate = false;
    std::string sender = {};

private:
    static std::string Next(proton::codec::decoder& decoder) {
        if (decoder.next_type() == proton::STRING) {
            std::string text;
            decoder >> text;
            return text;
        }
        proton::value value;
        decoder >> value;
        return TextOf(value);
    }

    void Add(std::string name, std::string value) {
        if (!name.starts_with(kOwnPrefix)) {
            headers.insert_or_assign(std::move(name), std::move(value));
        } else if (name == kHeadersProperty) {
            list = std::move(value);
        } else if (name == kIdProperty) {
            id = PercentDecodedOrRaw(value);
        } else if (name == kKeyProperty) {
            key = PercentDecodedOrRaw(value);
        } else if (name == kReplyToProperty) {
            reply_to = PercentDecodedOrRaw(value);
        } else if (name == kContentTypeProperty) {
            content_type = std::move(value);
        } else if (name == kDuplicateProperty) {
            possible_duplicate = true;
        } else if (name == kSenderProperty) {
            sender = std::move(value);
        }
    }
};

/// The headers of a message, in their order where a list says it.
inline Headers HeadersFrom(Properties& properties) {
    HeaderMap& map = properties.headers;
    if (!properties.list.empty()) {
        try {
            return HeadersOf(map, properties.list);
        } catch (const std::invalid_argument&) {
            // Another program wrote the list, and the map is all there is.
        }
    }
    return {map.begin(), map.end()};
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

/// Reads a received message. Returns what Publication::sender was.
inline std::string Decode(const proton::message& received, Message& message) {
    message.body = TextOf(received.body());
    message.id = TextFrom([&] { return received.id(); });
    message.correlation_id = TextFrom([&] { return received.correlation_id(); });
    message.content_type = received.content_type();
    message.reply_to = received.reply_to();
    message.key = received.group_id();
    message.timestamp = FromMilliseconds(received.creation_time().milliseconds());
    message.redelivered = received.delivery_count() > 0;
    Properties properties{received};
    if (properties.id) message.id = *std::move(properties.id);
    if (properties.key) message.key = *std::move(properties.key);
    if (properties.reply_to) message.reply_to = *std::move(properties.reply_to);
    if (properties.content_type) message.content_type = *std::move(properties.content_type);
    message.redelivered = message.redelivered || properties.possible_duplicate;
    message.headers = HeadersFrom(properties);
    return std::move(properties.sender);
}

}  // namespace mq::activemq::detail
