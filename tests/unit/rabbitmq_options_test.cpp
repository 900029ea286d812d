/// @file rabbitmq_options_test.cpp
/// What the RabbitMQ adapter reads from a URL, options and addresses, without a broker.
#include "../support/catch.hpp"
#include <mq/backends/rabbitmq/management.hpp>
#include <mq/backends/rabbitmq/options.hpp>
#include <mq/backends/rabbitmq/topology.hpp>

#include <chrono>
#include <map>
#include <string>
#include <vector>

namespace {

using mq::rabbitmq::Options;
using mq::rabbitmq::Topology;
using Written = std::map<std::string, std::string>;

std::vector<mq::ConfigProblem> Problems(const std::string& url, const Written& options = {}) {
    return mq::rabbitmq::Check(mq::ParseUrl(url), options);
}

bool Mentions(const mq::ConfigProblem& problem, const std::string& part) {
    return problem.text.find(part) != std::string::npos;
}

Options Read(const Written& written) {
    std::vector<mq::ConfigProblem> problems;
    const Options options = mq::rabbitmq::ReadOptions(written, problems);
    CHECK(problems.empty());
    return options;
}

mq::backend::Destination At(const std::string& address, std::vector<std::string> groups = {}) {
    mq::backend::Destination destination;
    destination.topic = "orders";
    destination.address = address;
    destination.groups = std::move(groups);
    return destination;
}

}  // namespace

TEST_CASE("every option of RabbitMQ is read", "[rabbitmq]") {
    const Options options = Read({{"declare", "false"},
                                  {"exchange_type", "topic"},
                                  {"queue_type", "quorum"},
                                  {"queue_name", "{group}:{topic}"},
                                  {"routing_key", "{topic}.created"},
                                  {"binding_key", "{topic}.#"},
                                  {"confirm_window", "10"},
                                  {"max_message_size", "1048576"},
                                  {"heartbeat", "30s"},
                                  {"connect_timeout", "1500ms"},
                                  {"tls.verify", "false"},
                                  {"tls.ca", "ca.pem"},
                                  {"tls.cert", "cert.pem"},
                                  {"tls.key", "key.pem"},
                                  {"management", "https://admin:secret@rabbit-1,rabbit-2:1234"},
                                  {"management_age", "11s"}});
    CHECK_FALSE(options.declare);
    CHECK(options.exchange_type == "topic");
    CHECK(options.queue_type == mq::rabbitmq::QueueType::kQuorum);
    CHECK(options.queue_name == "{group}:{topic}");
    CHECK(options.routing_key == "{topic}.created");
    CHECK(options.binding_key == "{topic}.#");
    CHECK(options.confirm_window == 10);
    CHECK(options.max_message_size == 1048576);
    CHECK(options.heartbeat == std::chrono::seconds{30});
    CHECK(options.connect_timeout == std::chrono::milliseconds{1500});
    CHECK_FALSE(options.tls_verify);
    CHECK(options.tls_ca == "ca.pem");
    CHECK(options.tls_cert == "cert.pem");
    CHECK(options.tls_key == "key.pem");
    REQUIRE(options.management);
    CHECK(options.management->hosts == std::vector<mq::HostPort>{{"rabbit-1", 0}, {"rabbit-2", 1234}});
    CHECK(options.management_age == std::chrono::seconds{11});
}

TEST_CASE("a wrong management URL is reported without its password", "[rabbitmq]") {
    for (const char* url : {"secret@rabbit", "amqp://admin:secret@rabbit", "http://admin:secret@",
                            "http://admin:secret@rabbit:port", "http://admin:secret@rabbit/api",
                            "http://admin:secret@rabbit?name=value"}) {
        INFO(url);
        const auto problems = Problems("amqp://host", {{"management", url}});
        REQUIRE(problems.size() == 1);
        CHECK(problems[0].key == "options.management");
        CHECK_FALSE(Mentions(problems[0], "secret"));
    }
    CHECK(Problems("amqp://host", {{"management", "http://rabbit:15672/"}}).empty());
    CHECK(Problems("amqp://host", {{"management", "http://rabbit"}, {"tls.ca", "ca.pem"}}).size() == 1);
    CHECK(Problems("amqp://host", {{"management", "https://rabbit"}, {"tls.ca", "ca.pem"}}).empty());
    CHECK(Problems("amqp://host", {{"management_age", "0s"}}).size() == 1);
}

TEST_CASE("a program that cannot ask the management says which header is missing", "[rabbitmq]") {
    const auto maker = mq::rabbitmq::ManagementMaker().exchange(nullptr);
    const auto problems = Problems("amqp://host", {{"management", "http://rabbit"}});
    mq::rabbitmq::ManagementMaker() = maker;
    REQUIRE(problems.size() == 1);
    CHECK(Mentions(problems[0], "#include <mq/backends/rabbitmq_management.hpp>"));
}

TEST_CASE("a heartbeat may be a plain number of seconds", "[rabbitmq]") {
    CHECK(Read({{"heartbeat", "7"}}).heartbeat == std::chrono::seconds{7});
}

TEST_CASE("a wrong value of an option is reported with what was expected", "[rabbitmq]") {
    const Written wrong{
        {"declare", "yes"},          {"exchange_type", "fan"},      {"queue_type", "mirrored"},
        {"queue_name", "{address}"}, {"routing_key", "{group}"},    {"binding_key", "{"},
        {"confirm_window", "0"},     {"max_message_size", "1 MiB"}, {"heartbeat", "1500ms"},
        {"connect_timeout", "soon"}, {"tls.verify", "1"},           {"tls.ca", ""}};
    const auto problems = Problems("amqps://host", wrong);
    REQUIRE(problems.size() == wrong.size());
    for (const auto& problem : problems) {
        INFO(problem.key << ": " << problem.text);
        CHECK(Mentions(problem, "expected"));
        CHECK(problem.key.starts_with("options."));
    }
}

