/// @file handle.hpp
/// One rd_kafka_t with its properties, its log, its connections and its callbacks.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/assignors.hpp>
#include <mq/backends/kafka/connectivity.hpp>
#include <mq/backends/kafka/fetch_waker.hpp>
#include <mq/backends/kafka/native.hpp>
#include <mq/backends/kafka/options.hpp>
#include <mq/backends/kafka/redaction.hpp>
#include <mq/detail/abandoned.hpp>
#include <mq/detail/duration.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::kafka::detail {

/// What a handle does besides connecting. Called on the thread that polls it.
class HandleEvents {
public:
    virtual void OnReport(const rd_kafka_message_t& /*message*/) noexcept {}
    virtual void OnRebalance(rd_kafka_resp_err_t /*what*/,
                             rd_kafka_topic_partition_list_t& /*partitions*/) noexcept {}
    virtual void OnCommitted(rd_kafka_resp_err_t /*error*/,
                             const rd_kafka_topic_partition_list_t* /*offsets*/) noexcept {}

protected:
    ~HandleEvents() = default;
};

enum class Role : unsigned char { kProducer, kConsumer, kAdmin };

/// The properties of a handle in the order in which they are set: what the adapter would have, what the
/// URL and the options say, and what the adapter must have.
class Properties {
public:
    static constexpr const char* kAssignors = "partition.assignment.strategy";

    static std::vector<Property> Of(const Broker& broker, Role role,
                                    const std::vector<Property>& required = {}) {
        std::vector<Property> all = Preferred(broker, role);
        Append(all, UrlProperties(broker.context.url));
        Append(all, FromOptions(broker.options, role));
        Append(all, Required(broker, role));
        Append(all, required);
        return all;
    }

    static std::vector<Property> FromOptions(const Options& options, Role role) {
        std::vector<Property> all = options.both;
        Append(all, role == Role::kProducer ? options.producer : options.consumer);
        return all;
    }

private:
    static void Append(std::vector<Property>& all, const std::vector<Property>& more) {
        all.insert(all.end(), more.begin(), more.end());
    }

    static std::vector<Property> Preferred(const Broker& broker, Role role) {
        std::vector<Property> all{
            {"client.id", broker.context.client_id}, {"log.connection.close", "false"},
            {"reconnect.backoff.max.ms", "2000"},    {"socket.keepalive.enable", "true"},
            {"socket.nagle.disable", "true"},
        };
        if (role == Role::kProducer) {
            Append(all, {{"enable.idempotence", "true"},
                         {"partitioner", "murmur2_random"},
                         {"message.max.bytes", "16777216"}});
        }
        if (role == Role::kConsumer) {
            Append(all, {{"auto.offset.reset", "earliest"},
                         {kAssignors, std::string{PreferredAssignors(rd_kafka_version())}},
                         {"auto.commit.interval.ms", "500"},
                         // A member that died without leaving keeps its partitions for so long.
                         {"session.timeout.ms", "15000"},
                         // What a broker that stands still leaves unanswered is given up after it.
                         {"socket.timeout.ms", "15000"},
                         {"heartbeat.interval.ms", "1000"},
                         {"fetch.error.backoff.ms", "100"},
                         // So long a partition that is added to a topic is nobody's.
                         {"topic.metadata.refresh.interval.ms", "10000"},
                         // For each topic: kafka.hpp says what that makes.
                         {"queued.max.messages.kbytes", "8192"}});
            if (FetchWaker::LibraryLooksItself()) {
                Append(all, {{FetchWaker::kProperty, "5"}});
            }
        }
        return all;
    }

    static std::vector<Property> Required(const Broker& broker, Role role) {
        const char* const create = broker.options.AutoCreate() ? "true" : "false";
        if (role == Role::kProducer) {
            // One request at a time for each broker. With more, a broker that is about to become the
            // leader of a partition refuses the first and takes the second, of which it cannot tell
            // that something is missing before it, and librdkafka (seen with 2.0.2) takes that for a
            // confirm of both.
            return {{"acks", "all"},
                    {"max.in.flight.requests.per.connection", "1"},
                    {"message.timeout.ms", std::to_string(MessageTimeout(broker).count())},
                    {"allow.auto.create.topics", create},
                    // What waits for a topic that is being made waits for as long as it may: whether
                    // that comes to be is for Admin to find out, and for the Sender to say. More than
                    // 35 minutes overflow an int of librdkafka's (seen with 2.0.2).
                    {"topic.metadata.propagation.max.ms", broker.options.declare ? "1800000" : "0"}};
        }
        if (role == Role::kConsumer) {
            return {{"enable.auto.commit", "true"},
                    {"enable.auto.offset.store", "false"},
                    {"enable.partition.eof", "true"},
                    {"allow.auto.create.topics", create}};
        }
        // The admin handle asks for what is stored, whether its transaction has ended or not. It joins
        // no group, and names one all the same: where a coordinator that has just moved answers
        // ListConsumerGroupOffsets, librdkafka (seen with 2.0.2, and reported up to 2.4) looks for its
        // own group's coordinator again, and ends the process where it has no group.
        return {{"allow.auto.create.topics", "false"},
                {"isolation.level", "read_uncommitted"},
                {"group.id", "mq-admin"}};
    }

