/// @file tcp_dial.hpp
/// Connects to a host that may have several addresses, of which some may be silent: they are tried side
/// by side, each begun a little after the one before it, and the first that answers is taken. Resolving
/// the name is bounded as well, which the system's resolver is not.
#pragma once

#include <mq/detail/stragglers.hpp>
#include <mq/detail/waker.hpp>

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::detail {

/// A file descriptor until it has another owner.
class Socket {
public:
    Socket() = default;
    explicit Socket(int fd) noexcept : fd_(fd) {}
    Socket(Socket&& other) noexcept : fd_(other.Release()) {}
    Socket& operator=(Socket&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    Socket(const Socket&) = delete;
    Socket& operator=(const Socket&) = delete;
    ~Socket() {
        if (fd_ >= 0) ::close(fd_);
    }

    [[nodiscard]] int Get() const noexcept { return fd_; }
    int Release() noexcept { return std::exchange(fd_, -1); }

private:
    int fd_ = -1;
};

/// One address of a host.
struct SocketAddress {
    sockaddr_storage storage = {};
    socklen_t size = 0;

    [[nodiscard]] int Family() const noexcept { return storage.ss_family; }

    /// In digits, without the port; empty where it cannot be written.
    [[nodiscard]] std::string Host() const {
        std::array<char, NI_MAXHOST> host{};
        const auto* const address = reinterpret_cast<const sockaddr*>(&storage);
        const int error = ::getnameinfo(address, size, host.data(), static_cast<socklen_t>(host.size()),
                                        nullptr, 0, NI_NUMERICHOST);
        return error == 0 ? std::string{host.data()} : std::string{};
    }
};

/// Why there is no address or no connection.
struct DialFailure {
    int code = 0;  ///< An errno, or what getaddrinfo returns.
    std::string text = {};
};

namespace internal {

struct Lookup {
    int error = 0;
    std::vector<SocketAddress> addresses = {};
};

inline Lookup LookUp(const std::string& host, std::uint16_t port, int flags) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags;
    addrinfo* found = nullptr;
    const std::string service = std::to_string(port);
    Lookup lookup;
    lookup.error = ::getaddrinfo(host.c_str(), service.c_str(), &hints, &found);
    if (lookup.error != 0) return lookup;
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner{found, &::freeaddrinfo};
    for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
        SocketAddress address;
        if (each->ai_addrlen > sizeof(address.storage)) continue;
        std::memcpy(&address.storage, each->ai_addr, each->ai_addrlen);
        address.size = each->ai_addrlen;
        lookup.addresses.push_back(address);
    }
    return lookup;
}

/// A lookup on a thread of its own, which goes on where nobody waits for it any more.
struct SharedLookup {
    Waker finished = {};
    std::mutex mutex = {};  // guards lookup
    Lookup lookup = {};
};

inline int MillisecondsUntil(std::chrono::steady_clock::time_point deadline) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    constexpr std::chrono::milliseconds kMost = std::chrono::hours{24};
    return static_cast<int>(std::clamp(left, std::chrono::milliseconds{0}, kMost).count());
}

/// Waits for one of the descriptors. Returns false at the deadline.
inline bool PollUntil(std::vector<pollfd>& polled, std::chrono::steady_clock::time_point deadline) {
    while (true) {
        const int time = MillisecondsUntil(deadline);
        if (::poll(polled.data(), static_cast<nfds_t>(polled.size()), time) > 0) return true;
        if (time == 0) return false;
    }
}

inline DialFailure SystemFailure(int error) { return {error, std::generic_category().message(error)}; }

}  // namespace internal

/// The addresses of a host, one family after the other in turn, so that a family that leads nowhere
/// takes no more than each second place. Blocks until the deadline at most, or until `cancelled` is
/// raised. Thread-safe.
/// @returns nothing where there are none, and then `failure` says why.
inline std::vector<SocketAddress> ResolveHost(const std::string& host, std::uint16_t port,
                                              std::chrono::steady_clock::time_point deadline,
                                              const Waker& cancelled, DialFailure& failure) {
    internal::Lookup lookup = internal::LookUp(host, port, AI_NUMERICHOST);
    if (lookup.error != 0) {
        const auto shared = std::make_shared<internal::SharedLookup>();
        try {
            Stragglers::Run([shared, host, port] {
                internal::Lookup found = internal::LookUp(host, port, 0);
                {
                    const std::lock_guard lock{shared->mutex};
                    shared->lookup = std::move(found);
                }
                shared->finished.Wake();
            });
        } catch (const std::system_error& error) {
            failure = {error.code().value(), std::string{"cannot start a thread: "} + error.what()};
            return {};
        }
        std::vector<pollfd> polled{{shared->finished.Fd(), POLLIN, 0}, {cancelled.Fd(), POLLIN, 0}};
        if (!internal::PollUntil(polled, deadline) || polled[0].revents == 0) {
            const bool ended = polled[1].revents != 0;
            failure = {ended ? ECANCELED : ETIMEDOUT,
                       "its name " + host + " was not resolved before the connect timeout"};
            return {};
        }
        const std::lock_guard lock{shared->mutex};
        lookup = std::move(shared->lookup);
    }
    if (lookup.error != 0) {
        failure = {lookup.error, ::gai_strerror(lookup.error)};
        return {};
    }
    std::vector<SocketAddress>& addresses = lookup.addresses;
    if (addresses.empty()) {
        failure = internal::SystemFailure(EADDRNOTAVAIL);
        return {};
    }
    // The resolver's order within a family; the first family stays the first.
    const int family = addresses.front().Family();
    const auto other =
        std::stable_partition(addresses.begin(), addresses.end(),
                              [&](const SocketAddress& each) { return each.Family() == family; });
    std::vector<SocketAddress> first(addresses.begin(), other);
    std::vector<SocketAddress> second(other, addresses.end());
    std::vector<SocketAddress> mixed;
    for (std::size_t i = 0; i < std::max(first.size(), second.size()); ++i) {
        if (i < first.size()) mixed.push_back(first[i]);
        if (i < second.size()) mixed.push_back(second[i]);
    }
    return mixed;
}

