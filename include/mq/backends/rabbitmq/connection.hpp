/// @file connection.hpp
/// One AMQP connection over rabbitmq-c that never blocks once it is open: frames are encoded into a
/// buffer of our own and written when the socket takes them, since the library's own sending waits
/// without limit on a full socket. Included by rabbitmq.hpp alone, behind the library's headers.
#pragma once

#include <mq/backends/rabbitmq/failure.hpp>
#include <mq/backends/rabbitmq/options.hpp>
#include <mq/backends/rabbitmq/tls_name.hpp>
#include <mq/detail/system_certificates.hpp>
#include <mq/detail/tcp_dial.hpp>
#include <mq/detail/waker.hpp>
#include <mq/version.hpp>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::rabbitmq::detail {

using Clock = std::chrono::steady_clock;

inline amqp_bytes_t Bytes(std::string_view text) noexcept {
    // The library's struct serves input and output alike; what is sent is only read.
    return {text.size(), const_cast<char*>(text.data())};
}

inline std::string_view View(const amqp_bytes_t& bytes) noexcept {
    return {static_cast<const char*>(bytes.bytes), bytes.bytes != nullptr ? bytes.len : 0};
}

/// Bytes on their way to the socket. Grows as needed; whoever appends sees to it that it stays small.
class OutBuffer {
public:
    [[nodiscard]] std::size_t Size() const noexcept { return end_ - begin_; }
    [[nodiscard]] const std::uint8_t* Data() const noexcept { return bytes_.get() + begin_; }

    /// Room for `count` bytes at the end; Commit tells how many of them were written.
    std::uint8_t* Reserve(std::size_t count) {
        if (capacity_ - end_ < count) Grow(count);
        return bytes_.get() + end_;
    }

    void Commit(std::size_t count) noexcept { end_ += count; }

    /// Takes the newest bytes back.
    void Truncate(std::size_t size) noexcept { end_ = begin_ + size; }

    void Consume(std::size_t count) noexcept {
        begin_ += count;
        if (begin_ != end_) return;
        begin_ = end_ = 0;
        if (capacity_ > kKept) {
            bytes_.reset();
            capacity_ = 0;
        }
    }

private:
    static constexpr std::size_t kKept = std::size_t{2} << 20u;

    void Grow(std::size_t count) {
        const std::size_t size = Size();
        const std::size_t needed = size + count;
        if (needed > capacity_) {
            const std::size_t capacity = std::max(needed, capacity_ * 2);
            auto grown = std::make_unique_for_overwrite<std::uint8_t[]>(capacity);
            if (size > 0) std::memcpy(grown.get(), Data(), size);
            bytes_ = std::move(grown);
            capacity_ = capacity;
        } else {
            std::memmove(bytes_.get(), Data(), size);
        }
        begin_ = 0;
        end_ = size;
    }

    std::unique_ptr<std::uint8_t[]> bytes_ = {};
    std::size_t capacity_ = 0;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
};

/// Lets another thread interrupt one that is busy connecting. Thread-safe.
class DialGuard {
public:
    DialGuard() = default;
    DialGuard(const DialGuard&) = delete;
    DialGuard& operator=(const DialGuard&) = delete;
    ~DialGuard() { Forget(); }

    /// From now on Cancel shuts this socket down. Returns false where it was cancelled before.
    bool Watch(int socket) {
        Forget();
        const std::lock_guard lock{mutex_};
        // A descriptor of our own: the library may close the other one, whose number is then given to
        // something else, before it tells that connecting has failed.
        socket_ = ::fcntl(socket, F_DUPFD_CLOEXEC, 0);
        return !cancelled_;
    }

    /// Connecting is over.
    void Forget() {
        const std::lock_guard lock{mutex_};
        if (socket_ >= 0) ::close(std::exchange(socket_, -1));
    }

    void Cancel() {
        waker_.Wake();
        const std::lock_guard lock{mutex_};
        cancelled_ = true;
        if (socket_ >= 0) ::shutdown(socket_, SHUT_RDWR);
    }

    /// Raised by Cancel, for those that wait without a socket.
    [[nodiscard]] const mq::detail::Waker& Cancelled() const noexcept { return waker_; }

private:
    const mq::detail::Waker waker_ = {};

    std::mutex mutex_ = {};  // guards both
    int socket_ = -1;
    bool cancelled_ = false;
};

