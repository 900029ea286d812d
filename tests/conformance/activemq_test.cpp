/// @file activemq_test.cpp
/// The ActiveMQ adapter on brokers that run already, each case on both where it does not say which:
/// what is native to them, what the guards are told, and what goes wrong.
#include "../support/activemq_fixture.hpp"
#include "../support/amqp_native.hpp"
#include "../support/catch.hpp"
#include "../support/refusing_port.hpp"

#include <malloc.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using mq::ErrorCode;
using mq::Outcome;
using mq::backend::Backlog;
using mq::backend::Listening;
using mq::test::After;
using mq::test::MakeDestination;
using mq::test::MakePublication;
using mq::test::NativeAmqp;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using mq::test::RefusingPort;
using mq::test::UniqueId;
using namespace mq::test::activemq;
using namespace std::chrono_literals;

/// Calls the body with the kind and the URL of each broker that is there.
template <typename Body>
void OnEach(Body body) {
    for (const std::string kind : {kClassic, kArtemis}) {
        const std::string url = BrokerUrl(VariableOf(kind));
        if (url.empty()) continue;
        INFO("on " << kind);
        body(kind, url);
    }
}

std::string With(const std::string& url, const std::string& from, const std::string& to) {
    const auto at = url.find(from);
    REQUIRE(at != std::string::npos);
    return std::string{url}.replace(at, from.size(), to);
}

std::string HostOf(const std::string& url) {
    const mq::HostPort host = mq::ParseUrl(url).hosts.at(0);
    return host.host + ":" + std::to_string(host.port);
}

/// A queue's address as a link names it: Classic tells it by its prefix.
std::string QueueOn(const std::string& kind, const std::string& name) {
    return kind == kClassic ? "queue://" + name : name;
}

}  // namespace

TEST_CASE("ActiveMQ: what is sent is native to other programs", "[activemq][artemis]") {
    OnEach([](const std::string& kind, const std::string& url) {
        Connected client{url};
        const std::string name = UniqueId("plain");
        mq::Message message = mq::test::MakeMessage("a body", "customer-42");
        message.headers = {{"kind", "new"}};
        message.content_type = "text/plain";
        message.correlation_id = "c-7";
        REQUIRE(client.Send(MakeDestination("orders", "queue://" + name), message) == nullptr);
        const proton::message got = NativeAmqp{url}.Receive(QueueOn(kind, name));
        CHECK(got.body().type() == proton::BINARY);
        CHECK(got.inferred());
        CHECK(got.durable());
        if (kind == "artemis") {
            CHECK(proton::get<std::string>(got.id()) == message.id);
        } else {
            CHECK(proton::get<std::string>(got.properties().get("mq-id")) == message.id);
        }
        CHECK(got.group_id() == "customer-42");
        CHECK(got.content_type() == "text/plain");
        CHECK(proton::get<std::string>(got.correlation_id()) == "c-7");
        CHECK(proton::get<std::string>(got.properties().get("kind")) == "new");
        CHECK_FALSE(got.properties().exists("mq-headers"));
    });
}

TEST_CASE("ActiveMQ: messages of other programs are read", "[activemq][artemis]") {
    OnEach([](const std::string& kind, const std::string& url) {
        Connected client{url};
        const std::string name = UniqueId("plain");
        NativeAmqp native{url};
        const auto send = [&](const proton::message& message) {
            native.Send(QueueOn(kind, name), "queue", message);
        };
        proton::message text{std::string{"text"}};
        text.properties().put("number", std::int32_t{42});
        text.properties().put("big", std::int64_t{1} << 40);
        text.properties().put("truth", true);
        text.properties().put("half", 0.5);
        text.id(std::uint64_t{77});
        text.group_id("k");
        text.durable(true);
        send(text);
        send(proton::message{proton::binary{"bytes"}});
        send(proton::message{std::int32_t{5}});
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer =
            client.Subscribe(MakeDestination("orders", "queue://" + name), "g", receiver);
        REQUIRE(receiver->WaitForMessages(3));
        const std::vector<mq::Message> got = receiver->Messages();
        CHECK(receiver->Bodies() == std::vector<std::string>{"text", "bytes", "5"});
        CHECK(got[0].id == "77");
        CHECK(got[0].key == "k");
        CHECK(mq::FindHeader(got[0], "number") == "42");
        CHECK(mq::FindHeader(got[0], "big") == "1099511627776");
        CHECK(mq::FindHeader(got[0], "truth") == "true");
        CHECK(mq::FindHeader(got[0], "half") == "0.5");
        CHECK(got[1].headers.empty());
    });
}

