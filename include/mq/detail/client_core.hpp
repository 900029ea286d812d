/// @file client_core.hpp
/// All of a client that is not a template: its parts, and how they come up, change and end together.
/// The facade owns one on the heap, so that a client which one of its own handlers or callbacks drops
/// can end on another thread.
#pragma once

#include <mq/client_options.hpp>
#include <mq/config.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/detail/config_loader.hpp>
#include <mq/detail/crypto_at_exit.hpp>
#include <mq/detail/deadline.hpp>
#include <mq/detail/ending.hpp>
#include <mq/detail/file_watcher.hpp>
#include <mq/detail/id_generator.hpp>
#include <mq/detail/process.hpp>
#include <mq/detail/reload_check.hpp>
#include <mq/detail/signal.hpp>
#include <mq/detail/stragglers.hpp>
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
#include <mq/status.hpp>
#include <mq/subscription.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mq::detail {

/// What Client documents is not said again here. Thread-safe, but for its end.
class ClientCore {
public:
    static constexpr std::chrono::seconds kDefaultTimeout{10};

    ClientCore(const Config& config, ClientOptions options)
        : gate_(std::make_shared<LogGate>(options.log ? std::move(options.log)
                                                      : [](LogLevel, std::string_view) {})),
          log_([gate = gate_](LogLevel level, std::string_view line) { gate->Write(level, line); }),
          shared_{.config = config.client,
                  .client_id = "mq-" + ids_.Prefix(),
                  .log = log_,
                  .callbacks = &callbacks_,
                  .sendings = &sendings_,
                  .dedup_store = std::move(options.dedup_store)},
          pool_(config.client.handler_threads) {
        ThrowIfWrong(config, CheckConfig(config));
        KeepCryptoAtExit();
        const std::lock_guard lock{config_mutex_};
        Apply(config);
    }

    ClientCore(const ClientCore&) = delete;
    ClientCore& operator=(const ClientCore&) = delete;
    ~ClientCore() = default;

    /// Ends a core that nobody will use any more but the handlers and callbacks that still run: it
    /// stays where it is until they have returned, and is null then. On a thread of its own, which it
    /// would have to wait for, it is taken away instead, and another thread ends it when this one has
    /// gone back; or it is closed and left behind, where this thread does not go back, because it ends
    /// the program. In the child of a fork it is left behind as it is.
    static void End(std::shared_ptr<ClientCore>& core) noexcept {
        if (core->process_.InChild()) return LeaveBehind(std::move(core));
        const bool handles = core->OnOwnThread();
        if (!handles && !core->gate_->Inside()) return EndHere(core);
        if (ThreadEnd::Begun()) {
            // In its sink, this may be any thread of an adapter, which a close would wait for.
            if (handles) core->CloseAtExit();
            return LeaveBehind(std::move(core));
        }
        core->log_(LogLevel::kWarning,
                   "a handler or a callback has destroyed its own client, which closes in the "
                   "background when that has returned");
        try {
            Stragglers::Run([left = core]() mutable { EndHere(left); }, std::this_thread::get_id());
        } catch (const std::exception& error) {
            // Nothing can be done with it here but to leave it as it is.
            core->log_(LogLevel::kError,
                       std::string{"a client that its own handler or callback has destroyed stays "
                                   "open: the system gives no thread to close it: "} +
                           error.what());
            LeaveBehind(core);
        }
        core.reset();
    }

    /// Whether the calling thread runs a handler or a callback of this client.
    [[nodiscard]] bool OnOwnThread() const noexcept {
        return pool_.OnOwnThread() || callbacks_.OnOwnThread();
    }

    // ---- sending

    void Send(std::string_view topic, Message message) {
        ThrowIfInChild();
        migration::Topic& found = Find(topic);
        Check(message);
        const auto waiter = std::make_shared<runtime::Waiter>();
        found.TellApart(message);
        auto sending = Prepare(std::move(message));
        sending->waiter = waiter;
        const auto deadline = sending->deadline + kGrace;
        found.Send(std::move(sending));
        if (const auto error = runtime::AwaitSent(*waiter, deadline, found.name())) throw Error{*error};
    }

