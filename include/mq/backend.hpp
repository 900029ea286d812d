/// @file backend.hpp
/// The adapter interface: what one kind of broker must be able to do, and nothing of policies, retries
/// or other adapters. An adapter is a translation between these calls and one client library. Including
/// its header registers its URL schemes; the facade finds it here.
///
/// **Threads.** Every function of Backend, Publisher and Consumer may be called from any thread, and
/// from several at once. An adapter calls the interfaces that it is given (PublicationSink, Receiver,
/// the log) from threads of its own, and while it does, it holds none of the locks that its own
/// functions take. Those interfaces never block and never throw.
///
/// **Connections.** Making a Backend connects nothing. The publishing connection is made at the first
/// Publish, the consuming one at the first Subscribe; the two are never the same. Their number, and the
/// number of threads, grows with brokers and groups, never with topics.
#pragma once

#include <mq/config.hpp>
#include <mq/error.hpp>
#include <mq/log.hpp>
#include <mq/message.hpp>
#include <mq/url.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::backend {

/// The clock of every deadline.
using Clock = std::chrono::steady_clock;

/// How long something may be without progress, while there is reason for some, before that is a
/// standstill: noticed by then, said in the log once and in the status for as long as it lasts, and
/// mended where this side can.
inline constexpr std::chrono::seconds kStandstill{30};

/// A topic as it lies on one broker.
struct Destination {
    std::string topic = {};    ///< The name that business code uses, for Message::topic and texts.
    std::string address = {};  ///< The physical name; never empty.
    /// The groups that the config names. An adapter whose groups must be declared before they collect
    /// messages (RabbitMQ) declares them before it publishes.
    std::vector<std::string> groups = {};
    /// Whether the order of a key matters: an adapter then uses what its broker has to keep it among
    /// the members of a group.
    bool ordered = false;
};

/// One message on its way to a broker. Exactly one party owns it at a time: the caller of
/// Publisher::Publish, then the adapter, then, finished, the PublicationSink.
class Publication {
public:
    Publication() = default;
    Publication(const Publication&) = delete;
    Publication& operator=(const Publication&) = delete;
    virtual ~Publication() = default;

    Message message = {};  ///< With an id and a timestamp.
    /// When the adapter must hand it back at the latest, confirmed or not.
    Clock::time_point deadline = {};
    /// Set by the adapter that repeats it after a lost connection; on receipt it shows as redelivered.
    bool possible_duplicate = false;
    /// What the library above tells itself about the sender. Where it is not empty, the adapter sends
    /// it along as a header of its own, which business code never sees, and hands it up as
    /// Inbound::sender. At most 255 bytes of ASCII; what it points to outlives the publication.
    std::string_view sender = {};
    /// Why it failed; empty in a finished publication means that the broker has confirmed it.
    std::unique_ptr<Error> error = {};

private:
    friend class PublicationList;
    std::unique_ptr<Publication> next_ = {};
};

/// A queue of publications that allocates nothing. Not thread-safe.
class PublicationList {
public:
    PublicationList() = default;
    PublicationList(PublicationList&& other) noexcept { Append(std::move(other)); }
    PublicationList& operator=(PublicationList&& other) noexcept {
        if (this != &other) {
            Clear();
            Append(std::move(other));
        }
        return *this;
    }
    ~PublicationList() { Clear(); }

    void PushBack(std::unique_ptr<Publication> publication) noexcept {
        Publication* const added = publication.get();
        (last_ != nullptr ? last_->next_ : first_) = std::move(publication);
        last_ = added;
    }

    /// Takes over everything in `other`, in its order.
    void Append(PublicationList&& other) noexcept {
        if (other.first_ == nullptr) return;
        (last_ != nullptr ? last_->next_ : first_) = std::move(other.first_);
        last_ = std::exchange(other.last_, nullptr);
    }