TEST_CASE("ActiveMQ: a body is the same bytes whatever its content type says", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{url};
        const Destination destination = Fresh();
        std::string every_byte;
        for (int i = 0; i < 256; ++i) every_byte += static_cast<char>(i);
        std::vector<mq::Message> sent;
        for (const char* type :
             {"", "text/plain", "text/plain;charset=utf-8", "text/plain; charset=iso-8859-1",
              "text/plain; charset=utf-16", "text/plain; charset=us-ascii", "text/xml",
              "application/json", "application/xml", "application/vnd.x+json", "application/xhtml+xml",
              "application/javascript", "application/octet-stream", "image/png",
              "application/x-java-serialized-object", "nonsense", "TEXT/PLAIN"}) {
            for (const std::string& body :
                 {std::string{}, std::string{"plain"}, std::string{"Grüße ☃"},
                  std::string{"\xEF\xBB\xBF with a mark"}, std::string{"\xF0\x9F\x98\x80 smiles"},
                  std::string{"a\0b", 3}, std::string{"Zo\xEB"}, std::string{"\xED\xA0\xBD half"},
                  std::string{"\xFE\xFFue"}, std::string{"{\"text\":\"☃\\u0000\"}"}, every_byte}) {
                sent.push_back(mq::test::MakeMessage(body));
                sent.back().content_type = type;
            }
        }
        const auto publisher = client.backend->MakePublisher(destination);
        for (const mq::Message& message : sent) publisher->Publish(MakePublication(message));
        REQUIRE(client.sink.WaitForConfirmed(sent.size()));
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(destination, "g", receiver);
        REQUIRE(receiver->WaitForMessages(sent.size()));
        const std::vector<mq::Message> got = receiver->Messages();
        for (std::size_t i = 0; i < sent.size(); ++i) {
            INFO("number " << i << " of " << sent[i].content_type);
            CHECK(got[i].body == sent[i].body);
            CHECK(got[i].content_type == sent[i].content_type);
        }
    });
}

TEST_CASE("ActiveMQ: no header makes another message of it", "[activemq][artemis]") {
    OnEach([](const std::string& kind, const std::string& url) {
        Connected client{url};
        const std::string name = UniqueId("plain");
        const Destination queue = MakeDestination("orders", "queue://" + name);
        mq::Message message = mq::test::MakeMessage("a body", "customer-42");
        message.correlation_id = "c-7";
        message.headers = {{"JMSCorrelationID", "other"},
                           {"JMSDeliveryMode", "1"},
                           {"JMSDestination", "queue://other"},
                           {"JMSExpiration", "1"},
                           {"JMSMessageID", "ID:other"},
                           {"JMSPriority", "high"},
                           {"JMSRedelivered", "true"},
                           {"JMSReplyTo", "other"},
                           {"JMSTimestamp", "5"},
                           {"JMSType", "other"},
                           {"JMSXDeliveryCount", "5"},
                           {"JMSXGroupID", "other"},
                           {"JMSXGroupSeq", "-1"},
                           {"JMSXUserID", "other"},
                           {"JMS_AMQP_FirstAcquirer", "5"},
                           {"JMS_AMQP_MA_x", "5"},
                           {"JMS_AMQP_NATIVE", "true"},
                           {"AMQ_SCHEDULED_CRON", "* * * * *"},
                           {"AMQ_SCHEDULED_DELAY", "600000"},
                           {"_AMQ_DUPL_ID", "once"},
                           {"_AMQ_GROUP_ID", "other"},
                           {"_AMQ_LVQ_NAME", "once"},
                           {"_AMQ_SCHED_DELIVERY", "99999999999999"},
                           {"kind", "new"}};
        REQUIRE(client.Send(queue, message) == nullptr);
        message.id = UniqueId();
        REQUIRE(client.Send(queue, message) == nullptr);
        const proton::message native = NativeAmqp{url}.Receive(QueueOn(kind, name));
        CHECK(native.durable());
        CHECK(native.ttl() == proton::duration{0});
        CHECK(native.priority() == 4);
        CHECK(native.delivery_count() == 0);
        CHECK(native.properties().size() == (kind == kClassic ? 3 : 2));
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(queue, "g", receiver);
        REQUIRE(receiver->WaitForMessages(1));
        message.topic = "orders";
        CHECK(receiver->Messages()[0] == message);
    });
}

