/// @file rabbitmq_test.cpp
/// The RabbitMQ adapter on a real broker: what only this broker has, and what other programs see of it.
/// MQ_TEST_RABBITMQ_DIR names the folder of a broker that tests/brokers/rabbitmq.sh has started.
#include "../support/catch.hpp"
#include "../support/rabbitmq_fixture.hpp"
#include <mq/backends/rabbitmq_management.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using mq::ErrorCode;
using mq::Outcome;
using mq::backend::Backlog;
using mq::backend::Listening;
using mq::test::After;
using mq::test::kPrompt;
using mq::test::MakeDestination;
using mq::test::MakePublication;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using mq::test::RefusingPort;
using mq::test::UniqueId;
using namespace mq::test::rabbitmq;
using namespace std::chrono_literals;

}  // namespace

TEST_CASE("RabbitMQ: a message arrives with everything that it was sent with", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    mq::Message sent = mq::test::MakeMessage(std::string{"a\0b\xff\n", 5}, "customer-42");
    sent.headers = {{"kind", "new"},
                    {"kind", "again"},
                    {"empty", ""},
                    {"binary", std::string{"\0\x80", 2}},
                    {"timestamp_in_ms", "a text"},
                    {std::string(255, 'n'), std::string(5000, 'v')}};
    sent.content_type = "text/plain";
    sent.correlation_id = "c-1";
    sent.reply_to = "answers";
    REQUIRE(client.Send(destination, sent) == nullptr);

    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    REQUIRE(receiver->WaitForMessages(1));
    mq::Message expected = sent;
    expected.topic = "orders";
    CHECK(receiver->Messages()[0] == expected);
}

TEST_CASE("RabbitMQ: bodies of every size arrive byte for byte", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    // Around the largest payload of one frame, which is 131064 bytes, and the largest body.
    const std::vector<std::size_t> sizes{0,      1,       131063,        131064,  131065,
                                         262128, 1 << 20, (1 << 20) + 1, 16 << 20};
    std::vector<std::string> bodies;
    for (const std::size_t size : sizes) {
        std::string& body = bodies.emplace_back(size, '\0');
        for (std::size_t i = 0; i < size; ++i) body[i] = static_cast<char>(i * 7 + i / 251);
    }
    const auto publisher = client.backend->MakePublisher(destination);
    for (const std::string& body : bodies) publisher->Publish(MakePublication(body));
    REQUIRE(client.sink.WaitForConfirmed(bodies.size()));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    REQUIRE(receiver->WaitForMessages(bodies.size()));
    CHECK((receiver->Bodies() == bodies));
}

TEST_CASE("RabbitMQ: what is sent is native to other programs", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    mq::Message sent = mq::test::MakeMessage("hello", "customer-42");
    sent.headers = {{"kind", "new"}};
    sent.content_type = "text/plain";
    REQUIRE(client.Send(destination, sent) == nullptr);
    NativeClient native{url};
    const bool got = native.Get(
        destination->address + ".g",
        [&](const std::string& key, const amqp_basic_properties_t& properties, std::string_view body) {
            CHECK(body == "hello");
            CHECK(key == "customer-42");
            CHECK(properties.delivery_mode == 2);
            const std::string id{static_cast<char*>(properties.message_id.bytes),
                                 properties.message_id.len};
            CHECK(id == sent.id);
            const auto since = sent.timestamp.time_since_epoch();
            CHECK(properties.timestamp == static_cast<std::uint64_t>(since / 1s));
            REQUIRE(properties.headers.num_entries == 3);
            const auto name = [&](int i) {
                const amqp_bytes_t& bytes = properties.headers.entries[i].key;
                return std::string{static_cast<char*>(bytes.bytes), bytes.len};
            };
            CHECK(name(0) == "kind");
            CHECK(name(1) == "mq-key");
            CHECK(name(2) == "timestamp_in_ms");
            CHECK(properties.headers.entries[2].value.kind == AMQP_FIELD_KIND_I64);
            CHECK(properties.headers.entries[2].value.value.i64 == since / 1ms);
        });
    CHECK(got);
}

