/// @file rabbitmq_fixture.hpp
/// What the live tests of the RabbitMQ adapter share: where the broker is, one backend with what it
/// reports to, and a program beside it that speaks AMQP without this library.
#pragma once

#include "backend_fakes.hpp"
#include "broker_process.hpp"
#include "catch.hpp"
#include "refusing_port.hpp"
#include "wait.hpp"
#include <mq/backends/rabbitmq.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::test::rabbitmq {

using mq::test::Eventually;
using Options = std::map<std::string, std::string>;
using Destination = std::shared_ptr<const backend::Destination>;
using Phase = backend::ConsumerState::Phase;

inline bool Contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

/// The URL of the broker whose folder an environment variable names; empty, with the test case skipped,
/// where there is none.
inline std::string BrokerUrl(const char* variable = "MQ_TEST_RABBITMQ_DIR") {
    const auto folder = FromEnvironment(variable);
    std::string url;
    if (folder) {
        std::ifstream file{std::filesystem::path{*folder} / "url"};
        std::getline(file, url);
    }
    if (url.empty()) SkipCase(std::string{variable} + " names no running RabbitMQ");
    return url;
}

/// A program without this library: rabbitmq-c as its manual shows it, one call after the other.
class NativeClient {
public:
    explicit NativeClient(const std::string& broker) : state_(amqp_new_connection()) {
        const Url url = ParseUrl(broker);
        amqp_socket_t* const socket = amqp_tcp_socket_new(state_);
        if (amqp_socket_open(socket, url.hosts[0].host.c_str(), url.hosts[0].port) != 0) {
            throw std::runtime_error{"no connection"};
        }
        const auto reply =
            amqp_login(state_, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest");
        if (reply.reply_type != AMQP_RESPONSE_NORMAL) throw std::runtime_error{"no login"};
        amqp_channel_open(state_, 1);
    }
    NativeClient(const NativeClient&) = delete;
    NativeClient& operator=(const NativeClient&) = delete;
    ~NativeClient() {
        amqp_connection_close(state_, AMQP_REPLY_SUCCESS);
        amqp_destroy_connection(state_);
    }

    static amqp_bytes_t Text(std::string_view text) {
        return {text.size(), const_cast<char*>(text.data())};
    }

    /// How many channels the broker allows on a connection.
    [[nodiscard]] std::size_t ChannelMax() const {
        return static_cast<std::size_t>(amqp_get_channel_max(state_));
    }

    void DeclareExchange(const std::string& name, const char* type) {
        amqp_exchange_declare(state_, 1, Text(name), Text(type), 0, 1, 0, 0, amqp_empty_table);
        Expect("exchange.declare");
    }

    void DeleteExchange(const std::string& name) {
        amqp_exchange_delete(state_, 1, Text(name), 0);
        Expect("exchange.delete");
    }

    /// With the arguments that are given: "true", whole numbers and texts. RabbitMQ refuses a
    /// declaration that differs from what is there, with std::runtime_error here.
    void DeclareQueue(const std::string& name, const Options& arguments = {}) {
        std::vector<amqp_table_entry_t> entries;
        for (const auto& [key, value] : arguments) {
            amqp_table_entry_t& entry = entries.emplace_back();
            entry.key = Text(key);
            if (value == "true") {
                entry.value.kind = AMQP_FIELD_KIND_BOOLEAN;
                entry.value.value.boolean = 1;
            } else if (value.find_first_not_of("0123456789") == std::string::npos) {
                entry.value.kind = AMQP_FIELD_KIND_I64;
                entry.value.value.i64 = std::stoll(value);
            } else {
                entry.value.kind = AMQP_FIELD_KIND_UTF8;
                entry.value.value.bytes = Text(value);
            }
        }
        const amqp_table_t table{static_cast<int>(entries.size()), entries.data()};
        amqp_queue_declare(state_, 1, Text(name), 0, 1, 0, 0, table);
        Expect("queue.declare");
    }

    void Bind(const std::string& queue, const std::string& exchange, const std::string& key) {
        amqp_queue_bind(state_, 1, Text(queue), Text(exchange), Text(key), amqp_empty_table);
        Expect("queue.bind");
    }

    void Unbind(const std::string& queue, const std::string& exchange, const std::string& key) {
        amqp_queue_unbind(state_, 1, Text(queue), Text(exchange), Text(key), amqp_empty_table);
        Expect("queue.unbind");
    }

    void DeleteQueue(const std::string& name) {
        amqp_queue_delete(state_, 1, Text(name), 0, 0);
        Expect("queue.delete");
    }

    void Publish(const std::string& exchange, const std::string& key, const std::string& body,
                 const amqp_basic_properties_t& properties = {}) {
        amqp_basic_publish(state_, 1, Text(exchange), Text(key), 0, 0, &properties, Text(body));
        // The answer to a declaration comes behind the message, which is then in its queue.
        amqp_exchange_declare(state_, 1, Text("amq.fanout"), Text("fanout"), 1, 1, 0, 0,
                              amqp_empty_table);
        Expect("publish");
    }

    /// Calls `look(routing_key, properties, body)` with the next message of a queue.
    template <typename Look>
    bool Get(const std::string& queue, Look look) {
        const amqp_rpc_reply_t reply = amqp_basic_get(state_, 1, Text(queue), 1);
        if (reply.reply.id != AMQP_BASIC_GET_OK_METHOD) return false;
        const auto& got = *static_cast<amqp_basic_get_ok_t*>(reply.reply.decoded);
        const std::string key{static_cast<char*>(got.routing_key.bytes), got.routing_key.len};
        amqp_message_t message;
        amqp_read_message(state_, 1, &message, 0);
        look(key, message.properties,
             std::string_view{static_cast<char*>(message.body.bytes), message.body.len});
        amqp_destroy_message(&message);
        return true;
    }

private:
    void Expect(const char* what) {
        const amqp_rpc_reply_t reply = amqp_get_rpc_reply(state_);
        if (reply.reply_type != AMQP_RESPONSE_NORMAL) throw std::runtime_error{what};
    }

    amqp_connection_state_t state_;
};

/// One backend, and what it reports to.
struct Connected {
    explicit Connected(const std::string& url, Options options = {})
        : backend(MakeBackend(url, sink, std::move(options), log.Sink())) {}