TEST_CASE("ActiveMQ: every group of a queue reads the same queue", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{url};
        const Destination queue = MakeDestination("orders", "queue://" + UniqueId("plain"));
        for (int i = 0; i < 20; ++i) REQUIRE(client.Send(queue, "m") == nullptr);
        const auto one = std::make_shared<RecordingReceiver>(Receive::kHold);
        const auto first = client.SubscribeActive(queue, "one", one, 10);
        REQUIRE(one->WaitForHeld(10));
        const auto two = std::make_shared<RecordingReceiver>();
        const auto second = client.Subscribe(queue, "two", two, 10);
        CHECK(two->WaitForMessages(10));
        // What is settled reaches the broker a little later.
        std::uint64_t left = 0;
        for (const auto deadline = After(); left != 10 && mq::backend::Clock::now() < deadline;) {
            left = client.backend->CheckBacklog(*queue, "two", After()).messages;
        }
        CHECK(left == 10);
    });
}

TEST_CASE("ActiveMQ: a topic by its full name is the same one", "[activemq]") {
    const std::string url = BrokerUrl(VariableOf(kClassic));
    if (url.empty()) return;
    Connected client{url};
    const std::string name = UniqueId("orders");
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(MakeDestination("orders", name), "g", receiver);
    REQUIRE(client.Send(MakeDestination("orders", "topic://VirtualTopic." + name), "m") == nullptr);
    CHECK(receiver->WaitForMessages(1));
    // One that feeds no queues has nothing for a group.
    const Destination plain = MakeDestination("orders", "topic://" + name);
    CHECK(client.Send(plain, "to nobody") == nullptr);
    const auto refusal = [&](const Destination& destination, const std::string& group) -> std::string {
        try {
            client.Subscribe(destination, group, receiver);
        } catch (const mq::Error& error) {
            return error.what();
        }
        return {};
    };
    CHECK(Contains(refusal(plain, "g"), "no virtual topic"));
    CHECK(Contains(refusal(Fresh(), "a.b"), "has a dot in it"));
}

TEST_CASE("ActiveMQ: no more than the prefetch is outstanding", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{url};
        const Destination destination = Fresh();
        const auto publisher = client.backend->MakePublisher(destination);
        for (int i = 0; i < 50; ++i) publisher->Publish(MakePublication("m"));
        REQUIRE(client.sink.WaitForConfirmed(50));
        const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
        const auto consumer = client.Subscribe(destination, "g", receiver, 7);
        for (std::size_t settled = 0; settled < 49; settled += 7) {
            REQUIRE(receiver->WaitForHeld(7));
            receiver->SettleHeld();
        }
        REQUIRE(receiver->WaitForHeld(1));
        CHECK(receiver->MostHeld() == 7);
    });
}