TEST_CASE("RabbitMQ: messages of other programs are read with their native headers", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver);

    std::vector<amqp_table_entry_t> entries(9);
    const auto entry = [&](std::size_t i, const char* key, amqp_field_value_kind_t kind) {
        entries[i].key = amqp_cstring_bytes(key);
        entries[i].value.kind = static_cast<std::uint8_t>(kind);
        return &entries[i].value.value;
    };
    entry(0, "int", AMQP_FIELD_KIND_I32)->i32 = -7;
    entry(1, "bool", AMQP_FIELD_KIND_BOOLEAN)->boolean = 1;
    entry(2, "float", AMQP_FIELD_KIND_F64)->f64 = 2.5;
    entry(3, "text", AMQP_FIELD_KIND_UTF8)->bytes = amqp_cstring_bytes("hello");
    entry(4, "time", AMQP_FIELD_KIND_TIMESTAMP)->u64 = 1700000000;
    entry(5, "table", AMQP_FIELD_KIND_TABLE)->table = amqp_empty_table;
    entry(6, "mq-secret", AMQP_FIELD_KIND_UTF8)->bytes = amqp_cstring_bytes("never shown");
    entry(7, "decimal", AMQP_FIELD_KIND_DECIMAL)->decimal = {2, 5};
    entry(8, "void", AMQP_FIELD_KIND_VOID)->u64 = 0;
    amqp_basic_properties_t properties{};
    properties._flags = AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_TIMESTAMP_FLAG;
    properties.headers = {static_cast<int>(entries.size()), entries.data()};
    properties.timestamp = 1700000000;
    NativeClient native{url};
    native.Publish(destination->address, "eu.customer", "from elsewhere", properties);

    REQUIRE(receiver->WaitForMessages(1));
    const mq::Message message = receiver->Messages()[0];
    CHECK(message.body == "from elsewhere");
    CHECK(message.key == "eu.customer");
    CHECK(message.id.empty());
    CHECK_FALSE(message.redelivered);
    CHECK(std::chrono::system_clock::to_time_t(message.timestamp) == 1700000000);
    const mq::Headers expected{{"int", "-7"},     {"bool", "true"},       {"float", "2.5"},
                               {"text", "hello"}, {"time", "1700000000"}, {"decimal", "0.05"},
                               {"void", ""}};
    CHECK(message.headers == expected);
}

TEST_CASE("RabbitMQ: a named group gets what was sent before it subscribed", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh({"billing", "search"});
    REQUIRE(client.Send(destination, "early") == nullptr);
    for (const std::string& group : destination->groups) {
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(destination, group, receiver);
        CHECK(receiver->WaitForMessages(1));
    }
}

TEST_CASE("RabbitMQ: a message that no queue takes is unroutable", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination nobody = Fresh({});
    const mq::Error* const error = client.Send(nobody, "lost?");
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kUnroutable);
    CHECK(error->outcome() == Outcome::kNotSent);
    CHECK(error->native_code() == 312);
    CHECK(Contains(error->what(), nobody->address));
}

TEST_CASE("RabbitMQ: unroutable messages in the middle of others fail alone", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination somebody = Fresh();
    const Destination nobody = Fresh({});
    const auto routed = client.backend->MakePublisher(somebody);
    const auto lost = client.backend->MakePublisher(nobody);
    for (int i = 0; i < 300; ++i) {
        // One id for both: where a message went tells it apart as well.
        mq::Message message = mq::test::MakeMessage("routed");
        mq::Message twin = message;
        twin.body = "lost";
        routed->Publish(MakePublication(std::move(message)));
        if (i % 3 == 0) lost->Publish(MakePublication(std::move(twin)));
    }
    REQUIRE(client.sink.WaitForFinished(400));
    for (std::size_t i = 0; i < 400; ++i) {
        const mq::backend::Publication& finished = client.sink.At(i);
        const bool failed = finished.error != nullptr;
        CHECK(failed == (finished.message.body == "lost"));
        if (failed) CHECK(finished.error->code() == ErrorCode::kUnroutable);
    }
}

TEST_CASE("RabbitMQ: without declaring, what is missing is not found, and found once it is there",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url, {{"declare", "false"}}};
    const Destination destination = Fresh();
    const mq::Error* const error = client.Send(destination, "early");
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kNotFound);
    CHECK(error->outcome() == Outcome::kNotSent);

    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    CHECK(consumer->State().error->code() == ErrorCode::kNotFound);

    NativeClient native{url};
    native.DeclareExchange(destination->address, "topic");
    native.DeclareQueue(destination->address + ".g");
    native.Bind(destination->address + ".g", destination->address, "eu.#");
    CHECK(receiver->WaitForPhase(*consumer, Phase::kActive));
    CHECK(client.Send(destination, mq::test::MakeMessage("bound", "eu.west")) == nullptr);
    const mq::Error* const unbound =
        client.Send(destination, mq::test::MakeMessage("not bound", "us.east"));
    REQUIRE(unbound != nullptr);
    CHECK(unbound->code() == ErrorCode::kUnroutable);
    CHECK(receiver->WaitForMessages(1));
}

TEST_CASE("RabbitMQ: existing exchanges and queues are used as they are", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Destination destination = Fresh();
    NativeClient native{url};
    native.DeclareExchange(destination->address, "topic");
    native.DeclareQueue(destination->address + ".g", {{"x-queue-mode", "lazy"}});
    Connected client{url};
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    REQUIRE(client.Send(destination, mq::test::MakeMessage("with a key", "any.key")) == nullptr);
    CHECK(receiver->WaitForMessages(1));
}