/// Where and as whom to connect.
struct Target {
    std::string host = {};
    std::uint16_t port = 0;
    bool tls = false;
    std::string virtual_host = {};
    std::string user = {};
    std::string password = {};
    std::string connection_name = {};  ///< Shown by the broker's own tools.
    std::string where = {};            ///< The beginning of every error text: broker, host, port.
};

/// What a broker says that it is, when it is logged in to.
struct Server {
    std::string product = {};
    std::string version = {};

    [[nodiscard]] bool IsRabbitMq() const { return product == "RabbitMQ"; }

    /// Whether a quorum queue that says nothing of a delivery limit has one all the same: 20, from
    /// RabbitMQ 4.0 on.
    [[nodiscard]] bool HasDefaultDeliveryLimit() const {
        return IsRabbitMq() && !version.empty() && std::atoi(version.c_str()) >= 4;
    }
};

/// One connection. Open blocks, and everything else does not. One thread at a time.
class Connection {
public:
    enum class Read : unsigned char { kFrame, kNothing, kBroken };

    /// Connects and logs in. Blocks for the connect timeout for each of TCP (the lookup of the name and
    /// all its addresses), TLS and login. Returns null and sets `failure` where it fails.
    static std::unique_ptr<Connection> Open(const Target& target, const Options& options,
                                            DialGuard& guard, Failure& failure);

    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    ~Connection() { amqp_destroy_connection(state_); }

    [[nodiscard]] int Socket() const { return amqp_get_sockfd(state_); }
    [[nodiscard]] std::uint16_t ChannelMax() const noexcept { return channel_max_; }
    [[nodiscard]] const std::string& Where() const noexcept { return where_; }

    [[nodiscard]] const Server& GetServer() const noexcept { return server_; }

    /// Why Read or Flush found the connection broken.
    [[nodiscard]] const Failure& Broken() const noexcept { return broken_; }

    /// Encodes a method. `method` is the library's struct for `id`; its strings are within their
    /// limits.
    void SendMethod(std::uint16_t channel, amqp_method_number_t id, void* method) {
        AppendMethod(channel, id, method);
    }

    /// Encodes a message. Returns false, with nothing sent, where its properties need more than one
    /// frame of the size that the broker has agreed to: AMQP cannot split them.
    bool SendMessage(std::uint16_t channel, amqp_basic_publish_t& publish,
                     amqp_basic_properties_t& properties, std::string_view body);

    /// Writes what the socket takes. Returns false where the connection is broken.
    bool Flush(Clock::time_point now);

    /// Bytes that were encoded and not yet written.
    [[nodiscard]] std::size_t Unsent() const noexcept { return out_.Size(); }
    /// How many bytes have ever been encoded, and how many of them have been written.
    [[nodiscard]] std::uint64_t Position() const noexcept { return written_ + out_.Size(); }
    [[nodiscard]] std::uint64_t Written() const noexcept { return written_; }

    /// The socket has something to read.
    void NoteReadable(Clock::time_point now) noexcept {
        readable_ = true;
        last_received_ = now;
    }

    /// Whether Read has work without the socket becoming readable first.
    [[nodiscard]] bool HasBuffered() const {
        return amqp_frames_enqueued(state_) != 0 || amqp_data_in_buffer(state_) != 0;
    }

    /// The next frame, whose contents live until Release of its channel.
    Read ReadFrame(amqp_frame_t& frame);

    void Release(std::uint16_t channel) { amqp_maybe_release_buffers_on_channel(state_, channel); }

    /// Sends a heartbeat where one is due. Returns false where the broker has been silent for too long.
    bool Beat(Clock::time_point now);
    [[nodiscard]] Clock::time_point NextBeat() const noexcept {
        return std::min(last_sent_ + heartbeat_ / 2, last_received_ + 2 * heartbeat_);
    }

private:
    static constexpr std::size_t kFrameHead = 7;  // type, channel, size (AMQP 0-9-1, section 4.2.3)
    static constexpr std::size_t kFrameTail = 1;
    static constexpr int kFrameMax = 131072;
    // What is taken from the broker, whatever was agreed on: it adds to the headers of a message
    // (x-death where it dead-letters) without a look at the connections by which the message will
    // leave, and sends them in one frame all the same.
    static constexpr int kInboundFrameMax = 16 << 20;
    // What the library hands to OpenSSL in one piece: where poll says that a socket can be written,
    // there is room for this much, so that the library does not wait.
    static constexpr std::size_t kTlsPiece = 16384;

