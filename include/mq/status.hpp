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

/// What kind of thing a topic waits for: the word for `TopicStatus::waiting_for`.
enum class WaitingCode : unsigned char {
    kNothing,       ///< Nothing is waited for.
    kSubscription,  ///< A broker to take a subscription.
    kListeners,     ///< A group to listen on the side that publishing is to move to.
    kConfirms,      ///< The broker to confirm what was sent there.
    kHandled,       ///< Groups to handle what was sent, before publishing goes back.
    kBacklog,       ///< A group to drain a side.
    kQuiet,         ///< No arrival on a side for the quiet period.
    kHandlers,      ///< Handlers of this client to settle what they have.
    kAnswer,        ///< A broker that does not answer, or cannot tell.
    kFence,         ///< Held messages wait for older ones on the other side.
    kStandstill,    ///< Something does not go on that should: `TopicStatus::standstills` says what.
    kProblem,       ///< Something failed, as the sentence says; it is tried again.
};

/// The enumerator's name as a word: "fence".
constexpr std::string_view ToString(WaitingCode code) noexcept {
    switch (code) {
        case WaitingCode::kNothing: return "nothing";
        case WaitingCode::kSubscription: return "subscription";
        case WaitingCode::kListeners: return "listeners";
        case WaitingCode::kConfirms: return "confirms";
        case WaitingCode::kHandled: return "handled";
        case WaitingCode::kBacklog: return "backlog";
        case WaitingCode::kQuiet: return "quiet";
        case WaitingCode::kHandlers: return "handlers";
        case WaitingCode::kAnswer: return "answer";
        case WaitingCode::kFence: return "fence";
        case WaitingCode::kStandstill: return "standstill";
        case WaitingCode::kProblem: return "problem";
    }
    return "unknown";
}

/// Something of a topic that should go on and does not, for longer than 30 seconds.
struct Standstill {
    Side side = Side::kOld;
    std::string group = {};  ///< Whose subscription or fence it is; empty for what is sent.
    std::string text = {};   ///< What stands still, and what is done about it, as a sentence.
    std::chrono::system_clock::time_point since = {};  ///< When it was noticed.

    friend bool operator==(const Standstill&, const Standstill&) = default;
};

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
    /// What is waited for, in words; empty for nothing. First what the next rung waits for, or what is
    /// the matter with a subscription; then, each behind a semicolon, every fence that holds messages:
    /// how many, of which group and side, since when, and what for.
    std::string waiting_for = {};
    /// The kind of what `waiting_for` says first; kNothing where that is empty.
    WaitingCode waiting_code = WaitingCode::kNothing;
    /// What stands still at present. Each is in the log as well, once, when it is noticed.
    std::vector<Standstill> standstills = {};
    bool failover = false;  ///< A send that does not reach its side would go to the other one.
    SideStatus old_side = {};
    SideStatus new_side = {};
};

}  // namespace mq
