/// @file client.hpp
/// The facade: what business code holds. It sends and receives on topics; which broker carries a topic,
/// and how far the topic has moved from one to another, is the config's affair and can change while the
/// client runs.
#pragma once

#include <mq/config.hpp>
#include <mq/dedup.hpp>
#include <mq/delivery.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/detail/config_loader.hpp>
#include <mq/detail/file_watcher.hpp>
#include <mq/detail/id_generator.hpp>
#include <mq/detail/signal.hpp>
#include <mq/error.hpp>
#include <mq/log.hpp>
#include <mq/message.hpp>
#include <mq/migration/listener.hpp>
#include <mq/migration/topic.hpp>
#include <mq/migration/walker.hpp>
#include <mq/policy.hpp>
#include <mq/runtime/broker_link.hpp>
#include <mq/runtime/dispatcher.hpp>
#include <mq/runtime/sending.hpp>
#include <mq/runtime/worker_pool.hpp>
#include <mq/send_result.hpp>
#include <mq/status.hpp>
#include <mq/subscription.hpp>

#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mq {

/// A handler that settles by returning and asks for another attempt by throwing.
template <typename Handler>
concept MessageHandler = std::invocable < std::decay_t<Handler>
&, const Message& > ;

/// A handler that settles by hand, later and on any thread.
template <typename Handler>
concept DeliveryHandler = !MessageHandler<Handler> && std::invocable<std::decay_t<Handler>&, Delivery>;

/// What a client is given beside its config.
struct ClientOptions {
    /// Receives the client's log lines; see LogSink. Nothing is logged where it is empty.
    LogSink log = LogToStderr;
    /// Shares between processes which messages a group has handled, for the topics of the config that
    /// have a `dedup` window; see DedupStore. Without one every client remembers for itself.
    std::shared_ptr<DedupStore> dedup_store = {};
};

/// A client of the brokers in its config. Thread-safe, but for its destructor. It connects to a broker
/// when a topic first needs it.
class Client {
public:
    /// How long the destructor waits for sends and handlers.
    static constexpr std::chrono::seconds kDefaultTimeout{10};

    /// Connects to nothing yet.
    /// @throws Error with ErrorCode::kConfig and every problem of the config.
    explicit Client(const Config& config, ClientOptions options = {})
        : log_(options.log ? std::move(options.log) : [](LogLevel, std::string_view) {}),
          shared_{.config = config.client,
                  .client_id = "mq-" + ids_.Prefix(),
                  .log = log_,
                  .callbacks = &callbacks_,
                  .sendings = &sendings_,
                  .dedup_store = std::move(options.dedup_store)},
          pool_(config.client.handler_threads) {
        detail::ThrowIfWrong(config, detail::CheckConfig(config));
        const std::lock_guard lock{config_mutex_};
        Apply(config);
    }

    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    /// Close with the default deadline.
    ~Client() {
        Close(kDefaultTimeout);
        callbacks_.Stop();
    }

    /// Sends a message and returns when the broker has confirmed it. Blocks for the config's
    /// `client.send_timeout` at most. May be called from handlers and callbacks.
    /// @throws Error. Its outcome says whether the broker may have the message all the same.
    void SendMsg(std::string_view topic, Message message) {
        migration::Topic& found = Find(topic);
        Check(message);
        const auto waiter = std::make_shared<runtime::Waiter>();
        auto sending = Prepare(std::move(message));
        sending->waiter = waiter;
        const auto deadline = sending->deadline;
        found.Send(std::move(sending));
        if (!waiter->Wait(deadline + kGrace)) {
            throw Error{ErrorCode::kTimeout,
                        "topic " + found.name() + ": the broker has not confirmed before the deadline",
                        Outcome::kUnknown};
        }
        if (const auto error = waiter->TakeError()) throw Error{*error};
    }

    /// The same for a message that is a body and nothing else.
    void SendMsg(std::string_view topic, std::string_view body) {
        SendMsg(topic, Message{.body = std::string{body}});
    }

