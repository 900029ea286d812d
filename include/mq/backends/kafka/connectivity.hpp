/// @file connectivity.hpp
/// Which brokers of a cluster one client handle is connected to, and what the last failure was. Fed by
/// the client library's threads. Knows nothing of the library.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>

namespace mq::kafka {

/// The connections of one handle. Thread-safe.
class Connectivity {
public:
    using Clock = std::chrono::steady_clock;

    /// The name under which librdkafka keeps the connection to a group's coordinator, besides the one
    /// to the same broker.
    static constexpr std::string_view kCoordinator = "GroupCoordinator";

    /// What went wrong last.
    struct Failure {
        int code = 0;  ///< An rd_kafka_resp_err_t; 0 for none.
        std::string text = {};
    };

    /// `changed` is called when the first broker comes up or the last one goes down, with no lock
    /// held that it could need; it must be quick.
    explicit Connectivity(std::function<void()> changed = {}) : changed_(std::move(changed)) {}

    /// A connection is in a new state, in librdkafka's words.
    void OnState(std::string_view host, std::int32_t port, std::string_view state) {
        bool turned = false;
        {
            const std::lock_guard lock{mutex_};
            const bool was_up = AnyUpLocked();
            std::pair<std::string, std::int32_t> broker{host, port};
            if (state == "UP" || state == "UPDATE") {
                up_.insert(std::move(broker));
            } else {
                up_.erase(broker);
                if (state == "DOWN") down_seen_ = true;
            }
            turned = was_up != AnyUpLocked();
            arrived_.notify_all();
        }
        if (turned && changed_) changed_();
    }

    void OnFailure(int code, std::string text) {
        const std::lock_guard lock{mutex_};
        failure_ = {code, std::move(text)};
    }

    /// Whether any broker is connected.
    [[nodiscard]] bool AnyUp() const {
        const std::lock_guard lock{mutex_};
        return AnyUpLocked();
    }

    /// Whether the coordinator of the handle's group is connected.
    [[nodiscard]] bool CoordinatorUp() const {
        const std::lock_guard lock{mutex_};
        return std::any_of(up_.begin(), up_.end(),
                           [](const auto& broker) { return broker.first == kCoordinator; });
    }

    /// Waits for the outcome of the first attempt: until a broker is up, or has been tried in vain, or
    /// the deadline. Returns at once where either has happened ever. Whether one is up.
    bool WaitFirst(Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        arrived_.wait_until(lock, deadline, [&] { return AnyUpLocked() || down_seen_; });
        return AnyUpLocked();
    }

    [[nodiscard]] Failure LastFailure() const {
        const std::lock_guard lock{mutex_};
        return failure_;
    }

private:
    [[nodiscard]] bool AnyUpLocked() const { return !up_.empty(); }

    const std::function<void()> changed_;

    mutable std::mutex mutex_ = {};  // guards everything below
    std::condition_variable arrived_ = {};
    std::set<std::pair<std::string, std::int32_t>> up_ = {};
    bool down_seen_ = false;
    Failure failure_ = {};
};

}  // namespace mq::kafka
