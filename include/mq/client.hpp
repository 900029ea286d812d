/// @file client.hpp
/// The facade: what business code holds. It sends and receives on topics; which broker carries a topic,
/// and how far the topic has moved from one to another, is the config's affair and can change while the
/// client runs.
#pragma once

#include <mq/client_options.hpp>
#include <mq/config.hpp>
#include <mq/delivery.hpp>
#include <mq/detail/client_core.hpp>
#include <mq/detail/unique_function.hpp>
#include <mq/error.hpp>
#include <mq/message.hpp>
#include <mq/policy.hpp>
#include <mq/send_result.hpp>
#include <mq/status.hpp>
#include <mq/subscription.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace mq {

/// A handler that settles by returning and asks for another attempt by throwing.
template <typename Handler>
concept MessageHandler = std::invocable < std::decay_t<Handler>
&, const Message& > ;

/// A handler that settles by hand, later and on any thread.
template <typename Handler>
concept DeliveryHandler = !MessageHandler<Handler> && std::invocable<std::decay_t<Handler>&, Delivery>;

namespace detail {

/// Whether a callable holds nothing to call: a null pointer to a function or a member, an empty
/// std::function or another wrapper that can be made from nullptr, or a reference to one of them.
template <typename Callable>
bool IsEmpty(const Callable& callable) {
    if constexpr (std::constructible_from<Callable, std::nullptr_t> &&
                  requires { static_cast<bool>(callable == nullptr); }) {
        return static_cast<bool>(callable == nullptr);
    } else {
        return false;
    }
}

template <typename Callable>
bool IsEmpty(const std::reference_wrapper<Callable>& callable) {
    return IsEmpty(callable.get());
}

template <typename Signature>
bool IsEmpty(const UniqueFunction<Signature>& callable) {
    return !static_cast<bool>(callable);
}

}  // namespace detail

/// A client of the brokers in its config. Thread-safe, but for its destructor. It connects to a broker
/// when a topic first needs it.
///
/// It may be a static object, and a handler, a callback or a log sink of it may end the program with
/// exit(3): it closes then, in a handler or a callback, without waiting for that one.
///
/// It belongs to the process that has made it. In the child of a fork(2), every call fails at once with
/// ErrorCode::kClosed (Flush returns false), Close and the destructor return at once, and the parent's
/// connections stay as they are; the child makes a client of its own. A child that returns from the
/// handler or callback that has forked ends there, with exit status 0.
class Client {
public:
    /// How long the destructor waits for sends and handlers.
    static constexpr std::chrono::seconds kDefaultTimeout = detail::ClientCore::kDefaultTimeout;

    /// Connects to nothing yet.
    /// @throws Error with ErrorCode::kConfig and every problem of the config.
    explicit Client(const Config& config, ClientOptions options = {})
        : core_(std::make_shared<detail::ClientCore>(config, std::move(options))) {}

    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    /// Close with the default deadline. On a handler or a callback of this very client, which Close
    /// would wait for, it does not block: the client then closes in the background as soon as that has
    /// returned, and what ClientOptions gave it stays in use until then. The program's end waits for
    /// it, for 10 seconds at most. No other handler or callback may use the client at that time.
    ~Client() { detail::ClientCore::End(core_); }

    /// Sends a message and returns when the broker has confirmed it. Blocks for the config's
    /// `client.send_timeout` at most. May be called from handlers and callbacks.
    /// @throws Error. Its outcome says whether the broker may have the message all the same.
    void SendMsg(std::string_view topic, Message message) { core_->Send(topic, std::move(message)); }

    /// The same for a message that is a body and nothing else.
    void SendMsg(std::string_view topic, std::string_view body) {
        SendMsg(topic, Message{.body = std::string{body}});
    }

    /// Sends a message without waiting for it: many may be in flight. `callback` runs exactly once,
    /// with the outcome, on a library thread and with no lock held; errors of every kind arrive there.
    /// Blocks only while as much as `client.max_in_flight_bytes` is unconfirmed, or while an ordered
    /// topic changes its broker, until the send's deadline at most; the callback thread itself never
    /// waits for room, and fails with ErrorCode::kOverflow at twice that size.
    /// @throws Error with ErrorCode::kInvalidArgument where the callback is empty, such as a null
    ///     pointer; with ErrorCode::kInternal where the system gives no thread to run callbacks on.
    ///     Nothing is sent then, and the callback does not run.
    template <typename Callback>
    requires std::invocable < std::decay_t<Callback>
    &, const SendResult& > void SendMsg(std::string_view topic, Message message, Callback&& callback) {
        if (detail::IsEmpty(callback)) {
            throw Error{ErrorCode::kInvalidArgument, "SendMsg was given an empty callback"};
        }
        core_->Send(topic, std::move(message), SendCallback{std::forward<Callback>(callback)});
    }

    template <typename Callback>
    requires std::invocable < std::decay_t<Callback>
    &, const SendResult& >
           void SendMsg(std::string_view topic, std::string_view body, Callback&& callback) {
        SendMsg(topic, Message{.body = std::string{body}}, std::forward<Callback>(callback));
    }