    /// Sends a message without waiting for it: many may be in flight. `callback` runs exactly once,
    /// with the outcome, on a library thread and with no lock held; errors of every kind arrive there.
    /// Blocks only while as much as `client.max_in_flight_bytes` is unconfirmed, or while an ordered
    /// topic changes its broker, until the send's deadline at most; the callback thread itself never
    /// waits for room, and fails with ErrorCode::kOverflow at twice that size.
    template <typename Callback>
    requires std::invocable < std::decay_t<Callback>
    &, const SendResult& > void SendMsg(std::string_view topic, Message message, Callback&& callback) {
        auto sending = Prepare(std::move(message));
        sending->callback = std::forward<Callback>(callback);
        migration::Topic* found = nullptr;
        try {
            found = &Find(topic);
            Check(sending->message);
        } catch (const Error& error) {
            return runtime::EndUnsent(shared_, std::move(sending), error);
        }
        found->Send(std::move(sending));
    }

    template <typename Callback>
    requires std::invocable < std::decay_t<Callback>
    &, const SendResult& >
           void SendMsg(std::string_view topic, std::string_view body, Callback&& callback) {
        SendMsg(topic, Message{.body = std::string{body}}, std::forward<Callback>(callback));
    }

    /// Subscribes to a topic; the handler runs on library threads, as many at once as
    /// `options.concurrency` says. A handler that takes `const Message&` settles the message by
    /// returning; when it throws, the message is handled again after a delay that grows up to ten
    /// seconds. A handler that takes a Delivery settles by hand.
    ///
    /// Where the topic has a `dedup` window, a message whose id the group has handled within it is
    /// settled without the handler, and a copy of one that is not settled yet waits for that. All
    /// subscriptions of a group in this client share the window, which stays as long as the client.
    ///
    /// Blocks until the broker that the topic publishes to has the subscription, for
    /// `client.subscribe_timeout` at most. A broker that is needed beside it may join later.
    /// @returns the subscription, which ends when it is destroyed.
    /// @throws Error where the topic is unknown, or the broker refuses or cannot be reached in time.
    template <typename Handler>
    requires MessageHandler<Handler> || DeliveryHandler<Handler> Subscription
    RecvMsg(std::string_view topic, Handler&& handler, const RecvOptions& options = {}) {
        if constexpr (MessageHandler<Handler>) {
            return Subscribe(
                topic,
                [handle = std::forward<Handler>(handler)](Delivery delivery) mutable {
                    handle(delivery.message());
                    delivery.Ack();
                },
                options);
        } else {
            return Subscribe(topic, std::forward<Handler>(handler), options);
        }
    }

    /// Asks for another rung; the client walks there in the background, waiting on each rung for its
    /// guard. Status tells how far it is. The next Reload brings back what the config says. Never
    /// blocks.
    /// @throws Error where the topic is unknown or has one broker only.
    void SetPolicy(std::string_view topic, Policy policy) { Find(topic).SetPolicy(policy); }

    /// Where this client is with a topic. Never blocks on a broker.
    /// @throws Error where the topic is unknown.
    [[nodiscard]] TopicStatus Status(std::string_view topic) const { return Find(topic).Status(); }

    /// Takes another config: all of it, or none of it. Policies, groups, quiet periods, guards and
    /// dedup windows change while the client runs; brokers and topics may be added; what cannot change
    /// is an error. The walks that follow happen in the background. Does not wait for brokers.
    /// @throws Error with ErrorCode::kConfig and every problem; the client then goes on as before.
    void Reload(const Config& config) {
        detail::ThrowIfWrong(config, detail::CheckConfig(config));
        const std::lock_guard lock{config_mutex_};
        detail::ThrowIfWrong(config, WhyNot(config));
        Apply(config);
    }

    /// Follows a config file: applies it now and after every change, within a second. What is wrong
    /// with an edit goes to the log as an error, and the client goes on as before. Needs <mq/toml.hpp>.
    /// A second call follows the second file instead.
    /// @throws Error where no header that reads config files is included.
    void Watch(const std::filesystem::path& path) {
        const auto load = detail::FindConfigLoader();
        if (load == nullptr) {
            throw Error{ErrorCode::kInvalidArgument,
                        "Watch needs a loader of config files: #include <mq/toml.hpp>"};
        }
        // Made absolute now: the working directory may change.
        const auto file = std::filesystem::absolute(path);
        auto watcher =
            std::make_unique<detail::FileWatcher>(file, [this, file, load] { Follow(file, load); });
        Follow(file, load);
        const std::lock_guard lock{watch_mutex_};
        watcher_.swap(watcher);
    }

