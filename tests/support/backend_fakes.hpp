/// @file backend_fakes.hpp
/// The layers above an adapter, as a test plays them: a sink that records what was finished, a receiver
/// that records, settles, holds or drops what it gets, and a log that keeps its lines. They wait by
/// conditions with a deadline, never by sleeping, and serve the tests of every adapter.
#pragma once

#include <mq/backend.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::test {

/// How long a wait lasts before the test counts as failed: long enough for a loaded machine under a
/// sanitizer and a real broker. A wait returns as soon as what it waits for has come.
inline constexpr std::chrono::seconds kPatience{30};

/// How long a subscription gets that should come to stand: groups that share out their partitions take
/// their time where twenty programs want two processors.
inline constexpr std::chrono::seconds kSubscribeTimeout{120};

/// What counts as prompt where something worse would last as long as kPatience or longer: a bound that
/// a loaded machine keeps. Where the order of events can show that nothing was waited for, it does.
inline constexpr std::chrono::seconds kPrompt{10};

/// An id that no other process of this machine makes, so that runs against one broker do not meet.
inline std::string UniqueId(std::string_view prefix = "m") {
    static const std::uint32_t process = std::random_device{}();
    static std::atomic<std::uint64_t> next{1};
    return std::string{prefix} + "-" + std::to_string(process) + "-" +
           std::to_string(next.fetch_add(1));
}

/// A message as the layers above hand it to an adapter: with an id, and a timestamp in milliseconds.
inline Message MakeMessage(std::string body, std::string key = {}) {
    Message message;
    message.body = std::move(body);
    message.key = std::move(key);
    message.id = UniqueId();
    message.timestamp = std::chrono::floor<std::chrono::milliseconds>(std::chrono::system_clock::now());
    return message;
}

inline std::unique_ptr<backend::Publication> MakePublication(
    Message message, std::chrono::milliseconds timeout = kPatience) {
    auto publication = std::make_unique<backend::Publication>();
    publication->message = std::move(message);
    publication->deadline = backend::Clock::now() + timeout;
    return publication;
}

inline std::unique_ptr<backend::Publication> MakePublication(
    std::string body, std::string key = {}, std::chrono::milliseconds timeout = kPatience) {
    return MakePublication(MakeMessage(std::move(body), std::move(key)), timeout);
}

/// A destination whose address is the topic's name where none is given.
inline std::shared_ptr<const backend::Destination> MakeDestination(std::string topic,
                                                                   std::string address = {},
                                                                   std::vector<std::string> groups = {},
                                                                   bool ordered = false) {
    backend::Destination destination;
    destination.address = address.empty() ? topic : std::move(address);
    destination.topic = std::move(topic);
    destination.groups = std::move(groups);
    destination.ordered = ordered;
    return std::make_shared<const backend::Destination>(std::move(destination));
}

/// Keeps every finished publication. Thread-safe.
class RecordingSink final : public backend::PublicationSink {
public:
    using Finished = std::unique_ptr<const backend::Publication>;

    void OnFinished(backend::PublicationList finished) noexcept override {
        const std::lock_guard lock{mutex_};
        ++batches_;
        while (auto publication = finished.PopFront()) {
            ++(publication->error == nullptr ? confirmed_ : failed_);
            finished_.push_back(std::move(publication));
        }
        changed_.notify_all();
    }

    /// Waits until `count` publications have come back since the beginning; false at the deadline.
    bool WaitForFinished(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] { return finished_.size() >= count; });
    }

    /// Waits until `count` publications have been confirmed; false at the deadline.
    bool WaitForConfirmed(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] { return confirmed_ >= count; });
    }

    /// Waits until `count` publications have failed; false at the deadline.
    bool WaitForFailed(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] { return failed_ >= count; });
    }

    [[nodiscard]] std::size_t Count() const {
        const std::lock_guard lock{mutex_};
        return finished_.size();
    }

    [[nodiscard]] std::size_t Confirmed() const {
        const std::lock_guard lock{mutex_};
        return confirmed_;
    }

    [[nodiscard]] std::size_t Failed() const {
        const std::lock_guard lock{mutex_};
        return failed_;
    }

    [[nodiscard]] std::size_t Batches() const {
        const std::lock_guard lock{mutex_};
        return batches_;
    }

    /// The publication that came back as number `index`, from 0; valid as long as the sink.
    /// The caller has waited for it.
    [[nodiscard]] const backend::Publication& At(std::size_t index) const {
        const std::lock_guard lock{mutex_};
        return *finished_.at(index);
    }

    /// The bodies in the order in which they came back.
    [[nodiscard]] std::vector<std::string> Bodies() const {
        const std::lock_guard lock{mutex_};
        std::vector<std::string> bodies;
        for (const auto& publication : finished_) bodies.push_back(publication->message.body);
        return bodies;
    }