TEST_CASE("ActiveMQ: what is unsettled when a consumer closes is delivered again",
          "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{url};
        const Destination destination = Fresh();
        for (const char* body : {"a", "b", "c", "d"})
            REQUIRE(client.Send(destination, body) == nullptr);
        const auto first = std::make_shared<RecordingReceiver>(Receive::kHold);
        auto consumer = client.Subscribe(destination, "g", first);
        REQUIRE(first->WaitForHeld(4));
        auto held = first->TakeHeld();
        // Out of order, with a gap.
        held[2]->Settle();
        held[0]->Settle();
        consumer->Stop();
        held[3]->Settle();
        held[3]->Settle();
        consumer->Close(After());
        CHECK(held[1]->Stale());
        held[1]->Settle();
        const auto second = std::make_shared<RecordingReceiver>();
        const auto again = client.Subscribe(destination, "g", second);
        REQUIRE(second->WaitForMessages(1));
        CHECK(second->Bodies() == std::vector<std::string>{"b"});
    });
}

TEST_CASE("ActiveMQ: a consumer that has stopped leaves what comes then to others",
          "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{url};
        const Destination destination = Fresh();
        const auto first = std::make_shared<RecordingReceiver>(Receive::kHold);
        const auto consumer = client.SubscribeActive(destination, "g", first, 10);
        REQUIRE(client.Send(destination, "held") == nullptr);
        REQUIRE(first->WaitForHeld(1));
        consumer->Stop();
        const auto second = std::make_shared<RecordingReceiver>();
        const auto other = client.SubscribeActive(destination, "g", second, 10);
        for (int i = 0; i < 20; ++i) REQUIRE(client.Send(destination, "later") == nullptr);
        // Classic may have chosen the first one for a message just before.
        CHECK(second->WaitForMessages(19));
        CHECK(first->Count() == 1);
        first->DropHeld();
        consumer->Close(After());
        CHECK(second->WaitForMessages(21));
    });
}

TEST_CASE("ActiveMQ: a group listens when somebody consumes what it has", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{url};
        Connected asking{url};
        const Destination destination = Fresh({});
        const auto listening = [&](const std::string& group) {
            return asking.backend->CheckListening(*destination, group, After());
        };
        // The first question connects.
        REQUIRE(asking.Send(Fresh({}), "m") == nullptr);
        CHECK(listening("g").answer == Listening::Answer::kNo);
        CHECK(Contains(listening("g").reason, "there is no queue"));
        CHECK(listening("").answer == Listening::Answer::kNo);
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(destination, "g", receiver);
        CHECK(listening("g").answer == Listening::Answer::kYes);
        CHECK(listening("other").answer == Listening::Answer::kNo);
        // Also by a client that has no part in it.
        CHECK(listening("").answer == Listening::Answer::kYes);
        CHECK(client.backend->CheckListening(*destination, "", After()).answer ==
              Listening::Answer::kYes);
        consumer->Close(After());
        CHECK(listening("g").answer == Listening::Answer::kNo);
        CHECK(Contains(listening("g").reason, "nobody consumes"));
        CHECK(listening("").answer == Listening::Answer::kNo);
        CHECK(Contains(listening("").reason, "nobody consumes"));
    });
}

TEST_CASE("ActiveMQ: a backlog counts what is ready and what anybody holds", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{url};
        Connected asking{url};
        const Destination destination = Fresh();
        REQUIRE(asking.Send(Fresh({}), "m") == nullptr);
        const auto backlog = [&] { return asking.backend->CheckBacklog(*destination, "g", After()); };
        // Members of the group may read a queue by another name.
        CHECK(backlog().answer == Backlog::Answer::kDrained);
        CHECK_FALSE(backlog().exact);
        CHECK(Contains(backlog().reason, "there is no queue"));
        for (int i = 0; i < 5; ++i) REQUIRE(client.Send(destination, "m") == nullptr);
        CHECK(backlog().answer == Backlog::Answer::kNotDrained);
        CHECK(backlog().messages == 5);
        const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
        const auto consumer = client.Subscribe(destination, "g", receiver, 3);
        REQUIRE(receiver->WaitForHeld(3));
        CHECK(backlog().messages == 5);
        receiver->Set(Receive::kSettle);
        receiver->SettleHeld();
        REQUIRE(receiver->WaitForMessages(5));
        // A settlement is not answered: the broker has it a moment later.
        const auto deadline = After();
        while (backlog().answer != Backlog::Answer::kDrained && mq::backend::Clock::now() < deadline) {
        }
        CHECK(backlog().answer == Backlog::Answer::kDrained);
        CHECK(backlog().exact);
    });
}

