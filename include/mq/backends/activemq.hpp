/// @file activemq.hpp
/// ActiveMQ Classic and ActiveMQ Artemis over AMQP 1.0, by Qpid Proton: including this header makes
/// `activemq://`, `activemqs://`, `artemis://` and `artemiss://` brokers available. The only header
/// that includes the client library.
///
/// **URL.** `artemis://USER:PASSWORD@HOST:PORT,HOST:PORT`, ports 5672 and 5671 (by TLS). Several hosts
/// are tried in turn. **Options** are those of mq::activemq::Options, by the same names, and
/// tls.verify, tls.ca, tls.cert and tls.key. By TLS, the host must be one of the certificate's DNS
/// names: Proton does not look at the IP addresses in it, so that a URL with an address is refused.
///
/// **Addresses.** With Classic, `NAME` is the virtual topic `topic://VirtualTopic.NAME` (option
/// topic_name), and a group the queue `Consumer.GROUP.VirtualTopic.NAME` (queue_name) that it feeds.
/// With Artemis, `NAME` is a multicast address, and a group a shared durable subscription of the name
/// `NAME.GROUP` (subscription_name), which JMS clients without a client id share. `queue://NAME` is one
/// queue, which every group reads; `topic://NAME` a topic of exactly that name. Brokers make what is
/// missing, as they are configured to.
///
/// **Messages** are durable. Their body is one data section, which JMS clients read as a BytesMessage
/// or, with a content type that is text, a TextMessage. Classic keeps a TextMessage in a form that has
/// no NUL and nothing beyond U+FFFF: there such a body travels as application/octet-stream, a
/// BytesMessage, with its content type in mq-content-type. The key is the group-id, JMSXGroupID.
/// Headers are application properties, and all are texts: a number or truth value of another program is
/// received as text. The order of headers, a name that occurs twice, values that are no text, and names
/// that begin with JMS, AMQ_SCHEDULED_ or _AMQ_, which the brokers would act on, are kept in the
/// property mq-headers, and reply_to as it was sent in mq-reply-to.
///
/// **Messages of other programs.** A text is received as its UTF-8, one section of data as it is; of
/// several sections of data Proton gives the last one alone. Classic does not give out at all what a
/// STOMP client wrote as text with characters beyond U+FFFF (seen with 5.18). Any other body (a number,
/// a MapMessage) is received as a text for people to read, which has no fixed form.
///
/// **Outcomes.** A broker that rejects or releases a message does not have it, and it was not sent: the
/// error is kRefused, or what the broker's reason says (kAccessDenied, kTooLarge). Neither broker
/// reports that no queue takes a message.
///
/// **Redelivery.** A message counts as redelivered by the broker's delivery-count, and where this
/// client has had it before and given it back unsettled. Neither broker counts what a consumer that was
/// closed in good order, or lost its connection, had not settled, so that to another process it is new.
///
/// **Backlog.** Artemis is asked by its management address, activemq.management, which the user needs
/// the permission `manage` for; Classic by its statisticsBrokerPlugin, which must be configured. Both
/// count what is delivered and not settled, wherever, so that the answer is exact. Of a queue that is
/// never empty they tell up to which moment all is settled (settled.hpp). Where there is no
/// queue of the group it is not: a queue by another name may be what the group's members read.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/activemq/consuming.hpp>
#include <mq/backends/activemq/options.hpp>
#include <mq/backends/activemq/publishing.hpp>
#include <mq/backends/activemq/settled.hpp>
#include <mq/backends/activemq/topology.hpp>

#include <algorithm>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mq::activemq {
namespace detail {

class DestinationPublisher final : public backend::Publisher {
public:
    DestinationPublisher(PublishingLoop& loop, PublishingLoop::Way way) : loop_(loop), way_(way) {}

    void Publish(std::unique_ptr<backend::Publication> publication) noexcept override {
        loop_.Submit(std::move(publication), way_);
    }

private:
    PublishingLoop& loop_;
    PublishingLoop::Way way_;
};

}  // namespace detail