    // librdkafka looks for timed-out messages once a second: a little less than the deadline.
    static milliseconds MessageTimeout(const Broker& broker) {
        const milliseconds timeout = broker.context.send_timeout;
        return std::max(timeout - std::min<milliseconds>(std::chrono::seconds{1}, timeout / 4),
                        milliseconds{10});
    }
};

/// Lets one line of a kind through in a while. Thread-safe.
class LogThrottle {
public:
    bool Allow(const std::string& kind) {
        constexpr std::chrono::seconds kInterval{10};
        constexpr std::size_t kMostKinds = 256;
        const std::lock_guard lock{mutex_};
        const auto now = Clock::now();
        if (last_.size() > kMostKinds) last_.clear();
        const auto [place, added] = last_.try_emplace(kind, now);
        if (!added && now - place->second < kInterval) return false;
        place->second = now;
        return true;
    }

private:
    std::mutex mutex_ = {};  // guards last_
    std::map<std::string, Clock::time_point> last_ = {};
};

/// One rd_kafka_t, with its log, its connections and its callbacks: what librdkafka's threads may call
/// until Destroy has returned.
class NativeHandle {
public:
    /// See Handle.
    NativeHandle(std::shared_ptr<const Broker> broker, Role role,
                 const std::vector<Property>& properties, HandleEvents* events,
                 std::function<void()> connectivity_changed = {})
        : broker_(std::move(broker)),
          events_(events),
          redaction_(properties),
          connectivity_(std::move(connectivity_changed)) {
        Owned<rd_kafka_conf_t> conf{rd_kafka_conf_new()};
        if (const std::string problem = Configure(*conf, properties); !problem.empty()) {
            throw ConfigError(problem);
        }
        const bool oauth = SetCallbacks(*conf, role);
        std::array<char, 512> text{};
        rk_ = rd_kafka_new(TypeOf(role), conf.get(), text.data(), text.size());
        // Where librdkafka 2.0 fails after its interceptors have been added, it leaves a conf that
        // cannot be destroyed.
        if (rk_ != nullptr || watched_) static_cast<void>(conf.release());
        if (rk_ == nullptr) throw ConfigError(text.data());
        // The token is then refreshed whether or not anybody polls.
        if (oauth) Owned<rd_kafka_error_t>{rd_kafka_sasl_background_callbacks_enable(rk_)};
    }

    NativeHandle(const NativeHandle&) = delete;
    NativeHandle& operator=(const NativeHandle&) = delete;
    ~NativeHandle() = default;

    /// Blocks until every thread of the handle has ended, which may be for ever. What was made of the
    /// handle (queues, topics, messages) is destroyed before. Once.
    void Destroy() noexcept { rd_kafka_destroy_flags(rk_, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE); }

    /// When it returns, the handle calls nobody any more, and nobody polls it. Waits for a line of the
    /// log that is being said.
    void Mute() noexcept {
        const std::lock_guard lock{calls_};
        muted_ = true;
    }

    /// Keeps `object` for as long as librdkafka may use it.
    void Keep(std::shared_ptr<void> object) { kept_.push_back(std::move(object)); }

    [[nodiscard]] rd_kafka_t* get() const noexcept { return rk_; }
    [[nodiscard]] Connectivity& connectivity() noexcept { return connectivity_; }
    [[nodiscard]] const Connectivity& connectivity() const noexcept { return connectivity_; }

