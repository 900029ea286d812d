/// @file config_check_test.cpp
/// What makes a config right or wrong where a program has filled it, and how problems become text.
#include "../support/catch.hpp"
#include <mq/detail/config_check.hpp>
#include <mq/detail/duration.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace {

using mq::Config;
using mq::ConfigProblem;
using mq::detail::CheckConfig;
using std::chrono::milliseconds;

std::vector<ConfigProblem> CheckFake(const mq::Url& /*url*/,
                                     const std::map<std::string, std::string>& options) {
    std::vector<ConfigProblem> problems;
    for (const auto& [name, value] : options) {
        if (name == "unknown")
            problems.push_back({mq::KeyPath("options", name), "found an unknown option"});
        if (name == "together") problems.push_back({"", "found options that exclude each other"});
    }
    return problems;
}

const bool kFakeRegistered = mq::backend::Registry::Instance().Add(
    {.name = "check-test", .schemes = {"ct"}, .check = &CheckFake, .make = nullptr});

// One topic that moves and one that does not; nothing is wrong with it.
Config RightConfig() {
    Config config;
    config.brokers["legacy"].url = "ct://l";
    config.brokers["next"].url = "ct://n";
    config.topics["moving"].old_broker = "legacy";
    config.topics["moving"].new_broker = "next";
    config.topics["settled"].broker = "next";
    return config;
}

// The only problem after one change to a config that is right.
void CheckOnly(const std::function<void(Config&)>& change, std::string_view key,
               std::initializer_list<std::string_view> parts) {
    Config config = RightConfig();
    change(config);
    const std::vector<ConfigProblem> problems = CheckConfig(config);
    INFO(mq::detail::FormatProblems(config, problems));
    REQUIRE(problems.size() == 1);
    CHECK(problems[0].key == key);
    for (const std::string_view part : parts) {
        INFO(part);
        CHECK(problems[0].text.find(part) != std::string::npos);
    }
}

}  // namespace

TEST_CASE("a config made in code needs no positions to be right") {
    REQUIRE(kFakeRegistered);
    CHECK(CheckConfig(RightConfig()).empty());
    CHECK(CheckConfig(Config{}).empty());
    CHECK_NOTHROW(mq::detail::ThrowIfWrong(Config{}, {}));
}

