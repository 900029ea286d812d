/// @file io_loop.hpp
/// The thread that owns one connection: connects and reconnects, sleeps in poll, keeps the heartbeats,
/// and runs Proton's engine. What the connection is for is filled in by the publishing and the
/// consuming loop.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/activemq/connection.hpp>
#include <mq/backends/activemq/dial.hpp>
#include <mq/backends/activemq/engine.hpp>
#include <mq/backends/activemq/failure.hpp>
#include <mq/backends/activemq/inquirer.hpp>
#include <mq/backends/activemq/options.hpp>
#include <mq/backends/activemq/product.hpp>
#include <mq/backends/activemq/proton.hpp>
#include <mq/detail/backoff.hpp>
#include <mq/detail/mailbox.hpp>

#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace mq::activemq::detail {

/// What the loops of one backend have in common. Immutable.
struct Settings {
    backend::Context context = {};
    Options options = {};
    Flavor flavor = Flavor::kClassic;
    std::string broker = {};  ///< The beginning of every log line and error text.
};

/// The thread of one connection. All protected functions, and the handler's, run on that thread, with
/// no lock held.
class IoLoop : protected proton::messaging_handler {
public:
    IoLoop(const IoLoop&) = delete;
    IoLoop& operator=(const IoLoop&) = delete;
    /// The derived class has joined the thread.
    ~IoLoop() override = default;

    /// Starts the thread, which connects. Idempotent; thread-safe.
    /// @throws std::system_error where no thread can be started.
    void Start() {
        const std::lock_guard lock{thread_mutex_};
        if (thread_.joinable() || joined_) return;
        thread_ = std::thread{[this] { Run(); }};
        started_ = true;
    }

    /// Waits until the thread has ended, which the derived class has asked it to. Idempotent;
    /// thread-safe.
    void Join() {
        const std::lock_guard lock{thread_mutex_};
        if (thread_.joinable()) thread_.join();
        joined_ = true;
    }

    [[nodiscard]] bool Started() const noexcept { return started_; }

protected:
    IoLoop(std::shared_ptr<const Settings> settings, std::shared_ptr<mq::detail::Mailbox> mailbox,
           std::string purpose)
        : settings_(std::move(settings)),
          mail_(std::move(mailbox)),
          purpose_(std::move(purpose)),
          inquirer_(settings_->flavor, settings_->broker) {}

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
    /// The connection is gone, or an attempt to connect has failed. Nothing of Proton's may be kept.
    virtual void OnDown(const Failure& failure) = 0;

    /// Gives the connection up at the end of this turn.
    void Lose(Failure failure) {
        if (connection_ != nullptr && !lost_) lost_ = std::move(failure);
    }

    /// Whether there is a connection that the broker has opened.
    [[nodiscard]] bool Up() const noexcept { return connection_ != nullptr && open_ && !lost_; }
    /// In OnDown: whether it was open.
    [[nodiscard]] bool WasOpen() const noexcept { return open_; }
    /// Only where Up, and in OnDown where WasOpen.
    [[nodiscard]] Connection& Wire() noexcept { return *connection_; }
    [[nodiscard]] const Connection& Wire() const noexcept { return *connection_; }
    /// Why there is no connection; nothing before the first attempt has failed.
    [[nodiscard]] const std::optional<Failure>& LastFailure() const noexcept { return last_failure_; }
    /// The same for a person: where nothing has failed, how far the first attempt has come.
    [[nodiscard]] Failure WhyNotUp() const {
        if (last_failure_) return *last_failure_;
        if (connection_ != nullptr) {
            return {ErrorCode::kUnavailable, where_ + ": no answer yet to TLS, login or open", {}};
        }
        const std::string& who = where_.empty() ? settings_->broker : where_;
        return {ErrorCode::kUnavailable, who + ": no connection yet", {}};
    }

    /// A connection or link that has lived this long counts as a success; a shorter one keeps the
    /// backoff going.
    static constexpr std::chrono::seconds kSettled{2};

    /// When the end of the loop must not wait any more for the broker.
    [[nodiscard]] virtual Clock::time_point EndBy() const = 0;