    /// Why there is no connection: the last failure, in librdkafka's words.
    [[nodiscard]] Error Unavailable(const std::string& what) const {
        const Connectivity::Failure failure = connectivity_.LastFailure();
        const auto code = static_cast<rd_kafka_resp_err_t>(failure.code);
        const bool denied = failure.code != 0 && CodeOf(code) == ErrorCode::kAccessDenied;
        const std::string text = failure.text.empty() ? "no broker is connected" : failure.text;
        return {denied ? ErrorCode::kAccessDenied : ErrorCode::kUnavailable,
                broker_->Text(what + ": " + text),
                Outcome::kNotSent,
                {failure.code, text}};
    }

    /// Sets one property; what is wrong with it, empty for nothing. No secret is quoted.
    static std::string Set(rd_kafka_conf_t& conf, const Property& property) {
        std::array<char, 512> text{};
        const auto& [name, value] = property;
        const auto result =
            rd_kafka_conf_set(&conf, name.c_str(), value.c_str(), text.data(), text.size());
        if (result == RD_KAFKA_CONF_OK) return {};
        if (result == RD_KAFKA_CONF_UNKNOWN) return "librdkafka has no property \"" + name + "\"";
        if (IsSecret(name)) return "librdkafka does not take this value";
        return std::string{"librdkafka says: "} + text.data();
    }