TEST_CASE("an unknown option is reported with the nearest one and with all", "[rabbitmq]") {
    const auto problems = Problems("amqp://host", {{"confirm-window", "10"}});
    REQUIRE(problems.size() == 1);
    CHECK(problems[0].key == "options.confirm-window");
    CHECK(Mentions(problems[0], "did you mean \"confirm_window\"?"));
    CHECK(Mentions(problems[0], "queue_type"));
}

TEST_CASE("options that need one another are checked together", "[rabbitmq]") {
    CHECK(Problems("amqp://host", {{"exchange_type", "direct"}}).size() == 1);
    CHECK(Problems("amqp://host", {{"exchange_type", "direct"}, {"routing_key", "{topic}"}}).empty());
    const auto problems = Problems("amqps://host", {{"tls.cert", "cert.pem"}});
    REQUIRE(problems.size() == 1);
    CHECK(problems[0].key == "options.\"tls.key\"");
    CHECK(Problems("amqp://host", {{"tls.ca", "ca.pem"}}).size() == 1);
}

TEST_CASE("what is wrong with a URL is reported without its password", "[rabbitmq]") {
    CHECK(Problems("amqp://user:secret@host-1,host-2:5673/prod").empty());
    CHECK(Problems("amqp://host").empty());
    CHECK(Problems("amqp://host/").empty());
    CHECK(Problems("amqp://host/%2F").empty());
    for (const char* url : {"amqp://user:secret@host/prod/", "amqp://user:secret@host//prod",
                            "amqp://user:secret@host/prod?heartbeat=5",
                            "amqp://user:sec%00ret@host/prod", "amqp://:secret@host/prod"}) {
        INFO(url);
        const auto problems = Problems(url);
        REQUIRE(problems.size() == 1);
        CHECK(problems[0].key == "url");
        CHECK_FALSE(Mentions(problems[0], "sec"));
    }
}

TEST_CASE("no virtual host, an empty one and an encoded slash are the same", "[rabbitmq]") {
    CHECK(mq::rabbitmq::VirtualHost(mq::ParseUrl("amqp://host")) == "/");
    CHECK(mq::rabbitmq::VirtualHost(mq::ParseUrl("amqp://host/")) == "/");
    CHECK(mq::rabbitmq::VirtualHost(mq::ParseUrl("amqp://host/%2F")) == "/");
    CHECK(mq::rabbitmq::VirtualHost(mq::ParseUrl("amqp://host/prod")) == "prod");
}

TEST_CASE("a bare address and exchange:// are an exchange with a queue for each group", "[rabbitmq]") {
    for (const char* address : {"prod.orders", "exchange://prod.orders"}) {
        const Topology topology{At(address), Options{}};
        CHECK(topology.HasExchange());
        CHECK(topology.Exchange() == "prod.orders");
        CHECK(topology.Queue("billing") == "prod.orders.billing");
        CHECK(topology.BindingKey("billing") == "#");
        CHECK(topology.RoutingKey("customer-42") == "customer-42");
        CHECK(topology.KeyIsRoutingKey());
    }
}

TEST_CASE("queue:// is one queue behind the default exchange", "[rabbitmq]") {
    const Topology topology{At("queue://work"), Options{}};
    CHECK_FALSE(topology.HasExchange());
    CHECK(topology.Exchange().empty());
    CHECK(topology.Queue("billing") == "work");
    CHECK(topology.RoutingKey("customer-42") == "work");
    CHECK_FALSE(topology.KeyIsRoutingKey());
}

TEST_CASE("names follow their templates", "[rabbitmq]") {
    const Topology topology{At("exchange://amq.topic"),
                            Read({{"queue_name", "{group}/{topic}@{address}"},
                                  {"routing_key", "{topic}.new"},
                                  {"binding_key", "{topic}.*"}})};
    CHECK(topology.Queue("billing") == "billing/orders@amq.topic");
    CHECK(topology.RoutingKey("customer-42") == "orders.new");
    CHECK(topology.BindingKey("billing") == "orders.*");
    CHECK_FALSE(topology.KeyIsRoutingKey());
    const Topology direct{At("events"), Read({{"routing_key", "{topic}"}})};
    CHECK(direct.BindingKey("billing") == "orders");
}

TEST_CASE("a key that is too long for a routing key is none", "[rabbitmq]") {
    const Topology topology{At("orders"), Options{}};
    CHECK(topology.RoutingKey(std::string(255, 'k')).size() == 255);
    CHECK(topology.RoutingKey(std::string(256, 'k')).empty());
}

TEST_CASE("addresses that RabbitMQ does not have are refused", "[rabbitmq]") {
    const std::string longest(255, 'a');
    CHECK_NOTHROW(Topology(At(longest), Options{}));
    for (const std::string& address :
         {std::string{"topic://orders"}, std::string{"queue://"}, longest + "a"}) {
        INFO(address);
        CHECK_THROWS_AS(Topology(At(address), Options{}), mq::Error);
    }
    CHECK_THROWS_AS(Topology(At(longest, {"billing"}), Options{}), mq::Error);
}