TEST_CASE("RabbitMQ: an exchange that vanishes is declared again, and nothing is lost", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const Destination other = Fresh();
    REQUIRE(client.Send(destination, "before") == nullptr);
    NativeClient native{url};
    native.DeleteExchange(destination->address);
    CHECK(client.Send(destination, "after") == nullptr);

    native.DeleteExchange(destination->address);
    const auto publisher = client.backend->MakePublisher(destination);
    const auto bystander = client.backend->MakePublisher(other);
    for (int i = 0; i < 50; ++i) {
        publisher->Publish(MakePublication("many"));
        bystander->Publish(MakePublication("other"));
    }
    CHECK(client.sink.WaitForConfirmed(102));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    CHECK(receiver->WaitForDistinct(52));
}

TEST_CASE("RabbitMQ: without declaring, an exchange that vanishes fails its own messages only",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Destination destination = Fresh({});
    const Destination other = Fresh({});
    NativeClient native{url};
    for (const Destination& each : {destination, other}) {
        native.DeclareExchange(each->address, "fanout");
        native.DeclareQueue(each->address);
        native.Bind(each->address, each->address, "");
    }
    Connected client{url, {{"declare", "false"}}};
    REQUIRE(client.Send(destination, "before") == nullptr);
    REQUIRE(client.Send(other, "before") == nullptr);
    native.DeleteExchange(destination->address);
    const auto publisher = client.backend->MakePublisher(destination);
    const auto bystander = client.backend->MakePublisher(other);
    for (int i = 0; i < 20; ++i) {
        publisher->Publish(MakePublication("gone"));
        bystander->Publish(MakePublication("there"));
    }
    REQUIRE(client.sink.WaitForFinished(42));
    for (std::size_t i = 2; i < 42; ++i) {
        const mq::backend::Publication& finished = client.sink.At(i);
        if (finished.message.body == "there") {
            CHECK(finished.error == nullptr);
        } else {
            REQUIRE(finished.error != nullptr);
            CHECK(finished.error->code() == ErrorCode::kNotFound);
        }
    }
}

TEST_CASE("RabbitMQ: what AMQP cannot carry is refused before it is sent", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url, {{"max_message_size", "1000"}}};
    const Destination destination = Fresh();
    const auto code_of = [&](const mq::Message& message) {
        const mq::Error* const error = client.Send(destination, message);
        if (error != nullptr) CHECK(error->outcome() == Outcome::kNotSent);
        return error != nullptr ? std::optional{error->code()} : std::nullopt;
    };
    mq::Message message = mq::test::MakeMessage(std::string(1001, 'x'));
    CHECK(code_of(message) == ErrorCode::kTooLarge);
    message = mq::test::MakeMessage("id");
    message.id = std::string(256, 'i');
    CHECK(code_of(message) == ErrorCode::kInvalidArgument);
    message = mq::test::MakeMessage("name");
    message.headers = {{std::string(256, 'n'), "v"}};
    CHECK(code_of(message) == ErrorCode::kInvalidArgument);
    message = mq::test::MakeMessage("headers");
    message.headers = {{"n", std::string(140'000, 'v')}};
    CHECK(code_of(message) == ErrorCode::kTooLarge);
    message = mq::test::MakeMessage("long key", std::string(1000, 'k'));
    CHECK(code_of(message) == std::nullopt);
    message = mq::test::MakeMessage("nearly a frame");
    message.headers = {{"n", std::string(128'000, 'v')}};
    CHECK(code_of(message) == std::nullopt);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    REQUIRE(receiver->WaitForMessages(2));
    CHECK(receiver->Messages()[0].key == std::string(1000, 'k'));
    CHECK(receiver->Messages()[1].headers == message.headers);
}

TEST_CASE("RabbitMQ: a message over which the broker closes the channel fails alone", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url, {{"max_message_size", "536870912"}, {"confirm_window", "100"}}};
    const Destination destination = Fresh();
    const auto publisher = client.backend->MakePublisher(destination);
    for (int i = 0; i < 10; ++i) publisher->Publish(MakePublication("before"));
    // RabbitMQ's own limit is 128 MiB by default.
    publisher->Publish(MakePublication(std::string((std::size_t{128} << 20u) + 1, 'x')));
    for (int i = 0; i < 10; ++i) publisher->Publish(MakePublication("after"));
    REQUIRE(client.sink.WaitForFinished(21));
    CHECK(client.sink.Confirmed() == 20);
    for (std::size_t i = 0; i < 21; ++i) {
        const mq::backend::Publication& finished = client.sink.At(i);
        if (finished.error == nullptr) continue;
        CHECK(finished.message.body.size() > 100);
        CHECK(finished.error->code() == ErrorCode::kTooLarge);
        CHECK(finished.error->native_code() == 406);
    }
}

TEST_CASE("RabbitMQ: an address queue:// is one existing queue", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const std::string queue = UniqueId("work");
    const Destination destination = MakeDestination("orders", "queue://" + queue);
    Connected strict{url, {{"declare", "false"}}};
    const mq::Error* const error = strict.Send(destination, "early");
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kNotFound);
    NativeClient native{url};
    native.DeclareQueue(queue, {{"x-max-length", "100"}});
    Connected client{url};
    REQUIRE(client.Send(destination, mq::test::MakeMessage("by the library", "key")) == nullptr);
    native.Publish("", queue, "by another program");
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "any group", receiver);
    REQUIRE(receiver->WaitForMessages(2));
    CHECK(receiver->Messages()[0].key == "key");
    CHECK(receiver->Messages()[1].key.empty());
    CHECK(receiver->Messages()[1].body == "by another program");
}

TEST_CASE("RabbitMQ: a queue that refuses a message has it fail with an unknown outcome",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Destination destination = MakeDestination("orders", "queue://" + UniqueId("full"));
    NativeClient native{url};
    native.DeclareQueue(destination->address.substr(8),
                        {{"x-max-length", "1"}, {"x-overflow", "reject-publish"}});
    Connected client{url};
    REQUIRE(client.Send(destination, "first") == nullptr);
    const mq::Error* error = nullptr;
    // A classic queue takes one more than its length before it refuses.
    for (int i = 0; i < 5 && error == nullptr; ++i) error = client.Send(destination, "more");
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kRefused);
    CHECK(error->outcome() == Outcome::kUnknown);
}

TEST_CASE("RabbitMQ: a quorum queue and a single active consumer are declared where asked for",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Destination ordered = MakeDestination("orders", UniqueId("orders"), {"g"}, true);
    Connected client{url, {{"queue_type", "quorum"}}};
    REQUIRE(client.Send(ordered, "one") == nullptr);
    NativeClient native{url};
    CHECK_NOTHROW(native.DeclareQueue(
        ordered->address + ".g", {{"x-queue-type", "quorum"}, {"x-single-active-consumer", "true"}}));
    const auto first = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto second = std::make_shared<RecordingReceiver>();
    auto active = client.SubscribeActive(ordered, "g", first);
    const auto waiting = client.SubscribeActive(ordered, "g", second);
    REQUIRE(client.Send(ordered, "two") == nullptr);
    REQUIRE(first->WaitForHeld(2));
    CHECK(second->Count() == 0);
    active->Close(After());
    REQUIRE(second->WaitForMessages(2));
    CHECK(second->Bodies() == std::vector<std::string>{"one", "two"});
    CHECK(second->Messages()[0].redelivered);
}

TEST_CASE("RabbitMQ: no more than the prefetch is outstanding", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
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
}

TEST_CASE("RabbitMQ: what is unsettled when a consumer closes is delivered again, and marked",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    for (const char* body : {"a", "b", "c", "d"}) REQUIRE(client.Send(destination, body) == nullptr);
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
    CHECK(second->Messages()[0].redelivered);
    const Backlog backlog = client.backend->CheckBacklog(*destination, "g", After());
    CHECK(backlog.answer == Backlog::Answer::kDrained);
}

TEST_CASE("RabbitMQ: nothing is delivered after Stop has returned", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const auto publisher = client.backend->MakePublisher(destination);
    for (int i = 0; i < 2000; ++i) publisher->Publish(MakePublication("m"));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver, 10);
    REQUIRE(receiver->WaitForMessages(100));
    consumer->Stop();
    const std::size_t count = receiver->Count();
    consumer->Close(After());
    CHECK(receiver->Count() == count);
    const auto rest = std::make_shared<RecordingReceiver>();
    const auto again = client.Subscribe(destination, "g", rest);
    CHECK(rest->WaitForMessages(2000 - count));
}

