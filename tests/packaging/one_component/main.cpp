/// @file main.cpp
/// A program that uses mq with RabbitMQ and nothing else.
#include <mq/backends/rabbitmq.hpp>
#include <mq/mq.hpp>

#include <iostream>

int main() {
    for (const char* const scheme : {"memory", "amqp", "amqps"}) {
        if (!mq::backend::Registry::Instance().Find(scheme)) {
            std::cerr << "no adapter for " << scheme << "://\n";
            return 1;
        }
    }
    return 0;
}
