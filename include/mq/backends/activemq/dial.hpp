/// @file dial.hpp
/// Opens a TCP connection to a host that may have several addresses, on a thread of its own, since the
/// system's resolver blocks for as long as it likes and the I/O thread must not. Knows nothing of the
/// client library.
#pragma once

#include <mq/backends/activemq/failure.hpp>
#include <mq/detail/stragglers.hpp>
#include <mq/detail/waker.hpp>

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::activemq::detail {

using Clock = std::chrono::steady_clock;

/// A file descriptor until it has another owner.
class Socket {
public:
    Socket() = default;
    explicit Socket(int fd) noexcept : fd_(fd) {}
    Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Socket& operator=(Socket&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Socket() {
        if (fd_ >= 0) ::close(fd_);
    }

    [[nodiscard]] int Get() const noexcept { return fd_; }

private:
    int fd_ = -1;
};

/// One address of a host.
struct SocketAddress {
    sockaddr_storage storage = {};
    socklen_t size = 0;

    [[nodiscard]] const sockaddr* Get() const noexcept {
        return reinterpret_cast<const sockaddr*>(&storage);
    }
};

/// The addresses of a host, in the order in which they are to be tried; with none, `error` says why.
/// May block for as long as it likes.
using Resolver = std::function<std::vector<SocketAddress>(const std::string& host, std::uint16_t port,
                                                          NativeError& error)>;

/// The system's resolver.
inline std::vector<SocketAddress> Resolve(const std::string& host, std::uint16_t port,
                                          NativeError& error) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
        code != 0) {
        error = {code, ::gai_strerror(code)};
        return {};
    }
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> all{found, &::freeaddrinfo};
    std::vector<SocketAddress> addresses;
    for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
        SocketAddress address;
        address.size = each->ai_addrlen;
        std::memcpy(&address.storage, each->ai_addr, each->ai_addrlen);
        addresses.push_back(address);
    }
    return addresses;
}

/// Connects to whichever of several addresses answers first. They are begun one after the other, a
/// moment apart, and none is given up for the next: one that is silent costs that moment.
class Race {
public:
    /// How long one is waited for before the next is begun beside it.
    static constexpr std::chrono::milliseconds kHeadStart{250};

    explicit Race(const std::vector<SocketAddress>& addresses) : addresses_(addresses) {}

    /// Blocks until one is connected, all have failed, `cancelled` is raised or the deadline passes. A
    /// non-blocking socket; without one in it, `error` is an errno.
    Socket Run(Clock::time_point deadline, const mq::detail::Waker& cancelled, int& error) {
        error = ECONNREFUSED;
        while (true) {
            if (Socket first = BeginDue(error); first.Get() >= 0) return first;
            if (begun_.empty() && next_ >= addresses_.size()) return {};
            const auto now = Clock::now();
            if (now >= deadline) {
                error = ETIMEDOUT;
                return {};
            }
            const auto until = next_ < addresses_.size() ? std::min(deadline, next_at_) : deadline;
            std::vector<pollfd> polled{{cancelled.Fd(), POLLIN, 0}};
            for (const Socket& socket : begun_) polled.push_back({socket.Get(), POLLOUT, 0});
            const auto left = std::max(std::chrono::ceil<std::chrono::milliseconds>(until - now),
                                       std::chrono::milliseconds{0});
            const int ready = ::poll(polled.data(), polled.size(), static_cast<int>(left.count()));
            if (ready <= 0) continue;
            if (polled[0].revents != 0) {
                error = ECANCELED;
                return {};
            }
            if (Socket first = TakeReady(polled, error); first.Get() >= 0) return first;
        }
    }

private:
    // Begins those whose time has come; returns one that is connected at once.
    Socket BeginDue(int& error) {
        while (next_ < addresses_.size() && (begun_.empty() || Clock::now() >= next_at_)) {
            const SocketAddress& address = addresses_[next_++];
            next_at_ = Clock::now() + kHeadStart;
            Socket socket{
                ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
            if (socket.Get() < 0) {
                error = errno;
                continue;
            }
            if (::connect(socket.Get(), address.Get(), address.size) == 0) return socket;
            if (errno != EINPROGRESS) {
                error = errno;
                continue;
            }
            begun_.push_back(std::move(socket));
        }
        return {};
    }

    // What poll has found, in the order of begun_ behind the first entry.
    Socket TakeReady(const std::vector<pollfd>& polled, int& error) {
        std::vector<Socket> waiting;
        Socket first;
        for (std::size_t i = 0; i < begun_.size(); ++i) {
            int found = 0;
            socklen_t size = sizeof(found);
            if (polled[i + 1].revents == 0) {
                waiting.push_back(std::move(begun_[i]));
            } else if (::getsockopt(begun_[i].Get(), SOL_SOCKET, SO_ERROR, &found, &size) != 0) {
                error = errno;
            } else if (found != 0) {
                error = found;
            } else if (first.Get() < 0) {
                first = std::move(begun_[i]);
            }
        }
        begun_.swap(waiting);
        return first;
    }

    const std::vector<SocketAddress>& addresses_;
    std::vector<Socket> begun_ = {};
    std::size_t next_ = 0;
    Clock::time_point next_at_ = {};
};

/// One attempt to reach one host by any of its addresses, within a time that includes the resolver's.
/// One thread uses it.
class Dial {
public:
    struct Target {
        std::string host = {};
        std::uint16_t port = 0;
        /// Which of the addresses is the first: one that takes a connection and is silent then must not
        /// be the first one for ever.
        std::size_t turn = 0;
    };