    // What the connection brings. A link is gone when the broker has closed or detached it, or has
    // answered that we did; `why` has the broker's reason where it gave one.
    virtual void OnSenderOpen(proton::sender& /*sender*/) {}
    virtual void OnSendable(proton::sender& /*sender*/) {}
    virtual void OnSenderGone(proton::sender& /*sender*/, const std::optional<Failure>& /*why*/) {}
    virtual void OnSettled(proton::tracker& /*tracker*/, enum proton::transfer::state /*state*/) {}
    virtual void OnReceiverOpen(proton::receiver& /*receiver*/) {}
    virtual void OnReceiverGone(proton::receiver& /*receiver*/, const std::optional<Failure>& /*why*/) {
    }
    virtual void OnMessage(proton::delivery& /*delivery*/, proton::message& /*message*/) {}

    void Ask(std::shared_ptr<Inquiry> inquiry) {
        if (Up()) {
            inquirer_.Ask(connection_->Amqp(), std::move(inquiry));
        } else {
            inquiry->Fail({ErrorCode::kUnavailable, settings_->broker + ": not connected", {}});
        }
    }

    const std::shared_ptr<const Settings> settings_;

private:
    void on_connection_open(proton::connection& connection) override {
        if (connection_ == nullptr || lost_ || open_) return;
        if (auto wrong = CheckProduct(connection)) return Lose(*std::move(wrong));
        open_ = true;
        connected_at_ = Clock::now();
        logged_.clear();
        reasons_.clear();
        settings_->context.log(LogLevel::kInfo, connection_->Where() + ": connected to " + purpose_);
        mail_->SetConnected(true, {});
        OnUp();
    }
    // A broker that does not say what it is, or is of another make, is taken at the URL's word.
    std::optional<Failure> CheckProduct(const proton::connection& connection) {
        std::string product;
        const auto said = connection.properties();
        if (const auto found = said.find("product"); found != said.end())
            product = TextOf(found->second);
        if (auto wrong = WrongProduct(Where(), settings_->context.url, product)) return wrong;
        if (!FlavorOfProduct(product) && !std::exchange(product_doubted_, true)) {
            settings_->context.log(LogLevel::kWarning,
                                   Where() + ": the broker does not say that it is an ActiveMQ" +
                                       (product.empty() ? "" : ", but " + mq::detail::Shown(product)) +
                                       ": it is used as " + std::string{ToString(settings_->flavor)} +
                                       ", as the URL says");
        }
        return std::nullopt;
    }
    void on_connection_error(proton::connection& connection) override { LoseBy(connection.error()); }
    void on_connection_close(proton::connection& /*connection*/) override {
        Lose({ErrorCode::kUnavailable, Where() + ": the broker has closed the connection", {}});
    }
    void on_session_error(proton::session& session) override { LoseBy(session.error()); }
    void on_session_close(proton::session& /*session*/) override {
        Lose({ErrorCode::kUnavailable, Where() + ": the broker has ended the session", {}});
    }
    void on_transport_error(proton::transport& transport) override { LoseBy(transport.error()); }
    void on_transport_close(proton::transport& /*transport*/) override {
        Lose({ErrorCode::kUnavailable, Where() + ": the connection has ended", {}});
    }
    // What has no handler of its own; the default would throw.
    void on_error(const proton::error_condition& error) override { LoseBy(error); }

