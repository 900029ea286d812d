/// @file direction.hpp
/// Up or down the ladder: what holds on the way to the new broker holds on the way back, with the sides
/// exchanged, and is tested for both.
#pragma once

#include "fleet.hpp"

#include <string>

namespace mq::test {

/// A walk from one end of the ladder to the other. `near` is the side that it leaves, `far` the one
/// that it goes to.
class Direction {
public:
    explicit Direction(bool up) : up_(up) {}

    [[nodiscard]] std::string name() const { return up_ ? "up" : "down"; }

    [[nodiscard]] Policy start() const { return up_ ? Policy::kOld : Policy::kNew; }
    /// Listens to both sides, publishes to the near one.
    [[nodiscard]] Policy both() const { return up_ ? Policy::kDualSubscribe : Policy::kNewPublish; }
    /// Listens to both sides, publishes to the far one.
    [[nodiscard]] Policy moved() const { return up_ ? Policy::kNewPublish : Policy::kDualSubscribe; }
    [[nodiscard]] Policy end() const { return up_ ? Policy::kNew : Policy::kOld; }

    /// The brokers' names in the config.
    [[nodiscard]] std::string near() const { return up_ ? "legacy" : "next"; }
    [[nodiscard]] std::string far() const { return up_ ? "next" : "legacy"; }

    [[nodiscard]] Side near_side() const { return up_ ? Side::kOld : Side::kNew; }
    [[nodiscard]] Side far_side() const { return up_ ? Side::kNew : Side::kOld; }

    /// Where they are brokers in memory.
    [[nodiscard]] memory::Broker& Near(const Scene& scene) const {
        return up_ ? scene.OldBroker() : scene.NewBroker();
    }
    [[nodiscard]] memory::Broker& Far(const Scene& scene) const {
        return up_ ? scene.NewBroker() : scene.OldBroker();
    }

    [[nodiscard]] SideStatus NearSide(const Service& service) const {
        const TopicStatus status = service.Status();
        return up_ ? status.old_side : status.new_side;
    }
    [[nodiscard]] SideStatus FarSide(const Service& service) const {
        const TopicStatus status = service.Status();
        return up_ ? status.new_side : status.old_side;
    }

private:
    bool up_;
};

}  // namespace mq::test
