/// @file activemq_dial_test.cpp
/// Connecting to a host with several addresses, some of which say nothing.
#include "../support/amqp_native.hpp"
#include "../support/catch.hpp"
#include <mq/backends/activemq.hpp>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <latch>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using mq::activemq::Failure;
using mq::activemq::detail::Clock;
using mq::activemq::detail::Dial;
using mq::activemq::detail::Resolver;
using mq::activemq::detail::Socket;
using mq::activemq::detail::SocketAddress;
using namespace std::chrono_literals;

SocketAddress Loopback(const char* host, std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    ::inet_pton(AF_INET, host, &address.sin_addr);
    SocketAddress made;
    made.size = sizeof(address);
    std::memcpy(&made.storage, &address, sizeof(address));
    return made;
}

/// A socket that listens on an address of loopback.
class Listening {
public:
    explicit Listening(const char* host, std::uint16_t port = 0)
        : host_(host), socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        SocketAddress address = Loopback(host, port);
        sockaddr_in bound{};
        socklen_t size = sizeof(bound);
        if (::bind(socket_.Get(), address.Get(), address.size) != 0 ||
            ::listen(socket_.Get(), 8) != 0 ||
            ::getsockname(socket_.Get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
            throw std::runtime_error{"no port"};
        }
        port_ = ntohs(bound.sin_port);
    }

    /// Fills its queue, so that the kernel answers nobody any more.
    void FallSilent() {
        ::listen(socket_.Get(), 0);
        for (int i = 0; i < 3; ++i) {
            fillers_.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
            const SocketAddress address = Address();
            static_cast<void>(::connect(fillers_.back().Get(), address.Get(), address.size));
        }
    }

    [[nodiscard]] SocketAddress Address() const { return Loopback(host_, port_); }
    [[nodiscard]] std::uint16_t Port() const noexcept { return port_; }
    [[nodiscard]] bool IsPeerOf(const Socket& socket) const {
        sockaddr_in peer{};
        socklen_t size = sizeof(peer);
        ::getpeername(socket.Get(), reinterpret_cast<sockaddr*>(&peer), &size);
        const SocketAddress mine = Address();
        return std::memcmp(&peer.sin_addr, &reinterpret_cast<const sockaddr_in*>(mine.Get())->sin_addr,
                           sizeof(peer.sin_addr)) == 0 &&
               ntohs(peer.sin_port) == port_;
    }

private:
    const char* host_;
    Socket socket_;
    std::uint16_t port_ = 0;
    std::vector<Socket> fillers_ = {};
};

Resolver Giving(std::vector<SocketAddress> addresses) {
    return [addresses = std::move(addresses)](const std::string&, std::uint16_t, mq::NativeError&) {
        return addresses;
    };
}

/// Dials, and waits until it is done.
Socket Connect(const Resolver& resolve, std::chrono::milliseconds timeout, Failure& failure,
               std::size_t turn = 0) {
    const auto waker = std::make_shared<mq::detail::Waker>();
    Dial dial{{"host", 1, turn}, "there", timeout, waker, resolve};
    while (!dial.Done()) {
        pollfd polled{waker->Fd(), POLLIN, 0};
        ::poll(&polled, 1, 10);
    }
    return dial.Take(failure);
}

}  // namespace

TEST_CASE("ActiveMQ dial: a silent address does not keep the next one from being tried", "[activemq]") {
    Listening silent{"127.0.0.2"};
    silent.FallSilent();
    const Listening open{"127.0.0.1"};
    Failure failure;
    const auto begin = Clock::now();
    const Socket socket = Connect(Giving({silent.Address(), open.Address()}), 30s, failure);
    REQUIRE(socket.Get() >= 0);
    CHECK(open.IsPeerOf(socket));
    CHECK(Clock::now() - begin < 15s);
}

TEST_CASE("ActiveMQ dial: all addresses are tried, and one error is told", "[activemq]") {
    std::uint16_t closed = 0;
    {
        const Listening once{"127.0.0.3"};
        closed = once.Port();
    }
    const Listening open{"127.0.0.1"};
    Failure failure;
    const Socket socket =
        Connect(Giving({Loopback("127.0.0.3", closed), Loopback("127.0.0.3", closed), open.Address()}),
                30s, failure);
    CHECK(open.IsPeerOf(socket));
    CHECK(Connect(Giving({Loopback("127.0.0.3", closed)}), 30s, failure).Get() < 0);
    CHECK(failure.text == "there: Connection refused");
}

TEST_CASE("ActiveMQ dial: only silent addresses end at the deadline", "[activemq]") {
    Listening one{"127.0.0.2"};
    Listening two{"127.0.0.3"};
    one.FallSilent();
    two.FallSilent();
    Failure failure;
    const auto begin = Clock::now();
    CHECK(Connect(Giving({one.Address(), two.Address()}), 600ms, failure).Get() < 0);
    CHECK(Clock::now() - begin >= 600ms);
    CHECK(failure.text.find("Connection timed out") != std::string::npos);
}

TEST_CASE("ActiveMQ dial: a resolver that hangs does not hang the connection", "[activemq]") {
    const auto go_on = std::make_shared<std::latch>(1);
    const Resolver hangs = [go_on](const std::string&, std::uint16_t, mq::NativeError&) {
        go_on->wait();
        return std::vector<SocketAddress>{};
    };
    Failure failure;
    CHECK(Connect(hangs, 200ms, failure).Get() < 0);
    CHECK(failure.text.find("the resolver has not found the host") != std::string::npos);
    go_on->count_down();
}

TEST_CASE("ActiveMQ dial: each turn begins with another address", "[activemq]") {
    const Listening one{"127.0.0.2"};
    const Listening two{"127.0.0.3"};
    Failure failure;
    const Resolver both = Giving({one.Address(), two.Address()});
    CHECK(one.IsPeerOf(Connect(both, 30s, failure, 0)));
    CHECK(two.IsPeerOf(Connect(both, 30s, failure, 1)));
    CHECK(one.IsPeerOf(Connect(both, 30s, failure, 2)));
}
