/// @file guards.hpp
/// The two questions that a rung depends on, asked of the brokers and put into a sentence: does
/// everybody listen there, and is nothing left there?
#pragma once

#include <mq/backend.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/status.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::migration {

using backend::Clock;

/// How long a guard's question to a broker may take.
inline constexpr std::chrono::seconds kGuardTimeout{2};

/// How long a broker is left in peace that has not answered a question in time. One thread asks for all
/// topics of a client, and one broker that stands still must not hold up those on others.
inline constexpr std::chrono::seconds kPeace{5};

/// Whether a guard lets a step happen, or what it waits for: in a sentence, and in a word.
struct Verdict {
    bool passed = false;
    std::string waiting_for = {};
    WaitingCode code = WaitingCode::kNothing;
    std::optional<std::uint64_t> left = {};  ///< Messages, where that is what it waits for.

    static Verdict Pass() { return {.passed = true}; }
    static Verdict Wait(WaitingCode code, std::string reason) {
        return {.waiting_for = std::move(reason), .code = code};
    }
};

/// A duration for a sentence: "30s", "1.5s", "250ms".
inline std::string InWords(std::chrono::milliseconds duration) {
    if (duration < std::chrono::seconds{1}) return std::to_string(duration.count()) + "ms";
    const auto tenths = duration.count() / 100;
    std::string text = std::to_string(tenths / 10);
    if (tenths % 10 != 0) text += "." + std::to_string(tenths % 10);
    return text + "s";
}

/// "group billing", or "any group".
inline std::string GroupInWords(const std::string& group) {
    return group.empty() ? "any group" : "group " + group;
}

/// Notes that a question was not answered in the time that there was for it.
inline void NoteUnanswered(runtime::BrokerLink& link, Clock::time_point asked_at) {
    const auto now = Clock::now();
    if (now - asked_at >= kGuardTimeout) link.SetSilent(now + kPeace);
}

/// Subscribe before publish: every group listens on the destination; with none named, somebody does.
/// Blocks for kGuardTimeout a group at most.
inline Verdict CheckEverybodyListens(runtime::BrokerLink& link, const backend::Destination& destination,
                                     std::vector<std::string> groups) {
    if (groups.empty()) groups.emplace_back();
    for (const std::string& group : groups) {
        const auto begin = Clock::now();
        if (link.IsSilent(begin)) {
            return Verdict::Wait(WaitingCode::kAnswer, link.name() + " to answer who listens there");
        }
        const backend::Listening listening =
            link.Get().CheckListening(destination, group, begin + kGuardTimeout);
        if (listening.answer == backend::Listening::Answer::kYes) continue;
        NoteUnanswered(link, begin);
        const bool no = listening.answer == backend::Listening::Answer::kNo;
        return Verdict::Wait(
            no ? WaitingCode::kListeners : WaitingCode::kAnswer,
            GroupInWords(group) + " to listen on " + link.name() + ": " + listening.reason);
    }
    return Verdict::Pass();
}

/// What the drain guard knows of one group on one side.
struct Drain {
    Verdict verdict = {};
    bool exact = false;                      ///< Passed without a doubt about other processes.
    std::optional<std::uint64_t> left = {};  ///< What the broker counted, where it could.
    bool known = true;                       ///< The group has been there before.
    bool complete = false;  ///< `left` is no less than what is left of the whole group.
    /// What was there before this moment is settled by the whole group.
    std::optional<Clock::time_point> settled_before = {};
};

/// Nothing is left for the group on the destination. Blocks for kGuardTimeout at most.
inline Drain CheckDrained(runtime::BrokerLink& link, const backend::Destination& destination,
                          const std::string& group) {
    const auto begin = Clock::now();
    if (link.IsSilent(begin)) {
        return {.verdict =
                    Verdict::Wait(WaitingCode::kAnswer,
                                  link.name() + " to answer what is left for " + GroupInWords(group))};
    }
    const backend::Backlog backlog = link.Get().CheckBacklog(destination, group, begin + kGuardTimeout);
    if (backlog.answer == backend::Backlog::Answer::kUnknown) NoteUnanswered(link, begin);
    switch (backlog.answer) {
        case backend::Backlog::Answer::kDrained:
            return {.verdict = Verdict::Pass(),
                    .exact = backlog.exact,
                    .left = 0,
                    .settled_before = backlog.exact ? begin : backlog.settled_before};
        case backend::Backlog::Answer::kNotDrained: {
            Verdict left = Verdict::Wait(WaitingCode::kBacklog,
                                         GroupInWords(group) + " to drain " + link.name() + ": " +
                                             std::to_string(backlog.messages) + " messages left");
            left.left = backlog.messages;
            return {.verdict = std::move(left),
                    .left = backlog.messages,
                    .known = backlog.known,
                    .complete = backlog.complete,
                    .settled_before = backlog.settled_before};
        }
        case backend::Backlog::Answer::kUnknown: break;
    }
    return {
        .verdict = Verdict::Wait(WaitingCode::kAnswer, link.name() + " to say what is left for " +
                                                           GroupInWords(group) + ": " + backlog.reason),
        .settled_before = backlog.settled_before};
}

}  // namespace mq::migration
