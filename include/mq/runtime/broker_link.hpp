/// @file broker_link.hpp
/// One configured broker as the rest of the library sees it: its adapter, made at first use; the bound
/// on what it has not confirmed; and the way of finished sends back to those who wait for them.
#pragma once

#include <mq/backend.hpp>
#include <mq/dedup.hpp>
#include <mq/detail/process.hpp>
#include <mq/detail/signal.hpp>
#include <mq/runtime/callback_runner.hpp>
#include <mq/runtime/sending.hpp>
#include <mq/runtime/sending_pool.hpp>
#include <mq/runtime/window.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace mq::runtime {

using backend::Clock;
using Callbacks = CallbackRunner<backend::PublicationList>;

/// What all parts of a client share. Lives as long as the client.
struct Shared {
    ClientConfig config = {};
    std::string client_id = {};
    LogSink log = {};
    Callbacks* callbacks = nullptr;
    SendingPool* sendings = nullptr;
    std::shared_ptr<DedupStore> dedup_store = {};  // null for none
};

/// A broker. Thread-safe.
class BrokerLink final : public backend::PublicationSink {
public:
    BrokerLink(std::string name, BrokerConfig config, const Shared& shared)
        : name_(std::move(name)),
          config_(std::move(config)),
          shared_(shared),
          window_(shared.config.max_in_flight_bytes) {}

    BrokerLink(const BrokerLink&) = delete;
    BrokerLink& operator=(const BrokerLink&) = delete;

    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    [[nodiscard]] const Shared& shared() const noexcept { return shared_; }
    [[nodiscard]] Window& window() noexcept { return window_; }

    /// The adapter, made where it does not exist yet. Never blocks on the broker.
    /// @throws Error where the URL or an option is wrong, or the link is closed.
    backend::Backend& Get() {
        const std::lock_guard lock{mutex_};
        if (closed_) throw Error{ErrorCode::kClosed, "the client is closed"};
        if (backend_ == nullptr) backend_ = Make();
        return *backend_;
    }

    /// Whether the adapter has been made: the URL and the options are in use.
    [[nodiscard]] bool InUse() const {
        const std::lock_guard lock{mutex_};
        return backend_ != nullptr;
    }

    [[nodiscard]] BrokerConfig config() const {
        const std::lock_guard lock{mutex_};
        return config_;
    }

    /// Takes another URL and other options, before the first use only.
    void Configure(BrokerConfig config) {
        const std::lock_guard lock{mutex_};
        if (backend_ == nullptr) config_ = std::move(config);
    }

    /// Has the broker taken for one that answers no questions, until then. Thread-safe.
    void SetSilent(Clock::time_point until) noexcept {
        silent_until_.store(until.time_since_epoch().count(), std::memory_order_relaxed);
    }
    [[nodiscard]] bool IsSilent(Clock::time_point now) const noexcept {
        return now.time_since_epoch().count() < silent_until_.load(std::memory_order_relaxed);
    }

    /// Ends the adapter's publishing; what is in flight at the deadline fails.
    void Close(Clock::time_point deadline) noexcept {
        backend::Backend* open = nullptr;
        {
            const std::lock_guard lock{mutex_};
            closed_ = true;
            open = backend_.get();
        }
        if (open != nullptr) open->Close(deadline);
    }

    void OnFinished(backend::PublicationList finished) noexcept override;

private:
    std::unique_ptr<backend::Backend> Make() {
        const Url url = ParseUrl(config_.url);
        const auto kind = backend::Registry::Instance().Find(url.scheme);
        if (!kind) {
            throw Error{ErrorCode::kConfig,
                        "broker " + name_ + ": no adapter for " + url.scheme + ":// is included"};
        }
        return kind->make({.name = name_,
                           .url = url,
                           .options = config_.options,
                           .send_timeout = shared_.config.send_timeout,
                           .client_id = shared_.client_id,
                           .log = shared_.log,
                           .sink = this});
    }

    const std::string name_;
    mutable std::mutex mutex_;  // guards config_, closed_ and the making of backend_
    BrokerConfig config_;
    bool closed_ = false;
    std::atomic<Clock::rep> silent_until_{0};
    const Shared& shared_;
    Window window_;
    std::unique_ptr<backend::Backend> backend_;
};

