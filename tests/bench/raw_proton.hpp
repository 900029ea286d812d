/// @file raw_proton.hpp
/// What somebody writes who publishes to ActiveMQ with Qpid Proton alone: one connection, one sender,
/// messages sent for as long as the broker gives credit, and counted when they are accepted. They carry
/// what the facade's carry: durable, an id, a time, a group id.
#pragma once

#include <mq/url.hpp>

#include <proton/connection.hpp>
#include <proton/connection_options.hpp>
#include <proton/container.hpp>
#include <proton/delivery_mode.hpp>
#include <proton/error_condition.hpp>
#include <proton/message.hpp>
#include <proton/message_id.hpp>
#include <proton/messaging_handler.hpp>
#include <proton/sender.hpp>
#include <proton/sender_options.hpp>
#include <proton/target_options.hpp>
#include <proton/timestamp.hpp>
#include <proton/tracker.hpp>
#include <proton/transport.hpp>
#include <proton/work_queue.hpp>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace bench {

class RawProton final : public proton::messaging_handler {
public:
    /// `capability` is "topic" for Artemis, and empty for Classic, whose address says it.
    RawProton(mq::Url url, std::string address, std::string capability)
        : url_(std::move(url)),
          address_(std::move(address)),
          capability_(std::move(capability)),
          container_(*this),
          thread_([this] { container_.run(); }) {
        std::unique_lock lock{mutex_};
        if (!changed_.wait_for(lock, kPatience, [this] { return open_ || !failure_.empty(); })) {
            failure_ = "the broker has not answered";
        }
        if (!failure_.empty()) {
            lock.unlock();
            Stop();
            throw std::runtime_error(failure_);
        }
    }
    RawProton(const RawProton&) = delete;
    RawProton& operator=(const RawProton&) = delete;
    ~RawProton() override { Stop(); }

    void Publish(std::size_t count, const std::string& body, const std::vector<std::string>& keys) {
        sender_.work_queue().add([=, this, &body, &keys] {
            count_ = count;
            sent_ = 0;
            body_ = &body;
            keys_ = &keys;
            SendSome();
        });
        std::unique_lock lock{mutex_};
        if (!changed_.wait_for(lock, kPatience,
                               [&] { return accepted_ >= count || !failure_.empty(); })) {
            throw std::runtime_error("the broker has not accepted every message");
        }
        if (!failure_.empty()) throw std::runtime_error(failure_);
        accepted_ = 0;
    }

private:
    static constexpr std::chrono::seconds kPatience{60};

    void on_container_start(proton::container& container) override {
        proton::connection_options options;
        options.user(url_.user).password(url_.password).sasl_allow_insecure_mechs(true);
        connection_ = container.connect(
            url_.hosts.front().host + ":" + std::to_string(url_.hosts.front().port), options);
        proton::target_options target;
        if (!capability_.empty()) target.capabilities({proton::symbol{capability_}});
        connection_.open_sender(address_, proton::sender_options{}.target(target));
    }
    void on_sender_open(proton::sender& sender) override {
        sender_ = sender;
        const std::lock_guard lock{mutex_};
        open_ = true;
        changed_.notify_all();
    }
    void on_sendable(proton::sender& /*sender*/) override { SendSome(); }
    void on_tracker_accept(proton::tracker& /*tracker*/) override {
        if (++confirmed_ < count_) return;
        const std::lock_guard lock{mutex_};
        accepted_ = std::exchange(confirmed_, 0);
        changed_.notify_all();
    }
    void on_tracker_reject(proton::tracker& /*tracker*/) override { Fail("a message was rejected"); }
    void on_tracker_release(proton::tracker& /*tracker*/) override { Fail("a message was released"); }
    void on_error(const proton::error_condition& error) override { Fail(error.what()); }

    void SendSome() {
        while (sent_ < count_ && sender_.credit() > 0) {
            char id[25];
            std::snprintf(id, sizeof id, "raw-%020zu", sent_);
            message_.clear();
            message_.durable(true);
            message_.inferred(true);
            message_.body() = proton::binary{*body_};
            message_.id(proton::message_id{std::string{id}});
            message_.creation_time(proton::timestamp::now());
            message_.group_id((*keys_)[sent_ % keys_->size()]);
            sender_.send(message_);
            ++sent_;
        }
    }

    void Fail(const std::string& text) {
        const std::lock_guard lock{mutex_};
        failure_ = text;
        changed_.notify_all();
    }

    void Stop() {
        container_.stop();
        thread_.join();
    }

    const mq::Url url_;
    const std::string address_;
    const std::string capability_;

    // The container's thread's own, but for the opened sender's work queue:
    proton::connection connection_;
    proton::sender sender_;
    proton::message message_;
    std::size_t count_ = 0;
    std::size_t sent_ = 0;
    std::size_t confirmed_ = 0;
    const std::string* body_ = nullptr;
    const std::vector<std::string>* keys_ = nullptr;

    std::mutex mutex_;  // guards the rest
    std::condition_variable changed_;
    bool open_ = false;
    std::size_t accepted_ = 0;
    std::string failure_;

    proton::container container_;
    std::thread thread_;
};

}  // namespace bench
