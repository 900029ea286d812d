/// @file publisher.hpp
/// The way to one topic: a publication becomes a record in the producer's queue.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/admin.hpp>
#include <mq/backends/kafka/native.hpp>
#include <mq/backends/kafka/producer.hpp>
#include <mq/backends/kafka/sender.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace mq::kafka::detail {

/// The way to one topic.
class Publisher final : public backend::Publisher {
public:
    Publisher(std::shared_ptr<const Broker> broker, Sender& sender, Admin& admin,
              std::shared_ptr<const backend::Destination> destination)
        : broker_(std::move(broker)),
          sender_(sender),
          admin_(admin),
          destination_(std::move(destination)),
          trouble_(std::make_shared<Trouble>()) {}

    void Publish(std::unique_ptr<backend::Publication> publication) noexcept override {
        while (true) {
            const Line* line = line_.load(std::memory_order_acquire);
            if (line == nullptr || !line->producer->Enter()) {
                if (!Renew(publication)) return;
                continue;
            }
            if (trouble_->asking.load(std::memory_order_relaxed))
                trouble_->Await(publication->deadline);
            const rd_kafka_resp_err_t error = Produce(*line, publication);
            line->producer->Leave();
            if (error == RD_KAFKA_RESP_ERR_NO_ERROR) return;
            if (!Recover(*line, error, publication)) return;
        }
    }

private:
    /// A producer, and the topic in it.
    struct Line {
        std::shared_ptr<Producer> producer = {};
        rd_kafka_topic_t* topic = nullptr;
    };

    /// Whether the topic exists, as far as was found out. Shared with the admin thread.
    struct Trouble {
        std::atomic<bool> asking{false};
        std::atomic<Clock::rep> until{0};  ///< The last deadline of what was published while it asked.
        std::mutex mutex = {};             // guards the rest
        ErrorPtr error = {};
        Clock::time_point ask_again = {};

        void Await(Clock::time_point deadline) noexcept {
            until.store(deadline.time_since_epoch().count(), std::memory_order_relaxed);
        }
        [[nodiscard]] Clock::time_point Until() const noexcept {
            return Clock::time_point{Clock::duration{until.load(std::memory_order_relaxed)}};
        }
    };

    // Takes the publication over where it succeeds.
    rd_kafka_resp_err_t Produce(const Line& line, std::unique_ptr<backend::Publication>& publication) {
        return sender_.Produce(*line.producer, line.topic, publication);
    }

    // A line to the present producer. False where there is none; the publication is then handed back.
    bool Renew(std::unique_ptr<backend::Publication>& publication) noexcept {
        try {
            const auto producer = sender_.Current(publication->deadline);
            const std::lock_guard lock{mutex_};
            const Line* const known = line_.load(std::memory_order_relaxed);
            if (known != nullptr && known->producer == producer) return true;
            if (!producer->Enter()) return true;
            auto line = std::make_unique<Line>(Line{producer, producer->Topic(destination_->address)});
            producer->Leave();
            if (line->topic == nullptr) {
                throw MakeError(*broker_, "topic '" + destination_->address + "'",
                                rd_kafka_last_error());
            }
            if (broker_->options.declare) AskForTopic(*line, publication->deadline);
            lines_.push_back(std::move(line));
            line_.store(lines_.back().get(), std::memory_order_release);
            return true;
        } catch (const Error& error) {
            sender_.Fail(std::move(publication), error);
        } catch (const std::exception& error) {
            sender_.Fail(std::move(publication),
                         Error{ErrorCode::kInternal, broker_->Text(error.what())});
        }
        return false;
    }

