/// @file io_loop.hpp
/// The thread that owns one connection: connects and reconnects, sleeps in poll, keeps the heartbeats,
/// reads frames and hands them on. What is done with them is for the publishing and the consuming loop.
/// Included by rabbitmq.hpp alone, behind the library's headers.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/rabbitmq/connection.hpp>
#include <mq/backends/rabbitmq/failure.hpp>
#include <mq/backends/rabbitmq/mailbox.hpp>
#include <mq/backends/rabbitmq/options.hpp>
#include <mq/backends/rabbitmq/setup_channel.hpp>
#include <mq/detail/backoff.hpp>
#include <mq/detail/stragglers.hpp>

#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace mq::rabbitmq::detail {

/// What the loops of one backend have in common. Immutable, but for what it points to.
struct Settings {
    backend::Context context = {};
    Options options = {};
    std::string broker = {};  ///< The beginning of every log line and error text.
    /// Set by the first connection that finds another product behind the URL.
    std::shared_ptr<std::atomic<bool>> warned_of_product = std::make_shared<std::atomic<bool>>(false);
};

/// One attempt to connect, on a thread of its own, for connecting blocks and the loop must not.
class Dial {
public:
    /// @throws std::system_error where no thread can be started.
    Dial(Target target, const Options& options, std::shared_ptr<mq::detail::Waker> waker)
        : shared_(std::make_shared<Shared>()),
          thread_([shared = shared_, target = std::move(target), options, waker = std::move(waker)] {
              Failure failure;
              auto connection = Connection::Open(target, options, shared->guard, failure);
              {
                  const std::lock_guard lock{shared->mutex};
                  shared->connection = std::move(connection);
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
        shared_->guard.Cancel();
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

    /// The connection, or null and why. Once, after Done.
    std::unique_ptr<Connection> Take(Failure& failure) {
        const std::lock_guard lock{shared_->mutex};
        failure = shared_->failure;
        return std::move(shared_->connection);
    }

private:
    struct Shared {
        DialGuard guard = {};
        std::mutex mutex = {};  // guards all below
        std::condition_variable finished = {};
        bool done = false;
        std::unique_ptr<Connection> connection = {};
        Failure failure = {};
    };

    std::shared_ptr<Shared> shared_;
    std::thread thread_;
};

/// The thread of one connection. Derived classes fill in what the connection is for; all their
/// protected functions run on that thread, with no lock held.
class IoLoop {
public:
    IoLoop(std::shared_ptr<const Settings> settings, std::shared_ptr<Mailbox> mailbox,
           std::string purpose)
        : settings_(std::move(settings)),
          setup_(settings_->options, settings_->context.log, settings_->broker),
          mail_(std::move(mailbox)),
          purpose_(std::move(purpose)) {}
    IoLoop(const IoLoop&) = delete;
    IoLoop& operator=(const IoLoop&) = delete;
    /// The derived class has joined the thread.
    virtual ~IoLoop() = default;

    /// Starts the thread, which connects. Idempotent; thread-safe.
    /// @throws std::system_error where no thread can be started.
    void Start() {
        const std::lock_guard lock{thread_mutex_};
        if (thread_.joinable() || joined_) return;
        thread_ = std::thread{[this] { Run(); }};
        started_ = true;
    }

    /// Waits until the thread has ended, which the derived class has asked it to, and has promised to
    /// do by then. Where it has not, the client library holds it, waiting for a socket that takes
    /// nothing more (by TLS; a frame cannot be given up in its middle): its connection is then cut.
    /// Idempotent; thread-safe.
    void Join(Clock::time_point promised) {
        constexpr std::chrono::seconds kGrace{2};
        const std::lock_guard lock{thread_mutex_};
        if (thread_.joinable()) {
            {
                std::unique_lock ended_lock{ended_mutex_};
                const auto now = Clock::now();
                const auto until = std::clamp(promised, now, now + std::chrono::hours{24}) + kGrace;
                if (!ended_changed_.wait_until(ended_lock, until, [this] { return ended_; })) {
                    live_.Cancel();
                }
            }
            thread_.join();
        }
        joined_ = true;
    }

    [[nodiscard]] bool Started() const noexcept { return started_; }

protected:
    /// Takes what came by the mailbox, and does what is due.
    virtual void Turn(Clock::time_point now) = 0;
    /// Tells other layers what a turn has brought.
    virtual void Report() {}
    /// When Turn has something to do although nothing arrives; time_point::min() for at once.
    [[nodiscard]] virtual Clock::time_point NextTurn() const = 0;
    /// Whether the loop has been asked to end, and may.
    [[nodiscard]] virtual bool Finished(Clock::time_point now) const = 0;
    /// The loop ends: nothing is done after this.
    virtual void OnEnd() = 0;

    virtual void OnUp() = 0;
    /// The connection is gone, or an attempt to connect has failed.
    virtual void OnDown(const Failure& failure) = 0;
    virtual void OnBlocked(bool /*blocked*/) {}
    virtual void OnMethod(std::uint16_t channel, const amqp_method_t& method) = 0;
    virtual void OnProperties(std::uint16_t channel, const amqp_basic_properties_t& properties,
                              std::uint64_t body_size) = 0;
    virtual void OnBody(std::uint16_t channel, std::string_view fragment) = 0;

    /// Gives the connection up at the end of this turn.
    void Lose(Failure failure) {
        if (connection_ != nullptr && !lost_) lost_ = std::move(failure);
    }

    [[nodiscard]] bool Up() const noexcept { return connection_ != nullptr && !lost_; }
    /// In OnDown: whether there was a connection, which Wire still gives.
    [[nodiscard]] bool Connected() const noexcept { return connection_ != nullptr; }
    [[nodiscard]] bool Blocked() const noexcept { return blocked_.has_value(); }
    /// Why publishing is blocked, in the broker's words.
    [[nodiscard]] const std::string& BlockedReason() const { return *blocked_; }
    /// Only where Up.
    [[nodiscard]] Connection& Wire() noexcept { return *connection_; }
    [[nodiscard]] const Connection& Wire() const noexcept { return *connection_; }
    /// Why there is no connection; nothing before the first attempt has failed.
    [[nodiscard]] const std::optional<Failure>& LastFailure() const noexcept { return last_failure_; }

    /// Asks about a queue, and sees to its binding where the question says so. Only where Up.
    void Inspect(const Inquiry& inquiry, SetupChannel::Done done) {
        Steps steps;
        steps.push_back({Step::Kind::kInspect, inquiry.queue, {}, {}, false});
        if (inquiry.about_single_consumer) {
            steps.push_back({Step::Kind::kCompare, inquiry.queue, {}, {}, true});
        }
        if (!inquiry.exchange.empty()) {
            steps.push_back(
                {Step::Kind::kBind, inquiry.queue, inquiry.exchange, inquiry.binding_key, false});
        }
        setup_.Run(std::move(steps), std::move(done));
    }

    void Log(LogLevel level, const std::string& text) const {
        settings_->context.log(level, settings_->broker + ": " + text);
    }

    // A connection or a consumer that has lived this long counts as a success; a shorter one keeps the
    // backoff going.
    static constexpr std::chrono::seconds kSettled{2};

    const std::shared_ptr<const Settings> settings_;
    SetupChannel setup_;

private:
    // Frames handled before the loop looks at its other work again.
    static constexpr int kFramesPerTurn = 1000;

    void Run() {
        RunUntilFinished();
        {
            const std::lock_guard lock{ended_mutex_};
            ended_ = true;
        }
        ended_changed_.notify_all();
    }

    void RunUntilFinished() {
        while (true) {
            auto now = Clock::now();
            Reconnect(now);
            if (Up()) ReadFrames();
            now = Clock::now();
            Turn(now);
            if (Up() && !Wire().Beat(now)) Lose(Wire().Broken());
            if (Up() && !Wire().Flush(now)) Lose(Wire().Broken());
            if (Up() && now >= setup_.Overdue()) {
                Lose({ErrorCode::kUnavailable, Wire().Where() + ": no answer to a declaration", {}});
            }
            if (lost_) Disconnect(now);
            Report();
            if (Finished(now)) break;
            Sleep(now);
        }
        dial_.reset();
        HangUp();
        OnEnd();
    }

    void Reconnect(Clock::time_point now) {
        if (dial_ != nullptr && dial_->Done()) FinishDial(now);
        if (connection_ != nullptr || dial_ != nullptr || now < retry_at_) return;
        try {
            dial_ = std::make_unique<Dial>(NextTarget(), settings_->options, mail_->GetWaker());
        } catch (const std::system_error& error) {
            retry_at_ = now + backoff_.Next();
            OnConnectFailed({ErrorCode::kUnavailable,
                             settings_->broker + ": cannot start a thread: " + error.what(),
                             {}});
        }
    }

    [[nodiscard]] Target NextTarget() const {
        const Url& url = settings_->context.url;
        const HostPort& host = url.hosts[host_ % url.hosts.size()];
        Target target;
        target.tls = url.scheme == "amqps";
        target.host = host.host;
        target.port = host.port != 0 ? host.port : static_cast<std::uint16_t>(target.tls ? 5671 : 5672);
        target.virtual_host = VirtualHost(url);
        target.user = url.user.empty() ? "guest" : url.user;
        target.password = url.user.empty() ? "guest" : url.password;
        target.connection_name = settings_->context.client_id + " " + purpose_;
        target.where = settings_->broker + " at " + host.host + ":" + std::to_string(target.port);
        return target;
    }

    void FinishDial(Clock::time_point now) {
        Failure failure;
        connection_ = dial_->Take(failure);
        dial_.reset();
        if (connection_ == nullptr) {
            // All hosts in turn, and then a pause. Only where all of them refuse us is it for good.
            const std::size_t hosts = settings_->context.url.hosts.size();
            ++host_;
            refused_in_turn_ = failure.code == ErrorCode::kAccessDenied ? refused_in_turn_ + 1 : 0;
            if (refused_in_turn_ > 0 && refused_in_turn_ < hosts) {
                failure.code = ErrorCode::kUnavailable;
            }
            retry_at_ = ++tried_in_turn_ % hosts == 0 ? now + backoff_.Next() : now;
            OnConnectFailed(failure);
            return;
        }
        tried_in_turn_ = refused_in_turn_ = 0;
        live_.Watch(connection_->Socket());
        connected_at_ = now;
        logged_.clear();
        mail_->SetConnected(true, {});
        settings_->context.log(LogLevel::kInfo, connection_->Where() + ": connected to " + purpose_);
        CheckProduct();
        setup_.Up(*connection_);
        OnUp();
    }

    // Other brokers speak the protocol as well, and differ where this library relies on RabbitMQ.
    void CheckProduct() {
        const Server& server = connection_->GetServer();
        if (server.IsRabbitMq() || settings_->warned_of_product->exchange(true)) return;
        settings_->context.log(LogLevel::kWarning,
                               connection_->Where() + ": it is not a RabbitMQ but calls itself " +
                                   mq::detail::Shown(server.product) +
                                   ": confirms, returned messages, single active consumers and what "
                                   "is left in a queue may not be what this library takes them for");
    }

    void OnConnectFailed(const Failure& failure) {
        LogOnce(failure.text);
        mail_->SetConnected(false, failure.text);
        last_failure_ = failure;
        OnDown(failure);
    }

    // An outage is one line, not one for each attempt.
    void LogOnce(const std::string& text) {
        const bool repeated = std::exchange(logged_, text) == text;
        settings_->context.log(repeated ? LogLevel::kDebug : LogLevel::kWarning, text);
    }

    void Disconnect(Clock::time_point now) {
        const Failure failure = *lost_;
        if (now - connected_at_ >= kSettled) backoff_.Reset();
        retry_at_ = now + backoff_.Next();
        blocked_.reset();
        mail_->SetConnected(false, failure.text);
        settings_->context.log(LogLevel::kWarning, failure.text + "; reconnecting");
        last_failure_ = failure;
        setup_.SetBlocked(false);
        setup_.Down(failure);
        OnDown(failure);
        live_.Forget();
        connection_.reset();
        lost_.reset();
    }

    void ReadFrames() {
        more_input_ = false;
        amqp_frame_t frame{};
        for (int i = 0; i < kFramesPerTurn; ++i) {
            switch (Wire().ReadFrame(frame)) {
                case Connection::Read::kNothing: return;
                case Connection::Read::kBroken: Lose(Wire().Broken()); return;
                case Connection::Read::kFrame: break;
            }
            Dispatch(frame);
            if (lost_) return;
            Wire().Release(frame.channel);
        }
        more_input_ = true;
    }

    void Dispatch(const amqp_frame_t& frame) {
        if (frame.frame_type == AMQP_FRAME_METHOD) {
            if (frame.channel == 0) {
                OnConnectionMethod(frame.payload.method);
            } else if (frame.channel == SetupChannel::kChannel) {
                setup_.OnMethod(frame.payload.method);
            } else {
                OnMethod(frame.channel, frame.payload.method);
            }
        } else if (frame.frame_type == AMQP_FRAME_HEADER) {
            const auto& header = frame.payload.properties;
            OnProperties(frame.channel, *static_cast<const amqp_basic_properties_t*>(header.decoded),
                         header.body_size);
        } else if (frame.frame_type == AMQP_FRAME_BODY) {
            OnBody(frame.channel, View(frame.payload.body_fragment));
        }
    }

    void OnConnectionMethod(const amqp_method_t& method) {
        if (method.id == AMQP_CONNECTION_CLOSE_METHOD) {
            const auto& close = *static_cast<const amqp_connection_close_t*>(method.decoded);
            Failure failure =
                FromReply(Wire().Where(), close.reply_code, std::string{View(close.reply_text)});
            failure.code = ErrorCode::kUnavailable;
            amqp_connection_close_ok_t close_ok{};
            Wire().SendMethod(0, AMQP_CONNECTION_CLOSE_OK_METHOD, &close_ok);
            Wire().Flush(Clock::now());
            Lose(std::move(failure));
        } else if (method.id == AMQP_CONNECTION_BLOCKED_METHOD) {
            const auto& blocked = *static_cast<const amqp_connection_blocked_t*>(method.decoded);
            blocked_ = std::string{View(blocked.reason)};
            Log(LogLevel::kWarning, "publishing is blocked by the broker: " + *blocked_);
            setup_.SetBlocked(true);
            OnBlocked(true);
        } else if (method.id == AMQP_CONNECTION_UNBLOCKED_METHOD) {
            blocked_.reset();
            Log(LogLevel::kInfo, "publishing is no longer blocked");
            setup_.SetBlocked(false);
            OnBlocked(false);
        }
    }

    void Sleep(Clock::time_point now) {
        Clock::time_point until = NextTurn();
        if (Up()) {
            until = std::min({until, Wire().NextBeat(), setup_.Overdue()});
        } else if (dial_ == nullptr) {
            until = std::min(until, retry_at_);
        }
        const bool busy = Up() && (more_input_ || Wire().HasBuffered());
        int timeout = busy || until <= now ? 0 : Milliseconds(until - now);
        if (timeout != 0 && !mail_->BeginSleep()) timeout = 0;
        std::array<pollfd, 2> polled{};
        polled[0] = {mail_->GetWaker()->Fd(), POLLIN, 0};
        if (Up()) {
            polled[1] = {Wire().Socket(), POLLIN, 0};
            if (Wire().Unsent() > 0) polled[1].events |= POLLOUT;
        }
        const int ready = ::poll(polled.data(), Up() ? 2 : 1, timeout);
        mail_->EndSleep();
        if (ready <= 0) return;
        if (polled[0].revents != 0) mail_->GetWaker()->Clear();
        if (Up() && (polled[1].revents & ~POLLOUT) != 0) Wire().NoteReadable(Clock::now());
    }

    static int Milliseconds(Clock::duration time) {
        constexpr std::chrono::milliseconds kLongest = std::chrono::minutes{1};
        if (time >= kLongest) return static_cast<int>(kLongest.count());
        return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(time).count());
    }

    // Tells the broker that the connection ends on purpose, and waits a moment for it to agree, so that
    // it has taken what was written last.
    void HangUp() {
        if (!Up()) return;
        amqp_connection_close_t close{};
        close.reply_code = AMQP_REPLY_SUCCESS;
        close.reply_text = amqp_cstring_bytes("closed");
        Wire().SendMethod(0, AMQP_CONNECTION_CLOSE_METHOD, &close);
        const auto deadline = Clock::now() + std::chrono::milliseconds{Blocked() ? 100 : 500};
        for (auto now = Clock::now(); now < deadline && Wire().Flush(now) && !Answered();
             now = Clock::now()) {
            pollfd polled{Wire().Socket(), POLLIN, 0};
            if (Wire().Unsent() > 0) polled.events |= POLLOUT;
            if (::poll(&polled, 1, Milliseconds(deadline - now)) <= 0) continue;
            if ((polled.revents & ~POLLOUT) != 0) Wire().NoteReadable(now);
        }
        mail_->SetConnected(false, settings_->broker + " is closed");
        live_.Forget();
        connection_.reset();
    }

    // Whether the answer to connection.close has come; what else comes is of no interest any more.
    bool Answered() {
        amqp_frame_t frame{};
        while (true) {
            const Connection::Read read = Wire().ReadFrame(frame);
            if (read != Connection::Read::kFrame) return read == Connection::Read::kBroken;
            const bool answered = frame.frame_type == AMQP_FRAME_METHOD && frame.channel == 0 &&
                                  frame.payload.method.id == AMQP_CONNECTION_CLOSE_OK_METHOD;
            Wire().Release(frame.channel);
            if (answered) return true;
        }
    }

    const std::shared_ptr<Mailbox> mail_;
    const std::string purpose_;
    std::mutex thread_mutex_ = {};  // guards thread_ and joined_
    std::thread thread_ = {};
    bool joined_ = false;
    std::atomic<bool> started_ = false;
    DialGuard live_ = {};          // the connection that there is
    std::mutex ended_mutex_ = {};  // guards ended_
    std::condition_variable ended_changed_ = {};
    bool ended_ = false;

    // Of the thread alone, like all that the derived classes have:
    std::unique_ptr<Dial> dial_ = {};
    std::unique_ptr<Connection> connection_ = {};
    std::optional<Failure> lost_ = {};  // the connection is broken, and is given up with this turn
    std::optional<Failure> last_failure_ = {};
    std::optional<std::string> blocked_ = {};
    std::string logged_ = {};
    std::size_t host_ = 0;
    std::size_t tried_in_turn_ = 0;    // attempts since there was a connection
    std::size_t refused_in_turn_ = 0;  // of these, the last ones that were all refused access
    bool more_input_ = false;
    mq::detail::Backoff backoff_{std::chrono::milliseconds{100}, std::chrono::seconds{10}};
    Clock::time_point retry_at_ = {};
    Clock::time_point connected_at_ = {};
};

}  // namespace mq::rabbitmq::detail
