/// @file management.hpp
/// What Artemis's management is asked about a queue, and how it answers: texts of JSON, each in a list
/// of JSON again. Knows nothing of the client library.
#pragma once

#include <mq/detail/json.hpp>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace mq::activemq {

/// What a broker has said of one queue.
struct QueueState {
    std::string name = {};        ///< Of the one queue that was asked for. Artemis alone.
    std::uint64_t messages = 0;   ///< Ready, delivered and not settled, or waiting for a retry.
    std::uint64_t consumers = 0;  ///< Of the whole group.
    std::uint64_t ready = 0;      ///< Of the messages: those that nobody was given.
    std::uint64_t settled = 0;    ///< How many ever were, since the broker's start or before.
    std::uint64_t scheduled = 0;  ///< Of the messages: those that wait for a time. Artemis alone.
};

/// What a list of queues is asked for by.
enum class QueuesBy : unsigned char {
    kName,     ///< The one queue of that name.
    kAddress,  ///< All queues of that address.
};

/// The arguments of listQueues: a filter, and the first page of a hundred.
inline std::string QueueListArguments(const std::string& value, QueuesBy by = QueuesBy::kName) {
    using mq::detail::Json;
    const Json filter{{"field", by == QueuesBy::kName ? "name" : "address"},
                      {"operation", "EQUALS"},
                      {"value", value}};
    // A name that is not UTF-8 finds no queue, and is no reason to throw.
    constexpr auto kReplace = Json::error_handler_t::replace;
    return Json::array({filter.dump(-1, ' ', false, kReplace), 1, 100}).dump();
}

namespace detail {

// Numbers come as numbers or as text, as the version of the broker has it.
inline std::uint64_t CountIn(const mq::detail::Json& row, const char* field) {
    const mq::detail::Json& value = row.at(field);
    return value.is_string() ? std::stoull(value.get<std::string>()) : value.get<std::uint64_t>();
}

// What not every version tells.
inline void AddDetails(const mq::detail::Json& row, QueueState& state) {
    if (!row.contains("deliveringCount") || !row.contains("scheduledCount")) return;
    const std::uint64_t messages = CountIn(row, "messageCount");
    const std::uint64_t scheduled = CountIn(row, "scheduledCount");
    const std::uint64_t held = scheduled + CountIn(row, "deliveringCount");
    state.scheduled += scheduled;
    // They are not counted at one moment.
    state.ready += messages > held ? messages - held : 0;
    if (row.contains("messagesAcked")) state.settled += CountIn(row, "messagesAcked");
}

}  // namespace detail

/// Reads the answer to listQueues: what it says of the queue of that name, or of all queues of that
/// address together; nothing where there is none.
/// @throws std::invalid_argument where it is no such answer.
inline std::optional<QueueState> ReadQueueList(std::string_view body, std::string_view value,
                                               QueuesBy by = QueuesBy::kName) {
    using mq::detail::Json;
    try {
        const Json list = Json::parse(Json::parse(body).at(0).get<std::string>());
        std::optional<QueueState> state;
        for (const Json& row : list.at("data")) {
            if (row.value(by == QueuesBy::kName ? "name" : "address", "") != value) continue;
            if (!state) state = QueueState{.name = row.value("name", "")};
            state->messages += detail::CountIn(row, "messageCount");
            state->consumers += detail::CountIn(row, "consumerCount");
            detail::AddDetails(row, *state);
        }
        return state;
    } catch (const Json::exception& error) {
        throw std::invalid_argument(std::string{"not an answer of listQueues: "} + error.what());
    }
}

/// The arguments of an operation that takes one text.
inline std::string TextArgument(const std::string& value) {
    using mq::detail::Json;
    return Json::array({value}).dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Reads the answer to getAddressSettingsAsJSON: after how many deliveries a message is a dead letter;
/// nothing where there is no such limit, or the answer has none.
inline std::optional<std::int64_t> ReadDeliveryLimit(std::string_view body) {
    using mq::detail::Json;
    const Json list = Json::parse(body, nullptr, false);
    if (!list.is_array() || list.empty() || !list[0].is_string()) return std::nullopt;
    const Json settings = Json::parse(list[0].get<std::string>(), nullptr, false);
    if (!settings.is_object() || !settings.contains("maxDeliveryAttempts")) return std::nullopt;
    const Json& limit = settings["maxDeliveryAttempts"];
    if (!limit.is_number_integer() || limit.get<std::int64_t>() <= 0) return std::nullopt;
    return limit.get<std::int64_t>();
}

/// A message as an operation lists it.
struct ListedMessage {
    std::int64_t number = 0;  ///< In the order of arrival, among all messages of the broker.
    int priority = 4;
};

namespace detail {

inline void CollectMessages(const mq::detail::Json& value, std::vector<ListedMessage>& found) {
    if (value.is_array()) {
        for (const auto& each : value) CollectMessages(each, found);
    } else if (value.is_object() && value.contains("messageID")) {
        found.push_back({value.at("messageID").get<std::int64_t>(), value.value("priority", 4)});
    } else if (value.is_object() && value.contains("elements")) {
        CollectMessages(value.at("elements"), found);
    }
}

}  // namespace detail

/// Reads the answer to getFirstMessageAsJSON or listDeliveringMessagesAsJSON.
/// @throws std::invalid_argument where it is no such answer.
inline std::vector<ListedMessage> ReadMessages(std::string_view body) {
    using mq::detail::Json;
    try {
        std::vector<ListedMessage> found;
        detail::CollectMessages(Json::parse(Json::parse(body).at(0).get<std::string>()), found);
        return found;
    } catch (const Json::exception& error) {
        throw std::invalid_argument(std::string{"not a list of messages: "} + error.what());
    }
}

}  // namespace mq::activemq
