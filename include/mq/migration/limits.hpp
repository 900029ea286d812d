/// @file limits.hpp
/// What the two brokers of a topic allow, compared before the first step: a message that one takes and
/// the other refuses would be found out in the middle of the walk.
#pragma once

#include <mq/backend.hpp>
#include <mq/detail/duration.hpp>
#include <mq/migration/guards.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mq::migration {

/// One of the two.
struct NamedLimits {
    std::string broker = {};
    backend::Limits limits = {};
};

/// Adds a sentence where one of the two allows less than the other.
template <typename Amount, typename InText>
void AddDifference(std::vector<std::string>& differences, const NamedLimits& from,
                   const NamedLimits& to, std::optional<Amount> backend::Limits::*limit,
                   const std::string& what, InText in_text) {
    const std::optional<Amount>& before = from.limits.*limit;
    const std::optional<Amount>& after = to.limits.*limit;
    if (before == after) return;
    const auto allows = [&](const std::optional<Amount>& amount) {
        return amount ? in_text(*amount) + " at most" : std::string{"any"};
    };
    differences.push_back(what + ": " + from.broker + " allows " + allows(before) + ", " + to.broker +
                          " " + allows(after));
}

/// The limits in which two brokers differ, as sentences for a person.
inline std::vector<std::string> Differences(const NamedLimits& from, const NamedLimits& to) {
    std::vector<std::string> differences;
    AddDifference(differences, from, to, &backend::Limits::message_bytes, "the size of a message",
                  [](std::uint64_t bytes) { return std::to_string(bytes) + " bytes"; });
    AddDifference(differences, from, to, &backend::Limits::handling_time,
                  "the time until a message is settled",
                  [](std::chrono::milliseconds time) { return InWords(time); });
    AddDifference(differences, from, to, &backend::Limits::retention,
                  "the age of a message that is kept, handled or not",
                  [](std::chrono::milliseconds time) { return detail::FormatDuration(time); });
    AddDifference(differences, from, to, &backend::Limits::retained_bytes,
                  "the size of what is kept of a partition, handled or not",
                  [](std::uint64_t bytes) { return std::to_string(bytes) + " bytes"; });
    if (from.limits.keeps_only_latest != to.limits.keeps_only_latest) {
        const std::string& strict = from.limits.keeps_only_latest ? from.broker : to.broker;
        differences.push_back("what is kept of a key: " + strict +
                              " drops a message once a later one has the same key, handled or not");
    }
    if (from.limits.settles_in_order != to.limits.settles_in_order) {
        const std::string& strict = from.limits.settles_in_order ? from.broker : to.broker;
        differences.push_back("the order of settling: on " + strict +
                              " a message that is not settled has those behind it delivered again "
                              "after a restart");
    }
    return differences;
}

}  // namespace mq::migration
