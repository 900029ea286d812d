/// @file activemq_parts_test.cpp
/// The parts of the ActiveMQ adapter that need no broker: options, names, headers, the management's
/// JSON, and what is in flight; and what it does at a broker that behaves as no real one would.
#include "../support/activemq_fixture.hpp"
#include "../support/amqp_native.hpp"
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/refusing_port.hpp"
#include "../support/wait.hpp"
#include <mq/backends/activemq.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <latch>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
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
using mq::test::After;
using mq::test::Eventually;
using mq::test::FakeBroker;
using mq::test::MakeDestination;
using mq::test::MakePublication;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using mq::test::RefusingPort;
using mq::test::SilentPort;
using mq::test::activemq::Connected;
using mq::test::activemq::Contains;
using mq::test::activemq::Phase;
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

/// What a received message is read as, from the bytes of its sections.
mq::Message Decoded(const std::vector<char>& bytes) {
    proton::message received;
    received.decode(bytes);
    mq::Message message;
    mq::activemq::detail::Decode(received, message);
    return message;
}

/// The bytes of a message in which "body" is the body, with so many encoded names and values as its
/// application properties.
std::vector<char> WithProperties(int count, std::string_view names_and_values) {
    std::string bytes{"\x00\x53\x74\xC1", 4};
    bytes += static_cast<char>(names_and_values.size() + 1);
    bytes += static_cast<char>(count);
    bytes += names_and_values;
    bytes += std::string_view{
        "\x00\x53\x75\xA0\x04"
        "body",
        9};
    return {bytes.begin(), bytes.end()};
}

/// A broker that sends each consumer one message, and no more.
FakeBroker::Script OneMessageEach() {
    FakeBroker::Script script;
    script.on_credit = [served = std::set<std::string>{}](proton::sender& sender) mutable {
        if (!served.insert(sender.name()).second) return;
        proton::message message{proton::binary{"hello"}};
        message.id(std::string{"m-1"});
        sender.send(message);
    };
    return script;
}

/// A broker that answers each message with a rejection for that reason.
FakeBroker::Script Rejecting(const char* condition) {
    FakeBroker::Script script;
    script.on_published = [condition](proton::delivery& delivery) {
        using mq::activemq::detail::Engine;
        using mq::activemq::detail::EngineFunction;
        pn_delivery_t* const engine = Engine<proton::delivery>{delivery}.Get();
        auto* const local = EngineFunction<decltype(pn_delivery_local)>("pn_delivery_local")(engine);
        auto* const reason =
            EngineFunction<decltype(pn_disposition_condition)>("pn_disposition_condition")(local);
        EngineFunction<decltype(pn_condition_set_name)>("pn_condition_set_name")(reason, condition);
        EngineFunction<decltype(pn_condition_set_description)>("pn_condition_set_description")(
            reason, "not this one");
        delivery.reject();
    };
    return script;
}

