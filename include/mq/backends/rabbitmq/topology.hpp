/// @file topology.hpp
/// How a topic lies on a RabbitMQ: which exchange is published to, which queue a group has, and what
/// binds the two. Pure translation of names; knows nothing of the client library.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/rabbitmq/options.hpp>
#include <mq/error.hpp>

#include <cstddef>
#include <string>
#include <string_view>

namespace mq::rabbitmq {

/// Names on the wire are short strings: their length is one byte (AMQP 0-9-1, section 4.2.5.3).
inline constexpr std::size_t kLongestName = 255;

/// A topic's address, taken apart.
struct Address {
    bool queue = false;     ///< `queue://NAME`: one queue, reached through the default exchange.
    std::string name = {};  ///< Of the exchange, or of the queue.
};

namespace detail {

inline std::string Filled(std::string_view pattern, std::string_view address, std::string_view group,
                          std::string_view topic) {
    std::string text;
    while (true) {
        const auto open = pattern.find('{');
        text += pattern.substr(0, open);
        if (open == std::string_view::npos) return text;
        const auto close = pattern.find('}', open);
        if (close == std::string_view::npos) return text.append(pattern.substr(open));
        const std::string_view name = pattern.substr(open + 1, close - open - 1);
        text += name == "address" ? address : name == "group" ? group : topic;
        pattern.remove_prefix(close + 1);
    }
}

inline void RequireName(const std::string& name, const std::string& what) {
    if (!name.empty() && name.size() <= kLongestName) return;
    throw Error(ErrorCode::kInvalidArgument,
                what + (name.empty() ? " is empty" : " \"" + name.substr(0, 40) + "…\" is too long") +
                    ", expected a name of 1 to 255 bytes");
}

}  // namespace detail

/// Takes an address apart: `NAME` and `exchange://NAME` are an exchange, `queue://NAME` is a queue.
/// @throws Error (kInvalidArgument) where it is neither, or RabbitMQ takes no such name.
inline Address ParseAddress(std::string_view text) {
    constexpr std::string_view kExchange = "exchange://";
    constexpr std::string_view kQueue = "queue://";
    Address address;
    address.queue = text.starts_with(kQueue);
    if (address.queue) {
        text.remove_prefix(kQueue.size());
    } else if (text.starts_with(kExchange)) {
        text.remove_prefix(kExchange.size());
    } else if (text.find("://") != std::string_view::npos) {
        throw Error(ErrorCode::kInvalidArgument,
                    "the address " + mq::detail::Shown(text.substr(0, text.find("://"))) +
                        "://… is not one for RabbitMQ, expected NAME, exchange://NAME or queue://NAME");
    }
    address.name = text;
    detail::RequireName(address.name, address.queue ? "the queue's name" : "the exchange's name");
    return address;
}

/// A destination as one broker's options make it: every name that goes over the wire.
class Topology {
public:
    /// @throws Error (kInvalidArgument) where RabbitMQ takes no such name, also for one of the groups.
    Topology(const backend::Destination& destination, const Options& options)
        : address_(ParseAddress(destination.address)),
          topic_(destination.topic),
          queue_name_(options.queue_name),
          binding_key_(options.binding_key),
          fixed_key_(!address_.queue && !options.routing_key.empty()) {
        routing_key_ = address_.queue ? address_.name
                                      : detail::Filled(options.routing_key, address_.name, {}, topic_);
        if (fixed_key_) detail::RequireName(routing_key_, "the routing key");
        for (const std::string& group : destination.groups) {
            static_cast<void>(Queue(group));
            static_cast<void>(BindingKey(group));
        }
    }

    /// Whether there is an exchange of one's own, and so bindings.
    [[nodiscard]] bool HasExchange() const noexcept { return !address_.queue; }

    /// What is published to; empty for the default exchange.
    [[nodiscard]] const std::string& Exchange() const noexcept {
        static const std::string kDefault;
        return address_.queue ? kDefault : address_.name;
    }

    /// The routing key of a message with this key. A key that is too long for one still travels in the
    /// header.
    [[nodiscard]] std::string_view RoutingKey(std::string_view key) const noexcept {
        if (address_.queue || fixed_key_) return routing_key_;
        return key.size() <= kLongestName ? key : std::string_view{};
    }

    /// Whether the routing key of a message is the message's key.
    [[nodiscard]] bool KeyIsRoutingKey() const noexcept { return !address_.queue && !fixed_key_; }

    /// The queue of a group.
    /// @throws Error (kInvalidArgument) where RabbitMQ takes no such name.
    [[nodiscard]] std::string Queue(const std::string& group) const {
        if (address_.queue) return address_.name;
        std::string name = detail::Filled(queue_name_, address_.name, group, topic_);
        detail::RequireName(name, "the name of the group's queue");
        return name;
    }

    /// The key that the queue of a group is bound with.
    /// @throws Error (kInvalidArgument) where RabbitMQ takes no such key.
    [[nodiscard]] std::string BindingKey(const std::string& group) const {
        if (binding_key_.empty()) return fixed_key_ ? routing_key_ : "#";
        std::string key = detail::Filled(binding_key_, address_.name, group, topic_);
        detail::RequireName(key, "the binding key of the group's queue");
        return key;
    }

private:
    Address address_;
    std::string topic_;
    std::string queue_name_;
    std::string binding_key_;
    std::string routing_key_ = {};
    bool fixed_key_;
};

}  // namespace mq::rabbitmq
