/// @file reload_check.hpp
/// What a reload changes, and whether the file that it came from may be one that is still being
/// written: a file that is cut short is often a valid one, which asks for more than its writer has
/// meant. Pure functions of two configs.
#pragma once

#include <mq/config.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/detail/duration.hpp>
#include <mq/policy.hpp>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace mq::detail {

/// Whether an edit of a topic lets it move with less proof than before, or moves it with the least that
/// there is: with no group named, anybody who listens will do.
inline bool Widens(const TopicConfig& before, const TopicConfig& after) {
    const auto names = [&](const std::string& group) {
        return std::find(after.groups.begin(), after.groups.end(), group) != after.groups.end();
    };
    if (!std::all_of(before.groups.begin(), before.groups.end(), names)) return true;
    if (before.guard && !after.guard) return true;
    if (after.quiet < before.quiet || (before.order == Order::kKey && after.order != Order::kKey))
        return true;
    if (after.dedup < before.dedup || after.dedup_max < before.dedup_max) return true;
    if (before.broker != after.broker) return true;
    // Listening to a second side takes nothing from anybody.
    const bool moves = before.policy != after.policy &&
                       !(before.policy == Policy::kOld && after.policy == Policy::kDualSubscribe);
    return moves && after.groups.empty();
}

/// Whether an edit of a config widens what the guard of some topic allows, or takes a topic away.
inline bool Widens(const Config& before, const Config& after) {
    for (const auto& [name, topic] : before.topics) {
        const auto found = after.topics.find(name);
        if (found == after.topics.end() || Widens(topic, found->second)) return true;
    }
    return std::any_of(after.topics.begin(), after.topics.end(), [&](const auto& entry) {
        return !before.topics.contains(entry.first) && Widens(TopicConfig{}, entry.second);
    });
}

/// Keys of a topic that its guards or its promises rest on, and that an edit leaves out without a word,
/// though they were there before. A file that is cut behind its policy looks like that; so it counts
/// only for a config that came from a file. Asked where the edit moves the topic.
inline void FindLeftOut(const std::string& path, const TopicConfig& before, const TopicConfig& after,
                        const Config& config, std::vector<ConfigProblem>& problems) {
    if (config.origins.empty()) return;
    const auto check = [&](std::string_view key, bool was_there, std::string_view instead) {
        const std::string full = path + "." + std::string{key};
        if (!was_there || config.origins.contains(full)) return;
        problems.push_back(
            {.key = full,
             .text = "was there before and is left out by an edit that moves the topic, as in a file "
                     "that is cut short; keep it until the topic has arrived" +
                     std::string{instead}});
    };
    const TopicConfig untouched;
    const bool migrates = after.broker.empty();
    check("policy", migrates && before.broker.empty() && before.policy != Policy::kOld,
          ", or write policy = \"old\"");
    check("groups", !before.groups.empty(), ", or write groups = [] to wait for nobody in particular");
    check("quiet", before.quiet > untouched.quiet,
          ", or write quiet = \"" + FormatDuration(untouched.quiet) + "\"");
    check("order", before.order != untouched.order, ", or write order = \"none\"");
    check("dedup", before.dedup > untouched.dedup, "");
}

/// What an edit of a topic changes, in a few words; empty for nothing that an operator looks for.
inline std::string DescribeChange(const TopicConfig& before, const TopicConfig& after) {
    std::string text;
    const auto say = [&text](const std::string& words) { text += (text.empty() ? "" : ", ") + words; };
    if (before.broker != after.broker) {
        say(after.broker.empty() ? "migrates from " + after.old_broker + " to " + after.new_broker
                                 : "rests on " + after.broker);
    }
    if (before.policy != after.policy && after.broker.empty()) {
        say("policy " + std::string{ToString(before.policy)} + " -> " +
            std::string{ToString(after.policy)});
    }
    if (before.groups != after.groups) {
        say("groups = [");
        for (const std::string& group : after.groups) {
            text += (&group == &after.groups.front() ? "" : ", ") + group;
        }
        text += "]";
    }
    if (before.guard != after.guard) say(after.guard ? "guard on" : "guard off");
    if (before.quiet != after.quiet) say("quiet " + FormatDuration(after.quiet));
    if (before.order != after.order) say(after.order == Order::kKey ? "order key" : "order none");
    if (before.dedup != after.dedup) say("dedup " + FormatDuration(after.dedup));
    if (before.dedup_max != after.dedup_max) say("dedup_max " + std::to_string(after.dedup_max));
    if (before.failover != after.failover) say(after.failover ? "failover on" : "failover off");
    return text;
}

/// What the text of an edit is that changes nothing.
inline constexpr std::string_view kNoChange = "nothing";

/// What an edit changes, in one line; kNoChange where that is so.
inline std::string DescribeChange(const Config& before, const Config& after) {
    constexpr std::size_t kMost = 20;  // parts; a file may name thousands of topics
    std::vector<std::string> parts;
    for (const auto& [name, topic] : after.topics) {
        const auto known = before.topics.find(name);
        if (known == before.topics.end()) {
            parts.push_back("topic " + name + ": new");
        } else if (std::string change = DescribeChange(known->second, topic); !change.empty()) {
            parts.push_back(("topic " + name + ": ").append(change));
        }
    }
    for (const auto& [name, topic] : before.topics) {
        if (!after.topics.contains(name)) parts.push_back("topic " + name + ": gone");
    }
    for (const auto& [name, broker] : after.brokers) {
        if (!before.brokers.contains(name)) parts.push_back("broker " + name + ": new");
    }
    if (parts.empty()) return std::string{kNoChange};
    std::string text;
    for (std::size_t i = 0; i < std::min(parts.size(), kMost); ++i) {
        text += (i == 0 ? "" : "; ") + parts[i];
    }
    if (parts.size() > kMost) text += "; and " + std::to_string(parts.size() - kMost) + " more";
    return OneLine(std::move(text));
}

}  // namespace mq::detail
