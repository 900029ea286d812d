/// @file amqp_native.hpp
/// A program beside the tests that speaks AMQP 1.0 without this library: one call after the other, as
/// blocking as can be, each with a deadline.
#pragma once

#include <mq/backends/activemq/proton.hpp>
#include <mq/url.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace mq::test {

/// One connection to a broker on 127.0.0.1. Everything throws std::runtime_error where it takes too
/// long.
class NativeAmqp : private proton::messaging_handler {
public:
    explicit NativeAmqp(const std::string& broker) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        const Url url = ParseUrl(broker);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(url.hosts.at(0).port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
            throw std::runtime_error{"no connection"};
        }
        proton::connection_options options{*this};
        options.user(url.user).password(url.password).sasl_allowed_mechs("PLAIN");
        options.sasl_allow_insecure_mechs(true);
        driver_.connect(options);
        Until("open", [this] { return opened_; });
    }
    NativeAmqp(const NativeAmqp&) = delete;
    NativeAmqp& operator=(const NativeAmqp&) = delete;
    ~NativeAmqp() override { ::close(socket_); }

    /// Sends a message, and waits until the broker has accepted it. The capability "topic" or "queue"
    /// tells Artemis what the address is.
    void Send(const std::string& address, const std::string& capability,
              const proton::message& message) {
        proton::target_options target;
        target.address(address).capabilities({proton::symbol{capability}});
        proton::sender sender =
            driver_.connection().open_sender(address, proton::sender_options{}.target(target));
        Until("credit", [&] { return sender.credit() > 0; });
        const std::size_t before = accepted_;
        sender.send(message);
        Until("accepted", [&] { return accepted_ > before; });
        sender.close();
        Until("written", [] { return true; });
    }

    /// The next message of a queue, which is thereby gone from it.
    proton::message Receive(const std::string& queue, bool artemis_topic = false) {
        proton::source_options source;
        source.address(queue).capabilities({proton::symbol{artemis_topic ? "topic" : "queue"}});
        proton::receiver_options options;
        options.source(source).credit_window(0).auto_accept(true);
        proton::receiver receiver = driver_.connection().open_receiver(queue, options);
        receiver.add_credit(1);
        Until("a message", [this] { return !messages_.empty(); });
        proton::message message = std::move(messages_.front());
        messages_.pop_front();
        receiver.close();
        Until("written", [] { return true; });
        return message;
    }

private:
    static constexpr std::chrono::seconds kPatience{20};

    template <typename Predicate>
    void Until(const char* what, Predicate predicate) {
        const auto deadline = std::chrono::steady_clock::now() + kPatience;
        while (true) {
            driver_.dispatch();
            const bool done = predicate();
            Write();
            if (done) return;
            if (std::chrono::steady_clock::now() >= deadline) throw std::runtime_error{what};
            pollfd polled{socket_, POLLIN, 0};
            if (::poll(&polled, 1, 100) > 0) Read(what);
        }
    }

    void Write() {
        for (auto bytes = driver_.write_buffer(); bytes.size > 0; bytes = driver_.write_buffer()) {
            const ssize_t count = ::send(socket_, bytes.data, bytes.size, MSG_NOSIGNAL);
            if (count <= 0) throw std::runtime_error{"write"};
            driver_.write_done(static_cast<std::size_t>(count));
        }
    }

    void Read(const char* what) {
        const auto room = driver_.read_buffer();
        const ssize_t count = ::recv(socket_, room.data, room.size, 0);
        if (count <= 0) throw std::runtime_error{what};
        driver_.read_done(static_cast<std::size_t>(count));
    }

    void on_connection_open(proton::connection& /*connection*/) override { opened_ = true; }
    void on_tracker_accept(proton::tracker& /*tracker*/) override { ++accepted_; }
    void on_message(proton::delivery& /*delivery*/, proton::message& message) override {
        messages_.push_back(message);
    }
    void on_error(const proton::error_condition& error) override {
        throw std::runtime_error{error.what()};
    }

    int socket_;
    proton::io::connection_driver driver_{"native " + std::to_string(::getpid()) + " " +
                                          std::to_string(socket_)};
    bool opened_ = false;
    std::size_t accepted_ = 0;
    std::deque<proton::message> messages_ = {};
};

}  // namespace mq::test
