/// @file walk.hpp
/// The walks of a topic between two brokers, in every way that the ladder allows. The conformance suite
/// walks between an adapter's broker and one in memory, the migration tests between all kinds.
#pragma once

#include "fleet.hpp"
#include <mq/config.hpp>
#include <mq/policy.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace mq::test {

struct Walk {
    const char* name;
    Order order;
    std::vector<Policy> rungs;  // the first one is where the fleet starts

    /// For the name of a test case.
    [[nodiscard]] std::string Title() const {
        return std::string{name} + (order == Order::kKey ? ", and no key is reordered" : "");
    }
};

inline constexpr std::size_t kWalks = 4;

/// The walks that every ordered pair of brokers is held to.
const std::array<Walk, kWalks>& Walks();

/// Walks while producers and two groups of two members keep working, and compares the books at the end.
/// Asserts by Catch2. The order of the scene is the walk's.
void RunWalk(Scene scene, const Walk& walk, Fleet::Size size);

/// Waits until everything that was confirmed is handled, and compares: nothing lost, nothing handled
/// from both sides or without having been sent, and with `ordered` no key out of order. Asserts by
/// Catch2.
void CheckBooks(Fleet& fleet, bool ordered, std::chrono::milliseconds patience = kRungPatience);

}  // namespace mq::test