    void on_sender_open(proton::sender& sender) override {
        if (!inquirer_.Owns(sender)) OnSenderOpen(sender);
    }
    void on_sendable(proton::sender& sender) override {
        inquirer_.Owns(sender) ? inquirer_.OnSendable() : OnSendable(sender);
    }
    void on_sender_error(proton::sender& /*sender*/) override {}  // on_sender_close follows
    void on_sender_detach(proton::sender& sender) override { on_sender_close(sender); }
    void on_sender_close(proton::sender& sender) override {
        const auto why = ReasonOf(sender);
        Ended(sender);
        inquirer_.Owns(sender) ? inquirer_.OnGone(why) : OnSenderGone(sender, why);
    }
    void on_tracker_accept(proton::tracker& tracker) override { on_tracker_settle(tracker); }
    void on_tracker_reject(proton::tracker& tracker) override { on_tracker_settle(tracker); }
    void on_tracker_release(proton::tracker& tracker) override { on_tracker_settle(tracker); }
    void on_tracker_settle(proton::tracker& tracker) override {
        if (!inquirer_.Owns(tracker.sender())) return OnSettled(tracker, tracker.state());
        if (tracker.state() != proton::transfer::ACCEPTED) inquirer_.OnRejected();
    }
    void on_receiver_open(proton::receiver& receiver) override {
        inquirer_.Owns(receiver) ? inquirer_.OnReceiverOpen(receiver) : OnReceiverOpen(receiver);
    }
    void on_receiver_error(proton::receiver& /*receiver*/) override {}  // on_receiver_close follows
    void on_receiver_detach(proton::receiver& receiver) override { on_receiver_close(receiver); }
    void on_receiver_close(proton::receiver& receiver) override {
        const auto why = ReasonOf(receiver);
        Ended(receiver);
        if (inquirer_.OnLookGone(receiver, why)) return;
        inquirer_.Owns(receiver) ? inquirer_.OnGone(why) : OnReceiverGone(receiver, why);
    }
    void on_message(proton::delivery& delivery, proton::message& message) override {
        inquirer_.Owns(delivery.receiver()) ? inquirer_.OnMessage(delivery, message)
                                            : OnMessage(delivery, message);
    }
    void on_receiver_drain_finish(proton::receiver& receiver) override {
        if (inquirer_.Owns(receiver)) inquirer_.OnDrained(receiver);
    }

    [[nodiscard]] std::optional<Failure> ReasonOf(const proton::link& link) const {
        const proton::error_condition error = link.error();
        if (error.empty()) return std::nullopt;
        return FromCondition(where_, error.name(), error.description());
    }

    // How long the broker is waited for, to agree that the connection ends: to the deadline, but not
    // longer than it is worth, and where the deadline has passed, as long as a broker that is well
    // takes.
    static constexpr std::chrono::milliseconds kFarewell{500};
    static constexpr std::chrono::milliseconds kLeastFarewell{100};

    void Run() {
        while (!Turned()) {
        }
        dial_.reset();
        try {
            HangUp();
        } catch (const std::exception& error) {
            settings_->context.log(LogLevel::kError, Where() + ": closing: " + error.what());
        }
        OnEnd();
    }

    // One turn; returns whether it was the last. Nothing that is thrown, by Proton or for want of
    // memory, ends the process: the connection is given up.
    bool Turned() {
        try {
            return TakeTurn();
        } catch (const std::exception& error) {
            Lose({ErrorCode::kUnavailable, Where() + ": " + error.what(), {}});
            return false;
        }
    }

    bool TakeTurn() {
        auto now = Clock::now();
        Reconnect(now);
        if (connection_ != nullptr && !lost_) Exchange(now);
        now = Clock::now();
        Turn(now);
        inquirer_.Expire(now);
        if (connection_ != nullptr && !lost_) Deliver(now);
        if (lost_) Disconnect(now);
        Report();
        if (Finished(now)) return true;
        Sleep(now);
        return false;
    }

    // Reads, which calls the handler.
    void Exchange(Clock::time_point now) {
        connection_->Dispatch();
        if (!lost_ && !connection_->Read()) Lose(Reason(connection_->Broken()));
        // A handler has thrown, or Proton for it, which keeps that to itself.
        if (const auto error = connection_->EngineError(); !error.empty()) LoseBy(error);
        if (!lost_ && !open_ && now >= open_by_) {
            Lose({ErrorCode::kUnavailable, Where() + ": no answer to TLS, login or open", {}});
        }
    }

    // Writes what the turn has made.
    void Deliver(Clock::time_point now) {
        next_tick_ = connection_->Tick(now);
        connection_->Dispatch();
        FreeLinks();
        if (!lost_ && !connection_->Write()) {
            const Failure broken = connection_->Broken();
            // Why the other end does not listen any more may be what it has said last.
            connection_->Read();
            if (!lost_) Lose(Reason(broken));
        }
        connection_->Dispatch();
    }

    void Ended(const proton::link& link) {
        if (std::find(ended_.begin(), ended_.end(), link) == ended_.end()) ended_.push_back(link);
    }

    // Those whose end was written in an earlier turn.
    void FreeLinks() {
        for (const proton::link& link : std::exchange(written_ends_, {})) FreeLink(link);
        written_ends_.swap(ended_);
    }

