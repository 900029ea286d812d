/// @file message.hpp
/// What is sent and received. A message has the same fields on every broker; each adapter maps them
/// to the broker's native ones, so that programs without this library read and write the same topics.
#pragma once

#include <mq/policy.hpp>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq {

/// Ordered name and value pairs. Values are bytes; a name may occur more than once.
/// Names that begin with `mq-` belong to the library, and a send that uses one is refused.
using Headers = std::vector<std::pair<std::string, std::string>>;

/// A message, as business code sees it.
struct Message {
    std::string body = {};  ///< Any bytes, also none.
    std::string key = {};   ///< Messages of one key stay together; empty for none.
    Headers headers = {};
    /// Made by the send where empty; the same on both sides. Two messages of one id are one message, to
    /// a topic with a `dedup` window. A received message that is sent on to the topic that it came from
    /// is another one: there it gets an id of its own, made from that one, its key, headers and body.
    std::string id = {};
    /// Set to now by the send where unset; kept to the millisecond.
    std::chrono::system_clock::time_point timestamp = {};
    std::string content_type = {};
    std::string correlation_id = {};
    std::string reply_to = {};

    std::string topic = {};    ///< On receipt: the topic of the config. A send does not need it.
    bool redelivered = false;  ///< On receipt: the group may have seen this message before.
    Side side = Side::kOld;    ///< On receipt: where it came from; kOld for a topic of one broker.

    friend bool operator==(const Message&, const Message&) = default;
};

/// The value of the first header of that name; nothing where there is none. Thread-safe.
inline std::optional<std::string_view> FindHeader(const Message& message, std::string_view name) {
    for (const auto& [header, value] : message.headers) {
        if (header == name) return value;
    }
    return std::nullopt;
}

/// What a message weighs in the bounded buffers, in bytes: its contents and a fixed part for the rest.
inline std::size_t Weight(const Message& message) noexcept {
    constexpr std::size_t kFixed = 512;
    std::size_t bytes = kFixed + message.body.size() + message.key.size();
    for (const auto& [name, value] : message.headers) bytes += name.size() + value.size();
    return bytes;
}

}  // namespace mq
