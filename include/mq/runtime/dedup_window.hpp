/// @file dedup_window.hpp
/// Which messages a group has handled lately, and which are being handled: what keeps a second copy of
/// a message from a handler. Shared by the subscriptions of one group of a client on one topic, on both
/// of its sides. It knows ids and no messages.
#pragma once

#include <mq/backend.hpp>
#include <mq/dedup.hpp>
#include <mq/detail/duration.hpp>
#include <mq/detail/unique_function.hpp>
#include <mq/log.hpp>

#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mq::runtime {

class DedupClaim;

/// How far a window reaches back: whichever of the two is reached first.
struct DedupLimits {
    std::chrono::milliseconds window = {};  ///< Above zero.
    std::size_t max = 1;                    ///< Ids, at least 1.

    friend bool operator==(const DedupLimits&, const DedupLimits&) = default;
};

/// The ids of one group on one topic. Thread-safe. Its mutex is a leaf: nothing is called under it, and
/// a dispatcher does not hold its own while it calls this.
///
/// An id is in one of two states. *Claimed*: one delivery of it is on its way through a handler, or
/// between two attempts; copies wait until that ends. *Handled*: for `window` from then on, as long as
/// no `max` others were handled after it. An id of the library's 24 characters takes some 150 bytes.
class DedupWindow {
public:
    using Clock = backend::Clock;
    using Waiter = detail::UniqueFunction<void()>;

    struct Options {
        DedupLimits limits = {};
        std::string topic = {};
        std::string group = {};
        std::string client = {};                               ///< DedupKey::client.
        std::shared_ptr<DedupStore> store = {};                ///< Null for none.
        LogSink log = {};                                      ///< Never empty.
        std::function<Clock::time_point()> now = &Clock::now;  ///< Must not call the window.
    };

    explicit DedupWindow(Options options) : options_(std::move(options)), limits_(options_.limits) {}
    DedupWindow(const DedupWindow&) = delete;
    DedupWindow& operator=(const DedupWindow&) = delete;

    /// Takes other limits, which hold at once, also for what was handled before.
    void Configure(const DedupLimits& limits) {
        const std::lock_guard lock{mutex_};
        if (limits == limits_) return;
        limits_ = limits;
        Forget(options_.now());
        told_ = false;
    }

    /// Calls `waiter` once nobody has a claim on the id: on the thread that ends it, or at once. With
    /// no lock held.
    void Await(const std::string& id, Waiter waiter) noexcept {
        {
            const std::lock_guard lock{mutex_};
            const auto found = ids_.find(id);
            if (found != ids_.end() && !found->second.handled) {
                auto& waiters = found->second.waiters;
                if (waiters == nullptr) waiters = std::make_unique<std::vector<Waiter>>();
                waiters->push_back(std::move(waiter));
                return;
            }
        }
        waiter();
    }

    /// How many ids are remembered or claimed at present.
    [[nodiscard]] std::size_t Size() {
        const std::lock_guard lock{mutex_};
        Forget(options_.now());
        return ids_.size();
    }

private:
    friend class DedupClaim;

    struct State {
        bool handled = false;
        Clock::time_point handled_at = {};
        std::unique_ptr<std::vector<Waiter>> waiters = {};  // null for none, as for almost every id
    };
    using Ids = std::unordered_map<std::string, State>;
    using Entry = Ids::value_type;  // stays where it is for as long as the id is known

    // A claim on the id, which nobody else had; or whether it was handled (true) or is claimed (false).
    struct Found {
        Entry* claimed = nullptr;
        bool handled = false;
    };

    Found Claim(const std::string& id) {
        const std::lock_guard lock{mutex_};
        Forget(options_.now());
        const auto [entry, added] = ids_.try_emplace(id);
        if (added) return {.claimed = &*entry};
        return {.handled = entry->second.handled};
    }

    // Ends a claim. Whoever waits for it asks again.
    void End(Entry& entry, bool handled) noexcept {
        std::unique_ptr<std::vector<Waiter>> waiters;
        std::string warning;
        {
            const std::lock_guard lock{mutex_};
            waiters = std::move(entry.second.waiters);
            if (handled) {
                const auto now = options_.now();
                entry.second.handled = true;
                entry.second.handled_at = now;
                handled_.push_back(&entry);
                warning = Forget(now);
            } else {
                ids_.erase(ids_.find(entry.first));
            }
        }
        if (!warning.empty()) options_.log(LogLevel::kWarning, warning);
        if (waiters == nullptr) return;
        for (Waiter& waiter : *waiters) waiter();
    }

    // Drops what lies outside the limits; what to tell of it, once. Call with mutex_ held.
    std::string Forget(Clock::time_point now) {
        std::string warning;
        while (!handled_.empty()) {
            const Entry& oldest = *handled_.front();
            const auto age = now - oldest.second.handled_at;
            const bool expired = age >= limits_.window;
            if (!expired && handled_.size() <= limits_.max) break;
            if (!expired && !std::exchange(told_, true)) warning = TooMany(age);
            handled_.pop_front();
            ids_.erase(ids_.find(oldest.first));
        }
        return warning;
    }