    /// Subscribes to a topic; the handler runs on library threads, as many at once as
    /// `options.concurrency` says. A handler that takes `const Message&` settles the message by
    /// returning; when it throws, the message is handled again after a delay that grows up to ten
    /// seconds. A handler that takes a Delivery settles by hand. What it returns is dropped.
    ///
    /// Where the topic has a `dedup` window, a message whose id the group has handled within it is
    /// settled without the handler, and a copy of one that is not settled yet waits for that. All
    /// subscriptions of a group in this client share the window, which stays as long as the client.
    ///
    /// Blocks until the broker that the topic publishes to has the subscription, for
    /// `client.subscribe_timeout` at most. A broker that is needed beside it may join later.
    /// @returns the subscription, which ends when it is destroyed.
    /// @throws Error where the topic is unknown, an option is out of its range, the handler is empty,
    ///     the broker refuses or cannot be reached in time, or the client is closed meanwhile.
    template <typename Handler>
    requires MessageHandler<Handler> || DeliveryHandler<Handler> Subscription
    RecvMsg(std::string_view topic, Handler&& handler, const RecvOptions& options = {}) {
        if (detail::IsEmpty(handler)) {
            throw Error{ErrorCode::kInvalidArgument, "RecvMsg was given an empty handler"};
        }
        if constexpr (MessageHandler<Handler>) {
            return core_->Subscribe(
                topic,
                [handle = std::forward<Handler>(handler)](Delivery delivery) mutable {
                    static_cast<void>(std::invoke(handle, delivery.message()));
                    delivery.Ack();
                },
                options);
        } else {
            return core_->Subscribe(topic, std::forward<Handler>(handler), options);
        }
    }

    /// Asks for another rung; the client walks there in the background, waiting on each rung for its
    /// guard. Status tells how far it is. The next Reload brings back what the config says. Never
    /// blocks on a broker.
    /// @throws Error where the topic is unknown or has one broker only, or the client is closed.
    void SetPolicy(std::string_view topic, Policy policy) { core_->SetPolicy(topic, policy); }

    /// Where this client is with a topic. Never blocks on a broker.
    /// @throws Error where the topic is unknown.
    [[nodiscard]] TopicStatus Status(std::string_view topic) const { return core_->Status(topic); }

    /// Takes another config: all of it, or none of it. Policies, groups, quiet periods, guards and
    /// dedup windows change while the client runs; brokers and topics may be added; what cannot change
    /// is an error. A topic that the client is subscribed to, or has ever sent to, cannot be taken out.
    /// Nor can a config that was read from a file both move a topic and leave out what the move was to
    /// wait for (`groups`, `quiet`) or what was promised for it (`order`, `dedup`): a file that is cut
    /// short looks like that. The walks that follow happen in the background. Does not wait for
    /// brokers.
    /// @throws Error with ErrorCode::kConfig and every problem, and the client then goes on as before;
    ///     with ErrorCode::kClosed where the client is closed.
    void Reload(const Config& config) { core_->Reload(config); }

    /// Follows a config file: applies it now and after every change, by the rules of Reload. What is
    /// wrong with an edit goes to the log as an error, and the client goes on as before; what it has
    /// changed goes there too. Needs <mq/toml.hpp>. A second call follows the second file instead, and
    /// nothing of the first is applied after it.
    ///
    /// A file that is put in its place by a rename is applied at once. One that is written in place is
    /// applied when it has not changed for 0.7 seconds; for 3 seconds where it lets a topic move with
    /// less proof than before (a group less, a shorter `quiet`, `guard = "off"`, a move for which no
    /// group is named), takes a topic out, or does not end with a line break; and for 10 seconds while
    /// its writer has it open. Blocks where such a file is younger than 3 seconds at the call, for 10
    /// seconds at most.
    /// @throws Error where no header that reads config files is included, or the client is closed.
    void Watch(const std::filesystem::path& path) { core_->Watch(path); }

    /// Waits until no send is in flight and every callback has returned. A timeout beyond 20 days is
    /// taken for 20 days; so it is by Close.
    /// @returns false where the timeout passed first, and at once on this client's callback thread.
    bool Flush(std::chrono::milliseconds timeout) { return core_->Flush(timeout); }

    /// Ends the client: takes no more messages, waits for the handlers that run and for sends in
    /// flight, and fails what is not confirmed by then. Calls that send, subscribe or change something
    /// fail with ErrorCode::kClosed from then on. Blocks for `timeout`; for handlers and callbacks that
    /// run longer; and where a step of a migration is under way, for the time that a broker takes to
    /// answer it, which is a few seconds at most. A handler that it waits for after `timeout` is named
    /// in the log. What does not come back from the client library of a broker is waited for until 10
    /// seconds after `timeout`; it stays behind then, and the log says so. Idempotent: where the client
    /// is being closed already, waits for that, for `timeout` at most.
    /// @throws Error where a handler or a callback of this client calls it, which it would wait for.
    void Close(std::chrono::milliseconds timeout = kDefaultTimeout) {
        detail::ClientCore::Close(core_, timeout);
    }

private:
    std::shared_ptr<detail::ClientCore> core_;
};

}  // namespace mq
