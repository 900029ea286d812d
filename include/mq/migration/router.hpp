/// @file router.hpp
/// The send path of a topic: every send reads one immutable route. Changing the route takes no lock
/// that a sender takes, and whoever changes it can tell when the last send of the route before has
/// ended.
#pragma once

#include <mq/policy.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dispatcher.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace mq::migration {

using backend::Clock;

/// Thread-safe.
class Router final : public runtime::Failover {
public:
    Router(std::string topic, const runtime::Shared& shared)
        : topic_(std::move(topic)), shared_(shared) {}

    /// Sends go there from now on, with `sender` beside each message; those that certainly do not reach
    /// it go to `other`, where there is one. The outlets live as long as the router.
    void PointTo(runtime::Outlet& outlet, runtime::Outlet* other, std::string sender) {
        {
            const std::lock_guard lock{mutex_};
            if (route_.load() == &shut_) return;
            route_.store(&Kept({.outlet = &outlet, .other = other, .sender = std::move(sender)}));
        }
        changed_.notify_all();
    }

    /// Sends wait from now on, until their deadlines, for an outlet to be pointed to. With `pass`,
    /// those of handlers and send callbacks go there meanwhile, with `sender` beside each: the move may
    /// wait for the very handler that sends.
    void Hold(runtime::Outlet* pass = nullptr, std::string sender = {}) {
        if (pass == nullptr) return Change(&held_);
        {
            const std::lock_guard lock{mutex_};
            if (route_.load() == &shut_) return;
            route_.store(&Kept({.pass = pass, .sender = std::move(sender)}));
        }
        changed_.notify_all();
    }

    /// Sends fail from now on.
    void Shut() { Change(&shut_); }

    /// Sends a message to where the route points. The sending's end is reported whatever happens.
    /// Blocks while the route is held or the broker's window is full, until the deadline at most.
    void Send(std::unique_ptr<runtime::Sending> sending) noexcept {
        sending->last_deadline = sending->deadline;
        while (true) {
            const Route* const route = route_.load();
            runtime::Outlet* outlet = route->outlet;
            if (outlet == nullptr && route->pass != nullptr && MayPass()) outlet = route->pass;
            if (outlet == nullptr) {
                if (AwaitChange(route, sending->deadline)) continue;
                return EndUnsent(shared_, std::move(sending), NoRoute(route));
            }
            if (route->other != nullptr) outlet = &ChooseWay(*route, *sending);
            const std::size_t weight = Weight(sending->message);
            if (!Reserve(outlet->link().window(), weight, sending->deadline)) {
                // It is not published: another broker's window may have room.
                if (route->other != nullptr && !outlet->IsSuspect(Clock::now())) {
                    outlet->SetSuspect(Clock::now() + kSuspicion);
                    continue;
                }
                return EndUnsent(shared_, std::move(sending), NoRoom(*outlet));
            }
            if (Enter(*outlet, route, *sending, weight)) return outlet->Publish(std::move(sending));
        }
    }

    /// How many routes it keeps.
    [[nodiscard]] std::size_t kept() const {
        const std::lock_guard lock{mutex_};
        return routes_.size();
    }

    bool TakeOver(std::unique_ptr<runtime::Sending>& sending) noexcept override {
        const auto now = Clock::now();
        sending->outlet->SetSuspect(now + kSuspicion);
        const Route* const route = route_.load();
        if (route->outlet == nullptr || now >= sending->last_deadline) return false;
        // Where there is no other way by now, it goes on trying the one that there is.
        const bool cross = route->other != nullptr && sending->outlet == route->outlet;
        runtime::Outlet& outlet = cross ? *route->other : *route->outlet;
        const std::size_t weight = Weight(sending->message);
        if (!Reserve(outlet.link().window(), weight, sending->last_deadline)) return false;
        if (!Enter(outlet, route, *sending, weight)) return false;
        sending->deadline = sending->last_deadline;
        sending->failover = nullptr;  // there are two ways, and no third
        sending->error.reset();
        outlet.Publish(std::move(sending));
        return true;
    }

private:
    struct Route {
        runtime::Outlet* outlet = nullptr;  // null: wait, or fail where the router is shut
        runtime::Outlet* other = nullptr;   // for what certainly did not reach `outlet`; null for none
        runtime::Outlet* pass = nullptr;    // where `outlet` is null: for those that must not wait
        std::string sender = {};

