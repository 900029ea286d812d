/// @file inquirer.hpp
/// Asks the broker about a queue over the connection that there is: Artemis's management address, and
/// the statistics plugin of ActiveMQ Classic, by request and reply.
#pragma once

#include <mq/backends/activemq/codec.hpp>
#include <mq/backends/activemq/dial.hpp>
#include <mq/backends/activemq/failure.hpp>
#include <mq/backends/activemq/links.hpp>
#include <mq/backends/activemq/management.hpp>
#include <mq/backends/activemq/options.hpp>
#include <mq/backends/activemq/proton.hpp>
#include <mq/detail/backoff.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace mq::activemq::detail {

/// What is asked.
struct Question {
    enum class Kind : unsigned char {
        kCounts,  ///< What one queue has, or with `all` all queues that Topology::AllQueues names.
        kCall,    ///< Artemis: the operation `operation` of the resource `name`.
        kMark,    ///< A position that is no lower than that of any message the broker has by then.
        kBrowse,  ///< Classic: whether a queue has a message that the selector `operation` selects.
    };
    std::string name = {};
    bool all = false;
    Kind kind = Kind::kCounts;
    std::string operation = {};
    std::string arguments = "[]";  ///< Of kCall: a list of JSON.
    std::string other_name = {};  ///< Of kCounts: what is asked about where there is none of that name.
};

/// What a group's queue has.
inline Question QuestionAbout(const GroupSource& source) {
    return {.name = source.queue, .other_name = source.other_queue};
}

/// A question about queues, and its answer. Thread-safe.
class Inquiry {
public:
    struct Answer {
        std::optional<Failure> failure = {};   ///< Why there is no answer.
        std::optional<QueueState> queue = {};  ///< Nothing: there is no such queue.
        std::string text = {};                 ///< Of kCall: what the operation returned, as JSON.
        std::int64_t position = 0;             ///< Of kMark.
        bool found = false;                    ///< Of kBrowse.
        std::uint64_t connection = 0;          ///< Whose positions are not another one's.
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
    [[nodiscard]] bool Owns(const proton::receiver& receiver) const {
        return receiver == receiver_ || looks_.contains(receiver.name());
    }

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

    void OnReceiverOpen(proton::receiver& receiver) {
        if (receiver == receiver_) {
            reply_to_ = receiver.source().address();
            return SendAll();
        }
        const auto question = open_.find(looks_.at(receiver.name()));
        if (question == open_.end() || receiver.source().address().empty()) return;
        receiver.add_credit(1);
        receiver.drain();
    }

    /// A link has nothing more to give.
    void OnDrained(proton::receiver& receiver) {
        const auto question = open_.find(looks_.at(receiver.name()));
        if (question == open_.end()) return;
        const bool found = question->second.found;
        Finish(question, {.found = found});
    }

    void OnMessage(proton::delivery& delivery, const proton::message& message) {
        if (delivery.receiver() == receiver_) return OnReply(delivery, message);
        const auto question = open_.find(looks_.at(delivery.receiver().name()));
        if (question != open_.end()) question->second.found = true;
        // It stays in the queue.
        delivery.release();
    }

    void OnSendable() { SendAll(); }

    void OnReply(proton::delivery& delivery, const proton::message& message) {
        answers_ = true;
        silence_.Reset();
        try {
            if (flavor_ == Flavor::kArtemis) {
                if (BeginsMark(delivery, message)) return SendAll();
                OnArtemisReply(message);
            } else {
                OnStatistics(message);
            }
        } catch (const std::exception& error) {
            FailAll({ErrorCode::kUnavailable,
                     broker_ + ": its answer about a queue cannot be read: " + error.what(),
                     {}});
        }
        delivery.accept();
    }

    /// A question was not taken.
    void OnRejected() {
        FailAll({ErrorCode::kAccessDenied,
                 broker_ + ": the broker refuses questions about its queues to " + Address(),
                 {}});
    }