    /// `where` begins every error text. Wakes `waker` when it is done.
    /// @throws std::system_error where no thread can be started.
    Dial(Target target, std::string where, std::chrono::milliseconds timeout,
         std::shared_ptr<mq::detail::Waker> waker, Resolver resolve = &Resolve)
        : shared_(std::make_shared<Shared>()), deadline_(Clock::now() + timeout), where_(where) {
        // A thread that nobody need wait for: the resolver may hold it.
        mq::detail::Stragglers::Run([shared = shared_, target = std::move(target),
                                     where = std::move(where), deadline = deadline_,
                                     waker = std::move(waker), resolve = std::move(resolve)] {
            Failure failure;
            Socket socket = Connect(target, where, deadline, resolve, *shared, failure);
            {
                const std::lock_guard lock{shared->mutex};
                shared->socket = std::move(socket);
                shared->failure = std::move(failure);
                shared->done = true;
            }
            waker->Wake();
        });
    }

    Dial(const Dial&) = delete;
    Dial& operator=(const Dial&) = delete;
    ~Dial() { shared_->cancelled.Wake(); }

    /// When it is done at the latest, whatever the resolver does.
    [[nodiscard]] Clock::time_point Deadline() const noexcept { return deadline_; }

    [[nodiscard]] bool Done() const {
        const std::lock_guard lock{shared_->mutex};
        return shared_->done || Clock::now() >= deadline_;
    }

    /// A non-blocking socket; without one in it, `failure` says why. Once, after Done.
    Socket Take(Failure& failure) {
        const std::lock_guard lock{shared_->mutex};
        if (!shared_->done) {
            failure.text = where_ + ": no connection in time: " +
                           (shared_->resolved ? std::generic_category().message(ETIMEDOUT)
                                              : "the resolver has not found the host");
            return {};
        }
        failure = shared_->failure;
        return std::move(shared_->socket);
    }

private:
    struct Shared {
        mq::detail::Waker cancelled = {};
        std::mutex mutex = {};  // guards all below
        bool resolved = false;
        bool done = false;
        Socket socket = {};
        Failure failure = {};
    };

    static Socket Connect(const Target& target, const std::string& where, Clock::time_point deadline,
                          const Resolver& resolve, Shared& shared, Failure& failure) {
        std::vector<SocketAddress> addresses = resolve(target.host, target.port, failure.native);
        {
            const std::lock_guard lock{shared.mutex};
            shared.resolved = true;
        }
        if (addresses.empty()) {
            failure.text = where + ": " + failure.native.text;
            return {};
        }
        const auto turn = static_cast<std::ptrdiff_t>(target.turn % addresses.size());
        std::rotate(addresses.begin(), addresses.begin() + turn, addresses.end());
        int error = 0;
        Socket socket = Race{addresses}.Run(deadline, shared.cancelled, error);
        if (socket.Get() < 0) {
            failure.native = {error, std::generic_category().message(error)};
            failure.text = where + ": " + failure.native.text;
            return {};
        }
        const int on = 1;
        ::setsockopt(socket.Get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        ::setsockopt(socket.Get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
        return socket;
    }

    std::shared_ptr<Shared> shared_;
    Clock::time_point deadline_;
    std::string where_;
};

}  // namespace mq::activemq::detail
