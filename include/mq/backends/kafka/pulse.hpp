/// @file pulse.hpp
/// Whether the thread of librdkafka that serves a consumer's group answers.
#pragma once

#include <mq/backends/kafka/native.hpp>

#include <chrono>

namespace mq::kafka::detail {

/// Most calls that concern the group are answered by one thread of the handle, and wait for it for
/// ever. Where it computes or waits for ever itself, its member is expelled, nothing tells, and whoever
/// calls is lost. So it is asked now and then, by a commit of nothing, which it refuses at once without
/// asking a broker. For the thread that uses the handle.
class Pulse {
public:
    static constexpr std::chrono::seconds kInterval{4};
    /// How long an answer may be missing.
    static constexpr std::chrono::seconds kPatience{10};

    /// Asks again where it is time for that, and takes the answer where there is one.
    void Feel(rd_kafka_t* rk, Clock::time_point now) {
        if (question_ != nullptr) {
            Take(milliseconds{0});
        } else if (now - asked_ >= kInterval) {
            Ask(rk, now);
        }
    }

    /// Whether it answers within `patience`: then it may be called. Blocks for so long at most.
    bool Answers(rd_kafka_t* rk, milliseconds patience) {
        if (question_ == nullptr) Ask(rk, Clock::now());
        Take(patience);
        return question_ == nullptr;
    }

    /// Whether it has not answered for too long.
    [[nodiscard]] bool Lost(Clock::time_point now) const {
        return question_ != nullptr && now - asked_ >= kPatience;
    }

    /// Before the handle goes.
    void Forget() {
        question_.reset();
        asked_ = {};
    }

private:
    void Ask(rd_kafka_t* rk, Clock::time_point now) {
        asked_ = now;
        question_.reset(rd_kafka_queue_new(rk));
        const auto nothing = MakeList();
        rd_kafka_commit_queue(rk, nothing.get(), question_.get(), nullptr, nullptr);
    }

    void Take(milliseconds patience) {
        const auto timeout = static_cast<int>(patience.count());
        const Owned<rd_kafka_event_t> answer{rd_kafka_queue_poll(question_.get(), timeout)};
        if (answer != nullptr) question_.reset();
    }

    Owned<rd_kafka_queue_t> question_ = {};
    Clock::time_point asked_ = {};
};

}  // namespace mq::kafka::detail
