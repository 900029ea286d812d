/// @file probing.hpp
/// The answer to a question for which AMQP has no method: is everything handled that was in a queue at
/// a moment, what members in other processes hold included? Included by rabbitmq.hpp alone, behind the
/// library's headers.
///
/// A probe is a message of our own, put into the group's queue by the default exchange. The member that
/// receives it keeps it from business code, and answers it to the asker's reply queue (RabbitMQ's
/// direct reply-to) once everything that was delivered to it before is settled. The answer is proof
/// where the queue has a single active consumer, as the queues of ordered topics do: all that was in
/// the queue before the probe was delivered before it, and to the same member; when that member dies,
/// what it held goes back in front of the probe. A subscription that is being closed gives up its place
/// as the active consumer only together with what it holds.
///
/// What cannot be had: a member that is not of this library takes a probe for a message, and never
/// answers.
#pragma once

#include <mq/backends/rabbitmq/codec.hpp>
#include <mq/backends/rabbitmq/io_loop.hpp>
#include <mq/backends/rabbitmq/mailbox.hpp>
#include <mq/log.hpp>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::rabbitmq::detail {

/// A probe on its way out, or the answer to one.
struct Note {
    std::string queue = {};    ///< Where it goes, by the default exchange.
    std::string number = {};   ///< The question that it belongs to.
    bool is_question = false;  ///< A probe, and not an answer.
};

/// What other threads leave for the probing loop. Bounded: the oldest notes are dropped, and asked
/// again.
class ProbingMailbox : public Mailbox {
public:
    std::vector<Note> notes = {};
    bool closing = false;
};

/// A connection of its own, made when the first probe is sent or answered: a broker that is short of
/// memory stops reading from connections that publish, and those that consume must not be among them.
class ProbingLoop final : public IoLoop {
public:
    /// What is known of a queue.
    struct Answer {
        /// Everything that was in the queue before this moment is settled; none where nothing is known.
        std::optional<Clock::time_point> settled_before = {};
        bool may_ask = true;  ///< False: the broker does not let us, and nothing more will be known.
    };

    explicit ProbingLoop(std::shared_ptr<const Settings> settings)
        : ProbingLoop(std::move(settings), std::make_shared<ProbingMailbox>()) {}

    ~ProbingLoop() override { Close(); }

    /// Asks about a queue, where no question about it is on its way, and waits until something is known
    /// of the moment of this call, until the deadline at most. Thread-safe.
    /// @throws std::system_error where no thread can be started.
    Answer Ask(const std::string& queue, Clock::time_point deadline) {
        Start();
        const auto begin = Clock::now();
        std::unique_lock lock{mutex_};
        while (true) {
            Question& question = questions_[queue];
            const bool enough = question.settled_before >= begin;  // nothing is less than any moment
            const auto now = Clock::now();
            if (refused_ || enough || now >= deadline) return {question.settled_before, !refused_};
            if (question.number == 0 || now >= question.asked_at + kPatience) {
                question.number = ++last_number_;
                question.asked_at = now;
                Post({queue, std::to_string(question.number), true});
            }
            answered_.wait_until(lock, deadline);
        }
    }

    /// Tells whoever asked that what was before their probe is settled. Never blocks; thread-safe.
    void Reply(std::string reply_to, std::string number) noexcept {
        try {
            Start();
        } catch (const std::system_error& error) {
            return Log(LogLevel::kWarning, std::string{"cannot start a thread: "} + error.what());
        }
        Post({std::move(reply_to), std::move(number), false});
    }

    /// Hangs up and joins the thread. Thread-safe; idempotent.
    void Close() noexcept {
        mailbox_->Post([&] { mailbox_->closing = true; });
        Join(Clock::now());
        mailbox_->End([] {});
    }

private:
    struct Question {
        std::uint64_t number = 0;  // of the probe that is on its way; 0 for none
        Clock::time_point asked_at = {};
        std::optional<Clock::time_point> settled_before = {};
    };

    static constexpr std::uint16_t kChannel = SetupChannel::kChannel + 1;
    // A probe that is not answered for so long may have been lost with a connection.
    static constexpr std::chrono::seconds kPatience{5};
    // How long a probe that nobody receives lies in the queue, in the milliseconds that AMQP wants.
    static constexpr const char* kExpiration = "600000";
    static constexpr std::size_t kMostNotes = 1000;
    // RabbitMQ's pseudo-queue: answers come to the channel that has asked, and nothing is declared.
    static constexpr const char* kReplies = "amq.rabbitmq.reply-to";

    ProbingLoop(std::shared_ptr<const Settings> settings, std::shared_ptr<ProbingMailbox> mailbox)
        : IoLoop(std::move(settings), mailbox, "probe"), mailbox_(std::move(mailbox)) {}

    void Post(Note note) {
        mailbox_->Post([&] { mailbox_->notes.push_back(std::move(note)); });
    }

