/// @file status.hpp
/// Where a client is with a topic, for operators and for tests that wait for a rung.
#pragma once

#include <mq/policy.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mq {

/// A producer, as its messages show it. Programs that do not use this library are not among them.
struct ProducerStatus {
    std::string client = {};      ///< Names the client; the same in the broker's own tools.
    Policy stage = Policy::kOld;  ///< The rung from which it sent the last message that was seen.
    std::uint64_t moves = 0;      ///< Rises whenever its publishing goes to the other side.
    std::chrono::system_clock::time_point last_seen = {};  ///< When that message arrived.

    friend bool operator==(const ProducerStatus&, const ProducerStatus&) = default;
};

/// What this client has done with a topic on one side, counted since the client was made.
struct SideStatus {
    std::string broker = {};  ///< The broker's name in the config; empty where there is no such side.
    bool publishing = false;  ///< Sends go to this side.
    bool subscribed = false;  ///< Subscriptions of this client take from this side.
    std::uint64_t published = 0;  ///< Messages handed to the broker's client.
    std::uint64_t confirmed = 0;  ///< Messages that the broker has confirmed.
    std::uint64_t failed = 0;     ///< Sends that ended with an error.
    std::uint64_t in_flight = 0;  ///< Sends that have not ended.
    std::uint64_t received = 0;   ///< Messages that arrived, redelivered ones included.
    std::uint64_t processed = 0;  ///< Messages that were settled.
    /// Of these: settled without a handler, because the group had handled the message before.
    std::uint64_t duplicates = 0;
    std::uint64_t unsettled = 0;  ///< Messages that arrived and are not settled.
    std::uint64_t held = 0;       ///< Messages that wait for what was sent to the other side.
    std::optional<std::uint64_t> backlog =
        {};  ///< What the last drain check found left, if there was one.
    /// Whose messages have arrived from this side in the last ten minutes, by client: who is late with
    /// a step shows here by its stage. The 1,000 seen last at most.
    std::vector<ProducerStatus> producers = {};

    friend bool operator==(const SideStatus&, const SideStatus&) = default;
};

/// A topic, as one client sees it. A snapshot: it does not change.
struct TopicStatus {
    std::string topic = {};
    Policy policy = Policy::kOld;  ///< What the config, or SetPolicy, asks for.
    Policy stage = Policy::kOld;   ///< Where this client is.
    std::string waiting_for = {};  ///< What the next rung waits for, as a sentence; empty for nothing.
    bool failover = false;         ///< A send that does not reach its side would go to the other one.
    SideStatus old_side = {};
    SideStatus new_side = {};
};

}  // namespace mq