    // What is wrong with the socket is often only what follows from what the engine has found.
    [[nodiscard]] Failure Reason(const Failure& of_socket) const {
        const auto error = connection_->EngineError();
        return error.empty() ? of_socket : FailureBy(error);
    }

    void Reconnect(Clock::time_point now) {
        if (dial_ != nullptr && dial_->Done()) FinishDial(now);
        if (connection_ != nullptr || dial_ != nullptr || now < retry_at_) return;
        const Url& url = settings_->context.url;
        const HostPort& host = url.hosts[host_ % url.hosts.size()];
        const auto port =
            host.port != 0 ? host.port : static_cast<std::uint16_t>(UsesTls(url) ? 5671 : 5672);
        where_ = settings_->broker + " at " + host.host + ":" + std::to_string(port);
        try {
            dial_ = std::make_unique<Dial>(Dial::Target{host.host, port, address_turn_}, where_,
                                           settings_->options.connect_timeout, mail_->GetWaker());
        } catch (const std::exception& error) {
            OnConnectFailed({ErrorCode::kUnavailable, where_ + ": " + error.what(), {}}, now);
        }
    }

    void FinishDial(Clock::time_point now) {
        Failure failure;
        Socket socket = dial_->Take(failure);
        dial_.reset();
        if (socket.Get() < 0) return OnConnectFailed(failure, now);
        const Url& url = settings_->context.url;
        try {
            const auto options = ConnectionOptions(url, settings_->options,
                                                   url.hosts[host_ % url.hosts.size()].host, *this);
            connection_ =
                std::make_unique<Connection>(std::move(socket), ContainerName(), options, where_);
            // From now on: reading the certificates has taken its time.
            open_by_ = Clock::now() + settings_->options.connect_timeout;
        } catch (const std::exception& error) {
            OnConnectFailed({ErrorCode::kUnavailable, where_ + ": " + error.what(), {}}, now);
        }
    }

    // Another one for each connection: Classic refuses a name that it believes to be connected still.
    std::string ContainerName() {
        return settings_->context.client_id + " " + purpose_ + " " + std::to_string(++attempts_);
    }

    void OnConnectFailed(Failure failure, Clock::time_point now) {
        const std::size_t hosts = settings_->context.url.hosts.size();
        reasons_.resize(hosts);
        reasons_[host_ % hosts] = failure.text;
        // All hosts in turn, and then a pause.
        const bool all_tried = ++host_ % hosts == 0;
        retry_at_ = all_tried ? now + backoff_.Next() : now;
        failure.text = AllReasons();
        LogOnce(failure.text);
        mail_->SetConnected(false, failure.text);
        last_failure_ = failure;
        OnDown(failure);
    }

    // What was the matter with each host when it was last tried.
    [[nodiscard]] std::string AllReasons() const {
        std::string text;
        for (const std::string& reason : reasons_) {
            if (reason.empty()) continue;
            if (!text.empty()) text += "; ";
            text += reason;
        }
        return text;
    }

    // An outage is one line, not one for each attempt.
    void LogOnce(const std::string& text) {
        const bool repeated = std::exchange(logged_, text) == text;
        settings_->context.log(repeated ? LogLevel::kDebug : LogLevel::kWarning, text);
    }

    void LoseBy(const proton::error_condition& error) { Lose(FailureBy(error)); }

    [[nodiscard]] Failure FailureBy(const proton::error_condition& error) const {
        Failure failure = FromCondition(Where(), error.name(), error.description());
        // Whatever is wrong with a connection, the next one may be right; not so with a login.
        if (!failure.NeedsSomebody()) failure.code = ErrorCode::kUnavailable;
        return failure;
    }

    void Disconnect(Clock::time_point now) {
        const Failure failure = *lost_;
        if (!open_) {
            // Another of the host's addresses may be one that answers.
            ++address_turn_;
            DropConnection();
            OnConnectFailed(failure, now);
            return;
        }
        if (now - connected_at_ >= kSettled) backoff_.Reset();
        retry_at_ = now + backoff_.Next();
        mail_->SetConnected(false, failure.text);
        settings_->context.log(LogLevel::kWarning, failure.text + "; reconnecting");
        last_failure_ = failure;
        inquirer_.Down(failure);
        OnDown(failure);
        DropConnection();
    }

