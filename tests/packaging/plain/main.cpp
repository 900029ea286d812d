/// @file main.cpp
/// A program that uses mq with no component: in-memory brokers only.
#include <mq/mq.hpp>

#include <chrono>
#include <condition_variable>
#include <iostream>
#include <mutex>

int main() {
    mq::Config config;
    config.brokers["here"].url = "memory://packaging";
    config.topics["orders"].broker = "here";
    mq::Client client{config};

    std::mutex mutex;
    std::condition_variable arrived;
    std::string body;
    const mq::Subscription subscription = client.RecvMsg("orders",
                                                         [&](const mq::Message& message) {
                                                             const std::lock_guard lock{mutex};
                                                             body = message.body;
                                                             arrived.notify_all();
                                                         },
                                                         {.group = "packaging"});
    client.SendMsg("orders", "hello");

    std::unique_lock lock{mutex};
    if (!arrived.wait_for(lock, std::chrono::seconds{30}, [&] { return body == "hello"; })) {
        std::cerr << "the message did not arrive\n";
        return 1;
    }
    return 0;
}
