/// @file topic.hpp
/// A topic of a memory broker: its log, the groups that read it, and what is dropped when it is full.
/// A part of backends/memory.hpp.
#pragma once

#include <mq/backends/memory/group.hpp>
#include <mq/backends/memory/log.hpp>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

namespace mq::memory::detail {

/// A topic. Never destroyed, so that pointers to it stay good. The broker's mutex guards it.
struct Topic {
    explicit Topic(std::string its_address) : address(std::move(its_address)) {}

    /// Makes room by dropping messages that every group has settled; false where there are not enough.
    bool MakeRoom(std::size_t weight, const Limits& limits) {
        while (log.size() >= kSettledKept && DropSettled()) {
        }
        while (!log.Fits(weight, limits)) {
            if (!DropSettled()) return false;
        }
        return true;
    }

    /// Drops the oldest message; false where a group has not settled it, or there is no group.
    bool DropSettled() {
        const Group* const slowest = Slowest();
        if (slowest == nullptr || slowest->low() == log.begin()) return false;
        log.DropFront();
        return true;
    }

    /// The group with the oldest unsettled message; null where there is no group.
    [[nodiscard]] const Group* Slowest() const {
        const Group* slowest = nullptr;
        for (const auto& [name, group] : groups) {
            if (!group->exists) continue;
            if (slowest == nullptr || group->low() < slowest->low()) slowest = group.get();
        }
        return slowest;
    }

    /// The group of that name; null where there is none.
    [[nodiscard]] Group* FindGroup(const std::string& name) const {
        const auto found = groups.find(name);
        return found != groups.end() && found->second->exists ? found->second.get() : nullptr;
    }

    /// How many settled messages wait for groups that come later. With more than that, a long-running
    /// program would fill its memory up to the topic's bound for nobody.
    static constexpr std::size_t kSettledKept = 10'000;

    const std::string address;
    bool exists = false;
    Log log = {};
    std::map<std::string, std::unique_ptr<Group>> groups = {};
    /// The sequences of the publications that wait to be stored here.
    std::set<std::uint64_t> waiting = {};
};

}  // namespace mq::memory::detail
