/// @file activemq_parts_test.cpp
/// The parts of the ActiveMQ adapter that need no broker: options, names, headers, the management's
/// JSON, and what is in flight.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include <mq/backends/activemq.hpp>

#include <chrono>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using mq::ConfigProblem;
using mq::Headers;
using mq::activemq::Flavor;
using mq::activemq::GroupSource;
using mq::activemq::InFlight;
using mq::activemq::Options;
using mq::activemq::Pending;
using mq::activemq::Topology;
using mq::test::MakePublication;
using namespace std::chrono_literals;

using Written = std::map<std::string, std::string>;

std::vector<ConfigProblem> Problems(const std::string& url, const Written& options = {}) {
    return mq::activemq::Check(mq::ParseUrl(url), options);
}

/// The key and the text of the only problem; empty where there is not exactly one.
std::string OnlyProblem(const std::string& url, const Written& options = {}) {
    const auto problems = Problems(url, options);
    return problems.size() == 1 ? problems[0].key + ": " + problems[0].text : std::string{};
}

bool Contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

Topology TopologyOf(const std::string& address, Flavor flavor, const Options& options = {}) {
    return Topology{*mq::test::MakeDestination("orders", address), flavor, options};
}

/// What the call throws; empty where it throws nothing.
template <typename Call>
std::string Refusal(Call call) {
    try {
        call();
    } catch (const mq::Error& error) {
        return error.what();
    }
    return {};
}

std::string EveryByte() {
    std::string bytes;
    for (int i = 0; i < 256; ++i) bytes += static_cast<char>(i);
    return bytes;
}

/// The headers as they come out of the map and, where it is needed, the list.
Headers ThereAndBack(const Headers& headers) {
    const auto map = mq::activemq::MapOf(headers);
    if (mq::activemq::MapSuffices(headers)) return {map.begin(), map.end()};
    return mq::activemq::HeadersOf(map, mq::activemq::ListOf(headers, map));
}

}  // namespace

TEST_CASE("ActiveMQ options: every option is read", "[activemq]") {
    std::vector<ConfigProblem> problems;
    const mq::Url url = mq::ParseUrl("activemqs://user:word@host");
    const Options options = mq::activemq::ReadOptions(url,
                                                      {{"topic_name", "VT.{address}"},
                                                       {"queue_name", "Q.{group}.{name}"},
                                                       {"confirm_window", "7"},
                                                       {"max_message_size", "1000"},
                                                       {"heartbeat", "3s"},
                                                       {"connect_timeout", "400ms"},
                                                       {"sasl", "external"},
                                                       {"tls.verify", "false"},
                                                       {"tls.ca", "ca.pem"},
                                                       {"tls.cert", "cert.pem"},
                                                       {"tls.key", "key.pem"}},
                                                      problems);
    CHECK(problems.empty());
    CHECK(options.topic_name == "VT.{address}");
    CHECK(options.queue_name == "Q.{group}.{name}");
    CHECK(options.queue_name_set);
    CHECK(options.confirm_window == 7);
    CHECK(options.max_message_size == 1000);
    CHECK(options.heartbeat == 3s);
    CHECK(options.connect_timeout == 400ms);
    CHECK(options.sasl == mq::activemq::Sasl::kExternal);
    CHECK_FALSE(options.tls_verify);
    CHECK(options.tls_ca == "ca.pem");
    CHECK(options.tls_cert == "cert.pem");
    CHECK(options.tls_key == "key.pem");
}

TEST_CASE("ActiveMQ options: what is wrong is named with what was expected", "[activemq]") {
    CHECK(Problems("activemq://host").empty());
    CHECK(Problems("artemis://user:word@one,two:5673").empty());
    CHECK(Contains(OnlyProblem("artemis://host", {{"hartbeat", "1s"}}), "did you mean \"heartbeat\""));
    CHECK(Contains(OnlyProblem("artemis://host", {{"heartbeat", "1ms"}}), "from 1s to 10m"));
    CHECK(Contains(OnlyProblem("artemis://host", {{"confirm_window", "0"}}), "from 1 to 100000"));
    CHECK(Contains(OnlyProblem("artemis://host", {{"subscription_name", "all"}}), "{group}"));
    CHECK(Contains(OnlyProblem("activemq://host", {{"topic_name", "T.{adress}"}}), "{address}"));
    CHECK(
        Contains(OnlyProblem("activemq://host", {{"sasl", "gssapi"}}), "plain, external or anonymous"));
    CHECK(Contains(OnlyProblem("artemis://host/path"), "found a path"));
    CHECK(Contains(OnlyProblem("artemis://host?a=b"), "settings are options"));
    CHECK(Contains(OnlyProblem("artemis://:word@host"), "a password without a user"));
    CHECK(Contains(OnlyProblem("artemiss://host", {{"tls.cert", "c.pem"}}), "belong together"));
    CHECK(Contains(OnlyProblem("artemis://host", {{"tls.ca", "c.pem"}}), "is not encrypted"));
    CHECK(Contains(OnlyProblem("artemis://host", {{"sasl", "plain"}}), "USER:PASSWORD@HOST"));
    CHECK(Contains(OnlyProblem("artemis://host", {{"sasl", "external"}}), "artemiss://"));
}

