/// @file silent_port.hpp
/// An address of this machine that answers nothing: neither lets in nor refuses, like a host behind a
/// firewall that drops what it gets.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace mq::test {

/// A port of one of this machine's own addresses whose queue of connections is full, so that the system
/// drops whatever comes, as long as the object lives.
class SilentPort {
public:
    /// `port` is 0 for any that is free.
    explicit SilentPort(const char* address = "127.0.0.2", std::uint16_t port = 0) {
        address_.sin_family = AF_INET;
        address_.sin_port = htons(port);
        socklen_t size = sizeof(address_);
        const int listening = Keep(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (::inet_pton(AF_INET, address, &address_.sin_addr) != 1 ||
            ::bind(listening, reinterpret_cast<sockaddr*>(&address_), size) != 0 ||
            ::listen(listening, 0) != 0 ||
            ::getsockname(listening, reinterpret_cast<sockaddr*>(&address_), &size) != 0) {
            throw std::runtime_error{"no port"};
        }
        // The queue holds one or two; the rest stay without an answer.
        for (int i = 0; i < 4; ++i) {
            const int filling = Keep(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
            const auto* const to = reinterpret_cast<const sockaddr*>(&address_);
            if (::connect(filling, to, size) != 0 && errno != EINPROGRESS) {
                throw std::runtime_error{"cannot fill the queue"};
            }
        }
    }
    SilentPort(const SilentPort&) = delete;
    SilentPort& operator=(const SilentPort&) = delete;
    ~SilentPort() {
        for (const int socket : sockets_) ::close(socket);
    }

    [[nodiscard]] const sockaddr_in& Address() const { return address_; }
    [[nodiscard]] std::uint16_t Port() const { return ntohs(address_.sin_port); }

private:
    int Keep(int socket) {
        if (socket < 0) throw std::runtime_error{"no socket"};
        sockets_.push_back(socket);
        return socket;
    }

    sockaddr_in address_ = {};
    std::vector<int> sockets_ = {};
};

}  // namespace mq::test