    Connection(amqp_connection_state_t state, bool tls) : state_(state), tls_(tls) {}

    static std::vector<mq::detail::SocketAddress> Resolve(const Target& target,
                                                          Clock::time_point deadline, DialGuard& guard,
                                                          Failure& failure);
    static void Fail(const Target& target, const mq::detail::DialFailure& why, Failure& failure);
    static int OpenTcp(const Target& target, const Options& options, DialGuard& guard,
                       Failure& failure);
    static std::optional<std::string> FindAnswering(const Target& target, const Options& options,
                                                    DialGuard& guard, Failure& failure);
    bool OpenTls(const Target& target, const Options& options, DialGuard& guard, Failure& failure);
    bool LogIn(const Target& target, const Options& options, Failure& failure);
    void ReadServer();

    static void Put16(std::uint8_t* at, std::uint16_t value) noexcept {
        at[0] = static_cast<std::uint8_t>(value >> 8u);
        at[1] = static_cast<std::uint8_t>(value);
    }
    static void Put32(std::uint8_t* at, std::uint32_t value) noexcept {
        Put16(at, static_cast<std::uint16_t>(value >> 16u));
        Put16(at + 2, static_cast<std::uint16_t>(value));
    }
    static std::uint32_t Get32(const std::uint8_t* at) noexcept {
        return static_cast<std::uint32_t>(at[0]) << 24u | static_cast<std::uint32_t>(at[1]) << 16u |
               static_cast<std::uint32_t>(at[2]) << 8u | static_cast<std::uint32_t>(at[3]);
    }

    // Completes the frame whose payload was written behind its head.
    void FinishFrame(std::uint8_t* frame, std::uint8_t type, std::uint16_t channel,
                     std::size_t payload) noexcept {
        frame[0] = type;
        Put16(frame + 1, channel);
        Put32(frame + 3, static_cast<std::uint32_t>(payload));
        frame[kFrameHead + payload] = AMQP_FRAME_END;
        out_.Commit(kFrameHead + payload + kFrameTail);
    }

    [[nodiscard]] std::size_t MaxPayload() const noexcept {
        return frame_max_ - kFrameHead - kFrameTail;
    }

    bool AppendMethod(std::uint16_t channel, amqp_method_number_t id, void* method);
    bool AppendProperties(std::uint16_t channel, amqp_basic_properties_t& properties,
                          std::size_t body_size);
    void AppendBody(std::uint16_t channel, std::string_view body);
    bool FlushTcp();
    bool FlushTls();
    int SendThroughLibrary(const std::uint8_t* frame, std::size_t payload);
    bool Break(const std::string& text, std::int64_t code);

    amqp_connection_state_t state_;
    bool tls_;
    bool readable_ = false;
    std::uint16_t channel_max_ = 0;
    std::size_t frame_max_ = kFrameMax;
    std::chrono::milliseconds heartbeat_ = {};
    std::string where_ = {};
    Server server_ = {};
    OutBuffer out_ = {};
    std::uint64_t written_ = 0;
    Clock::time_point last_sent_ = Clock::now();
    Clock::time_point last_received_ = Clock::now();
    Failure broken_ = {};
};

inline timeval ToTimeval(std::chrono::milliseconds time) noexcept {
    timeval value{};
    value.tv_sec = static_cast<time_t>(time.count() / 1000);
    value.tv_usec = static_cast<suseconds_t>(time.count() % 1000 * 1000);
    return value;
}

inline std::vector<mq::detail::SocketAddress> Connection::Resolve(const Target& target,
                                                                  Clock::time_point deadline,
                                                                  DialGuard& guard, Failure& failure) {
    mq::detail::DialFailure why;
    auto addresses =
        mq::detail::ResolveHost(target.host, target.port, deadline, guard.Cancelled(), why);
    if (addresses.empty()) Fail(target, why, failure);
    return addresses;
}

inline void Connection::Fail(const Target& target, const mq::detail::DialFailure& why,
                             Failure& failure) {
    failure.native = {why.code, why.text};
    failure.text = target.where + ": " + why.text;
}

