/// @file subscription.hpp
/// What RecvMsg returns: as long as it lives, its handler gets the messages of a topic.
#pragma once

#include <mq/detail/deadline.hpp>
#include <mq/detail/process.hpp>
#include <mq/migration/listener.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

namespace mq {

/// How a subscription takes its messages.
struct RecvOptions {
    /// The consumer group; the config's default where empty. Each group gets every message; the
    /// subscriptions of one group, in whatever process, share them.
    std::string group = {};
    /// How many handlers may run at once, at least 1. The handler must then be thread-safe.
    std::size_t concurrency = 1;
    /// How many messages to hold unsettled, for each side; the config's default where 0.
    std::size_t prefetch = 0;
};

/// A subscription. Move-only. One thread at a time uses it; it may be closed by its own handler, and it
/// may outlive the client, which closes it. A subscription that is dropped ends at once: keep it.
class Subscription {
public:
    /// How long the destructor waits for handlers that run.
    static constexpr std::chrono::seconds kDefaultTimeout{30};

    /// Subscribed to nothing.
    Subscription() = default;

    /// Made by the library.
    explicit Subscription(std::shared_ptr<migration::Listener> listener)
        : listener_(std::move(listener)) {}

    Subscription(Subscription&&) noexcept = default;
    Subscription& operator=(Subscription&& other) noexcept {
        if (this != &other) {
            Close();
            listener_ = std::move(other.listener_);
            process_ = other.process_;
        }
        return *this;
    }
    Subscription(const Subscription&) = delete;
    Subscription& operator=(const Subscription&) = delete;
    ~Subscription() { Close(); }

    /// Stops taking messages, waits for the handlers that run, and leaves the rest unsettled at the
    /// broker, which delivers it to the group again. Blocks until then, for `timeout` and the time a
    /// broker takes to answer at most; handlers of other subscriptions are not waited for. The handler,
    /// with what it owns, is destroyed before it returns, or when its last call has returned. Called by
    /// a handler of this subscription it does not wait for that handler. In the child of a fork it does
    /// nothing: the subscription is the parent's. Idempotent.
    void Close(std::chrono::milliseconds timeout = kDefaultTimeout) noexcept {
        auto listener = std::exchange(listener_, nullptr);
        if (listener == nullptr) return;
        if (process_.InChild()) return detail::LeaveBehind(std::move(listener));
        listener->Close(detail::DeadlineAfter(timeout));
    }

    /// Whether it was neither closed nor moved from.
    [[nodiscard]] explicit operator bool() const noexcept { return listener_ != nullptr; }

private:
    std::shared_ptr<migration::Listener> listener_;
    detail::ProcessMark process_;
};

}  // namespace mq
