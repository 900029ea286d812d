/// @file raw_rabbitmq.hpp
/// What somebody writes who publishes to RabbitMQ with rabbitmq-c alone and wants it fast: one
/// connection, one thread, confirms pipelined in a window of a thousand. The messages carry what the
/// facade's carry.
#pragma once

#include <mq/url.hpp>

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_tcp_socket.h>
#endif
#include <sys/time.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <stdexcept>
#include <string>
#include <vector>

namespace bench {

class RawRabbitMq {
public:
    /// Makes the exchange and a short queue that drops what is old, so that nothing piles up.
    RawRabbitMq(const mq::Url& url, std::string exchange) : exchange_(std::move(exchange)) {
        connection_ = amqp_new_connection();
        amqp_socket_t* const socket = amqp_tcp_socket_new(connection_);
        const int port = url.hosts[0].port == 0 ? 5672 : url.hosts[0].port;
        if (amqp_socket_open(socket, url.hosts[0].host.c_str(), port) != AMQP_STATUS_OK) {
            throw std::runtime_error("no connection to RabbitMQ");
        }
        Check(amqp_login(connection_, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, url.user.c_str(),
                         url.password.c_str()));
        amqp_channel_open(connection_, 1);
        Check(amqp_get_rpc_reply(connection_));
        amqp_exchange_declare(connection_, 1, Bytes(exchange_), amqp_cstring_bytes("fanout"), 0, 1, 0,
                              0, amqp_empty_table);
        Check(amqp_get_rpc_reply(connection_));
        std::array<amqp_table_entry_t, 1> length{};
        length[0].key = amqp_cstring_bytes("x-max-length");
        length[0].value.kind = AMQP_FIELD_KIND_I32;
        length[0].value.value.i32 = 1000;
        const std::string queue = exchange_ + ".bench";
        amqp_queue_declare(connection_, 1, Bytes(queue), 0, 1, 0, 0, amqp_table_t{1, length.data()});
        Check(amqp_get_rpc_reply(connection_));
        amqp_queue_bind(connection_, 1, Bytes(queue), Bytes(exchange_), amqp_empty_bytes,
                        amqp_empty_table);
        Check(amqp_get_rpc_reply(connection_));
        amqp_confirm_select(connection_, 1);
        Check(amqp_get_rpc_reply(connection_));
    }
    RawRabbitMq(const RawRabbitMq&) = delete;
    RawRabbitMq& operator=(const RawRabbitMq&) = delete;
    ~RawRabbitMq() {
        amqp_connection_close(connection_, AMQP_REPLY_SUCCESS);
        amqp_destroy_connection(connection_);
    }

    void Publish(std::size_t count, const std::string& body, const std::vector<std::string>& keys) {
        constexpr std::uint64_t kWindow = 1000;
        const std::uint64_t target = published_ + count;
        acked_.resize(target + 2);
        while (confirmed_ < target) {
            while (published_ < target && published_ - confirmed_ < kWindow) {
                PublishOne(body, keys[published_ % keys.size()]);
            }
            AwaitConfirm();
        }
    }

private:
    static amqp_bytes_t Bytes(const std::string& text) {
        return {text.size(), const_cast<char*>(text.data())};
    }

    static void Check(const amqp_rpc_reply_t& reply) {
        if (reply.reply_type != AMQP_RESPONSE_NORMAL) throw std::runtime_error("RabbitMQ refused");
    }

    void PublishOne(const std::string& body, const std::string& key) {
        char id[25];
        std::snprintf(id, sizeof id, "raw-%020llu", static_cast<unsigned long long>(published_));
        const auto now = std::time(nullptr);
        std::array<amqp_table_entry_t, 2> headers{};
        headers[0].key = amqp_cstring_bytes("mq-key");
        headers[0].value.kind = AMQP_FIELD_KIND_UTF8;
        headers[0].value.value.bytes = Bytes(key);
        headers[1].key = amqp_cstring_bytes("timestamp_in_ms");
        headers[1].value.kind = AMQP_FIELD_KIND_I64;
        headers[1].value.value.i64 = static_cast<std::int64_t>(now) * 1000;
        amqp_basic_properties_t properties{};
        properties._flags = AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                            AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_HEADERS_FLAG;
        properties.message_id = amqp_cstring_bytes(id);
        properties.delivery_mode = 2;
        properties.timestamp = static_cast<std::uint64_t>(now);
        properties.headers = {2, headers.data()};
        if (amqp_basic_publish(connection_, 1, Bytes(exchange_), Bytes(key), 1, 0, &properties,
                               Bytes(body)) != AMQP_STATUS_OK) {
            throw std::runtime_error("RabbitMQ is gone");
        }
        ++published_;
    }

    void AwaitConfirm() {
        amqp_frame_t frame;
        timeval timeout{10, 0};
        if (amqp_simple_wait_frame_noblock(connection_, &frame, &timeout) != AMQP_STATUS_OK) {
            throw std::runtime_error("RabbitMQ has not confirmed");
        }
        if (frame.frame_type == AMQP_FRAME_METHOD && frame.payload.method.id == AMQP_BASIC_ACK_METHOD) {
            const auto* const ack = static_cast<amqp_basic_ack_t*>(frame.payload.method.decoded);
            for (std::uint64_t tag = ack->multiple != 0 ? lowest_ : ack->delivery_tag;
                 tag <= ack->delivery_tag; ++tag) {
                if (acked_[tag]) continue;
                acked_[tag] = true;
                ++confirmed_;
            }
            while (lowest_ <= published_ && acked_[lowest_]) ++lowest_;
        }
        amqp_maybe_release_buffers(connection_);
    }

    const std::string exchange_;
    amqp_connection_state_t connection_ = nullptr;
    std::uint64_t published_ = 0;
    std::uint64_t confirmed_ = 0;
    std::uint64_t lowest_ = 1;  // the first tag that is not confirmed
    std::vector<bool> acked_;   // by tag; the broker confirms out of order
};

}  // namespace bench