    /// Publishes one message and waits for its end; null where it was confirmed.
    const Error* Send(const Destination& destination, Message message,
                      std::chrono::milliseconds timeout = kPatience) {
        const std::size_t before = sink.Count();
        backend->MakePublisher(destination)->Publish(MakePublication(std::move(message), timeout));
        REQUIRE(sink.WaitForFinished(before + 1));
        return sink.At(before).error.get();
    }

    const Error* Send(const Destination& destination, std::string body) {
        return Send(destination, MakeMessage(std::move(body)));
    }

    std::unique_ptr<backend::Consumer> Subscribe(const Destination& destination,
                                                 const std::string& group,
                                                 std::shared_ptr<RecordingReceiver> receiver,
                                                 std::size_t prefetch = 100) {
        return backend->Subscribe({destination, group, prefetch}, std::move(receiver));
    }

    /// The same, and waits until the broker has it.
    std::unique_ptr<backend::Consumer> SubscribeActive(const Destination& destination,
                                                       const std::string& group,
                                                       std::shared_ptr<RecordingReceiver> receiver,
                                                       std::size_t prefetch = 100) {
        auto consumer = Subscribe(destination, group, receiver, prefetch);
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
        return consumer;
    }

    RecordingSink sink = {};
    RecordingLog log = {};
    std::unique_ptr<backend::Backend> backend;
};

inline Destination Fresh(std::vector<std::string> groups = {"g"}) {
    return MakeDestination("orders", UniqueId("orders"), std::move(groups));
}

inline std::string With(const std::string& url, const std::string& from, const std::string& to) {
    const auto at = url.find(from);
    REQUIRE(at != std::string::npos);
    return std::string{url}.replace(at, from.size(), to);
}

inline std::string HostOf(const std::string& url) {
    const HostPort host = ParseUrl(url).hosts.at(0);
    return host.host + ":" + std::to_string(host.port);
}

}  // namespace mq::test::rabbitmq