private:
    template <typename Predicate>
    bool Wait(std::chrono::milliseconds patience, Predicate predicate) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, predicate);
    }

    mutable std::mutex mutex_ = {};  // guards everything below
    mutable std::condition_variable changed_ = {};
    std::vector<Finished> finished_ = {};
    std::size_t confirmed_ = 0;
    std::size_t failed_ = 0;
    std::size_t batches_ = 0;
};

/// What a RecordingReceiver does with a message.
enum class Receive {
    kSettle,  ///< Settles it at once.
    kHold,    ///< Keeps it unsettled, for the test to settle or drop.
    kDrop,    ///< Destroys it unsettled.
};

/// Keeps a copy of every message it gets. Thread-safe.
class RecordingReceiver final : public backend::Receiver {
public:
    using Handler = std::function<void(std::unique_ptr<backend::Inbound>)>;

    explicit RecordingReceiver(Receive receive = Receive::kSettle) : receive_(receive) {}

    /// Hands every message to `handler` instead, after it was recorded and with no lock held; call
    /// before Subscribe. The handler must not throw.
    explicit RecordingReceiver(Handler handler)
        : handler_(std::move(handler)), receive_(Receive::kDrop) {}

    void OnDelivery(std::unique_ptr<backend::Inbound> inbound) noexcept override {
        Receive receive = Receive::kDrop;
        {
            const std::lock_guard lock{mutex_};
            messages_.push_back(inbound->message);
            receive = receive_;
            if (receive == Receive::kHold) {
                held_.push_back(std::move(inbound));
                most_held_ = std::max(most_held_, held_.size());
            }
            if (receive != Receive::kSettle || handler_) ++done_;
            changed_.notify_all();
        }
        if (handler_) {
            handler_(std::move(inbound));
            return;
        }
        if (receive != Receive::kSettle) return;
        inbound->Settle();
        inbound.reset();
        const std::lock_guard lock{mutex_};
        ++done_;
        changed_.notify_all();
    }

    void OnStale() noexcept override {
        std::vector<std::unique_ptr<backend::Inbound>> stale;
        const std::lock_guard lock{mutex_};
        ++stale_calls_;
        const auto first = std::stable_partition(held_.begin(), held_.end(),
                                                 [](const auto& held) { return !held->Stale(); });
        std::move(first, held_.end(), std::back_inserter(stale));
        held_.erase(first, held_.end());
        changed_.notify_all();
    }

    void OnStateChange() noexcept override {
        const std::lock_guard lock{mutex_};
        ++state_changes_;
        changed_.notify_all();
    }

    /// What happens to the messages that come from now on.
    void Set(Receive receive) {
        const std::lock_guard lock{mutex_};
        receive_ = receive;
    }

    /// Waits until `count` messages have come since the beginning, redeliveries included (and, where
    /// they are settled at once, are settled); false at the deadline.
    bool WaitForMessages(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] { return done_ >= count; });
    }

    /// Waits until exactly `count` messages are held; false at the deadline.
    bool WaitForHeld(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] { return held_.size() == count; });
    }

    /// Waits until messages with `count` different ids have come; false at the deadline.
    bool WaitForDistinct(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        std::size_t seen = 0;
        std::map<std::string, bool> ids;
        return Wait(patience, [&] {
            for (; seen < messages_.size(); ++seen) ids[messages_[seen].id] = true;
            return ids.size() >= count;
        });
    }

    /// Waits until OnStale has been called `count` times since the beginning; false at the deadline.
    bool WaitForStale(std::size_t count, std::chrono::milliseconds patience = kPatience) const {
        return Wait(patience, [&] { return stale_calls_ >= count; });
    }

    /// Waits until the consumer of this receiver is in a phase; false at the deadline. Wakes up only
    /// by OnStateChange, so a change that is not announced fails the test.
    bool WaitForPhase(const backend::Consumer& consumer, backend::ConsumerState::Phase phase,
                      std::chrono::milliseconds patience = kPatience) const {
        const auto deadline = backend::Clock::now() + patience;
        std::unique_lock lock{mutex_};
        while (true) {
            const std::size_t seen = state_changes_;
            lock.unlock();
            if (consumer.State().phase == phase) return true;
            lock.lock();
            if (!changed_.wait_until(lock, deadline, [&] { return state_changes_ != seen; })) {
                return false;
            }
        }
    }

    /// Settles the oldest `count` held messages and lets them go. Returns how many there were.
    std::size_t SettleHeld(std::size_t count = SIZE_MAX) {
        const auto taken = TakeHeld(count);
        for (const auto& inbound : taken) inbound->Settle();
        return taken.size();
    }

    /// Destroys the oldest `count` held messages unsettled. Returns how many there were.
    std::size_t DropHeld(std::size_t count = SIZE_MAX) { return TakeHeld(count).size(); }

    /// Takes the oldest `count` held messages out.
    std::vector<std::unique_ptr<backend::Inbound>> TakeHeld(std::size_t count = SIZE_MAX) {
        std::vector<std::unique_ptr<backend::Inbound>> taken;
        const std::lock_guard lock{mutex_};
        const auto end = held_.begin() + static_cast<std::ptrdiff_t>(std::min(count, held_.size()));
        std::move(held_.begin(), end, std::back_inserter(taken));
        held_.erase(held_.begin(), end);
        changed_.notify_all();
        return taken;
    }

    /// Everything that has come, in its order.
    [[nodiscard]] std::vector<Message> Messages() const {
        const std::lock_guard lock{mutex_};
        return messages_;
    }

    /// The bodies of everything that has come, in its order.
    [[nodiscard]] std::vector<std::string> Bodies() const {
        const std::lock_guard lock{mutex_};
        std::vector<std::string> bodies;
        for (const Message& message : messages_) bodies.push_back(message.body);
        return bodies;
    }

    [[nodiscard]] std::size_t Count() const {
        const std::lock_guard lock{mutex_};
        return messages_.size();
    }

    [[nodiscard]] std::size_t Held() const {
        const std::lock_guard lock{mutex_};
        return held_.size();
    }

    /// The most messages that were held at once.
    [[nodiscard]] std::size_t MostHeld() const {
        const std::lock_guard lock{mutex_};
        return most_held_;
    }

