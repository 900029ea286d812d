/// @file kafka_test.cpp
/// The Kafka adapter: what only this broker has, and what other programs see of it. MQ_TEST_KAFKA_DIR
/// names the folder of a broker that tests/brokers/kafka.sh has started; without one, the cases that
/// librdkafka's mock cluster can serve run on that, and say so. Failures are always made on the mock.
#include "../support/catch.hpp"
#include "../support/kafka_fixture.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using mq::ErrorCode;
using mq::Outcome;
using mq::backend::Backlog;
using mq::backend::ConsumerState;
using mq::backend::Destination;
using mq::backend::Listening;
using mq::test::After;
using mq::test::MakeDestination;
using mq::test::MakeMessage;
using mq::test::MakePublication;
using mq::test::MockCluster;
using mq::test::Receive;
using mq::test::RecordingLog;
using mq::test::RecordingReceiver;
using mq::test::RecordingSink;
using mq::test::UniqueId;
using namespace mq::test::kafka;
using namespace std::chrono_literals;
using Phase = ConsumerState::Phase;

// A message as another program writes it; null is Kafka's null.
struct Foreign {
    const char* value = nullptr;
    const char* key = nullptr;
    std::vector<std::pair<const char*, const char*>> headers;
    std::int64_t timestamp_ms = 0;  // 0 means now
};

/// A program that knows nothing of this library.
class Native {
public:
    Native(const std::string& url, rd_kafka_type_t type,
           const std::vector<std::pair<std::string, std::string>>& properties = {}) {
        rd_kafka_conf_t* const conf = rd_kafka_conf_new();
        std::array<char, 256> text{};
        const auto set = [&](const std::string& name, const std::string& value) {
            if (rd_kafka_conf_set(conf, name.c_str(), value.c_str(), text.data(), text.size()) !=
                RD_KAFKA_CONF_OK) {
                throw std::runtime_error(text.data());
            }
        };
        set("bootstrap.servers", url.substr(url.find("://") + 3));
        for (const auto& [name, value] : properties) set(name, value);
        rd_kafka_conf_set_log_cb(conf, nullptr);
        rk_ = rd_kafka_new(type, conf, text.data(), text.size());
        if (rk_ == nullptr) throw std::runtime_error(text.data());
    }
    ~Native() { rd_kafka_destroy(rk_); }
    Native(const Native&) = delete;
    Native& operator=(const Native&) = delete;

    [[nodiscard]] rd_kafka_t* get() const { return rk_; }

    // Without the macros of rdkafka.h: they are GNU C.
    void Produce(const std::string& topic, const Foreign& message) const {
        std::vector<rd_kafka_vu_t> fields;
        const auto add = [&](rd_kafka_vtype_t type) -> auto& {
            fields.emplace_back().vtype = type;
            return fields.back().u;
        };
        add(RD_KAFKA_VTYPE_TOPIC).cstr = topic.c_str();
        add(RD_KAFKA_VTYPE_PARTITION).i32 = 0;
        if (message.value != nullptr) {
            add(RD_KAFKA_VTYPE_VALUE).mem = {const_cast<char*>(message.value),
                                             std::strlen(message.value)};
        }
        if (message.key != nullptr) {
            add(RD_KAFKA_VTYPE_KEY).mem = {const_cast<char*>(message.key), std::strlen(message.key)};
        }
        for (const auto& [name, value] : message.headers) {
            add(RD_KAFKA_VTYPE_HEADER).header = {
                name, value, value == nullptr ? 0 : static_cast<ssize_t>(std::strlen(value))};
        }
        add(RD_KAFKA_VTYPE_TIMESTAMP).i64 = message.timestamp_ms;
        const mq::kafka::detail::Owned<rd_kafka_error_t> failed{
            rd_kafka_produceva(rk_, fields.data(), fields.size())};
        REQUIRE(failed == nullptr);
    }

    void Flush() const { REQUIRE(rd_kafka_flush(rk_, 20'000) == RD_KAFKA_RESP_ERR_NO_ERROR); }

private:
    rd_kafka_t* rk_ = nullptr;
};

}  // namespace

TEST_CASE("Kafka: a message arrives with everything that it was sent with", "[kafka]") {
    const AnyKafka kafka;
    Client client{kafka.url(), kafka.options()};
    const auto destination = Fresh();
    mq::Message sent = MakeMessage(std::string{"a\0b\xff\n", 5}, "customer-42");
    sent.headers = {{"kind", "new"},
                    {"kind", "again"},
                    {"empty", ""},
                    {"", "no name"},
                    {"binary", std::string{"\0\x80", 2}},
                    {std::string(300, 'n'), std::string(5000, 'v')}};
    sent.content_type = "text/plain";
    sent.correlation_id = "c-1";
    sent.reply_to = "answers";
    client.backend->MakePublisher(destination)->Publish(MakePublication(sent));
    REQUIRE(client.sink.WaitForConfirmed(1));

    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, Group(), receiver);
    REQUIRE(receiver->WaitForMessages(1));
    mq::Message expected = sent;
    expected.topic = "orders";
    CHECK(receiver->Messages()[0] == expected);
}

TEST_CASE("Kafka: bodies of every size arrive byte for byte", "[kafka]") {
    const AnyKafka kafka;
    Client client{kafka.url(), kafka.options()};
    const auto destination = Fresh();
    const std::vector<std::size_t> sizes{0, 1, 999'000, 1 << 20, 3 << 20};
    std::vector<std::string> bodies;
    const auto publisher = client.backend->MakePublisher(destination);
    for (const std::size_t size : sizes) {
        std::string& body = bodies.emplace_back(size, '\0');
        for (std::size_t i = 0; i < size; ++i) body[i] = static_cast<char>(i * 7 + i / 251);
        publisher->Publish(MakePublication(body, "one key"));
    }
    REQUIRE(client.sink.WaitForConfirmed(sizes.size()));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, Group(), receiver);
    REQUIRE(receiver->WaitForMessages(sizes.size()));
    CHECK(receiver->Bodies() == bodies);
}

TEST_CASE("Kafka: what another program wrote is read as it is", "[kafka]") {
    const AnyKafka kafka;
    Client client{kafka.url(), kafka.options()};
    const auto destination = Fresh();
    client.Send(destination, 1);
    const Native producer{kafka.url(), RD_KAFKA_PRODUCER};
    Foreign strange;
    strange.key = "k";
    strange.headers = {
        {"nothing", nullptr}, {"mq-of-a-later-version", "x"}, {"mq-content-type", "a/b"}};
    strange.timestamp_ms = 1'700'000'000'123;
    producer.Produce(destination->address, strange);
    producer.Produce(destination->address, Foreign{.value = "probe", .headers = {{"mq-probe", "1"}}});
    producer.Produce(destination->address,
                     Foreign{.value = "twice", .headers = {{"mq-possible-duplicate", "1"}}});
    producer.Flush();

    const auto receiver = std::make_shared<RecordingReceiver>();
    const std::string group = Group();
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForMessages(4));
    for (const mq::Message& message : receiver->Messages()) {
        if (message.body == "0") continue;
        CHECK(message.id.empty());
        if (message.body == "probe") continue;  // of no meaning here, and a message like any other
        if (message.body.empty()) {
            CHECK(message.key == "k");
            CHECK(message.headers == mq::Headers{{"nothing", ""}});
            CHECK(message.content_type == "a/b");
            CHECK(message.timestamp.time_since_epoch() == 1'700'000'000'123ms);
            CHECK_FALSE(message.redelivered);
        } else {
            CHECK(message.body == "twice");
            CHECK(message.redelivered);
        }
    }
    CHECK(
        Eventually([&] { return Drained(client, *destination, group) == Backlog::Answer::kDrained; }));
    CHECK(receiver->Count() == 4);
}

