// A service that handles orders. It names no broker: mq.toml does, and may change while this runs.

#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <cstdio>

int main(int argc, char** argv) try {
    const char* const config = argc > 1 ? argv[1] : "mq.toml";
    mq::Client client{mq::LoadConfig(config)};
    client.Watch(config);

    const mq::Subscription orders = client.RecvMsg("orders", [](const mq::Message& message) {
        std::printf("%s ordered: %s\n", message.key.c_str(), message.body.c_str());
    });

    std::puts("press return to end");
    std::getchar();
} catch (const mq::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
