/// @file inquirer.hpp
/// Asks the broker about a queue over the connection that there is: Artemis's management address, and
/// the statistics plugin of ActiveMQ Classic, by request and reply.
#pragma once

#include <mq/backends/activemq/codec.hpp>
#include <mq/backends/activemq/dial.hpp>
#include <mq/backends/activemq/failure.hpp>
#include <mq/backends/activemq/management.hpp>
#include <mq/backends/activemq/options.hpp>
#include <mq/backends/activemq/proton.hpp>
#include <mq/detail/backoff.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace mq::activemq::detail {

/// What is asked about: one queue, or all queues that Topology::AllQueues names.
struct Question {
    std::string name = {};
    bool all = false;
};

/// A question about queues, and its answer. Thread-safe.
class Inquiry {
public:
    struct Answer {
        std::optional<Failure> failure = {};   ///< Why there is no answer.
        std::optional<QueueState> queue = {};  ///< Nothing: there is no such queue.
    };

    Inquiry(Question asked, Clock::time_point until) : question(std::move(asked)), deadline(until) {}

    const Question question;
    const Clock::time_point deadline;  ///< When the broker must have answered.

    void Finish(Answer answer) {
        const std::lock_guard lock{mutex_};
        if (!answer_) answer_ = std::move(answer);
        finished_.notify_all();
    }

    void Fail(Failure failure) { Finish({std::move(failure), {}}); }

    /// The answer, where it is there already.
    std::optional<Answer> TryAnswer() {
        const std::lock_guard lock{mutex_};
        return answer_;
    }

    /// Blocks until the answer is there, at most until the time given; nothing then.
    std::optional<Answer> Wait(Clock::time_point until) {
        std::unique_lock lock{mutex_};
        finished_.wait_until(lock, until, [this] { return answer_.has_value(); });
        return answer_;
    }

private:
    std::mutex mutex_ = {};  // guards answer_
    std::condition_variable finished_ = {};
    std::optional<Answer> answer_ = {};
};

/// The questions of one connection. Its links are made with the first of them. Of the I/O thread alone.
class Inquirer {
public:
    Inquirer(Flavor flavor, std::string broker) : flavor_(flavor), broker_(std::move(broker)) {}

    [[nodiscard]] bool Owns(const proton::sender& sender) const { return sender == sender_; }
    [[nodiscard]] bool Owns(const proton::receiver& receiver) const { return receiver == receiver_; }

    void Ask(const proton::connection& connection, std::shared_ptr<Inquiry> inquiry) {
        if (const auto now = Clock::now(); now < silent_until_) {
            const auto left = std::chrono::ceil<std::chrono::seconds>(silent_until_ - now);
            return inquiry->Fail(
                {ErrorCode::kTimeout,
                 Silence() + " It is asked again in " + std::to_string(left.count()) + " s",
                 {}});
        }
        next_deadline_ = std::min(next_deadline_, inquiry->deadline);
        open_.emplace(next_number_++, Asked{std::move(inquiry)});
        if (!asking_) OpenLinks(connection);
        SendAll();
    }

    void OnReceiverOpen() {
        reply_to_ = receiver_.source().address();
        SendAll();
    }

    void OnSendable() { SendAll(); }

    void OnReply(const proton::message& message) {
        answers_ = true;
        silence_.Reset();
        try {
            if (flavor_ == Flavor::kArtemis) {
                OnArtemisReply(message);
            } else {
                OnStatistics(message);
            }
        } catch (const std::exception& error) {
            FailAll({ErrorCode::kUnavailable,
                     broker_ + ": its answer about a queue cannot be read: " + error.what(),
                     {}});
        }
    }

    /// A question was not taken.
    void OnRejected() {
        FailAll({ErrorCode::kAccessDenied,
                 broker_ + ": the broker refuses questions about its queues to " + Address(),
                 {}});
    }

    /// One of the links is gone, which the broker may not let us have.
    void OnGone(const std::optional<Failure>& why) {
        // The other one with it; the end of either is then no news any more.
        if (!!sender_) sender_.close();
        if (!!receiver_) receiver_.close();
        Forget();
        FailAll(why.value_or(Failure{
            ErrorCode::kUnavailable, broker_ + ": the link to " + Address() + " was closed", {}}));
    }

    void Down(const Failure& failure) {
        silent_until_ = {};
        answers_ = false;
        Forget();
        FailAll(failure);
    }

    /// When Expire has something to do.
    [[nodiscard]] Clock::time_point NextDeadline() const noexcept { return next_deadline_; }

    /// Gives up the questions that nobody waits for any more.
    void Expire(Clock::time_point now) {
        if (now < next_deadline_) return;
        next_deadline_ = Clock::time_point::max();
        for (auto question = open_.begin(); question != open_.end();) {
            if (question->second.inquiry->deadline > now) {
                next_deadline_ = std::min(next_deadline_, question->second.inquiry->deadline);
                ++question;
                continue;
            }
            // Without the plugin, Classic keeps each question as a message, in a queue of its own. One
            // that has answered before has it, and is slow.
            if (flavor_ == Flavor::kClassic && question->second.sent && !answers_) {
                silent_until_ = now + silence_.Next();
            }
            question->second.inquiry->Fail({ErrorCode::kTimeout, Silence(), {}});
            question = open_.erase(question);
        }
    }

private:
    struct Asked {
        std::shared_ptr<Inquiry> inquiry = {};
        bool sent = false;
        std::optional<QueueState> queues = {};  ///< What Classic has said so far of several.
    };

