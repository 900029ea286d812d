/// @file rabbitmq_world_test.cpp
/// The RabbitMQ adapter among other programs, and at brokers that are set up in another way: what they
/// take away comes back, and what would lose messages is refused or said.
#include "../support/catch.hpp"
#include "../support/rabbitmq_fixture.hpp"
#include "../support/relay.hpp"
#include <mq/backends/rabbitmq_management.hpp>

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using mq::ErrorCode;
using mq::test::MakeDestination;
using mq::test::MakePublication;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using mq::test::Relay;
using namespace mq::test::rabbitmq;
using namespace std::chrono_literals;

amqp_table_entry_t TextHeader(const char* name, const std::string& value) {
    amqp_table_entry_t entry{};
    entry.key = amqp_cstring_bytes(name);
    entry.value.kind = AMQP_FIELD_KIND_UTF8;
    entry.value.value.bytes = NativeClient::Text(value);
    return entry;
}
amqp_table_entry_t TextHeader(const char* name, std::string&& value) = delete;  // which must be kept

amqp_basic_properties_t WithHeader(amqp_table_entry_t& header) {
    amqp_basic_properties_t properties{};
    properties._flags = AMQP_BASIC_HEADERS_FLAG;
    properties.headers = {1, &header};
    return properties;
}

/// Whether a queue is there.
bool HasQueue(const std::string& url, const std::string& queue) {
    NativeClient native{url};
    try {
        native.Bind(queue, "amq.fanout", "");
        native.Unbind(queue, "amq.fanout", "");
    } catch (const std::runtime_error&) {
        return false;
    }
    return true;
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
    for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
        text.replace(at, from.size(), to);
    }
    return text;
}

/// Calls `keep(class, method, frame)` with each method frame of a piece, and takes out those for which
/// it is false. Small exchanges come in whole frames.
template <typename Keep>
void FilterMethods(std::string& piece, Keep keep) {
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::size_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i) {
            value = value << 8u | static_cast<unsigned char>(piece.at(at + i));
        }
        return value;
    };
    constexpr std::size_t kHead = 7;
    std::string kept;
    std::size_t at = piece.starts_with("AMQP") ? 8 : 0;
    kept = piece.substr(0, at);
    while (at + kHead <= piece.size()) {
        const std::string frame = piece.substr(at, number(at + 3, 4) + kHead + 1);
        const bool method = frame[0] == 1 && frame.size() > kHead + 4;
        if (!method || keep(number(at + kHead, 2), number(at + kHead + 2, 2), frame)) kept += frame;
        at += frame.size();
    }
    piece = kept;
}

}  // namespace

TEST_CASE("RabbitMQ: a message with the header of a probe is a message", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver, 1);
    NativeClient native{url};
    const std::string value = "true";
    amqp_table_entry_t header = TextHeader("mq-probe", value);
    amqp_basic_properties_t properties = WithHeader(header);
    native.Publish(destination->address, "", "with a body", properties);
    properties._flags |=
        AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG | AMQP_BASIC_EXPIRATION_FLAG;
    properties.reply_to = amqp_cstring_bytes("answers");
    properties.correlation_id = amqp_cstring_bytes("1");
    properties.expiration = amqp_cstring_bytes("600000");
    native.Publish("", destination->address + ".g", "", properties);
    REQUIRE(receiver->WaitForMessages(2));
    CHECK(receiver->Bodies() == std::vector<std::string>{"with a body", ""});
}