/// The way of one topic to one broker, with what went through it. Thread-safe.
class Outlet {
public:
    /// `idle` is raised when nothing is in flight any more, while it is watched.
    Outlet(BrokerLink& link, std::shared_ptr<const backend::Destination> destination,
           detail::Wake& idle)
        : link_(link), idle_(idle), destination_(std::move(destination)) {}

    Outlet(const Outlet&) = delete;
    Outlet& operator=(const Outlet&) = delete;

    [[nodiscard]] BrokerLink& link() const noexcept { return link_; }

    [[nodiscard]] std::shared_ptr<const backend::Destination> destination() const {
        const std::lock_guard lock{mutex_};
        return destination_;
    }

    /// Counts a send in. A sender enters before it makes sure that the outlet is still its route, and
    /// leaves where it is not: whoever changes the route and then sees nothing in flight knows that
    /// nothing will follow.
    void Enter() noexcept {
        entered_.fetch_add(1);
        if (resting_.load() && resting_.exchange(false)) idle_.Raise();
    }
    void Leave() noexcept { entered_.fetch_sub(1); }

    /// Has the signal raised by the next send that enters.
    void Rest() noexcept { resting_.store(true); }

    /// Sends, after Enter. The sending's end is reported to whoever waits for it, also where it fails
    /// here. Blocks only where the adapter does.
    void Publish(std::unique_ptr<Sending> sending) noexcept {
        sending->outlet = this;
        backend::Publisher* publisher = publisher_.load(std::memory_order_acquire);
        if (publisher == nullptr) {
            try {
                publisher = &MakePublisher();
            } catch (const Error& error) {
                return Fail(std::move(sending), error);
            } catch (const std::exception& error) {
                return Fail(std::move(sending), Error{ErrorCode::kInternal, error.what()});
            }
        }
        publisher->Publish(std::move(sending));
    }

    /// Makes what the first send would have to make: the adapter and its publisher. Never blocks on the
    /// broker: a send may follow at once, and waits in the adapter for the connection.
    /// @throws Error where the URL, an option or the address is wrong, or the link is closed.
    void Warm() {
        if (publisher_.load(std::memory_order_acquire) == nullptr) MakePublisher();
    }

    /// Uses another description of the same address from the next send on. The adapter keeps the order
    /// of what was published before and after.
    void Redirect(std::shared_ptr<const backend::Destination> destination) {
        const std::lock_guard lock{mutex_};
        destination_ = std::move(destination);
        publisher_.store(nullptr, std::memory_order_release);
    }

    /// How many publishers it keeps: one for each description that was in use.
    [[nodiscard]] std::size_t kept() const {
        const std::lock_guard lock{mutex_};
        return publishers_.size();
    }

    /// Counts sends out. Those that left have ended here and go on elsewhere.
    void Ended(std::uint64_t confirmed, std::uint64_t failed, std::uint64_t left = 0) noexcept {
        confirmed_.fetch_add(confirmed, std::memory_order_relaxed);
        failed_.fetch_add(failed, std::memory_order_relaxed);
        ended_.fetch_add(confirmed + failed + left);
        if (watching_.load() > 0 && InFlight() == 0) idle_.Raise();
    }

    /// Has the broker taken for one that is not there, until then.
    void SetSuspect(Clock::time_point until) noexcept {
        suspect_until_.store(until.time_since_epoch().count(), std::memory_order_relaxed);
    }
    [[nodiscard]] bool IsSuspect(Clock::time_point now) const noexcept {
        return now.time_since_epoch().count() < suspect_until_.load(std::memory_order_relaxed);
    }

    void Watch(bool watched) noexcept { watching_.fetch_add(watched ? 1 : -1); }

    /// Never less than what is in flight at a moment between call and return.
    [[nodiscard]] std::uint64_t InFlight() const noexcept {
        const std::uint64_t ended = ended_.load();
        return entered_.load() - ended;
    }
    [[nodiscard]] std::uint64_t Published() const noexcept { return entered_.load(); }
    [[nodiscard]] std::uint64_t Confirmed() const noexcept { return confirmed_.load(); }
    [[nodiscard]] std::uint64_t Failed() const noexcept { return failed_.load(); }
    /// All that have ended, well or not. Behind InFlight() == 0: none is missing.
    [[nodiscard]] std::uint64_t Finished() const noexcept { return Confirmed() + Failed(); }

private:
    backend::Publisher& MakePublisher() {
        const std::lock_guard lock{mutex_};
        if (backend::Publisher* made = publisher_.load(std::memory_order_relaxed)) return *made;
        // Earlier ones stay: a sender may still be in one of them. One that fits is used again.
        auto fits = std::find_if(publishers_.begin(), publishers_.end(), [this](const auto& known) {
            return known.first->groups == destination_->groups &&
                   known.first->ordered == destination_->ordered;
        });
        if (fits == publishers_.end()) {
            publishers_.emplace_back(destination_, link_.Get().MakePublisher(destination_));
            fits = std::prev(publishers_.end());
        }
        publisher_.store(fits->second.get(), std::memory_order_release);
        return *fits->second;
    }