TEST_CASE("RabbitMQ: a consumer whose queue is deleted comes back", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    REQUIRE(client.Send(destination, "held") == nullptr);
    REQUIRE(receiver->WaitForHeld(1));
    NativeClient native{url};
    native.DeleteQueue(destination->address + ".g");
    CHECK(receiver->WaitForStale(1));
    CHECK(receiver->WaitForHeld(0));
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
    receiver->Set(Receive::kSettle);
    REQUIRE(client.Send(destination, "after") == nullptr);
    CHECK(receiver->WaitForMessages(2));
}

TEST_CASE("RabbitMQ: a possible duplicate says so to whoever receives it", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    REQUIRE(client.Send(destination, "once") == nullptr);
    auto repeat = MakePublication("perhaps twice");
    repeat->possible_duplicate = true;
    client.backend->MakePublisher(destination)->Publish(std::move(repeat));
    REQUIRE(receiver->WaitForMessages(2));
    for (const mq::Message& message : receiver->Messages()) {
        CHECK(message.redelivered == (message.body == "perhaps twice"));
        CHECK(message.headers.empty());  // the mark is not the business's
    }
}

TEST_CASE("RabbitMQ: a group that is said to listen gets what is published", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh({});  // the publisher knows no group, and binds none
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    NativeClient native{url};
    native.Unbind(destination->address + ".g", destination->address, "#");
    const auto lost = client.Send(destination, "lost");
    REQUIRE(lost != nullptr);
    CHECK(lost->code() == ErrorCode::kUnroutable);
    CHECK(client.backend->CheckListening(*destination, "g", After()).answer == Listening::Answer::kYes);
    CHECK(client.Send(destination, "m") == nullptr);
    CHECK(receiver->WaitForMessages(1));
}