TEST_CASE("RabbitMQ: a message whose headers have grown beyond a frame is received", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    NativeClient native{url};
    const std::string waiting = destination->address + ".waiting";
    native.DeclareQueue(waiting,
                        {{"x-dead-letter-exchange", destination->address}, {"x-message-ttl", "1"}});
    const std::string large(130'900, 'h');
    amqp_table_entry_t header = TextHeader("large", large);
    native.Publish("", waiting, "dead-lettered", WithHeader(header));
    REQUIRE(receiver->WaitForMessages(1));
    const mq::Message message = receiver->Messages()[0];
    CHECK(message.body == "dead-lettered");
    CHECK(message.headers.at(0).second == large);
    REQUIRE(client.Send(destination, "after it") == nullptr);
    CHECK(receiver->WaitForMessages(2));
}

// Where it cannot be received at all, it must not stop what has nothing to do with it.
TEST_CASE("RabbitMQ: a message that breaks the connection stops its own subscription alone",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Relay relay{mq::ParseUrl(url).hosts[0].port, [](std::string& piece, std::string&) {
                          // A header of a kind that there is not.
                          piece = Replaced(piece,
                                           "\x06"
                                           "breaksS",
                                           "\x06"
                                           "breaksZ");
                      }};
    Connected client{With(url, HostOf(url), relay.Host())};
    const Destination good = Fresh();
    const Destination bad = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(good, "g", receiver);
    const auto stopped = std::make_shared<RecordingReceiver>();
    const auto broken = client.SubscribeActive(bad, "g", stopped);
    NativeClient native{url};
    const std::string value = "the connection";
    amqp_table_entry_t header = TextHeader("breaks", value);
    native.Publish(bad->address, "", "unreadable", WithHeader(header));
    REQUIRE(Eventually([&] { return broken->State().phase == Phase::kRefused; }));
    CHECK(Contains(broken->State().standstill, bad->address + ".g"));
    REQUIRE(Eventually([&] { return consumer->State().phase == Phase::kActive; }));
    CHECK(consumer->State().standstill.empty());
    REQUIRE(client.Send(good, "good") == nullptr);
    CHECK(receiver->WaitForMessages(1));
    CHECK(broken->State().phase == Phase::kRefused);
    CHECK(client.log.WaitForLine("cannot be read"));
}

TEST_CASE("RabbitMQ: another product behind the URL is said", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Relay relay{mq::ParseUrl(url).hosts[0].port, [](std::string& piece, std::string&) {
                          piece = Replaced(piece, "RabbitMQ", "CarrotMQ");
                      }};
    Connected client{With(url, HostOf(url), relay.Host())};
    CHECK(client.Send(Fresh(), "m") == nullptr);
    CHECK(client.log.WaitForLine("\"CarrotMQ\""));
    Connected sound{url};
    CHECK(sound.Send(Fresh(), "m") == nullptr);
    for (const auto& [level, line] : sound.log.Lines())
        CHECK_FALSE(Contains(line, "is not a RabbitMQ"));
}

TEST_CASE("RabbitMQ: messages to one address keep their order whatever else its descriptions say",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination first = Fresh({"g"});
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(first, "g", receiver);
    REQUIRE(client.Send(first, "0") == nullptr);
    // Each description needs a queue that is not there yet, and the one before needs nothing more.
    std::vector<std::unique_ptr<mq::backend::Publisher>> publishers;
    publishers.push_back(client.backend->MakePublisher(first));
    for (const char* const group : {"h", "i", "j"}) {
        publishers.push_back(
            client.backend->MakePublisher(MakeDestination("orders", first->address, {"g", group})));
    }
    constexpr std::size_t kMessages = 400;
    std::vector<std::string> expected{"0"};
    for (std::size_t i = 1; i <= kMessages; ++i) {
        expected.push_back(std::to_string(i));
        // A newer description after each hundred, and now and then a sender that still has the first.
        const std::size_t which = i % 7 == 0 ? 0 : (i - 1) * publishers.size() / kMessages;
        publishers[which]->Publish(MakePublication(expected.back()));
    }
    REQUIRE(client.sink.WaitForConfirmed(kMessages + 1));
    REQUIRE(receiver->WaitForMessages(kMessages + 1));
    CHECK(receiver->Bodies() == expected);
}

TEST_CASE("RabbitMQ: what another program takes away from live and from named groups comes back",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected publisher{url};
    Connected member{url};
    // The publisher knows of one group only: the other is a consumer's own affair.
    const Destination remade = Fresh({});
    const Destination deleted = Fresh({"g", "h"});
    const Destination unbound = Fresh({"g", "h"});
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = member.SubscribeActive(remade, "g", receiver);
    const auto other = member.SubscribeActive(deleted, "g", std::make_shared<RecordingReceiver>());
    for (const Destination& each : {remade, deleted, unbound}) {
        REQUIRE(publisher.Send(each, "before") == nullptr);
    }
    NativeClient native{url};
    native.DeleteExchange(remade->address);
    native.DeclareExchange(remade->address, "fanout");
    native.DeclareQueue(remade->address + ".theirs");
    native.Bind(remade->address + ".theirs", remade->address, "");
    native.DeleteQueue(deleted->address + ".h");
    native.Unbind(unbound->address + ".h", unbound->address, "#");

    const auto sends = [&](const Destination& to, const std::string& body) {
        return publisher.Send(to, body) == nullptr;
    };
    const auto in_queue = [&](const Destination& of) {
        std::size_t count = 0;
        while (native.Get(of->address + ".h", [](auto&&...) {})) ++count;
        return count;
    };
    in_queue(unbound);
    CHECK(Eventually([&] { return sends(remade, "m") && receiver->Bodies().back() == "m"; }));
    CHECK(Eventually([&] { return sends(deleted, "m") && HasQueue(url, deleted->address + ".h"); }));
    REQUIRE(sends(deleted, "after"));
    CHECK(in_queue(deleted) > 0);
    CHECK(Eventually([&] { return sends(unbound, "m") && in_queue(unbound) > 0; }));
}

TEST_CASE("RabbitMQ: a queue whose only group lost it fails a message, and is there for the next",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    Connected client{url};
    const Destination destination = Fresh();
    REQUIRE(client.Send(destination, "before") == nullptr);
    NativeClient native{url};
    native.DeleteQueue(destination->address + ".g");
    REQUIRE(Eventually([&] { return client.Send(destination, "after") == nullptr; }));
    CHECK(HasQueue(url, destination->address + ".g"));
}

TEST_CASE("RabbitMQ: a stream is refused, whatever else it was declared with", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Options arguments =
        GENERATE(Options{}, Options{{"x-max-length-bytes", "20000000"},
                                    {"x-max-age", "1h"},
                                    {"x-stream-max-segment-size-bytes", "1000000"}});
    Options all = arguments;
    all["x-queue-type"] = "stream";
    const Destination destination = Fresh();
    NativeClient native{url};
    native.DeclareQueue(destination->address + ".g", all);
    Connected client{url};
    REQUIRE(client.Send(destination, "before anybody consumes") == nullptr);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, "g", receiver);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    REQUIRE(consumer->State().error != nullptr);
    CHECK(consumer->State().error->code() == ErrorCode::kUnsupported);
    CHECK(Contains(consumer->State().error->what(), "is a stream"));
    CHECK(receiver->Messages().empty());
}

