/// @file dispatcher.hpp
/// From arrival to settlement: the messages of one subscription wait here for a handler, for their turn
/// behind others of their key, for another attempt, or for the other side to drain. It knows two sides
/// and no broker.
#pragma once

#include <mq/backend.hpp>
#include <mq/delivery.hpp>
#include <mq/detail/process.hpp>
#include <mq/detail/signal.hpp>
#include <mq/detail/unique_function.hpp>
#include <mq/runtime/dedup_window.hpp>
#include <mq/runtime/forwarded.hpp>
#include <mq/runtime/worker_pool.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mq::runtime {

/// What one subscription has done with one side. A snapshot.
struct Intake {
    std::uint64_t received = 0;
    std::uint64_t processed = 0;    ///< Settled, duplicates included.
    std::uint64_t duplicates = 0;   ///< Settled without the handler.
    std::uint64_t outstanding = 0;  ///< Received, and neither settled nor given back.
    std::uint64_t held = 0;
    backend::Clock::time_point last_arrival = {};
};

/// What has become of a message that somebody follows.
enum class Fate : unsigned char {
    kOpen,       ///< It is in hand.
    kSettled,    ///< The group is done with it.
    kGivenBack,  ///< The broker will deliver it again, to whatever member.
};

/// A message in hand that is followed to its end.
struct Followed {
    std::string key = {};
    std::shared_ptr<const std::atomic<Fate>> fate = {};
};

/// A message that others of its key wait for.
struct Blocking {
    Side side = Side::kOld;
    std::uint64_t arrival = 0;  ///< Which one it is, among those of its side.
    std::string id = {};
    unsigned attempts = 0;    ///< That have not succeeded.
    std::size_t waiting = 0;  ///< How many wait for it.
};

/// Runs the handler of one subscription. Thread-safe. The queues hold what is outstanding, which the
/// adapters bound by the prefetch of each side.
///
/// With Order::kKey, a message waits until every earlier one of its key is settled; one that is nacked
/// keeps its place. Without, up to `concurrency` handlers run on whatever is there.
///
/// With a DedupWindow, a message claims its id when its turn has come, and not before: of two copies
/// the first is the one that gets to the handler first, so that none waits for a copy that is held or
/// queued behind it. A copy of a claimed id is put aside until the claim has ended, and its thread goes
/// on.
class Dispatcher : public std::enable_shared_from_this<Dispatcher> {
public:
    using Clock = backend::Clock;
    using Handler = detail::UniqueFunction<void(Delivery)>;

    struct Options {
        std::string name = {};  ///< "orders, group billing": for log lines.
        std::size_t concurrency = 1;
        Order order = Order::kNone;
        LogSink log = {};
    };

    /// `pool` must run until Stop has returned.
    Dispatcher(WorkerPool& pool, Handler handler, Options options)
        : pool_(pool),
          options_(std::move(options)),
          handler_(std::make_unique<Handler>(std::move(handler))) {}

    [[nodiscard]] const std::string& name() const noexcept { return options_.name; }

    /// Takes a message in. True where it is held.
    bool Offer(Side side, std::unique_ptr<backend::Inbound> inbound) noexcept {
        auto item = std::make_unique<Item>(shared_from_this(), side, std::move(inbound));
        const std::lock_guard lock{mutex_};
        if (stopped_) return false;
        SideState& state = At(side);
        item->arrival = ++state.intake.received;
        item->tracked = tracking_;
        state.intake.last_arrival = Clock::now();
        ++state.intake.outstanding;
        List(*item);
        if (state.hold || state.behind.contains(item->content.key)) {
            state.held.push_back(std::move(item));
            return true;
        }
        Admit(std::move(item));
        Pump();
        return false;
    }

    /// Gives back what is stale and not begun with.
    void DropStale() noexcept {
        Dropped dropped;
        const std::lock_guard lock{mutex_};
        DropWhere([](const Item& item) { return item.inbound->Stale(); }, dropped);
        Pump();
    }

    /// Gives back what came from a side and is not begun with.
    void DropSide(Side side) noexcept {
        Dropped dropped;
        const std::lock_guard lock{mutex_};
        DropWhere([side](const Item& item) { return item.side == side; }, dropped);
        Pump();
    }

