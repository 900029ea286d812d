/// @file listener.hpp
/// One subscription of business code, on whichever sides its topic listens to at the moment: a consumer
/// for each side, and one dispatcher behind them.
#pragma once

#include <mq/backend.hpp>
#include <mq/detail/process.hpp>
#include <mq/detail/signal.hpp>
#include <mq/migration/sender.hpp>
#include <mq/policy.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dispatcher.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace mq::migration {

using backend::Clock;

/// Thread-safe. The topic that owns it attaches and detaches sides; anybody may close it.
class Listener : public std::enable_shared_from_this<Listener> {
public:
    /// `wake` is raised when a consumer's state changes, when a held message arrives, and when the end
    /// of the subscription begins and is over; `producers` is told of every arrival. Both are there
    /// until closed() is true, and not used after that.
    Listener(std::string group, std::size_t prefetch, std::shared_ptr<runtime::Dispatcher> dispatcher,
             detail::Wake& wake, SeenProducers& producers)
        : group_(std::move(group)),
          prefetch_(prefetch),
          dispatcher_(std::move(dispatcher)),
          wake_(wake),
          producers_(producers) {
        dispatcher_->SetWake(&wake_);
    }

    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

    [[nodiscard]] const std::string& group() const noexcept { return group_; }

    /// The fence on a side, behind which its messages are held: from the first one of a producer that
    /// has come over from the other side, where what it sent before may not be handled yet. How many
    /// producers have been seen to come over, ever; nothing where no fence is up.
    [[nodiscard]] std::optional<std::uint64_t> FenceOn(Side side) const {
        const std::lock_guard lock{fence_mutex_};
        const Fence& fence = fences_[static_cast<std::size_t>(side)];
        if (!fence.up) return std::nullopt;
        return fence.noticed;
    }

    /// Takes the fence on a side down, and lets go of what it holds. False, with nothing done, where
    /// another producer has come over since `noticed` were.
    bool Open(Side side, std::uint64_t noticed) {
        const std::lock_guard lock{fence_mutex_};
        Fence& fence = fences_[static_cast<std::size_t>(side)];
        if (fence.noticed != noticed) return false;
        TakeDown(side, fence);
        return true;
    }

    /// Takes the fence on a side down but for the keys of `behind`, and lets go of what it holds of
    /// others. Where another producer has come over since `noticed` were, the fence stays, and only
    /// what had arrived at the mark goes: false then.
    bool Narrow(Side side, std::uint64_t noticed, std::uint64_t mark, std::set<std::string> behind) {
        const std::lock_guard lock{fence_mutex_};
        if (!fencing_) return false;
        dispatcher_->HoldKeys(side, std::move(behind), mark);
        Fence& fence = fences_[static_cast<std::size_t>(side)];
        if (fence.noticed != noticed) return false;
        TakeDown(side, fence);
        return true;
    }

    /// Of the keys that Narrow has left behind, holds these from now on, and lets go of the others: of
    /// what had arrived at the mark where a fence is up, and of all where none is.
    void Keep(Side side, std::uint64_t mark, std::set<std::string> behind) {
        const std::lock_guard lock{fence_mutex_};
        if (fencing_) dispatcher_->HoldKeys(side, std::move(behind), mark);
    }

    /// Raises the fence on a side, which holds what arrives from now on, as if another producer had
    /// come over.
    void Raise(Side side) {
        const std::lock_guard lock{fence_mutex_};
        if (fencing_) PutUp(side);
    }

    /// Whether fences are raised: where there is an order to keep, and another side. `vouched` says
    /// that producers which go back ask whether this group has handled what they sent; where they do
    /// not, it cannot count on that.
    void SetFencing(bool fencing, bool vouched = true) {
        const std::lock_guard lock{fence_mutex_};
        vouched_ = vouched;
        if (fencing_.exchange(fencing) == fencing) return;
        dispatcher_->SetTracking(fencing);
        if (fencing) return;
        for (const Side side : {Side::kOld, Side::kNew}) {
            dispatcher_->HoldKeys(side, {}, 0);
            TakeDown(side, fences_[static_cast<std::size_t>(side)]);
        }
    }

    [[nodiscard]] runtime::Dispatcher& dispatcher() const noexcept { return *dispatcher_; }

    /// Begins to take messages from a side; nothing where it does so already, or is closing.
    /// Never blocks on the broker.
    /// @throws Error where the adapter cannot subscribe there at all.
    void Attach(Side side, runtime::BrokerLink& link,
                std::shared_ptr<const backend::Destination> destination) {
        if (closing()) return;
        const std::lock_guard lock{mutex_};
        std::unique_ptr<backend::Consumer>& consumer = At(side);
        if (closing() || consumer != nullptr) return;
        consumer = link.Get().Subscribe(
            {.destination = std::move(destination), .group = group_, .prefetch = prefetch_},
            std::make_shared<SideReceiver>(*this, side));
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
            if (consumer == nullptr) return;
            ++detaching_;
        }
        consumer->Stop();
        dispatcher_->DropSide(side);
        consumer->Close(deadline);
        consumer.reset();
        const std::lock_guard lock{mutex_};
        --detaching_;
        EndIfLeft();
    }

    /// How the subscription stands on a side; nothing where it is not attached there.
    [[nodiscard]] std::optional<backend::ConsumerState> State(Side side) const {
        const std::lock_guard lock{mutex_};
        if (At(side) == nullptr) return std::nullopt;
        return At(side)->State();
    }

    /// Ends the subscription: takes nothing more, waits for the handlers that run, leaves the rest to
    /// the broker. Called by a handler of this very subscription it returns at once, and the end comes
    /// when that handler has returned. Where it is ending already, waits for that, and at the deadline
    /// leaves the brokers in its place. Idempotent.
    void Close(Clock::time_point deadline) noexcept {
        if (!BeginClosing()) return AwaitClosed(deadline);
        dispatcher_->Stop();
        // A handler that ends the program does not return.
        if (dispatcher_->OnOwnThread() && !detail::ThreadEnd::Begun()) {
            dispatcher_->WhenQuiet(
                [self = shared_from_this()] { self->LeaveBrokers(Clock::now() + kSelfClose); });
            return;
        }
        dispatcher_->WaitHandlers(deadline);
        LeaveBrokers(deadline);
    }

    /// Whether Close has begun: it takes nothing more, and no handler starts.
    [[nodiscard]] bool closing() const noexcept { return closing_.load(); }

    /// Whether Close has come to its end: it has left its brokers, and uses nothing of its topic any
    /// more. A handler may still run where it took longer than the deadline.
    [[nodiscard]] bool closed() const noexcept { return closed_.load(); }

