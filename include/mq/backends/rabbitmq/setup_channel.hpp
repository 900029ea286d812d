/// @file setup_channel.hpp
/// Finds and makes exchanges, queues and bindings, one job after the other, on a channel of its own: a
/// broker closes the channel over whatever is missing or not allowed, and here that disturbs nobody.
/// Never blocks. Included by rabbitmq.hpp alone, behind the library's headers.
#pragma once

#include <mq/backends/rabbitmq/connection.hpp>
#include <mq/backends/rabbitmq/failure.hpp>
#include <mq/backends/rabbitmq/options.hpp>
#include <mq/backends/rabbitmq/queue_arguments.hpp>
#include <mq/backends/rabbitmq/topology.hpp>
#include <mq/log.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::rabbitmq::detail {

/// One thing that must be there.
struct Step {
    enum class Kind : unsigned char {
        kExchange,  ///< An exchange; declared where it is missing and options.declare is set.
        kQueue,     ///< A queue; the same.
        kBind,      ///< A binding; made in any case, for it may be there already.
        kInspect,   ///< A queue, which is only asked about.
        /// What a queue that is there was declared with: declared again, with what it should have. The
        /// broker refuses where it differs and says in what, and otherwise nothing happens.
        kCompare,
    };
    Kind kind = Kind::kExchange;
    std::string name = {};         ///< Of the exchange or queue.
    std::string exchange = {};     ///< kBind: what the queue is bound to.
    std::string key = {};          ///< kBind: with what.
    bool single_consumer = false;  ///< kQueue, kCompare: one member at a time gets messages.
};

using Steps = std::vector<Step>;

/// What a group needs before it consumes.
inline Steps StepsForGroup(const Topology& topology, const std::string& group, bool ordered,
                           const Options& options) {
    Steps steps;
    const std::string queue = topology.Queue(group);
    const bool bind = topology.HasExchange() && options.declare;
    if (bind) steps.push_back({Step::Kind::kExchange, topology.Exchange(), {}, {}, false});
    // The members of a group share a queue, and two of them would overtake each other on one key; with
    // a single active consumer the queue's order is the group's order.
    steps.push_back({Step::Kind::kQueue, queue, {}, {}, ordered});
    steps.push_back({Step::Kind::kCompare, queue, {}, {}, ordered});
    if (bind) {
        steps.push_back(
            {Step::Kind::kBind, queue, topology.Exchange(), topology.BindingKey(group), false});
    }
    return steps;
}

/// What a group that consumes still needs: the same, without a look at what the queue is like.
inline Steps StepsForUpkeep(const Topology& topology, const std::string& group, bool ordered,
                            const Options& options) {
    Steps steps = StepsForGroup(topology, group, ordered, options);
    std::erase_if(steps, [](const Step& step) { return step.kind == Step::Kind::kCompare; });
    return steps;
}

/// What a destination needs before it is published to: the queues of the groups that the config names
/// as well, so that a confirmed message is kept for those that have not subscribed yet.
inline Steps StepsForPublishing(const Topology& topology, const backend::Destination& destination,
                                const Options& options) {
    Steps steps;
    if (topology.HasExchange()) {
        steps.push_back({Step::Kind::kExchange, topology.Exchange(), {}, {}, false});
        for (const std::string& group : destination.groups) {
            for (Step& step : StepsForGroup(topology, group, destination.ordered, options)) {
                const bool consumer_only =
                    step.kind == Step::Kind::kExchange || step.kind == Step::Kind::kCompare;
                if (!consumer_only) steps.push_back(std::move(step));
            }
        }
    } else {
        steps.push_back({Step::Kind::kQueue, topology.Queue({}), {}, {}, destination.ordered});
    }
    return steps;
}

/// How a job ended.
struct SetupResult {
    std::optional<Failure> failure = {};
    std::uint32_t ready = 0;      ///< Of the last kInspect.
    std::uint32_t consumers = 0;  ///< The same.
    /// kCompare: what the queue was declared with; nothing where it is not known, and then why.
    std::optional<QueueArguments> arguments = {};
    std::string why_not_known = {};

    /// Whether the queue is certain to have a single active consumer.
    [[nodiscard]] bool SingleConsumer() const {
        return arguments && arguments->HasSingleActiveConsumer();
    }
};

/// The channel of one connection for such jobs. One thread.
class SetupChannel {
public:
    using Done = std::function<void(const SetupResult&)>;

    static constexpr std::uint16_t kChannel = 1;
    /// An answer that takes longer means that the broker has lost the question.
    static constexpr std::chrono::seconds kPatience{60};

    SetupChannel(const Options& options, LogSink log, std::string broker)
        : options_(options), log_(std::move(log)), broker_(std::move(broker)) {}

    /// Does the steps in their order and calls `done` at the end, or at the first that fails.
    void Run(Steps steps, Done done) {
        jobs_.push_back({std::move(steps), std::move(done)});
        if (jobs_.size() == 1) Begin();
    }

    void Up(Connection& connection) {
        connection_ = &connection;
        Begin();
    }