    /// The link of a single question is gone; with the reason where nobody has asked for that.
    bool OnLookGone(const proton::receiver& receiver, const std::optional<Failure>& why) {
        const auto look = looks_.find(receiver.name());
        if (look == looks_.end()) return false;
        const std::uint64_t number = look->second;
        looks_.erase(look);
        const auto question = open_.find(number);
        if (question == open_.end()) return true;
        question->second.look = {};
        const Failure closed{
            ErrorCode::kUnavailable, broker_ + ": a link for a question was closed", {}};
        Finish(question, {.failure = why.value_or(closed)});
        return true;
    }

    /// One of the links is gone, which the broker may not let us have.
    void OnGone(const std::optional<Failure>& why) {
        // The other one with it; the end of either is then no news any more.
        if (!!sender_) sender_.close();
        if (!!receiver_) receiver_.close();
        for (auto& [number, question] : open_) {
            if (!!question.look) question.look.close();
        }
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
            const auto late = question++;
            Finish(late, {.failure = Failure{ErrorCode::kTimeout, Silence(), {}}});
        }
    }

private:
    using Kind = Question::Kind;

    struct Asked {
        std::shared_ptr<Inquiry> inquiry = {};
        bool sent = false;
        std::optional<QueueState> queues = {};  ///< What Classic has said so far of several.
        proton::receiver look = {};             ///< The link of this question alone.
        bool found = false;                     ///< It has brought a message.
        proton::delivery kept = {};             ///< Of a mark: a reply that is not settled yet.
        bool by_other_name = false;             ///< There is none of the first.

        [[nodiscard]] const std::string& Name() const {
            return by_other_name ? inquiry->question.other_name : inquiry->question.name;
        }
    };
    using Open = std::map<std::uint64_t, Asked>;