    /// What librdkafka has against properties that are each right by themselves; empty for nothing.
    /// Without `bootstrap.servers` nothing is connected.
    static std::string Try(Role role, const std::vector<Property>& properties) {
        Owned<rd_kafka_conf_t> conf{rd_kafka_conf_new()};
        std::string problem = Configure(*conf, properties);
        if (!problem.empty()) return problem;
        rd_kafka_conf_set_log_cb(conf.get(), nullptr);
        std::array<char, 512> text{};
        rd_kafka_t* const rk = rd_kafka_new(TypeOf(role), conf.get(), text.data(), text.size());
        if (rk == nullptr) return text.data();
        static_cast<void>(conf.release());
        rd_kafka_destroy_flags(rk, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
        return {};
    }

    /// What librdkafka makes of a property, in its own words and among all of them; empty where it has
    /// none of that name. For handles that are made of the properties.
    static std::string Effective(const std::vector<Property>& properties, const std::string& name) {
        const Owned<rd_kafka_conf_t> conf{rd_kafka_conf_new()};
        for (const Property& property : properties) Set(*conf, property);
        std::array<char, 256> text{};
        std::size_t size = text.size();
        if (rd_kafka_conf_get(conf.get(), name.c_str(), text.data(), &size) != RD_KAFKA_CONF_OK)
            return {};
        return text.data();
    }

private:
    static rd_kafka_type_t TypeOf(Role role) {
        return role == Role::kProducer ? RD_KAFKA_PRODUCER : RD_KAFKA_CONSUMER;
    }

    [[nodiscard]] Error ConfigError(const std::string& text) const {
        return {ErrorCode::kConfig, broker_->Text(text)};
    }

    static std::string Configure(rd_kafka_conf_t& conf, const std::vector<Property>& properties) {
        for (const Property& property : properties) {
            const std::string problem = Set(conf, property);
            if (!problem.empty()) return property.first + ": " + problem;
        }
        return {};
    }

    /// Whether tokens have to be refreshed.
    bool SetCallbacks(rd_kafka_conf_t& conf, Role role) {
        rd_kafka_conf_set_opaque(&conf, this);
        rd_kafka_conf_set_log_cb(&conf, &NativeHandle::OnLog);
        rd_kafka_conf_set_error_cb(&conf, &NativeHandle::OnError);
        rd_kafka_conf_interceptor_add_on_new(&conf, "mq", &NativeHandle::OnNew, this);
        if (role == Role::kProducer) rd_kafka_conf_set_dr_msg_cb(&conf, &NativeHandle::OnReport);
        if (role == Role::kConsumer) {
            rd_kafka_conf_set_rebalance_cb(&conf, &NativeHandle::OnRebalance);
            rd_kafka_conf_set_offset_commit_cb(&conf, &NativeHandle::OnCommitted);
        }
        std::array<char, 256> mechanism{};
        std::size_t size = mechanism.size();
        const bool oauth =
            rd_kafka_conf_get(&conf, "sasl.mechanisms", mechanism.data(), &size) == RD_KAFKA_CONF_OK &&
            std::string_view{mechanism.data()} == "OAUTHBEARER";
        if (oauth) rd_kafka_conf_enable_sasl_queue(&conf, 1);
        return oauth;
    }

    static NativeHandle& Of(void* opaque) { return *static_cast<NativeHandle*>(opaque); }

    // The callbacks are called by C, through which nothing may be thrown.

    static rd_kafka_resp_err_t OnNew(rd_kafka_t* rk, const rd_kafka_conf_t*, void* opaque, char*,
                                     std::size_t) noexcept {
        Of(opaque).watched_ = true;
        return rd_kafka_interceptor_add_on_broker_state_change(rk, "mq", &NativeHandle::OnBrokerState,
                                                               opaque);
    }

    static rd_kafka_resp_err_t OnBrokerState(rd_kafka_t*, std::int32_t, const char*, const char* host,
                                             int port, const char* state, void* opaque) noexcept {
        try {
            NativeHandle& self = Of(opaque);
            self.Call([&] { self.connectivity_.OnState(host, port, state); });
        } catch (...) {
            return RD_KAFKA_RESP_ERR__FAIL;
        }
        return RD_KAFKA_RESP_ERR_NO_ERROR;
    }

    static void OnLog(const rd_kafka_t* rk, int level, const char* facility,
                      const char* text) noexcept {
        if (rk == nullptr) return;
        try {
            NativeHandle& self = Of(rd_kafka_opaque(rk));
            self.Call([&] { self.TakeLine(level, facility, text); });
        } catch (...) {  // a line less
        }
    }

    /// What librdkafka's own threads call; Mute waits for it, as destroying the handle would.
    template <typename Function>
    void Call(Function function) {
        const std::shared_lock lock{calls_};
        if (!muted_) function();
    }

    void TakeLine(int level, const std::string& facility, std::string_view line) {
        constexpr int kErrors = 3;
        constexpr int kWarnings = 4;
        constexpr int kDebug = 7;
        // A property of the other role, which an option may well be.
        if (line.find("and will be ignored by this") != std::string_view::npos) return;
        const bool routine = facility == "AUTOCREATE" || line.ends_with(": retrying");
        if (level <= kWarnings && (routine || !throttle_.Allow(facility))) level = kDebug;
        const LogLevel mapped = level <= kErrors || level == kWarnings ? LogLevel::kWarning
                                : level == kDebug                      ? LogLevel::kDebug
                                                                       : LogLevel::kInfo;
        broker_->Log(mapped, facility + ": " + redaction_.Of(facility, line));
    }

    static void OnError(rd_kafka_t*, int code, const char* reason, void* opaque) noexcept {
        try {
            Of(opaque).TakeError(code, reason);
        } catch (...) {  // an error less in the texts
        }
    }

    void TakeError(int code, std::string_view reason) {
        const auto error = static_cast<rd_kafka_resp_err_t>(code);
        const std::string text = redaction_.Of("ERROR", reason);
        // What came before it says why.
        if (error != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) connectivity_.OnFailure(code, text);
        const bool allowed = throttle_.Allow(rd_kafka_err2name(error));
        broker_->Log(allowed ? LogLevel::kWarning : LogLevel::kDebug, text);
    }

    static void OnReport(rd_kafka_t*, const rd_kafka_message_t* message, void* opaque) noexcept {
        Of(opaque).events_->OnReport(*message);
    }

    static void OnRebalance(rd_kafka_t*, rd_kafka_resp_err_t what,
                            rd_kafka_topic_partition_list_t* partitions, void* opaque) noexcept {
        Of(opaque).events_->OnRebalance(what, *partitions);
    }

    static void OnCommitted(rd_kafka_t*, rd_kafka_resp_err_t error,
                            rd_kafka_topic_partition_list_t* offsets, void* opaque) noexcept {
        Of(opaque).events_->OnCommitted(error, offsets);
    }

    const std::shared_ptr<const Broker> broker_;
    HandleEvents* const events_;
    const Redaction redaction_;
    Connectivity connectivity_;
    LogThrottle throttle_ = {};
    bool watched_ = false;  // the interceptor has been added
    std::shared_mutex calls_ = {};
    bool muted_ = false;  // guarded by calls_
    std::vector<std::shared_ptr<void>> kept_ = {};
    rd_kafka_t* rk_ = nullptr;
};

/// One rd_kafka_t, and its end, for which librdkafka may take for ever: it waits for each of its
/// threads, one of which may be held by a resolver, wait for a request that nobody answers, or miss a
/// reference that it has lost (seen with 2.0.2, and in its issues 4187 and 4724: a topic deleted under
/// a consumer).
class Handle {
public:
    /// How long the destructor waits. What takes longer goes on by itself, until the process ends if
    /// need be, and the log says so.
    static constexpr std::chrono::seconds kEndPatience{5};