    /// Waits until no send is in flight and every callback has returned.
    /// @returns false where the timeout passed first, and at once on the callback thread.
    bool Flush(std::chrono::milliseconds timeout) {
        if (runtime::Callbacks::OnCallbackThread()) return false;
        const auto deadline = backend::Clock::now() + timeout;
        return AwaitEnd(Topics(), deadline) && callbacks_.WaitIdle(deadline);
    }

    /// Ends the client: takes no more messages, waits for the handlers that run and for sends in
    /// flight, and fails what is not confirmed by then. Sends fail with ErrorCode::kClosed from then
    /// on. Blocks for `timeout`, and for handlers and callbacks that run longer. Idempotent.
    /// @throws Error where a handler or a callback calls it, which it would wait for.
    void Close(std::chrono::milliseconds timeout) {
        if (runtime::WorkerPool::OnWorkerThread() || runtime::Callbacks::OnCallbackThread()) {
            throw Error{ErrorCode::kInvalidArgument,
                        "a client cannot be closed by a handler or a callback, which Close waits for"};
        }
        const std::lock_guard lock{close_mutex_};
        if (std::exchange(closed_, true)) return;
        const auto deadline = backend::Clock::now() + timeout;
        StopWatching();
        walker_.Stop();
        const auto topics = Topics();
        CloseListeners(topics, deadline);
        for (migration::Topic* const topic : topics) topic->Shut();
        AwaitEnd(topics, deadline);
        for (runtime::BrokerLink* const link : Links()) link->Close(deadline);
        pool_.Stop();
        callbacks_.WaitIdle(backend::Clock::now() + timeout);
    }

private:
    // Lets a name be looked up without making a string of it.
    struct NameHash {
        using is_transparent = void;
        std::size_t operator()(std::string_view name) const noexcept {
            return std::hash<std::string_view>{}(name);
        }
    };
    using TopicTable = std::unordered_map<std::string, migration::Topic*, NameHash, std::equal_to<>>;

    // How much later than its deadline an adapter may hand a send back.
    static constexpr std::chrono::seconds kGrace{2};
    // How long RecvMsg waits for a broker that the topic does not publish to.
    static constexpr std::chrono::seconds kSecondBroker{5};

    // ---- sending

    [[nodiscard]] migration::Topic& Find(std::string_view topic) const {
        const TopicTable& table = *table_.load(std::memory_order_acquire);
        if (const auto found = table.find(topic); found != table.end()) return *found->second;
        throw Error{ErrorCode::kUnknownTopic, "the config has no topic " + detail::Shown(topic) +
                                                  "; add [" + KeyPath("topics", topic) + "]"};
    }

    static void Check(const Message& message) {
        for (const auto& [name, value] : message.headers) {
            if (name.empty()) throw Error{ErrorCode::kInvalidArgument, "a header has no name"};
            if (name.starts_with("mq-")) {
                throw Error{ErrorCode::kInvalidArgument,
                            "the header " + name + " begins with mq-, which belongs to the library"};
            }
        }
    }

    std::unique_ptr<runtime::Sending> Prepare(Message message) {
        auto sending = sendings_.Get();
        sending->shared = &shared_;
        sending->deadline = backend::Clock::now() + shared_.config.send_timeout;
        sending->message = std::move(message);
        if (sending->message.id.empty()) ids_.Next(sending->message.id);
        using std::chrono::system_clock;
        if (sending->message.timestamp == system_clock::time_point{}) {
            sending->message.timestamp =
                std::chrono::floor<std::chrono::milliseconds>(system_clock::now());
        }
        return sending;
    }

    // ---- receiving

    Subscription Subscribe(std::string_view name, runtime::Dispatcher::Handler handler,
                           const RecvOptions& options) {
        migration::Topic& topic = Find(name);
        if (options.concurrency == 0) {
            throw Error{ErrorCode::kInvalidArgument, "RecvOptions::concurrency must be at least 1"};
        }
        const std::string group = options.group.empty() ? shared_.config.group : options.group;
        pool_.RaiseLimit(options.concurrency);
        auto dispatcher = std::make_shared<runtime::Dispatcher>(
            pool_, std::move(handler),
            runtime::Dispatcher::Options{.name = "topic " + topic.name() + ", group " + group,
                                         .concurrency = options.concurrency,
                                         .order = topic.order(),
                                         .log = log_});
        const auto listener = std::make_shared<migration::Listener>(
            group, options.prefetch == 0 ? shared_.config.prefetch : options.prefetch,
            std::move(dispatcher), topic.wake(), topic.producers());
        Subscription subscription{listener};  // closes it where the following throws
        topic.Subscribe(listener);
        AwaitActive(topic, *listener);
        return subscription;
    }