TEST_CASE("RabbitMQ: a group listens when somebody consumes its queue", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected asking{url};
    Connected consuming{url};
    const Destination destination = Fresh({});
    const auto listening = [&](Connected& client, const std::string& group) {
        return client.backend->CheckListening(*destination, group, After());
    };
    // The first question only makes it connect.
    CHECK(listening(asking, "g").answer == Listening::Answer::kUnknown);
    REQUIRE(asking.log.WaitForLine("connected to consume"));
    Listening answer = listening(asking, "g");
    CHECK(answer.answer == Listening::Answer::kNo);
    CHECK(Contains(answer.reason, destination->address + ".g"));

    const auto receiver = std::make_shared<RecordingReceiver>();
    auto consumer = consuming.SubscribeActive(destination, "g", receiver);
    CHECK(listening(asking, "g").answer == Listening::Answer::kYes);
    CHECK(listening(asking, "h").answer == Listening::Answer::kNo);
    CHECK(listening(consuming, "").answer == Listening::Answer::kYes);
    answer = listening(asking, "");
    CHECK(answer.answer == Listening::Answer::kUnknown);
    CHECK(Contains(answer.reason, "`groups`"));

    consumer->Close(After());
    answer = listening(asking, "g");
    CHECK(answer.answer == Listening::Answer::kNo);
    CHECK(Contains(answer.reason, "nobody consumes"));
    CHECK(listening(consuming, "").answer == Listening::Answer::kUnknown);
}

TEST_CASE("RabbitMQ: a client that only publishes can ask as well", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    REQUIRE(client.Send(destination, "one") == nullptr);
    CHECK(client.backend->CheckListening(*destination, "g", After()).answer == Listening::Answer::kNo);
    const Backlog backlog = client.backend->CheckBacklog(*destination, "g", After());
    CHECK(backlog.answer == Backlog::Answer::kNotDrained);
    CHECK(backlog.messages == 1);
}

TEST_CASE("RabbitMQ: a backlog counts what is ready and what our own members hold", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    Connected elsewhere{url};
    const Destination destination = Fresh();
    for (int i = 0; i < 5; ++i) REQUIRE(client.Send(destination, "m") == nullptr);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    auto consumer = client.SubscribeActive(destination, "g", receiver, 2);
    REQUIRE(receiver->WaitForHeld(2));
    const auto backlog = [&] { return client.backend->CheckBacklog(*destination, "g", After()); };
    CHECK(backlog().answer == Backlog::Answer::kNotDrained);
    CHECK(backlog().messages == 5);
    receiver->SettleHeld();
    REQUIRE(receiver->WaitForHeld(2));
    receiver->SettleHeld();
    REQUIRE(receiver->WaitForHeld(1));
    CHECK(backlog().answer == Backlog::Answer::kNotDrained);
    CHECK(backlog().messages == 1);
    receiver->SettleHeld();
    CHECK(backlog().answer == Backlog::Answer::kDrained);
    CHECK_FALSE(backlog().exact);

    // Members elsewhere may hold something at any time, whether one is there just now or not.
    consumer->Close(After());
    const auto other = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto second = elsewhere.SubscribeActive(destination, "g", other);
    REQUIRE(client.Send(destination, "held elsewhere") == nullptr);
    REQUIRE(other->WaitForHeld(1));
    CHECK(backlog().answer == Backlog::Answer::kDrained);
    CHECK_FALSE(backlog().exact);
    CHECK(Contains(backlog().reason, "AMQP does not tell what members elsewhere hold unsettled"));

    const Backlog missing = client.backend->CheckBacklog(*Fresh(), "g", After());
    CHECK(missing.answer == Backlog::Answer::kDrained);
    CHECK(missing.exact);
}

TEST_CASE("RabbitMQ: by its management it is known what a member elsewhere holds", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const auto folder = std::filesystem::path{*mq::test::FromEnvironment("MQ_TEST_RABBITMQ_DIR")};
    std::string management;
    std::ifstream{folder / "management"} >> management;
    // The broker of the tests collects its counts every second, and later on a loaded machine.
    Connected client{url, {{"management", management}, {"management_age", "8s"}}};
    Connected elsewhere{url};
    const Destination destination = Fresh();
    const auto own = client.SubscribeActive(destination, "g", std::make_shared<RecordingReceiver>());
    const auto other = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto busy = elsewhere.SubscribeActive(destination, "g", other);
    // The members take turns.
    for (int i = 0; i < 2; ++i) REQUIRE(client.Send(destination, "m") == nullptr);
    REQUIRE(other->WaitForHeld(1));
    const auto backlog = [&] { return client.backend->CheckBacklog(*destination, "g", After()); };
    // Never drained, whatever the counts are that are collected meanwhile.
    REQUIRE(Eventually([&] {
        const Backlog seen = backlog();
        REQUIRE(seen.answer != Backlog::Answer::kDrained);
        return seen.answer == Backlog::Answer::kNotDrained && seen.messages == 1;
    }));
    other->SettleHeld();
    REQUIRE(Eventually([&] { return backlog().answer == Backlog::Answer::kDrained; }));
    CHECK_FALSE(backlog().exact);

    // Zero proves nothing before it is older than the counts may be.
    Connected patient{url, {{"management", management}, {"management_age", "1m"}}};
    CHECK(Eventually([&] {
        const Backlog seen = patient.backend->CheckBacklog(*destination, "g", After());
        REQUIRE(seen.answer != Backlog::Answer::kDrained);
        return Contains(seen.reason, "by counts that may be 1m old");
    }));

    Connected stranger{url, {{"management", With(management, "http://", "http://guest:wrong@")}}};
    const auto third =
        stranger.SubscribeActive(destination, "g", std::make_shared<RecordingReceiver>());
    const Backlog refused = stranger.backend->CheckBacklog(*destination, "g", After());
    CHECK(refused.answer == Backlog::Answer::kUnknown);
    CHECK(Contains(refused.reason, "answers 401"));
}

