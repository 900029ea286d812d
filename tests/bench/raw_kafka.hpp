/// @file raw_kafka.hpp
/// What somebody writes who publishes to Kafka with librdkafka alone: an idempotent producer, a thread
/// that polls for delivery reports, and a loop around rd_kafka_producev. The records carry what the
/// facade's carry: a key, and an id in a header.
#pragma once

#include <librdkafka/rdkafka.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace bench {

class RawKafka {
public:
    RawKafka(const std::string& servers, std::string topic) : topic_(std::move(topic)) {
        rd_kafka_conf_t* const conf = rd_kafka_conf_new();
        Set(conf, "bootstrap.servers", servers.c_str());
        Set(conf, "enable.idempotence", "true");
        Set(conf, "acks", "all");
        Set(conf, "partitioner", "murmur2_random");
        rd_kafka_conf_set_opaque(conf, this);
        rd_kafka_conf_set_dr_msg_cb(conf,
                                    [](rd_kafka_t*, const rd_kafka_message_t* message, void* self) {
                                        static_cast<RawKafka*>(self)->OnReport(message);
                                    });
        char error[256];
        producer_ = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof error);
        if (producer_ == nullptr) throw std::runtime_error(error);
        poller_ = std::thread{[this] {
            while (!stopping_) rd_kafka_poll(producer_, 100);
        }};
    }
    RawKafka(const RawKafka&) = delete;
    RawKafka& operator=(const RawKafka&) = delete;
    ~RawKafka() {
        stopping_ = true;
        poller_.join();
        rd_kafka_destroy(producer_);
    }

    void Publish(std::size_t count, const std::string& body, const std::vector<std::string>& keys) {
        reported_ = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const std::string& key = keys[i % keys.size()];
            char id[25];
            std::snprintf(id, sizeof id, "raw-%020zu", i);
            while (true) {
                const rd_kafka_resp_err_t error =
                    rd_kafka_producev(producer_, RD_KAFKA_V_TOPIC(topic_.c_str()),
                                      RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                                      RD_KAFKA_V_VALUE(const_cast<char*>(body.data()), body.size()),
                                      RD_KAFKA_V_KEY(key.data(), key.size()),
                                      RD_KAFKA_V_HEADER("mq-id", id, 24), RD_KAFKA_V_END);
                if (error == RD_KAFKA_RESP_ERR_NO_ERROR) break;
                if (error != RD_KAFKA_RESP_ERR__QUEUE_FULL)
                    throw std::runtime_error(rd_kafka_err2str(error));
                std::this_thread::yield();
            }
        }
        std::unique_lock lock{mutex_};
        if (!done_.wait_for(lock, std::chrono::seconds{60}, [&] { return reported_ >= count; })) {
            throw std::runtime_error("librdkafka has not reported every message");
        }
        if (failed_ > 0) throw std::runtime_error("librdkafka has failed messages");
    }

private:
    static void Set(rd_kafka_conf_t* conf, const char* name, const char* value) {
        char error[256];
        if (rd_kafka_conf_set(conf, name, value, error, sizeof error) != RD_KAFKA_CONF_OK) {
            throw std::runtime_error(error);
        }
    }

    void OnReport(const rd_kafka_message_t* message) {
        const std::lock_guard lock{mutex_};
        if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR) ++failed_;
        ++reported_;
        done_.notify_one();
    }

    const std::string topic_;
    rd_kafka_t* producer_ = nullptr;
    std::atomic<bool> stopping_{false};
    std::thread poller_;
    std::mutex mutex_;
    std::condition_variable done_;
    std::size_t reported_ = 0;
    std::size_t failed_ = 0;
};

}  // namespace bench