private:
    template <typename Predicate>
    bool Wait(std::chrono::milliseconds patience, Predicate predicate) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, predicate);
    }

    const Handler handler_ = {};
    mutable std::mutex mutex_ = {};  // guards everything below
    mutable std::condition_variable changed_ = {};
    Receive receive_;
    std::vector<Message> messages_ = {};
    std::vector<std::unique_ptr<backend::Inbound>> held_ = {};
    std::size_t most_held_ = 0;
    std::size_t done_ = 0;  // messages recorded and, where that is asked, settled
    std::size_t stale_calls_ = 0;
    std::size_t state_changes_ = 0;
};

/// Keeps every line of the log. Thread-safe; must outlive the sinks that it gives.
class RecordingLog {
public:
    [[nodiscard]] LogSink Sink() {
        return [this](LogLevel level, std::string_view line) {
            const std::lock_guard lock{mutex_};
            lines_.emplace_back(level, std::string{line});
            changed_.notify_all();
        };
    }

    /// Waits until a line contains `part`; false at the deadline.
    bool WaitForLine(std::string_view part, std::chrono::milliseconds patience = kPatience) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, patience, [&] {
            return std::any_of(lines_.begin(), lines_.end(), [&](const auto& line) {
                return line.second.find(part) != std::string::npos;
            });
        });
    }

    [[nodiscard]] std::vector<std::pair<LogLevel, std::string>> Lines() const {
        const std::lock_guard lock{mutex_};
        return lines_;
    }

private:
    mutable std::mutex mutex_ = {};  // guards lines_
    mutable std::condition_variable changed_ = {};
    std::vector<std::pair<LogLevel, std::string>> lines_ = {};
};

/// Makes a backend the way the facade does: the kind by the URL's scheme, checked first.
/// @throws std::runtime_error where the scheme's adapter is not included or the check finds a problem.
inline std::unique_ptr<backend::Backend> MakeBackend(
    const std::string& url, backend::PublicationSink& sink,
    std::map<std::string, std::string> options = {}, LogSink log = {},
    std::chrono::milliseconds send_timeout = kPatience) {
    backend::Context context;
    context.name = "broker";
    context.url = ParseUrl(url);
    context.options = std::move(options);
    context.send_timeout = send_timeout;
    context.client_id = UniqueId("client");
    context.log = log ? std::move(log) : LogSink{[](LogLevel, std::string_view) {}};
    context.sink = &sink;
    const auto kind = backend::Registry::Instance().Find(context.url.scheme);
    if (!kind) throw std::runtime_error("no adapter for " + context.url.scheme);
    for (const ConfigProblem& problem : kind->check(context.url, context.options)) {
        throw std::runtime_error(problem.key + ": " + problem.text);
    }
    return kind->make(std::move(context));
}

/// A deadline for the calls that take one.
inline backend::Clock::time_point After(std::chrono::milliseconds time = kPatience) {
    return backend::Clock::now() + time;
}

}  // namespace mq::test