TEST_CASE("Kafka: another program reads value, key and headers in their native places", "[kafka]") {
    const AnyKafka kafka;
    Client client{kafka.url(), kafka.options()};
    const auto destination = Fresh();
    mq::Message sent = MakeMessage("body", "key");
    sent.headers = {{"kind", "new"}};
    auto publication = MakePublication(sent);
    publication->possible_duplicate = true;
    const auto publisher = client.backend->MakePublisher(destination);
    publisher->Publish(std::move(publication));
    mq::Message bare = MakeMessage("");
    bare.id.clear();
    publisher->Publish(MakePublication(bare));
    REQUIRE(client.sink.WaitForConfirmed(2));

    const Native consumer{
        kafka.url(), RD_KAFKA_CONSUMER, {{"group.id", Group()}, {"auto.offset.reset", "earliest"}}};
    const auto topics = mq::kafka::detail::MakeList();
    rd_kafka_topic_partition_list_add(topics.get(), destination->address.c_str(), -1);
    rd_kafka_subscribe(consumer.get(), topics.get());
    std::size_t seen = 0;
    const auto deadline = After();
    while (seen < 2 && mq::backend::Clock::now() < deadline) {
        const mq::kafka::detail::Owned<rd_kafka_message_t> message{
            rd_kafka_consumer_poll(consumer.get(), 100)};
        if (message == nullptr || message->err != 0) continue;
        ++seen;
        CHECK(message->payload != nullptr);
        if (message->len == 0) {
            CHECK(message->key == nullptr);
            continue;
        }
        CHECK(std::string(static_cast<const char*>(message->key), message->key_len) == "key");
        rd_kafka_headers_t* headers = nullptr;
        REQUIRE(rd_kafka_message_headers(message.get(), &headers) == RD_KAFKA_RESP_ERR_NO_ERROR);
        std::map<std::string, std::string> read;
        const char* name = nullptr;
        const void* value = nullptr;
        std::size_t size = 0;
        for (std::size_t i = 0; rd_kafka_header_get_all(headers, i, &name, &value, &size) == 0; ++i) {
            read[name] = std::string(static_cast<const char*>(value), size);
        }
        CHECK(read == std::map<std::string, std::string>{
                          {"kind", "new"}, {"mq-id", sent.id}, {"mq-possible-duplicate", "1"}});
    }
    CHECK(seen == 2);
    rd_kafka_consumer_close(consumer.get());
}

TEST_CASE("Kafka: what is settled out of order is committed only up to the first gap", "[kafka]") {
    const AnyKafka kafka;
    const auto destination = Fresh();
    const std::string group = Group();
    Client client{kafka.url(), kafka.options()};
    client.Send(destination, 10, "one partition");
    {
        const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
        const auto consumer = client.SubscribeActive(destination, group, receiver);
        REQUIRE(receiver->WaitForHeld(10));
        auto held = receiver->TakeHeld();
        for (const std::size_t index : {9u, 0u, 1u, 5u, 2u}) held[index]->Settle();
        CloseNow(*consumer);
    }
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForMessages(7));
    CHECK(receiver->Bodies() == std::vector<std::string>{"3", "4", "5", "6", "7", "8", "9"});
    for (const mq::Message& message : receiver->Messages()) CHECK(message.redelivered);
}

TEST_CASE("Kafka: not more than the prefetch is out, and what is dropped counts as back", "[kafka]") {
    const AnyKafka kafka;
    const auto destination = Fresh();
    Client client{kafka.url(), kafka.options()};
    client.Send(destination, 50);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, Group(), receiver, 7);
    REQUIRE(receiver->WaitForHeld(7));
    receiver->SettleHeld(1);
    REQUIRE(receiver->WaitForHeld(7));
    receiver->DropHeld(1);
    REQUIRE(receiver->WaitForHeld(7));
    CHECK(receiver->Count() == 9);
    receiver->Set(Receive::kSettle);
    receiver->SettleHeld();
    REQUIRE(receiver->WaitForMessages(50));
    CHECK(receiver->MostHeld() == 7);
}

TEST_CASE("Kafka: a topic whose messages are not settled holds up no other", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    Client client{url};
    const auto slow = Fresh();
    const auto fast = Fresh();
    const std::string group = Group();
    client.Send(slow, 20);
    const auto slow_receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto fast_receiver = std::make_shared<RecordingReceiver>();
    const auto slow_consumer = client.SubscribeActive(slow, group, slow_receiver, 1);
    const auto fast_consumer = client.SubscribeActive(fast, group, fast_receiver, 1);
    REQUIRE(slow_receiver->WaitForHeld(1));
    client.Send(fast, 500);
    CHECK(fast_receiver->WaitForMessages(500));
    CHECK(slow_receiver->Count() == 1);
}

TEST_CASE("Kafka: two groups each get everything, and a new group begins at the start", "[kafka]") {
    const AnyKafka kafka;
    Client client{kafka.url(), kafka.options()};
    const auto destination = Fresh();
    client.Send(destination, 20);
    const auto first = std::make_shared<RecordingReceiver>();
    const auto second = std::make_shared<RecordingReceiver>();
    const auto a = client.SubscribeActive(destination, Group(), first);
    const auto b = client.SubscribeActive(destination, Group(), second);
    client.Send(destination, 20);
    CHECK(first->WaitForMessages(40));
    CHECK(second->WaitForMessages(40));
}

TEST_CASE("Kafka: a second subscription of a group to a topic in one client shares with the first",
          "[kafka]") {
    const AnyKafka kafka;
    Client client{kafka.url(), kafka.options()};
    const auto destination = Fresh();
    const std::string group = Group();
    client.Send(destination, 1);
    const auto first = std::make_shared<RecordingReceiver>();
    const auto second = std::make_shared<RecordingReceiver>();
    const auto a = client.SubscribeActive(destination, group, first);
    const auto b = client.SubscribeActive(destination, group, second);
    REQUIRE(Eventually([&] {
        client.Send(destination, 20);
        return first->Count() > 0 && second->Count() > 0;
    }));
    CHECK(
        Eventually([&] { return Drained(client, *destination, group) == Backlog::Answer::kDrained; }));
    std::set<std::string> ids;
    for (const auto& receiver : {first, second}) {
        for (const mq::Message& message : receiver->Messages()) ids.insert(message.id);
    }
    CHECK(ids.size() == client.sink.Confirmed());
}

TEST_CASE("Kafka: members come and go in the middle of the stream and nothing is lost", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    Client sender{url};
    Client stays{url};
    sender.Send(destination, 1);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = stays.SubscribeActive(destination, group, receiver, 10);
    const auto publisher = sender.backend->MakePublisher(destination);
    std::vector<std::shared_ptr<RecordingReceiver>> receivers{receiver};
    std::size_t sent = 1;
    for (int round = 0; round < 3; ++round) {
        Client passes{url};
        const auto other =
            std::make_shared<RecordingReceiver>(round == 1 ? Receive::kHold : Receive::kSettle);
        receivers.push_back(other);
        const auto passing = passes.SubscribeActive(destination, group, other, 10);
        for (int i = 0; i < 300; ++i, ++sent) {
            publisher->Publish(MakePublication(std::to_string(i), std::to_string(i % 17)));
        }
        REQUIRE(sender.sink.WaitForConfirmed(sent));
        REQUIRE(Eventually([&] { return other->Count() > 5; }));
        CloseNow(*passing);
    }
    REQUIRE(
        Eventually([&] { return Drained(sender, *destination, group) == Backlog::Answer::kDrained; }));
    // What a member held and did not settle went to the one that stayed.
    std::set<std::string> handled;
    for (const auto& each : receivers) {
        if (each == receivers[2]) continue;
        for (const mq::Message& message : each->Messages()) handled.insert(message.id);
    }
    CHECK(handled.size() == sent);
}

TEST_CASE("Kafka: what has not begun becomes stale when its partition goes to another member",
          "[kafka]") {
    const AnyKafka kafka;
    const auto destination = Fresh();
    const std::string group = Group();
    Client first{kafka.url(), kafka.options()};
    Client second{kafka.url(), kafka.options()};
    const auto publisher = first.backend->MakePublisher(destination);
    for (int i = 0; i < 40; ++i) publisher->Publish(MakePublication("x", std::to_string(i)));
    REQUIRE(first.sink.WaitForConfirmed(40));
    const auto holding = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto a = first.SubscribeActive(destination, group, holding);
    REQUIRE(holding->WaitForHeld(40));
    const auto taking = std::make_shared<RecordingReceiver>();
    const auto b = second.SubscribeActive(destination, group, taking);
    REQUIRE(holding->WaitForStale(1));
    REQUIRE(Eventually([&] { return taking->Count() > 0 && holding->Held() < 40; }));
    CHECK(Eventually([&] { return taking->Count() + holding->Held() == 40; }));
    holding->SettleHeld();
    CHECK(Eventually([&] { return Drained(first, *destination, group) == Backlog::Answer::kDrained; }));
}

