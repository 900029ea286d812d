/// @file management.hpp
/// What Artemis's management is asked about a queue, and how it answers: texts of JSON, each in a list
/// of JSON again. Knows nothing of the client library.
#pragma once

#include <nlohmann/json.hpp>

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

/// The arguments of listQueues for the queue of that name: a filter, and the first page of ten.
inline std::string QueueListArguments(const std::string& queue) {
    using Json = nlohmann::json;
    const Json filter{{"field", "name"}, {"operation", "EQUALS"}, {"value", queue}};
    // A name that is not UTF-8 finds no queue, and is no reason to throw.
    constexpr auto kReplace = Json::error_handler_t::replace;
    return Json::array({filter.dump(-1, ' ', false, kReplace), 1, 10}).dump();
}

namespace detail {

// Numbers come as numbers or as text, as the version of the broker has it.
inline std::uint64_t CountIn(const nlohmann::json& row, const char* field) {
    const nlohmann::json& value = row.at(field);
    return value.is_string() ? std::stoull(value.get<std::string>()) : value.get<std::uint64_t>();
}

}  // namespace detail

/// Reads the answer to listQueues: what it says of the queue of that name; nothing where there is no
/// such queue.
/// @throws std::invalid_argument where it is no such answer.
inline std::optional<QueueState> ReadQueueList(std::string_view body, std::string_view queue) {
    using Json = nlohmann::json;
    try {
        const Json list = Json::parse(Json::parse(body).at(0).get<std::string>());
        for (const Json& row : list.at("data")) {
            if (row.value("name", "") != queue) continue;
            return QueueState{detail::CountIn(row, "messageCount"),
                              detail::CountIn(row, "consumerCount")};
        }
        return std::nullopt;
    } catch (const Json::exception& error) {
        throw std::invalid_argument(std::string{"not an answer of listQueues: "} + error.what());
    }
}

}  // namespace mq::activemq