    /// The first one; null where the list is empty.
    std::unique_ptr<Publication> PopFront() noexcept {
        std::unique_ptr<Publication> popped = std::move(first_);
        if (popped != nullptr) {
            first_ = std::move(popped->next_);
            if (first_ == nullptr) last_ = nullptr;
        }
        return popped;
    }

    [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }

private:
    // One by one: the destructor of a chain would recurse once for each of its members.
    void Clear() noexcept {
        while (PopFront() != nullptr) {
        }
    }

    std::unique_ptr<Publication> first_ = {};
    Publication* last_ = nullptr;
};

/// Takes finished publications back.
class PublicationSink {
public:
    /// Hands back publications that were confirmed (no error) or failed (error set). Those of one
    /// connection come in batches as large as they arise: the sink does its bookkeeping once a batch.
    virtual void OnFinished(PublicationList finished) noexcept = 0;

protected:
    ~PublicationSink() = default;
};

/// The way to one destination. Outlived by its Backend.
class Publisher {
public:
    virtual ~Publisher() = default;

    /// Sends a message and returns at once; the sink gets the publication back when the broker has
    /// confirmed or refused it, or at its deadline. Publications of one thread keep their order.
    /// Blocks only while the adapter's own buffer is full, until the publication's deadline at most.
    ///
    /// When the connection is lost, what was in flight is repeated on the new connection in its first
    /// order, marked as a possible duplicate where it had been written; at the deadline it fails with
    /// Outcome::kUnknown where it was ever written to a broker, and with kNotSent where it never was.
    virtual void Publish(std::unique_ptr<Publication> publication) noexcept = 0;
};

/// One received message, and the way to settle it. Destroyed without Settle, it is left to the broker,
/// which delivers it again, here or to another member of the group, once the consumer is closed.
class Inbound {
public:
    Inbound() = default;
    Inbound(const Inbound&) = delete;
    Inbound& operator=(const Inbound&) = delete;
    virtual ~Inbound() = default;

    /// Tells the broker that the group is done with the message. Called once at most; thread-safe;
    /// never blocks. Without effect once the connection or the partition that it came by is gone.
    virtual void Settle() noexcept = 0;

    /// Whether the broker will deliver the message again because what it came by is gone: handling it
    /// now would only make a duplicate. Thread-safe.
    [[nodiscard]] virtual bool Stale() const noexcept = 0;

    Message message = {};
    std::string sender = {};  ///< Publication::sender; empty where the message came without.
};

/// Takes the messages of one subscription. Implemented above the adapters.
class Receiver {
public:
    virtual ~Receiver() = default;

    /// One message. At most `prefetch` are outstanding (handed over and neither settled nor destroyed),
    /// which bounds what the receiver holds.
    virtual void OnDelivery(std::unique_ptr<Inbound> inbound) noexcept = 0;

    /// Some of what was handed over has become stale: destroy what no handler has begun with. When this
    /// returns, the stale ones still outstanding are those whose handlers run.
    virtual void OnStale() noexcept = 0;

    /// Consumer::State() has changed.
    virtual void OnStateChange() noexcept = 0;
};

/// How a subscription stands at its broker.
struct ConsumerState {
    enum class Phase : unsigned char {
        kStarting,  ///< The first attempt is under way.
        kActive,    ///< The broker delivers to it.
        kRetrying,  ///< Not at present; the adapter tries again by itself. `error` says why.
        kRefused,   ///< The same, and trying again helps only after somebody has changed something.
    };
    Phase phase = Phase::kStarting;
    std::shared_ptr<const Error> error = {};
    /// Not empty while the broker has messages for this consumer which do not come, although it has
    /// room for them: what stands still, and since when, for a person to read. The adapter finds out
    /// within kStandstill of the last progress, and mends it where it can; whatever the phase is.
    std::string standstill = {};
};

/// One member of a group at one destination.
class Consumer {
public:
    /// The same as Close with a deadline that has passed.
    virtual ~Consumer() = default;

    [[nodiscard]] virtual ConsumerState State() const = 0;