TEST_CASE("ActiveMQ options: each broker has those of its own", "[activemq]") {
    CHECK(
        Contains(OnlyProblem("artemis://host", {{"queue_name", "{group}"}}), "Artemis has no option"));
    CHECK(Contains(OnlyProblem("activemq://host", {{"subscription_name", "{group}"}}),
                   "ActiveMQ has no option"));
}

TEST_CASE("ActiveMQ options: no text quotes a password", "[activemq]") {
    for (const auto& problem : Problems("artemis://user:hush%00@host/p?q=hush", {{"sasl", "hush@"}})) {
        CHECK_FALSE(Contains(problem.text, "hush"));
    }
}

TEST_CASE("ActiveMQ options: how a client logs in follows from what it has", "[activemq]") {
    using mq::activemq::MechanismOf;
    using mq::activemq::Sasl;
    Options options;
    CHECK(MechanismOf(mq::ParseUrl("artemis://u:p@host"), options) == Sasl::kPlain);
    CHECK(MechanismOf(mq::ParseUrl("artemis://host"), options) == Sasl::kAnonymous);
    options.tls_cert = "cert.pem";
    CHECK(MechanismOf(mq::ParseUrl("artemiss://host"), options) == Sasl::kExternal);
    CHECK(MechanismOf(mq::ParseUrl("artemiss://u:p@host"), options) == Sasl::kPlain);
}

TEST_CASE("ActiveMQ names: a topic of Classic is a virtual topic with a queue for each group",
          "[activemq]") {
    const Topology topology = TopologyOf("orders", Flavor::kClassic);
    CHECK(topology.Target() == "topic://VirtualTopic.orders");
    const GroupSource source = topology.SourceOf("billing");
    CHECK(source.address == "queue://Consumer.billing.VirtualTopic.orders");
    CHECK(source.queue == "Consumer.billing.VirtualTopic.orders");
    CHECK_FALSE(source.subscription);
    CHECK(TopologyOf("topic://VirtualTopic.orders", Flavor::kClassic).SourceOf("billing").queue ==
          source.queue);
}

TEST_CASE("ActiveMQ names: a topic of Artemis has a shared subscription for each group", "[activemq]") {
    const Topology topology = TopologyOf("orders", Flavor::kArtemis);
    CHECK(topology.Target() == "orders");
    const GroupSource source = topology.SourceOf("billing");
    CHECK(source.address == "orders");
    CHECK(source.link == "orders.billing");
    CHECK(source.subscription);
    CHECK(source.queue == "orders.billing:global");
    Options options;
    options.subscription_name = "{topic}-{group}";
    CHECK(TopologyOf("prod", Flavor::kArtemis, options).SourceOf("g").link == "orders-g");
}

TEST_CASE("ActiveMQ names: a queue is one for all groups", "[activemq]") {
    CHECK(TopologyOf("queue://jobs", Flavor::kClassic).Target() == "queue://jobs");
    CHECK(TopologyOf("queue://jobs", Flavor::kClassic).SourceOf("any").address == "queue://jobs");
    CHECK(TopologyOf("queue://jobs", Flavor::kArtemis).Target() == "jobs");
    CHECK(TopologyOf("queue://jobs", Flavor::kArtemis).SourceOf("any").queue == "jobs");
    CHECK_FALSE(TopologyOf("queue://jobs", Flavor::kArtemis).SourceOf("any").subscription);
}

TEST_CASE("ActiveMQ names: what the broker would misunderstand is refused", "[activemq]") {
    const auto refused = [](const std::string& address, const std::string& group, Flavor flavor) {
        return Refusal([&] { static_cast<void>(TopologyOf(address, flavor).SourceOf(group)); });
    };
    CHECK(Contains(refused("a,b", "g", Flavor::kClassic), "means something else"));
    CHECK(Contains(refused("a.>", "g", Flavor::kClassic), "means something else"));
    CHECK(Contains(refused("a::b", "g", Flavor::kArtemis), "means something else"));
    CHECK(Contains(refused("exchange://a", "g", Flavor::kClassic), "expected NAME, topic://NAME"));
    CHECK(Contains(refused("orders", "a.b", Flavor::kClassic), "has a dot in it"));
    CHECK(Contains(refused("orders", "a|b", Flavor::kArtemis), "has a | in it"));
    CHECK(Contains(refused("topic://plain", "g", Flavor::kClassic), "no virtual topic"));
    CHECK(refused("orders", "a.b", Flavor::kArtemis).empty());
    // How such a topic reaches its queues can be said.
    Options options;
    options.queue_name = "VirtualTopicConsumers.{group}.{name}";
    options.queue_name_set = true;
    CHECK(TopologyOf("topic://plain", Flavor::kClassic, options).SourceOf("g").queue ==
          "VirtualTopicConsumers.g.plain");
}