TEST_CASE("RabbitMQ: drained is never said while a message is on its way to a consumer", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    for (int i = 1; i <= 200; ++i) {
        REQUIRE(client.Send(destination, "m") == nullptr);
        const Backlog backlog = client.backend->CheckBacklog(*destination, "g", After());
        REQUIRE(backlog.answer == Backlog::Answer::kNotDrained);
        REQUIRE(receiver->WaitForHeld(1));
        receiver->SettleHeld();
    }
}

Destination FreshInOrder() { return MakeDestination("orders", UniqueId("orders"), {"g"}, true); }

TEST_CASE("RabbitMQ: of an ordered topic it is known what a member elsewhere holds",
          "[rabbitmq][probe]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    Connected elsewhere{url};
    const Destination destination = FreshInOrder();
    const auto active = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto first = elsewhere.SubscribeActive(destination, "g", active);
    const auto standby = std::make_shared<RecordingReceiver>();
    const auto second = client.SubscribeActive(destination, "g", standby);
    const auto ask = [&] { return client.backend->CheckBacklog(*destination, "g", After()); };
    for (int i = 0; i < 3; ++i) REQUIRE(client.Send(destination, "m") == nullptr);
    REQUIRE(active->WaitForHeld(3));
    const auto before = mq::backend::Clock::now();
    Backlog backlog = ask();
    CHECK(backlog.answer == Backlog::Answer::kUnknown);
    CHECK(Contains(backlog.reason, "has not settled what it holds"));
    CHECK_FALSE(backlog.settled_before >= before);
    // The one that was behind the others first: the probe must wait for all.
    auto held = active->TakeHeld();
    held[2]->Settle();
    held[0]->Settle();
    CHECK(ask().answer == Backlog::Answer::kUnknown);
    held[1]->Settle();
    CHECK(Eventually([&] { return (backlog = ask()).answer == Backlog::Answer::kDrained; }));
    CHECK(backlog.exact);
    CHECK(backlog.settled_before >= before);
    // No business code has seen a probe.
    CHECK(active->Count() == 3);
    CHECK(standby->Count() == 0);

    // What has come since does not take back what is known of before.
    const auto between = mq::backend::Clock::now();
    CHECK(Eventually([&] { return ask().settled_before >= between; }));
    REQUIRE(client.Send(destination, "later") == nullptr);
    REQUIRE(active->WaitForHeld(1));
    backlog = ask();
    CHECK(backlog.answer == Backlog::Answer::kUnknown);
    CHECK(backlog.settled_before >= between);
    active->SettleHeld();
    CHECK(Eventually([&] { return ask().answer == Backlog::Answer::kDrained; }));
}

TEST_CASE("RabbitMQ: what a member held that is gone comes before the answer to a probe",
          "[rabbitmq][probe]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const auto elsewhere = std::make_unique<Connected>(url);
    const Destination destination = FreshInOrder();
    const auto active = std::make_shared<RecordingReceiver>(Receive::kHold);
    auto first = elsewhere->SubscribeActive(destination, "g", active);
    const auto standby = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto second = client.SubscribeActive(destination, "g", standby);
    Connected third{url};  // asks, and consumes nothing
    const auto ask = [&] { return third.backend->CheckBacklog(*destination, "g", After()).answer; };
    REQUIRE(client.Send(destination, "m") == nullptr);
    REQUIRE(active->WaitForHeld(1));
    CHECK(Eventually([&] { return ask() == Backlog::Answer::kUnknown; }));
    first->Close(After());
    REQUIRE(standby->WaitForHeld(1));
    for (int i = 0; i < 3; ++i) CHECK(ask() != Backlog::Answer::kDrained);
    standby->SettleHeld();
    CHECK(Eventually([&] { return ask() == Backlog::Answer::kDrained; }));
}