    void DropConnection() {
        ended_.clear();
        written_ends_.clear();
        connection_.reset();
        lost_.reset();
        open_ = false;
    }

    void Sleep(Clock::time_point now) {
        Clock::time_point until = std::min(NextTurn(), inquirer_.NextDeadline());
        if (connection_ != nullptr) {
            until = std::min({until, next_tick_, connection_->Acknowledge(Clock::now())});
            if (!open_) until = std::min(until, open_by_);
        } else {
            until = std::min(until, dial_ == nullptr ? retry_at_ : dial_->Deadline());
        }
        const bool busy = connection_ != nullptr && connection_->HasMore();
        int timeout = busy || until <= now ? 0 : Milliseconds(until - now);
        if (timeout != 0 && !mail_->BeginSleep()) timeout = 0;
        std::array<pollfd, 2> polled{};
        polled[0] = {mail_->GetWaker()->Fd(), POLLIN, 0};
        if (connection_ != nullptr) {
            polled[1] = {connection_->Fd(), POLLIN, 0};
            if (connection_->WriteBlocked()) polled[1].events |= POLLOUT;
        }
        const int ready = ::poll(polled.data(), connection_ != nullptr ? 2 : 1, timeout);
        mail_->EndSleep();
        if (ready > 0 && polled[0].revents != 0) mail_->GetWaker()->Clear();
    }

    static int Milliseconds(Clock::duration time) {
        constexpr std::chrono::milliseconds kLongest = std::chrono::minutes{1};
        if (time >= kLongest) return static_cast<int>(kLongest.count());
        return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(time).count());
    }

    // Tells the broker that the connection ends on purpose, and waits a moment for it to agree, so that
    // it has taken what was written last.
    void HangUp() {
        if (Up()) {
            connection_->Amqp().close();
            const auto begin = Clock::now();
            const auto deadline = std::clamp(EndBy(), begin + kLeastFarewell, begin + kFarewell);
            for (auto now = Clock::now(); now < deadline && !lost_; now = Clock::now()) {
                if (!connection_->Write()) break;
                pollfd polled{connection_->Fd(), POLLIN, 0};
                if (connection_->WriteBlocked()) polled.events |= POLLOUT;
                if (::poll(&polled, 1, Milliseconds(deadline - now)) > 0 && !connection_->Read()) break;
            }
        }
        const Failure closed{ErrorCode::kClosed, settings_->broker + ": the client is closed", {}};
        mail_->SetConnected(false, closed.text);
        inquirer_.Down(closed);
        OnDown(closed);
        DropConnection();
    }

    [[nodiscard]] const std::string& Where() const noexcept { return where_; }

    const std::shared_ptr<mq::detail::Mailbox> mail_;
    const std::string purpose_;
    std::mutex thread_mutex_ = {};  // guards thread_ and joined_
    std::thread thread_ = {};
    bool joined_ = false;
    std::atomic<bool> started_ = false;

    // Of the thread alone, like all that the derived classes have:
    Inquirer inquirer_;
    std::unique_ptr<Dial> dial_ = {};
    std::unique_ptr<Connection> connection_ = {};
    bool product_doubted_ = false;      // and said so
    bool open_ = false;                 // the broker has answered the open
    std::optional<Failure> lost_ = {};  // the connection is broken, and is given up with this turn
    std::optional<Failure> last_failure_ = {};
    std::vector<std::string> reasons_ = {};        // of each host, until one is connected to
    std::vector<proton::link> ended_ = {};         // the broker has said that they end
    std::vector<proton::link> written_ends_ = {};  // and so have we
    std::string where_ = {};
    std::string logged_ = {};
    std::size_t host_ = 0;
    std::size_t address_turn_ = 0;  // how many connections have come to nothing before they were open
    std::size_t attempts_ = 0;
    mq::detail::Backoff backoff_{std::chrono::milliseconds{100}, std::chrono::seconds{10}};
    Clock::time_point retry_at_ = {};
    Clock::time_point open_by_ = {};
    Clock::time_point next_tick_ = Clock::time_point::max();
    Clock::time_point connected_at_ = {};
};

}  // namespace mq::activemq::detail