TEST_CASE("ActiveMQ: refused credentials fail what waits at once", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{With(url, mq::ParseUrl(url).password, "wrong-word")};
        const Destination destination = Fresh();
        const mq::Error* const error =
            client.Send(destination, mq::test::MakeMessage("m"), std::chrono::hours{1});
        REQUIRE(error != nullptr);
        INFO(error->what());
        CHECK(error->code() == ErrorCode::kAccessDenied);
        CHECK(error->outcome() == Outcome::kNotSent);
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(destination, "g", receiver);
        CHECK(receiver->WaitForPhase(*consumer, Phase::kRefused));
        CHECK(client.backend->CheckListening(*destination, "g", After()).answer ==
              Listening::Answer::kUnknown);
        for (const auto& [level, line] : client.log.Lines()) CHECK_FALSE(Contains(line, "wrong-word"));
        CHECK_FALSE(Contains(error->what(), "wrong-word"));
    });
}

TEST_CASE("ActiveMQ: what does not exist and may not be made is not found", "[artemis]") {
    const std::string url = BrokerUrl(VariableOf(kArtemis));
    const std::string prefix = BrokerUrl(VariableOf(kArtemis), "declared-prefix");
    if (url.empty() || prefix.empty()) return;
    Connected client{url};
    const Destination nowhere = MakeDestination("orders", UniqueId(prefix));
    const mq::Error* const error =
        client.Send(nowhere, mq::test::MakeMessage("m"), std::chrono::hours{1});
    REQUIRE(error != nullptr);
    INFO(error->what());
    CHECK(error->code() == ErrorCode::kNotFound);
    CHECK(error->outcome() == Outcome::kNotSent);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(nowhere, "g", receiver);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    INFO(consumer->State().error->what());
    CHECK(consumer->State().error->code() == ErrorCode::kNotFound);
}

#if defined(__GLIBC__) && (__GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 33))
TEST_CASE("ActiveMQ: a consumer that has come and gone leaves no memory behind", "[artemis]") {
    const std::string url = BrokerUrl(VariableOf(kArtemis));
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const auto come_and_go = [&](std::size_t times) {
        for (std::size_t i = 0; i < times; ++i) {
            const auto receiver = std::make_shared<RecordingReceiver>();
            client.SubscribeActive(destination, "g", receiver)->Close(After());
        }
        // A sanitizer counts nothing.
        return mallinfo2().uordblks;
    };
    constexpr std::size_t kTimes = 200;
    const std::size_t before = come_and_go(50);
    const std::size_t after = come_and_go(kTimes);
    CHECK(after < before + kTimes * 1000);
}
#endif

TEST_CASE("ActiveMQ: a broker that cannot be reached fails a message at its deadline",
          "[activemq][artemis]") {
    const RefusingPort port;
    Connected client{"artemis://mq:secret@" + port.Host()};
    const Destination destination = Fresh();
    const auto begin = mq::backend::Clock::now();
    const mq::Error* const error = client.Send(destination, mq::test::MakeMessage("m"), 300ms);
    CHECK(mq::backend::Clock::now() >= begin + 300ms);
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kUnavailable);
    CHECK(error->outcome() == Outcome::kNotSent);
    CHECK(Contains(error->what(), "Connection refused"));
    CHECK(client.backend->CheckBacklog(*destination, "g", After()).answer == Backlog::Answer::kUnknown);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    CHECK(receiver->WaitForPhase(*consumer, Phase::kRetrying));
}

TEST_CASE("ActiveMQ: several hosts are tried in turn", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        const RefusingPort port;
        Connected client{With(url, HostOf(url), port.Host() + "," + HostOf(url))};
        CHECK(client.Send(Fresh(), "m") == nullptr);
    });
}

