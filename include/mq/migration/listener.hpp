/// @file listener.hpp
/// One subscription of business code, on whichever sides its topic listens to at the moment: a consumer
/// for each side, and one dispatcher behind them.
#pragma once

#include <mq/backend.hpp>
#include <mq/detail/signal.hpp>
#include <mq/migration/sender.hpp>
#include <mq/policy.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dispatcher.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace mq::migration {

using backend::Clock;

/// Thread-safe. The topic that owns it attaches and detaches sides; anybody may close it.
class Listener : public std::enable_shared_from_this<Listener> {
public:
    /// `wake` is raised when a consumer's state changes and when a held message arrives; `producers` is
    /// told of every arrival. Both outlive every consumer.
    Listener(std::string group, std::size_t prefetch, std::shared_ptr<runtime::Dispatcher> dispatcher,
             detail::Wake& wake, SeenProducers& producers)
        : group_(std::move(group)),
          prefetch_(prefetch),
          dispatcher_(std::move(dispatcher)),
          wake_(wake),
          producers_(producers) {}

    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

    [[nodiscard]] const std::string& group() const noexcept { return group_; }

    /// Whether it does not know yet which side's messages are the older ones, and holds those of both.
    /// For the topic alone, under its lock.
    [[nodiscard]] bool settling() const noexcept { return settling_; }
    void SetSettling(bool settling) noexcept { settling_ = settling; }
    [[nodiscard]] runtime::Dispatcher& dispatcher() const noexcept { return *dispatcher_; }

    /// Begins to take messages from a side; nothing where it does so already, or is closed.
    /// Never blocks on the broker.
    /// @throws Error where the adapter cannot subscribe there at all.
    void Attach(Side side, runtime::BrokerLink& link,
                std::shared_ptr<const backend::Destination> destination) {
        if (closed()) return;
        const std::lock_guard lock{mutex_};
        std::unique_ptr<backend::Consumer>& consumer = At(side);
        if (closed() || consumer != nullptr) return;
        consumer = link.Get().Subscribe(
            {.destination = std::move(destination), .group = group_, .prefetch = prefetch_},
            std::make_shared<SideReceiver>(dispatcher_, side, wake_, producers_));
    }

    /// Takes nothing more from a side; what has arrived is still handled.
    void StopTaking(Side side) noexcept {
        const std::lock_guard lock{mutex_};
        if (At(side) != nullptr) At(side)->Stop();
    }

    /// Leaves a side: what is not settled goes back to the broker. Blocks until the deadline at most.
    void Detach(Side side, Clock::time_point deadline) noexcept {
        std::unique_ptr<backend::Consumer> consumer;
        {
            const std::lock_guard lock{mutex_};
            consumer = std::move(At(side));
        }
        if (consumer == nullptr) return;
        consumer->Stop();
        dispatcher_->DropSide(side);
        consumer->Close(deadline);
    }

    /// How the subscription stands on a side; nothing where it is not attached there.
    [[nodiscard]] std::optional<backend::ConsumerState> State(Side side) const {
        const std::lock_guard lock{mutex_};
        if (At(side) == nullptr) return std::nullopt;
        return At(side)->State();
    }

    /// Ends the subscription: takes nothing more, waits for the handlers that run, leaves the rest to
    /// the broker. Called by a handler of this very subscription it returns at once, and the end comes
    /// when that handler has returned. Idempotent.
    void Close(Clock::time_point deadline) noexcept {
        {
            const std::lock_guard lock{mutex_};
            if (closed_.exchange(true)) return;
            for (const auto& consumer : consumers_) {
                if (consumer != nullptr) consumer->Stop();
            }
        }
        // The wake belongs to the client, which is there until it has closed every subscription.
        wake_.Raise();
        dispatcher_->Stop();
        if (dispatcher_->OnOwnThread()) {
            dispatcher_->WhenQuiet(
                [self = shared_from_this()] { self->DetachAll(Clock::now() + kSelfClose); });
            return;
        }
        dispatcher_->WaitHandlers(deadline);
        DetachAll(deadline);
    }

    [[nodiscard]] bool closed() const noexcept { return closed_.load(); }

private:
    class SideReceiver final : public backend::Receiver {
    public:
        SideReceiver(std::shared_ptr<runtime::Dispatcher> dispatcher, Side side, detail::Wake& wake,
                     SeenProducers& producers)
            : dispatcher_(std::move(dispatcher)), side_(side), wake_(wake), producers_(producers) {}

        void OnDelivery(std::unique_ptr<backend::Inbound> inbound) noexcept override {
            if (!inbound->sender.empty()) producers_.Note(side_, inbound->sender);
            if (dispatcher_->Offer(side_, std::move(inbound))) wake_.Raise();
        }
        void OnStale() noexcept override { dispatcher_->DropStale(); }
        void OnStateChange() noexcept override { wake_.Raise(); }

    private:
        const std::shared_ptr<runtime::Dispatcher> dispatcher_;
        const Side side_;
        detail::Wake& wake_;
        SeenProducers& producers_;
    };

    // What a subscription may take to leave its brokers when it was closed by its own handler.
    static constexpr std::chrono::seconds kSelfClose{5};

    void DetachAll(Clock::time_point deadline) noexcept {
        for (const Side side : {Side::kOld, Side::kNew}) Detach(side, deadline);
    }

    [[nodiscard]] std::unique_ptr<backend::Consumer>& At(Side side) noexcept {
        return consumers_[static_cast<std::size_t>(side)];
    }
    [[nodiscard]] const std::unique_ptr<backend::Consumer>& At(Side side) const noexcept {
        return consumers_[static_cast<std::size_t>(side)];
    }

    const std::string group_;
    const std::size_t prefetch_;
    const std::shared_ptr<runtime::Dispatcher> dispatcher_;
    detail::Wake& wake_;
    SeenProducers& producers_;
    bool settling_ = false;

    // Serialises attaching and detaching. Receivers never take it, so that a consumer may be stopped
    // under it while its adapter delivers.
    mutable std::mutex mutex_;         // guards consumers_
    std::atomic<bool> closed_{false};  // set under mutex_
    std::array<std::unique_ptr<backend::Consumer>, 2> consumers_;
};

}  // namespace mq::migration