    /// Holds back what arrives from a side from now on, or lets go of everything that was held but for
    /// the keys of HoldKeys.
    void SetHold(Side side, bool hold) {
        const std::lock_guard lock{mutex_};
        At(side).hold = hold;
        if (!hold) ReleaseUpTo(side, At(side).intake.received);
    }

    /// Holds back what comes from a side with one of these keys, whatever SetHold says, and nothing
    /// else that had arrived when the mark was taken; takes the place of the keys before.
    void HoldKeys(Side side, std::set<std::string> keys, std::uint64_t mark) {
        const std::lock_guard lock{mutex_};
        SideState& state = At(side);
        state.behind.swap(keys);
        ReleaseUpTo(side, state.hold ? mark : state.intake.received);
    }

    /// How many keys of a side are held back by HoldKeys.
    [[nodiscard]] std::size_t KeysHeld(Side side) const {
        const std::lock_guard lock{mutex_};
        return At(side).behind.size();
    }

    /// Whether what arrives from now on can be looked at by InHand. It costs a lock for each message.
    void SetTracking(bool tracking) {
        const std::lock_guard lock{mutex_};
        tracking_ = tracking;
    }

    /// The messages of a side that are tracked and that only this subscription can have: they are
    /// neither settled nor on their way to be, nor taken back by the broker; and no hold keeps them
    /// from their handler. By their arrival, in ascending order.
    [[nodiscard]] std::vector<std::uint64_t> InHand(Side side) const {
        std::vector<std::uint64_t> arrivals;
        const std::lock_guard lock{mutex_};
        for (const Item* item = At(side).first; item != nullptr; item = item->next) {
            if (IsInHand(*item)) arrivals.push_back(item->arrival);
        }
        return arrivals;
    }

    /// Those of `arrivals`, in ascending order, that are still in hand, to be followed. The wake of
    /// SetWake is raised when one of them ends.
    [[nodiscard]] std::vector<Followed> Follow(Side side, const std::vector<std::uint64_t>& arrivals) {
        std::vector<Followed> followed;
        const std::lock_guard lock{mutex_};
        for (Item* item = At(side).first; item != nullptr; item = item->next) {
            if (!IsInHand(*item)) continue;
            if (!std::binary_search(arrivals.begin(), arrivals.end(), item->arrival)) continue;
            if (item->fate == nullptr) item->fate = std::make_shared<std::atomic<Fate>>(Fate::kOpen);
            followed.push_back({.key = item->content.key, .fate = item->fate});
        }
        return followed;
    }

    /// The messages that are with a handler, or wait for another attempt, and have others of their key
    /// wait for them.
    [[nodiscard]] std::vector<Blocking> Blockers() const {
        std::vector<Blocking> blockers;
        const std::lock_guard lock{mutex_};
        for (const Side side : {Side::kOld, Side::kNew}) {
            for (const Item* item = At(side).first; item != nullptr; item = item->next) {
                if (item->place != Place::kGoing || !InLane(item->content.key)) continue;
                const auto lane = lanes_.find(item->content.key);
                if (lane == lanes_.end() || lane->second.empty()) continue;
                blockers.push_back({.side = side,
                                    .arrival = item->arrival,
                                    .id = item->content.id,
                                    .attempts = item->attempts,
                                    .waiting = lane->second.size()});
            }
        }
        return blockers;
    }

    /// How many messages could go to the handler, which is at work on as many as it may.
    [[nodiscard]] std::size_t WaitingForHandlers() const {
        const std::lock_guard lock{mutex_};
        return runners_ >= options_.concurrency ? ready_.size() : 0;
    }

    /// What to raise when a message ends that is followed. Not used after Stop; until then it must be
    /// there.
    void SetWake(detail::Wake* wake) {
        const std::lock_guard lock{mutex_};
        wake_ = wake;
    }

    /// Keeps from the handler what this window knows as handled, from now on; null ends that.
    void SetDedup(std::shared_ptr<DedupWindow> window) noexcept {
        const std::lock_guard lock{mutex_};
        dedup_.swap(window);
    }

    /// A mark that stands for everything which has arrived from a side so far.
    [[nodiscard]] std::uint64_t Mark(Side side) const {
        const std::lock_guard lock{mutex_};
        return At(side).intake.received;
    }