/// Connects to the first of some addresses that answers. Blocks until the deadline at most, or until
/// `cancelled` is raised. Thread-safe.
class AddressRace {
public:
    using Clock = std::chrono::steady_clock;

    /// How long an address has to itself before the next one is tried as well.
    static constexpr std::chrono::milliseconds kHeadStart{250};

    AddressRace(const std::vector<SocketAddress>& addresses, Clock::time_point deadline,
                const Waker& cancelled)
        : addresses_(addresses), deadline_(deadline), cancelled_(cancelled) {
        // However many there are, the last one gets its share of the time.
        const auto share = (deadline - Clock::now()) / static_cast<int>(addresses.size() + 1);
        head_start_ = std::min<Clock::duration>(kHeadStart, share);
    }

    /// A connected, non-blocking socket; without one in it, `failure` says why.
    Socket Run(DialFailure& failure) {
        Clock::time_point next_at = Clock::now();
        while (true) {
            const auto now = Clock::now();
            if (next_ < addresses_.size() && (now >= next_at || trying_.empty())) {
                if (Begin()) return Take(trying_.back());
                next_at = now + head_start_;
                continue;
            }
            if (trying_.empty()) break;
            if (now >= deadline_) {
                error_ = ETIMEDOUT;
                break;
            }
            if (!Wait(next_ < addresses_.size() ? std::min(next_at, deadline_) : deadline_)) break;
            if (winner_ != nullptr) return Take(*winner_);
        }
        failure = internal::SystemFailure(error_);
        return {};
    }

    /// Which address Run has connected to.
    [[nodiscard]] const SocketAddress& Winner() const { return addresses_[connected_]; }

private:
    struct Attempt {
        std::size_t address = 0;
        Socket socket = {};
    };

    Socket Take(Attempt& attempt) {
        connected_ = attempt.address;
        const int on = 1;
        ::setsockopt(attempt.socket.Get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        ::setsockopt(attempt.socket.Get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
        return std::move(attempt.socket);
    }

    // Begins with the next address. True where it has answered at once, as the last attempt.
    bool Begin() {
        const std::size_t index = next_++;
        const SocketAddress& address = addresses_[index];
        Socket socket{::socket(address.Family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
        const auto* const to = reinterpret_cast<const sockaddr*>(&address.storage);
        const bool made = socket.Get() >= 0;
        const bool connected = made && ::connect(socket.Get(), to, address.size) == 0;
        if (!connected && (!made || errno != EINPROGRESS)) {
            error_ = errno;
            return false;
        }
        trying_.push_back({index, std::move(socket)});
        return connected;
    }

    // Returns false where it was cancelled.
    bool Wait(Clock::time_point until) {
        std::vector<pollfd> polled{{cancelled_.Fd(), POLLIN, 0}};
        for (const Attempt& attempt : trying_) polled.push_back({attempt.socket.Get(), POLLOUT, 0});
        if (!internal::PollUntil(polled, until)) return true;
        if (polled[0].revents != 0) {
            error_ = ECANCELED;
            return false;
        }
        std::vector<Attempt> going_on;
        for (std::size_t i = 0; i < trying_.size(); ++i) {
            if (polled[i + 1].revents == 0) {
                going_on.push_back(std::move(trying_[i]));
                continue;
            }
            int error = 0;
            socklen_t size = sizeof(error);
            if (::getsockopt(trying_[i].socket.Get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
                error = errno;
            }
            if (error == 0) {
                winner_ = &trying_[i];
                return true;
            }
            error_ = error;
        }
        trying_ = std::move(going_on);
        return true;
    }

    const std::vector<SocketAddress>& addresses_;
    const Clock::time_point deadline_;
    const Waker& cancelled_;
    Clock::duration head_start_ = {};
    std::vector<Attempt> trying_ = {};
    Attempt* winner_ = nullptr;
    std::size_t next_ = 0;
    std::size_t connected_ = 0;
    int error_ = ECONNREFUSED;
};

}  // namespace mq::detail
