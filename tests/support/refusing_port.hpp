/// @file refusing_port.hpp
/// A port of this machine where nobody listens, and nobody will.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <stdexcept>
#include <string>

namespace mq::test {

/// A port of this machine that refuses connections as long as the object lives.
class RefusingPort {
public:
    RefusingPort() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof(address);
        // Bound and not listening: nobody else gets the port, and nobody is let in.
        if (::bind(socket_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
            ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
            throw std::runtime_error{"no port"};
        }
        host_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    }
    RefusingPort(const RefusingPort&) = delete;
    RefusingPort& operator=(const RefusingPort&) = delete;
    ~RefusingPort() { ::close(socket_); }

    [[nodiscard]] const std::string& Host() const { return host_; }

private:
    int socket_;
    std::string host_ = {};
};

}  // namespace mq::test