    /// Takes no more: when it returns, no further OnDelivery is called. What is outstanding can still
    /// be settled. Idempotent.
    virtual void Stop() noexcept = 0;

    /// After Stop: sends the settlements that are queued, gives the rest back to the broker unsettled
    /// (never as a rejection), and leaves the group. Blocks until the deadline at most. Idempotent.
    virtual void Close(Clock::time_point deadline) noexcept = 0;
};

/// What Subscribe needs to know.
struct Subscribing {
    std::shared_ptr<const Destination> destination = {};
    std::string group = {};
    std::size_t prefetch = 1;  ///< At least 1.
};

/// Whether a group listens on a destination.
struct Listening {
    enum class Answer : unsigned char { kYes, kNo, kUnknown };
    Answer answer = Answer::kUnknown;
    std::string reason = {};  ///< For kNo and kUnknown: what is missing, for a person to read.
};

/// What a group has left to do on a destination.
struct Backlog {
    enum class Answer : unsigned char {
        kDrained,     ///< Nothing ready, and nothing unsettled as far as the broker can tell.
        kNotDrained,  ///< `messages` are left.
        kUnknown,     ///< The broker could not be asked; never taken for drained.
    };
    Answer answer = Answer::kUnknown;
    /// For kDrained and kNotDrained: ready and unsettled messages of the whole group; at least this
    /// many.
    std::uint64_t messages = 0;
    /// Whether kDrained includes what members in other processes hold unsettled. Where false, the
    /// caller waits for a quiet period on top.
    bool exact = false;
    std::string reason = {};  ///< For kUnknown, and where not exact: why, for a person to read.
    /// Everything that was on the destination before this moment is settled, by whatever member, even
    /// where more has come since; nothing where that is not known.
    std::optional<Clock::time_point> settled_before = {};
    /// For kNotDrained: whether `messages` is no less than what is left of the whole group at a moment
    /// between call and return, what members in other processes hold included. A message is left until
    /// its settlement has reached the broker, or counts as settled once Inbound::Settle was called.
    bool complete = false;
    /// For kNotDrained: whether the group has been on the destination before. False where what is left
    /// is what a new group would begin with.
    bool known = true;
};

/// What a broker allows, and the adapter's way to use it; nothing where there is no limit, or none that
/// is known.
struct Limits {
    std::optional<std::uint64_t> message_bytes = {};  ///< The largest body, in bytes.
    /// How long a message may stay unsettled before the broker takes it away.
    std::optional<std::chrono::milliseconds> handling_time = {};
    /// Whether the broker keeps a position for a group instead of a state for each message: what was
    /// settled behind an unsettled one is then delivered again after a restart.
    bool settles_in_order = false;
    /// How long a message is kept, handled or not, and how much of a partition: what is older is gone,
    /// also where a group has yet to handle it.
    std::optional<std::chrono::milliseconds> retention = {};
    std::optional<std::uint64_t> retained_bytes = {};
    /// Whether of the messages of one key only the latest is kept.
    bool keeps_only_latest = false;
};

/// One broker.
class Backend {
public:
    virtual ~Backend() = default;

    /// Never blocks on the broker. Publishers of one address, also where their groups differ, send one
    /// after the other what is published by one after the other: where `groups` of the config change, a
    /// topic goes over to another publisher with sends of the first one still in flight.
    /// @throws Error where the address is not one for this broker.
    virtual std::unique_ptr<Publisher> MakePublisher(
        std::shared_ptr<const Destination> destination) = 0;

    /// Begins to subscribe, and goes on trying until the consumer is closed. Never blocks on the
    /// broker. The receiver is kept until Close returns, or the consumer's destructor.
    /// @throws Error where the address or the group is not one for this broker.
    virtual std::unique_ptr<Consumer> Subscribe(Subscribing subscribing,
                                                std::shared_ptr<Receiver> receiver) = 0;

