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

namespace mq::activemq {

/// What a broker has said of one queue.
struct QueueState {
    std::uint64_t messages = 0;   ///< Ready, delivered and not settled, or waiting for a retry.
    std::uint64_t consumers = 0;  ///< Of the whole group.
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
            if (!state) state = QueueState{};
            state->messages += detail::CountIn(row, "messageCount");
            state->consumers += detail::CountIn(row, "consumerCount");
        }
        return state;
    } catch (const Json::exception& error) {
        throw std::invalid_argument(std::string{"not an answer of listQueues: "} + error.what());
    }
}

}  // namespace mq::activemq
