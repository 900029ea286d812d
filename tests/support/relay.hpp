/// @file relay.hpp
/// Stands between a client and a broker, and changes what they say to each other: what a broker does
/// only by a defect, or another kind of broker, can so be shown with one that is sound.
#pragma once

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <list>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mq::test {

/// Forwards connections to a port of this machine, with what it is told to change. One thread.
class Relay {
public:
    /// Changes a piece of what goes one way; what it leaves in `back` goes to the sender of the piece.
    using Change = std::function<void(std::string& piece, std::string& back)>;

    explicit Relay(std::uint16_t port, Change to_client, Change to_broker = {})
        : to_client_(std::move(to_client)), to_broker_(std::move(to_broker)), port_(port) {
        listening_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address = Loopback(0);
        socklen_t size = sizeof(address);
        if (::bind(listening_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
            ::listen(listening_, 16) != 0 ||
            ::getsockname(listening_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
            throw std::runtime_error{"no port"};
        }
        host_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
        thread_ = std::thread{[this] { Run(); }};
    }
    Relay(const Relay&) = delete;
    Relay& operator=(const Relay&) = delete;
    ~Relay() {
        ending_ = true;
        thread_.join();
        for (const Pair& pair : pairs_) {
            ::close(pair.client);
            ::close(pair.broker);
        }
        ::close(listening_);
    }

    [[nodiscard]] const std::string& Host() const { return host_; }
    /// How many connections there were.
    [[nodiscard]] int Accepted() const { return accepted_; }

private:
    struct Pair {
        int client;
        int broker;
    };

    static sockaddr_in Loopback(std::uint16_t port) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address.sin_port = htons(port);
        return address;
    }

    void Run() {
        constexpr int kLook = 20;  // milliseconds, to see that it is to end
        while (!ending_) {
            std::vector<pollfd> polled{{listening_, POLLIN, 0}};
            for (const Pair& pair : pairs_) {
                polled.push_back({pair.client, POLLIN, 0});
                polled.push_back({pair.broker, POLLIN, 0});
            }
            if (::poll(polled.data(), polled.size(), kLook) <= 0) continue;
            std::size_t i = 1;
            for (auto pair = pairs_.begin(); pair != pairs_.end(); i += 2) {
                const bool sound =
                    (polled[i].revents == 0 || Forward(pair->client, pair->broker, to_broker_)) &&
                    (polled[i + 1].revents == 0 || Forward(pair->broker, pair->client, to_client_));
                if (!sound) {
                    ::close(pair->client);
                    ::close(pair->broker);
                }
                pair = sound ? std::next(pair) : pairs_.erase(pair);
            }
            if (polled[0].revents != 0) Accept();
        }
    }

    void Accept() {
        const int client = ::accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC);
        if (client < 0) return;
        const int broker = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const sockaddr_in address = Loopback(port_);
        if (::connect(broker, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
            ::close(client);
            ::close(broker);
            return;
        }
        ++accepted_;
        pairs_.push_back({client, broker});
    }

    static bool Forward(int from, int to, const Change& change) {
        std::array<char, 65536> buffer{};
        const ssize_t size = ::recv(from, buffer.data(), buffer.size(), 0);
        if (size <= 0) return false;
        std::string piece{buffer.data(), static_cast<std::size_t>(size)};
        std::string back;
        if (change) change(piece, back);
        return SendAll(to, piece) && SendAll(from, back);
    }

    static bool SendAll(int to, const std::string& text) {
        std::size_t sent = 0;
        while (sent < text.size()) {
            const ssize_t now = ::send(to, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
            if (now <= 0) return false;
            sent += static_cast<std::size_t>(now);
        }
        return true;
    }

    const Change to_client_;
    const Change to_broker_;
    const std::uint16_t port_;
    int listening_ = -1;
    std::string host_ = {};
    std::atomic<bool> ending_ = false;
    std::atomic<int> accepted_ = 0;
    std::list<Pair> pairs_ = {};  // of the thread, until it has ended
    std::thread thread_ = {};
};

}  // namespace mq::test