    /// Whether `group` has a live subscription to the destination, in whatever process; with an empty
    /// group, whether any group has. Blocks until the deadline at most; answers unknown at once while
    /// there is no connection to ask by.
    virtual Listening CheckListening(const Destination& destination, const std::string& group,
                                     Clock::time_point deadline) noexcept = 0;

    /// What the group has left on the destination, at a moment between call and return. Blocks until
    /// the deadline at most; answers unknown at once while there is no connection to ask by.
    virtual Backlog CheckBacklog(const Destination& destination, const std::string& group,
                                 Clock::time_point deadline) noexcept = 0;

    /// Compared before a topic moves from one broker to another. Does not ask the broker.
    [[nodiscard]] virtual Limits GetLimits() const { return {}; }

    /// The same with what the broker says of the destination itself, where it can be asked; without an
    /// answer, what GetLimits says. Blocks until the deadline at most.
    [[nodiscard]] virtual Limits AskLimits(const Destination& /*destination*/,
                                           Clock::time_point /*deadline*/) noexcept {
        return GetLimits();
    }

    /// Ends publishing: waits for what is in flight until the deadline, then hands back the rest,
    /// failed with ErrorCode::kClosed and its true outcome. After it has returned nothing is published
    /// and the sink is not called again. Consumers are closed before. Idempotent.
    virtual void Close(Clock::time_point deadline) noexcept = 0;
};

/// What an adapter is made with. `sink` outlives the backend.
struct Context {
    std::string name = {};  ///< The broker's name in the config, for texts.
    Url url = {};
    std::map<std::string, std::string> options = {};
    std::chrono::milliseconds send_timeout = {};  ///< The longest time from Publish to its deadline.
    std::string client_id = {};  ///< Tells this client from others in the broker's own tools.
    LogSink log = {};            ///< Never empty.
    PublicationSink* sink = nullptr;
};

/// A kind of broker, as its header registers it.
struct Kind {
    std::string name = {};                  ///< "rabbitmq".
    std::vector<std::string> schemes = {};  ///< "amqp", "amqps".
    /// Finds what is wrong with a URL and options, without connecting: keys are "url" or
    /// KeyPath("options", NAME). No text quotes a password.
    std::vector<ConfigProblem> (*check)(const Url& url,
                                        const std::map<std::string, std::string>& options) = nullptr;
    std::unique_ptr<Backend> (*make)(Context context) = nullptr;
};

/// The kinds of broker that this program has included. Thread-safe.
class Registry {
public:
    static Registry& Instance() {
        // Never destroyed: a static client may first need its adapter while the program ends.
        static Registry& registry = *new Registry;
        return registry;
    }

    /// Makes a kind available; what an adapter's header does in the initialiser of an inline variable.
    /// A kind of the same name is replaced.
    bool Add(Kind kind) {
        const std::lock_guard lock{mutex_};
        const std::string name = kind.name;
        kinds_.insert_or_assign(name, std::move(kind));
        return true;
    }

    /// The kind that a URL scheme belongs to; nothing where its adapter is not included.
    [[nodiscard]] std::optional<Kind> Find(std::string_view scheme) const {
        const std::lock_guard lock{mutex_};
        for (const auto& [name, kind] : kinds_) {
            for (const std::string& known : kind.schemes) {
                if (known == scheme) return kind;
            }
        }
        return std::nullopt;
    }

    /// Every scheme that is available, in alphabetical order of their kinds.
    [[nodiscard]] std::vector<std::string> Schemes() const {
        const std::lock_guard lock{mutex_};
        std::vector<std::string> schemes;
        for (const auto& [name, kind] : kinds_) {
            schemes.insert(schemes.end(), kind.schemes.begin(), kind.schemes.end());
        }
        return schemes;
    }

private:
    Registry() = default;

    mutable std::mutex mutex_ = {};  // guards kinds_
    std::map<std::string, Kind> kinds_ = {};
};

}  // namespace mq::backend
