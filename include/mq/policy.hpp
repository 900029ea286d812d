/// @file policy.hpp
/// The words of a migration: which side a broker plays for a topic, and the four rungs of the ladder
/// that a topic climbs from its old broker to its new one.
#pragma once

#include <array>
#include <optional>
#include <string_view>

namespace mq {

/// The role that a broker plays for a topic.
enum class Side : unsigned char { kOld, kNew };

constexpr std::string_view ToString(Side side) noexcept { return side == Side::kOld ? "old" : "new"; }

constexpr Side Other(Side side) noexcept { return side == Side::kOld ? Side::kNew : Side::kOld; }

/// Where a topic shall be (its policy), or where a client is with it (its stage).
/// The enumerators stand in the order of the ladder: one step up or down is one rung.
enum class Policy : unsigned char {
    kOld,            ///< Publish to the old side, subscribe to the old side.
    kDualSubscribe,  ///< Publish to the old side, subscribe to both.
    kNewPublish,     ///< Publish to the new side, subscribe to both.
    kNew,            ///< Publish to the new side, subscribe to the new side.
};

/// Every policy, from the bottom of the ladder to its top.
inline constexpr std::array<Policy, 4> kPolicies{Policy::kOld, Policy::kDualSubscribe,
                                                 Policy::kNewPublish, Policy::kNew};

/// The word that the config uses: "old", "dual-subscribe", "new-publish" or "new".
constexpr std::string_view ToString(Policy policy) noexcept {
    switch (policy) {
        case Policy::kOld: return "old";
        case Policy::kDualSubscribe: return "dual-subscribe";
        case Policy::kNewPublish: return "new-publish";
        case Policy::kNew: return "new";
    }
    return "unknown";
}

/// The policy that a word of the config means; nothing where it means none.
constexpr std::optional<Policy> ParsePolicy(std::string_view word) noexcept {
    for (const Policy policy : kPolicies) {
        if (ToString(policy) == word) return policy;
    }
    return std::nullopt;
}

/// Whether a topic promises an order.
enum class Order : unsigned char {
    kNone,  ///< No order across the change of broker.
    kKey,   ///< The messages of one key from one producer are handled in send order.
};

constexpr std::string_view ToString(Order order) noexcept {
    return order == Order::kKey ? "key" : "none";
}

}  // namespace mq