TEST_CASE("each rule holds for a config made in code") {
    CheckOnly([](Config& c) { c.client.group.clear(); }, "client.group", {"empty"});
    CheckOnly([](Config& c) { c.client.prefetch = 0; }, "client.prefetch", {"found 0", "65535"});
    CheckOnly([](Config& c) { c.client.handler_threads = 100'000; }, "client.handler_threads",
              {"4096"});
    CheckOnly([](Config& c) { c.client.max_in_flight_bytes = 0; }, "client.max_in_flight_bytes",
              {"found 0"});
    CheckOnly([](Config& c) { c.client.send_timeout = milliseconds{0}; }, "client.send_timeout",
              {"found 0s"});
    CheckOnly([](Config& c) { c.client.send_timeout = milliseconds{-5}; }, "client.send_timeout",
              {"found -5ms"});
    CheckOnly([](Config& c) { c.client.subscribe_timeout = milliseconds::max(); },
              "client.subscribe_timeout", {"24h"});
    CheckOnly([](Config& c) { c.brokers["next"].url.clear(); }, "brokers.next.url", {"missing"});
    CheckOnly([](Config& c) { c.brokers["next"].url = "nonsense"; }, "brokers.next.url",
              {"SCHEME://HOST"});
    CheckOnly([](Config& c) { c.brokers["next"].options["unknown"] = "5"; },
              "brokers.next.options.unknown", {"unknown option"});
    CheckOnly([](Config& c) { c.brokers["next"].options["together"] = "5"; }, "brokers.next",
              {"exclude"});
    CheckOnly([](Config& c) { c.topics["settled"].broker.clear(); }, "topics.settled", {"no broker"});
    CheckOnly([](Config& c) { c.topics["settled"].broker = "nxt"; }, "topics.settled.broker",
              {"\"nxt\"", "\"next\""});
    CheckOnly([](Config& c) { c.topics["settled"].policy = mq::Policy::kNew; }, "topics.settled.broker",
              {"together"});
    CheckOnly([](Config& c) { c.topics["settled"].old_broker = "legacy"; }, "topics.settled.broker",
              {"together"});
    CheckOnly([](Config& c) { c.topics["settled"].new_address = "x"; }, "topics.settled.address.new",
              {"address = "});
    CheckOnly([](Config& c) { c.topics["moving"].address = "x"; }, "topics.moving.address", {"old"});
    CheckOnly([](Config& c) { c.topics["moving"].old_broker.clear(); }, "topics.moving.old",
              {"missing"});
    CheckOnly([](Config& c) { c.topics["moving"].new_broker.clear(); }, "topics.moving.new",
              {"missing"});
    CheckOnly([](Config& c) { c.topics["moving"].new_broker = "legacy"; }, "topics.moving.new",
              {"same"});
    CheckOnly([](Config& c) { c.topics["moving"].quiet = milliseconds{-1}; }, "topics.moving.quiet",
              {"-1ms"});
    CheckOnly([](Config& c) { c.topics["moving"].dedup = milliseconds{-1}; }, "topics.moving.dedup",
              {"found -1ms", "from 1ms to 720h"});
    CheckOnly([](Config& c) { c.topics["settled"].dedup = std::chrono::hours{721}; },
              "topics.settled.dedup", {"found 721h"});
    CheckOnly([](Config& c) { c.topics["moving"].dedup_max = 0; }, "topics.moving.dedup_max",
              {"found 0", "from 1 to 100000000"});
    CheckOnly(
        [](Config& c) {
            c.topics["moving"].groups = {"a", "a"};
        },
        "topics.moving.groups[1]", {"\"a\""});
    CheckOnly([](Config& c) { c.topics["moving"].groups = {""}; }, "topics.moving.groups[0]",
              {"empty"});
    CheckOnly([](Config& c) { c.topics[""].broker = "next"; }, "topics.\"\"", {"empty name"});
}

TEST_CASE("one broker may be both sides where the addresses differ") {
    Config config = RightConfig();
    config.topics["moving"].new_broker = "legacy";
    config.topics["moving"].new_address = "elsewhere";
    CHECK(CheckConfig(config).empty());
    config.topics["moving"].old_address = "elsewhere";
    CHECK(CheckConfig(config).size() == 1);
}

TEST_CASE("the scheme of an adapter that is not included names its header") {
    const std::map<std::string, std::string> headers{
        {"memory", "<mq/mq.hpp>"},
        {"amqp", "<mq/backends/rabbitmq.hpp>"},
        {"amqps", "<mq/backends/rabbitmq.hpp>"},
        {"kafka", "<mq/backends/kafka.hpp>"},
        {"kafkas", "<mq/backends/kafka.hpp>"},
        {"activemq", "<mq/backends/activemq.hpp>"},
        {"activemqs", "<mq/backends/activemq.hpp>"},
        {"artemis", "<mq/backends/activemq.hpp>"},
        {"artemiss", "<mq/backends/activemq.hpp>"},
    };
    for (const auto& [scheme, header] : headers) {
        INFO(scheme);
        CHECK(mq::detail::UnknownScheme(scheme).find("#include " + header) != std::string::npos);
    }
}

TEST_CASE("the scheme of no adapter is answered with those that are available") {
    const std::string text = mq::detail::UnknownScheme("ctt");
    CHECK(text.find("did you mean \"ct\"?") != std::string::npos);
    for (const std::string& scheme : mq::backend::Registry::Instance().Schemes()) {
        CHECK(text.find(scheme) != std::string::npos);
    }
}

TEST_CASE("problems are lines with the place of the key, or of its table, in the order of the file") {
    Config config;
    config.origins[""] = {.file = "mq.toml"};
    config.origins["client"] = {.file = "mq.toml", .line = 7, .column = 1};
    config.origins["brokers.b"] = {.file = "mq.toml", .line = 2, .column = 1};
    config.origins["brokers.b.url"] = {.file = "mq.toml", .line = 10, .column = 7};
    config.origins[mq::KeyPath("topics", "a.b")] = {.file = "mq.toml", .line = 2, .column = 40};
    const std::string text = mq::detail::FormatProblems(
        config, {{"brokers.b.url", "one"},
                 {"client.group", "two"},
                 {"topics.x", "three"},
                 {mq::KeyPath("topics", "a.b", "groups") + "[3]", "four"},
                 {mq::KeyPath("brokers", "b", "options", "linger.ms"), "five"},
                 {"", "six"}});
    CHECK(text ==
          "mq.toml:2:1: brokers.b.options.\"linger.ms\": five\n"
          "mq.toml:2:40: topics.\"a.b\".groups[3]: four\n"
          "mq.toml:7:1: client.group: two\n"
          "mq.toml:10:7: brokers.b.url: one\n"
          "mq.toml: topics.x: three\n"
          "mq.toml: six");
}

TEST_CASE("the problems of a config made in code are lines with the key alone") {
    const Config config;
    try {
        mq::detail::ThrowIfWrong(config, {{"topics.b", "one"}, {"client", "two\nlines"}});
        FAIL("nothing was thrown");
    } catch (const mq::Error& error) {
        CHECK(error.code() == mq::ErrorCode::kConfig);
        CHECK(std::string{error.what()} == "topics.b: one\nclient: two lines");
    }
}

TEST_CASE("the nearest known word is suggested, and none where none is near") {
    using mq::detail::Suggestion;
    const std::vector<std::string> words{"old", "dual-subscribe", "new-publish", "new"};
    CHECK(Suggestion("odl", words) == " (did you mean \"old\"?)");
    CHECK(Suggestion("nwe", words) == " (did you mean \"new\"?)");
    CHECK(Suggestion("dual_subscribe", words) == " (did you mean \"dual-subscribe\"?)");
    CHECK(Suggestion("newpublish", words) == " (did you mean \"new-publish\"?)");
    CHECK(Suggestion("something", words).empty());
    CHECK(Suggestion("", words).empty());
    CHECK(Suggestion(std::string(100'000, 'x'), words).empty());
    CHECK(mq::detail::EditDistance("", "abc") == 3);
    CHECK(mq::detail::EditDistance("kitten", "sitting") == 3);
}

TEST_CASE("what was found is shown, unless it may be a URL") {
    CHECK(mq::detail::Shown("word") == "\"word\"");
    CHECK(mq::detail::Shown("amqp://u:hunter2@h").find("hunter2") == std::string::npos);
    CHECK(mq::detail::Shown("u:hunter2@h").find("hunter2") == std::string::npos);
    CHECK(mq::detail::Shown(std::string(1000, 'x')).size() < 100);
}

TEST_CASE("durations are read as they are written") {
    using mq::detail::ParseDuration;
    CHECK(ParseDuration("0s") == milliseconds{0});
    CHECK(ParseDuration("500ms") == milliseconds{500});
    CHECK(ParseDuration("30s") == milliseconds{30'000});
    CHECK(ParseDuration("2m") == milliseconds{120'000});
    CHECK(ParseDuration("1h30m") == milliseconds{5'400'000});
    CHECK(ParseDuration("1h2m3s4ms") == milliseconds{3'723'004});
    CHECK(ParseDuration("0100ms") == milliseconds{100});
    for (const std::string_view text : {"", "5", "s", "ms", "5 s", " 5s", "5s ", "-5s", "+5s", "1.5s",
                                        "5d", "1m1h", "1s1s", "5S", "5min", "1h2"}) {
        INFO(text);
        CHECK_FALSE(ParseDuration(text).has_value());
    }
    const milliseconds longest{mq::detail::kLongestDuration};
    CHECK(ParseDuration("99999999999999999999999h") == longest);
    CHECK(ParseDuration("18446744073709551615ms") == longest);
    CHECK(ParseDuration("8760000h8760000m9999999999999s") == longest);
}

TEST_CASE("a duration that is written out reads back as itself") {
    for (const std::int64_t count :
         {0LL, 1LL, 999LL, 1'000LL, 60'000LL, 3'599'999LL, 3'600'000LL, 90'061'001LL}) {
        const milliseconds duration{count};
        CHECK(mq::detail::ParseDuration(mq::detail::FormatDuration(duration)) == duration);
    }
    CHECK(mq::detail::FormatDuration(milliseconds{-1'500}) == "-1s500ms");
    CHECK(mq::detail::FormatDuration(milliseconds::min()) ==
          "-" + mq::detail::FormatDuration(milliseconds::max()));
}