    static constexpr int kReplies = 100;

    [[nodiscard]] std::string Address() const {
        return flavor_ == Flavor::kArtemis ? "activemq.management" : "ActiveMQ.Statistics";
    }

    [[nodiscard]] std::string Silence() const {
        const bool plugin_missing = flavor_ == Flavor::kClassic && !answers_;
        return broker_ + ": no answer in time from " + Address() +
               (plugin_missing ? ": does the broker have its statisticsBrokerPlugin?" : "");
    }

    void OpenLinks(proton::connection connection) {
        asking_ = true;
        proton::source_options temporary;
        temporary.dynamic(true);
        proton::receiver_options replies;
        replies.source(temporary).auto_accept(true).credit_window(kReplies);
        receiver_ = connection.open_receiver({}, replies);
        proton::target_options target;
        if (flavor_ == Flavor::kArtemis) {
            target.address("activemq.management");
        } else {
            // Without an address: opening a link to each statistics address would make a queue of it.
            target.anonymous(true);
        }
        sender_ = connection.open_sender({}, proton::sender_options{}.target(target));
    }

    void Forget() {
        asking_ = false;
        reply_to_.clear();
        sender_ = {};
        receiver_ = {};
    }

    void FailAll(const Failure& failure) {
        for (auto& [number, question] : std::exchange(open_, {})) question.inquiry->Fail(failure);
        next_deadline_ = Clock::time_point::max();
    }

    void SendAll() {
        if (reply_to_.empty()) return;
        for (auto& [number, question] : open_) {
            // Two messages for each, with Classic.
            if (question.sent || sender_.credit() < 2) continue;
            question.sent = true;
            if (flavor_ == Flavor::kArtemis) {
                AskArtemis(number, question.inquiry->question);
            } else {
                Request("queue://ActiveMQ.Statistics.Destination." + question.inquiry->question.name,
                        "q" + std::to_string(number));
                // Answered behind the other one, which is answered once for each queue there is.
                Request("queue://ActiveMQ.Statistics.Broker", "b" + std::to_string(number));
            }
        }
    }

    void Request(const std::string& to, const std::string& correlation) {
        proton::message request;
        request.to(to);
        request.reply_to(reply_to_);
        request.correlation_id(correlation);
        // Where nobody answers it, it must not lie there for ever.
        request.ttl(proton::duration::MINUTE);
        request.body() = proton::binary{};
        request.inferred(true);
        sender_.send(request);
    }

    static QueuesBy ByOf(const Question& question) {
        return question.all ? QueuesBy::kAddress : QueuesBy::kName;
    }

    void AskArtemis(std::uint64_t number, const Question& question) {
        proton::message request;
        request.reply_to(reply_to_);
        request.correlation_id(std::to_string(number));
        request.properties().put("_AMQ_ResourceName", std::string{"broker"});
        request.properties().put("_AMQ_OperationName", std::string{"listQueues"});
        request.body() = QueueListArguments(question.name, ByOf(question));
        sender_.send(request);
    }

    void OnArtemisReply(const proton::message& message) {
        const std::string id = TextOf(message.correlation_id());
        const auto question = open_.find(std::stoull(id));
        if (question == open_.end()) return;
        const std::string body = TextOf(message.body());
        const proton::scalar succeeded = message.properties().get("_AMQ_OperationSucceeded");
        if (succeeded.type() != proton::BOOLEAN || !proton::get<bool>(succeeded)) {
            question->second.inquiry->Fail(
                {ErrorCode::kRefused, broker_ + ": activemq.management answers " + body, {}});
        } else {
            const Question& asked = question->second.inquiry->question;
            question->second.inquiry->Finish({{}, ReadQueueList(body, asked.name, ByOf(asked))});
        }
        open_.erase(question);
    }

    void OnStatistics(const proton::message& message) {
        const std::string id = TextOf(message.correlation_id());
        if (id.size() < 2) return;
        const auto question = open_.find(std::stoull(id.substr(1)));
        if (question == open_.end()) return;
        Asked& asked = question->second;
        if (id.front() == 'q') {
            std::map<std::string, proton::value> said;
            proton::get(message.body(), said);
            if (!asked.queues) asked.queues = QueueState{};
            asked.queues->messages += proton::coerce<std::uint64_t>(said.at("size"));
            asked.queues->consumers += proton::coerce<std::uint64_t>(said.at("consumerCount"));
            if (asked.inquiry->question.all) return;
        }
        asked.inquiry->Finish({{}, asked.queues});
        open_.erase(question);
    }

    const Flavor flavor_;
    const std::string broker_;
    bool asking_ = false;
    proton::sender sender_ = {};
    proton::receiver receiver_ = {};
    std::string reply_to_ = {};
    std::map<std::uint64_t, Asked> open_ = {};
    std::uint64_t next_number_ = 1;
    Clock::time_point next_deadline_ = Clock::time_point::max();
    bool answers_ = false;  // by this connection
    // How long a broker that has not answered is not asked again.
    mq::detail::Backoff silence_{std::chrono::seconds{2}, std::chrono::seconds{30}};
    Clock::time_point silent_until_ = {};
};

}  // namespace mq::activemq::detail
