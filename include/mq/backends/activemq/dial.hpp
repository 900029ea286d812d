/// @file dial.hpp
/// Opens a TCP connection on a thread of its own, since the system's resolver blocks for as long as it
/// likes and the I/O thread must not. Knows nothing of the client library.
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

#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

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

/// One attempt to reach one host: all of its addresses in turn. One thread uses it.
class Dial {
public:
    /// `where` begins every error text. Wakes `waker` when it is done.
    /// @throws std::system_error where no thread can be started.
    Dial(std::string host, std::uint16_t port, std::string where, std::chrono::milliseconds timeout,
         std::shared_ptr<mq::detail::Waker> waker)
        : shared_(std::make_shared<Shared>()),
          thread_([shared = shared_, host = std::move(host), port, where = std::move(where), timeout,
                   waker = std::move(waker)] {
              Failure failure;
              Socket socket = Connect(host, port, where, timeout, *shared, failure);
              {
                  const std::lock_guard lock{shared->mutex};
                  shared->socket = std::move(socket);
                  shared->failure = std::move(failure);
                  shared->done = true;
              }
              shared->finished.notify_all();
              waker->Wake();
          }) {}

    Dial(const Dial&) = delete;
    Dial& operator=(const Dial&) = delete;

    ~Dial() {
        constexpr std::chrono::milliseconds kPatience{300};
        bool done = false;
        shared_->cancelled.Wake();
        {
            std::unique_lock lock{shared_->mutex};
            done = shared_->finished.wait_for(lock, kPatience, [this] { return shared_->done; });
        }
        if (done) {
            thread_.join();
        } else {
            mq::detail::Stragglers::Add(std::move(thread_), [shared = shared_] {
                const std::lock_guard lock{shared->mutex};
                return shared->done;
            });
        }
    }

    [[nodiscard]] bool Done() const {
        const std::lock_guard lock{shared_->mutex};
        return shared_->done;
    }

    /// A non-blocking socket; without one in it, `failure` says why. Once, after Done.
    Socket Take(Failure& failure) {
        const std::lock_guard lock{shared_->mutex};
        failure = shared_->failure;
        return std::move(shared_->socket);
    }

private:
    struct Shared {
        mq::detail::Waker cancelled = {};
        std::mutex mutex = {};  // guards all below
        std::condition_variable finished = {};
        bool done = false;
        Socket socket = {};
        Failure failure = {};
    };

    static Socket Connect(const std::string& host, std::uint16_t port, const std::string& where,
                          std::chrono::milliseconds timeout, Shared& shared, Failure& failure) {
        addrinfo hints{};
        hints.ai_family = AF_UNSPEC;
        hints.ai_socktype = SOCK_STREAM;
        addrinfo* found = nullptr;
        const std::string service = std::to_string(port);
        if (const int error = ::getaddrinfo(host.c_str(), service.c_str(), &hints, &found);
            error != 0) {
            failure.text = where + ": " + ::gai_strerror(error);
            failure.native = {error, ::gai_strerror(error)};
            return {};
        }
        const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses{found, &::freeaddrinfo};
        const auto deadline = Clock::now() + timeout;
        int left = 0;
        for (const addrinfo* each = found; each != nullptr; each = each->ai_next) ++left;
        int error = ECONNREFUSED;
        for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
            // One that never answers leaves the others their share of the time.
            const auto now = Clock::now();
            const auto until = now + (deadline - now) / left--;
            Socket socket{::socket(each->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
            error = socket.Get() < 0 ? errno : ConnectOne(socket.Get(), *each, until, shared);
            if (error == 0) {
                const int on = 1;
                ::setsockopt(socket.Get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
                ::setsockopt(socket.Get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
                return socket;
            }
            if (error == ECANCELED) break;
        }
        failure.native = {error, std::generic_category().message(error)};
        failure.text = where + ": " + failure.native.text;
        return {};
    }

    // Returns 0 or an errno.
    static int ConnectOne(int socket, const addrinfo& address, Clock::time_point deadline,
                          Shared& shared) {
        if (::connect(socket, address.ai_addr, address.ai_addrlen) == 0) return 0;
        if (errno != EINPROGRESS) return errno;
        while (true) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
            if (left.count() <= 0) return ETIMEDOUT;
            std::array<pollfd, 2> polled{{{socket, POLLOUT, 0}, {shared.cancelled.Fd(), POLLIN, 0}}};
            const int ready = ::poll(polled.data(), polled.size(), static_cast<int>(left.count()));
            if (ready < 0 && errno != EINTR) return errno;
            if (ready <= 0) continue;
            if (polled[1].revents != 0) return ECANCELED;
            int error = 0;
            socklen_t size = sizeof(error);
            if (::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
            return error;
        }
    }

    std::shared_ptr<Shared> shared_;
    std::thread thread_;
};

}  // namespace mq::activemq::detail