inline int Connection::OpenTcp(const Target& target, const Options& options, DialGuard& guard,
                               Failure& failure) {
    const auto deadline = Clock::now() + options.connect_timeout;
    const auto addresses = Resolve(target, deadline, guard, failure);
    if (addresses.empty()) return -1;
    mq::detail::DialFailure why;
    mq::detail::AddressRace race{addresses, deadline, guard.Cancelled()};
    mq::detail::Socket socket = race.Run(why);
    if (socket.Get() < 0) {
        Fail(target, why, failure);
        return -1;
    }
    return guard.Watch(socket.Get()) ? socket.Release() : -1;
}

// The library tries no second address where the first is silent: it is given the one that answers.
inline std::optional<std::string> Connection::FindAnswering(const Target& target,
                                                            const Options& options, DialGuard& guard,
                                                            Failure& failure) {
    const auto deadline = Clock::now() + options.connect_timeout;
    const auto addresses = Resolve(target, deadline, guard, failure);
    if (addresses.empty()) return std::nullopt;
    if (addresses.size() == 1) return target.host;
    mq::detail::DialFailure why;
    mq::detail::AddressRace race{addresses, deadline, guard.Cancelled()};
    if (race.Run(why).Get() >= 0) return race.Winner().Host();
    Fail(target, why, failure);
    return std::nullopt;
}

