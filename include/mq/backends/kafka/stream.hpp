/// @file stream.hpp
/// One subscription's share of a group's consumer: its partitions, its credit and its receiver.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/credit.hpp>
#include <mq/backends/kafka/native.hpp>
#include <mq/backends/kafka/partition.hpp>
#include <mq/detail/signal.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

namespace mq::kafka::detail {

/// Up to where a group has received each partition of a topic in this client, over all assignments.
/// Thread-safe.
class Received {
public:
    /// Whether the offset was received before.
    bool Again(std::int32_t partition, std::int64_t offset) {
        const std::lock_guard lock{mutex_};
        std::int64_t& next = next_[partition];
        if (offset < next) return true;
        next = offset + 1;
        return false;
    }

private:
    std::mutex mutex_ = {};  // guards next_
    std::map<std::int32_t, std::int64_t> next_ = {};
};

/// What wakes the thread of a consumer. Outlives the consumer with the last of its messages.
struct Waker {
    mq::detail::Signal signal = {};
    std::atomic<bool> dirty{false};  ///< There is a position to commit.

    void SetDirty() noexcept {
        if (!dirty.exchange(true)) signal.Raise();
    }
};

/// One subscription: what the thread of its consumer, the messages that are out and the layers above
/// share of it. Thread-safe.
class Stream {
public:
    using Phase = backend::ConsumerState::Phase;

    Stream(backend::Subscribing subscribing, std::shared_ptr<backend::Receiver> receiver,
           std::shared_ptr<Waker> waker, std::shared_ptr<Received> received)
        : subscribing_(std::move(subscribing)),
          credit_(subscribing_.prefetch),
          waker_(std::move(waker)),
          received_(std::move(received)),
          receiver_(std::move(receiver)) {}

    [[nodiscard]] const backend::Destination& destination() const { return *subscribing_.destination; }
    [[nodiscard]] Credit& credit() noexcept { return credit_; }
    [[nodiscard]] Waker& waker() noexcept { return *waker_; }
    [[nodiscard]] Received& received() noexcept { return *received_; }
    [[nodiscard]] bool Stopped() const noexcept { return stopped_.load(); }

    [[nodiscard]] backend::ConsumerState State() const {
        const std::lock_guard lock{mutex_};
        return state_;
    }

    /// Calls `call` with the receiver and with no lock held, unless the stream is closed. For the
    /// thread of the consumer.
    template <typename Call>
    void WithReceiver(Call call) {
        std::shared_ptr<backend::Receiver> receiver;
        {
            const std::lock_guard lock{mutex_};
            if (receiver_ == nullptr) return;
            receiver = receiver_;
            caller_ = std::this_thread::get_id();
        }
        call(*receiver);
        const std::lock_guard lock{mutex_};
        caller_ = {};
        idle_.notify_all();
    }

    /// For the thread of the consumer.
    void SetState(Phase phase, ErrorPtr error = {}, const std::string& standstill = {}) {
        {
            const std::lock_guard lock{mutex_};
            const bool same_error = (error == nullptr) == (state_.error == nullptr) &&
                                    (error == nullptr || error->code() == state_.error->code());
            if (state_.phase == phase && same_error && state_.standstill == standstill) return;
            state_ = {phase, std::move(error), standstill};
        }
        WithReceiver([](backend::Receiver& receiver) { receiver.OnStateChange(); });
    }

    /// See backend::Consumer::Stop.
    void Stop() noexcept {
        std::unique_lock lock{mutex_};
        stopped_ = true;
        AwaitIdle(lock);
    }

    /// The receiver is not called again. May be called by it.
    void Detach() noexcept {
        std::shared_ptr<backend::Receiver> receiver;
        std::unique_lock lock{mutex_};
        stopped_ = true;
        receiver = std::move(receiver_);
        receiver_ = nullptr;
        AwaitIdle(lock);
    }

    /// The partitions that it has at present, by their number. For the thread of the consumer.
    void SetPartition(std::int32_t number, std::shared_ptr<Partition> partition) {
        const std::lock_guard lock{mutex_};
        if (partition == nullptr) {
            partitions_.erase(number);
        } else {
            partitions_[number] = std::move(partition);
        }
    }

    [[nodiscard]] std::map<std::int32_t, std::shared_ptr<Partition>> Partitions() const {
        const std::lock_guard lock{mutex_};
        return partitions_;
    }

    /// A message that was out is settled or gone.
    void GiveBack() noexcept {
        if (credit_.Give()) waker_->signal.Raise();
    }

    /// The thread has let go of it.
    void SetLeft() {
        const std::lock_guard lock{mutex_};
        left_ = true;
        idle_.notify_all();
    }

    /// Waits until the thread has let go of it, until the deadline at most.
    void AwaitLeft(Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        if (caller_ == std::this_thread::get_id()) return;
        idle_.wait_until(lock, deadline, [&] { return left_; });
    }

private:
    // The receiver does not block, so neither does this; called by the receiver itself, not at all.
    void AwaitIdle(std::unique_lock<std::mutex>& lock) {
        const auto self = std::this_thread::get_id();
        const auto idle = [&] { return caller_ == std::thread::id{} || caller_ == self; };
        while (!idle()) idle_.wait_for(lock, std::chrono::seconds{1}, idle);
    }

    const backend::Subscribing subscribing_;
    Credit credit_;
    const std::shared_ptr<Waker> waker_;
    const std::shared_ptr<Received> received_;
    std::atomic<bool> stopped_{false};

    mutable std::mutex mutex_ = {};  // guards everything below
    std::condition_variable idle_ = {};
    std::shared_ptr<backend::Receiver> receiver_;  // null once closed
    std::thread::id caller_ = {};                  // who is calling the receiver
    backend::ConsumerState state_ = {};
    std::map<std::int32_t, std::shared_ptr<Partition>> partitions_ = {};
    bool left_ = false;
};

/// A record that is out.
class Inbound final : public backend::Inbound {
public:
    Inbound(std::shared_ptr<Stream> stream, std::shared_ptr<Partition> partition, std::int64_t offset)
        : stream_(std::move(stream)), partition_(std::move(partition)), offset_(offset) {}

    ~Inbound() override {
        if (settled_) return;
        partition_->Release();
        stream_->GiveBack();
    }

    void Settle() noexcept override {
        if (std::exchange(settled_, true)) return;
        if (partition_->Settle(offset_)) stream_->waker().SetDirty();
        stream_->GiveBack();
    }

    [[nodiscard]] bool Stale() const noexcept override { return partition_->Fenced(); }

private:
    const std::shared_ptr<Stream> stream_;
    const std::shared_ptr<Partition> partition_;
    const std::int64_t offset_;
    bool settled_ = false;
};

}  // namespace mq::kafka::detail