TEST_CASE("Kafka: a partition goes to another member when the handlers of its messages are done",
          "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    const auto publish = [&](Client& client) {
        const auto publisher = client.backend->MakePublisher(destination);
        for (int i = 0; i < 40; ++i) publisher->Publish(MakePublication("x", std::to_string(i)));
        REQUIRE(client.sink.WaitForConfirmed(40));
    };
    const auto holding = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto taking = std::make_shared<RecordingReceiver>();
    SECTION("whatever they take, up to revoke_wait") {
        Client first{url};
        Client second{url};
        publish(first);
        const auto a = first.SubscribeActive(destination, group, holding);
        REQUIRE(holding->WaitForHeld(40));
        auto running = holding->TakeHeld();
        const auto b = second.Subscribe(destination, group, taking);
        REQUIRE(holding->WaitForStale(1));
        // A member that the broker has taken for dead, or whose commit has failed, says so: then, and
        // only then, messages come again.
        const auto explained = [&first] {
            return first.log.WaitForLine("partitions are lost", 0s) ||
                   first.log.WaitForLine("positions were not committed", 0s);
        };
        CHECK((mq::test::Stays([&] { return taking->Count() == 0; }, 7s) || explained()));
        for (const auto& each : running) each->Settle();
        running.clear();
        REQUIRE(taking->WaitForPhase(*b, Phase::kActive));
        CHECK(Eventually(
            [&] { return Drained(second, *destination, group) == Backlog::Answer::kDrained; }));
        for (const auto& [level, line] : first.log.Lines()) UNSCOPED_INFO(line);
        CHECK((taking->Count() == 0 || explained()));
    }
    SECTION("after which they come again") {
        Client first{url, {{"revoke_wait", "200ms"}}};
        Client second{url};
        publish(first);
        const auto a = first.SubscribeActive(destination, group, holding);
        REQUIRE(holding->WaitForHeld(40));
        const auto running = holding->TakeHeld();
        const auto b = second.SubscribeActive(destination, group, taking);
        CHECK(Eventually([&] { return taking->Count() > 0; }));
        CHECK(first.log.WaitForLine("while handlers of its messages are at work", 0s));
    }
    SECTION("or its member closes, which does not wait for long") {
        Client first{url};
        Client second{url};
        publish(first);
        const auto a = first.SubscribeActive(destination, group, holding);
        REQUIRE(holding->WaitForHeld(40));
        const auto running = holding->TakeHeld();
        const auto b = second.Subscribe(destination, group, taking);
        REQUIRE(holding->WaitForStale(1));
        const auto begun = mq::backend::Clock::now();
        a->Stop();
        a->Close(After(120s));
        CHECK(mq::backend::Clock::now() - begun < mq::test::kPatience);
        REQUIRE(taking->WaitForPhase(*b, Phase::kActive));
        CHECK(taking->WaitForMessages(40));
    }
}

TEST_CASE("Kafka: a rebalance that fails takes the partitions away like any other", "[kafka]") {
    // Has the group's own thread be told of it, as librdkafka would, in the middle of a delivery.
    class FailingReceiver final : public mq::backend::Receiver {
    public:
        void OnDelivery(std::unique_ptr<mq::backend::Inbound> inbound) noexcept override {
            const std::lock_guard lock{mutex_};
            taken_.push_back(std::move(inbound));
        }
        void OnStale() noexcept override { stale_ = true; }
        void OnStateChange() noexcept override {
            if (group == nullptr || Taken() == 0 || std::exchange(failed_, true)) return;
            const auto none = mq::kafka::detail::MakeList();
            group->OnRebalance(RD_KAFKA_RESP_ERR__FAIL, *none);
            const std::lock_guard lock{mutex_};
            all_stale_ = std::all_of(taken_.begin(), taken_.end(),
                                     [](const auto& each) { return each->Stale(); });
        }
        [[nodiscard]] std::size_t Taken() const {
            const std::lock_guard lock{mutex_};
            return taken_.size();
        }
        [[nodiscard]] bool Done() const { return stale_ && all_stale_; }

        mq::kafka::detail::GroupConsumer* group = nullptr;

    private:
        mutable std::mutex mutex_ = {};  // guards taken_
        std::vector<std::unique_ptr<mq::backend::Inbound>> taken_ = {};
        bool failed_ = false;
        std::atomic<bool> stale_ = false;
        std::atomic<bool> all_stale_ = false;
    };
    namespace detail = mq::kafka::detail;
    MockCluster mock;
    const auto destination = Fresh();
    const std::string name = Group();
    Client client{mock.url()};
    client.Send(destination, 5);
    detail::Broker made;
    made.context.url = mq::ParseUrl(mock.url());
    made.context.log = client.log.Sink();
    made.options.revoke_wait = 0ms;
    const auto broker = std::make_shared<const detail::Broker>(std::move(made));
    detail::Admin admin{broker};
    const auto receiver = std::make_shared<FailingReceiver>();
    {
        detail::GroupConsumer group{broker, admin, name, 0};
        receiver->group = &group;
        mq::backend::Subscribing subscribing;
        subscribing.destination = destination;
        subscribing.group = name;
        subscribing.prefetch = 10;
        const auto stream = group.TryAdd(subscribing, receiver, std::make_shared<detail::Received>());
        REQUIRE(Eventually([&] { return receiver->Taken() == 5; }));
        // The state changes, and with it the receiver is called.
        mock.Down();
        CHECK(Eventually([&] { return receiver->Done(); }));
        CHECK(stream->Partitions().empty());
        mock.Up();
        stream->Stop();
        group.Remove(stream, After());
        stream->Detach();
    }
}

TEST_CASE("Kafka: one topic is left while the group's other topics go on", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    Client client{url};
    const auto left = Fresh();
    const auto kept = Fresh();
    const std::string group = Group();
    client.Send(left, 5, "k");
    const auto left_receiver = std::make_shared<RecordingReceiver>();
    const auto kept_receiver = std::make_shared<RecordingReceiver>();
    const auto a = client.SubscribeActive(left, group, left_receiver);
    const auto b = client.SubscribeActive(kept, group, kept_receiver);
    REQUIRE(left_receiver->WaitForMessages(5));
    CloseNow(*a);
    client.Send(left, 3, "k");
    client.Send(kept, 10);
    CHECK(kept_receiver->WaitForMessages(10));
    CHECK(left_receiver->Count() == 5);
    CHECK(b->State().phase == Phase::kActive);
    const Backlog backlog = client.backend->CheckBacklog(*left, group, After());
    CHECK(backlog.answer == Backlog::Answer::kNotDrained);
    CHECK(backlog.messages == 3);

    const auto again = std::make_shared<RecordingReceiver>();
    const auto c = client.SubscribeActive(left, group, again);
    REQUIRE(again->WaitForMessages(3));
    CHECK(again->Count() == 3);
}

TEST_CASE("Kafka: the backlog counts what is ready and what is out, for this client and for others",
          "[kafka]") {
    const AnyKafka kafka;
    const auto destination = Fresh();
    const std::string group = Group();
    Client client{kafka.url(), kafka.options()};
    Client other{kafka.url(), kafka.options()};
    CHECK(Drained(client, *destination, group) == Backlog::Answer::kDrained);
    client.Send(destination, 8, "k");
    // A new topic has no leader for a moment, and nobody to say what is left.
    const auto known_by = After();
    Backlog backlog;
    do {
        backlog = client.backend->CheckBacklog(*destination, group, After());
    } while (backlog.answer == Backlog::Answer::kUnknown && mq::backend::Clock::now() < known_by);
    INFO(backlog.reason);
    CHECK(backlog.answer == Backlog::Answer::kNotDrained);
    CHECK(backlog.messages == 8);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, group, receiver, 5);
    REQUIRE(receiver->WaitForHeld(5));
    auto held = receiver->TakeHeld();
    held[1]->Settle();
    held[2]->Settle();
    REQUIRE(receiver->WaitForHeld(2));
    backlog = client.backend->CheckBacklog(*destination, group, After());
    CHECK(backlog.answer == Backlog::Answer::kNotDrained);
    CHECK(backlog.messages == 6);
    CHECK(other.backend->CheckBacklog(*destination, group, After()).answer ==
          Backlog::Answer::kNotDrained);
    receiver->Set(Receive::kSettle);
    for (const std::size_t index : {0u, 3u, 4u}) held[index]->Settle();
    receiver->SettleHeld();
    REQUIRE(receiver->WaitForMessages(8));
    CHECK(Drained(client, *destination, group) == Backlog::Answer::kDrained);
    CHECK(Eventually([&] {
        const Backlog seen = other.backend->CheckBacklog(*destination, group, After());
        return seen.answer == Backlog::Answer::kDrained && seen.exact;
    }));
}

