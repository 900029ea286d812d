/// @file tcp_dial_test.cpp
/// Connecting to a host of several addresses, of which some are silent and some refuse.
#include "../support/catch.hpp"
#include "../support/refusing_port.hpp"
#include "../support/silent_port.hpp"
#include <mq/detail/tcp_dial.hpp>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

using mq::detail::AddressRace;
using mq::detail::DialFailure;
using mq::detail::ResolveHost;
using mq::detail::Socket;
using mq::detail::SocketAddress;
using mq::detail::Waker;
using mq::test::RefusingPort;
using mq::test::SilentPort;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

SocketAddress Of(const sockaddr_in& address) {
    SocketAddress result;
    std::memcpy(&result.storage, &address, sizeof(address));
    result.size = sizeof(address);
    return result;
}

SocketAddress Of(const RefusingPort& port) {
    const std::string& host = port.Host();
    const auto at = static_cast<std::uint16_t>(std::stoi(host.substr(host.find(':') + 1)));
    DialFailure failure;
    return ResolveHost("127.0.0.1", at, Clock::now() + 10s, Waker{}, failure).at(0);
}

/// A port that lets everybody in.
class OpenPort {
public:
    OpenPort() : listening_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        address_.sin_family = AF_INET;
        address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof(address_);
        REQUIRE(::bind(listening_.Get(), reinterpret_cast<sockaddr*>(&address_), size) == 0);
        REQUIRE(::listen(listening_.Get(), 16) == 0);
        REQUIRE(::getsockname(listening_.Get(), reinterpret_cast<sockaddr*>(&address_), &size) == 0);
    }

    [[nodiscard]] SocketAddress Address() const { return Of(address_); }

private:
    Socket listening_;
    sockaddr_in address_ = {};
};

}  // namespace

TEST_CASE("dialling: silent addresses in front of one that answers cost a moment each") {
    const SilentPort silent;
    const OpenPort open;
    const Waker never;
    std::vector<SocketAddress> addresses(5, Of(silent.Address()));
    addresses.push_back(open.Address());
    DialFailure failure;
    AddressRace race{addresses, Clock::now() + 30s, never};
    const auto begin = Clock::now();
    CHECK(race.Run(failure).Get() >= 0);
    CHECK(Clock::now() - begin < 15s);
    CHECK(race.Winner().Host() == "127.0.0.1");
}

TEST_CASE("dialling: however short the time is, each address gets its share of it") {
    const SilentPort silent;
    const OpenPort open;
    const Waker never;
    std::vector<SocketAddress> addresses(40, Of(silent.Address()));
    addresses.push_back(open.Address());
    DialFailure failure;
    CHECK(AddressRace(addresses, Clock::now() + 2s, never).Run(failure).Get() >= 0);
}

TEST_CASE("dialling: an address that refuses is passed over at once") {
    const RefusingPort refusing;
    const OpenPort open;
    const Waker never;
    const std::vector<SocketAddress> addresses{Of(refusing), open.Address()};
    DialFailure failure;
    AddressRace race{addresses, Clock::now() + 30s, never};
    CHECK(race.Run(failure).Get() >= 0);
}

TEST_CASE("dialling: where all refuse it is said without waiting") {
    const RefusingPort refusing;
    const Waker never;
    const std::vector<SocketAddress> addresses(3, Of(refusing));
    DialFailure failure;
    const auto begin = Clock::now();
    CHECK(AddressRace(addresses, begin + 60s, never).Run(failure).Get() < 0);
    CHECK(failure.code == ECONNREFUSED);
    CHECK(Clock::now() - begin < 30s);
}

TEST_CASE("dialling: silence ends at the deadline, or when nobody wants the answer any more") {
    const SilentPort silent;
    const std::vector<SocketAddress> addresses(2, Of(silent.Address()));
    const Waker cancelled;
    DialFailure failure;
    CHECK(AddressRace(addresses, Clock::now() + 300ms, cancelled).Run(failure).Get() < 0);
    CHECK(failure.code == ETIMEDOUT);
    std::thread other{[&] { cancelled.Wake(); }};
    CHECK(AddressRace(addresses, Clock::now() + 10min, cancelled).Run(failure).Get() < 0);
    CHECK(failure.code == ECANCELED);
    other.join();
}

TEST_CASE("dialling: a name that there is not is said") {
    const Waker never;
    DialFailure failure;
    CHECK(ResolveHost("no such host", 1, Clock::now() + 30s, never, failure).empty());
    CHECK_FALSE(failure.text.empty());
    CHECK(ResolveHost("::1", 5672, Clock::now() + 30s, never, failure).size() == 1);
}