/// One ActiveMQ: a publishing and a consuming connection with a thread each, made when first needed.
class Backend final : public backend::Backend {
public:
    /// @throws Error (kConfig) where an option is wrong, (kInternal) where the process has no file
    /// descriptors left.
    explicit Backend(backend::Context context)
        : settings_(MakeSettings(std::move(context))),
          publishing_(settings_),
          consuming_(settings_),
          settled_(settings_->flavor) {
        if (UsesTls(settings_->context.url) && !settings_->options.tls_verify) {
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
        return std::make_unique<detail::DestinationPublisher>(publishing_,
                                                              publishing_.WayTo(*destination));
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
        return {.message_bytes = settings_->options.max_message_size};
    }

    void Close(backend::Clock::time_point deadline) noexcept override {
        // Both at once: neither waits for what the other one waits for.
        publishing_.BeginClose(deadline);
        consuming_.BeginClose(deadline);
        publishing_.Close(deadline);
        consuming_.Close(deadline);
    }

private:
    static std::shared_ptr<const detail::Settings> MakeSettings(backend::Context context) {
        detail::Settings settings;
        std::vector<ConfigProblem> problems = Check(context.url, context.options);
        if (!problems.empty()) {
            throw Error(ErrorCode::kConfig, problems.front().key + ": " + problems.front().text);
        }
        settings.options = ReadOptions(context.url, context.options, problems);
        settings.flavor = FlavorOf(context.url);
        settings.broker = std::string{ToString(settings.flavor)} + " \"" + context.name + "\"";
        settings.context = std::move(context);
        return std::make_shared<const detail::Settings>(std::move(settings));
    }

    // What the broker says of a group's queue, or of all groups'.
    detail::Inquiry::Answer Ask(detail::Question question, backend::Clock::time_point deadline);

    backend::Listening CheckAnybody(const backend::Destination& destination, const Topology& topology,
                                    backend::Clock::time_point deadline);

    const std::shared_ptr<const detail::Settings> settings_;
    detail::PublishingLoop publishing_;
    detail::ConsumingLoop consuming_;
    detail::SettledLook settled_;
};

// A client that only publishes asks by its publishing connection, and one that does neither connects
// now.
inline detail::Inquiry::Answer Backend::Ask(detail::Question question,
                                            backend::Clock::time_point deadline) {
    const bool publishes_only = !consuming_.Started() && publishing_.Started();
    if (!consuming_.Started() && !publishing_.Started()) consuming_.Start();
    detail::Mailbox& mailbox = publishes_only ? publishing_.Questions() : consuming_.Questions();
    // A little earlier than the caller's patience ends, so that silence is told by who knows the
    // reason.
    const auto now = backend::Clock::now();
    const auto inquiry = std::make_shared<detail::Inquiry>(
        std::move(question), now + (std::max(deadline, now) - now) / 10 * 9);
    if (!mailbox.Ask(inquiry)) {
        inquiry->Fail(
            {ErrorCode::kUnavailable,
             settings_->broker + ": there is no connection to ask by: " + mailbox.WhyNotConnected(),
             {}});
    }
    if (auto answer = inquiry->Wait(deadline)) return *std::move(answer);
    detail::Inquiry::Answer silence;
    silence.failure =
        Failure{ErrorCode::kTimeout, settings_->broker + ": no answer before the deadline", {}};
    return silence;
}

inline backend::Listening Backend::CheckListening(const backend::Destination& destination,
                                                  const std::string& group,
                                                  backend::Clock::time_point deadline) noexcept {
    using Answer = backend::Listening::Answer;
    try {
        const Topology topology{destination, settings_->flavor, settings_->options};
        if (group.empty()) return CheckAnybody(destination, topology, deadline);
        const GroupSource source = topology.SourceOf(group);
        const std::string& queue = source.queue;
        const auto answer = Ask(detail::QuestionAbout(source), deadline);
        if (answer.failure) return {Answer::kUnknown, answer.failure->text};
        if (answer.queue && answer.queue->consumers > 0) return {Answer::kYes, {}};
        return {Answer::kNo,
                settings_->broker +
                    (answer.queue ? ": nobody consumes the queue " : ": there is no queue ") + queue +
                    " of the group " + group};
    } catch (const std::exception& error) {
        return {Answer::kUnknown, error.what()};
    }
}

// Whether any group listens.
inline backend::Listening Backend::CheckAnybody(const backend::Destination& destination,
                                                const Topology& topology,
                                                backend::Clock::time_point deadline) {
    using Answer = backend::Listening::Answer;
    if (consuming_.Consumes(destination.address)) return {Answer::kYes, {}};
    const auto queues = topology.AllQueues();
    if (!queues) {
        return {Answer::kUnknown, settings_->broker + " cannot tell which groups there are for " +
                                      destination.address + ": name them in the topic's `groups`"};
    }
    const auto answer = Ask({*queues, !topology.IsQueue()}, deadline);
    if (answer.failure) return {Answer::kUnknown, answer.failure->text};
    if (answer.queue && answer.queue->consumers > 0) return {Answer::kYes, {}};
    return {Answer::kNo,
            settings_->broker + ": nobody consumes what is sent to " + destination.address};
}

inline backend::Backlog Backend::CheckBacklog(const backend::Destination& destination,
                                              const std::string& group,
                                              backend::Clock::time_point deadline) noexcept {
    using Answer = backend::Backlog::Answer;
    backend::Backlog backlog;
    const auto begin = backend::Clock::now();
    try {
        const Topology topology{destination, settings_->flavor, settings_->options};
        const GroupSource source = topology.SourceOf(group);
        const std::string& queue = source.queue;
        const auto answer = Ask(detail::QuestionAbout(source), deadline);
        if (answer.failure) {
            backlog.reason = answer.failure->text;
            return backlog;
        }
        if (!answer.queue) {
            backlog.reason = settings_->broker + ": there is no queue " + queue;
            if (consuming_.ConsumesQueue(queue)) {
                backlog.reason += ", although this client consumes it";
            } else {
                backlog.answer = Answer::kDrained;
            }
            return backlog;
        }
        backlog.messages = answer.queue->messages;
        backlog.answer = backlog.messages > 0 ? Answer::kNotDrained : Answer::kDrained;
        backlog.exact = true;
        backlog.complete = true;
        // Where nobody consumes nothing is settled, and a browser would look like a consumer.
        if (backlog.messages > 0 && answer.queue->consumers > 0 && answer.queue->scheduled == 0) {
            const std::string& name = answer.queue->name.empty() ? queue : answer.queue->name;
            backlog.settled_before = settled_.SettledBefore(
                name, begin,
                [&](detail::Question question) { return Ask(std::move(question), deadline); });
        }
    } catch (const std::exception& error) {
        backlog.reason = error.what();
    }
    return backlog;
}

inline std::unique_ptr<backend::Backend> MakeBackend(backend::Context context) {
    return std::make_unique<Backend>(std::move(context));
}

/// Makes the kind available to every program that includes this header.
inline const bool kRegistered = backend::Registry::Instance().Add(
    {"activemq", {"activemq", "activemqs", "artemis", "artemiss"}, &Check, &MakeBackend});

}  // namespace mq::activemq