    void AwaitActive(const migration::Topic& topic, const migration::Listener& listener) {
        const auto begin = backend::Clock::now();
        const auto deadline = begin + shared_.config.subscribe_timeout;
        const auto second_deadline = std::min(deadline, begin + kSecondBroker);
        while (true) {
            const auto seen = signal_.Generation();
            const Side primary = topic.Primary();
            const auto first = listener.State(primary);
            const auto second = listener.State(Other(primary));
            const bool active = Active(first);
            const auto now = backend::Clock::now();
            if (first && first->phase == backend::ConsumerState::Phase::kRefused)
                throw runtime::Detached(*first->error);
            if (active && (!Starting(second) || now >= second_deadline)) return;
            if (now >= deadline) throw NotActive(topic, first);
            signal_.WaitChange(seen, active ? second_deadline : deadline);
        }
    }

    static bool Active(const std::optional<backend::ConsumerState>& state) {
        return state && state->phase == backend::ConsumerState::Phase::kActive;
    }

    static bool Starting(const std::optional<backend::ConsumerState>& state) {
        return state && state->phase == backend::ConsumerState::Phase::kStarting;
    }

    [[nodiscard]] Error NotActive(const migration::Topic& topic,
                                  const std::optional<backend::ConsumerState>& state) const {
        if (state && state->error != nullptr) return runtime::Detached(*state->error);
        return Error{ErrorCode::kTimeout, "topic " + topic.name() +
                                              ": the broker has not accepted the subscription within " +
                                              migration::InWords(shared_.config.subscribe_timeout)};
    }

    // ---- config; all with config_mutex_ held

    [[nodiscard]] std::vector<ConfigProblem> WhyNot(const Config& config) const {
        std::vector<ConfigProblem> problems;
        WhyNotClient(config.client, problems);
        for (const auto& [name, link] : links_) {
            const auto broker = config.brokers.find(name);
            if (broker == config.brokers.end() || !link->InUse()) continue;
            const BrokerConfig running = link->config();
            const std::string path = KeyPath("brokers", name);
            constexpr std::string_view kInUse =
                " cannot change while the client uses the broker; restart the service, or add a broker "
                "under another name";
            if (running.url != broker->second.url) {
                problems.push_back({.key = path + ".url", .text = "the URL" + std::string{kInUse}});
            }
            if (running.options != broker->second.options) {
                problems.push_back(
                    {.key = path + ".options", .text = "the options" + std::string{kInUse}});
            }
        }
        for (const auto& [name, topic] : topics_) {
            const auto wanted = config.topics.find(name);
            const std::string path = KeyPath("topics", name);
            if (wanted != config.topics.end()) {
                if (auto why = topic->WhyNot(wanted->second))
                    problems.push_back({path, std::move(*why)});
            } else if (topic->HasListeners()) {
                problems.push_back({path, "is gone, but the service is subscribed to it"});
            }
        }
        return problems;
    }

    void WhyNotClient(const ClientConfig& wanted, std::vector<ConfigProblem>& problems) const {
        const ClientConfig& running = shared_.config;
        const auto check = [&](std::string_view key, bool same) {
            if (same) return;
            problems.push_back({.key = KeyPath("client", key),
                                .text = "cannot change while the client runs; restart the service"});
        };
        check("group", wanted.group == running.group);
        check("send_timeout", wanted.send_timeout == running.send_timeout);
        check("subscribe_timeout", wanted.subscribe_timeout == running.subscribe_timeout);
        check("max_in_flight_bytes", wanted.max_in_flight_bytes == running.max_in_flight_bytes);
        check("prefetch", wanted.prefetch == running.prefetch);
        check("handler_threads", wanted.handler_threads == running.handler_threads);
    }

    void Apply(const Config& config) {
        for (const auto& [name, broker] : config.brokers) {
            const auto [link, added] = links_.try_emplace(name);
            if (added) {
                link->second = std::make_unique<runtime::BrokerLink>(name, broker, shared_);
            } else {
                link->second->Configure(broker);
            }
        }
        const migration::FindLink find_link =
            [this](const std::string& broker) -> runtime::BrokerLink& { return *links_.at(broker); };
        auto table = std::make_unique<TopicTable>();
        for (const auto& [name, wanted] : config.topics) {
            const auto [topic, added] = topics_.try_emplace(name);
            if (added) {
                topic->second =
                    std::make_unique<migration::Topic>(name, wanted, find_link, shared_, signal_);
                walker_.Add(*topic->second);
            } else {
                topic->second->Configure(wanted, find_link);
            }
            table->emplace(name, topic->second.get());
        }
        if (!tables_.empty() && *tables_.back() == *table) return;
        table_.store(table.get(), std::memory_order_release);
        tables_.push_back(std::move(table));
    }

