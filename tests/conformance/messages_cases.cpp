/// @file messages_cases.cpp
/// Conformance cases on what a message carries: whatever goes in comes out, byte for byte, on every
/// broker.
#include "../support/catch.hpp"
#include "cases.hpp"
#include "target.hpp"

#include <chrono>
#include <cstddef>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace mq::conformance {

namespace {

/// Sends one message and returns how it arrives.
Message SendThrough(Target& target, const Message& sent) {
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    client.SendMsg(world.topic, sent);
    REQUIRE(received.WaitForCount(1));
    return received.Messages().front();
}

/// 256 bytes, each value once.
std::string EveryByte() {
    std::string bytes(256, '\0');
    std::iota(bytes.begin(), bytes.end(), static_cast<char>(0));
    return bytes;
}

}  // namespace

void EveryByteOfABodyArrives(Target& target) {
    const std::string body = EveryByte() + EveryByte();
    CHECK(SendThrough(target, {.body = body}).body == body);
}

void AnEmptyMessageArrives(Target& target) {
    const Message received = SendThrough(target, {});
    CHECK(received.body.empty());
    CHECK(received.key.empty());
    CHECK(received.headers.empty());
    CHECK(received.content_type.empty());
    CHECK(received.correlation_id.empty());
    CHECK(received.reply_to.empty());
    CHECK_FALSE(received.id.empty());
}

void BodiesOfOneMebibyteArrive(Target& target) {
    constexpr std::size_t kSize = 1u << 20u;
    constexpr std::size_t kCount = 4;
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    std::vector<Message> messages = MakeMessages(kCount, "big");
    for (std::size_t i = 0; i < kCount; ++i) {
        messages[i].body.resize(kSize);
        for (std::size_t at = 0; at < kSize; ++at) {
            messages[i].body[at] = static_cast<char>((at * 31 + at / 256 + i) & 0xffu);
        }
    }
    REQUIRE(SendAll(client, world.topic, messages));
    REQUIRE(received.WaitForIds(IdsOf(messages)));
    std::size_t equal = 0;
    for (const Message& message : received.Messages()) {
        for (const Message& sent : messages) {
            if (message.id == sent.id && message.body == sent.body) ++equal;
        }
    }
    CHECK(equal == kCount);
}

void HeadersArriveInTheirOrder(Target& target) {
    const Headers headers{{"zulu", "1"}, {"alpha", "2"}, {"Mike", "3"}, {"x-own", "4"}, {"mike", "5"}};
    CHECK(SendThrough(target, {.body = "b", .headers = headers}).headers == headers);
}

void OddStringsInHeadersArrive(Target& target) {
    const Headers headers{
        {"empty", ""},         {"zero", std::string("a\0b", 3)},   {"binary", EveryByte()},
        {"Grüße", "日本語 ☃"}, {"with space", " padded \r\n"},     {"number", "42"},
        {"flag", "true"},      {"long", std::string(10'000, 'x')}, {"quote\"'", "{\"json\": [1, 2]}"}};
    CHECK(SendThrough(target, {.body = "b", .headers = headers}).headers == headers);
}

void AHeaderMayOccurTwice(Target& target) {
    if (!target.traits().repeats_header_names) {
        return test::SkipCase("the broker keeps one header of a name");
    }
    const Headers headers{{"tag", "first"}, {"tag", "second"}, {"tag", "first"}};
    CHECK(SendThrough(target, {.body = "b", .headers = headers}).headers == headers);
}

void KeysArrive(Target& target) {
    const std::vector<std::string> keys{"k",       "customer 42", "日本語",
                                        "a.b.*.#", "/\\\"'",      std::string(1000, 'k')};
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    std::vector<Message> messages;
    for (const std::string& key : keys) messages.push_back({.body = key, .key = key});
    REQUIRE(SendAll(client, world.topic, messages));
    REQUIRE(received.WaitForDistinct(keys.size()));
    for (const Message& message : received.Messages()) CHECK(message.key == message.body);
}

void IdsTimesAndAttributesArrive(Target& target) {
    using std::chrono::milliseconds;
    const std::chrono::system_clock::time_point time{milliseconds{1'700'000'000'123}};
    const Message sent{.body = "b",
                       .key = "k",
                       .id = "an id: 日本語/42",
                       .timestamp = time,
                       .content_type = "application/json; charset=utf-8",
                       .correlation_id = "correlation 7",
                       .reply_to = "answers.of.mine"};
    const Message received = SendThrough(target, sent);
    CHECK(received.id == sent.id);
    CHECK(received.timestamp == time);
    CHECK(received.content_type == sent.content_type);
    CHECK(received.correlation_id == sent.correlation_id);
    CHECK(received.reply_to == sent.reply_to);
    CHECK(received.topic == "orders");
    CHECK(received.side == Side::kOld);
    CHECK_FALSE(received.redelivered);
}

void AMissingIdAndTimeAreMade(Target& target) {
    const auto before = std::chrono::floor<std::chrono::milliseconds>(std::chrono::system_clock::now());
    constexpr std::size_t kCount = 20;
    test::Collector received;
    test::SendLog sends;
    World world{target};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    for (std::size_t i = 0; i < kCount; ++i) client.SendMsg(world.topic, "body", sends.Callback());
    REQUIRE(sends.WaitForCount(kCount));
    REQUIRE(received.WaitForDistinct(kCount));
    const auto after = std::chrono::system_clock::now();
    const auto confirmed = sends.Confirmed();
    CHECK(received.Ids() == std::set<std::string>{confirmed.begin(), confirmed.end()});
    for (const Message& message : received.Messages()) {
        CHECK(message.timestamp >= before);
        CHECK(message.timestamp <= after);
    }
}

}  // namespace mq::conformance