    void Send(std::string_view topic, Message message, SendCallback callback) {
        ThrowIfInChild();
        StartThread([this] { callbacks_.Start(); }, "send callbacks");
        auto sending = Prepare(std::move(message));
        sending->callback = std::move(callback);
        migration::Topic* found = nullptr;
        try {
            found = &Find(topic);
            Check(sending->message);
            found->TellApart(sending->message);
        } catch (const Error& error) {
            return runtime::EndUnsent(shared_, std::move(sending), error);
        }
        found->Send(std::move(sending));
    }

    bool Flush(std::chrono::milliseconds timeout) {
        if (process_.InForkedChild() || callbacks_.OnOwnThread()) return false;
        const auto deadline = DeadlineAfter(timeout);
        return AwaitEnd(Topics(), deadline) && callbacks_.WaitIdle(deadline);
    }

    // ---- receiving

    Subscription Subscribe(std::string_view name, runtime::Dispatcher::Handler handler,
                           const RecvOptions& options) {
        ThrowIfInChild();
        migration::Topic& topic = Find(name);
        Check(options);
        const std::string group = options.group.empty() ? shared_.config.group : options.group;
        pool_.RaiseLimit(options.concurrency);
        StartThread([this] { pool_.Start(); }, "handlers");
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

    // ---- migrating

    void SetPolicy(std::string_view topic, Policy policy) {
        ThrowIfInChild();
        migration::Topic& found = Find(topic);
        const std::lock_guard lock{config_mutex_};
        ThrowIfClosed();
        found.SetPolicy(policy);
    }

    [[nodiscard]] TopicStatus Status(std::string_view topic) const {
        ThrowIfInChild();
        return Find(topic).Status();
    }

    void Reload(const Config& config) {
        ThrowIfInChild();
        const std::string changes = Change(config);
        log_(changes == kNoChange ? LogLevel::kDebug : LogLevel::kInfo, "a reload changes: " + changes);
    }

    void Watch(const std::filesystem::path& path) {
        ThrowIfInChild();
        const auto load = FindConfigLoader();
        if (load == nullptr) {
            throw Error{ErrorCode::kInvalidArgument,
                        "Watch needs a loader of config files: #include <mq/toml.hpp>"};
        }
        // Made absolute now: the working directory may change.
        const auto file = std::filesystem::absolute(path);
        const std::lock_guard lock{watch_mutex_};
        {
            const std::lock_guard config_lock{config_mutex_};
            ThrowIfClosed();
        }
        auto watcher = std::make_unique<FileWatcher>(
            file,
            [this, file, load](const ChangedFile& changed) { return Follow(file, load, changed); });
        // Ended before the new file is applied: nothing of the earlier one comes after that.
        watcher_.reset();
        watcher->Start(FollowFirst(file, load));
        watcher_ = std::move(watcher);
    }

    // ---- closing

    static void Close(const std::shared_ptr<ClientCore>& core, std::chrono::milliseconds timeout) {
        if (core->process_.InChild()) return;
        if (core->OnOwnThread()) {
            throw Error{ErrorCode::kInvalidArgument,
                        "a client cannot be closed by a handler or a callback, which Close waits for"};
        }
        CloseAside(core, timeout);
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

    enum class Closing : unsigned char { kNot, kBegun, kDone };

    // How much later than its deadline an adapter may hand a send back.
    static constexpr std::chrono::seconds kGrace{2};
    // How long RecvMsg waits for a broker that the topic does not publish to.
    static constexpr std::chrono::seconds kSecondBroker{5};
    // How much later than its deadline a part of an adapter may come back, before the client ends
    // without it.
    static constexpr std::chrono::seconds kComeBack{10};

    // Its threads are the parent's there, and its locks may be held by them for ever.
    void ThrowIfInChild() const {
        if (!process_.InForkedChild()) return;
        throw Error{ErrorCode::kClosed,
                    "the client was made before fork(), by process " +
                        std::to_string(process_.process()) +
                        ", and cannot be used in a child of it; make another client after fork()"};
    }

    // ---- sending

    [[nodiscard]] migration::Topic& Find(std::string_view topic) const {
        const TopicTable& table = *table_.load(std::memory_order_acquire);
        if (const auto found = table.find(topic); found != table.end()) return *found->second;
        throw Error{ErrorCode::kUnknownTopic, "the config has no topic " + Shown(topic) + "; add [" +
                                                  ShownKey(KeyPath("topics", topic)) + "]"};
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
        sending->deadline = DeadlineAfter(shared_.config.send_timeout);
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

    static void Check(const RecvOptions& options) {
        if (options.concurrency == 0) {
            throw Error{ErrorCode::kInvalidArgument, "RecvOptions::concurrency must be at least 1"};
        }
        if (options.prefetch > kPrefetch.highest) {
            throw Error{ErrorCode::kInvalidArgument,
                        "RecvOptions::prefetch is " + std::to_string(options.prefetch) +
                            ", expected a number from 1 to " + std::to_string(kPrefetch.highest) +
                            ", or 0 for the config's default"};
        }
    }

    // Makes a thread while there is somebody to tell that there is none: later the work comes from
    // where nothing may be thrown.
    template <typename Start>
    static void StartThread(Start start, std::string_view what) {
        try {
            start();
        } catch (const std::system_error& error) {
            throw Error{
                ErrorCode::kInternal,
                std::string{"the system gives no thread for "}.append(what) + ": " + error.what(),
                Outcome::kNotSent,
                NativeError{.code = error.code().value(), .text = error.code().message()}};
        }
    }

    void AwaitActive(const migration::Topic& topic, const migration::Listener& listener) {
        const auto deadline = DeadlineAfter(shared_.config.subscribe_timeout);
        const auto second_deadline = std::min(deadline, backend::Clock::now() + kSecondBroker);
        while (true) {
            const auto seen = signal_.Generation();
            if (listener.closing()) {
                throw Error{ErrorCode::kClosed, "topic " + topic.name() + ": the client is closed"};
            }
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

    // ---- config

    // Takes another config, all of it or none. Returns what that changes, for the log.
    std::string Change(const Config& config) {
        ThrowIfWrong(config, CheckConfig(config));
        const std::lock_guard lock{config_mutex_};
        ThrowIfClosed();
        ThrowIfWrong(config, WhyNot(config));
        std::string changes = DescribeChange(running_, config);
        Apply(config);
        return changes;
    }

    // The following are called with config_mutex_ held.

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
                WhyNotTopic(*topic, wanted->second, config, problems);
            } else if (topic->HasListeners()) {
                problems.push_back({path, "is gone, but the service is subscribed to it"});
            } else if (topic->sent_to()) {
                problems.push_back({path,
                                    "is gone, but the service has sent to it since it was started; "
                                    "leave it in the file until the service is restarted without it"});
            }
        }
        return problems;
    }

    void WhyNotTopic(const migration::Topic& topic, const TopicConfig& wanted, const Config& config,
                     std::vector<ConfigProblem>& problems) const {
        const std::string path = KeyPath("topics", topic.name());
        if (auto why = topic.WhyNot(wanted)) return problems.push_back({path, std::move(*why)});
        const auto running = running_.topics.find(topic.name());
        if (running == running_.topics.end() || !topic.WouldMove(wanted)) return;
        FindLeftOut(path, running->second, wanted, config, problems);
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
        running_ = config;
        if (!tables_.empty() && *tables_.back() == *table) return;
        table_.store(table.get(), std::memory_order_release);
        tables_.push_back(std::move(table));
    }

    // ---- following a file

    // How long a file must have stayed as it is before it is applied. One that was put in its place as
    // a whole is applied at once. One that was written in place may be a part of what its writer means:
    // several writes follow one another, and a part of a config is often a config.
    static std::chrono::milliseconds StillFor(FileChange last) noexcept {
        switch (last) {
            case FileChange::kReplaced: return std::chrono::milliseconds{0};
            case FileChange::kOpen: return std::chrono::seconds{10};
            case FileChange::kClosed:
            case FileChange::kUnseen: break;
        }
        return std::chrono::milliseconds{700};
    }
    // The same for a file which lets a topic move with less proof than before, or ends without a line
    // break, as one that is cut short does.
    static constexpr std::chrono::seconds kStillWhereItWidens{3};
    // How long Watch waits for a file to stay as it is.
    static constexpr std::chrono::seconds kFirstLook{10};

    // The first look at a file: it is applied at once, except where that would widen something and the
    // file has only just been written. Returns how much longer it must stay as it is; zero where it was
    // dealt with.
    std::chrono::milliseconds FollowFirst(const std::filesystem::path& path, ConfigLoader load) {
        const auto give_up = backend::Clock::now() + kFirstLook;
        while (true) {
            const auto wait = Follow(path, load, std::nullopt);
            const auto now = backend::Clock::now();
            if (wait == std::chrono::milliseconds{0} || now >= give_up) return wait;
            const auto until = std::min(now + wait, give_up);
            while (backend::Clock::now() < until) {
                const auto seen = signal_.Generation();
                {
                    const std::lock_guard lock{config_mutex_};
                    ThrowIfClosed();
                }
                signal_.WaitChange(seen, until);
            }
        }
    }

    // Applies a file, where it has stayed as it is for long enough. `changed` is nothing for the first
    // look. Returns as FollowFirst does.
    std::chrono::milliseconds Follow(const std::filesystem::path& path, ConfigLoader load,
                                     const std::optional<ChangedFile>& changed) {
        // What was read first is applied first.
        const std::lock_guard lock{follow_mutex_};
        const auto still =
            std::chrono::floor<std::chrono::milliseconds>(changed ? changed->still : FileAge(path));
        auto needed = changed ? StillFor(changed->last) : std::chrono::milliseconds{0};
        const bool whole = changed && changed->last == FileChange::kReplaced;
        try {
            const FileStamp stamp = StampOf(ResolveFile(path).target);
            const Config config = load(path);
            if (!whole && WidensOrIsCut(config, path)) {
                needed = std::max<std::chrono::milliseconds>(needed, kStillWhereItWidens);
            }
            if (still < needed) return needed - still;
            // Written while it was read: what was read may be a part of it.
            if (StampOf(ResolveFile(path).target) != stamp) return StillFor(FileChange::kClosed);
            const std::string changes = Change(config);
            log_(changes == kNoChange ? LogLevel::kDebug : LogLevel::kInfo,
                 path.string() + " is applied, which changes: " + changes);
        } catch (const Error& error) {
            if (error.code() == ErrorCode::kClosed) return {};  // the client ends, and this with it
            if (still < needed) return needed - still;
            log_(LogLevel::kError, path.string() + " was not applied: " + error.what());
        } catch (const std::exception& error) {
            if (still < needed) return needed - still;
            log_(LogLevel::kError, path.string() + " was not applied: " + error.what());
        }
        return {};
    }

    [[nodiscard]] bool WidensOrIsCut(const Config& config, const std::filesystem::path& path) const {
        const std::lock_guard lock{config_mutex_};
        if (Widens(running_, config)) return true;
        return DescribeChange(running_, config) != kNoChange && !EndsALine(path);
    }

    // How long ago a file was written, by its own time; long ago where that cannot be told.
    static backend::Clock::duration FileAge(const std::filesystem::path& path) {
        constexpr std::chrono::hours kLongAgo{1};
        std::error_code failed;
        const auto written = std::filesystem::last_write_time(path, failed);
        const auto now = std::filesystem::file_time_type::clock::now();
        if (failed || written > now || now - written > kLongAgo) return kLongAgo;
        return std::chrono::duration_cast<backend::Clock::duration>(now - written);
    }

    static bool EndsALine(const std::filesystem::path& path) {
        std::ifstream file{path, std::ios::binary | std::ios::ate};
        if (!file || file.tellg() <= 0) return false;
        file.seekg(-1, std::ios::end);
        return file.get() == '\n';
    }

    // ---- closing

    // Call with config_mutex_ held.
    void ThrowIfClosed() const {
        if (closing_ != Closing::kNot) throw Error{ErrorCode::kClosed, "the client is closed"};
    }

    // Who closes: the caller; nobody, since that is done; or another one, which has not come to the end
    // of it by the deadline. Within: the caller is in the middle of it, in the destructor of something
    // that a handler owned.
    enum class Closer : unsigned char { kCaller, kNobody, kOther, kWithin };

    Closer BeginClosing(backend::Clock::time_point deadline) {
        std::unique_lock lock{config_mutex_};
        if (closing_ == Closing::kNot) {
            closing_ = Closing::kBegun;
            return Closer::kCaller;
        }
        if (closer_ == std::this_thread::get_id()) return Closer::kWithin;
        const auto done = [this] { return closing_ == Closing::kDone; };
        return closed_.wait_until(lock, deadline, done) ? Closer::kNobody : Closer::kOther;
    }

    // Closes a core on a thread aside, so that nothing which never returns keeps the caller. kOther
    // where it has not come back; the core is then not closed, and that thread owns a share of it.
    static Closer CloseAside(const std::shared_ptr<ClientCore>& core,
                             std::chrono::milliseconds timeout) {
        const auto deadline = DeadlineAfter(timeout);
        const Closer closer = core->BeginClosing(deadline);
        if (closer != Closer::kCaller) return closer;
        const auto progress = std::make_shared<Progress>();
        const bool done = DoAside(progress, [core, progress, timeout, deadline] {
            core->CloseHere(*progress, timeout, deadline);
        });
        if (done) return Closer::kCaller;
        core->SayLeft(*progress);
        return Closer::kOther;
    }

    void CloseHere(Progress& progress, std::chrono::milliseconds timeout,
                   backend::Clock::time_point deadline) {
        {
            const std::lock_guard lock{config_mutex_};
            closer_ = std::this_thread::get_id();
        }
        CloseAllButHandlers(progress, deadline);
        SayWhoRuns();
        progress.Begin("its handlers", Progress::Clock::time_point::max());
        pool_.Stop();
        callbacks_.WaitIdle(DeadlineAfter(timeout));
        EndClosing();
    }

    void CloseAllButHandlers(Progress& progress, backend::Clock::time_point deadline) {
        const auto begin = [&](std::string what) {
            progress.Begin(std::move(what), std::max(deadline, backend::Clock::now()) + kComeBack);
        };
        begin("the watcher of its config file");
        StopWatching();
        const auto topics = Topics();
        begin("a subscription");
        CloseListeners(topics, deadline);
        for (migration::Topic* const topic : topics) topic->Shut();
        AwaitEnd(topics, deadline);
        // Its last step has gone on beside all that. It asks the brokers, which are closed after it.
        begin("a step of a migration");
        walker_.Stop();
        for (runtime::BrokerLink* const link : Links()) {
            begin("broker " + link->name());
            link->Close(deadline);
        }
    }

    // On a thread of its own that ends the program, and which nothing can wait for.
    void CloseAtExit() noexcept {
        if (BeginClosing(backend::Clock::time_point::min()) != Closer::kCaller) return;
        Progress nobody_waits;
        CloseAllButHandlers(nobody_waits, DeadlineAfter(kDefaultTimeout));
    }

    static void EndHere(std::shared_ptr<ClientCore>& core) noexcept {
        const Closer closer = CloseAside(core, kDefaultTimeout);
        if (closer == Closer::kWithin) return core.reset();  // whoever closes has a share
        const std::shared_ptr<LogGate> gate = core->gate_;
        if (closer == Closer::kOther) {
            // Handlers and callbacks may use what the caller is about to destroy.
            core->SayWhoRuns();
            core->pool_.Stop();
            core->callbacks_.Silence();
            core->callbacks_.Stop();
            core.reset();
            return gate->Shut();
        }
        core->callbacks_.Stop();  // sends need it that come after Close
        const auto progress = std::make_shared<Progress>();
        progress->Begin("the client library of a broker", backend::Clock::now() + kComeBack);
        const LogSink log = core->log_;
        if (DoAside(progress, [owned = std::move(core)]() mutable { owned.reset(); })) return;
        SayLeft(log, *progress);
        gate->Shut();
    }

    void SayLeft(const Progress& progress) const { SayLeft(log_, progress); }

    static void SayLeft(const LogSink& log, const Progress& progress) {
        log(LogLevel::kWarning, "the client ends without " + progress.what() +
                                    ", which has not come back in time; its thread is left behind");
    }

    // After the listeners were taken.
    void SayWhoRuns() const {
        std::vector<std::shared_ptr<migration::Listener>> taken;
        {
            const std::lock_guard lock{config_mutex_};
            taken = taken_;
        }
        for (const auto& listener : taken) {
            runtime::Dispatcher& dispatcher = listener->dispatcher();
            if (dispatcher.WaitHandlers(backend::Clock::now())) continue;
            log_(LogLevel::kWarning, "a handler of " + dispatcher.name() +
                                         " has not returned; the end of the client waits for it");
        }
    }

    void EndClosing() {
        std::vector<std::shared_ptr<migration::Listener>> taken;  // destroyed behind the lock
        const std::lock_guard lock{config_mutex_};
        closing_ = Closing::kDone;
        taken.swap(taken_);
        closed_.notify_all();
    }

    // ---- the parts of closing

    void StopWatching() {
        std::unique_ptr<FileWatcher> watcher;
        const std::lock_guard lock{watch_mutex_};
        watcher.swap(watcher_);
    }

    void CloseListeners(const std::vector<migration::Topic*>& topics,
                        backend::Clock::time_point deadline) {
        std::vector<std::shared_ptr<migration::Listener>> listeners;
        for (migration::Topic* const topic : topics) {
            for (auto& listener : topic->TakeListeners()) listeners.push_back(std::move(listener));
        }
        {
            const std::lock_guard lock{config_mutex_};
            taken_ = listeners;
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
    IdGenerator ids_;
    const ProcessMark process_;
    const std::shared_ptr<LogGate> gate_;
    const LogSink log_;  // through the gate
    runtime::SendingPool sendings_;
    runtime::Callbacks callbacks_{&runtime::RunCallbacks};
    const runtime::Shared shared_;
    Signal signal_;
    runtime::WorkerPool pool_;

    // Guards running_, links_, topics_, tables_, closing_, taken_ and closer_; serialises Reload.
    mutable std::mutex config_mutex_;
    Config running_;  // what was applied last
    std::map<std::string, std::unique_ptr<runtime::BrokerLink>> links_;
    std::map<std::string, std::unique_ptr<migration::Topic>> topics_;
    // Senders read the newest table without a lock; earlier ones stay for those who still do. One is
    // added only when the names of the topics change.
    std::vector<std::unique_ptr<const TopicTable>> tables_;
    std::atomic<const TopicTable*> table_{nullptr};
    migration::Walker walker_{signal_};

    Closing closing_ = Closing::kNot;
    std::vector<std::shared_ptr<migration::Listener>> taken_;  // that are being closed
    std::thread::id closer_;                                   // who closes; none until it has begun
    std::condition_variable closed_;

    std::mutex follow_mutex_;  // serialises Follow
    std::mutex watch_mutex_;   // guards watcher_; serialises Watch
    std::unique_ptr<FileWatcher> watcher_;
};

}  // namespace mq::detail