TEST_CASE("ActiveMQ: two hundred subscriptions share one connection", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        constexpr std::size_t kCount = 200;
        Connected client{url};
        const auto receiver = std::make_shared<RecordingReceiver>();
        std::vector<std::unique_ptr<mq::backend::Consumer>> consumers;
        std::vector<Destination> destinations;
        for (std::size_t i = 0; i < kCount; ++i) {
            destinations.push_back(Fresh());
            consumers.push_back(client.Subscribe(destinations.back(), "g", receiver));
        }
        for (const auto& consumer : consumers) {
            REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
        }
        for (const Destination& destination : destinations) {
            client.backend->MakePublisher(destination)->Publish(MakePublication("m"));
        }
        CHECK(receiver->WaitForDistinct(kCount));
    });
}

TEST_CASE("ActiveMQ: heartbeats keep an idle connection whatever its handlers do",
          "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        // Long enough for a machine on which threads wait for seconds.
        Connected client{url, {{"heartbeat", "4s"}}};
        const Destination destination = Fresh();
        REQUIRE(client.Send(destination, "one") == nullptr);
        const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
        const auto consumer = client.SubscribeActive(destination, "g", receiver);
        REQUIRE(receiver->WaitForHeld(1));
        // Both ends would give the connection up after two heartbeats of silence.
        CHECK_FALSE(receiver->WaitForStale(1, 10s));
        receiver->SettleHeld();
        REQUIRE(client.Send(destination, "two") == nullptr);
        REQUIRE(receiver->WaitForHeld(1));
        for (const auto& [level, line] : client.log.Lines())
            CHECK_FALSE(Contains(line, "reconnecting"));
    });
}

TEST_CASE("ActiveMQ: closing waits for what is in flight, and a later publish comes back closed",
          "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        Connected client{url};
        const Destination destination = Fresh();
        const auto publisher = client.backend->MakePublisher(destination);
        for (int i = 0; i < 1000; ++i) publisher->Publish(MakePublication("m"));
        client.backend->Close(After());
        CHECK(client.sink.Confirmed() == 1000);
        publisher->Publish(MakePublication("late"));
        REQUIRE(client.sink.WaitForFinished(1001));
        REQUIRE(client.sink.At(1000).error != nullptr);
        CHECK(client.sink.At(1000).error->code() == ErrorCode::kClosed);
        CHECK(client.sink.At(1000).error->outcome() == Outcome::kNotSent);
    });
}

TEST_CASE("ActiveMQ: consumers and messages outlive their backend harmlessly", "[activemq][artemis]") {
    OnEach([](const std::string&, const std::string& url) {
        const Destination destination = Fresh();
        const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
        std::unique_ptr<mq::backend::Consumer> consumer;
        std::vector<std::unique_ptr<mq::backend::Inbound>> held;
        {
            Connected client{url};
            REQUIRE(client.Send(destination, "one") == nullptr);
            consumer = client.SubscribeActive(destination, "g", receiver);
            REQUIRE(receiver->WaitForHeld(1));
            held = receiver->TakeHeld();
        }
        CHECK(held[0]->Stale());
        held[0]->Settle();
        CHECK(consumer->State().phase == Phase::kRetrying);
        consumer->Stop();
        consumer->Close(After());
    });
}

