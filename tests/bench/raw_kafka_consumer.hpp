/// @file raw_kafka_consumer.hpp
/// What somebody writes who receives from Kafka with librdkafka alone: a loop around
/// rd_kafka_consumer_poll with the library's own defaults.
#pragma once

#include <librdkafka/rdkafka.h>

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>

namespace bench {

class RawKafkaConsumer {
public:
    RawKafkaConsumer(const std::string& servers, const std::string& group, const std::string& topic) {
        rd_kafka_conf_t* const conf = rd_kafka_conf_new();
        Set(conf, "bootstrap.servers", servers);
        Set(conf, "group.id", group);
        Set(conf, "auto.offset.reset", "earliest");
        char error[256];
        consumer_ = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof error);
        if (consumer_ == nullptr) throw std::runtime_error(error);
        rd_kafka_poll_set_consumer(consumer_);
        rd_kafka_topic_partition_list_t* const topics = rd_kafka_topic_partition_list_new(1);
        rd_kafka_topic_partition_list_add(topics, topic.c_str(), RD_KAFKA_PARTITION_UA);
        const rd_kafka_resp_err_t failed = rd_kafka_subscribe(consumer_, topics);
        rd_kafka_topic_partition_list_destroy(topics);
        if (failed != RD_KAFKA_RESP_ERR_NO_ERROR) throw std::runtime_error(rd_kafka_err2str(failed));
    }
    RawKafkaConsumer(const RawKafkaConsumer&) = delete;
    RawKafkaConsumer& operator=(const RawKafkaConsumer&) = delete;
    ~RawKafkaConsumer() {
        rd_kafka_consumer_close(consumer_);
        rd_kafka_destroy(consumer_);
    }

    // Calls `handle` for each of `count` messages.
    void Receive(std::size_t count, const std::function<void()>& handle) {
        for (std::size_t received = 0; received < count;) {
            rd_kafka_message_t* const message = rd_kafka_consumer_poll(consumer_, 30'000);
            if (message == nullptr) throw std::runtime_error("librdkafka gives no message");
            if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR) {
                handle();
                ++received;
            }
            rd_kafka_message_destroy(message);
        }
    }

private:
    static void Set(rd_kafka_conf_t* conf, const char* name, const std::string& value) {
        char error[256];
        if (rd_kafka_conf_set(conf, name, value.c_str(), error, sizeof error) != RD_KAFKA_CONF_OK) {
            throw std::runtime_error(error);
        }
    }

    rd_kafka_t* consumer_ = nullptr;
};

}  // namespace bench
