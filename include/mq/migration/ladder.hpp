/// @file ladder.hpp
/// The ladder of a migration as pure values: what a client at a rung publishes and subscribes to, which
/// rung comes next on the way to another, and what a step between two rungs changes.
#pragma once

#include <mq/policy.hpp>

#include <optional>

namespace mq::migration {

/// The side that a client at this rung publishes to.
constexpr Side PublishSide(Policy rung) noexcept {
    return rung == Policy::kOld || rung == Policy::kDualSubscribe ? Side::kOld : Side::kNew;
}

/// Whether a client at this rung subscribes to the side.
constexpr bool Subscribes(Policy rung, Side side) noexcept {
    return rung != (side == Side::kOld ? Policy::kNew : Policy::kOld);
}

/// The rung after `rung` on the way to `target`; `rung` itself where it is reached.
constexpr Policy NextRung(Policy rung, Policy target) noexcept {
    const auto number = static_cast<int>(rung);
    const auto goal = static_cast<int>(target);
    return static_cast<Policy>(number + (goal > number) - (goal < number));
}

/// What changes between two neighbouring rungs: exactly one of the three.
struct Step {
    std::optional<Side> subscribe = {};  ///< Begin to take messages from this side.
    std::optional<Side> publish = {};    ///< Move publishing to this side.
    std::optional<Side> leave = {};      ///< Stop taking messages from this side.

    friend bool operator==(const Step&, const Step&) = default;
};

/// The step between neighbours; nothing changes from a rung to itself.
constexpr Step StepBetween(Policy from, Policy to) noexcept {
    Step step;
    for (const Side side : {Side::kOld, Side::kNew}) {
        if (!Subscribes(from, side) && Subscribes(to, side)) step.subscribe = side;
        if (Subscribes(from, side) && !Subscribes(to, side)) step.leave = side;
    }
    if (PublishSide(from) != PublishSide(to)) step.publish = PublishSide(to);
    return step;
}

}  // namespace mq::migration