TEST_CASE("RabbitMQ: in order, no member overtakes one that is being closed", "[rabbitmq][probe]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = FreshInOrder();
    const auto closing = std::make_shared<RecordingReceiver>(Receive::kHold);
    auto first = client.SubscribeActive(destination, "g", closing, 1);
    const auto standby = std::make_shared<RecordingReceiver>();
    const auto second = client.SubscribeActive(destination, "g", standby);
    for (const char* body : {"one", "two"}) REQUIRE(client.Send(destination, body) == nullptr);
    REQUIRE(closing->WaitForHeld(1));
    first->Stop();  // "one" is still being handled
    CHECK_FALSE(standby->WaitForMessages(1, 300ms));
    closing->SettleHeld();
    first->Close(After());
    REQUIRE(standby->WaitForMessages(1));
    CHECK(standby->Bodies() == std::vector<std::string>{"two"});
}

TEST_CASE("RabbitMQ: refused credentials fail what waits at once", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    for (const std::string& wrong : {With(url, "guest:guest", "guest:secret"),
                                     With(url + "nowhere", "guest:guest", "guest:guest")}) {
        INFO(wrong);
        Connected client{wrong};
        const Destination destination = Fresh();
        const mq::Error* const error =
            client.Send(destination, mq::test::MakeMessage("m"), std::chrono::hours{1});
        REQUIRE(error != nullptr);
        CHECK(error->code() == ErrorCode::kAccessDenied);
        CHECK(error->outcome() == Outcome::kNotSent);
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.Subscribe(destination, "g", receiver);
        CHECK(receiver->WaitForPhase(*consumer, Phase::kRefused));
        CHECK(client.backend->CheckListening(*destination, "g", After()).answer ==
              Listening::Answer::kUnknown);
        for (const auto& [level, line] : client.log.Lines()) CHECK_FALSE(Contains(line, "secret"));
        CHECK_FALSE(Contains(error->what(), "secret"));
    }
}

// A message that waits has the client connect; when that has failed, as its log says, a later one fails
// at its deadline for the same reason.
void CheckNeverSent(Connected& client, const Destination& destination, const std::string& reason) {
    INFO(reason);
    client.backend->MakePublisher(destination)->Publish(MakePublication("waits", "", 1h));
    REQUIRE(client.log.WaitForLine(reason));
    const auto begin = mq::backend::Clock::now();
    const mq::Error* const error = client.Send(destination, mq::test::MakeMessage("m"), 300ms);
    CHECK(mq::backend::Clock::now() >= begin + 300ms);
    REQUIRE(error != nullptr);
    CHECK(error->code() == ErrorCode::kUnavailable);
    CHECK(error->outcome() == Outcome::kNotSent);
    CHECK(Contains(error->what(), reason));
}

TEST_CASE("RabbitMQ: a broker that cannot be reached fails a message at its deadline", "[rabbitmq]") {
    const RefusingPort port;
    Connected client{"amqp://guest:guest@" + port.Host()};
    const Destination destination = Fresh();
    CheckNeverSent(client, destination, "Connection refused");
    CHECK(client.backend->CheckBacklog(*destination, "g", After()).answer == Backlog::Answer::kUnknown);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    CHECK(receiver->WaitForPhase(*consumer, Phase::kRetrying));
}

TEST_CASE("RabbitMQ: several hosts are tried in turn", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const RefusingPort port;
    Connected client{With(url, HostOf(url), port.Host() + "," + HostOf(url))};
    CHECK(client.Send(Fresh(), "m") == nullptr);
}