    /// Connects nothing yet. `events` outlives the handle; null for none. `connectivity_changed` is
    /// called on threads of librdkafka that hold locks of its own; what it uses is its own, for a
    /// handle that does not end keeps it.
    /// @throws Error (kConfig) where librdkafka does not take the properties.
    Handle(const std::shared_ptr<const Broker>& broker, Role role,
           const std::vector<Property>& properties, HandleEvents* events,
           std::function<void()> connectivity_changed = {})
        : broker_(broker),
          role_(role),
          native_(std::make_shared<NativeHandle>(broker, role, properties, events,
                                                 std::move(connectivity_changed))) {}

    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;

    /// What was made of the handle (queues, topics, messages) is destroyed before, and nobody polls it.
    /// Blocks for kEndPatience at most.
    ~Handle() { End(Clock::now() + kEndPatience); }

    /// Has the handle destroyed in the background, without a word and without waiting: it calls nobody
    /// any more.
    void Release() noexcept {
        if (native_ != nullptr) native_->Mute();
        static_cast<void>(Destroyed(Clock::now()));
    }

    /// The destructor, with another deadline. Idempotent.
    void End(Clock::time_point deadline) noexcept {
        const std::shared_ptr<NativeHandle> native = native_;
        const auto begun = Clock::now();
        if (native == nullptr || Destroyed(deadline)) return;
        native->Mute();
        const auto waited = std::chrono::duration_cast<milliseconds>(Clock::now() - begun);
        broker_->Log(LogLevel::kWarning,
                     std::string{"librdkafka has not ended a "} + NameOf(role_) + " within " +
                         mq::detail::FormatDuration(waited) +
                         ": its threads are left to themselves, until they end or the process does");
    }

    /// Keeps a handle until the process ends, for one that must not be destroyed. Nobody polls it any
    /// more, and it calls nobody once this has returned. Thread-safe.
    static void Abandon(std::unique_ptr<Handle> handle) {
        handle->native_->Mute();
        mq::detail::Abandoned::KeepForEver(std::move(handle->native_));
    }

    /// Keeps `object` for as long as librdkafka may use it. Before the end.
    void Keep(std::shared_ptr<void> object) { native_->Keep(std::move(object)); }

    [[nodiscard]] rd_kafka_t* get() const noexcept { return native_->get(); }
    [[nodiscard]] Connectivity& connectivity() noexcept { return native_->connectivity(); }
    [[nodiscard]] const Connectivity& connectivity() const noexcept { return native_->connectivity(); }

    /// Why there is no connection: the last failure, in librdkafka's words.
    [[nodiscard]] Error Unavailable(const std::string& what) const {
        return native_->Unavailable(what);
    }

    /// Sets one property; what is wrong with it, empty for nothing. No secret is quoted.
    static std::string Set(rd_kafka_conf_t& conf, const Property& property) {
        return NativeHandle::Set(conf, property);
    }

    /// What librdkafka has against properties that are each right by themselves; empty for nothing.
    /// Without `bootstrap.servers` nothing is connected.
    static std::string Try(Role role, const std::vector<Property>& properties) {
        return NativeHandle::Try(role, properties);
    }

    /// What librdkafka makes of a property, in its own words and among all of them; empty where it has
    /// none of that name. For handles that are made of the properties.
    static std::string Effective(const std::vector<Property>& properties, const std::string& name) {
        return NativeHandle::Effective(properties, name);
    }

private:
    static const char* NameOf(Role role) {
        switch (role) {
            case Role::kProducer: return "producer";
            case Role::kConsumer: return "consumer";
            case Role::kAdmin: break;
        }
        return "handle that asks about topics and groups";
    }

    // Whether it was destroyed by the deadline, or nobody is there to be destroyed.
    bool Destroyed(Clock::time_point deadline) noexcept {
        if (native_ == nullptr) return true;
        const std::shared_ptr<NativeHandle> native = std::exchange(native_, nullptr);
        try {
            return mq::detail::Abandoned::RunUntil([native] { native->Destroy(); }, deadline);
        } catch (const std::exception&) {  // the system gives no thread that could be waited for
            mq::detail::Abandoned::KeepForEver(native);
            return false;
        }
    }

    const std::shared_ptr<const Broker> broker_;
    const Role role_;
    std::shared_ptr<NativeHandle> native_;  // null once its end has begun
};

}  // namespace mq::kafka::detail