inline bool Connection::OpenTls(const Target& target, const Options& options, DialGuard& guard,
                                Failure& failure) {
    const auto address = FindAnswering(target, options, guard, failure);
    if (!address) return false;

    const auto fail = [&](const std::string& text, int status) {
        failure.native = {status, status != 0 ? amqp_error_string2(status) : ""};
        failure.text = target.where + ": " + text;
        if (status != 0) failure.text += std::string{" ("} + amqp_error_string2(status) + ")";
        return false;
    };
    amqp_socket_t* const socket = amqp_ssl_socket_new(state_);
    if (socket == nullptr) return fail("no TLS socket could be made", AMQP_STATUS_NO_MEMORY);
    if (amqp_ssl_socket_set_ssl_versions(socket, AMQP_TLSv1_2, AMQP_TLSvLATEST) != AMQP_STATUS_OK) {
        return fail("the client library does not take TLS 1.2 or later", AMQP_STATUS_UNSUPPORTED);
    }
    amqp_ssl_socket_set_verify_peer(socket, options.tls_verify ? 1 : 0);
    amqp_ssl_socket_set_verify_hostname(socket, options.tls_verify ? 1 : 0);
    const std::string trusted =
        options.tls_ca.empty() ? mq::detail::SystemCertificates() : options.tls_ca;
    if (options.tls_verify && trusted.empty()) {
        return fail("no trusted certificates were found, set the option tls.ca", 0);
    }
    if (!trusted.empty()) {
        if (const int status = amqp_ssl_socket_set_cacert(socket, trusted.c_str()); status != 0) {
            return fail("the certificates in " + trusted + " cannot be read", status);
        }
    }
    if (!options.tls_cert.empty()) {
        const int status =
            amqp_ssl_socket_set_key(socket, options.tls_cert.c_str(), options.tls_key.c_str());
        if (status != 0) {
            return fail("tls.cert " + options.tls_cert + " or tls.key " + options.tls_key +
                            " cannot be read, or they do not belong together",
                        status);
        }
    }
    std::optional<TlsName> name;
    if (*address != target.host) {
        name.emplace(amqp_ssl_socket_get_context(socket), target.host, options.tls_verify);
        if (name->Works()) amqp_ssl_socket_set_verify_hostname(socket, 0);
    }
    const std::string& reached = name && name->Works() ? *address : target.host;
    const timeval timeout = ToTimeval(options.connect_timeout);
    int status = amqp_socket_open_noblock(socket, reached.c_str(), target.port, &timeout);
    if (status == AMQP_STATUS_SSL_PEER_VERIFY_FAILED && name && name->WrongHost()) {
        status = AMQP_STATUS_SSL_HOSTNAME_VERIFY_FAILED;
    }
    if (status == AMQP_STATUS_SSL_PEER_VERIFY_FAILED) {
        return fail("its certificate is not one that " + trusted + " vouches for", status);
    }
    if (status == AMQP_STATUS_SSL_HOSTNAME_VERIFY_FAILED) {
        return fail("its certificate is not one for the host " + target.host, status);
    }
    if (status != AMQP_STATUS_OK) return fail("cannot connect by TLS", status);
    // Enough for a frame of any size behind a socket that poll calls writable.
    const int buffer = 1 << 20;
    ::setsockopt(Socket(), SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    return true;
}

/// What the client tells the broker about itself. The library's own login announces neither consumer
/// cancels nor connection.blocked, and a broker then sends neither.
class ClientProperties {
public:
    explicit ClientProperties(const std::string& connection_name) {
        const std::array<const char*, 4> names{"consumer_cancel_notify", "connection.blocked",
                                               "publisher_confirms", "basic.nack"};
        for (std::size_t i = 0; i < names.size(); ++i) {
            capabilities_[i].key = amqp_cstring_bytes(names[i]);
            capabilities_[i].value.kind = AMQP_FIELD_KIND_BOOLEAN;
            capabilities_[i].value.value.boolean = 1;
        }
        Text(entries_[0], "product", "mq");
        Text(entries_[1], "version", version_);
        Text(entries_[2], "connection_name", connection_name);
        entries_[3].key = amqp_cstring_bytes("capabilities");
        entries_[3].value.kind = AMQP_FIELD_KIND_TABLE;
        entries_[3].value.value.table = {static_cast<int>(capabilities_.size()), capabilities_.data()};
        table_ = {static_cast<int>(entries_.size()), entries_.data()};
    }

    ClientProperties(const ClientProperties&) = delete;
    ClientProperties& operator=(const ClientProperties&) = delete;

    [[nodiscard]] const amqp_table_t* Get() const noexcept { return &table_; }

private:
    static void Text(amqp_table_entry_t& entry, const char* key, std::string_view value) {
        entry.key = amqp_cstring_bytes(key);
        entry.value.kind = AMQP_FIELD_KIND_UTF8;
        entry.value.value.bytes = Bytes(value);
    }

    std::string version_ = std::to_string(MQ_VERSION_MAJOR) + "." + std::to_string(MQ_VERSION_MINOR) +
                           "." + std::to_string(MQ_VERSION_PATCH);
    std::array<amqp_table_entry_t, 4> capabilities_ = {};
    std::array<amqp_table_entry_t, 4> entries_ = {};
    amqp_table_t table_ = {};
};

inline bool Connection::LogIn(const Target& target, const Options& options, Failure& failure) {
    const timeval timeout = ToTimeval(options.connect_timeout);
    amqp_set_handshake_timeout(state_, &timeout);
    amqp_set_rpc_timeout(state_, &timeout);
    const ClientProperties properties{target.connection_name};
    const amqp_rpc_reply_t reply = amqp_login_with_properties(
        state_, target.virtual_host.c_str(), 0, kFrameMax, static_cast<int>(options.heartbeat.count()),
        properties.Get(), AMQP_SASL_METHOD_PLAIN, target.user.c_str(), target.password.c_str());
    if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION &&
        reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD) {
        const auto& close = *static_cast<const amqp_connection_close_t*>(reply.reply.decoded);
        failure = FromReply(target.where, close.reply_code, std::string{View(close.reply_text)});
        return false;
    }
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) {
        const int status = reply.library_error;
        failure.native = {status, amqp_error_string2(status)};
        failure.text = target.where + ": the login failed: " + failure.native.text;
        if (status == AMQP_STATUS_BROKER_UNSUPPORTED_SASL_METHOD)
            failure.code = ErrorCode::kUnsupported;
        return false;
    }
    channel_max_ = static_cast<std::uint16_t>(amqp_get_channel_max(state_));
    frame_max_ = static_cast<std::size_t>(amqp_get_frame_max(state_));
    heartbeat_ = std::chrono::seconds{amqp_get_heartbeat(state_)};
    if (heartbeat_.count() == 0) heartbeat_ = options.heartbeat;
    where_ = target.where;
    ReadServer();
    // The library's own heartbeats would be written between two halves of a frame of ours. Its limit is
    // that of what is read; what is written is encoded here, within frame_max_.
    amqp_tune_connection(state_, channel_max_, kInboundFrameMax, 0);
    last_sent_ = last_received_ = Clock::now();
    return true;
}