TEST_CASE("RabbitMQ: a queue that loses messages by itself is said, and used as it is", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Destination destination = Fresh();
    NativeClient native{url};
    native.DeclareQueue(destination->address + ".g", {{"x-max-length", "100"},
                                                      {"x-message-ttl", "600000"},
                                                      {"x-dead-letter-exchange", "elsewhere"},
                                                      {"x-queue-mode", "lazy"}});
    Connected client{url};
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, "g", receiver);
    CHECK(client.log.WaitForLine("x-max-length = 100"));
    CHECK(client.log.WaitForLine("x-message-ttl = 600000"));
    REQUIRE(client.Send(destination, "m") == nullptr);
    CHECK(receiver->WaitForMessages(1));
}

namespace {

/// Each life of a process handles one message and is gone: how many lives it takes that way, and
/// nothing may be dropped that no handler has begun with.
void CheckLives(const std::string& url, const Destination& destination, const Options& options,
                const std::string& said) {
    Connected sender{url};
    constexpr std::size_t kMessages = 20;
    for (std::size_t i = 0; i < kMessages; ++i) {
        REQUIRE(sender.Send(destination, std::to_string(i)) == nullptr);
    }
    for (std::size_t i = 0; i < kMessages; ++i) {
        INFO("the life " << i);
        Connected client{url, options};
        const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
        const auto consumer = client.Subscribe(destination, "g", receiver);
        REQUIRE(receiver->WaitForHeld(std::min<std::size_t>(3, kMessages - i)));
        CHECK(receiver->Bodies().front() == std::to_string(i));
        receiver->SettleHeld(1);
        consumer->Stop();
        consumer->Close(mq::backend::Clock::now() + 10s);
        receiver->DropHeld();
        CHECK(client.log.WaitForLine(said));
    }
    CHECK_FALSE(NativeClient{url}.Get(destination->address + ".g", [](auto&&...) {}));
}

/// Sets a policy by the management, which is gone with the object.
class Policy {
public:
    Policy(const std::string& management, const std::string& queue, const std::string& definition)
        : url_(management + "/api/policies/%2F/" + queue) {
        Do("PUT", R"({"apply-to": "queues", "pattern": "^)" + queue + R"($", "definition": )" +
                      definition + "}");
    }
    Policy(const Policy&) = delete;
    Policy& operator=(const Policy&) = delete;
    ~Policy() { Do("DELETE", {}); }

private:
    void Do(const char* what, const std::string& body) const {
        CURL* const handle = ::curl_easy_init();
        ::curl_easy_setopt(handle, CURLOPT_URL, url_.c_str());
        ::curl_easy_setopt(handle, CURLOPT_USERPWD, "guest:guest");
        ::curl_easy_setopt(handle, CURLOPT_CUSTOMREQUEST, what);
        ::curl_easy_setopt(handle, CURLOPT_COPYPOSTFIELDS, body.c_str());
        ::curl_easy_setopt(handle, CURLOPT_TIMEOUT, 30L);
        CHECK(::curl_easy_perform(handle) == CURLE_OK);
        long status = 0;
        ::curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
        CHECK(status / 100 == 2);
        ::curl_easy_cleanup(handle);
    }

