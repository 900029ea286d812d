/// @file main.cpp
/// A program that uses every component of mq.
#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/backends/rabbitmq_management.hpp>
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <iostream>

int main() {
    for (const char* scheme : {"memory", "amqp", "amqps", "kafka", "kafkas", "activemq", "activemqs",
                               "artemis", "artemiss"}) {
        if (!mq::backend::Registry::Instance().Find(scheme)) {
            std::cerr << "no adapter for " << scheme << "://\n";
            return 1;
        }
    }
    const mq::Config config = mq::ParseConfig(R"(
[brokers.rabbit]
url = "amqp://127.0.0.1"
options = { management = "http://127.0.0.1" }
[brokers.kafka]
url = "kafka://127.0.0.1"
[topics.orders]
old = "rabbit"
new = "kafka"
policy = "old"
)");
    return config.topics.size() == 1 ? 0 : 1;
}