inline void Connection::ReadServer() {
    const amqp_table_t* const properties = amqp_get_server_properties(state_);
    for (int i = 0; properties != nullptr && i < properties->num_entries; ++i) {
        const amqp_table_entry_t& entry = properties->entries[i];
        if (entry.value.kind != AMQP_FIELD_KIND_UTF8 && entry.value.kind != AMQP_FIELD_KIND_BYTES) {
            continue;
        }
        // Texts from a stranger, for a log line and a comparison.
        constexpr std::size_t kMost = 100;
        const std::string text{View(entry.value.value.bytes).substr(0, kMost)};
        if (View(entry.key) == "product") server_.product = text;
        if (View(entry.key) == "version") server_.version = text;
    }
}

inline std::unique_ptr<Connection> Connection::Open(const Target& target, const Options& options,
                                                    DialGuard& guard, Failure& failure) {
    failure = {};
    amqp_connection_state_t const state = amqp_new_connection();
    if (state == nullptr) {
        failure.text = target.where + ": out of memory";
        return nullptr;
    }
    std::unique_ptr<Connection> connection{new Connection(state, target.tls)};
    bool open = false;
    if (target.tls) {
        open =
            connection->OpenTls(target, options, guard, failure) && guard.Watch(connection->Socket());
    } else if (const int socket = OpenTcp(target, options, guard, failure); socket >= 0) {
        amqp_socket_t* const adopted = amqp_tcp_socket_new(state);
        if (adopted == nullptr) {
            ::close(socket);
        } else {
            amqp_tcp_socket_set_sockfd(adopted, socket);
        }
        open = adopted != nullptr;
    }
    open = open && connection->LogIn(target, options, failure);
    guard.Forget();
    return open ? std::move(connection) : nullptr;
}

inline bool Connection::AppendMethod(std::uint16_t channel, amqp_method_number_t id, void* method) {
    std::uint8_t* const frame = out_.Reserve(frame_max_);
    Put32(frame + kFrameHead, id);
    const int size = amqp_encode_method(id, method, {MaxPayload() - 4, frame + kFrameHead + 4});
    if (size < 0) return false;
    FinishFrame(frame, AMQP_FRAME_METHOD, channel, static_cast<std::size_t>(size) + 4);
    return true;
}

inline bool Connection::AppendProperties(std::uint16_t channel, amqp_basic_properties_t& properties,
                                         std::size_t body_size) {
    constexpr std::size_t kFixed = 12;  // class, weight, body size (AMQP 0-9-1, section 4.2.6.1)
    std::uint8_t* const frame = out_.Reserve(frame_max_);
    std::uint8_t* const payload = frame + kFrameHead;
    Put16(payload, AMQP_BASIC_CLASS);
    Put16(payload + 2, 0);
    Put32(payload + 4, static_cast<std::uint32_t>(static_cast<std::uint64_t>(body_size) >> 32u));
    Put32(payload + 8, static_cast<std::uint32_t>(body_size));
    const int size = amqp_encode_properties(AMQP_BASIC_CLASS, &properties,
                                            {MaxPayload() - kFixed, payload + kFixed});
    if (size < 0) return false;
    FinishFrame(frame, AMQP_FRAME_HEADER, channel, static_cast<std::size_t>(size) + kFixed);
    return true;
}

inline void Connection::AppendBody(std::uint16_t channel, std::string_view body) {
    const std::size_t piece = tls_ ? std::min(MaxPayload(), kTlsPiece) : MaxPayload();
    while (!body.empty()) {
        const std::size_t size = std::min(piece, body.size());
        std::uint8_t* const frame = out_.Reserve(kFrameHead + size + kFrameTail);
        std::memcpy(frame + kFrameHead, body.data(), size);
        FinishFrame(frame, AMQP_FRAME_BODY, channel, size);
        body.remove_prefix(size);
    }
}

inline bool Connection::SendMessage(std::uint16_t channel, amqp_basic_publish_t& publish,
                                    amqp_basic_properties_t& properties, std::string_view body) {
    const std::size_t before = out_.Size();
    if (!AppendMethod(channel, AMQP_BASIC_PUBLISH_METHOD, &publish) ||
        !AppendProperties(channel, properties, body.size())) {
        out_.Truncate(before);
        return false;
    }
    AppendBody(channel, body);
    return true;
}

inline bool Connection::Flush(Clock::time_point now) {
    if (out_.Size() == 0) return true;
    const std::uint64_t before = written_;
    const bool sound = tls_ ? FlushTls() : FlushTcp();
    if (written_ != before) last_sent_ = now;
    return sound;
}