        friend bool operator==(const Route&, const Route&) = default;
    };

    // How long a send tries one broker before it goes to the other, at the most.
    static constexpr std::chrono::seconds kOneWay{2};
    // How long sends go straight to the other broker once one has failed over.
    static constexpr std::chrono::seconds kSuspicion{5};

    // The route among those that are kept: an equal one may have been in use before, and comes back
    // each time that failover does. Call with mutex_ held.
    const Route& Kept(Route route) {
        const auto known = std::find(routes_.begin(), routes_.end(), route);
        return known != routes_.end() ? *known : routes_.emplace_back(std::move(route));
    }

    // Counts a send in. False, with nothing done, where the route is another one by now.
    bool Enter(runtime::Outlet& outlet, const Route* route, runtime::Sending& sending,
               std::size_t weight) noexcept {
        outlet.Enter();
        if (route_.load() != route) {
            outlet.Leave();
            outlet.link().window().Release(weight);
            return false;
        }
        sending.weight = weight;
        sending.sender = route->sender;
        return true;
    }

    // The broker to try first, and for how long.
    runtime::Outlet& ChooseWay(const Route& route, runtime::Sending& sending) noexcept {
        const auto now = Clock::now();
        const bool first = !route.outlet->IsSuspect(now);
        const bool second = !route.other->IsSuspect(now);
        sending.failover = this;
        sending.deadline = sending.last_deadline;
        if (first || second) {
            const auto half = (sending.last_deadline - now) / 2;
            sending.deadline = now + std::min<Clock::duration>(kOneWay, half);
        }
        return first || !second ? *route.outlet : *route.other;
    }

    void Change(const Route* route) {
        {
            const std::lock_guard lock{mutex_};
            if (route_.load() != &shut_) route_.store(route);
        }
        changed_.notify_all();
    }

    bool AwaitChange(const Route* route, Clock::time_point deadline) noexcept {
        if (route == &shut_) return false;
        std::unique_lock lock{mutex_};
        return changed_.wait_until(lock, deadline, [&] { return route_.load() != route; });
    }

    // A move that waits for a handler must not have it wait for the move, whichever client of the
    // process it belongs to; nor may the thread that tells of ends.
    [[nodiscard]] bool MayPass() const noexcept {
        return runtime::Dispatcher::OnHandlerThread() || shared_.callbacks->OnOwnThread();
    }

    // The client's callback thread must not wait for room that only its own work can make.
    bool Reserve(runtime::Window& window, std::size_t weight, Clock::time_point deadline) const {
        if (shared_.callbacks->OnOwnThread()) return window.ReserveNow(weight);
        return window.Reserve(weight, deadline);
    }

    [[nodiscard]] Error NoRoute(const Route* route) const {
        if (route == &shut_)
            return Error{ErrorCode::kClosed, "topic " + topic_ + ": the client is closed"};
        return Error{ErrorCode::kTimeout, "topic " + topic_ +
                                              ": the deadline passed while publishing moved to the "
                                              "other broker"};
    }

    [[nodiscard]] Error NoRoom(const runtime::Outlet& outlet) const {
        const std::string where = "topic " + topic_ + ": " + outlet.link().name() +
                                  " has not confirmed " +
                                  std::to_string(shared_.config.max_in_flight_bytes) +
                                  " bytes of earlier messages (client.max_in_flight_bytes)";
        if (shared_.callbacks->OnOwnThread()) return Error{ErrorCode::kOverflow, where};
        return Error{ErrorCode::kTimeout, where + " before the deadline"};
    }

    const std::string topic_;
    const runtime::Shared& shared_;
    // Every route there ever was, for as long as the router lives: a sender may still read one, and a
    // publication point to its text. One for each step of a walk, and one more for its failover.
    std::deque<Route> routes_;
    const Route held_{};
    const Route shut_{};
    std::atomic<const Route*> route_{&held_};
    // Guards routes_, and orders changes of route_ with those who wait for one; senders do not take it.
    mutable std::mutex mutex_;
    std::condition_variable changed_;
};

}  // namespace mq::migration