TEST_CASE("Kafka: what was there before is known to be settled while more comes", "[kafka]") {
    const AnyKafka kafka;
    const auto destination = Fresh();
    const std::string group = Group();
    Client client{kafka.url(), kafka.options()};
    Client other{kafka.url(), kafka.options()};
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    const auto ask_about = [&](Client& who, const std::string& about) {
        const Backlog backlog = who.backend->CheckBacklog(*destination, about, After());
        INFO(backlog.reason);
        CHECK(backlog.answer == Backlog::Answer::kNotDrained);
        return backlog.settled_before;
    };
    const auto ask = [&](Client& who) { return ask_about(who, group); };
    const auto empty = mq::backend::Clock::now();
    const std::string stranger = Group();
    REQUIRE(Eventually(
        [&] { return Drained(other, *destination, stranger) == Backlog::Answer::kDrained; }));
    // Of one key, so of one partition: its order is the order of what is held.
    client.Send(destination, 3, "k");
    REQUIRE(receiver->WaitForHeld(3));
    auto held = receiver->TakeHeld();
    const auto first = mq::backend::Clock::now();
    for (Client* const who : {&client, &other}) CHECK_FALSE(ask(*who) >= first);
    // Who has no position anywhere begins where the partitions do.
    CHECK(ask_about(other, stranger) >= empty);
    CHECK_FALSE(ask_about(other, stranger) >= first);
    client.Send(destination, 2, "k");
    const auto second = mq::backend::Clock::now();
    REQUIRE(receiver->WaitForHeld(2));
    for (Client* const who : {&client, &other}) CHECK_FALSE(ask(*who) >= first);

    // What is done with behind one that is not does not count yet.
    held[1]->Settle();
    held[2]->Settle();
    receiver->SettleHeld();
    client.Send(destination, 1, "k");
    REQUIRE(receiver->WaitForHeld(1));
    CHECK_FALSE(ask(client) >= first);
    held[0]->Settle();
    CHECK(ask(client) >= second);
    CHECK(Eventually([&] { return ask(other) >= second; }));

    // It goes on as long as it likes, and is never drained.
    for (int i = 0; i < 3; ++i) {
        const auto now = mq::backend::Clock::now();
        for (Client* const who : {&client, &other}) CHECK_FALSE(ask(*who) >= now);
        client.Send(destination, 1, "k");
        REQUIRE(receiver->WaitForHeld(2));
        receiver->TakeHeld(1).front()->Settle();
        CHECK(ask(client) >= now);
        CHECK(Eventually([&] { return ask(other) >= now; }));
    }
}

TEST_CASE("Kafka: whether a group listens is known for this client and for others", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    Client client{url};
    Client other{url};
    client.Send(destination, 1);
    const auto ask = [&](Client& who, const std::string& about) {
        return who.backend->CheckListening(*destination, about, After());
    };
    CHECK(ask(other, group).answer == Listening::Answer::kNo);
    CHECK(Has(ask(other, group).reason, "no member for 4 of the 4 partitions"));
    // Every group of the broker is asked, and one of somebody else's may be sharing out partitions.
    CHECK(Eventually([&] { return ask(other, "").answer == Listening::Answer::kNo; }));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    CHECK(Eventually([&] { return ask(client, group).answer == Listening::Answer::kYes; }));
    CHECK(ask(client, "").answer == Listening::Answer::kYes);
    CHECK(ask(client, group + "-not").answer == Listening::Answer::kNo);
    CHECK(Eventually([&] { return ask(other, group).answer == Listening::Answer::kYes; }));
    CHECK(Eventually([&] { return ask(other, "").answer == Listening::Answer::kYes; }));
    CHECK(other.backend->CheckListening(*Fresh(), group, After()).answer == Listening::Answer::kNo);
    REQUIRE(
        Eventually([&] { return Drained(other, *destination, group) == Backlog::Answer::kDrained; }));
    CloseNow(*consumer);
    // A group that is named has its positions; of the others only those are asked who are there.
    CHECK(Eventually([&] { return ask(client, "").answer == Listening::Answer::kNo; }));
    CHECK(Eventually([&] { return ask(other, "").answer == Listening::Answer::kNo; }));
    CHECK(ask(client, group).answer == Listening::Answer::kYes);
    CHECK(ask(other, group).answer == Listening::Answer::kYes);
}

