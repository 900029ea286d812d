/// @file brokers.hpp
/// The brokers that the migration tests move topics between: in memory, and the real ones that the test
/// command has started.
#pragma once

#include "../support/broker_process.hpp"
#include "../support/wait.hpp"

#include <fstream>
#include <optional>
#include <string>
#include <string_view>

namespace mq::test {

enum class BrokerKind { kMemory, kRabbitmq, kKafka, kActivemq, kArtemis };

constexpr std::string_view ToString(BrokerKind kind) {
    switch (kind) {
        case BrokerKind::kMemory: return "memory";
        case BrokerKind::kRabbitmq: return "rabbitmq";
        case BrokerKind::kKafka: return "kafka";
        case BrokerKind::kActivemq: return "activemq";
        case BrokerKind::kArtemis: return "artemis";
    }
    return "unknown";
}

/// From where to where a topic moves.
struct Pair {
    BrokerKind from;
    BrokerKind to;
};

inline std::string NameOf(Pair pair) {
    return std::string{ToString(pair.from)} + " to " + std::string{ToString(pair.to)};
}

/// Tags of Catch2, by which the test command leaves out what cannot be had.
inline std::string TagsOf(Pair pair) {
    std::string tags;
    for (const BrokerKind kind :
         {BrokerKind::kRabbitmq, BrokerKind::kKafka, BrokerKind::kActivemq, BrokerKind::kArtemis}) {
        if (pair.from == kind || pair.to == kind) tags += "[" + std::string{ToString(kind)} + "]";
    }
    return tags;
}

/// The folder of a broker that the test command has started; nothing where there is none.
inline std::optional<std::string> FolderOf(BrokerKind kind, bool for_restarts = false) {
    if (kind == BrokerKind::kMemory) return std::nullopt;
    std::string variable = for_restarts ? "MQ_TEST_RESTART_" : "MQ_TEST_";
    for (const char c : ToString(kind)) variable += static_cast<char>(c - 'a' + 'A');
    return FromEnvironment((variable + "_DIR").c_str());
}

/// A broker of that kind: a new one in memory, or the real one. Nothing where there is none.
inline std::optional<std::string> UrlOf(BrokerKind kind) {
    if (kind == BrokerKind::kMemory) return "memory://" + UniqueId("broker");
    const auto folder = FolderOf(kind);
    if (!folder) return std::nullopt;
    std::string url;
    std::ifstream file{*folder + "/url"};
    if (!std::getline(file, url)) return std::nullopt;
    return url;
}

}  // namespace mq::test
