/// @file topology.hpp
/// How a topic lies on an ActiveMQ: which address is published to and which one a group reads. Pure
/// translation of names; knows nothing of the client library.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/activemq/options.hpp>
#include <mq/error.hpp>

#include <optional>
#include <string>
#include <string_view>

namespace mq::activemq {

/// A topic's address, taken apart.
struct Address {
    enum class Kind : unsigned char {
        kName,   ///< `NAME`: a topic of this library's own layout.
        kTopic,  ///< `topic://NAME`: the broker's topic of exactly that name.
        kQueue,  ///< `queue://NAME`: one queue, which every group reads.
    };
    Kind kind = Kind::kName;
    std::string name = {};
};

namespace detail {

inline void RequireName(std::string_view name, const std::string& what) {
    if (name.empty()) throw Error(ErrorCode::kInvalidArgument, what + " is empty, expected a name");
    // Wildcards, options, lists of destinations, and what separates an address from its queue.
    const auto bad = name.find_first_of(std::string_view{"*>?,#\0", 6});
    if (bad == std::string_view::npos && name.find("::") == std::string_view::npos) return;
    throw Error(ErrorCode::kInvalidArgument, what + " " + mq::detail::Shown(name) +
                                                 " has a character in it that means something else to "
                                                 "the broker, expected none of * > ? , # and ::");
}

/// The queue of a durable subscription without a client id, as Artemis names it for its own clients.
inline std::string CoreNameOf(std::string_view subscription) {
    std::string name;
    for (const char c : subscription) {
        if (c == '.' || c == '\\') name += '\\';
        name += c;
    }
    return name;
}

}  // namespace detail

/// Takes an address apart: `NAME`, `topic://NAME` or `queue://NAME`.
/// @throws Error (kInvalidArgument) where it is none of them, or the broker takes no such name.
inline Address ParseAddress(std::string_view text) {
    constexpr std::string_view kTopic = "topic://";
    constexpr std::string_view kQueue = "queue://";
    Address address;
    if (text.starts_with(kTopic)) {
        address.kind = Address::Kind::kTopic;
        text.remove_prefix(kTopic.size());
    } else if (text.starts_with(kQueue)) {
        address.kind = Address::Kind::kQueue;
        text.remove_prefix(kQueue.size());
    } else if (text.find("://") != std::string_view::npos) {
        throw Error(ErrorCode::kInvalidArgument,
                    "the address " + mq::detail::Shown(text.substr(0, text.find("://"))) +
                        "://… is not one for ActiveMQ, expected NAME, topic://NAME or queue://NAME");
    }
    address.name = text;
    detail::RequireName(address.name, "the address");
    return address;
}

/// Where messages of a group come from.
struct GroupSource {
    std::string address = {};   ///< As the link names it.
    std::string link = {};      ///< The name of a durable subscription; empty: of no matter.
    bool subscription = false;  ///< Artemis: a shared durable subscription, not a queue.
    std::string queue = {};     ///< The queue by the name that the broker's management has for it.
    /// Its name where the broker is configured otherwise: Artemis with
    /// amqp-use-core-subscription-naming. Empty for none.
    std::string other_queue = {};
};

/// A destination as one broker's options make it: every name that goes over the wire.
class Topology {
public:
    /// @throws Error (kInvalidArgument) where the broker takes no such name, also for one of the
    /// groups.
    Topology(const backend::Destination& destination, Flavor flavor, const Options& options)
        : flavor_(flavor),
          address_(ParseAddress(destination.address)),
          topic_(destination.topic),
          queue_name_(options.queue_name),
          subscription_name_(options.subscription_name) {
        if (flavor_ == Flavor::kClassic && address_.kind == Address::Kind::kName) {
            address_.name = mq::detail::FillIn(options.topic_name, {{"address", address_.name}});
            detail::RequireName(address_.name, "the topic's name");
        }
        fed_ = options.queue_name_set || address_.name.starts_with("VirtualTopic.");
        for (const std::string& group : destination.groups) static_cast<void>(SourceOf(group));
    }

    [[nodiscard]] bool IsQueue() const noexcept { return address_.kind == Address::Kind::kQueue; }

    /// What is published to, as the link names it. Classic tells topics and queues by a prefix, Artemis
    /// by the capability of the link.
    [[nodiscard]] std::string Target() const {
        if (flavor_ == Flavor::kArtemis) return address_.name;
        return (IsQueue() ? "queue://" : "topic://") + address_.name;
    }

    /// What a group reads.
    /// @throws Error (kInvalidArgument) where the broker takes no such name, (kUnsupported) where the
    /// topic has no queue for a group.
    [[nodiscard]] GroupSource SourceOf(const std::string& group) const {
        if (flavor_ == Flavor::kClassic) return ClassicSource(group);
        if (IsQueue()) return {address_.name, {}, false, address_.name};
        const std::string name = mq::detail::FillIn(
            subscription_name_, {{"address", address_.name}, {"group", group}, {"topic", topic_}});
        detail::RequireName(name, "the name of the group's subscription");
        if (name.find('|') != std::string::npos) {
            throw Error(ErrorCode::kInvalidArgument,
                        "the name of the group's subscription " + mq::detail::Shown(name) +
                            " has a | in it, behind which the broker does not look");
        }
        // A queue of its own, whose name says that no client id belongs to it.
        return {address_.name, name, true, name + ":global", detail::CoreNameOf(name)};
    }

    /// What to ask a broker by about the queues of all groups together: with Artemis the name of their
    /// address, with Classic a pattern of their names. Nothing where there is no such pattern.
    [[nodiscard]] std::optional<std::string> AllQueues() const {
        if (flavor_ == Flavor::kArtemis || IsQueue()) return address_.name;
        if (!fed_) return std::nullopt;
        // A * stands for a whole part of a name and for nothing less.
        const std::string queues =
            mq::detail::FillIn(queue_name_, {{"group", "*"}, {"name", address_.name}});
        const bool whole = ("." + queues + ".").find(".*.") != std::string::npos;
        return whole ? std::optional{queues} : std::nullopt;
    }

private:
    [[nodiscard]] GroupSource ClassicSource(const std::string& group) const {
        if (IsQueue()) return {"queue://" + address_.name, {}, false, address_.name};
        if (!fed_) {
            throw Error(ErrorCode::kUnsupported,
                        "the topic " + mq::detail::Shown(address_.name) +
                            " is no virtual topic, and ActiveMQ has no shared subscriptions by AMQP: "
                            "name it VirtualTopic.…, or set queue_name to how its queues are called");
        }
        // One part of the name each: a dot would be a further one, which the broker's pattern
        // Consumer.*.VirtualTopic.> does not match.
        if (group.find('.') != std::string::npos) {
            throw Error(ErrorCode::kInvalidArgument,
                        "the group " + mq::detail::Shown(group) +
                            " has a dot in it, which ActiveMQ's virtual topics do not allow");
        }
        const std::string queue =
            mq::detail::FillIn(queue_name_, {{"group", group}, {"name", address_.name}});
        detail::RequireName(queue, "the name of the group's queue");
        return {"queue://" + queue, {}, false, queue};
    }

    Flavor flavor_;
    Address address_;
    std::string topic_;
    std::string queue_name_;
    std::string subscription_name_;
    bool fed_ = false;
};

}  // namespace mq::activemq