mq::test::activemq::Destination Queue(const std::string& name) {
    return MakeDestination("orders", "queue://" + name);
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

TEST_CASE("ActiveMQ names: the queues of all groups have a pattern where * can stand for the group",
          "[activemq]") {
    CHECK(TopologyOf("orders", Flavor::kClassic).AllQueues() == "Consumer.*.VirtualTopic.orders");
    CHECK(TopologyOf("queue://jobs", Flavor::kClassic).AllQueues() == "jobs");
    CHECK(TopologyOf("orders", Flavor::kArtemis).AllQueues() == "orders");
    CHECK_FALSE(TopologyOf("topic://plain", Flavor::kClassic).AllQueues());
    Options options;
    options.queue_name = "Q-{group}.{name}";
    options.queue_name_set = true;
    CHECK_FALSE(TopologyOf("orders", Flavor::kClassic, options).AllQueues());
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
    for (const char* reserved : {"JMSPriority", "JMSXDeliveryCount", "JMS_AMQP_NATIVE",
                                 "AMQ_SCHEDULED_DELAY", "_AMQ_DUPL_ID"}) {
        CHECK_FALSE(MapSuffices({{reserved, "1"}}));
    }
    CHECK(MapSuffices({{"AMQ", "1"}, {"MyJMSPriority", "1"}, {"jms", "1"}}));
}

TEST_CASE("ActiveMQ headers: a name that the brokers act on stands in the list alone", "[activemq]") {
    const Headers headers{{"JMSDeliveryMode", "1"}, {"_AMQ_DUPL_ID", "x"}, {"kind", "new"}};
    const auto map = mq::activemq::MapOf(headers);
    CHECK(map == mq::activemq::HeaderMap{{"kind", "new"}});
    CHECK(ThereAndBack(headers) == headers);
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

TEST_CASE("ActiveMQ messages: a text that Classic would change goes as bytes", "[activemq]") {
    const auto encoded = [](Flavor flavor, const std::string& body, const std::string& content_type) {
        mq::Message message = mq::test::MakeMessage(body);
        message.content_type = content_type;
        proton::message result;
        mq::activemq::detail::Encode(*MakePublication(message), flavor, result);
        CHECK(Decoded(result.encode()).content_type == content_type);
        return result.content_type();
    };
    const std::string emoji = "\xF0\x9F\x98\x80";
    const std::string nul{"a\0b", 3};
    for (const std::string& body : {emoji, nul}) {
        CHECK(encoded(Flavor::kClassic, body, "text/plain") == "application/octet-stream");
        CHECK(encoded(Flavor::kClassic, body, "application/json") == "application/octet-stream");
        CHECK(encoded(Flavor::kClassic, body, "").empty());
        CHECK(encoded(Flavor::kArtemis, body, "text/plain") == "text/plain");
    }
    CHECK(encoded(Flavor::kClassic, "Grüße ☃", "text/plain") == "text/plain");
}

TEST_CASE("ActiveMQ messages: nothing that others write as properties keeps one from being read",
          "[activemq]") {
    using namespace std::string_view_literals;
    // {"mq-reply-to": "100%", "mq-id": "50%", "mq-headers": "%x"}
    const mq::Message raw = Decoded(WithProperties(6,
                                                   "\xA1\x0Bmq-reply-to\xA1\x04"
                                                   "100%"
                                                   "\xA1\x05mq-id\xA1\x03"
                                                   "50%"
                                                   "\xA1\x0Amq-headers\xA1\x02%x"sv));
    CHECK(raw.reply_to == "100%");
    CHECK(raw.id == "50%");
    CHECK(raw.headers.empty());
    CHECK(raw.body == "body");
    // {"k": [], symbol "s": "v", 7: true, "n": null, "z": "last"}
    const mq::Message odd = Decoded(WithProperties(
        10, "\xA1\x01k\x45\xA3\x01s\xA1\x01v\x54\x07\x41\xA1\x01n\x40\xA1\x01z\xA1\x04last"sv));
    CHECK(odd.body == "body");
    CHECK(mq::FindHeader(odd, "s") == "v");
    CHECK(mq::FindHeader(odd, "7") == "true");
    CHECK(mq::FindHeader(odd, "k").has_value());
    CHECK_FALSE(mq::FindHeader(odd, "n").has_value());
    CHECK(mq::FindHeader(odd, "z") == "last");
    // A message-id that is a symbol, which no message-id may be.
    CHECK(Decoded({'\0', '\x53', '\x73', '\xC0', '\x04', '\x01', '\xA3', '\x01', 'k', '\0', '\x53',
                   '\x75', '\xA0', '\x01', 'b'})
              .body == "b");
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

TEST_CASE("ActiveMQ management: the queues of an address are counted together", "[activemq]") {
    using mq::activemq::QueuesBy;
    using mq::activemq::ReadQueueList;
    const std::string body =
        R"(["{\"data\":[{\"name\":\"a\",\"address\":\"t\",\"messageCount\":\"4\",\"consumerCount\":\"0\"},)"
        R"({\"name\":\"b\",\"address\":\"t\",\"messageCount\":\"1\",\"consumerCount\":\"2\"},)"
        R"({\"name\":\"c\",\"address\":\"u\",\"messageCount\":\"8\",\"consumerCount\":\"8\"}],)"
        R"(\"count\":3}"])";
    const auto state = ReadQueueList(body, "t", QueuesBy::kAddress);
    REQUIRE(state);
    CHECK(state->messages == 5);
    CHECK(state->consumers == 2);
    CHECK_FALSE(ReadQueueList(body, "a", QueuesBy::kAddress));
    CHECK(Contains(mq::activemq::QueueListArguments("t", QueuesBy::kAddress), "address"));
}

TEST_CASE("ActiveMQ management: a name is quoted so that it is read as itself", "[activemq]") {
    using mq::activemq::QueueListArguments;
    CHECK(QueueListArguments("a\"b") ==
          R"(["{\"field\":\"name\",\"operation\":\"EQUALS\",\"value\":\"a\\\"b\"}",1,100])");
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
    CHECK(in_flight.OldestExpired() == now + 1min);
    CHECK(in_flight.Settle(late).publication == nullptr);
    CHECK_FALSE(in_flight.Full());
    CHECK_FALSE(in_flight.OldestExpired());
}

TEST_CASE("ActiveMQ in flight: a broker that settles all but one does not make it grow without end",
          "[activemq]") {
    InFlight in_flight{2};
    const auto stuck = in_flight.Add(Pending{MakePublication("stuck"), nullptr}, 0);
    std::size_t others = 0;
    for (; !in_flight.Full() && others < 1000; ++others) {
        const auto number = in_flight.Add(Pending{MakePublication("other"), nullptr}, 0);
        CHECK(in_flight.Settle(number).publication != nullptr);
    }
    CHECK(others < 100);
    CHECK(in_flight.Size() == 1);
    CHECK(in_flight.Settle(stuck).publication->message.body == "stuck");
    CHECK_FALSE(in_flight.Full());
    CHECK(in_flight.Size() == 0);
}

TEST_CASE("ActiveMQ in flight: a link that is gone gives back its own, in their order", "[activemq]") {
    mq::activemq::Route one{*mq::test::MakeDestination("one"), Flavor::kArtemis, {}};
    mq::activemq::Route two{*mq::test::MakeDestination("two"), Flavor::kArtemis, {}};
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

TEST_CASE("ActiveMQ given back: a message is known again once, in its own queue", "[activemq]") {
    using mq::activemq::GivenBack;
    GivenBack given_back;
    given_back.Add(GivenBack::MarkOf("q", "m-1"));
    CHECK_FALSE(given_back.Take(GivenBack::MarkOf("q", "m-2")));
    CHECK_FALSE(given_back.Take(GivenBack::MarkOf("r", "m-1")));
    CHECK(given_back.Take(GivenBack::MarkOf("q", "m-1")));
    CHECK_FALSE(given_back.Take(GivenBack::MarkOf("q", "m-1")));
    given_back.Add(GivenBack::MarkOf("q", ""));
    CHECK_FALSE(given_back.Take(GivenBack::MarkOf("q", "")));
    for (std::size_t i = 0; i <= GivenBack::kMost; ++i) {
        given_back.Add(GivenBack::MarkOf("q", std::to_string(i)));
    }
    CHECK_FALSE(given_back.Take(GivenBack::MarkOf("q", "0")));
    CHECK(given_back.Take(GivenBack::MarkOf("q", "1")));
}

TEST_CASE(
    "ActiveMQ: a consumer that closes in the turn that loses the connection leaves nothing behind",
    "[activemq]") {
    FakeBroker broker{OneMessageEach()};
    Connected client{broker.Url()};
    const auto first = std::make_shared<RecordingReceiver>(Receive::kHold);
    auto closing = client.Subscribe(Queue("a"), "g", first, 10);
    REQUIRE(first->WaitForHeld(1));
    // Holds the adapter's thread in the middle of a turn.
    std::latch inside{1};
    std::latch go_on{1};
    const auto second = std::make_shared<RecordingReceiver>([&, begun = false](auto) mutable {
        if (std::exchange(begun, true)) return;
        inside.count_down();
        go_on.wait();
    });
    const auto other = client.Subscribe(Queue("b"), "g", second, 10);
    inside.wait();
    broker.HangUp();
    closing->Close(mq::backend::Clock::now());
    closing.reset();
    go_on.count_down();
    REQUIRE(client.log.WaitForLine("reconnecting"));
    auto held = first->TakeHeld();
    REQUIRE(held.size() == 1);
    CHECK(held[0]->Stale());
    held[0]->Settle();
    // The loop goes on.
    const auto third = std::make_shared<RecordingReceiver>();
    const auto next = client.Subscribe(Queue("c"), "g", third, 10);
    CHECK(third->WaitForMessages(1));
}

TEST_CASE("ActiveMQ: what a lost connection has given back is redelivered", "[activemq]") {
    FakeBroker broker{OneMessageEach()};
    Connected client{broker.Url()};
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.Subscribe(Queue("a"), "g", receiver, 10);
    REQUIRE(receiver->WaitForHeld(1));
    broker.HangUp();
    REQUIRE(receiver->WaitForMessages(2));
    // The broker counts no delivery.
    CHECK_FALSE(receiver->Messages()[0].redelivered);
    CHECK(receiver->Messages()[1].redelivered);
}

TEST_CASE("ActiveMQ: a delivery without a message costs the connection and not the process",
          "[activemq]") {
    FakeBroker::Script script;
    script.on_credit = [first = true](proton::sender& sender) mutable {
        if (!std::exchange(first, false)) {
            sender.send(proton::message{proton::binary{"hello"}});
            return;
        }
        using mq::activemq::detail::Engine;
        using mq::activemq::detail::EngineFunction;
        pn_link_t* const link = Engine<proton::link>{sender}.Get();
        EngineFunction<decltype(pn_delivery)>("pn_delivery")(link, pn_delivery_tag_t{1, "t"});
        EngineFunction<decltype(pn_link_advance)>("pn_link_advance")(link);
    };
    FakeBroker broker{std::move(script)};
    Connected client{broker.Url()};
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(Queue("a"), "g", receiver, 10);
    CHECK(receiver->WaitForMessages(1));
    CHECK(client.log.WaitForLine("no delivery pending"));
}

TEST_CASE("ActiveMQ: what is thrown on its thread costs a connection and not the process",
          "[activemq]") {
    FakeBroker broker{OneMessageEach()};
    mq::test::RecordingSink sink;
    mq::test::RecordingLog log;
    const auto throws = [write = log.Sink(), done = false](mq::LogLevel level,
                                                           std::string_view line) mutable {
        write(level, line);
        if (Contains(line, "reconnecting") && !std::exchange(done, true)) throw std::bad_alloc{};
    };
    const auto backend = mq::test::MakeBackend(broker.Url(), sink, {}, throws);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = backend->Subscribe({Queue("a"), "g", 10}, receiver);
    REQUIRE(receiver->WaitForHeld(1));
    broker.HangUp();
    CHECK(receiver->WaitForMessages(2));
}

TEST_CASE("ActiveMQ: the reason of a rejection is told", "[activemq]") {
    using mq::ErrorCode;
    const auto error_of = [](const char* condition) {
        FakeBroker broker{Rejecting(condition)};
        Connected client{broker.Url()};
        const mq::Error* const error = client.Send(Queue("a"), "m");
        REQUIRE(error != nullptr);
        CHECK(error->outcome() == mq::Outcome::kNotSent);
        INFO(error->what());
        CHECK(Contains(error->what(), "not this one"));
        return error->code();
    };
    CHECK(error_of("amqp:unauthorized-access") == ErrorCode::kAccessDenied);
    CHECK(error_of("amqp:link:message-size-exceeded") == ErrorCode::kTooLarge);
    CHECK(error_of("amqp:internal-error") == ErrorCode::kRefused);
}

TEST_CASE("ActiveMQ: a message that is larger than the broker takes is not sent", "[activemq]") {
    using mq::activemq::detail::Engine;
    using mq::activemq::detail::EngineFunction;
    FakeBroker::Script script;
    script.on_publisher = [](proton::receiver& receiver) {
        EngineFunction<decltype(pn_link_set_max_message_size)>("pn_link_set_max_message_size")(
            Engine<proton::link>{receiver}.Get(), 100);
    };
    script.on_published = [](proton::delivery& delivery) { delivery.accept(); };
    FakeBroker broker{std::move(script)};
    Connected client{broker.Url()};
    const mq::Error* const error = client.Send(Queue("a"), std::string(101, 'x'));
    REQUIRE(error != nullptr);
    CHECK(error->code() == mq::ErrorCode::kTooLarge);
    CHECK(error->outcome() == mq::Outcome::kNotSent);
    CHECK(client.Send(Queue("a"), "m") == nullptr);
}

TEST_CASE("ActiveMQ: a Classic that answers no questions is left alone for a moment, and told why",
          "[activemq]") {
    std::atomic<int> questions = 0;
    FakeBroker::Script script;
    script.product = "ActiveMQ";
    script.on_published = [&](proton::delivery& delivery) {
        ++questions;
        delivery.accept();
    };
    FakeBroker broker{std::move(script)};
    Connected client{broker.Url("activemq")};
    REQUIRE(client.Send(Queue("a"), "m") == nullptr);
    const auto reason = [&] {
        return client.backend->CheckBacklog(*Queue("a"), "g", After(500ms)).reason;
    };
    const int sent = questions;
    // A question that goes out too late to be answered says nothing of the broker: until one is in
    // time.
    REQUIRE(Eventually([&] {
        const std::string said = reason();
        return questions > sent && Contains(said, "does the broker have its statisticsBrokerPlugin?") &&
               !Contains(said, "asked again");
    }));
    const int asked = questions;
    CHECK(Contains(reason(), "asked again in"));
    CHECK(questions == asked);
    const auto begin = mq::backend::Clock::now();
    while (questions == asked && mq::backend::Clock::now() < begin + mq::test::kPatience) {
        static_cast<void>(reason());
    }
    CHECK(questions > asked);
}

TEST_CASE("ActiveMQ: no destination keeps the window from another one", "[activemq]") {
    std::mutex mutex;
    std::vector<std::string> received;  // guarded by mutex
    FakeBroker::Script script;
    script.on_published = [&](proton::delivery& delivery) {
        const std::lock_guard lock{mutex};
        received.push_back(delivery.receiver().target().address());
        delivery.accept();
    };
    FakeBroker broker{std::move(script)};
    Connected client{broker.Url(), {{"confirm_window", "1"}}};
    constexpr std::size_t kEach = 50;
    const auto busy = client.backend->MakePublisher(Queue("busy"));
    const auto other = client.backend->MakePublisher(Queue("other"));
    for (std::size_t i = 0; i < kEach; ++i) busy->Publish(MakePublication("m"));
    for (std::size_t i = 0; i < kEach; ++i) other->Publish(MakePublication("m"));
    REQUIRE(client.sink.WaitForConfirmed(2 * kEach));
    const std::lock_guard lock{mutex};
    const auto last_of = [&](const char* address) {
        return std::find(received.rbegin(), received.rend(), address) - received.rbegin();
    };
    // Neither is through before the other has begun: both end close to the end.
    CHECK(last_of("busy") < static_cast<std::ptrdiff_t>(kEach / 2));
    CHECK(last_of("other") < static_cast<std::ptrdiff_t>(kEach / 2));
}

TEST_CASE("ActiveMQ: a link that stands for a moment only is tried again more and more slowly",
          "[activemq]") {
    std::atomic<int> links = 0;
    FakeBroker::Script script;
    script.on_credit = [&](proton::sender& sender) {
        // Not the answers to questions.
        if (sender.source().dynamic()) return;
        ++links;
        sender.close();
    };
    FakeBroker broker{std::move(script)};
    Connected client{broker.Url()};
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(Queue("a"), "g", receiver, 10);
    // 100 ms at first, twice as long each time: with the sixth, more than a second and a half.
    const auto begin = mq::backend::Clock::now();
    while (links < 6 && mq::backend::Clock::now() < begin + mq::test::kPatience) {
        REQUIRE(receiver->WaitForStale(static_cast<std::size_t>(links) + 1));
    }
    CHECK(links >= 6);
    CHECK(mq::backend::Clock::now() - begin > 1500ms);
}

TEST_CASE("ActiveMQ: what the broker never settles does not keep its place for ever", "[activemq]") {
    FakeBroker::Script script;
    script.on_published = [received = 0](proton::delivery& delivery) mutable {
        if (++received > 2) delivery.accept();
    };
    FakeBroker broker{std::move(script)};
    Connected client{broker.Url(), {{"confirm_window", "2"}, {"heartbeat", "1s"}}};
    for (int i = 0; i < 2; ++i) {
        const mq::Error* const error = client.Send(Queue("a"), mq::test::MakeMessage("m"), 1s);
        REQUIRE(error != nullptr);
        CHECK(error->outcome() == mq::Outcome::kUnknown);
    }
    CHECK(client.Send(Queue("a"), "next") == nullptr);
    CHECK(client.log.WaitForLine("does not say what became"));
}

TEST_CASE("ActiveMQ: a send that fails before the first attempt says how far that has come",
          "[activemq]") {
    // It takes connections and says nothing.
    const SilentPort port;
    Connected client{"artemis://" + port.Host()};
    const mq::Error* const error = client.Send(Queue("a"), mq::test::MakeMessage("m"), 300ms);
    REQUIRE(error != nullptr);
    INFO(error->what());
    CHECK(error->outcome() == mq::Outcome::kNotSent);
    CHECK(Contains(error->what(), port.Host()));
    CHECK(Contains(error->what(), "no answer yet to TLS, login or open"));
}

TEST_CASE("ActiveMQ: of several hosts, each says why it cannot be had", "[activemq]") {
    const RefusingPort one;
    const RefusingPort two;
    Connected client{"artemis://" + one.Host() + "," + two.Host()};
    client.backend->MakePublisher(Queue("a"))->Publish(MakePublication("m"));
    REQUIRE(client.log.WaitForLine("; Artemis"));
    const mq::Error* const error = client.Send(Queue("a"), mq::test::MakeMessage("m"), 10ms);
    REQUIRE(error != nullptr);
    INFO(error->what());
    CHECK(Contains(error->what(), one.Host() + ": Connection refused"));
    CHECK(Contains(error->what(), two.Host() + ": Connection refused"));
}