    /// Lets go of what was held when the mark was taken.
    void Release(Side side, std::uint64_t mark) {
        const std::lock_guard lock{mutex_};
        ReleaseUpTo(side, mark);
    }

    [[nodiscard]] Intake Counts(Side side) const {
        const std::lock_guard lock{mutex_};
        Intake intake = At(side).intake;
        intake.held = At(side).held.size();
        return intake;
    }

    /// Starts no further handler and gives back what none has begun with. The handler, with all that it
    /// owns, is destroyed when its last call has returned: here, or on that call's thread. Idempotent.
    void Stop() noexcept {
        Dropped dropped;
        std::unique_ptr<Handler> unused;
        const std::lock_guard lock{mutex_};
        stopped_ = true;
        DropWhere([](const Item&) { return true; }, dropped);
        if (Running() == 0) unused = std::move(handler_);
    }

    /// After Stop: waits until no handler runs, but for one that calls this, and the handler is
    /// destroyed. False where the deadline passed first.
    bool WaitHandlers(Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        const std::size_t own = OnOwnThread() ? 1 : 0;
        return quiet_.wait_until(lock, deadline, [&] { return Running() <= own; });
    }

    /// Waits until nothing from a side is outstanding. False where the deadline passed first.
    bool WaitSettled(Side side, Clock::time_point deadline) {
        std::unique_lock lock{mutex_};
        return quiet_.wait_until(lock, deadline, [&] { return At(side).intake.outstanding == 0; });
    }

    /// After Stop: runs `task` when the last handler has returned, on its thread, or at once where none
    /// runs. One task at most.
    void WhenQuiet(detail::UniqueFunction<void()> task) {
        {
            const std::lock_guard lock{mutex_};
            if (Running() > 0) {
                when_quiet_ = std::move(task);
                return;
            }
        }
        task();
    }

    /// Whether the calling thread runs this subscription's handler.
    [[nodiscard]] bool OnOwnThread() const noexcept { return current_ == this; }

    /// Whether the calling thread runs a handler, of whatever subscription of this process.
    [[nodiscard]] static bool OnHandlerThread() noexcept { return current_ != nullptr; }

private:
    /// How a message leaves.
    enum class End : unsigned char { kProcessed, kDuplicate, kGivenBack };

    /// Where a message is between its arrival and its end.
    enum class Place : unsigned char {
        kHeld,    ///< Held back: before a fence, or behind its key.
        kInLane,  ///< Waits for an earlier one of its key.
        kGoing,   ///< May go, is with the handler, or waits for another attempt.
    };

    /// One message between arrival and settlement.
    class Item final : public detail::Settleable {
    public:
        Item(std::shared_ptr<Dispatcher> owner, Side from, std::unique_ptr<backend::Inbound> received)
            : dispatcher(std::move(owner)),
              side(from),
              inbound(std::move(received)),
              content(std::move(inbound->message)) {
            content.side = from;
        }

        [[nodiscard]] const Message& message() const noexcept override { return content; }

        void Ack() noexcept override {
            if (inbound == nullptr) return;
            claim.Complete();
            Settle(End::kProcessed);
        }

        void Nack() noexcept override {
            if (inbound == nullptr) return;
            claim.Pause();
            // The message stays readable here while it is handled again elsewhere.
            auto again = std::make_unique<Item>(*this);
            dispatcher->HandOn(*this, *again);
            dispatcher->Retry(std::move(again));
        }

        /// Tells the broker that the group is done with the message.
        void Settle(End end) noexcept {
            // Before the broker is told: what may be settled already counts for nobody as in hand.
            if (tracked) dispatcher->Untrack(*this);
            inbound->Settle();
            inbound.reset();
            dispatcher->Finish(*this, end);
        }

        /// Takes over everything but the duty to settle, which HandOn hands on.
        explicit Item(Item& nacked)
            : dispatcher(nacked.dispatcher),
              side(nacked.side),
              arrival(nacked.arrival),
              attempts(nacked.attempts),
              claim(std::move(nacked.claim)),
              content(nacked.content) {
            content.redelivered = true;
        }

