/// @file rabbitmq.hpp
/// RabbitMQ, over rabbitmq-c: including this header makes `amqp://` and `amqps://` brokers available.
/// A topic is a durable exchange and a group a durable queue bound to it; messages travel in AMQP's
/// native form. The only header that includes the client library.
///
/// **URL.** `amqp://USER:PASSWORD@HOST:PORT,HOST:PORT/VHOST`, guest by default, ports 5672 and 5671
/// (amqps). Several hosts are tried in turn. An absent or empty VHOST is "/". **Options** are those of
/// mq::rabbitmq::Options, by the same names, and tls.verify, tls.ca, tls.cert and tls.key.
///
/// **Addresses.** `NAME` or `exchange://NAME` is an exchange, with the queue `NAME.GROUP` (option
/// queue_name) for each group. `queue://NAME` is one queue, fed through the default exchange: every
/// group that names it shares it. What exists is used as it is; what is missing is declared, durable,
/// unless the option declare is false.
///
/// **Looked after.** What is declared is looked at again: for a consumer every 10 seconds, for what is
/// published to every 10 seconds while it is in use, and before a message where the last look is 20
/// seconds old. What another program has deleted or unbound meanwhile is made again, or sends fail;
/// what was confirmed in between, a group has missed whose queue or binding was gone.
///
/// **Refused, and said.** A stream is refused (kUnsupported): it keeps no place for a group. Of a
/// quorum queue with a delivery limit at most so many messages are held, since a connection that ends
/// returns them and each return counts. A queue that drops messages by its arguments, or by a policy
/// where the management can be asked, is said when it is consumed. A message that cannot be read
/// (headers of more than 16 MiB) sets its own subscription aside, for 1 to 16 minutes between attempts.
///
/// **Outcomes.** A message that no queue takes is kUnroutable. basic.nack is kRefused with an unknown
/// outcome: one of several queues may have taken the message. A channel that the broker closes is
/// opened again, and what was in flight is repeated one by one, so that the message over which it was
/// closed is the one that fails.
///
/// **Backlog.** AMQP tells the messages that are ready, but not what other processes hold unsettled,
/// nor reliably who they are: a member that ends is no consumer any more while it still holds messages.
/// CheckBacklog is exact for ordered topics, where it asks the active member by a probe (probing.hpp),
/// provided that the queue has a single active consumer. Elsewhere it asks the management HTTP API,
/// where <mq/backends/rabbitmq_management.hpp> is included and the option management says where that
/// is; where it does not answer, the backlog is unknown.
#pragma once

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#endif

#include <mq/backend.hpp>
#include <mq/backends/rabbitmq/consuming.hpp>
#include <mq/backends/rabbitmq/management.hpp>
#include <mq/backends/rabbitmq/options.hpp>
#include <mq/backends/rabbitmq/policy_desk.hpp>
#include <mq/backends/rabbitmq/probing.hpp>
#include <mq/backends/rabbitmq/publishing.hpp>
#include <mq/backends/rabbitmq/topology.hpp>
#include <mq/detail/duration.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::rabbitmq {
namespace detail {

class DestinationPublisher final : public backend::Publisher {
public:
    DestinationPublisher(PublishingLoop& loop, Route* route) : loop_(loop), route_(route) {}

    void Publish(std::unique_ptr<backend::Publication> publication) noexcept override {
        loop_.Submit(std::move(publication), route_);
    }

private:
    PublishingLoop& loop_;
    Route* route_;
};

}  // namespace detail

/// One RabbitMQ: a publishing and a consuming connection with a thread each, and one for probes, made
/// when first needed.
class Backend final : public backend::Backend {
public:
    /// @throws Error (kConfig) where an option is wrong, (kInternal) where the process has no file
    /// descriptors left.
    explicit Backend(backend::Context context)
        : settings_(MakeSettings(std::move(context))),
          management_(ManagementOf(*settings_)),
          empty_queues_(settings_->options.management_age),
          publishing_(settings_),
          probing_(settings_),
          policies_(management_, VirtualHost(settings_->context.url)),
          consuming_(settings_, probing_, policies_) {
        if (settings_->context.url.scheme == "amqps" && !settings_->options.tls_verify) {
            settings_->context.log(
                LogLevel::kWarning,
                settings_->broker + ": tls.verify is off: anybody can pretend to be this broker");
        }
    }

    Backend(const Backend&) = delete;
    Backend& operator=(const Backend&) = delete;
    ~Backend() override { Close(backend::Clock::now()); }

    std::unique_ptr<backend::Publisher> MakePublisher(
        std::shared_ptr<const backend::Destination> destination) override {
        return std::make_unique<detail::DestinationPublisher>(
            publishing_, publishing_.RouteTo(std::move(destination)));
    }

    std::unique_ptr<backend::Consumer> Subscribe(backend::Subscribing subscribing,
                                                 std::shared_ptr<backend::Receiver> receiver) override {
        return consuming_.Subscribe(std::move(subscribing), std::move(receiver));
    }

    backend::Listening CheckListening(const backend::Destination& destination, const std::string& group,
                                      backend::Clock::time_point deadline) noexcept override;

