/// @file connection.hpp
/// One AMQP 1.0 connection: Proton's protocol engine on a non-blocking socket of our own. It never
/// blocks, and events come only from within Dispatch.
#pragma once

#include <mq/backends/activemq/dial.hpp>
#include <mq/backends/activemq/failure.hpp>
#include <mq/backends/activemq/options.hpp>
#include <mq/backends/activemq/proton.hpp>
#include <mq/detail/system_certificates.hpp>
#include <mq/url.hpp>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

namespace mq::activemq::detail {

/// The options of a connection to one of the URL's hosts. `system` names the file with the certificates
/// that count where tls.ca says none; empty where there is no such file.
/// @throws proton::error where the certificates cannot be read.
inline proton::connection_options ConnectionOptions(
    const Url& url, const Options& options, const std::string& host, proton::messaging_handler& handler,
    const std::string& system = mq::detail::SystemCertificates()) {
    proton::connection_options made{handler};
    // The name that the certificate must be for, too.
    made.virtual_host(host);
    // Proton asks the other end for a sign of life within half of it.
    made.idle_timeout(
        proton::duration{static_cast<proton::duration::numeric_type>(2 * options.heartbeat.count())});
    switch (MechanismOf(url, options)) {
        case Sasl::kExternal: made.sasl_allowed_mechs("EXTERNAL"); break;
        case Sasl::kAuto:
        case Sasl::kAnonymous: made.sasl_allowed_mechs("ANONYMOUS"); break;
        case Sasl::kPlain:
            made.user(url.user).password(url.password).sasl_allowed_mechs("PLAIN");
            // Whether a password may go over a connection that is not encrypted is said by the URL.
            made.sasl_allow_insecure_mechs(!UsesTls(url));
            break;
    }
    if (!UsesTls(url)) return made;
    using proton::ssl;
    const auto verify = options.tls_verify ? ssl::VERIFY_PEER_NAME : ssl::ANONYMOUS_PEER;
    std::string trusted = options.tls_ca.empty() ? system : options.tls_ca;
    if (options.tls_verify && trusted.empty()) {
        throw proton::error("no trusted certificates were found, set the option tls.ca");
    }
    // Proton wants a file, also where nothing is verified.
    if (trusted.empty()) trusted = options.tls_cert;
    if (!options.tls_cert.empty()) {
        const proton::ssl_certificate own{options.tls_cert, options.tls_key};
        made.ssl_client_options(proton::ssl_client_options{own, trusted, verify});
    } else if (options.tls_verify) {
        made.ssl_client_options(proton::ssl_client_options{trusted, verify});
    } else {
        made.ssl_client_options(proton::ssl_client_options{verify});
    }
    return made;
}

/// One connection, from a connected socket on. One thread.
class Connection {
public:
    /// Begins TLS, login and AMQP's open; the handler is told how they end.
    /// @throws proton::error where the certificates cannot be read.
    Connection(Socket socket, const std::string& container, const proton::connection_options& options,
               std::string where)
        : socket_(std::move(socket)), where_(std::move(where)), driver_(container) {
        driver_.connect(options);
    }

    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    [[nodiscard]] int Fd() const noexcept { return socket_.Get(); }
    [[nodiscard]] const std::string& Where() const noexcept { return where_; }
    [[nodiscard]] proton::connection Amqp() const { return driver_.connection(); }

    /// Reads what the socket has, up to a bound, and calls the handler. Returns false where the broker
    /// has closed the connection or it is broken; Broken then says why.
    bool Read() {
        more_ = false;
        for (int i = 0; i < kReadsPerTurn; ++i) {
            const proton::io::mutable_buffer room = driver_.read_buffer();
            if (room.size == 0) return true;
            const ssize_t count = ::recv(socket_.Get(), room.data, room.size, 0);
            if (count < 0 && errno == EINTR) continue;
            if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
            if (count < 0) return Break(errno);
            if (count == 0) {
                broken_ = {
                    ErrorCode::kUnavailable, where_ + ": the broker has closed the connection", {}};
                return false;
            }
            owes_acknowledgement_since_ = std::min(owes_acknowledgement_since_, Clock::now());
            driver_.read_done(static_cast<std::size_t>(count));
            driver_.dispatch();
        }
        more_ = true;
        return true;
    }

