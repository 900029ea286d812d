/// @file mock_kafka.hpp
/// A Kafka cluster inside the test's own process: librdkafka's mock. It speaks the protocol on loopback
/// ports, forgets everything with the test, and fails on demand. It cannot create topics by the admin
/// API (it makes them when they are asked for, with four partitions), nor describe groups.
#pragma once

#include <mq/backends/kafka.hpp>

// After rdkafka.h, which the adapter has included.
#include <librdkafka/rdkafka_mock.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace mq::test {

/// Brokers that live as long as the object. Thread-safe, as far as librdkafka's functions are.
class MockCluster {
public:
    /// The number of a request in Kafka's protocol, for Fail and FailWith.
    enum Request : std::int16_t {
        kProduce = 0,
        kFetch = 1,
        kMetadata = 3,
        kOffsetCommit = 8,
        kOffsetFetch = 9,
        kFindCoordinator = 10
    };

    explicit MockCluster(int brokers = 1) {
        std::array<char, 256> text{};
        rk_ = rd_kafka_new(RD_KAFKA_PRODUCER, Quiet(), text.data(), text.size());
        if (rk_ == nullptr) throw std::runtime_error(text.data());
        cluster_ = rd_kafka_mock_cluster_new(rk_, brokers);
        if (cluster_ == nullptr) {
            rd_kafka_destroy(rk_);
            throw std::runtime_error("the mock cluster could not be made");
        }
    }

    MockCluster(const MockCluster&) = delete;
    MockCluster& operator=(const MockCluster&) = delete;

    ~MockCluster() {
        rd_kafka_mock_cluster_destroy(cluster_);
        rd_kafka_destroy(rk_);
    }

    /// What a client connects to: kafka://HOST:PORT,…
    [[nodiscard]] std::string url() const {
        return std::string{"kafka://"} + rd_kafka_mock_cluster_bootstraps(cluster_);
    }

    [[nodiscard]] rd_kafka_mock_cluster_t* get() const noexcept { return cluster_; }

    void CreateTopic(const std::string& topic, int partitions) {
        rd_kafka_mock_topic_create(cluster_, topic.c_str(), partitions, 1);
    }

    /// What the cluster says when it is asked about the topic.
    void SetTopicError(const std::string& topic, rd_kafka_resp_err_t error) {
        rd_kafka_mock_topic_set_error(cluster_, topic.c_str(), error);
    }

    /// Closes every connection, and refuses new ones until Up.
    void Down() { rd_kafka_mock_broker_set_down(cluster_, kAllBrokers); }
    void Up() { rd_kafka_mock_broker_set_up(cluster_, kAllBrokers); }

    /// How long an answer takes, in milliseconds.
    void Delay(int milliseconds) { rd_kafka_mock_broker_set_rtt(cluster_, kAllBrokers, milliseconds); }

    /// Answers the next `count` requests of a kind with an error.
    void FailWith(Request request, rd_kafka_resp_err_t error, std::size_t count = 1) {
        for (std::size_t i = 0; i < count; ++i) {
            rd_kafka_mock_push_request_errors(cluster_, request, 1, error);
        }
    }

    /// Answers requests of that kind again as they deserve.
    void StopFailing(Request request) { rd_kafka_mock_clear_request_errors(cluster_, request); }

private:
    static constexpr int kAllBrokers = -1;

    static rd_kafka_conf_t* Quiet() {
        rd_kafka_conf_t* const conf = rd_kafka_conf_new();
        rd_kafka_conf_set_log_cb(conf, nullptr);
        return conf;
    }

    rd_kafka_t* rk_ = nullptr;
    rd_kafka_mock_cluster_t* cluster_ = nullptr;
};

}  // namespace mq::test
