/// @file memory.hpp
/// The broker within the process, `memory://NAME`: every client of the process that names it meets
/// there. It keeps to the rules of real brokers, unpleasant ones included, and memory::Broker is the
/// handle by which a test stops it, makes it refuse, delays it, and looks inside.
///
/// A topic is a log of messages with offsets. A group is a cursor on it and the set of messages that
/// its members have not settled; a new group starts at the beginning of the log. Messages of one key go
/// to one member as long as any of them is unsettled, which keeps their order within the group.
///
/// A confirmed message is kept until every group of its topic has settled it, and longer while there is
/// room. Where a full topic begins with a message that a group has not settled (or no group reads the
/// topic), publications wait until their deadline, then fail: confirmed means kept.
///
/// Options of a broker: `capacity` (messages of a topic, default 100000), `capacity_bytes` (bytes of a
/// topic, by mq::Weight, default 268435456), `declare` (whether publishing and subscribing create the
/// topic, default true).
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/memory/broker.hpp>
#include <mq/backends/memory/group.hpp>
#include <mq/backends/memory/intake.hpp>
#include <mq/backends/memory/log.hpp>
#include <mq/config.hpp>
#include <mq/error.hpp>
#include <mq/message.hpp>
#include <mq/url.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mq::memory::detail {

class MemoryPublisher final : public backend::Publisher {
public:
    MemoryPublisher(Broker& broker, Connection& connection, Topic& topic)
        : broker_(broker), connection_(connection), topic_(topic) {}

    void Publish(std::unique_ptr<backend::Publication> publication) noexcept override {
        broker_.Publish(connection_, topic_, std::move(publication));
    }

private:
    Broker& broker_;
    Connection& connection_;
    Topic& topic_;
};

class MemoryConsumer final : public backend::Consumer {
public:
    explicit MemoryConsumer(std::shared_ptr<Member> member) : member_(std::move(member)) {
        member_->broker.Attach();
        member_->broker.Subscribe(member_);
    }

    ~MemoryConsumer() override {
        Close({});
        member_->broker.Detach();
    }

    [[nodiscard]] backend::ConsumerState State() const override {
        const std::lock_guard lock{member_->broker.mutex_};
        return member_->state;
    }

    void Stop() noexcept override { member_->broker.StopMember(*member_); }

    // The deadline is not needed: nothing here waits for anything but a call that never blocks.
    void Close(Clock::time_point /*deadline*/) noexcept override {
        member_->broker.StopMember(*member_);
        member_->broker.CloseMember(member_);
    }

private:
    const std::shared_ptr<Member> member_;
};

class MemoryBackend final : public backend::Backend {
public:
    MemoryBackend(Broker& broker, Limits limits, backend::PublicationSink& sink)
        : broker_(broker), connection_(limits, sink) {}

    ~MemoryBackend() override {
        Close({});
        broker_.Leave(connection_);
    }

    std::unique_ptr<backend::Publisher> MakePublisher(
        std::shared_ptr<const backend::Destination> destination) override {
        CheckAddress(*destination);
        return std::make_unique<MemoryPublisher>(broker_, connection_,
                                                 broker_.TopicAt(destination->address));
    }

    std::unique_ptr<backend::Consumer> Subscribe(backend::Subscribing subscribing,
                                                 std::shared_ptr<backend::Receiver> receiver) override {
        CheckAddress(*subscribing.destination);
        if (subscribing.group.empty()) {
            throw Error(ErrorCode::kInvalidArgument,
                        "memory broker " + broker_.name() + ": a group needs a name");
        }
        subscribing.prefetch = std::max<std::size_t>(subscribing.prefetch, 1);
        auto member =
            std::make_shared<Member>(broker_, std::move(subscribing), connection_.limits.declare);
        member->receiver = std::move(receiver);
        return std::make_unique<MemoryConsumer>(std::move(member));
    }

    backend::Listening CheckListening(const backend::Destination& destination, const std::string& group,
                                      Clock::time_point /*deadline*/) noexcept override {
        return broker_.CheckListening(destination, group);
    }

    backend::Backlog CheckBacklog(const backend::Destination& destination, const std::string& group,
                                  Clock::time_point /*deadline*/) noexcept override {
        return broker_.CheckBacklog(destination, group);
    }

    void Close(Clock::time_point deadline) noexcept override {
        broker_.CloseConnection(connection_, deadline);
    }

private:
    void CheckAddress(const backend::Destination& destination) const {
        if (!destination.address.empty()) return;
        throw Error(ErrorCode::kInvalidArgument,
                    "memory broker " + broker_.name() + ": a topic needs an address");
    }

    Broker& broker_;
    Connection connection_;
};

/// The number that an option gives; nothing where it is none from 1 up.
inline std::optional<std::size_t> ParseCount(std::string_view text) {
    std::size_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value == 0) return std::nullopt;
    return value;
}

inline std::optional<bool> ParseSwitch(std::string_view text) {
    if (text == "true") return true;
    if (text == "false") return false;
    return std::nullopt;
}

/// Takes the options over into `limits`; what is wrong with them is returned.
inline std::vector<ConfigProblem> ReadOptions(const std::map<std::string, std::string>& options,
                                              Limits& limits) {
    std::vector<ConfigProblem> problems;
    const auto take = [&](const std::string& name, const auto& value, auto& target,
                          const char* expected) {
        if (value) {
            target = *value;
        } else {
            problems.push_back({KeyPath("options", name), expected});
        }
    };
    for (const auto& [name, text] : options) {
        if (name == "capacity") {
            take(name, ParseCount(text), limits.capacity, "expected a number of messages from 1 up");
        } else if (name == "capacity_bytes") {
            take(name, ParseCount(text), limits.capacity_bytes, "expected a number of bytes from 1 up");
        } else if (name == "declare") {
            take(name, ParseSwitch(text), limits.declare, "expected true or false");
        } else {
            problems.push_back({KeyPath("options", name),
                                "a memory broker has no such option; it has capacity, "
                                "capacity_bytes and declare"});
        }
    }
    return problems;
}

inline std::vector<ConfigProblem> Check(const Url& url,
                                        const std::map<std::string, std::string>& options) {
    Limits limits;
    std::vector<ConfigProblem> problems = ReadOptions(options, limits);
    const auto reject = [&](bool wrong, const char* what) {
        if (wrong) problems.push_back({"url", std::string{what} + "; expected memory://NAME"});
    };
    reject(!url.user.empty() || !url.password.empty(), "a memory broker takes no user or password");
    reject(url.hosts.size() != 1, "a memory broker has exactly one name");
    reject(std::ranges::any_of(url.hosts, [](const HostPort& host) { return host.port != 0; }),
           "a memory broker has no port");
    reject(url.path.has_value(), "a memory broker has no path");
    reject(!url.query.empty(), "a memory broker takes no parameters");
    return problems;
}

inline std::unique_ptr<backend::Backend> Make(backend::Context context) {
    const auto problems = Check(context.url, context.options);
    if (!problems.empty()) {
        throw Error(ErrorCode::kConfig, "broker " + context.name + ": " + problems.front().key + ": " +
                                            problems.front().text);
    }
    Limits limits;
    ReadOptions(context.options, limits);
    return std::make_unique<MemoryBackend>(Broker::Find(context.url.hosts.front().host), limits,
                                           *context.sink);
}

inline const bool kRegistered = backend::Registry::Instance().Add(
    {.name = "memory", .schemes = {"memory"}, .check = &Check, .make = &Make});

}  // namespace mq::memory::detail
