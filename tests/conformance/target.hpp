/// @file target.hpp
/// What the conformance suite needs to know of a kind of broker: where one is, what its nature allows,
/// and what a case's own piece of it looks like. Whoever writes an adapter derives from Target and
/// registers the suite for it.
#pragma once

#include "../support/backend_fakes.hpp"
#include "../support/collector.hpp"
#include <mq/client.hpp>
#include <mq/config.hpp>
#include <mq/log.hpp>

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::conformance {

/// What differs between brokers by their nature. An adapter's shortcomings do not belong here.
struct Traits {
    /// A group that subscribes for the first time gets what was sent before.
    bool new_group_sees_older = false;
    /// A message that no group would get is refused as unroutable.
    bool reports_unroutable = false;
    /// The broker itself says that a message was delivered to another member before.
    bool tells_redelivered = false;
    /// Members of a group may be given again what they had handled already, while another one joins.
    bool repeats_while_members_change = false;
    /// A header's name may occur more than once.
    bool repeats_header_names = true;
    /// The broker runs within this process, so that the process's memory and threads are its own too.
    bool lives_in_process = false;
    /// Messages a second that it takes from each of two producers, and hands to each of two groups,
    /// with ease. The cases under steady traffic send at this rate.
    unsigned rate = 300;
};

/// A kind of broker under test. Made once for each test program, at its first case.
class Target {
public:
    Target() = default;
    Target(const Target&) = delete;
    Target& operator=(const Target&) = delete;
    virtual ~Target() = default;

    /// Why there is no broker to test on; empty where there is one. The cases are then skipped.
    [[nodiscard]] virtual std::string WhyUnavailable() { return {}; }

    [[nodiscard]] virtual Traits traits() const = 0;

    /// A running broker. Called after WhyUnavailable.
    [[nodiscard]] virtual BrokerConfig Broker() = 0;

    /// The same broker with options that keep the client from creating topics; nothing where the broker
    /// cannot say that a topic does not exist.
    [[nodiscard]] virtual std::optional<BrokerConfig> BrokerThatDeclaresNothing() = 0;

    /// A physical name that no other case uses.
    [[nodiscard]] virtual std::string FreshAddress() { return test::UniqueId("conformance"); }

    /// Takes the broker of Broker() away, as a crash does, with all of its connections; it keeps what
    /// it has confirmed. False where this target cannot: the case is then skipped.
    virtual bool Stop() { return false; }

    /// After Stop: brings it back under the same URL.
    virtual void Start() {}

    /// Sees to it that the broker takes the next message that is sent, and that its confirm is lost,
    /// with the connection or without. False where this target cannot: the case is then skipped.
    virtual bool LoseConfirm() { return false; }
};

/// One case's part of the broker: topics of its own under addresses of its own, a group of its own, and
/// the clients that it has made. Declare it after everything that handlers and callbacks use.
class World {
public:
    explicit World(Target& target) : World(target, target.Broker()) {}

    World(Target& target, BrokerConfig broker) : target_(target) {
        config.client.group = group;
        config.client.subscribe_timeout = test::kSubscribeTimeout;
        config.client.handler_threads = 8;
        config.brokers["main"] = std::move(broker);
        AddTopic(topic);
    }

    /// Adds a topic for the clients that are made from now on.
    TopicConfig& AddTopic(const std::string& name) {
        TopicConfig added;
        added.broker = "main";
        added.address = target_.FreshAddress();
        return config.topics[name] = std::move(added);
    }

    [[nodiscard]] TopicConfig& Topic() { return config.topics.at(topic); }

    /// A further client, which lives as long as this.
    Client& NewClient() {
        clients_.push_back(std::make_unique<Client>(config, ClientOptions{.log = Log()}));
        return *clients_.back();
    }

    const std::string topic = "orders";
    const std::string group = test::UniqueId("group");
    Config config = {};

private:
    // Handlers that throw are part of many cases: their log lines are shown on request only.
    static LogSink Log() {
        if (std::getenv("MQ_TEST_LOG") == nullptr) return {};
        return [](LogLevel level, std::string_view line) {
            if (level >= LogLevel::kInfo) LogToStderr(LogLevel::kError, line);
        };
    }

    Target& target_;
    std::vector<std::unique_ptr<Client>> clients_ = {};
};

/// Numbered messages with the given key.
inline std::vector<Message> MakeMessages(std::size_t count, const std::string& key = {}) {
    std::vector<Message> messages;
    for (std::size_t i = 0; i < count; ++i) {
        messages.push_back({.body = std::to_string(i), .key = key, .id = test::UniqueId()});
    }
    return messages;
}

/// Numbered messages, each with a key of its own, so that they spread over whatever a topic is cut
/// into.
inline std::vector<Message> MakeSpreadMessages(std::size_t count) {
    std::vector<Message> messages = MakeMessages(count);
    for (Message& message : messages) message.key = message.id;
    return messages;
}

inline std::vector<std::string> IdsOf(const std::vector<Message>& messages) {
    std::vector<std::string> ids;
    for (const Message& message : messages) ids.push_back(message.id);
    return ids;
}

/// Sends all of them, pipelined, and waits for the confirms. False where one failed.
inline bool SendAll(Client& client, const std::string& topic, const std::vector<Message>& messages) {
    // Shared with the callbacks: those of a broker that answers too late still find it.
    const auto log = std::make_shared<test::SendLog>();
    for (const Message& message : messages) {
        client.SendMsg(topic, message, [log](const SendResult& result) { log->Add(result); });
    }
    return log->WaitForCount(messages.size(), 2 * test::kPatience) && log->Failures().empty();
}

/// The error of a call; nothing where it threw none.
template <typename Call>
std::optional<Error> ErrorOf(Call&& call) {
    try {
        std::forward<Call>(call)();
    } catch (const Error& error) {
        return error;
    }
    return std::nullopt;
}

}  // namespace mq::conformance