    void Follow(const std::filesystem::path& path, detail::ConfigLoader load) {
        // What was read first is applied first.
        const std::lock_guard lock{follow_mutex_};
        try {
            Reload(load(path));
            log_(LogLevel::kDebug, path.string() + " is applied");
        } catch (const std::exception& error) {
            log_(LogLevel::kError, path.string() + " was not applied: " + error.what());
        }
    }

    // ---- closing

    void StopWatching() {
        std::unique_ptr<detail::FileWatcher> watcher;
        const std::lock_guard lock{watch_mutex_};
        watcher.swap(watcher_);
    }

    static void CloseListeners(const std::vector<migration::Topic*>& topics,
                               backend::Clock::time_point deadline) {
        std::vector<std::shared_ptr<migration::Listener>> listeners;
        for (migration::Topic* const topic : topics) {
            for (auto& listener : topic->TakeListeners()) listeners.push_back(std::move(listener));
        }
        // All stop before the first is waited for, so that the waits run side by side.
        for (const auto& listener : listeners) {
            for (const Side side : {Side::kOld, Side::kNew}) listener->StopTaking(side);
        }
        for (const auto& listener : listeners) listener->Close(deadline);
    }

    // Waits until no send is in flight. False where the deadline passed first.
    bool AwaitEnd(const std::vector<migration::Topic*>& topics, backend::Clock::time_point deadline) {
        for (migration::Topic* const topic : topics) topic->WatchInFlight(true);
        const bool ended = AwaitNothingInFlight(topics, deadline);
        for (migration::Topic* const topic : topics) topic->WatchInFlight(false);
        return ended;
    }

    bool AwaitNothingInFlight(const std::vector<migration::Topic*>& topics,
                              backend::Clock::time_point deadline) {
        while (true) {
            const auto seen = signal_.Generation();
            std::uint64_t in_flight = 0;
            for (const migration::Topic* const topic : topics) in_flight += topic->InFlight();
            if (in_flight == 0) return true;
            if (backend::Clock::now() >= deadline) return false;
            signal_.WaitChange(seen, deadline);
        }
    }

    [[nodiscard]] std::vector<migration::Topic*> Topics() const {
        const std::lock_guard lock{config_mutex_};
        std::vector<migration::Topic*> topics;
        for (const auto& [name, topic] : topics_) topics.push_back(topic.get());
        return topics;
    }

    [[nodiscard]] std::vector<runtime::BrokerLink*> Links() const {
        const std::lock_guard lock{config_mutex_};
        std::vector<runtime::BrokerLink*> links;
        for (const auto& [name, link] : links_) links.push_back(link.get());
        return links;
    }

    // The order of destruction, last to first: the walker uses topics, topics use links, links use the
    // callback thread, and all of them use what stands at the top.
    detail::IdGenerator ids_;
    const LogSink log_;
    runtime::SendingPool sendings_;
    runtime::Callbacks callbacks_{&runtime::RunCallbacks};
    const runtime::Shared shared_;
    detail::Signal signal_;
    runtime::WorkerPool pool_;

    mutable std::mutex config_mutex_;  // guards links_, topics_ and tables_; serialises Reload
    std::map<std::string, std::unique_ptr<runtime::BrokerLink>> links_;
    std::map<std::string, std::unique_ptr<migration::Topic>> topics_;
    // Senders read the newest table without a lock; earlier ones stay for those who still do. One is
    // added only when the names of the topics change.
    std::vector<std::unique_ptr<const TopicTable>> tables_;
    std::atomic<const TopicTable*> table_{nullptr};
    migration::Walker walker_{signal_};

    std::mutex follow_mutex_;  // serialises Follow
    std::mutex watch_mutex_;   // guards watcher_
    std::unique_ptr<detail::FileWatcher> watcher_;

    std::mutex close_mutex_;  // guards closed_; serialises Close
    bool closed_ = false;
};

}  // namespace mq