    /// The connection is gone: fails every job with `failure`.
    void Down(const Failure& failure) {
        connection_ = nullptr;
        open_ = opening_ = waiting_ = false;
        SetupResult result;
        result.failure = failure;
        for (Job& job : std::exchange(jobs_, {})) job.done(result);
    }

    void OnMethod(const amqp_method_t& method);

    /// While the broker has blocked the connection it answers nothing, and that is no fault.
    void SetBlocked(bool blocked) {
        blocked_ = blocked;
        asked_at_ = Clock::now();
    }

    /// When the answer that is waited for is overdue; time_point::max() where none is.
    [[nodiscard]] Clock::time_point Overdue() const {
        return waiting_ && !blocked_ ? asked_at_ + kPatience : Clock::time_point::max();
    }

private:
    struct Job {
        Steps steps = {};
        Done done = {};
        std::size_t at = 0;
        bool declare = false;  // the step was found missing, and is being declared
        bool raced = false;    // somebody else has declared it meanwhile, with other arguments
        int corrections = 0;   // kCompare: how often the guess was wrong
        SetupResult result = {};
    };

    void Begin() {
        if (connection_ == nullptr || jobs_.empty() || waiting_) return;
        if (!open_) {
            amqp_channel_open_t open{};
            Ask(AMQP_CHANNEL_OPEN_METHOD, &open);
            opening_ = true;
            return;
        }
        const Job& job = jobs_.front();
        if (job.at == job.steps.size()) {
            Finish();
            return;
        }
        const Step& step = job.steps[job.at];
        AskFor(step, !job.declare && step.kind != Step::Kind::kCompare);
    }

    void Ask(amqp_method_number_t id, void* method) {
        connection_->SendMethod(kChannel, id, method);
        waiting_ = true;
        asked_at_ = Clock::now();
    }

    [[nodiscard]] QueueArguments Wanted(const Step& step) const;
    void AskFor(const Step& step, bool passive);
    void DeclareQueue(const Step& step, const QueueArguments& arguments);
    bool OnDiffers(Job& job, const std::string& text);
    void OnStepDone(const amqp_method_t& method);
    void OnClosed(const amqp_channel_close_t& close);

    void Finish() {
        Job job = std::move(jobs_.front());
        jobs_.pop_front();
        job.done(job.result);
        Begin();
    }

    // More arguments than any queue has.
    static constexpr int kMostCorrections = 24;
    // What is remembered of queues, so that the broker need not refuse anew after a reconnect.
    static constexpr std::size_t kMostKnown = 10'000;

    const Options& options_;
    LogSink log_;
    std::string broker_;
    Connection* connection_ = nullptr;  // null while there is none
    std::deque<Job> jobs_ = {};
    std::map<std::string, QueueArguments> known_ =
        {};  // by queue: as it was when it was last looked at
    bool open_ = false;
    bool opening_ = false;
    bool waiting_ = false;  // for an answer
    bool blocked_ = false;
    Clock::time_point asked_at_ = {};
};

inline void SetupChannel::AskFor(const Step& step, bool passive) {
    switch (step.kind) {
        case Step::Kind::kExchange: {
            amqp_exchange_declare_t declare{};
            declare.exchange = Bytes(step.name);
            declare.type = Bytes(options_.exchange_type);
            declare.passive = passive ? 1 : 0;
            declare.durable = 1;
            Ask(AMQP_EXCHANGE_DECLARE_METHOD, &declare);
            return;
        }
        case Step::Kind::kQueue:
        case Step::Kind::kInspect:
            if (!passive) return DeclareQueue(step, Wanted(step));
            {
                amqp_queue_declare_t declare{};
                declare.queue = Bytes(step.name);
                declare.passive = 1;
                Ask(AMQP_QUEUE_DECLARE_METHOD, &declare);
            }
            return;
        case Step::Kind::kCompare: {
            const auto known = known_.find(step.name);
            return DeclareQueue(step, known == known_.end() ? Wanted(step) : known->second);
        }
        case Step::Kind::kBind: {
            amqp_queue_bind_t bind{};
            bind.queue = Bytes(step.name);
            bind.exchange = Bytes(step.exchange);
            bind.routing_key = Bytes(step.key);
            Ask(AMQP_QUEUE_BIND_METHOD, &bind);
            return;
        }
    }
}

// With its type in so many words: a broker that adds a default type of its own then tells.
inline QueueArguments SetupChannel::Wanted(const Step& step) const {
    using Type = QueueArguments::Type;
    const bool quorum = options_.queue_type == QueueType::kQuorum;
    QueueArguments wanted{quorum ? "quorum" : "classic"};
    if (step.single_consumer) wanted.Set("x-single-active-consumer", {Type::kFlag, "true"});
    // Each connection that is lost returns what was prefetched, begun with or not, and each return
    // counts. A RabbitMQ before 4.0 has no limit unless told so, and takes -1 for 0.
    if (quorum && connection_->GetServer().HasDefaultDeliveryLimit()) {
        wanted.Set("x-delivery-limit", {Type::kNumber, "-1"});
    }
    return wanted;
}