    void Fail(std::unique_ptr<Sending> sending, const Error& error) noexcept {
        sending->error = std::make_unique<Error>(Detached(error));
        backend::PublicationList finished;
        finished.PushBack(std::move(sending));
        link_.OnFinished(std::move(finished));
    }

    BrokerLink& link_;
    detail::Wake& idle_;
    mutable std::mutex mutex_;  // guards destination_ and publishers_
    std::shared_ptr<const backend::Destination> destination_;
    // By what they were made for. One for each set of groups that the config has ever named.
    std::vector<
        std::pair<std::shared_ptr<const backend::Destination>, std::unique_ptr<backend::Publisher>>>
        publishers_;
    std::atomic<backend::Publisher*> publisher_{nullptr};
    std::atomic<Clock::rep> suspect_until_{Clock::time_point::min().time_since_epoch().count()};

    // Written by senders and by completions: each has a cache line of its own.
    alignas(64) std::atomic<std::uint64_t> entered_{0};
    std::atomic<bool> resting_{false};  // nobody looks after what enters until the signal is raised
    alignas(64) std::atomic<std::uint64_t> ended_{0};
    std::atomic<std::uint64_t> confirmed_{0};
    std::atomic<std::uint64_t> failed_{0};
    std::atomic<int> watching_{0};  // how many wait for nothing to be in flight
};

namespace internal {

/// Tells the thread that waits for a sending of its end, or hands back what may go another way.
inline void TellWaiter(std::unique_ptr<Sending> sending) noexcept {
    const std::shared_ptr<Waiter> waiter = std::move(sending->waiter);
    if (!sending->MayFailOver()) return waiter->Finish(std::move(sending->error));
    sending->waiter = waiter;
    if (waiter->HandBack(sending)) return;
    sending->outlet->Ended(0, 1);
}

}  // namespace internal

inline void BrokerLink::OnFinished(backend::PublicationList finished) noexcept {
    // Whoever sees that nothing is in flight any more must find the callbacks still to come.
    shared_.callbacks->Announce();
    backend::PublicationList waited_for;
    backend::PublicationList called_back;
    Outlet* outlet = nullptr;
    std::uint64_t confirmed = 0;
    std::uint64_t failed = 0;
    std::size_t freed = 0;
    // Sends of one topic come in long runs: the counters are touched once a run.
    const auto count_run = [&] {
        if (outlet != nullptr) outlet->Ended(std::exchange(confirmed, 0), std::exchange(failed, 0));
    };
    while (auto publication = finished.PopFront()) {
        auto& sending = static_cast<Sending&>(*publication);
        if (sending.MayFailOver()) {
            // Still in flight, for all who look.
            if (sending.waiter != nullptr) freed += sending.weight;
            (sending.waiter != nullptr ? waited_for : called_back).PushBack(std::move(publication));
            continue;
        }
        if (sending.outlet != outlet) {
            count_run();
            outlet = sending.outlet;
        }
        ++(sending.error == nullptr ? confirmed : failed);
        if (sending.waiter != nullptr) {
            freed += sending.weight;
            waited_for.PushBack(std::move(publication));
        } else {
            called_back.PushBack(std::move(publication));
        }
    }
    count_run();
    if (freed > 0) window_.Release(freed);
    while (auto publication = waited_for.PopFront()) {
        internal::TellWaiter(std::unique_ptr<Sending>{static_cast<Sending*>(publication.release())});
    }
    if (!called_back.empty()) shared_.callbacks->Post(std::move(called_back));
    shared_.callbacks->Retract();
}