    [[nodiscard]] std::string TooMany(Clock::duration age) const {
        const auto reach = std::chrono::duration_cast<std::chrono::milliseconds>(age);
        return Name() + ": dedup_max = " + std::to_string(limits_.max) + " messages reach back only " +
               detail::FormatDuration(reach) + " of the " + detail::FormatDuration(limits_.window) +
               " that dedup asks for; older duplicates are handled again";
    }

    [[nodiscard]] std::string Name() const {
        return "topic " + options_.topic + ", group " + options_.group;
    }

    [[nodiscard]] DedupKey KeyOf(const std::string& id) const noexcept {
        return {.topic = options_.topic, .group = options_.group, .id = id, .client = options_.client};
    }

    [[nodiscard]] std::chrono::milliseconds Length() const {
        const std::lock_guard lock{mutex_};
        return limits_.window;
    }

    // Calls the store, with no lock held. False where it threw, which the log then says.
    template <typename Call>
    bool AskStore(const std::string& id, const std::string& consequence, Call&& call) const noexcept {
        std::string why = "it threw what is no exception";
        try {
            call(*options_.store, KeyOf(id));
            return true;
        } catch (const std::exception& error) {
            why = error.what();
        } catch (...) {
        }
        options_.log(LogLevel::kWarning, Name() +
                                             ": the store of handled messages failed for message " +
                                             id + ", which " + consequence + ": " + why);
        return false;
    }

    const Options options_;

    mutable std::mutex mutex_;  // guards all that follows, and the states of the ids
    DedupLimits limits_;
    bool told_ = false;  // that max cuts the window short
    Ids ids_;
    std::deque<Entry*> handled_;  // in the order in which they were handled
};

/// The right of one delivery to its handler, as long as it lives: no copy of the message in this client
/// is handled or settled meanwhile. Empty where the message needs none. Not thread-safe by itself; its
/// members are called, and it is destroyed, with no lock held, for they call stores and other
/// subscriptions.
class DedupClaim {
public:
    enum class Answer : unsigned char {
        kHandle,     ///< To the handler with it.
        kDuplicate,  ///< It was handled: settle it.
        kCopyAhead,  ///< A copy is being handled in this client: DedupWindow::Await tells of the end.
        kAskAgain,   ///< Later: a copy is being handled elsewhere, or the store has failed.
    };

    DedupClaim() = default;
    DedupClaim(DedupClaim&&) noexcept = default;
    DedupClaim& operator=(DedupClaim&&) = delete;

    /// The delivery was given back: a copy takes its place.
    ~DedupClaim() { EndAs(false); }

    /// Whether the handler may have the message now. `window` may be null; a claim that was made by an
    /// earlier call holds.
    Answer Ask(const std::shared_ptr<DedupWindow>& window, const std::string& id) noexcept {
        if (window_ == nullptr) {
            if (window == nullptr || id.empty()) return Answer::kHandle;
            const DedupWindow::Found found = window->Claim(id);
            if (found.claimed == nullptr) {
                return found.handled ? Answer::kDuplicate : Answer::kCopyAhead;
            }
            window_ = window;
            entry_ = found.claimed;
        }
        return window_->options_.store == nullptr ? Answer::kHandle : AskStore();
    }

    /// The message was settled as processed.
    void Complete() noexcept {
        if (window_ == nullptr) return;
        if (std::exchange(stored_, false)) {
            window_->AskStore(id(), "other processes may handle again",
                              [&](auto& store, auto key) { store.Complete(key, window_->Length()); });
        }
        EndAs(true);
    }

    /// The message waits for another attempt, which asks again. Another process may be quicker.
    void Pause() noexcept {
        if (!std::exchange(stored_, false)) return;
        window_->AskStore(id(), "no other process handles until the claim has ended",
                          [](auto& store, auto key) { store.Abandon(key); });
    }

private:
    [[nodiscard]] const std::string& id() const noexcept { return entry_->first; }

    Answer AskStore() noexcept {
        DedupAnswer answer = DedupAnswer::kElsewhere;
        const bool asked = window_->AskStore(id(), "waits until the store answers",
                                             [&](auto& store, auto key) { answer = store.Claim(key); });
        if (!asked || answer == DedupAnswer::kElsewhere) return Answer::kAskAgain;
        stored_ = answer == DedupAnswer::kHandle;
        if (stored_) return Answer::kHandle;
        // Remembered by the store, whose time it is: copies ask there.
        EndAs(false);
        return Answer::kDuplicate;
    }

    void EndAs(bool handled) noexcept {
        if (const auto window = std::exchange(window_, nullptr)) window->End(*entry_, handled);
    }

    std::shared_ptr<DedupWindow> window_ = {};  // null for no claim
    DedupWindow::Entry* entry_ = nullptr;
    bool stored_ = false;  // the store has given a claim too
};

}  // namespace mq::runtime