    const std::string url_;
};

std::string ManagementUrl() {
    std::ifstream file{std::filesystem::path{*mq::test::FromEnvironment("MQ_TEST_RABBITMQ_DIR")} /
                       "management"};
    std::string url;
    REQUIRE(std::getline(file, url));
    return url;
}

/// Declares a queue, and waits until the management knows what policies say of it.
void AwaitPolicy(const std::string& url, const std::string& management, const std::string& queue,
                 const Options& arguments) {
    NativeClient{url}.DeclareQueue(queue, arguments);
    const auto asked = mq::rabbitmq::MakeHttpManagement(
        {.broker = "RabbitMQ", .url = mq::ParseUrl(management), .user = "guest", .password = "guest"});
    REQUIRE(Eventually(
        [&] { return !asked->PolicyOf("/", queue, mq::backend::Clock::now() + 10s).empty(); }));
}

}  // namespace

TEST_CASE("RabbitMQ: a policy that loses messages is said where the management can be asked",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const std::string management = ManagementUrl();
    const Destination destination = Fresh();
    const std::string queue = destination->address + ".g";
    const Policy policy{management, queue, R"({"max-length": 1000})"};
    AwaitPolicy(url, management, queue, {});
    Connected client{url, {{"management", management}}};
    const auto consumer =
        client.SubscribeActive(destination, "g", std::make_shared<RecordingReceiver>());
    CHECK(client.log.WaitForLine("x-max-length = 1000"));
}

TEST_CASE("RabbitMQ: a delivery limit drops nothing that no handler has begun with", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const Destination destination = Fresh();
    NativeClient native{url};
    native.DeclareQueue(destination->address + ".g",
                        {{"x-queue-type", "quorum"}, {"x-delivery-limit", "3"}});
    CheckLives(url, destination, {}, "returned 3 times");
}

TEST_CASE("RabbitMQ: a delivery limit that a policy sets is known where the management can be asked",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const std::string management = ManagementUrl();
    const Destination destination = Fresh();
    const std::string queue = destination->address + ".g";
    const Policy policy{management, queue, R"({"delivery-limit": 3})"};
    AwaitPolicy(url, management, queue, {{"x-queue-type", "quorum"}});
    CheckLives(url, destination, {{"management", management}}, "returned 3 times");
}

TEST_CASE("RabbitMQ: from 4.0 on a quorum queue that says nothing has the broker's own delivery limit",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    // What the broker says of its version, with another number in front.
    const Relay relay{mq::ParseUrl(url).hosts[0].port, [](std::string& piece, std::string&) {
                          const auto at = piece.find(
                              "\x07"
                              "versionS");
                          if (at != std::string::npos) piece.at(at + 8 + 1 + 4) = '4';
                      }};
    const Destination destination = Fresh();
    NativeClient{url}.DeclareQueue(destination->address + ".g", {{"x-queue-type", "quorum"}});
    Connected client{With(url, HostOf(url), relay.Host())};
    const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
    const auto consumer = client.SubscribeActive(destination, "g", receiver, 100);
    CHECK(client.log.WaitForLine("the default of RabbitMQ 4"));
    for (int i = 0; i < 25; ++i) REQUIRE(client.Send(destination, "m") == nullptr);
    REQUIRE(receiver->WaitForHeld(20));
    CHECK(receiver->MostHeld() == 20);
}