TEST_CASE("ActiveMQ headers: a list is written only where the map does not say it all", "[activemq]") {
    using mq::activemq::MapSuffices;
    CHECK(MapSuffices({}));
    CHECK(MapSuffices({{"a", "1"}, {"b", "2"}}));
    CHECK_FALSE(MapSuffices({{"b", "2"}, {"a", "1"}}));
    CHECK_FALSE(MapSuffices({{"a", "1"}, {"a", "1"}}));
    CHECK_FALSE(MapSuffices({{"a", EveryByte()}}));
    CHECK_FALSE(MapSuffices({{"", "nameless"}}));
}

TEST_CASE("ActiveMQ headers: order, repeats and bytes come back as they were", "[activemq]") {
    for (const Headers& headers :
         {Headers{}, Headers{{"b", "2"}, {"a", "1"}}, Headers{{"t", "1"}, {"t", "2"}, {"t", "1"}},
          Headers{{"bytes", EveryByte()}, {"t", EveryByte()}, {"t", "text"}},
          Headers{{"", "x"}, {"a&b=c%", "&=%"}, {"Grüße", "☃"}, {"empty", ""}}}) {
        CHECK(ThereAndBack(headers) == headers);
    }
}

TEST_CASE("ActiveMQ headers: what another program has changed in the map counts", "[activemq]") {
    const Headers headers{{"b", "2"}, {"a", "1"}};
    auto map = mq::activemq::MapOf(headers);
    const std::string list = mq::activemq::ListOf(headers, map);
    map["c"] = "added";
    map["b"] = "changed";
    map.erase("a");
    CHECK(mq::activemq::HeadersOf(map, list) == Headers{{"b", "changed"}, {"c", "added"}});
    CHECK_THROWS_AS(mq::activemq::HeadersOf({}, "%x"), std::invalid_argument);
}

TEST_CASE("ActiveMQ headers: text is UTF-8 in its shortest form", "[activemq]") {
    using mq::activemq::IsUtf8;
    for (const char* text : {"", "plain", "Grüße", "日本語 ☃", "\xF0\x9F\x90\x87", "\xED\x9F\xBF"}) {
        CHECK(IsUtf8(text));
    }
    for (const char* bytes :
         {"\x80", "\xC3", "\xC0\xAF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xE2\x98", "a\xC3(b"}) {
        CHECK_FALSE(IsUtf8(bytes));
    }
    CHECK(IsUtf8(std::string_view{"a\0b", 3}));
    CHECK_FALSE(mq::activemq::IsPlainText(std::string_view{"a\0b", 3}));
}

TEST_CASE("ActiveMQ messages: everything that one is sent with comes back", "[activemq]") {
    mq::Message message = mq::test::MakeMessage(EveryByte(), "customer-42");
    message.headers = {{"zulu", "1"}, {"alpha", "2"}, {"bytes", EveryByte()}};
    message.content_type = "application/json";
    message.correlation_id = EveryByte();
    message.reply_to = std::string("a\0b", 3);
    const Flavor flavor = GENERATE(Flavor::kClassic, Flavor::kArtemis);
    for (const std::string& key : {std::string{"customer-42"}, EveryByte(), std::string{}}) {
        message.key = key;
        const auto publication = MakePublication(message);
        proton::message encoded;
        mq::activemq::detail::Encode(*publication, flavor, encoded);
        proton::message received;
        received.decode(encoded.encode());
        CHECK(received.durable());
        mq::Message decoded;
        mq::activemq::detail::Decode(received, decoded);
        CHECK(decoded == message);
        publication->possible_duplicate = true;
        encoded.clear();
        mq::activemq::detail::Encode(*publication, flavor, encoded);
        received.decode(encoded.encode());
        decoded = {};
        mq::activemq::detail::Decode(received, decoded);
        CHECK(decoded.redelivered);
        CHECK(decoded.headers == message.headers);
    }
}

TEST_CASE("ActiveMQ messages: what AMQP cannot carry is refused before it is sent", "[activemq]") {
    using mq::activemq::detail::FindUnsendable;
    Options options;
    options.max_message_size = 10;
    mq::Message message = mq::test::MakeMessage("12345678901");
    CHECK(FindUnsendable(message, options, "broker")->code == mq::ErrorCode::kTooLarge);
    message.body.pop_back();
    CHECK_FALSE(FindUnsendable(message, options, "broker"));
    message.content_type = "Grüße";
    CHECK(FindUnsendable(message, options, "broker")->code == mq::ErrorCode::kInvalidArgument);
    message.content_type.clear();
    message.headers = {{"\xFF", "value"}};
    CHECK(FindUnsendable(message, options, "broker")->code == mq::ErrorCode::kInvalidArgument);
}

