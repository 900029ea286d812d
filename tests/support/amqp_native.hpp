/// @file amqp_native.hpp
/// Programs beside the tests that speak AMQP 1.0 without this library: a client, one call after the
/// other, as blocking as can be, each with a deadline; and a broker that does what no real one would.
#pragma once

#include <mq/backends/activemq/engine.hpp>
#include <mq/backends/activemq/proton.hpp>
#include <mq/detail/waker.hpp>
#include <mq/url.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
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
    static constexpr std::chrono::seconds kPatience{30};

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

/// A socket that listens on a port of loopback.
class LoopbackListener {
public:
    LoopbackListener() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof(address);
        auto* const any = reinterpret_cast<sockaddr*>(&address);
        if (::bind(socket_, any, size) != 0 || ::listen(socket_, 5) != 0 ||
            ::getsockname(socket_, any, &size) != 0) {
            throw std::runtime_error{"no port"};
        }
        host_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    }
    LoopbackListener(const LoopbackListener&) = delete;
    LoopbackListener& operator=(const LoopbackListener&) = delete;
    ~LoopbackListener() { ::close(socket_); }

    [[nodiscard]] int Fd() const noexcept { return socket_; }
    [[nodiscard]] const std::string& Host() const noexcept { return host_; }

private:
    int socket_;
    std::string host_ = {};
};

/// A port that lets everybody in, and where nobody ever says a word.
using SilentPort = LoopbackListener;

/// A broker on loopback that takes every login and every link. What it does then is the test's. Serves
/// one connection after the other, on a thread of its own, which alone calls the functions of its
/// script.
class FakeBroker : private proton::messaging_handler {
public:
    struct Script {
        /// What the broker says it is; empty for nothing.
        std::string product = "apache-activemq-artemis";
        /// A client consumes by a link, and has given credit.
        std::function<void(proton::sender&)> on_credit = [](proton::sender&) {};
        /// A client publishes by a link, which is not open yet.
        std::function<void(proton::receiver&)> on_publisher = [](proton::receiver&) {};
        /// A client has published a message. Nothing is settled by itself.
        std::function<void(proton::delivery&)> on_published = [](proton::delivery&) {};
    };

    explicit FakeBroker(Script script) : script_(std::move(script)), thread_([this] { Run(); }) {}
    FakeBroker(const FakeBroker&) = delete;
    FakeBroker& operator=(const FakeBroker&) = delete;
    ~FakeBroker() override {
        ended_ = true;
        waker_.Wake();
        thread_.join();
    }

    [[nodiscard]] std::string Url(const std::string& scheme = "artemis") const {
        return scheme + "://" + listener_.Host();
    }

    /// Hangs up on the client there is, without a word. When it returns, the client's socket knows.
    void HangUp() const { ::shutdown(client_, SHUT_RDWR); }

private:
    void Run() {
        while (!ended_) {
            if (!Wait(listener_.Fd())) continue;
            const int client = ::accept4(listener_.Fd(), nullptr, nullptr, SOCK_CLOEXEC);
            if (client < 0) continue;
            const int before = client_.exchange(client);
            if (before >= 0) ::close(before);
            Serve(client);
        }
        if (client_ >= 0) ::close(client_);
    }

    void Serve(int client) {
        proton::io::connection_driver driver{"fake broker"};
        proton::connection_options options{*this};
        options.sasl_allowed_mechs("ANONYMOUS");
        driver.accept(options);
        while (!ended_ && driver.dispatch()) {
            for (auto bytes = driver.write_buffer(); bytes.size > 0; bytes = driver.write_buffer()) {
                const ssize_t count = ::send(client, bytes.data, bytes.size, MSG_NOSIGNAL);
                if (count <= 0) return;
                driver.write_done(static_cast<std::size_t>(count));
            }
            Tick(driver);
            if (!Wait(client)) continue;
            const auto room = driver.read_buffer();
            const ssize_t count = ::recv(client, room.data, room.size, 0);
            if (count <= 0) return;
            driver.read_done(static_cast<std::size_t>(count));
        }
    }

    // For the heartbeats.
    static void Tick(proton::io::connection_driver& driver) {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        driver.tick(
            proton::timestamp{std::chrono::duration_cast<std::chrono::milliseconds>(now).count()});
    }

    // Whether there is something to read; returns also for the heartbeats, and where this is to end.
    bool Wait(int fd) {
        constexpr int kMilliseconds = 100;
        std::array<pollfd, 2> polled{{{fd, POLLIN, 0}, {waker_.Fd(), POLLIN, 0}}};
        return ::poll(polled.data(), polled.size(), kMilliseconds) > 0 && polled[0].revents != 0;
    }

    void on_connection_open(proton::connection& connection) override {
        proton::connection_options options;
        if (!script_.product.empty()) options.properties({{"product", script_.product}});
        connection.open(options);
    }
    void on_session_open(proton::session& session) override { session.open(); }
    void on_sender_open(proton::sender& sender) override {
        proton::source_options source;
        source.address(sender.source().dynamic() ? "temporary" : sender.source().address());
        sender.open(proton::sender_options{}.source(source));
    }
    void on_sendable(proton::sender& sender) override { script_.on_credit(sender); }
    void on_receiver_open(proton::receiver& receiver) override {
        script_.on_publisher(receiver);
        receiver.open(proton::receiver_options{}.auto_accept(false));
    }
    void on_message(proton::delivery& delivery, proton::message& /*message*/) override {
        script_.on_published(delivery);
    }
    void on_error(const proton::error_condition& /*error*/) override {}

    const Script script_;
    const LoopbackListener listener_ = {};
    std::atomic<int> client_ = -1;
    std::atomic<bool> ended_ = false;
    mq::detail::Waker waker_ = {};
    std::thread thread_;
};

}  // namespace mq::test