    backend::Backlog CheckBacklog(const backend::Destination& destination, const std::string& group,
                                  backend::Clock::time_point deadline) noexcept override;

    [[nodiscard]] backend::Limits GetLimits() const override {
        // consumer_timeout, as a RabbitMQ from 3.12 on is delivered with.
        constexpr std::chrono::minutes kConsumerTimeout{30};
        return {.message_bytes = settings_->options.max_message_size,
                .handling_time = kConsumerTimeout};
    }

    void Close(backend::Clock::time_point deadline) noexcept override {
        publishing_.Close(deadline);
        consuming_.Close();
        policies_.Close();
        probing_.Close();
    }

private:
    static std::shared_ptr<const detail::Settings> MakeSettings(backend::Context context) {
        detail::Settings settings;
        std::vector<ConfigProblem> problems = Check(context.url, context.options);
        if (!problems.empty()) {
            throw Error(ErrorCode::kConfig, problems.front().key + ": " + problems.front().text);
        }
        settings.options = ReadOptions(context.options, problems);
        settings.broker = "RabbitMQ \"" + context.name + "\"";
        settings.context = std::move(context);
        return std::make_shared<const detail::Settings>(std::move(settings));
    }

    // Null where the config does not say where it is.
    static std::shared_ptr<Management> ManagementOf(const detail::Settings& settings) {
        const Options& options = settings.options;
        if (!options.management) return nullptr;
        const Url& broker = settings.context.url;
        const Url& own = *options.management;
        const Url& login = own.user.empty() ? broker : own;
        return ManagementMaker().load()({.broker = settings.broker,
                                         .url = own,
                                         .user = login.user.empty() ? "guest" : login.user,
                                         .password = login.user.empty() ? "guest" : login.password,
                                         .tls_verify = options.tls_verify,
                                         .tls_ca = options.tls_ca});
    }

    detail::Inquiry::Answer Ask(const std::shared_ptr<detail::Inquiry>& inquiry,
                                backend::Clock::time_point deadline);
    bool AskMembers(const std::string& queue, backend::Clock::time_point deadline,
                    backend::Backlog& backlog);
    void AskManagement(const std::string& queue, backend::Clock::time_point deadline,
                       backend::Backlog& backlog);

    const std::shared_ptr<const detail::Settings> settings_;
    const std::shared_ptr<Management> management_;
    detail::EmptyQueues empty_queues_;
    detail::PublishingLoop publishing_;
    detail::ProbingLoop probing_;
    detail::PolicyDesk policies_;
    detail::ConsumingLoop consuming_;
};

// The consuming connection knows what our own consumers hold, so it is asked first. A client that only
// publishes asks by its publishing connection, and one that does neither connects now.
inline detail::Inquiry::Answer Backend::Ask(const std::shared_ptr<detail::Inquiry>& inquiry,
                                            backend::Clock::time_point deadline) {
    detail::Inquiry::Answer failed;
    const bool publishes_only = !consuming_.Started() && publishing_.Started();
    if (!consuming_.Started() && !publishing_.Started()) consuming_.Start();
    detail::Mailbox& mailbox = publishes_only ? publishing_.Questions() : consuming_.Questions();
    if (!mailbox.Ask(inquiry)) {
        failed.failure = Failure{
            ErrorCode::kUnavailable,
            settings_->broker + ": there is no connection to ask by: " + mailbox.WhyNotConnected(),
            {}};
        return failed;
    }
    if (auto answer = inquiry->Wait(deadline)) return *std::move(answer);
    failed.failure =
        Failure{ErrorCode::kTimeout, settings_->broker + ": no answer before the deadline", {}};
    return failed;
}

inline backend::Listening Backend::CheckListening(const backend::Destination& destination,
                                                  const std::string& group,
                                                  backend::Clock::time_point deadline) noexcept {
    using Answer = backend::Listening::Answer;
    try {
        const Topology topology{destination, settings_->options};
        if (group.empty()) {
            if (consuming_.Consumes(destination.address)) return {Answer::kYes, {}};
            return {Answer::kUnknown, settings_->broker + " cannot tell which groups there are for " +
                                          destination.address + ": name them in the topic's `groups`"};
        }
        const auto inquiry = std::make_shared<detail::Inquiry>(topology.Queue(group), false);
        if (topology.HasExchange() && settings_->options.declare) {
            inquiry->exchange = topology.Exchange();
            inquiry->binding_key = topology.BindingKey(group);
        }
        const auto answer = Ask(inquiry, deadline);
        if (answer.failure && answer.failure->code == ErrorCode::kNotFound) {
            return {Answer::kNo, "group " + group + ": " + answer.failure->text};
        }
        if (answer.failure) return {Answer::kUnknown, answer.failure->text};
        if (answer.consumers > 0) return {Answer::kYes, {}};
        return {Answer::kNo, settings_->broker + ": nobody consumes the queue " + inquiry->queue +
                                 " of the group " + group};
    } catch (const std::exception& error) {
        return {Answer::kUnknown, error.what()};
    }
}