TEST_CASE("ActiveMQ management: an answer about queues is read", "[activemq]") {
    using mq::activemq::ReadQueueList;
    const std::string body =
        R"(["{\"data\":[{\"name\":\"other\",\"messageCount\":\"9\",\"consumerCount\":\"9\"},)"
        R"({\"name\":\"g\\u00fc:global\",\"paused\":false,\"messageCount\":\"4\",\"consumerCount\":1}],)"
        R"(\"count\":2}"])";
    const auto state = ReadQueueList(body, "gü:global");
    REQUIRE(state);
    CHECK(state->messages == 4);
    CHECK(state->consumers == 1);
    CHECK_FALSE(ReadQueueList(body, "g"));
    CHECK_FALSE(ReadQueueList(R"(["{\"data\":[],\"count\":0}"])", "g"));
    for (const char* nonsense :
         {"", "[", "[1]", "[\"{}\"]", "[\"{\\\"data\\\":\"]", "nonsense", "[\"\\"}) {
        CHECK_THROWS_AS(ReadQueueList(nonsense, "g"), std::invalid_argument);
    }
}

TEST_CASE("ActiveMQ management: a name is quoted so that it is read as itself", "[activemq]") {
    using mq::activemq::QueueListArguments;
    CHECK(QueueListArguments("a\"b") ==
          R"(["{\"field\":\"name\",\"operation\":\"EQUALS\",\"value\":\"a\\\"b\"}",1,10])");
    CHECK_NOTHROW(QueueListArguments("\xFF"));
}

TEST_CASE("ActiveMQ in flight: what is settled is given back once, in any order", "[activemq]") {
    InFlight in_flight{3};
    const auto one = in_flight.Add(Pending{MakePublication("1"), nullptr}, 0);
    const auto two = in_flight.Add(Pending{MakePublication("2"), nullptr}, 0);
    const auto three = in_flight.Add(Pending{MakePublication("3"), nullptr}, 0);
    CHECK(in_flight.Full());
    CHECK(in_flight.Settle(two).publication->message.body == "2");
    CHECK(in_flight.Settle(two).publication == nullptr);
    CHECK_FALSE(in_flight.Full());
    CHECK(in_flight.Settle(one).publication != nullptr);
    CHECK(in_flight.Settle(three).publication != nullptr);
    CHECK(in_flight.Unfinished() == 0);
    CHECK(in_flight.Settle(99).publication == nullptr);
}

TEST_CASE("ActiveMQ in flight: what has expired keeps its place until the broker settles it",
          "[activemq]") {
    InFlight in_flight{2};
    const auto now = mq::backend::Clock::now();
    const auto late = in_flight.Add(Pending{MakePublication("late", "", 0ms), nullptr}, 0);
    in_flight.Add(Pending{MakePublication("early", "", 1h), nullptr}, 0);
    std::vector<std::string> expired;
    const auto next = in_flight.Expire(
        now + 1min, [&](Pending pending) { expired.push_back(pending.publication->message.body); });
    CHECK(expired == std::vector<std::string>{"late"});
    CHECK(next > now + 59min);
    CHECK(in_flight.Full());
    CHECK(in_flight.Unfinished() == 1);
    CHECK(in_flight.Settle(late).publication == nullptr);
    CHECK_FALSE(in_flight.Full());
}

TEST_CASE("ActiveMQ in flight: a link that is gone gives back its own, in their order", "[activemq]") {
    mq::activemq::Route one{mq::test::MakeDestination("one"), Flavor::kArtemis, {}};
    mq::activemq::Route two{mq::test::MakeDestination("two"), Flavor::kArtemis, {}};
    InFlight in_flight{10};
    for (const char* body : {"1", "2", "3"}) {
        in_flight.Add(Pending{MakePublication(body), &one}, 5);
        in_flight.Add(Pending{MakePublication(body), &two}, 6);
    }
    const auto expired = in_flight.Add(Pending{MakePublication("expired", "", 0ms), &one}, 7);
    in_flight.Expire(mq::backend::Clock::now() + 1s, [](const Pending&) {});
    std::vector<std::string> bodies;
    in_flight.TakeAll(&one, [&](Pending pending, std::uint64_t position) {
        bodies.push_back(pending.publication->message.body);
        CHECK(position == 5);
    });
    CHECK(bodies == std::vector<std::string>{"1", "2", "3"});
    CHECK(in_flight.Settle(expired).publication == nullptr);
    CHECK(in_flight.Size() == 3);
    CHECK(in_flight.Unfinished() == 3);
}
