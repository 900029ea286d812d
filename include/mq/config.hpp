/// @file config.hpp
/// What a client is told: brokers, topics and their policies, as plain aggregates. toml.hpp fills them
/// from a file; any other loader can do the same. Where a value came from travels beside it, so that a
/// problem found later still names file, line and column.
#pragma once

#include <mq/policy.hpp>

#include <chrono>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mq {

/// Where a value of the config was written. Line and column count from 1; 0 where unknown.
struct Origin {
    std::string file = {};
    int line = 0;
    int column = 0;
};

/// `[client]`: what holds for the whole client.
struct ClientConfig {
    /// The consumer group of a subscription that names none.
    std::string group = "default";
    /// How long a send may take, from the call to the broker's confirm.
    std::chrono::milliseconds send_timeout = std::chrono::seconds{30};
    /// How long RecvMsg waits until the broker has the subscription.
    std::chrono::milliseconds subscribe_timeout = std::chrono::seconds{30};
    /// How much may be sent and not yet confirmed, for each broker, in bytes; a message counts its
    /// contents and 512 bytes more. A send beyond it waits, up to its deadline. More is not faster:
    /// what is out and no longer in the processor's cache makes every send and confirm slower.
    std::size_t max_in_flight_bytes = 16u << 20u;
    /// How many messages a subscription holds unsettled, for each side, where RecvMsg gives no number.
    std::size_t prefetch = 256;
    /// The most threads that run handlers. They start when they are needed. A subscription that asks
    /// for a larger concurrency raises it.
    std::size_t handler_threads = 16;
};

/// `[brokers.NAME]`: one connection target.
struct BrokerConfig {
    std::string url = {};
    /// The adapter's own options, as text. An option that the adapter does not know is an error.
    std::map<std::string, std::string> options = {};
};

/// `[topics.NAME]`: either `broker` alone, or `old_broker` and `new_broker` with a policy.
struct TopicConfig {
    std::string broker = {};
    std::string old_broker = {};
    std::string new_broker = {};
    Policy policy = Policy::kOld;
    /// Who must be listening on a side before publishing moves there.
    std::vector<std::string> groups = {};
    /// The physical name on `broker`, and on each side, where it differs from the topic.
    std::string address = {};
    std::string old_address = {};
    std::string new_address = {};
    Order order = Order::kNone;
    /// No arrival for this long before a side may be left.
    std::chrono::milliseconds quiet = std::chrono::seconds{30};
    /// How long a group remembers the ids of handled messages, to keep their duplicates from its
    /// handlers; zero for not at all. See Message::id for a handler that sends on what it received.
    std::chrono::milliseconds dedup = {};
    /// How many ids a group remembers at the most; the oldest are forgotten first. One of the library's
    /// takes some 150 bytes, in each client and for each group that it subscribes for.
    std::size_t dedup_max = 100'000;
    /// Whether a send that certainly did not reach its side may go to the other one, while the topic
    /// is subscribed to on both and every group listens there. Not together with an order to keep.
    bool failover = false;
    /// False skips the guards, and the log says so.
    bool guard = true;

    friend bool operator==(const TopicConfig&, const TopicConfig&) = default;
};

/// Everything that a client is told.
struct Config {
    ClientConfig client = {};
    std::map<std::string, BrokerConfig> brokers = {};
    std::map<std::string, TopicConfig> topics = {};
    /// Where the values were written, by KeyPath; empty for a config made in code.
    std::map<std::string, Origin> origins = {};
};

/// The path of a key as TOML writes it: `topics.orders.old`, `brokers.next.options."linger.ms"`.
template <typename... Parts>
std::string KeyPath(const Parts&... parts) {
    std::string path;
    const auto append = [&path](std::string_view part) {
        if (!path.empty()) path += '.';
        constexpr std::string_view kBare =
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
        const bool bare = !part.empty() && part.find_first_not_of(kBare) == std::string_view::npos;
        if (bare) {
            path += part;
            return;
        }
        path += '"';
        for (const char c : part) {
            if (c == '"' || c == '\\') path += '\\';
            path += c;
        }
        path += '"';
    };
    (append(parts), ...);
    return path;
}

/// One thing that is wrong with a config.
struct ConfigProblem {
    std::string key = {};   ///< A KeyPath; empty where the file as a whole is meant.
    std::string text = {};  ///< What was found, what was expected, what to do.
};

}  // namespace mq