    void Turn(Clock::time_point /*now*/) override {
        std::vector<Note> taken;
        mailbox_->Collect([&] {
            taken.swap(mailbox_->notes);
            closing_ = mailbox_->closing;
        });
        for (Note& note : taken) waiting_.push_back(std::move(note));
        if (waiting_.size() > kMostNotes) {
            waiting_.erase(waiting_.begin(), waiting_.end() - static_cast<std::ptrdiff_t>(kMostNotes));
        }
        if (!Up() || !ready_ || Blocked()) return;
        for (const Note& note : waiting_) Send(note);
        waiting_.clear();
    }

    [[nodiscard]] Clock::time_point NextTurn() const override { return Clock::time_point::max(); }
    [[nodiscard]] bool Finished(Clock::time_point /*now*/) const override { return closing_; }
    void OnEnd() override {
        mailbox_->End([] {});
    }

    void OnUp() override {
        amqp_channel_open_t open{};
        Wire().SendMethod(kChannel, AMQP_CHANNEL_OPEN_METHOD, &open);
        amqp_basic_consume_t consume{};
        consume.queue = amqp_cstring_bytes(kReplies);
        consume.no_ack = 1;
        Wire().SendMethod(kChannel, AMQP_BASIC_CONSUME_METHOD, &consume);
    }

    // The answers to what was asked by this connection will not come any more.
    void OnDown(const Failure& /*failure*/) override {
        ready_ = false;
        waiting_.clear();
        const std::lock_guard lock{mutex_};
        for (auto& [queue, question] : questions_) question.number = 0;
        answered_.notify_all();
    }

    void OnMethod(std::uint16_t /*channel*/, const amqp_method_t& method) override {
        if (method.id == AMQP_BASIC_CONSUME_OK_METHOD) {
            ready_ = true;
        } else if (method.id == AMQP_CHANNEL_CLOSE_METHOD) {
            const auto& close = *static_cast<const amqp_channel_close_t*>(method.decoded);
            Failure failure =
                FromReply(Wire().Where(), close.reply_code, std::string{View(close.reply_text)});
            if (failure.code == ErrorCode::kAccessDenied) Refuse(failure.text);
            Lose(std::move(failure));
        }
    }

    void Refuse(const std::string& text) {
        {
            const std::lock_guard lock{mutex_};
            if (std::exchange(refused_, true)) return;
        }
        answered_.notify_all();
        Log(LogLevel::kWarning, text + "; what other members hold of an ordered topic is not known");
    }

    // An answer: all that it says is in its properties.
    void OnProperties(std::uint16_t /*channel*/, const amqp_basic_properties_t& properties,
                      std::uint64_t /*body_size*/) override {
        if ((properties._flags & AMQP_BASIC_CORRELATION_ID_FLAG) == 0) return;
        const std::string_view number = View(properties.correlation_id);
        const std::lock_guard lock{mutex_};
        for (auto& [queue, question] : questions_) {
            if (question.number == 0 || std::to_string(question.number) != number) continue;
            question.settled_before = question.asked_at;
            question.number = 0;
            answered_.notify_all();
        }
    }

    void OnBody(std::uint16_t /*channel*/, std::string_view /*fragment*/) override {}

    void Send(const Note& note) {
        amqp_basic_publish_t publish{};
        publish.routing_key = Bytes(note.queue);
        amqp_basic_properties_t properties{};
        properties._flags = AMQP_BASIC_CORRELATION_ID_FLAG;
        properties.correlation_id = Bytes(note.number);
        std::array<amqp_table_entry_t, 1> headers{};
        const std::string mark = std::string{kProbeMark} + settings_->context.client_id;
        if (note.is_question) {
            headers[0].key = Bytes(kProbeHeader);
            headers[0].value.kind = AMQP_FIELD_KIND_UTF8;
            headers[0].value.value.bytes = Bytes(mark);
            properties._flags |= AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_EXPIRATION_FLAG |
                                 AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_TYPE_FLAG |
                                 AMQP_BASIC_APP_ID_FLAG;
            properties.type = Bytes(kProbeHeader);
            properties.app_id = Bytes(kProbeApplication);
            properties.reply_to = amqp_cstring_bytes(kReplies);
            properties.expiration = amqp_cstring_bytes(kExpiration);
            properties.headers = {static_cast<int>(headers.size()), headers.data()};
        }
        Wire().SendMessage(kChannel, publish, properties, {});
    }

    const std::shared_ptr<ProbingMailbox> mailbox_;

    std::mutex mutex_ = {};  // guards down to refused_
    std::condition_variable answered_ = {};
    std::map<std::string, Question> questions_ = {};  // by queue: one for each that was asked about
    std::uint64_t last_number_ = 0;
    bool refused_ = false;

    // Of the I/O thread alone:
    std::vector<Note> waiting_ = {};
    bool ready_ = false;
    bool closing_ = false;
};

}  // namespace mq::rabbitmq::detail