inline bool Connection::FlushTcp() {
    while (out_.Size() > 0) {
        const ssize_t sent = ::send(Socket(), out_.Data(), out_.Size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            out_.Consume(static_cast<std::size_t>(sent));
            written_ += static_cast<std::uint64_t>(sent);
        } else if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return true;
        } else if (sent < 0 && errno != EINTR) {
            return Break(std::generic_category().message(errno), errno);
        }
    }
    return true;
}

inline bool Connection::FlushTls() {
    while (out_.Size() > 0) {
        pollfd writable{Socket(), POLLOUT, 0};
        if (::poll(&writable, 1, 0) <= 0 || (writable.revents & POLLOUT) == 0) return true;
        const std::size_t payload = Get32(out_.Data() + 3);
        const std::size_t size = kFrameHead + payload + kFrameTail;
        if (const int status = SendThroughLibrary(out_.Data(), payload); status != AMQP_STATUS_OK) {
            return Break(amqp_error_string2(status), status);
        }
        out_.Consume(size);
        written_ += size;
    }
    return true;
}

// The TLS socket belongs to the library, which sends nothing but frames that it has encoded itself: the
// frame is decoded into its structs again.
inline int Connection::SendThroughLibrary(const std::uint8_t* encoded, std::size_t payload) {
    amqp_frame_t frame{};
    frame.frame_type = encoded[0];
    frame.channel = static_cast<amqp_channel_t>(encoded[1] << 8u | encoded[2]);
    std::uint8_t* const body = const_cast<std::uint8_t*>(encoded) + kFrameHead;  // only read
    amqp_pool_t pool;
    init_amqp_pool(&pool, 4096);
    int status = AMQP_STATUS_OK;
    if (frame.frame_type == AMQP_FRAME_METHOD) {
        frame.payload.method.id = Get32(body);
        status = amqp_decode_method(frame.payload.method.id, &pool, {payload - 4, body + 4},
                                    &frame.payload.method.decoded);
    } else if (frame.frame_type == AMQP_FRAME_HEADER) {
        frame.payload.properties.class_id = AMQP_BASIC_CLASS;
        frame.payload.properties.body_size =
            static_cast<std::uint64_t>(Get32(body + 4)) << 32u | Get32(body + 8);
        status = amqp_decode_properties(AMQP_BASIC_CLASS, &pool, {payload - 12, body + 12},
                                        &frame.payload.properties.decoded);
    } else {
        frame.payload.body_fragment = {payload, body};
    }
    if (status == AMQP_STATUS_OK) status = amqp_send_frame(state_, &frame);
    empty_amqp_pool(&pool);
    return status;
}

inline Connection::Read Connection::ReadFrame(amqp_frame_t& frame) {
    const bool buffered = HasBuffered();
    if (!buffered && !readable_) return Read::kNothing;
    // A TLS socket is drained until it says that nothing is left, for poll does not see what OpenSSL
    // has already taken; a TCP one is asked again by poll.
    if (!buffered && !tls_) readable_ = false;
    const timeval at_once{};
    const int status = amqp_simple_wait_frame_noblock(state_, &frame, &at_once);
    if (status == AMQP_STATUS_OK) return Read::kFrame;
    readable_ = false;
    if (status == AMQP_STATUS_TIMEOUT) return Read::kNothing;
    Break(amqp_error_string2(status), status);
    return Read::kBroken;
}

inline bool Connection::Beat(Clock::time_point now) {
    if (now >= last_received_ + 2 * heartbeat_) {
        return Break("nothing was heard from it for two heartbeats", AMQP_STATUS_HEARTBEAT_TIMEOUT);
    }
    if (now < last_sent_ + heartbeat_ / 2) return true;
    // Behind a message that waits for the socket, a heartbeat would say nothing more.
    if (out_.Size() == 0) {
        FinishFrame(out_.Reserve(kFrameHead + kFrameTail), AMQP_FRAME_HEARTBEAT, 0, 0);
    }
    last_sent_ = now;
    return true;
}

inline bool Connection::Break(const std::string& text, std::int64_t code) {
    broken_.code = ErrorCode::kUnavailable;
    broken_.text = where_ + ": " + text;
    broken_.native = {code, text};
    return false;
}

}  // namespace mq::rabbitmq::detail