private:
    class SideReceiver final : public backend::Receiver {
    public:
        /// `listener` has the consumer that keeps this, and so is there as long.
        SideReceiver(Listener& listener, Side side) : listener_(listener), side_(side) {}

        void OnDelivery(std::unique_ptr<backend::Inbound> inbound) noexcept override {
            if (!inbound->sender.empty()) {
                listener_.producers_.Note(side_, inbound->sender);
                listener_.NoteMove(side_, inbound->sender);
            }
            if (listener_.dispatcher_->Offer(side_, std::move(inbound))) listener_.wake_.Raise();
        }
        void OnStale() noexcept override { listener_.dispatcher_->DropStale(); }
        void OnStateChange() noexcept override { listener_.wake_.Raise(); }

    private:
        Listener& listener_;
        const Side side_;
    };

    struct Fence {
        bool up = false;
        std::uint64_t noticed = 0;  // producers that have come over, ever
        KnownMoves known = {};      // of those whose messages came from this side
    };

    // What comes here from a producer that has moved here must not overtake what it sent to the other
    // side before.
    void NoteMove(Side side, std::string_view sender) {
        if (!fencing_) return;
        const std::lock_guard lock{fence_mutex_};
        if (fences_[static_cast<std::size_t>(side)].known.Note(sender, vouched_)) PutUp(side);
    }

    // Call with fence_mutex_ held.
    void PutUp(Side side) {
        Fence& fence = fences_[static_cast<std::size_t>(side)];
        ++fence.noticed;
        fence.up = true;
        dispatcher_->SetHold(side, true);
    }

    // Call with fence_mutex_ held.
    void TakeDown(Side side, Fence& fence) {
        if (!std::exchange(fence.up, false)) return;
        dispatcher_->SetHold(side, false);
    }

    // What a subscription may take to leave its brokers when it was closed by its own handler.
    static constexpr std::chrono::seconds kSelfClose{5};
    // How much longer than its own deadline a closer waits for others that leave a side.
    static constexpr std::chrono::seconds kOthers{1};

    // False where it has begun before.
    bool BeginClosing() noexcept {
        const std::lock_guard lock{mutex_};
        if (closing_.exchange(true)) return false;
        closer_ = std::this_thread::get_id();
        for (const auto& consumer : consumers_) {
            if (consumer != nullptr) consumer->Stop();
        }
        wake_.Raise();
        return true;
    }

    void AwaitClosed(Clock::time_point deadline) noexcept {
        if (dispatcher_->OnOwnThread()) return;
        {
            std::unique_lock lock{mutex_};
            // What the handler owned may close it once more, in the middle of the first time.
            if (closer_ == std::this_thread::get_id()) return;
            if (changed_.wait_until(lock, deadline, [this] { return closed(); })) return;
        }
        LeaveBrokers(deadline);
    }

    void LeaveBrokers(Clock::time_point deadline) noexcept {
        for (const Side side : {Side::kOld, Side::kNew}) Detach(side, deadline);
        std::unique_lock lock{mutex_};
        left_ = true;
        EndIfLeft();
        // Others who leave a side right now do so by a deadline of their own: the last one ends it.
        changed_.wait_until(lock, deadline + kOthers, [this] { return closed(); });
    }

    // Under the lock, so that whoever then sees that it is closed may take the topic away.
    void EndIfLeft() noexcept {
        if (left_ && detaching_ == 0 && !closed_.exchange(true)) wake_.Raise();
        changed_.notify_all();
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

    // Taken while messages arrive, and never while a consumer is called.
    mutable std::mutex fence_mutex_;  // guards fences_
    std::array<Fence, 2> fences_;
    std::atomic<bool> fencing_{false};  // set under fence_mutex_
    bool vouched_ = true;               // guarded by fence_mutex_

    // Serialises attaching and detaching. Receivers never take it, so that a consumer may be stopped
    // under it while its adapter delivers.
    mutable std::mutex mutex_;          // guards consumers_, detaching_, left_ and closer_
    std::condition_variable changed_;   // closed_ or detaching_ has changed
    std::atomic<bool> closing_{false};  // set under mutex_
    std::atomic<bool> closed_{false};   // set under mutex_
    int detaching_ = 0;                 // threads that are leaving a side
    bool left_ = false;                 // it is closed as soon as nobody is leaving a side any more
    std::thread::id closer_;            // the first that called Close
    std::array<std::unique_ptr<backend::Consumer>, 2> consumers_;
};

}  // namespace mq::migration