TEST_CASE("ActiveMQ: by TLS, the certificate and the host name are checked", "[activemq][artemis]") {
    for (const std::string kind : {kClassic, kArtemis}) {
        const std::string url = BrokerUrl(VariableOf(kind), "url-tls");
        if (url.empty()) continue;
        INFO("on " << kind);
        const std::filesystem::path broker = *mq::test::FromEnvironment(VariableOf(kind).c_str());
        const std::string trusted = (broker / "tls" / "ca.pem").string();
        const Destination destination = Fresh();

        Connected client{url, {{"tls.ca", trusted}}};
        mq::Message large = mq::test::MakeMessage(std::string(1 << 20, 'x'), "key");
        large.headers = {{"long", std::string(60'000, 'v')}};
        REQUIRE(client.Send(destination, large) == nullptr);
        const auto publisher = client.backend->MakePublisher(destination);
        for (int i = 0; i < 500; ++i) publisher->Publish(MakePublication("m"));
        CHECK(client.sink.WaitForConfirmed(501));
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(destination, "g", receiver);
        REQUIRE(receiver->WaitForMessages(501));
        CHECK(receiver->Messages()[0].body == large.body);
        CHECK(receiver->Messages()[0].headers == large.headers);

        const auto refuses_the_broker = [&](Connected& stranger) {
            // However long the first attempt takes, a send then fails for its reason.
            stranger.backend->MakePublisher(destination)->Publish(MakePublication("m", "", 600s));
            REQUIRE(stranger.log.WaitForLine("certificate verify failed"));
            const mq::Error* const error =
                stranger.Send(destination, mq::test::MakeMessage("m"), 100ms);
            REQUIRE(error != nullptr);
            INFO(error->what());
            CHECK(error->outcome() == Outcome::kNotSent);
            CHECK(Contains(error->what(), "certificate verify failed"));
        };
        Connected stranger{url};
        refuses_the_broker(stranger);
        // Another name of the same host, which no certificate has.
        Connected elsewhere{With(url, "localhost", "127.1"), {{"tls.ca", trusted}}};
        refuses_the_broker(elsewhere);
        Connected careless{With(url, "localhost", "127.0.0.1"), {{"tls.verify", "false"}}};
        CHECK(careless.Send(destination, "m") == nullptr);
        CHECK(careless.log.WaitForLine("tls.verify is off"));
    }
}

TEST_CASE("ActiveMQ: a certificate of one's own needs none that is trusted where nothing is verified",
          "[artemis]") {
    ::mq::activemq::Options options;
    options.tls_verify = false;
    const auto folder = mq::test::FromEnvironment("MQ_RABBITMQ_TLS_DIR");
    if (!folder) return mq::test::SkipCase("MQ_RABBITMQ_TLS_DIR names no folder with certificates");
    options.tls_cert = *folder + "/cert.pem";
    options.tls_key = *folder + "/key.pem";
    options.tls_ca = "";
    proton::messaging_handler handler;
    const mq::Url url = mq::ParseUrl("artemiss://host");
    CHECK_NOTHROW(mq::activemq::detail::ConnectionOptions(url, options, "host", handler, ""));
    options.tls_verify = true;
    CHECK_THROWS_AS(mq::activemq::detail::ConnectionOptions(url, options, "host", handler, ""),
                    proton::error);
}

TEST_CASE("ActiveMQ: a client's certificate logs it in at Artemis", "[artemis]") {
    const std::string url = BrokerUrl(VariableOf(kArtemis), "url-mtls");
    if (url.empty()) return;
    auto folder = mq::test::FromEnvironment("MQ_ARTEMIS_TLS_DIR");
    if (!folder) folder = mq::test::FromEnvironment("MQ_RABBITMQ_TLS_DIR");
    if (!folder) return mq::test::SkipCase("MQ_RABBITMQ_TLS_DIR names no folder with certificates");
    const std::filesystem::path own = *folder;
    Connected client{url,
                     {{"tls.ca", (own / "ca.pem").string()},
                      {"tls.cert", (own / "cert.pem").string()},
                      {"tls.key", (own / "key.pem").string()}}};
    const mq::Error* const error = client.Send(Fresh(), "m");
    INFO((error != nullptr ? error->what() : ""));
    CHECK(error == nullptr);
    Connected nobody{url, {{"tls.ca", (own / "ca.pem").string()}}};
    nobody.backend->MakePublisher(Fresh())->Publish(MakePublication("m", "", 600s));
    REQUIRE(nobody.log.WaitForLine("broker"));
    const mq::Error* const refused = nobody.Send(Fresh(), mq::test::MakeMessage("m"), 100ms);
    REQUIRE(refused != nullptr);
    INFO(refused->what());
    CHECK(Contains(refused->what(), "certificate"));
}
