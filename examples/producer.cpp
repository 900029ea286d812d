// A service that sends orders. It names no broker: mq.toml does, and may change while this runs. That
// file says how to start it.

#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <cstdio>
#include <iostream>
#include <string>

int main(int argc, char** argv) try {
    const char* const config = argc > 1 ? argv[1] : "mq.toml";
    mq::Client client{mq::LoadConfig(config)};
    client.Watch(config);

    // One order a line: the customer, a space, and what they want.
    std::puts("type: CUSTOMER ORDER");
    for (std::string line; std::getline(std::cin, line);) {
        client.SendMsg("orders", mq::Message{.body = line, .key = line.substr(0, line.find(' '))});
        std::printf("confirmed: %s\n", line.c_str());
    }
} catch (const mq::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