        std::shared_ptr<Dispatcher> dispatcher;
        Side side;
        std::uint64_t arrival = 0;
        // The dispatcher's lock guards these, and the inbound of one that is tracked.
        Item* previous = nullptr;
        Item* next = nullptr;
        Place place = Place::kHeld;
        bool tracked = false;
        std::shared_ptr<std::atomic<Fate>> fate = {};  // null: nobody follows it
        unsigned attempts = 0;                         // that have not succeeded
        DedupClaim claim;                              // ends after the inbound was given back
        std::unique_ptr<backend::Inbound> inbound;     // null once settled
        Message content;
    };

    using Queue = std::deque<std::unique_ptr<Item>>;
    // What is given back is destroyed after the lock is let go: an adapter's destructor is not ours,
    // and the end of a claim calls other subscriptions.
    struct Dropped {
        Queue items = {};
    };

    struct SideState {
        bool hold = false;
        std::set<std::string> behind = {};  // keys that are held back in any case
        Queue held = {};
        Intake intake = {};
        Item* first = nullptr;  // all that is outstanding, by arrival
        Item* last = nullptr;
    };

    static constexpr std::chrono::milliseconds kFirstRetry{20};
    static constexpr std::chrono::milliseconds kLastRetry{10'000};
    static constexpr int kTurn = 64;  // messages before a busy subscription lets others have the thread

    [[nodiscard]] SideState& At(Side side) noexcept { return sides_[static_cast<std::size_t>(side)]; }
    [[nodiscard]] const SideState& At(Side side) const noexcept {
        return sides_[static_cast<std::size_t>(side)];
    }

    [[nodiscard]] bool InLane(const std::string& key) const noexcept {
        return options_.order == Order::kKey && !key.empty();
    }

    // The following are called with mutex_ held.

    // Tasks that wait for a thread of the pool are not among them: it may be busy with the handlers of
    // other subscriptions.
    [[nodiscard]] std::size_t Running() const noexcept { return runners_ - starting_; }

    void List(Item& item) noexcept {
        SideState& state = At(item.side);
        item.previous = state.last;
        (state.last != nullptr ? state.last->next : state.first) = &item;
        state.last = &item;
    }

    // A message ends. What it came by is destroyed later, without the lock.
    void Unlist(Item& item, End end) noexcept {
        SideState& state = At(item.side);
        (item.previous != nullptr ? item.previous->next : state.first) = item.next;
        (item.next != nullptr ? item.next->previous : state.last) = item.previous;
        item.previous = item.next = nullptr;
        --state.intake.outstanding;
        if (item.fate == nullptr) return;
        item.fate->store(end == End::kGivenBack ? Fate::kGivenBack : Fate::kSettled);
        if (wake_ != nullptr && !stopped_) wake_->Raise();
    }

    [[nodiscard]] static bool IsInHand(const Item& item) noexcept {
        return item.tracked && item.place != Place::kHeld && !item.inbound->Stale();
    }

    void Admit(std::unique_ptr<Item> item) {
        if (InLane(item->content.key)) {
            const auto [lane, free] = lanes_.try_emplace(item->content.key);
            if (!free) {
                item->place = Place::kInLane;
                lane->second.push_back(std::move(item));
                return;
            }
        }
        item->place = Place::kGoing;
        ready_.push_back(std::move(item));
    }

    void ReleaseUpTo(Side side, std::uint64_t mark) {
        SideState& state = At(side);
        Queue kept;
        for (auto& item : state.held) {
            if (item->arrival > mark || state.behind.contains(item->content.key)) {
                kept.push_back(std::move(item));
            } else {
                Admit(std::move(item));
            }
        }
        state.held.swap(kept);
        Pump();
    }

    // The first of its key is done with: the next one may go.
    void Advance(const std::string& key) {
        if (!InLane(key)) return;
        const auto lane = lanes_.find(key);
        if (lane == lanes_.end()) return;
        if (lane->second.empty()) {
            lanes_.erase(lane);
        } else {
            lane->second.front()->place = Place::kGoing;
            ready_.push_back(std::move(lane->second.front()));
            lane->second.pop_front();
        }
    }

    void Pump() {
        if (stopped_) return;
        while (runners_ < options_.concurrency && starting_ < ready_.size()) {
            ++runners_;
            ++starting_;
            pool_.Post([self = shared_from_this()] { self->Run(); });
        }
    }

    template <typename Predicate>
    void DropWhere(Predicate predicate, Dropped& dropped) {
        const auto take = [&](Queue& queue) {
            const auto kept = std::stable_partition(
                queue.begin(), queue.end(), [&](const auto& item) { return !predicate(*item); });
            for (auto item = kept; item != queue.end(); ++item) {
                Unlist(**item, End::kGivenBack);
                dropped.items.push_back(std::move(*item));
            }
            queue.erase(kept, queue.end());
        };
        for (SideState& side : sides_) take(side.held);
        for (auto& [key, lane] : lanes_) take(lane);
        // What stood at the head of a lane leaves the lane to the next one.
        const std::size_t behind = dropped.items.size();
        take(ready_);
        for (auto item = aside_.begin(); item != aside_.end();) {
            if (predicate(*item->second)) {
                Unlist(*item->second, End::kGivenBack);
                dropped.items.push_back(std::move(item->second));
                item = aside_.erase(item);
            } else {
                ++item;
            }
        }
        for (std::size_t i = behind; i < dropped.items.size(); ++i) {
            Advance(dropped.items[i]->content.key);
        }
        quiet_.notify_all();
    }

    // Puts an item aside until Resume, and says under which ticket. One that is of no use any more
    // stays with the caller, to be given back when the lock is let go.
    std::optional<std::uint64_t> SetAside(std::unique_ptr<Item>& item) {
        if (!stopped_ && !item->inbound->Stale()) {
            aside_.emplace(++last_ticket_, std::move(item));
            return last_ticket_;
        }
        Unlist(*item, End::kGivenBack);
        Advance(item->content.key);
        Pump();
        quiet_.notify_all();
        return std::nullopt;
    }

    // The following take mutex_.

    void Run() noexcept {
        current_ = this;
        for (int turn = 0;; ++turn) {
            std::unique_ptr<Item> item;
            std::shared_ptr<DedupWindow> dedup;
            {
                std::unique_lock lock{mutex_};
                if (turn == 0) --starting_;
                if (stopped_ || ready_.empty()) return EndRun(lock);
                if (turn == kTurn) {
                    ++starting_;
                    pool_.Post([self = shared_from_this()] { self->Run(); });
                    break;
                }
                item = std::move(ready_.front());
                ready_.pop_front();
                dedup = dedup_;
            }
            if (item->inbound->Stale()) {
                if (item->tracked) Untrack(*item);
                item->inbound.reset();
                Finish(*item, End::kGivenBack);
            } else if (MayHandle(item, dedup)) {
                Handle(std::move(item));
                if (process_.InChild()) return;  // the handler has forked, and this is not the parent
            }
        }
        current_ = nullptr;
    }

    void EndRun(std::unique_lock<std::mutex>& lock) noexcept {
        if (stopped_ && Running() == 1) {
            // The last one out. It still counts as running while the handler is destroyed.
            std::unique_ptr<Handler> unused = std::move(handler_);
            lock.unlock();
            unused.reset();
            lock.lock();
        }
        current_ = nullptr;
        detail::UniqueFunction<void()> task;
        --runners_;
        if (Running() == 0) task = std::move(when_quiet_);
        lock.unlock();
        quiet_.notify_all();
        if (task) task();
    }

    // Whether the handler is to have the item now. Where not, it is taken care of: settled as a
    // duplicate, or put aside.
    bool MayHandle(std::unique_ptr<Item>& item, const std::shared_ptr<DedupWindow>& dedup) noexcept {
        switch (item->claim.Ask(dedup, item->content.id)) {
            case DedupClaim::Answer::kHandle: return true;
            case DedupClaim::Answer::kDuplicate: item->Settle(End::kDuplicate); break;
            case DedupClaim::Answer::kCopyAhead: AwaitCopy(std::move(item), *dedup); break;
            case DedupClaim::Answer::kAskAgain: Retry(std::move(item)); break;
        }
        return false;
    }

    // Tries again when the copy that is ahead has ended, however it ends.
    void AwaitCopy(std::unique_ptr<Item> item, DedupWindow& dedup) noexcept {
        const std::string id = item->content.id;
        std::optional<std::uint64_t> ticket;
        {
            const std::lock_guard lock{mutex_};
            ticket = SetAside(item);
        }
        if (!ticket) return;
        dedup.Await(id, [weak = weak_from_this(), ticket = *ticket] {
            if (const auto self = weak.lock()) self->Resume(ticket);
        });
    }

    void Handle(std::unique_ptr<Item> item) noexcept {
        const std::string id = item->content.id;
        const std::string topic = item->content.topic;
        Handled::Here() = {.topic = topic, .id = id};
        try {
            (*handler_)(Delivery{std::move(item)});
        } catch (const std::exception& error) {
            options_.log(LogLevel::kWarning, "a handler of " + options_.name + " threw for message " +
                                                 id + ", which will be handled again: " + error.what());
        } catch (...) {
            options_.log(LogLevel::kWarning, "a handler of " + options_.name + " threw for message " +
                                                 id + ", which will be handled again");
        }
        Handled::Here() = {};
    }

    // From now on InHand does not look at it.
    void Untrack(Item& item) noexcept {
        const std::lock_guard lock{mutex_};
        item.tracked = false;
    }

    // `again` is there in the place of `nacked`, and has what it came by.
    void HandOn(Item& nacked, Item& again) noexcept {
        const std::lock_guard lock{mutex_};
        SideState& state = At(nacked.side);
        again.inbound = std::move(nacked.inbound);
        again.previous = std::exchange(nacked.previous, nullptr);
        again.next = std::exchange(nacked.next, nullptr);
        (again.previous != nullptr ? again.previous->next : state.first) = &again;
        (again.next != nullptr ? again.next->previous : state.last) = &again;
        again.place = nacked.place;
        again.tracked = std::exchange(nacked.tracked, false);
        again.fate = std::move(nacked.fate);
    }

    void Finish(Item& item, End end) noexcept {
        {
            const std::lock_guard lock{mutex_};
            Intake& intake = At(item.side).intake;
            Unlist(item, end);
            if (end != End::kGivenBack) ++intake.processed;
            if (end == End::kDuplicate) ++intake.duplicates;
            Advance(item.content.key);
            Pump();
        }
        quiet_.notify_all();
    }

    void Retry(std::unique_ptr<Item> item) noexcept {
        const std::lock_guard lock{mutex_};
        const unsigned doublings = std::min(item->attempts++, 10u);
        const auto delay = std::min(kFirstRetry * (1u << doublings), kLastRetry);
        const auto ticket = SetAside(item);
        if (!ticket) return;
        pool_.PostAt(Clock::now() + delay, [weak = weak_from_this(), ticket = *ticket] {
            if (const auto self = weak.lock()) self->Resume(ticket);
        });
    }

    void Resume(std::uint64_t ticket) noexcept {
        const std::lock_guard lock{mutex_};
        const auto item = aside_.find(ticket);
        if (item == aside_.end()) return;
        ready_.push_front(std::move(item->second));
        aside_.erase(item);
        Pump();
    }

    static inline thread_local const Dispatcher* current_ = nullptr;

    const detail::ForkMark process_;
    WorkerPool& pool_;
    const Options options_;

    mutable std::mutex mutex_;  // guards all that follows
    std::condition_variable quiet_;
    // Called without the lock, by several threads at once where the concurrency allows it: it stays as
    // long as one of them runs. Null once it is of no use.
    std::unique_ptr<Handler> handler_;
    bool stopped_ = false;
    bool tracking_ = false;
    detail::Wake* wake_ = nullptr;                  // null for none
    std::size_t runners_ = 0;                       // tasks of the pool that run, or will run, Run()
    std::size_t starting_ = 0;                      // those of them that have not begun
    Queue ready_;                                   // may go at once, in this order
    std::unordered_map<std::string, Queue> lanes_;  // by busy key: what waits behind its first
    // By ticket: waits for its next attempt, or for the end of a copy. The first of its key in a lane.
    std::map<std::uint64_t, std::unique_ptr<Item>> aside_;
    std::uint64_t last_ticket_ = 0;
    std::array<SideState, 2> sides_;
    std::shared_ptr<DedupWindow> dedup_;  // null for none
    detail::UniqueFunction<void()> when_quiet_;
};

}  // namespace mq::runtime