    // Whether to try again; else the publication is with somebody else.
    bool Recover(const Line& line, rd_kafka_resp_err_t error,
                 std::unique_ptr<backend::Publication>& publication) noexcept {
        if (Clock::now() < publication->deadline) {
            if (error == RD_KAFKA_RESP_ERR__QUEUE_FULL) return AwaitRoom(line, publication);
            if (error == RD_KAFKA_RESP_ERR__FATAL) return AwaitRetirement(line, *publication);
        }
        const std::string what = "sending to '" + destination_->address + "'";
        if (error == RD_KAFKA_RESP_ERR__QUEUE_FULL) {
            sender_.Fail(std::move(publication),
                         Error{ErrorCode::kTimeout,
                               broker_->Text(what + ": the producer's queue stayed full"),
                               Outcome::kNotSent,
                               {error, rd_kafka_err2str(error)}});
            return false;
        }
        Error reason = MakeError(*broker_, what, error);
        if (reason.code() == ErrorCode::kNotFound) {
            AskForTopic(line, publication->deadline);
            if (const ErrorPtr known = LastTrouble()) reason = *known;
        }
        sender_.Fail(std::move(publication), std::move(reason));
        return false;
    }

    // Tries until it is taken. Registered as waiting before each attempt, so that no room is missed.
    bool AwaitRoom(const Line& line, std::unique_ptr<backend::Publication>& publication) noexcept {
        const Sender::RoomWaiter waiter{sender_};
        while (true) {
            const std::uint64_t seen = waiter.Seen();
            if (!line.producer->Enter()) return true;
            const auto deadline = publication->deadline;
            const rd_kafka_resp_err_t error = Produce(line, publication);
            line.producer->Leave();
            if (error == RD_KAFKA_RESP_ERR_NO_ERROR) return false;
            if (error != RD_KAFKA_RESP_ERR__QUEUE_FULL) return true;
            if (Clock::now() >= deadline) return Recover(line, error, publication);
            waiter.Wait(seen, deadline);
        }
    }

    // The thread that polls the producer is about to find out.
    bool AwaitRetirement(const Line& line, const backend::Publication& publication) noexcept {
        const Sender::RoomWaiter waiter{sender_};
        while (Clock::now() < publication.deadline) {
            const std::uint64_t seen = waiter.Seen();
            if (line.producer->Retired()) break;
            waiter.Wait(seen, publication.deadline);
        }
        return true;
    }

    // Not more than once a second; and again by itself, for as long as something may wait for it.
    void AskForTopic(const Line& line, Clock::time_point deadline) {
        {
            const std::lock_guard lock{trouble_->mutex};
            trouble_->Await(deadline);
            if (trouble_->asking || Clock::now() < trouble_->ask_again) return;
            trouble_->asking = true;
            trouble_->ask_again = Clock::now() + std::chrono::seconds{1};
        }
        admin_.Ensure(
            destination_->address,
            [trouble = trouble_, line](const Admin::Verdict& verdict) {
                {
                    const std::lock_guard lock{trouble->mutex};
                    trouble->asking = !verdict.last;
                    trouble->error = verdict.error;
                }
                if (verdict.created) TellProducer(line);
            },
            [trouble = trouble_] { return trouble->Until(); });
    }

    // By itself, librdkafka looks for a missing topic once a second.
    static void TellProducer(const Line& line) {
        constexpr int kPatienceMs = 500;
        if (!line.producer->Enter()) return;
        const rd_kafka_metadata_t* metadata = nullptr;
        if (rd_kafka_metadata(line.producer->get(), 0, line.topic, &metadata, kPatienceMs) ==
            RD_KAFKA_RESP_ERR_NO_ERROR) {
            const Owned<const rd_kafka_metadata_t> owned{metadata};
        }
        line.producer->Leave();
    }

    [[nodiscard]] ErrorPtr LastTrouble() const {
        const std::lock_guard lock{trouble_->mutex};
        return trouble_->error;
    }

    const std::shared_ptr<const Broker> broker_;
    Sender& sender_;
    Admin& admin_;
    const std::shared_ptr<const backend::Destination> destination_;
    const std::shared_ptr<Trouble> trouble_;

    std::atomic<const Line*> line_{nullptr};
    std::mutex mutex_ = {};  // guards lines_
    // One for each producer that there has been: a send under way may still look at an older one.
    std::vector<std::unique_ptr<const Line>> lines_ = {};
};

}  // namespace mq::kafka::detail