/// Ends a sending that was never published.
inline void EndUnsent(const Shared& shared, std::unique_ptr<Sending> sending,
                      const Error& error) noexcept {
    sending->error = std::make_unique<Error>(Detached(error));
    if (sending->waiter != nullptr) {
        sending->waiter->Finish(std::move(sending->error));
        return;
    }
    backend::PublicationList ended;
    ended.PushBack(std::move(sending));
    shared.callbacks->Post(std::move(ended));
}

namespace internal {

inline void RunCallback(Sending& sending) noexcept {
    SendResult result = sending.error == nullptr
                            ? SendResult{std::move(sending.message.id)}
                            : SendResult{std::move(sending.message.id),
                                         std::shared_ptr<Error>{std::move(sending.error)}};
    try {
        sending.callback(result);
    } catch (const std::exception& error) {
        sending.shared->log(LogLevel::kError,
                            "the send callback of message " + result.id() + " threw: " + error.what());
    } catch (...) {
        sending.shared->log(LogLevel::kError, "the send callback of message " + result.id() + " threw");
    }
    sending.message.id = std::move(result).id();  // its room is of use to the next message
}

/// Whether what has failed goes another way instead; `sending` is gone then.
inline bool TakesOtherWay(std::unique_ptr<Sending>& sending) noexcept {
    Outlet& failed = *sending->outlet;
    const bool taken_over = sending->failover->TakeOver(sending);
    // Counted out here only after it was counted in there: it was in flight all the time.
    failed.Ended(0, taken_over ? 0 : 1, taken_over ? 1 : 0);
    return taken_over;
}

/// The same for whatever has ended.
inline bool FailsOver(std::unique_ptr<backend::Publication>& publication) noexcept {
    const auto& ended = static_cast<const Sending&>(*publication);
    if (ended.outlet == nullptr || !ended.MayFailOver()) return false;
    std::unique_ptr<Sending> sending{static_cast<Sending*>(publication.release())};
    const bool taken_over = TakesOtherWay(sending);
    publication = std::move(sending);
    return taken_over;
}

}  // namespace internal

/// Waits for the end of a sending; what is handed back meanwhile takes its other way on this thread, so
/// that the callback thread may wait here as well. `topic` is for the text of an error.
/// @returns why it failed; null where the broker has confirmed it.
/// @throws Error with ErrorCode::kTimeout where nothing is known at the deadline.
inline std::unique_ptr<Error> AwaitSent(Waiter& waiter, Clock::time_point deadline,
                                        const std::string& topic) {
    while (true) {
        if (!waiter.Wait(deadline)) {
            throw Error{ErrorCode::kTimeout,
                        "topic " + topic + ": the broker has not confirmed before the deadline",
                        Outcome::kUnknown};
        }
        std::unique_ptr<Sending> handed_back = waiter.TakeBack();
        if (handed_back == nullptr) return waiter.TakeError();
        if (!internal::TakesOtherWay(handed_back)) return std::move(handed_back->error);
    }
}

/// Runs the callbacks of sendings that have ended, on the callback thread.
///
/// The room that a message took is given back when its callback is taken on, not when its confirm
/// arrives: what waits for its callback is then bounded too, and a callback that sends finds the room
/// of the message before it.
inline void RunCallbacks(backend::PublicationList ended) {
    const detail::ForkMark process;
    std::array<std::unique_ptr<backend::Publication>, 64> chunk;
    while (!ended.empty()) {
        std::size_t size = 0;
        BrokerLink* link = nullptr;
        std::size_t weight = 0;
        const auto give_back = [&] {
            if (link != nullptr) link->window().Release(std::exchange(weight, 0));
        };
        for (; size < chunk.size() && !ended.empty(); ++size) {
            chunk[size] = ended.PopFront();
            const auto& sending = static_cast<const Sending&>(*chunk[size]);
            if (sending.outlet == nullptr) continue;
            if (&sending.outlet->link() != link) {
                give_back();
                link = &sending.outlet->link();
            }
            weight += sending.weight;
        }
        give_back();
        SendingPool& pool = *static_cast<const Sending&>(*chunk[0]).shared->sendings;
        std::size_t done = 0;
        for (std::size_t i = 0; i < size; ++i) {
            if (internal::FailsOver(chunk[i])) continue;
            internal::RunCallback(static_cast<Sending&>(*chunk[i]));
            if (process.InChild()) return;  // the callback has forked, and this is not the parent
            if (done != i) chunk[done] = std::move(chunk[i]);
            ++done;
        }
        pool.Put({chunk.data(), done});
    }
}

}  // namespace mq::runtime