    static constexpr int kReplies = 100;
    // How long a mark of Classic's may take to come back. Little: a broker that is told to cut longer
    // times short would give back another moment.
    static constexpr std::chrono::milliseconds kMarkLives{10'000};

    void Finish(Open::iterator question, Inquiry::Answer answer) {
        answer.connection = connection_number_;
        proton::receiver look = std::exchange(question->second.look, {});
        proton::delivery kept = std::exchange(question->second.kept, {});
        const auto inquiry = std::move(question->second.inquiry);
        open_.erase(question);
        // Its end is no news any more, and is still ours to see.
        if (!!look) look.close();
        if (!!kept) kept.accept();
        inquiry->Finish(std::move(answer));
    }

    [[nodiscard]] std::string Address() const {
        return flavor_ == Flavor::kArtemis ? "activemq.management" : "ActiveMQ.Statistics";
    }

    [[nodiscard]] std::string Silence() const {
        const bool plugin_missing = flavor_ == Flavor::kClassic && !answers_;
        return broker_ + ": no answer in time from " + Address() +
               (plugin_missing ? ": does the broker have its statisticsBrokerPlugin?" : "");
    }

    void OpenLinks(proton::connection connection) {
        static std::atomic<std::uint64_t> connections{0};
        asking_ = true;
        connection_number_ = ++connections;
        connection_ = connection;
        proton::source_options temporary;
        temporary.dynamic(true);
        proton::receiver_options replies;
        replies.source(temporary).auto_accept(false).credit_window(kReplies);
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
        connection_ = {};
        looks_.clear();
    }

    void FailAll(const Failure& failure) {
        for (auto& [number, question] : std::exchange(open_, {})) {
            if (!!question.kept) question.kept.accept();
            question.inquiry->Fail(failure);
        }
        next_deadline_ = Clock::time_point::max();
    }

    void SendAll() {
        if (reply_to_.empty()) return;
        for (auto& [number, question] : open_) {
            // Two messages for each, with Classic.
            if (question.sent || sender_.credit() < 2) continue;
            question.sent = true;
            flavor_ == Flavor::kArtemis ? SendArtemis(number, question) : SendClassic(number, question);
        }
    }

    void SendArtemis(std::uint64_t number, Asked& question) {
        const Question& asked = question.inquiry->question;
        switch (asked.kind) {
            case Kind::kCounts:
                return AskArtemis(number, "broker", "listQueues",
                                  QueueListArguments(question.Name(), ByOf(asked)));
            case Kind::kCall: return AskArtemis(number, asked.name, asked.operation, asked.arguments);
            case Kind::kMark:
                return AskArtemis(number, "queue." + reply_to_, "listDeliveringMessagesAsJSON", "[]");
            case Kind::kBrowse: return;  // is not asked of Artemis
        }
    }

    void SendClassic(std::uint64_t number, Asked& question) {
        const Question& asked = question.inquiry->question;
        switch (asked.kind) {
            case Kind::kCounts:
                Request("queue://ActiveMQ.Statistics.Destination." + asked.name,
                        "q" + std::to_string(number));
                // Answered behind the other one, which is answered once for each queue there is.
                return Request("queue://ActiveMQ.Statistics.Broker", "b" + std::to_string(number));
            case Kind::kMark:
                // Comes back with the moment at which it expires, by the broker's clock.
                return Request(reply_to_, "m" + std::to_string(number), kMarkLives);
            case Kind::kBrowse: {
                proton::value selector;
                proton::codec::encoder encoder{selector};
                encoder << proton::codec::start::described()
                        << proton::symbol{"apache.org:selector-filter:string"} << asked.operation
                        << proton::codec::finish();
                proton::source::filter_map filters;
                filters.put(proton::symbol{"jms-selector"}, selector);
                proton::source_options source;
                source.address("queue://" + asked.name);
                source.distribution_mode(proton::source::COPY).filters(filters);
                return OpenLook(number, question, "queue://" + asked.name, source);
            }
            case Kind::kCall: return;  // is not asked of Classic
        }
    }

    void Request(const std::string& to, const std::string& correlation,
                 std::chrono::milliseconds lives = std::chrono::minutes{1}) {
        proton::message request;
        request.to(to);
        request.reply_to(reply_to_);
        request.correlation_id(correlation);
        // Where nobody answers it, it must not lie there for ever.
        request.ttl(proton::duration{static_cast<proton::duration::numeric_type>(lives.count())});
        request.body() = proton::binary{};
        request.inferred(true);
        sender_.send(request);
    }

    static QueuesBy ByOf(const Question& question) {
        return question.all ? QueuesBy::kAddress : QueuesBy::kName;
    }

    // A link of one question's own; no message comes before it is given credit.
    void OpenLook(std::uint64_t number, Asked& question, const std::string& address,
                  proton::source_options& source) {
        const std::string name = FreshLinkName({});
        looks_.emplace(name, number);
        proton::receiver_options options;
        options.name(name).source(source).credit_window(0).auto_accept(false);
        question.look = connection_.open_receiver(address, options);
    }

    void AskArtemis(std::uint64_t number, const std::string& resource, const std::string& operation,
                    const std::string& arguments) {
        proton::message request;
        request.reply_to(reply_to_);
        request.correlation_id(std::to_string(number));
        request.properties().put("_AMQ_ResourceName", resource);
        request.properties().put("_AMQ_OperationName", operation);
        request.body() = arguments;
        sender_.send(request);
    }

    // Artemis numbers its replies from the same sequence as all messages. The first one to a mark is
    // kept unsettled, and the second one, which lists what was delivered here and is not settled, tells
    // its number: higher than that of any message the broker had when the mark was asked for.
    bool BeginsMark(const proton::delivery& delivery, const proton::message& message) {
        const auto question = open_.find(std::stoull(TextOf(message.correlation_id())));
        if (question == open_.end()) return false;
        Asked& asked = question->second;
        if (asked.inquiry->question.kind != Kind::kMark || !!asked.kept) return false;
        asked.kept = delivery;
        asked.sent = false;
        return true;
    }

    static std::int64_t NewestOf(const std::vector<ListedMessage>& messages) {
        if (messages.empty()) throw std::invalid_argument{"a reply that is not settled is not listed"};
        std::int64_t newest = messages.front().number;
        for (const ListedMessage& message : messages) newest = std::max(newest, message.number);
        return newest;
    }

    void OnArtemisReply(const proton::message& message) {
        const std::string id = TextOf(message.correlation_id());
        const auto question = open_.find(std::stoull(id));
        if (question == open_.end()) return;
        const std::string body = TextOf(message.body());
        const proton::scalar succeeded = message.properties().get("_AMQ_OperationSucceeded");
        if (succeeded.type() != proton::BOOLEAN || !proton::get<bool>(succeeded)) {
            const std::string text = broker_ + ": activemq.management answers " + body;
            return Finish(question, {.failure = Failure{ErrorCode::kRefused, text, {}}});
        }
        const Question& asked = question->second.inquiry->question;
        Inquiry::Answer answer;
        switch (asked.kind) {
            case Kind::kCounts:
                answer.queue = ReadQueueList(body, question->second.Name(), ByOf(asked));
                if (!answer.queue && AsksByOtherName(question->second)) return SendAll();
                break;
            case Kind::kMark: answer.position = NewestOf(ReadMessages(body)); break;
            case Kind::kCall:
            case Kind::kBrowse: answer.text = body; break;
        }
        Finish(question, std::move(answer));
    }

    static bool AsksByOtherName(Asked& question) {
        if (question.inquiry->question.other_name.empty()) return false;
        if (std::exchange(question.by_other_name, true)) return false;
        question.sent = false;
        return true;
    }

    void OnStatistics(const proton::message& message) {
        const std::string id = TextOf(message.correlation_id());
        if (id.size() < 2) return;
        const auto question = open_.find(std::stoull(id.substr(1)));
        if (question == open_.end()) return;
        Asked& asked = question->second;
        if (id.front() == 'm') {
            const std::int64_t expires = message.expiry_time().milliseconds();
            if (expires == 0) throw std::invalid_argument{"no absolute-expiry-time"};
            return Finish(question, {.position = expires - kMarkLives.count()});
        }
        if (id.front() == 'q') {
            std::map<std::string, proton::value> said;
            proton::get(message.body(), said);
            if (!asked.queues) asked.queues = QueueState{};
            asked.queues->messages += proton::coerce<std::uint64_t>(said.at("size"));
            asked.queues->consumers += proton::coerce<std::uint64_t>(said.at("consumerCount"));
            const auto size = proton::coerce<std::uint64_t>(said.at("size"));
            const auto held = proton::coerce<std::uint64_t>(said.at("inflightCount"));
            // They are not counted at one moment.
            asked.queues->ready += size > held ? size - held : 0;
            asked.queues->settled += proton::coerce<std::uint64_t>(said.at("dequeueCount"));
            if (asked.inquiry->question.all) return;
        }
        Finish(question, {.queue = asked.queues});
    }

    const Flavor flavor_;
    const std::string broker_;
    bool asking_ = false;
    proton::sender sender_ = {};
    proton::receiver receiver_ = {};
    std::string reply_to_ = {};
    proton::connection connection_ = {};
    std::uint64_t connection_number_ = 0;
    Open open_ = {};
    std::map<std::string, std::uint64_t> looks_ = {};  // the questions by the names of their links
    std::uint64_t next_number_ = 1;
    Clock::time_point next_deadline_ = Clock::time_point::max();
    bool answers_ = false;  // by this connection
    // How long a broker that has not answered is not asked again.
    mq::detail::Backoff silence_{std::chrono::seconds{2}, std::chrono::seconds{30}};
    Clock::time_point silent_until_ = {};
};

}  // namespace mq::activemq::detail