namespace detail {

/// What AMQP tells of a group's queue, members elsewhere left aside. Exact only where there is no such
/// queue.
inline backend::Backlog BacklogOf(const Inquiry::Answer& answer, const std::string& broker,
                                  const std::string& queue) {
    using Answer = backend::Backlog::Answer;
    if (answer.failure) {
        const bool missing = answer.failure->code == ErrorCode::kNotFound;
        if (missing) return {.answer = Answer::kDrained, .exact = true};
        return {.answer = Answer::kUnknown, .reason = answer.failure->text};
    }
    if (answer.consumers < answer.own_consumers) {
        // A quorum queue without a leader is said to be empty.
        return {.answer = Answer::kUnknown,
                .reason = broker + ": the queue " + queue +
                          " does not know its consumers, and so perhaps not its messages"};
    }
    const std::uint64_t left = answer.ready + answer.own_unsettled;
    return {
        .answer = left > 0 ? Answer::kNotDrained : Answer::kDrained,
        .messages = left,
        .reason =
            broker + ": AMQP does not tell what members elsewhere hold unsettled of the queue " + queue,
        // Of several members one alone is given messages: the one that has some.
        .complete = answer.single_consumer && answer.own_unsettled > 0};
}

}  // namespace detail

inline backend::Backlog Backend::CheckBacklog(const backend::Destination& destination,
                                              const std::string& group,
                                              backend::Clock::time_point deadline) noexcept {
    using Answer = backend::Backlog::Answer;
    backend::Backlog backlog;
    try {
        const Topology topology{destination, settings_->options};
        const auto inquiry = std::make_shared<detail::Inquiry>(topology.Queue(group), true);
        inquiry->about_single_consumer = destination.ordered;
        const auto answer = Ask(inquiry, deadline);
        backlog = detail::BacklogOf(answer, settings_->broker, inquiry->queue);
        if (backlog.exact || backlog.answer == Answer::kUnknown) return backlog;
        const bool members_tell = destination.ordered && answer.single_consumer &&
                                  answer.consumers > 0 && AskMembers(inquiry->queue, deadline, backlog);
        if (!members_tell && management_ != nullptr) AskManagement(inquiry->queue, deadline, backlog);
    } catch (const std::exception& error) {
        backlog.reason = error.what();
    }
    return backlog;
}

// Nothing is ready, perhaps, and nothing held here: the member that is active elsewhere has the last
// word. False where it cannot be asked.
inline bool Backend::AskMembers(const std::string& queue, backend::Clock::time_point deadline,
                                backend::Backlog& backlog) {
    using Answer = backend::Backlog::Answer;
    // An answer takes a round trip where the member is idle; else it is there by a later call.
    constexpr std::chrono::milliseconds kPatience{100};
    const auto begin = backend::Clock::now();
    const auto answer = probing_.Ask(queue, std::min(deadline, begin + kPatience));
    if (!answer.may_ask) return false;
    backlog.settled_before = answer.settled_before;
    backlog.exact = answer.settled_before >= begin;
    if (backlog.exact || backlog.answer != Answer::kDrained) return true;
    backlog.answer = Answer::kUnknown;
    backlog.reason = settings_->broker + ": the active member of the queue " + queue +
                     " has not settled what it holds, or does not answer";
    return true;
}

// What members elsewhere hold, as the broker counted it a while ago: zero counts when it has been seen
// for as long as a count may be old. Not exact even so: what came since may be held by somebody.
inline void Backend::AskManagement(const std::string& queue, backend::Clock::time_point deadline,
                                   backend::Backlog& backlog) {
    using Answer = backend::Backlog::Answer;
    if (backlog.answer != Answer::kDrained) return empty_queues_.NoteUsed(queue);
    const auto unknown = [&](std::string reason) {
        backlog.answer = Answer::kUnknown;
        backlog.reason = std::move(reason);
    };
    std::optional<QueueTotals> totals;
    try {
        totals = management_->TotalsOf(VirtualHost(settings_->context.url), queue, deadline);
    } catch (const std::exception& error) {
        return unknown(error.what());
    }
    const std::string where = settings_->broker + ": the management ";
    if (!totals) return unknown(where + "has no counts of the queue " + queue + " yet");
    if (totals->unsettled > 0 || totals->ready > 0) {
        empty_queues_.NoteUsed(queue);
        backlog.answer = Answer::kNotDrained;
        backlog.messages = totals->unsettled + totals->ready;
        return;
    }
    const auto empty_for = empty_queues_.NoteEmpty(queue, backend::Clock::now());
    if (empty_for >= empty_queues_.age()) return;
    unknown(where + "shows the queue " + queue + " empty, by counts that may be " +
            mq::detail::FormatDuration(empty_queues_.age()) + " old (" +
            mq::detail::FormatDuration(empty_for) + " so far)");
}

inline std::unique_ptr<backend::Backend> MakeBackend(backend::Context context) {
    return std::make_unique<Backend>(std::move(context));
}

/// Makes the kind available to every program that includes this header.
inline const bool kRegistered =
    backend::Registry::Instance().Add({"rabbitmq", {"amqp", "amqps"}, &Check, &MakeBackend});

}  // namespace mq::rabbitmq