    /// Calls the handler for what is left of its events.
    void Dispatch() { driver_.dispatch(); }

    /// Writes what the socket takes. Returns false where the connection is broken.
    bool Write() {
        blocked_ = false;
        while (true) {
            const proton::io::const_buffer bytes = driver_.write_buffer();
            if (bytes.size == 0) return true;
            const ssize_t count = ::send(socket_.Get(), bytes.data, bytes.size, MSG_NOSIGNAL);
            if (count < 0 && errno == EINTR) continue;
            if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
                blocked_ = true;
                return true;
            }
            if (count < 0) return Break(errno);
            written_ += static_cast<std::uint64_t>(count);
            owes_acknowledgement_since_ = Clock::time_point::max();
            driver_.write_done(static_cast<std::size_t>(count));
        }
    }

    /// Has the kernel acknowledge what it was read a moment ago, where nothing was written since that
    /// has taken the acknowledgement along. Returns when it must be called again.
    ///
    /// ActiveMQ Classic leaves Nagle's algorithm on: the end of what it has to say waits for an
    /// acknowledgement of what came before it, and Linux keeps that back for 40 ms. The socket is asked
    /// for one each time (tcp(7), TCP_QUICKACK), and not for more: were the next messages acknowledged
    /// at once, each disposition of a busy broker would be a segment of its own, and wake this thread.
    Clock::time_point Acknowledge(Clock::time_point now) noexcept {
        if (owes_acknowledgement_since_ == Clock::time_point::max()) return Clock::time_point::max();
        const auto due = owes_acknowledgement_since_ + kAcknowledgeWithin;
        if (now < due) return due;
        owes_acknowledgement_since_ = Clock::time_point::max();
#ifdef TCP_QUICKACK
        for (const int on : {1, 0}) {
            ::setsockopt(socket_.Get(), IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on));
        }
#endif
        return Clock::time_point::max();
    }

    /// Sees to the heartbeats of both ends: an event follows where the broker was silent for too long.
    /// Returns when it must be called again.
    Clock::time_point Tick(Clock::time_point now) {
        using std::chrono::milliseconds;
        const auto since = std::chrono::duration_cast<milliseconds>(now.time_since_epoch());
        const proton::timestamp next = driver_.tick(proton::timestamp{since.count()});
        if (next.milliseconds() == 0) return Clock::time_point::max();
        return Clock::time_point{milliseconds{next.milliseconds()}};
    }

    /// Whether Read has more to do, whatever poll says.
    [[nodiscard]] bool HasMore() const noexcept { return more_; }
    /// Whether Write waits for the socket.
    [[nodiscard]] bool WriteBlocked() const noexcept { return blocked_; }
    /// How many bytes have ever been written.
    [[nodiscard]] std::uint64_t Written() const noexcept { return written_; }
    /// Why Read or Write found the connection broken.
    [[nodiscard]] const Failure& Broken() const noexcept { return broken_; }
    /// What the engine has found wrong with what it read, the certificate for one; empty for nothing.
    [[nodiscard]] proton::error_condition EngineError() const { return driver_.transport().error(); }

private:
    static constexpr int kReadsPerTurn = 64;

    static constexpr std::chrono::milliseconds kAcknowledgeWithin{1};

    bool Break(int error) {
        const std::string text = std::generic_category().message(error);
        broken_ = {ErrorCode::kUnavailable, where_ + ": " + text, {error, text}};
        return false;
    }

    Socket socket_;
    std::string where_;
    proton::io::connection_driver driver_;
    bool more_ = false;
    bool blocked_ = false;
    std::uint64_t written_ = 0;
    Clock::time_point owes_acknowledgement_since_ = Clock::time_point::max();
    Failure broken_ = {};
};

}  // namespace mq::activemq::detail