TEST_CASE("Kafka: a group with members for some of the partitions does not listen", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    Client client{url, {{"partitions", "2"}}};
    Client other{url};
    const auto consumer =
        client.SubscribeActive(destination, group, std::make_shared<RecordingReceiver>());
    const auto ask = [&](Client& who, const std::string& about) {
        return who.backend->CheckListening(*destination, about, After()).answer;
    };
    for (Client* const who : {&client, &other}) {
        CHECK(Eventually([&] { return ask(*who, group) == Listening::Answer::kYes; }));
    }
    // The members learn of new partitions within five minutes.
    const Native native{url, RD_KAFKA_PRODUCER};
    rd_kafka_NewPartitions_t* more =
        rd_kafka_NewPartitions_new(destination->address.c_str(), 3, nullptr, 0);
    const mq::kafka::detail::Owned<rd_kafka_queue_t> queue{rd_kafka_queue_new(native.get())};
    rd_kafka_CreatePartitions(native.get(), &more, 1, nullptr, queue.get());
    const mq::kafka::detail::Owned<rd_kafka_event_t> created{rd_kafka_queue_poll(queue.get(), 20'000)};
    rd_kafka_NewPartitions_destroy(more);
    REQUIRE(created != nullptr);
    for (Client* const who : {&client, &other}) {
        CHECK(Eventually([&] { return ask(*who, group) == Listening::Answer::kNo; }));
        CHECK(Eventually([&] { return ask(*who, "") == Listening::Answer::kNo; }));
    }
}

TEST_CASE("Kafka: a subscription listens once it knows where each partition begins", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    // The broker says nothing of the partitions until there is so much to say.
    Client client{url,
                  {{"consumer.fetch.min.bytes", "1000000"},
                   {"consumer.fetch.wait.max.ms", "60000"},
                   {"consumer.socket.timeout.ms", "90000"}}};
    client.Send(destination, 1);
    const auto answer = [&] {
        return client.backend->CheckListening(*destination, group, After()).answer;
    };
    const auto consumer =
        client.SubscribeActive(destination, group, std::make_shared<RecordingReceiver>());
    CHECK(answer() == Listening::Answer::kNo);
    // Whichever partition it has asked for first.
    const auto publisher = client.backend->MakePublisher(destination);
    for (int i = 0; i < 16; ++i) {
        publisher->Publish(MakePublication(std::string(1'200'000, 'x'), std::to_string(i)));
    }
    CHECK(Eventually([&] { return answer() == Listening::Answer::kYes; }));
}

TEST_CASE("Kafka: a topic that was there and is not known any more is not drained", "[kafka]") {
    MockCluster mock;
    const auto destination = Fresh();
    const std::string group = Group();
    Client client{mock.url()};
    client.Send(destination, 1);
    std::unique_ptr<mq::backend::Consumer> consumer;
    SECTION("where the client has asked for it") {
        CHECK(Drained(client, *destination, group) == Backlog::Answer::kNotDrained);
    }
    SECTION("where the client has partitions of it") {
        consumer = client.SubscribeActive(destination, Group(), std::make_shared<RecordingReceiver>());
    }
    mock.SetTopicError(destination->address, RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
    CHECK(
        Eventually([&] { return Drained(client, *destination, group) == Backlog::Answer::kUnknown; }));
    CHECK_FALSE(client.backend->CheckBacklog(*destination, group, After()).reason.empty());
    // Whoever has never seen it takes the cluster at its word.
    Client other{mock.url(), {{"declare", "false"}}};
    CHECK(Drained(other, *destination, group) == Backlog::Answer::kDrained);
    mock.SetTopicError(destination->address, RD_KAFKA_RESP_ERR_NO_ERROR);
    CHECK(Eventually(
        [&] { return Drained(client, *destination, group) == Backlog::Answer::kNotDrained; }));
}

TEST_CASE("Kafka: an answer that does not say how many partitions a topic has is none", "[kafka]") {
    const mq::kafka::detail::Broker broker{};
    std::array<char, 2> name{'t', '\0'};
    std::array<char, 2> another{'u', '\0'};
    std::array<rd_kafka_metadata_topic_t, 2> topics{};
    topics[0].topic = name.data();
    topics[0].partition_cnt = 3;
    rd_kafka_metadata_t metadata{};
    metadata.topics = topics.data();
    metadata.topic_cnt = 1;
    const auto ask = [&] { return mq::kafka::detail::Admin::PartitionsIn(broker, metadata, "t"); };
    CHECK(ask() == 3);
    SECTION("it knows no such topic, which is one") {
        topics[0].partition_cnt = 0;
        topics[0].err = RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        CHECK(ask() == std::nullopt);
        return;
    }
    SECTION("it is about no topic") { metadata.topic_cnt = 0; }
    SECTION("it is about two") { metadata.topic_cnt = 2; }
    SECTION("it is about another one") { topics[0].topic = another.data(); }
    SECTION("it names no partition") { topics[0].partition_cnt = 0; }
    SECTION("there is no leader") { topics[0].err = RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE; }
    CHECK_THROWS_AS(ask(), mq::Error);
}

TEST_CASE("Kafka: transaction markers and aborted messages do not hold a topic back from drained",
          "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    Client client{url};
    client.Send(destination, 1, "k");
    const Native producer{url, RD_KAFKA_PRODUCER, {{"transactional.id", UniqueId("tx")}}};
    const auto ok = [](rd_kafka_error_t* error) {
        const mq::kafka::detail::Owned<rd_kafka_error_t> owned{error};
        INFO(rd_kafka_error_string(error));
        REQUIRE(error == nullptr);
    };
    const auto produce = [&](std::string body) {
        // The macros that fill these in are extensions of the language.
        std::array<rd_kafka_vu_t, 4> fields{};
        fields[0].vtype = RD_KAFKA_VTYPE_TOPIC;
        fields[0].u.cstr = destination->address.c_str();
        fields[1].vtype = RD_KAFKA_VTYPE_PARTITION;
        fields[1].u.i32 = 0;
        fields[2].vtype = RD_KAFKA_VTYPE_MSGFLAGS;
        fields[2].u.i = RD_KAFKA_MSG_F_COPY;
        fields[3].vtype = RD_KAFKA_VTYPE_VALUE;
        fields[3].u.mem.ptr = body.data();
        fields[3].u.mem.size = body.size();
        ok(rd_kafka_produceva(producer.get(), fields.data(), fields.size()));
    };
    ok(rd_kafka_init_transactions(producer.get(), 30'000));
    ok(rd_kafka_begin_transaction(producer.get()));
    produce("committed");
    ok(rd_kafka_commit_transaction(producer.get(), 30'000));
    ok(rd_kafka_begin_transaction(producer.get()));
    produce("aborted");
    producer.Flush();
    ok(rd_kafka_abort_transaction(producer.get(), 30'000));

    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForMessages(2));
    CHECK(
        Eventually([&] { return Drained(client, *destination, group) == Backlog::Answer::kDrained; }));
    Client other{url};
    CHECK(Eventually([&] { return Drained(other, *destination, group) == Backlog::Answer::kDrained; }));
    CHECK(receiver->Count() == 2);

    // One that is still open may yet become messages.
    ok(rd_kafka_begin_transaction(producer.get()));
    produce("open");
    producer.Flush();
    CHECK(Drained(client, *destination, group) == Backlog::Answer::kNotDrained);
    ok(rd_kafka_commit_transaction(producer.get(), 30'000));
    REQUIRE(receiver->WaitForMessages(3));
}

TEST_CASE("Kafka: a topic that is missing is created as the options say", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto published = Fresh();
    const auto subscribed = Fresh();
    Client client{url, {{"partitions", "3"}, {"replication", "1"}}};
    client.Send(published, 1);
    const auto consumer =
        client.SubscribeActive(subscribed, Group(), std::make_shared<RecordingReceiver>());
    const Native native{url, RD_KAFKA_PRODUCER};
    for (const auto& destination : {published, subscribed}) {
        const mq::kafka::detail::Owned<rd_kafka_topic_t> topic{
            rd_kafka_topic_new(native.get(), destination->address.c_str(), nullptr)};
        const rd_kafka_metadata_t* metadata = nullptr;
        REQUIRE(rd_kafka_metadata(native.get(), 0, topic.get(), &metadata, 10'000) == 0);
        CHECK(metadata->topics[0].partition_cnt == 3);
        rd_kafka_metadata_destroy(metadata);
    }
}

TEST_CASE("Kafka: without declare a missing topic is not found, until somebody creates it", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    Client client{url, {{"declare", "false"}}};
    const auto publisher = client.backend->MakePublisher(destination);
    publisher->Publish(MakePublication("x"));
    REQUIRE(client.sink.WaitForFailed(1));
    CHECK(client.sink.At(0).error->code() == ErrorCode::kNotFound);
    CHECK(client.sink.At(0).error->outcome() == Outcome::kNotSent);

    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, Group(), receiver);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    CHECK(consumer->State().error->code() == ErrorCode::kNotFound);

    Client creator{url};
    creator.Send(destination, 1);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
    CHECK(receiver->WaitForMessages(1));
    REQUIRE(Eventually([&] {
        publisher->Publish(MakePublication("y"));
        return client.sink.WaitForConfirmed(1, 500ms);
    }));
}

TEST_CASE("Kafka: a message that the client or the broker does not take is too large", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    Client client{url};
    const auto publisher = client.backend->MakePublisher(Fresh());
    publisher->Publish(MakePublication(std::string((16 << 20) + 1, 'x')));
    REQUIRE(client.sink.WaitForFailed(1));
    CHECK(client.sink.At(0).error->code() == ErrorCode::kTooLarge);
    CHECK(client.sink.At(0).error->outcome() == Outcome::kNotSent);

    Client larger{url, {{"message.max.bytes", "20000000"}}};
    const auto beyond = larger.backend->MakePublisher(Fresh());
    beyond->Publish(MakePublication(std::string((16 << 20) + 1, 'x')));
    REQUIRE(larger.sink.WaitForFailed(1));
    CHECK(larger.sink.At(0).error->code() == ErrorCode::kTooLarge);
    beyond->Publish(MakePublication("small"));
    CHECK(larger.sink.WaitForConfirmed(1));
}

TEST_CASE("Kafka: a password opens the broker, and a wrong one is access denied", "[kafka]") {
    const std::string url = RealUrl("url-sasl");
    if (url.empty()) return;
    {
        Client client{url};
        client.Send(Fresh(), 1);
        CHECK(client.log.WaitForLine("in the clear", 0s));
    }
    std::string wrong = url;
    wrong.replace(wrong.find("mq-secret"), 9, "wrong%20pw");
    Client client{wrong, {}, 3s};
    const auto publisher = client.backend->MakePublisher(Fresh());
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(Fresh(), Group(), receiver);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    CHECK(consumer->State().error->code() == ErrorCode::kAccessDenied);
    // A send that the broker had no time to answer does not know it yet.
    std::size_t failed = 0;
    CHECK(Eventually([&] {
        publisher->Publish(MakePublication("x", "", 3s));
        return client.sink.WaitForFailed(++failed) &&
               client.sink.At(failed - 1).error->code() == ErrorCode::kAccessDenied;
    }));
    for (std::size_t i = 0; i < failed; ++i) {
        CHECK(client.sink.At(i).error->outcome() == Outcome::kNotSent);
        CHECK_FALSE(Has(client.sink.At(i).error->what(), "wrong pw"));
    }
    for (const auto& [level, line] : client.log.Lines()) CHECK_FALSE(Has(line, "wrong pw"));
}

TEST_CASE("Kafka: by TLS the broker must show a certificate for its name", "[kafka]") {
    std::string url = RealUrl("url-tls");
    if (url.empty()) return;
    const std::string ca = std::string{std::getenv("MQ_TEST_KAFKA_DIR")} + "/tls/ca.pem";
    const auto fails = [](Client& client, const std::string& why) {
        client.backend->MakePublisher(Fresh())->Publish(MakePublication("x", "", 3s));
        CHECK(client.log.WaitForLine(why));
        REQUIRE(client.sink.WaitForFailed(1));
        CHECK(client.sink.At(0).error->code() == ErrorCode::kUnavailable);
    };
    SECTION("as it does") {
        Client client{url, {{"ssl.ca.location", ca}}};
        client.Send(Fresh(), 1);
        CHECK_FALSE(client.log.WaitForLine("not verified", 0s));
    }
    SECTION("that somebody vouches for whom the system trusts") {
        Client client{url, {}, 3s};
        fails(client, "broker certificate could not be verified");
    }
    // The same address; the certificate is for 127.0.0.1 and localhost.
    url.replace(url.find("127.0.0.1"), 9, "127.1");
    SECTION("and not for another one") {
        Client client{url, {{"ssl.ca.location", ca}}, 3s};
        fails(client, "certificate verify failed");
    }
    SECTION("unless the options say that the name does not matter, which is logged") {
        Client client{url,
                      {{"ssl.ca.location", ca}, {"ssl.endpoint.identification.algorithm", "none"}}};
        CHECK(client.log.WaitForLine("anybody can pretend to be this broker", 0s));
        client.Send(Fresh(), 1);
    }
}

TEST_CASE("Kafka: a full queue makes a send wait, and everything is confirmed in the end", "[kafka]") {
    MockCluster mock;
    mock.Delay(20);
    Client client{mock.url(), {{"queue.buffering.max.messages", "5"}}};
    const auto destination = Fresh();
    std::vector<std::thread> senders;
    for (int sender = 0; sender < 3; ++sender) {
        senders.emplace_back([&] {
            const auto publisher = client.backend->MakePublisher(destination);
            for (int i = 0; i < 50; ++i) publisher->Publish(MakePublication("x"));
        });
    }
    for (std::thread& sender : senders) sender.join();
    CHECK(client.sink.WaitForConfirmed(150));
}

TEST_CASE("Kafka: a queue that stays full fails the send at its deadline", "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), {{"queue.buffering.max.messages", "2"}}};
    const auto destination = Fresh();
    client.Send(destination, 1);
    mock.Down();
    const auto publisher = client.backend->MakePublisher(destination);
    publisher->Publish(MakePublication("a"));
    publisher->Publish(MakePublication("b"));
    const auto begun = mq::backend::Clock::now();
    publisher->Publish(MakePublication("c", "", 300ms));
    CHECK(mq::backend::Clock::now() - begun >= 300ms);
    REQUIRE(client.sink.WaitForFailed(1));
    CHECK(client.sink.At(1).error->code() == ErrorCode::kTimeout);
    CHECK(client.sink.At(1).error->outcome() == Outcome::kNotSent);
    mock.Up();
    CHECK(client.sink.WaitForConfirmed(3));
}

TEST_CASE("Kafka: a deadline nearer than the others is kept, with the outcome open", "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), {}, 120s};
    const auto destination = Fresh();
    client.Send(destination, 1);
    const auto publisher = client.backend->MakePublisher(destination);
    publisher->Publish(MakePublication("in time"));
    REQUIRE(client.sink.WaitForConfirmed(2));
    mock.Down();
    const auto begun = mq::backend::Clock::now();
    publisher->Publish(MakePublication("second", "", 700ms));
    publisher->Publish(MakePublication("first", "", 300ms));
    // By itself librdkafka gives them up after two minutes.
    REQUIRE(client.sink.WaitForFailed(2));
    CHECK(mq::backend::Clock::now() - begun >= 700ms);
    CHECK(client.sink.Bodies() == std::vector<std::string>{"0", "in time", "first", "second"});
    for (const std::size_t index : {2u, 3u}) {
        // Whichever is seen first: the deadline, or that the cluster is away.
        const ErrorCode code = client.sink.At(index).error->code();
        CHECK((code == ErrorCode::kTimeout || code == ErrorCode::kUnavailable));
        CHECK(client.sink.At(index).error->outcome() == Outcome::kUnknown);
    }
    mock.Up();
}

TEST_CASE("Kafka: sends and subscriptions outlast a cluster that is away for a while", "[kafka]") {
    MockCluster mock;
    Client client{mock.url()};
    const auto destination = Fresh();
    const std::string group = Group();
    client.Send(destination, 1);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForMessages(1));
    CHECK(Drained(client, *destination, group) == Backlog::Answer::kDrained);
    mock.Down();
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
    CHECK(consumer->State().error->code() == ErrorCode::kUnavailable);
    // A question that was asked before the connections were seen to be gone waits for its deadline.
    CHECK(Eventually(
        [&] {
            const auto begun = mq::backend::Clock::now();
            const auto answer = client.backend->CheckBacklog(*destination, group, After(20s)).answer;
            return answer == Backlog::Answer::kUnknown && mq::backend::Clock::now() - begun < 10s;
        },
        60s));
    const auto publisher = client.backend->MakePublisher(destination);
    for (int i = 0; i < 10; ++i) publisher->Publish(MakePublication("while away"));
    mock.Up();
    REQUIRE(client.sink.WaitForConfirmed(11));
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
    CHECK(receiver->WaitForMessages(11));
    CHECK(
        Eventually([&] { return Drained(client, *destination, group) == Backlog::Answer::kDrained; }));
}

TEST_CASE("Kafka: a coordinator that is found too late costs the answer and nothing else", "[kafka]") {
    MockCluster mock;
    Client client{mock.url()};
    const auto destination = Fresh();
    client.Send(destination, 1);
    // Everything but the coordinator of the next group is known by then.
    REQUIRE(Drained(client, *destination, Group()) == Backlog::Answer::kNotDrained);
    const std::string group = Group();
    // The partitions and the ends are there in time; then the coordinator is asked for.
    mock.Delay(1500);
    CHECK(client.backend->CheckBacklog(*destination, group, After(4000ms)).answer ==
          Backlog::Answer::kUnknown);
    SECTION("the next answer is not the late one") {
        mock.Delay(0);
        CHECK(Eventually(
            [&] { return Drained(client, *destination, group) == Backlog::Answer::kNotDrained; }));
    }
    SECTION("the client closes meanwhile") {}
}

TEST_CASE("Kafka: a coordinator that is not found is asked for again", "[kafka]") {
    MockCluster mock;
    Client client{mock.url()};
    const auto destination = Fresh();
    client.Send(destination, 1);
    const std::string group = Group();
    // librdkafka asks four times, and then waits for a broker to come or go.
    mock.FailWith(MockCluster::kFindCoordinator, RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE, 1000);
    CHECK(client.backend->CheckBacklog(*destination, group, After(2s)).answer ==
          Backlog::Answer::kUnknown);
    mock.StopFailing(MockCluster::kFindCoordinator);
    SECTION("when a broker comes") {
        mock.Down();
        mock.Up();
        CHECK(Eventually(
            [&] { return Drained(client, *destination, group) == Backlog::Answer::kNotDrained; }));
    }
    SECTION("by itself") {
        CHECK(Eventually(
            [&] { return Drained(client, *destination, group) == Backlog::Answer::kNotDrained; }));
    }
}

TEST_CASE("Kafka: a cluster that is not there fails a send at its deadline, as not sent", "[kafka]") {
    MockCluster mock;
    const std::string url = mock.url();
    mock.Down();
    Client client{url, {}, 2s};
    client.backend->MakePublisher(Fresh())->Publish(MakePublication("x", "", 2s));
    REQUIRE(client.sink.WaitForFailed(1));
    CHECK(client.sink.At(0).error->code() == ErrorCode::kUnavailable);
    CHECK(client.sink.At(0).error->outcome() == Outcome::kNotSent);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(Fresh(), Group(), receiver);
    CHECK(receiver->WaitForPhase(*consumer, Phase::kRetrying));
}

TEST_CASE("Kafka: a confirm that is lost is asked for again, and makes no second message", "[kafka]") {
    MockCluster mock;
    Client client{mock.url()};
    const auto destination = Fresh();
    client.Send(destination, 1, "k");
    mock.FailWith(MockCluster::kProduce, RD_KAFKA_RESP_ERR__TRANSPORT, 2);
    client.Send(destination, 5, "k");
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, Group(), receiver);
    REQUIRE(receiver->WaitForMessages(6));
    CHECK(receiver->Bodies() == std::vector<std::string>{"0", "0", "1", "2", "3", "4"});
}

TEST_CASE("Kafka: a confirm that never comes leaves the outcome open", "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), {}, 6s};
    const auto publisher = client.backend->MakePublisher(Fresh());
    // What goes before has no more time than that.
    std::size_t sent = 0;
    REQUIRE(Eventually([&] {
        publisher->Publish(MakePublication("before", "", 6s));
        return client.sink.WaitForFinished(++sent) && client.sink.Confirmed() > 0;
    }));
    mock.Delay(60'000);
    publisher->Publish(MakePublication("x", "", 6s));
    REQUIRE(client.sink.WaitForFinished(sent + 1));
    REQUIRE(client.sink.At(sent).error != nullptr);
    CHECK(client.sink.At(sent).error->outcome() == Outcome::kUnknown);
    mock.Delay(0);
}

TEST_CASE("Kafka: what a failed producer had not sent is sent by the next one, in its order",
          "[kafka]") {
    MockCluster mock;
    // A message a request: each failure is of the few that are on their way.
    Client client{mock.url(), {{"batch.num.messages", "1"}}};
    const auto destination = Fresh();
    client.Send(destination, 1, "k");
    // The broker says that it misses what this producer sent before: nothing can be sure then.
    mock.FailWith(MockCluster::kProduce, RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 3);
    const auto publisher = client.backend->MakePublisher(destination);
    const auto replaced = [&] {
        return client.log.WaitForLine("the producer has failed and is replaced", 0s);
    };
    // Before, while and after it happens; the mock cluster keeps some 30,000.
    constexpr std::size_t kMost = 20'000;
    std::size_t count = 0;
    for (std::size_t last = kMost; count < last;) {
        publisher->Publish(MakePublication(std::to_string(++count), "k"));
        if (last == kMost && count % 100 == 0 && replaced()) last = count + 500;
    }
    REQUIRE(client.sink.WaitForFinished(count + 1));
    CHECK(replaced());
    std::vector<std::string> confirmed;
    std::set<std::string> in_doubt;
    for (std::size_t i = 0; i <= count; ++i) {
        const mq::backend::Publication& publication = client.sink.At(i);
        if (publication.error == nullptr) {
            confirmed.push_back(publication.message.body);
            continue;
        }
        in_doubt.insert(publication.message.body);
        INFO(publication.error->what());
        CHECK(publication.error->code() == ErrorCode::kUnavailable);
        CHECK(publication.error->outcome() == Outcome::kUnknown);
    }
    CHECK(in_doubt.size() <= 6);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, Group(), receiver);
    // What is in doubt may be there or not.
    std::vector<std::string> received;
    CHECK(Eventually([&] {
        received = receiver->Bodies();
        std::erase_if(received, [&](const std::string& body) { return in_doubt.contains(body); });
        return received.size() >= confirmed.size();
    }));
    CHECK(received == confirmed);
    CHECK(std::is_sorted(received.begin(), received.end(),
                         [](const auto& a, const auto& b) { return std::stoul(a) < std::stoul(b); }));
}

TEST_CASE("Kafka: what waits for a producer that fails again and again fails at its deadline, not sent",
          "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), {{"batch.num.messages", "1"}}, 120s};
    const auto destination = Fresh();
    client.Send(destination, 1, "k");
    mock.FailWith(MockCluster::kProduce, RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 1000);
    const auto publisher = client.backend->MakePublisher(destination);
    for (int i = 0; i < 50; ++i) publisher->Publish(MakePublication("x", "k", 3s));
    REQUIRE(client.sink.WaitForFailed(50));
    CHECK(client.sink.At(50).error->code() == ErrorCode::kUnavailable);
    CHECK(client.sink.At(50).error->outcome() == Outcome::kNotSent);
    CHECK(Has(client.sink.At(50).error->what(), "the producer has failed"));
}

namespace {

void CheckClosed(const RecordingSink& sink, std::size_t first, std::size_t end) {
    REQUIRE(sink.Count() == end);
    for (std::size_t i = first; i < end; ++i) {
        REQUIRE(sink.At(i).error != nullptr);
        CHECK(sink.At(i).error->code() == ErrorCode::kClosed);
    }
}

}  // namespace

TEST_CASE("Kafka: closing hands back what is in flight, with its outcome", "[kafka]") {
    MockCluster mock;
    Client client{mock.url()};
    const auto destination = Fresh();
    client.Send(destination, 1);
    mock.Delay(60'000);
    const auto publisher = client.backend->MakePublisher(destination);
    for (int i = 0; i < 20; ++i) publisher->Publish(MakePublication("x"));
    const auto begun = mq::backend::Clock::now();
    client.backend->Close(After(500ms));
    CHECK(mq::backend::Clock::now() - begun < mq::test::kPatience);
    CheckClosed(client.sink, 1, 21);
    publisher->Publish(MakePublication("too late"));
    CheckClosed(client.sink, 1, 22);
    CHECK(client.sink.At(21).error->outcome() == Outcome::kNotSent);
    mock.Delay(0);
}

TEST_CASE("Kafka: who waits for room while the client closes gets the message back", "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), {{"queue.buffering.max.messages", "2"}}};
    const auto destination = Fresh();
    client.Send(destination, 1);
    mock.Down();
    const auto publisher = client.backend->MakePublisher(destination);
    for (int i = 0; i < 2; ++i) publisher->Publish(MakePublication("x"));
    std::vector<std::thread> senders;
    for (int i = 0; i < 4; ++i) {
        senders.emplace_back([&] {
            for (int each = 0; each < 50; ++each) publisher->Publish(MakePublication("y"));
        });
    }
    client.backend->Close(After(200ms));
    for (std::thread& sender : senders) sender.join();
    CheckClosed(client.sink, 1, 203);
}

TEST_CASE("Kafka: closing hands back what a held up thread of librdkafka does not report", "[kafka]") {
    // Keeps nothing of what comes back: librdkafka must not read it any more.
    struct CountingSink final : mq::backend::PublicationSink {
        void OnFinished(mq::backend::PublicationList finished) noexcept override {
            while (const auto publication = finished.PopFront()) {
                ++*(publication->error == nullptr ? &confirmed : &failed);
                if (publication->message.body.size() == 100'000) ++whole;
            }
        }
        std::atomic<int> confirmed = 0;
        std::atomic<int> failed = 0;
        std::atomic<int> whole = 0;
    };
    MockCluster mock;
    CountingSink sink;
    std::mutex mutex;
    std::condition_variable changed;
    bool hold = false;
    bool holding = false;
    const auto log = [&](mq::LogLevel, std::string_view line) {
        if (!Has(line, "Produce MessageSet")) return;
        std::unique_lock lock{mutex};
        holding = hold;
        changed.notify_all();
        changed.wait(lock, [&] { return !hold; });
    };
    auto backend = mq::test::MakeBackend(mock.url(), sink, {{"debug", "msg"}}, log);
    {
        const auto publisher = backend->MakePublisher(Fresh());
        publisher->Publish(MakePublication("x", "k"));
        REQUIRE(Eventually([&] { return sink.confirmed == 1; }));
        const auto set = [&](bool value) {
            const std::lock_guard lock{mutex};
            hold = value;
            changed.notify_all();
        };
        set(true);
        for (int i = 0; i < 10; ++i) {
            publisher->Publish(MakePublication(std::string(100'000, 'x'), "k"));
        }
        {
            std::unique_lock lock{mutex};
            REQUIRE(changed.wait_for(lock, mq::test::kPatience, [&] { return holding; }));
        }
        backend->Close(After(100ms));
        CHECK(sink.failed == 10);
        CHECK(sink.whole == 10);
        set(false);
    }
    backend.reset();
    CHECK(sink.failed == 10);
    CHECK(sink.confirmed == 1);
}

TEST_CASE("Kafka: closing a consumer is bounded, whatever the cluster does", "[kafka]") {
    MockCluster mock;
    const auto destination = Fresh();
    Client client{mock.url()};
    client.Send(destination, 10);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    auto consumer = client.SubscribeActive(destination, Group(), receiver);
    REQUIRE(receiver->WaitForHeld(10));
    receiver->SettleHeld(5);
    const auto begun = mq::backend::Clock::now();
    SECTION("which has gone") { mock.Down(); }
    SECTION("which does not answer") { mock.Delay(60'000); }
    consumer->Stop();
    consumer->Close(After(500ms));
    CHECK(mq::backend::Clock::now() - begun < mq::test::kPatience);
    receiver->SettleHeld();
    consumer.reset();
    mock.Up();
    mock.Delay(0);
}

TEST_CASE("Kafka: closing twice, at once from many threads, with messages out, is harmless",
          "[kafka]") {
    const AnyKafka kafka;
    const auto destination = Fresh();
    Client client{kafka.url(), kafka.options()};
    client.Send(destination, 20);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, Group(), receiver, 10);
    REQUIRE(receiver->WaitForHeld(10));
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            receiver->SettleHeld(2);
            CloseNow(*consumer);
        });
    }
    for (std::thread& thread : threads) thread.join();
    const std::size_t count = receiver->Count();
    client.Send(destination, 5);
    CHECK(receiver->Count() == count);
    receiver->SettleHeld();
}

TEST_CASE("Kafka: many topics share one consumer", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    Client client{url};
    const std::string group = Group();
    constexpr std::size_t kTopics = 40;
    const int threads_before = rd_kafka_thread_cnt();
    std::vector<DestinationPtr> destinations;
    std::vector<std::shared_ptr<RecordingReceiver>> receivers;
    std::vector<std::unique_ptr<mq::backend::Consumer>> consumers;
    for (std::size_t i = 0; i < kTopics; ++i) {
        destinations.push_back(Fresh());
        receivers.push_back(std::make_shared<RecordingReceiver>());
        mq::backend::Subscribing subscribing;
        subscribing.destination = destinations.back();
        subscribing.group = group;
        subscribing.prefetch = 10;
        consumers.push_back(client.backend->Subscribe(subscribing, receivers.back()));
    }
    for (std::size_t i = 0; i < kTopics; ++i) {
        REQUIRE(receivers[i]->WaitForPhase(*consumers[i], Phase::kActive));
    }
    for (const auto& destination : destinations) client.Send(destination, 3);
    for (const auto& receiver : receivers) CHECK(receiver->WaitForMessages(3));
    CHECK(rd_kafka_thread_cnt() - threads_before < 20);
    for (const auto& consumer : consumers) CloseNow(*consumer);
}

TEST_CASE("Kafka: what is risky about the config is said in the log", "[kafka]") {
    const auto says = [](const std::string& url, std::map<std::string, std::string> options,
                         std::string_view part) {
        const Client client{url, std::move(options)};
        return client.log.WaitForLine(part, 0s);
    };
    constexpr std::string_view kClear = "in the clear";
    CHECK(says("kafka://u:p@127.0.0.1:1", {}, kClear));
    CHECK(says("kafka://127.0.0.1:1",
               {{"security.protocol", "SASL_PLAINTEXT"},
                {"sasl.mechanism", "PLAIN"},
                {"sasl.username", "u"},
                {"sasl.password", "p"}},
               kClear));
    CHECK_FALSE(says("kafka://u:p@127.0.0.1:1", {{"security.protocol", "sasl_ssl"}}, kClear));
    CHECK_FALSE(says("kafka://u:p@127.0.0.1:1", {{"sasl.mechanisms", "SCRAM-SHA-512"}}, kClear));
    CHECK_FALSE(says("kafkas://u:p@127.0.0.1:1", {}, kClear));
    CHECK_FALSE(says("kafka://127.0.0.1:1", {}, kClear));

    constexpr std::string_view kUnverified = "anybody can pretend";
    CHECK(
        says("kafkas://127.0.0.1:1", {{"enable.ssl.certificate.verification", "false"}}, kUnverified));
    CHECK(says("kafkas://127.0.0.1:1", {{"consumer.ssl.endpoint.identification.algorithm", "none"}},
               kUnverified));
    CHECK(says("kafka://127.0.0.1:1",
               {{"security.protocol", "ssl"}, {"enable.ssl.certificate.verification", "false"}},
               kUnverified));
    CHECK_FALSE(says("kafkas://127.0.0.1:1", {}, kUnverified));
    CHECK_FALSE(
        says("kafka://127.0.0.1:1", {{"enable.ssl.certificate.verification", "false"}}, kUnverified));
}

TEST_CASE("Kafka: not even librdkafka's debug log shows a secret", "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), {{"debug", "all"}, {"sasl.kerberos.kinit.cmd", "echo s3cret | kinit"}}};
    client.Send(Fresh(), 1);
    CHECK(client.log.WaitForLine("sasl.kerberos.kinit.cmd = [redacted]"));
    for (const auto& [level, line] : client.log.Lines()) {
        INFO(line);
        REQUIRE_FALSE(Has(line, "s3cret"));
    }
}

TEST_CASE("Kafka: a log that throws disturbs nothing", "[kafka]") {
    MockCluster mock;
    RecordingSink sink;
    std::atomic<int> lines = 0;
    const auto backend = mq::test::MakeBackend(mock.url(), sink, {{"debug", "broker"}},
                                               [&](mq::LogLevel, std::string_view) {
                                                   ++lines;
                                                   throw std::runtime_error("the disk is full");
                                               });
    const auto destination = Fresh();
    const auto publisher = backend->MakePublisher(destination);
    publisher->Publish(MakePublication("before"));
    REQUIRE(sink.WaitForConfirmed(1));
    const auto receiver = std::make_shared<RecordingReceiver>();
    mq::backend::Subscribing subscribing;
    subscribing.destination = destination;
    subscribing.group = Group();
    subscribing.prefetch = 10;
    const auto consumer = backend->Subscribe(subscribing, receiver);
    REQUIRE(receiver->WaitForMessages(1));
    mock.Down();
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
    mock.Up();
    publisher->Publish(MakePublication("after"));
    CHECK(sink.WaitForConfirmed(2));
    CHECK(receiver->WaitForMessages(2));
    CHECK(lines > 0);
    CloseNow(*consumer);
}

TEST_CASE("Kafka: what is wrong with the config is said by name", "[kafka]") {
    const auto kind = mq::backend::Registry::Instance().Find("kafka");
    REQUIRE(kind);
    const auto check = [&](const std::string& url, std::map<std::string, std::string> options = {}) {
        return kind->check(mq::ParseUrl(url), options);
    };
    CHECK(check("kafka://a:1,b,[::1]:3").empty());
    CHECK(check("kafkas://user:pw@a").empty());
    CHECK(check("kafka://a", {{"linger.ms", "5"},
                              {"consumer.fetch.min.bytes", "10"},
                              {"producer.compression.type", "lz4"},
                              {"auto.commit.interval.ms", "200"},
                              {"partitioner", "consistent_random"},
                              {"revoke_wait", "1m"},
                              {"declare", "false"},
                              {"partitions", "12"}})
              .empty());
    struct Case {
        std::string url;
        std::map<std::string, std::string> options;
        std::string key;
        std::string part;
    };
    const std::vector<Case> cases{
        {"kafka://a/path", {}, "url", "no path"},
        {"kafka://a?x=1", {}, "url", "options"},
        {"kafka://user@a", {}, "url", "both a user and a password"},
        {"kafka://u:p@a", {{"sasl.password", "s3cret"}}, "url", "expected one of them"},
        {"kafkas://a", {{"security.protocol", "plaintext"}}, "options.\"security.protocol\"", "TLS"},
        {"kafka://a", {{"lingerms", "5"}}, "options.lingerms", "no property \"lingerms\""},
        {"kafka://a", {{"linger.ms", "soon"}}, "options.\"linger.ms\"", "librdkafka says"},
        {"kafka://a", {{"partitions", "0"}}, "options.partitions", "from 1"},
        {"kafka://a", {{"replication", "x"}}, "options.replication", "from 1"},
        {"kafka://a", {{"declare", "yes"}}, "options.declare", "true or false"},
        {"kafka://a", {{"group.id", "g"}}, "options.\"group.id\"", "subscription; remove it"},
        {"kafka://a", {{"enable.idempotence", "false"}}, "options.\"enable.idempotence\"", "repeated"},
        {"kafka://a", {{"auto.offset.reset", "latest"}}, "options.\"auto.offset.reset\"", "skip"},
        {"kafka://a",
         {{"consumer.offset.store.method", "file"}},
         "options.\"consumer.offset.store.method\"",
         "at-least-once"},
        {"kafka://a",
         {{"auto.commit.interval.ms", "0"}},
         "options.\"auto.commit.interval.ms\"",
         "from 1 to 60000"},
        {"kafka://a", {{"partitioner", "random"}}, "options.partitioner", "murmur2_random"},
        {"kafka://a", {{"topic.blacklist", "^x"}}, "options.\"topic.blacklist\"", "drained"},
        {"kafka://a", {{"enabled_events", "4"}}, "options.enabled_events", "callbacks"},
        {"kafka://a",
         {{"enable.gapless.guarantee", "true"}},
         "options.\"enable.gapless.guarantee\"",
         "end"},
        {"kafka://a", {{"queuing.strategy", "lifo"}}, "options", "queuing.strategy"},
        {"kafka://a", {{"retries", "0"}}, "options", "retries"},
        {"kafka://a", {{"revoke_wait", "5m"}}, "options.revoke_wait", "max.poll.interval.ms"},
        {"kafka://a", {{"acks", "1"}}, "options.acks", "acks=all"},
        {"kafka://a", {{"max.in.flight", "5"}}, "options.\"max.in.flight\"", "several requests"},
        {"kafka://a",
         {{"consumer.enable.auto.commit", "true"}},
         "options.\"consumer.enable.auto.commit\"",
         "at-least-once"},
        {"kafkas://a", {{"ssl.ca.location", "no/such/file"}}, "options", "ssl.ca.location"},
    };
    for (const Case& each : cases) {
        const auto problems = check(each.url, each.options);
        INFO(each.url << " " << each.key);
        REQUIRE(problems.size() == 1);
        INFO(problems[0].key << ": " << problems[0].text);
        CHECK(problems[0].key == each.key);
        CHECK(Has(problems[0].text, each.part));
        CHECK_FALSE(Has(problems[0].text, "s3cret"));
    }
    CHECK(check("kafka://a", {{"a", "1"}, {"b", "2"}}).size() == 2);
    const auto secret = check("kafkas://a", {{"ssl.key.pem", "s3cret"}, {"ssl.ca.pem", "s3cret"}});
    for (const auto& problem : secret) CHECK_FALSE(Has(problem.text, "s3cret"));

    RecordingSink sink;
    const auto backend = mq::test::MakeBackend("kafka://127.0.0.1:1", sink);
    for (const std::string& address :
         {std::string{"with space"}, std::string{"^regex"}, std::string{".."}, std::string(250, 'x')}) {
        CHECK_THROWS_AS(backend->MakePublisher(MakeDestination("t", address)), mq::Error);
    }
}