TEST_CASE("RabbitMQ: many threads publish at once, each in its order", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    constexpr std::size_t kThreads = 8;
    constexpr std::size_t kEach = 500;
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < kThreads; ++thread) {
        threads.emplace_back([&, thread] {
            const auto publisher = client.backend->MakePublisher(destination);
            for (std::size_t i = 0; i < kEach; ++i) {
                publisher->Publish(MakePublication(std::to_string(i), std::to_string(thread)));
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    REQUIRE(client.sink.WaitForConfirmed(kThreads * kEach));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver, 300);
    REQUIRE(receiver->WaitForMessages(kThreads * kEach));
    std::vector<std::size_t> next(kThreads);
    for (const mq::Message& message : receiver->Messages()) {
        CHECK(message.body == std::to_string(next.at(std::stoul(message.key))++));
    }
}

TEST_CASE("RabbitMQ: two hundred subscriptions share one connection", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    constexpr std::size_t kSubscriptions = 200;
    std::vector<Destination> destinations;
    std::vector<std::shared_ptr<RecordingReceiver>> receivers;
    std::vector<std::unique_ptr<mq::backend::Consumer>> consumers;
    for (std::size_t i = 0; i < kSubscriptions; ++i) {
        destinations.push_back(Fresh());
        receivers.push_back(std::make_shared<RecordingReceiver>());
        consumers.push_back(client.Subscribe(destinations[i], "g", receivers[i], 20));
    }
    for (std::size_t i = 0; i < kSubscriptions; ++i) {
        REQUIRE(receivers[i]->WaitForPhase(*consumers[i], Phase::kActive));
    }
    for (int round = 0; round < 5; ++round) {
        for (const Destination& destination : destinations) {
            client.backend->MakePublisher(destination)->Publish(MakePublication(std::string(300, 'x')));
        }
    }
    for (const auto& receiver : receivers) CHECK(receiver->WaitForMessages(5));
    std::size_t connections = 0;
    for (const auto& [level, line] : client.log.Lines()) connections += Contains(line, "connected to");
    CHECK(connections == 2);
    for (const auto& consumer : consumers) consumer->Close(After());
}

TEST_CASE("RabbitMQ: a subscription that finds no free channel says so, and gets the next one",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    // One of the channels is for declarations.
    const std::size_t allowed = NativeClient{url}.ChannelMax() - 1;
    const Destination destination = MakeDestination("orders", "queue://" + UniqueId("work"));
    const auto receiver = std::make_shared<RecordingReceiver>();
    std::vector<std::unique_ptr<mq::backend::Consumer>> consumers;
    for (std::size_t i = 0; i < allowed; ++i) {
        consumers.push_back(client.Subscribe(destination, "g", receiver, 1));
    }
    for (const auto& consumer : consumers) {
        REQUIRE(receiver->WaitForPhase(*consumer, Phase::kActive));
    }
    const auto late_receiver = std::make_shared<RecordingReceiver>();
    const auto late = client.Subscribe(destination, "g", late_receiver, 1);
    REQUIRE(late_receiver->WaitForPhase(*late, Phase::kRefused));
    CHECK(Contains(late->State().error->what(), "channel_max"));
    consumers.front()->Close(After());
    CHECK(late_receiver->WaitForPhase(*late, Phase::kActive));
}

TEST_CASE("RabbitMQ: heartbeats keep an idle connection whatever its handlers do", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    // Long enough that nobody who has to wait for the processor is taken for dead.
    Connected client{url, {{"heartbeat", "3s"}}};
    const Destination destination = Fresh();
    REQUIRE(client.Send(destination, "one") == nullptr);
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    REQUIRE(receiver->WaitForHeld(1));
    // We close a connection after two heartbeats of silence, and the broker at the latest after three.
    CHECK_FALSE(receiver->WaitForStale(1, 10s));
    receiver->SettleHeld();
    CHECK(client.backend->CheckBacklog(*destination, "g", After()).answer == Backlog::Answer::kDrained);
    REQUIRE(client.Send(destination, "two") == nullptr);
    REQUIRE(receiver->WaitForHeld(1));
    for (const auto& [level, line] : client.log.Lines()) CHECK_FALSE(Contains(line, "reconnecting"));
}

TEST_CASE("RabbitMQ: closing waits for what is in flight, and a later publish comes back closed",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
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
}

TEST_CASE("RabbitMQ: closing in an outage hands back what was never sent", "[rabbitmq]") {
    const RefusingPort port;
    Connected client{"amqp://guest:guest@" + port.Host()};
    client.backend->MakePublisher(Fresh())->Publish(MakePublication("m"));
    const auto begin = mq::backend::Clock::now();
    client.backend->Close(After(200ms));
    CHECK(mq::backend::Clock::now() < begin + kPrompt);
    REQUIRE(client.sink.Count() == 1);
    CHECK(client.sink.At(0).error->code() == ErrorCode::kClosed);
    CHECK(client.sink.At(0).error->outcome() == Outcome::kNotSent);
}

TEST_CASE("RabbitMQ: consumers and messages outlive their backend harmlessly", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
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
}

TEST_CASE("RabbitMQ: amqps checks the certificate and the host name", "[rabbitmq]") {
    const auto folder = mq::test::FromEnvironment("MQ_TEST_RABBITMQ_DIR");
    const std::filesystem::path broker = folder.value_or("");
    std::ifstream file{broker / "url-tls"};
    std::string url;
    if (!std::getline(file, url)) return mq::test::SkipCase("there is no RabbitMQ with a TLS listener");
    const std::string trusted = (broker / "tls" / "ca.pem").string();
    const Destination destination = Fresh();

    Connected client{url, {{"tls.ca", trusted}}};
    mq::Message large = mq::test::MakeMessage(std::string(1 << 20, 'x'), "key");
    large.headers = {{"long", std::string(100'000, 'v')}};
    CHECK(client.Send(destination, large) == nullptr);
    const auto publisher = client.backend->MakePublisher(destination);
    for (int i = 0; i < 2000; ++i) publisher->Publish(MakePublication("m"));
    CHECK(client.sink.WaitForConfirmed(2001));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    REQUIRE(receiver->WaitForMessages(2001));
    CHECK(receiver->Messages()[0].body == large.body);
    CHECK(receiver->Messages()[0].headers == large.headers);

    Connected stranger{url};
    CheckNeverSent(stranger, destination, "vouches for");
    // Another name of the same host, which no certificate has.
    Connected elsewhere{With(url, "localhost", "127.1"), {{"tls.ca", trusted}}};
    CheckNeverSent(elsewhere, destination, "not one for the host 127.1");
    Connected careless{With(url, "localhost", "127.0.0.1"), {{"tls.verify", "false"}}};
    CHECK(careless.Send(destination, "m") == nullptr);
    CHECK(careless.log.WaitForLine("tls.verify is off"));
}