inline void SetupChannel::DeclareQueue(const Step& step, const QueueArguments& arguments) {
    std::vector<amqp_table_entry_t> entries;
    for (const auto& [name, value] : arguments.All()) {
        amqp_table_entry_t& entry = entries.emplace_back();
        entry.key = Bytes(name);
        switch (value.type) {
            case QueueArguments::Type::kText:
                // A classic queue is what every broker makes of no type, older ones included.
                if (name == "x-queue-type" && value.text == "classic" &&
                    step.kind != Step::Kind::kCompare) {
                    entries.pop_back();
                    break;
                }
                entry.value.kind = AMQP_FIELD_KIND_UTF8;
                entry.value.value.bytes = Bytes(value.text);
                break;
            case QueueArguments::Type::kNumber:
                entry.value.kind = AMQP_FIELD_KIND_I64;
                entry.value.value.i64 = std::stoll(value.text);
                break;
            case QueueArguments::Type::kFlag:
                entry.value.kind = AMQP_FIELD_KIND_BOOLEAN;
                entry.value.value.boolean = value.text == "true" ? 1 : 0;
                break;
        }
    }
    amqp_queue_declare_t declare{};
    declare.queue = Bytes(step.name);
    declare.durable = arguments.Durable() ? 1 : 0;
    declare.auto_delete = arguments.AutoDelete() ? 1 : 0;
    declare.arguments = {static_cast<int>(entries.size()), entries.data()};
    Ask(AMQP_QUEUE_DECLARE_METHOD, &declare);
}

// Whether to ask again, with what the broker has said.
inline bool SetupChannel::OnDiffers(Job& job, const std::string& text) {
    const Step& step = job.steps[job.at];
    QueueArguments guess = Wanted(step);
    const auto known = known_.find(step.name);
    if (known != known_.end()) guess = known->second;
    if (++job.corrections > kMostCorrections || !guess.Correct(text)) {
        if (known != known_.end()) known_.erase(known);
        return false;
    }
    if (known == known_.end() && known_.size() >= kMostKnown) known_.clear();
    known_.insert_or_assign(step.name, std::move(guess));
    return true;
}

inline void SetupChannel::OnMethod(const amqp_method_t& method) {
    switch (method.id) {
        case AMQP_CHANNEL_OPEN_OK_METHOD:
            open_ = true;
            opening_ = waiting_ = false;
            Begin();
            return;
        case AMQP_EXCHANGE_DECLARE_OK_METHOD:
        case AMQP_QUEUE_DECLARE_OK_METHOD:
        case AMQP_QUEUE_BIND_OK_METHOD: OnStepDone(method); return;
        case AMQP_CHANNEL_CLOSE_METHOD:
            OnClosed(*static_cast<const amqp_channel_close_t*>(method.decoded));
            return;
        default: return;
    }
}

inline void SetupChannel::OnStepDone(const amqp_method_t& method) {
    if (!waiting_ || jobs_.empty()) return;
    waiting_ = false;
    Job& job = jobs_.front();
    const Step& step = job.steps[job.at];
    if (step.kind == Step::Kind::kInspect) {
        const auto& declared = *static_cast<const amqp_queue_declare_ok_t*>(method.decoded);
        job.result.ready = declared.message_count;
        job.result.consumers = declared.consumer_count;
    }
    if (step.kind == Step::Kind::kCompare) {
        const auto known = known_.find(step.name);
        job.result.arguments = known == known_.end() ? Wanted(step) : known->second;
    }
    if (job.declare) {
        log_(LogLevel::kInfo, broker_ + ": declared the " +
                                  (step.kind == Step::Kind::kExchange ? "exchange " : "queue ") +
                                  step.name);
    }
    ++job.at;
    job.declare = job.raced = false;
    Begin();
}

inline void SetupChannel::OnClosed(const amqp_channel_close_t& close) {
    const std::uint16_t code = close.reply_code;
    const std::string text{View(close.reply_text)};
    amqp_channel_close_ok_t close_ok{};
    connection_->SendMethod(kChannel, AMQP_CHANNEL_CLOSE_OK_METHOD, &close_ok);
    open_ = waiting_ = false;
    if (jobs_.empty()) return;
    Job& job = jobs_.front();
    const bool opening = std::exchange(opening_, false);
    const Step::Kind kind = opening ? Step::Kind::kInspect : job.steps[job.at].kind;
    const bool can_declare = kind == Step::Kind::kExchange || kind == Step::Kind::kQueue;
    if (can_declare && !job.declare && code == kNotFoundReply && options_.declare && !job.raced) {
        job.declare = true;
    } else if (can_declare && job.declare && code == kPreconditionFailed && !job.raced) {
        job.declare = false;
        job.raced = true;
    } else if (kind == Step::Kind::kCompare &&
               (code == kPreconditionFailed || code == kAccessRefused || code == kResourceLocked)) {
        if (code != kPreconditionFailed || !OnDiffers(job, text)) {
            job.result.why_not_known = text;
            ++job.at;
        }
    } else {
        job.result.failure = FromReply(connection_->Where(), code, text);
        Finish();
        return;
    }
    Begin();
}

}  // namespace mq::rabbitmq::detail