// It lasts as long as the silence after which something is taken to stand still.
TEST_CASE("RabbitMQ: a consumer and a publisher that stand still are mended within the stated bound",
          "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    // The first consumer of each connection is never asked for, and is told that it has been.
    std::atomic<int> consumers{0};
    const auto swallow_consume = [&](std::string& piece, std::string& back) {
        FilterMethods(piece, [&](std::size_t type, std::size_t method, const std::string& frame) {
            if (type != 60 || method != 20 || consumers++ > 0) return true;
            const std::size_t tag_at = 7 + 6 + 1 + static_cast<unsigned char>(frame[7 + 6]);
            const std::string tag = frame.substr(tag_at, 1 + static_cast<unsigned char>(frame[tag_at]));
            back += frame.substr(0, 3) + std::string{0, 0, 0} + static_cast<char>(4 + tag.size()) +
                    std::string{0, 60, 0, 21} + tag + '\xCE';
            return false;
        });
    };
    // The first connection hears of no confirm.
    std::atomic<int> connections{0};
    const auto swallow_confirms = [&](std::string& piece, std::string&) {
        FilterMethods(piece, [&](std::size_t type, std::size_t method, const std::string&) {
            if (type == 10 && method == 10) ++connections;
            return type != 60 || method != 80 || connections > 1;
        });
    };
    const std::uint16_t port = mq::ParseUrl(url).hosts[0].port;
    const Relay deaf{port, {}, swallow_consume};
    const Relay mute{port, swallow_confirms};
    Connected sound{url};
    Connected member{With(url, HostOf(url), deaf.Host())};
    Connected publisher{With(url, HostOf(url), mute.Host())};
    const Destination destination = Fresh();
    REQUIRE(sound.Send(destination, "kept back") == nullptr);
    const auto begin = mq::backend::Clock::now();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = member.SubscribeActive(destination, "g", receiver);
    publisher.backend->MakePublisher(destination)->Publish(MakePublication("not confirmed", {}, 2min));

    REQUIRE(Eventually([&] { return !consumer->State().standstill.empty(); }, 60s));
    CHECK(mq::backend::Clock::now() - begin < mq::backend::kStandstill);
    CHECK(Contains(consumer->State().standstill, destination->address + ".g"));
    REQUIRE(receiver->WaitForMessages(1));
    CHECK(Eventually([&] { return consumer->State().standstill.empty(); }));
    CHECK(publisher.sink.WaitForConfirmed(1));
    CHECK(publisher.log.WaitForLine("it has confirmed none of"));
}

namespace {

/// Waits on its socket for as long as there is one, as the client library does by TLS where a frame
/// does not fit.
class StuckLoop final : public mq::rabbitmq::detail::IoLoop {
public:
    StuckLoop(std::shared_ptr<const mq::rabbitmq::detail::Settings> settings,
              std::shared_ptr<mq::rabbitmq::detail::Mailbox> mailbox)
        : IoLoop(std::move(settings), std::move(mailbox), "be stuck") {}

    std::atomic<bool> stuck = false;

private:
    void Turn(mq::backend::Clock::time_point /*now*/) override {
        if (!Up()) return;
        stuck = true;
        pollfd socket{Wire().Socket(), 0, 0};
        ::poll(&socket, 1, -1);
    }
    [[nodiscard]] mq::backend::Clock::time_point NextTurn() const override {
        return mq::backend::Clock::time_point::max();
    }
    [[nodiscard]] bool Finished(mq::backend::Clock::time_point /*now*/) const override { return stuck; }
    void OnEnd() override {}
    void OnUp() override {}
    void OnDown(const mq::rabbitmq::Failure& /*failure*/) override {}
    void OnMethod(std::uint16_t /*channel*/, const amqp_method_t& /*method*/) override {}
    void OnProperties(std::uint16_t /*channel*/, const amqp_basic_properties_t& /*properties*/,
                      std::uint64_t /*body_size*/) override {}
    void OnBody(std::uint16_t /*channel*/, std::string_view /*fragment*/) override {}
};

}  // namespace

TEST_CASE("RabbitMQ: closing cuts a connection that holds its thread", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    mq::test::RecordingLog log;
    auto settings = std::make_shared<mq::rabbitmq::detail::Settings>();
    settings->context.url = mq::ParseUrl(url);
    settings->context.log = log.Sink();
    StuckLoop loop{settings, std::make_shared<mq::rabbitmq::detail::Mailbox>()};
    loop.Start();
    REQUIRE(Eventually([&] { return loop.stuck.load(); }));
    const auto begin = mq::backend::Clock::now();
    loop.Join(begin + 100ms);
    CHECK(mq::backend::Clock::now() - begin < mq::test::kPrompt);
}
