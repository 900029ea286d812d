/// @file toml_test.cpp
/// Reading a config: what each key gives, and each kind of mistake with its position.
#include "../support/catch.hpp"
#include <mq/backend.hpp>
#include <mq/toml.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using mq::Config;
using mq::ParseConfig;
using std::chrono::milliseconds;

// A kind of broker without a broker: it refuses one option and one host.
std::vector<mq::ConfigProblem> CheckFake(const mq::Url& url,
                                         const std::map<std::string, std::string>& options) {
    std::vector<mq::ConfigProblem> problems;
    if (url.hosts.front().host == "refused")
        problems.push_back({"url", "found a host that is refused"});
    for (const auto& [name, value] : options) {
        if (name == "un.known") {
            problems.push_back({mq::KeyPath("options", name), "found an unknown option"});
        }
    }
    return problems;
}

const bool kFakeRegistered = mq::backend::Registry::Instance().Add(
    {.name = "toml-test", .schemes = {"tt", "tts"}, .check = &CheckFake, .make = nullptr});

class Variable {
public:
    Variable(const char* name, const char* value) : name_(name) { ::setenv(name, value, 1); }
    Variable(const Variable&) = delete;
    Variable& operator=(const Variable&) = delete;
    ~Variable() { ::unsetenv(name_); }

private:
    const char* name_;
};

class TemporaryFolder {
public:
    TemporaryFolder()
        : path_(std::filesystem::temp_directory_path() /
                ("mq-toml-test-" + std::to_string(std::random_device{}()))) {
        std::filesystem::create_directories(path_);
    }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder() { std::filesystem::remove_all(path_); }

    [[nodiscard]] std::filesystem::path Write(const std::string& name, std::string_view text) const {
        std::ofstream{path_ / name, std::ios::binary} << text;
        return path_ / name;
    }
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;
};

// The text of the error; empty where there is none.
std::string WhatIsWrong(std::string_view toml) {
    try {
        (void)ParseConfig(toml, "mq.toml");
    } catch (const mq::Error& error) {
        CHECK(error.code() == mq::ErrorCode::kConfig);
        return error.what();
    }
    return {};
}

std::vector<std::string> Lines(const std::string& text) {
    std::vector<std::string> lines;
    std::size_t begin = 0;
    while (begin < text.size()) {
        const std::size_t end = std::min(text.find('\n', begin), text.size());
        lines.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return lines;
}

bool Has(const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
}

// The only problem of `toml`: where it is, whose it is, and what its text must name.
void CheckOnly(std::string_view toml, std::string_view position, std::string_view key,
               std::initializer_list<std::string_view> parts) {
    INFO(toml);
    const std::string wrong = WhatIsWrong(toml);
    INFO(wrong);
    CHECK(Lines(wrong).size() == 1);
    std::string begin = "mq.toml:";
    begin.append(position).append(": ").append(key).append(": ");
    CHECK(wrong.substr(0, begin.size()) == begin);
    for (const std::string_view part : parts) {
        INFO(part);
        CHECK(Has(wrong, part));
    }
}

// Two brokers for the topics of a case; the first free line is 5.
std::string WithBrokers(std::string_view rest) {
    return "[brokers.legacy]\nurl = \"tt://l\"\n[brokers.next]\nurl = \"tts://n\"\n" +
           std::string{rest};
}

/// Has the adapter of a scheme forgotten, as in a program that does not include it.
class WithoutAdapter {
public:
    explicit WithoutAdapter(std::string_view scheme)
        : kind_(mq::backend::Registry::Instance().Find(scheme)) {
        if (!kind_) return;
        mq::backend::Kind without = *kind_;
        without.schemes.clear();
        mq::backend::Registry::Instance().Add(std::move(without));
    }
    WithoutAdapter(const WithoutAdapter&) = delete;
    WithoutAdapter& operator=(const WithoutAdapter&) = delete;
    ~WithoutAdapter() {
        if (kind_) mq::backend::Registry::Instance().Add(*kind_);
    }

private:
    std::optional<mq::backend::Kind> kind_;
};

}  // namespace

TEST_CASE("failover is a switch, and does not go with an order") {
    const std::string text = WithBrokers(
        "[topics.t]\nold = \"legacy\"\nnew = \"next\"\npolicy = \"old\"\n"
        "failover = true\n");
    CHECK(ParseConfig(text).topics.at("t").failover);
    CheckOnly(text + "order = \"key\"\n", "9:12", "topics.t.failover", {"overtakes"});
}

TEST_CASE("a config with every key is read as it is written") {
    REQUIRE(kFakeRegistered);
    const Variable password{"MQ_TEST_PASSWORD", "hunter2"};
    const Config config = ParseConfig(R"(
[client]
group = "billing"
send_timeout = "500ms"
subscribe_timeout = "2m"
max_in_flight_bytes = 1048576
prefetch = 12
handler_threads = 3

[brokers.legacy]
url = "tt://app:${MQ_TEST_PASSWORD}@rabbit-1,rabbit-2/prod"
[brokers.next]
url = "tts://k1:9092,k2:9092"
options = { "linger.ms" = 5, ratio = 0.05, "enable.idempotence" = true, name = "n" }

[topics.orders]
old = "legacy"
new = "next"
policy = "dual-subscribe"
groups = ["billing", "search"]
address = { old = "prod.orders" }
order = "key"
quiet = "1h30m"
guard = "off"
dedup = "10m"
dedup_max = 5000

[topics."a.b"]
broker = "next"
address = "somewhere"
)");
    CHECK(config.client.group == "billing");
    CHECK(config.client.send_timeout == milliseconds{500});
    CHECK(config.client.subscribe_timeout == milliseconds{120'000});
    CHECK(config.client.max_in_flight_bytes == 1048576);
    CHECK(config.client.prefetch == 12);
    CHECK(config.client.handler_threads == 3);

    CHECK(config.brokers.at("legacy").url == "tt://app:hunter2@rabbit-1,rabbit-2/prod");
    CHECK(config.brokers.at("next").options ==
          std::map<std::string, std::string>{
              {"enable.idempotence", "true"}, {"linger.ms", "5"}, {"name", "n"}, {"ratio", "0.05"}});

    mq::TopicConfig orders;
    orders.old_broker = "legacy";
    orders.new_broker = "next";
    orders.policy = mq::Policy::kDualSubscribe;
    orders.groups = {"billing", "search"};
    orders.old_address = "prod.orders";
    orders.order = mq::Order::kKey;
    orders.quiet = std::chrono::minutes{90};
    orders.guard = false;
    orders.dedup = std::chrono::minutes{10};
    orders.dedup_max = 5000;
    CHECK(config.topics.at("orders") == orders);

    mq::TopicConfig dotted;
    dotted.broker = "next";
    dotted.address = "somewhere";
    CHECK(config.topics.at("a.b") == dotted);
}

TEST_CASE("what is left out of a config keeps its default") {
    const Config config = ParseConfig(WithBrokers("[topics.t]\nbroker = \"next\"\n"));
    CHECK(config.client.group == mq::ClientConfig{}.group);
    CHECK(config.client.prefetch == mq::ClientConfig{}.prefetch);
    CHECK(config.topics.at("t").guard);
    CHECK(config.topics.at("t").quiet == std::chrono::seconds{30});
    CHECK(config.topics.at("t").dedup == milliseconds{0});
    CHECK(config.topics.at("t").dedup_max == 100'000);
    CHECK(ParseConfig("").topics.empty());
}

TEST_CASE("every policy and every guard is read") {
    for (const mq::Policy policy : mq::kPolicies) {
        const Config config =
            ParseConfig(WithBrokers("[topics.t]\nold = \"legacy\"\nnew = \"next\"\npolicy = \"" +
                                    std::string{ToString(policy)} + "\"\n"));
        CHECK(config.topics.at("t").policy == policy);
    }
    const auto guard = [](std::string_view word) {
        return ParseConfig(WithBrokers("[topics.t]\nbroker = \"next\"\nguard = " + std::string{word}))
            .topics.at("t")
            .guard;
    };
    CHECK(guard("\"on\""));
    CHECK(guard("true"));
    CHECK_FALSE(guard("\"off\""));
    CHECK_FALSE(guard("false"));
}

TEST_CASE("a dotted option may be written bare or in quotation marks") {
    const auto options = [](std::string_view text) {
        return ParseConfig("[brokers.b]\nurl = \"tt://h\"\n" + std::string{text})
            .brokers.at("b")
            .options;
    };
    const std::map<std::string, std::string> expected{{"linger.ms", "5"}, {"a.b.c", "x"}};
    CHECK(options("options = { \"linger.ms\" = 5, \"a.b.c\" = \"x\" }") == expected);
    CHECK(options("options = { linger.ms = 5, a.b.c = \"x\" }") == expected);
    CHECK(options("[brokers.b.options]\nlinger.ms = 5\na.b.c = \"x\"") == expected);
    CHECK(options("[brokers.b.options]\nlinger.ms = 5\n[brokers.b.options.a]\n\"b.c\" = \"x\"") ==
          expected);
    CheckOnly("[brokers.b]\nurl = \"tt://h\"\noptions = { linger.ms = 5, \"linger.ms\" = 6 }", "3:25",
              "brokers.b.options.\"linger.ms\"", {"second time"});
}

TEST_CASE("the place of every value is remembered by its key path") {
    const Config config = ParseConfig(R"([client]
group = "billing"
[brokers.next]
url = "tt://h"
options = { "linger.ms" = 5, queue.size = 7 }
[topics."a.b"]
  broker = "next"
  groups = ["x",
            "y"]
)",
                                      "mq.toml");
    const auto place = [&](const std::string& key) {
        const mq::Origin& origin = config.origins.at(key);
        return origin.file + ":" + std::to_string(origin.line) + ":" + std::to_string(origin.column);
    };
    CHECK(place("client") == "mq.toml:1:1");
    CHECK(place(mq::KeyPath("client", "group")) == "mq.toml:2:9");
    CHECK(place("brokers.next") == "mq.toml:3:1");
    CHECK(place("brokers.next.url") == "mq.toml:4:7");
    CHECK(place(mq::KeyPath("brokers", "next", "options", "linger.ms")) == "mq.toml:5:27");
    CHECK(place(mq::KeyPath("brokers", "next", "options", "queue.size")) == "mq.toml:5:43");
    CHECK(place(mq::KeyPath("topics", "a.b", "broker")) == "mq.toml:7:12");
    CHECK(place(mq::KeyPath("topics", "a.b", "groups") + "[1]") == "mq.toml:9:13");
}

TEST_CASE("an unknown key is reported at its place, with the one that was perhaps meant") {
    CheckOnly("brokrs = 1", "1:1", "brokrs", {"unknown key", "did you mean \"brokers\"?"});
    CheckOnly("\n[client]\n  prefech = 5", "3:3", "client.prefech",
              {"did you mean \"prefetch\"?", "send_timeout"});
    CheckOnly("[brokers.b]\nurl = \"tt://h\"\noption = {}", "3:1", "brokers.b.option",
              {"did you mean \"options\"?", "url"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\n\"gr oup\" = []"), "7:1",
              "topics.t.\"gr oup\"", {"did you mean \"groups\"?", "policy"});
    CheckOnly(WithBrokers("[topics.t]\nold = \"legacy\"\nnew = \"next\"\npolicy = \"old\"\n"
                          "address = { odl = \"x\" }"),
              "9:13", "topics.t.address.odl", {"did you mean \"old\"?"});
    CheckOnly("[client]\nsomething_else = 5", "2:1", "client.something_else", {"unknown key"});
    CHECK_FALSE(Has(WhatIsWrong("[client]\nsomething_else = 5"), "did you mean"));
}

TEST_CASE("a value of a wrong type is reported with the type that was found and what was expected") {
    CheckOnly("client = 5", "1:10", "client", {"an integer", "a table, as in [client]"});
    CheckOnly("[client]\ngroup = 5", "2:9", "client.group", {"an integer", "a string"});
    CheckOnly("[client]\nsend_timeout = 30", "2:16", "client.send_timeout", {"an integer", "\"30s\""});
    CheckOnly("[client]\nprefetch = \"5\"", "2:12", "client.prefetch",
              {"a string", "an integer from 1 to 65535"});
    CheckOnly("[client]\nhandler_threads = 1.5", "2:19", "client.handler_threads",
              {"a floating-point number", "an integer"});
    CheckOnly("brokers = []", "1:11", "brokers", {"an array", "[brokers.NAME]"});
    CheckOnly("[brokers]\nnext = \"tt://h\"", "2:8", "brokers.next", {"a string", "[brokers.next]"});
    CheckOnly("[brokers.b]\nurl = true", "2:7", "brokers.b.url", {"a boolean", "a string"});
    CheckOnly("[brokers.b]\nurl = \"tt://h\"\noptions = \"x\"", "3:11", "brokers.b.options",
              {"a string", "a table"});
    CheckOnly("[brokers.b]\nurl = \"tt://h\"\noptions = { a.b = [1] }", "3:19",
              "brokers.b.options.\"a.b\"", {"an array", "a string, a number or a boolean"});
    CheckOnly("[brokers.b]\nurl = \"tt://h\"\noptions = { a = {} }", "3:17", "brokers.b.options.a",
              {"a table"});
    CheckOnly("[brokers.b]\nurl = \"tt://h\"\noptions = { a = nan }", "3:17", "brokers.b.options.a",
              {"not finite"});
    CheckOnly("[[topics]]\nbroker = \"b\"", "1:1", "topics", {"an array", "[topics.NAME]"});
    const auto topic = [](std::string_view line) {
        return WithBrokers("[topics.t]\nbroker = \"next\"\n" + std::string{line});
    };
    CheckOnly(topic("groups = \"billing\""), "7:10", "topics.t.groups", {"a string", "an array"});
    CheckOnly(topic("groups = [\"a\", 2020-01-01]"), "7:16", "topics.t.groups[1]",
              {"a date", "a string"});
    CheckOnly(topic("address = 5"), "7:11", "topics.t.address", {"an integer", "a string"});
    CheckOnly(topic("order = true"), "7:9", "topics.t.order", {"a boolean", "none, key"});
    CheckOnly(topic("quiet = 2020-01-01"), "7:9", "topics.t.quiet", {"a date", "\"30s\""});
    CheckOnly(topic("dedup = 10"), "7:9", "topics.t.dedup", {"an integer", "\"30s\""});
    CheckOnly(topic("dedup = \"10m\"\ndedup_max = \"5\""), "8:13", "topics.t.dedup_max",
              {"a string", "an integer from 1 to 100000000"});
    CheckOnly(topic("guard = 1"), "7:9", "topics.t.guard", {"an integer", "on, off"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = 5"), "6:10", "topics.t.broker",
              {"an integer", "a string"});
}

TEST_CASE("a word that is none of the known ones is reported with those") {
    CheckOnly(WithBrokers("[topics.t]\nold = \"legacy\"\nnew = \"next\"\npolicy = \"dual_subscribe\""),
              "8:10", "topics.t.policy",
              {"\"dual_subscribe\"", "did you mean \"dual-subscribe\"?",
               "old, dual-subscribe, new-publish, new"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\norder = \"keys\""), "7:9", "topics.t.order",
              {"\"keys\"", "none, key"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\nguard = \"yes\""), "7:9", "topics.t.guard",
              {"\"yes\"", "on, off"});
}

TEST_CASE("a duration that is none, or out of its range, is reported") {
    for (const std::string word :
         {"", "30", "s", "30 s", " 30s", "-5s", "1.5s", "5d", "1m1h", "1s1s", "5S"}) {
        CheckOnly("[client]\nsend_timeout = \"" + word + "\"", "2:16", "client.send_timeout",
                  {"\"" + word + "\"", "\"500ms\""});
    }
    CheckOnly("[client]\nsend_timeout = \"0s\"", "2:16", "client.send_timeout", {"0s", "1ms", "24h"});
    CheckOnly("[client]\nsubscribe_timeout = \"25h\"", "2:21", "client.subscribe_timeout",
              {"25h", "24h"});
    CheckOnly("[client]\nsend_timeout = \"99999999999999999999h\"", "2:16", "client.send_timeout",
              {"99999999999999999999h", "shorter"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\nquiet = \"721h\""), "7:9", "topics.t.quiet",
              {"721h", "720h"});
    CHECK(WhatIsWrong(WithBrokers("[topics.t]\nbroker = \"next\"\nquiet = \"0s\"")).empty());
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\ndedup = \"0s\""), "7:9", "topics.t.dedup",
              {"found 0s", "from 1ms to 720h"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\ndedup = \"10m\"\ndedup_max = 0"), "8:13",
              "topics.t.dedup_max", {"found 0", "from 1 to 100000000"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\ndedup_max = 5"), "7:13", "topics.t.dedup_max",
              {"without `dedup`", "dedup = \"10m\""});
}

TEST_CASE("a number out of its range is reported with the range") {
    CheckOnly("[client]\nprefetch = 0", "2:12", "client.prefetch", {"found 0", "from 1 to 65535"});
    CheckOnly("[client]\nprefetch = -1", "2:12", "client.prefetch", {"found -1", "from 1 to 65535"});
    CheckOnly("[client]\nprefetch = 65536", "2:12", "client.prefetch", {"found 65536"});
    CheckOnly("[client]\nhandler_threads = 5000", "2:19", "client.handler_threads",
              {"found 5000", "4096"});
    CheckOnly("[client]\nmax_in_flight_bytes = 0", "2:23", "client.max_in_flight_bytes", {"found 0"});
    CheckOnly("[client]\nmax_in_flight_bytes = 9223372036854775807", "2:23",
              "client.max_in_flight_bytes", {"found 9223372036854775807"});
}

TEST_CASE("an empty text where something must stand is reported") {
    CheckOnly("[client]\ngroup = \"\"", "2:9", "client.group", {"empty"});
    CheckOnly("[brokers.b]\nurl = \"\"", "2:7", "brokers.b.url", {"empty", "SCHEME://HOST"});
    CheckOnly("[brokers.\"\"]\nurl = \"tt://h\"", "1:1", "brokers.\"\"", {"empty name"});
    CheckOnly(WithBrokers("[topics.\"\"]\nbroker = \"next\""), "5:1", "topics.\"\"", {"empty name"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"\""), "6:10", "topics.t.broker", {"empty"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\naddress = \"\""), "7:11", "topics.t.address",
              {"nothing in it"});
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\ngroups = [\"\"]"), "7:11",
              "topics.t.groups[0]", {"empty"});
    CheckOnly(WithBrokers("[topics.t]\nold = \"legacy\"\nnew = \"next\"\npolicy = \"new\"\n"
                          "address = { new = \"\" }"),
              "9:19", "topics.t.address.new", {"empty"});
}

TEST_CASE("the URL of a broker must be there, well formed, and of an included adapter") {
    CheckOnly("[client]\n[brokers.b]\noptions = { a = 1 }", "2:1", "brokers.b.url", {"missing"});
    CheckOnly("[brokers.b]\nurl = \"localhost\"", "2:7", "brokers.b.url", {"SCHEME://HOST"});
    CheckOnly("[brokers.b]\nurl = \"tt://h:99999\"", "2:7", "brokers.b.url", {"port", "65535"});
    {
        const WithoutAdapter missing{"artemis"};
        CheckOnly("[brokers.b]\nurl = \"artemis://h\"", "2:7", "brokers.b.url",
                  {"artemis://", "#include <mq/backends/activemq.hpp>"});
    }
    CheckOnly("[brokers.b]\nurl = \"kafak://h\"", "2:7", "brokers.b.url",
              {"\"kafak\"", "did you mean \"kafka\"?", "tt, tts"});
    CheckOnly("[brokers.b]\nurl = \"tt://refused\"", "2:7", "brokers.b.url",
              {"a host that is refused"});
}

TEST_CASE("an option that the adapter refuses is reported where it is written") {
    CheckOnly("[brokers.b]\nurl = \"tt://h\"\noptions = { a = 1, \"un.known\" = 5 }", "3:33",
              "brokers.b.options.\"un.known\"", {"unknown option"});
    CheckOnly("[brokers.b]\nurl = \"tt://h\"\n[brokers.b.options]\nun.known = 5", "4:12",
              "brokers.b.options.\"un.known\"", {"unknown option"});
}

TEST_CASE("a topic names either one broker, or two and a policy") {
    CheckOnly(WithBrokers("[topics.t]\nold = \"legacy\"\npolicy = \"old\""), "5:1", "topics.t.new",
              {"missing", "`old`"});
    CheckOnly(WithBrokers("[topics.t]\nnew = \"next\"\npolicy = \"new\""), "5:1", "topics.t.old",
              {"missing", "`new`"});
    CheckOnly(WithBrokers("[topics.t]\nold = \"legacy\"\nnew = \"next\""), "5:1", "topics.t.policy",
              {"missing", "old, dual-subscribe, new-publish, new"});
    CheckOnly(WithBrokers("[topics.t]\nquiet = \"5s\""), "5:1", "topics.t", {"no broker", "`broker`"});
    for (const std::string other : {"old = \"legacy\"", "new = \"legacy\"", "policy = \"old\""}) {
        CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\n" + other), "6:10", "topics.t.broker",
                  {"together", "`old`, `new` or `policy`"});
    }
}

TEST_CASE("a topic on a broker that is not configured is reported with those that are") {
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"nxt\""), "6:10", "topics.t.broker",
              {"\"nxt\"", "did you mean \"next\"?", "legacy, next"});
    CheckOnly(WithBrokers("[topics.t]\nold = \"old\"\nnew = \"next\"\npolicy = \"old\""), "6:7",
              "topics.t.old", {"\"old\"", "legacy, next"});
    CheckOnly("[topics.t]\nbroker = \"nxt\"", "2:10", "topics.t.broker", {"none is configured"});
}

TEST_CASE("addresses fit the sides of their topic") {
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\naddress = { old = \"x\" }"), "7:19",
              "topics.t.address.old", {"address = \"…\""});
    CheckOnly(
        WithBrokers("[topics.t]\nold = \"legacy\"\nnew = \"next\"\npolicy = \"old\"\naddress = \"x\""),
        "9:11", "topics.t.address", {"{ old = \"…\" }"});
    CheckOnly(WithBrokers("[topics.t]\nold = \"next\"\nnew = \"next\"\npolicy = \"old\""), "7:7",
              "topics.t.new", {"same broker", "same address"});
    CheckOnly(WithBrokers("[topics.t]\nold = \"next\"\nnew = \"next\"\npolicy = \"old\"\n"
                          "address = { new = \"t\" }"),
              "7:7", "topics.t.new", {"same address"});
    CHECK(WhatIsWrong(WithBrokers("[topics.t]\nold = \"next\"\nnew = \"next\"\npolicy = \"old\"\n"
                                  "address = { new = \"u\" }"))
              .empty());
}

TEST_CASE("a group that is named twice is reported at its second place") {
    CheckOnly(WithBrokers("[topics.t]\nbroker = \"next\"\ngroups = [\"a\", \"b\", \"a\"]"), "7:21",
              "topics.t.groups[2]", {"\"a\"", "second time"});
}

TEST_CASE("a broker that no topic uses is no problem") { CHECK(WhatIsWrong(WithBrokers("")).empty()); }

TEST_CASE("a syntax error is reported with its place") {
    const std::string wrong = WhatIsWrong("[client]\ngroup = billing\n");
    CHECK(Lines(wrong).size() == 1);
    CHECK(wrong.substr(0, 14) == "mq.toml:2:9: E");
    CHECK(Has(wrong, "quotation marks"));
    CHECK(Has(WhatIsWrong("[client]\ngroup = 'a'\ngroup = 'b'\n"), "mq.toml:3:"));
    CHECK(Has(WhatIsWrong("[client]\ngroup = 'a'\ngroup = 'b'\n"), "'group'"));
    CHECK(Has(WhatIsWrong("[client\n"), "expected ']'"));
}

TEST_CASE("a table header without a name is an error, where toml++ would end the program") {
    for (const std::string header : {"[*]", "[[[a]]]", "[=", "[&", "[[.a]]", "[", "[[", "[ \t"}) {
        for (const std::string end : {"", "\n", "\r\n", "\na = 1\n"}) {
            std::string document = "[client]\n  ";
            document.append(header).append(end);
            INFO(document);
            const std::string wrong = WhatIsWrong(document);
            CHECK(wrong.substr(0, 10) == "mq.toml:2:");
            CHECK(Has(wrong, "table header"));
        }
    }
    CHECK(Has(WhatIsWrong("\xEF\xBB\xBF[*]"), "mq.toml:1:2: "));
    CHECK(Has(WhatIsWrong("a = [\n[*]"), "mq.toml:2:"));
}

TEST_CASE(
    "a letter outside quotation marks that is not ASCII is an error, where toml++ would do harm") {
    CHECK(Has(WhatIsWrong("k\u00fchl = 1"), "mq.toml:1:2: "));
    CHECK(Has(WhatIsWrong("a = \"\u00e9\" \u00e9"), "mq.toml:1:9: "));
    CHECK(Has(WhatIsWrong("[client]\n[\u00fc]"), "mq.toml:2:2: "));
    CHECK(Has(WhatIsWrong("a = \u201ctext\u201d"), "quotation marks"));
}

TEST_CASE("a date with a stray digit is an error, where toml++ would end the program") {
    CHECK(Has(WhatIsWrong("a = 2020-01-01 3\n"), "mq.toml:1:16: "));
    CHECK(Has(WhatIsWrong("a = [2020-01-01 3]"), "mq.toml:1:17: "));
    CHECK_FALSE(WhatIsWrong("a = 2020-01-01 3").empty());
}

TEST_CASE("a time outside quotation marks is an error, where toml++ would end the program for some") {
    CHECK(Has(WhatIsWrong("a = 2020-01-01T:0"), "mq.toml:1:5: "));
    CHECK(Has(WhatIsWrong("a = [ 12:00:00 ]"), "mq.toml:1:7: "));
    CHECK(Has(WhatIsWrong("a = 2020-01-01 1x:0"), "quotation marks"));
    CHECK(Has(WhatIsWrong("url = amqp://h"), "mq.toml:1:7: "));
}

TEST_CASE("an array that ends like a table is an error, where toml++ would end the program") {
    CHECK(Has(WhatIsWrong("a = [\"b\", }"), "mq.toml:1:11: "));
    CHECK(Has(WhatIsWrong("a = [\n{ b = 1 }, [ }\n]"), "mq.toml:2:14: "));
}

TEST_CASE("what toml++ stumbles over is allowed within strings, comments and keys in quotation marks") {
    const Config config = ParseConfig(WithBrokers(R"(# [*] ü 2020-01-01 3
[topics."grüß"]  # [= ü
broker = "next"
address = """
[*]\
  \"""\u00fc 1 2 "quoted" """""
groups = [ # [*]
  "[[[", '''
[[ü'''', "a\"\\", 'C:\'
  , "1 2 "]
quiet = "5s"
)"));
    const mq::TopicConfig& topic = config.topics.at("grüß");
    CHECK(topic.address == "[*]\"\"\"ü 1 2 \"quoted\" \"\"");
    CHECK(topic.groups == std::vector<std::string>{"[[[", "[[ü'", "a\"\\", "C:\\", "1 2 "});
    CHECK(topic.quiet == std::chrono::seconds{5});
}

TEST_CASE("all problems are reported at once, in the order of the file") {
    const std::string wrong = WhatIsWrong(R"(
[topics.t]
broker = "nowhere"
quiet = 5
[client]
prefetch = 0
wrong = 1
[brokers.b]
)");
    INFO(wrong);
    const std::vector<std::string> lines = Lines(wrong);
    REQUIRE(lines.size() == 5);
    CHECK(lines[0].substr(0, 30) == "mq.toml:3:10: topics.t.broker:");
    CHECK(lines[1].substr(0, 28) == "mq.toml:4:9: topics.t.quiet:");
    CHECK(lines[2].substr(0, 30) == "mq.toml:6:12: client.prefetch:");
    CHECK(lines[3].substr(0, 26) == "mq.toml:7:1: client.wrong:");
    CHECK(lines[4].substr(0, 27) == "mq.toml:8:1: brokers.b.url:");
}

TEST_CASE("variables are inserted into every text, and $${ stands for itself") {
    const Variable name{"MQ_TEST_NAME", "ne"};
    const Variable word{"MQ_TEST_WORD", "dual-subscribe"};
    const Variable time{"MQ_TEST_TIME", "5s"};
    const Variable empty{"MQ_TEST_EMPTY", ""};
    const Config config = ParseConfig(WithBrokers(R"([topics.t]
old = "legacy"
new = "${MQ_TEST_NAME}xt"
policy = "${MQ_TEST_WORD}"
quiet = "${MQ_TEST_TIME}"
groups = ["$${MQ_TEST_NAME}", "${MQ_TEST_NAME}${MQ_TEST_NAME}", "$5", "a${MQ_TEST_EMPTY}"]
address = { new = "${MQ_TEST_NAME}" }
[brokers.o]
url = "tt://h"
options = { a = "${MQ_TEST_NAME}" }
)"));
    const mq::TopicConfig& topic = config.topics.at("t");
    CHECK(topic.new_broker == "next");
    CHECK(topic.policy == mq::Policy::kDualSubscribe);
    CHECK(topic.quiet == std::chrono::seconds{5});
    CHECK(topic.groups == std::vector<std::string>{"${MQ_TEST_NAME}", "nene", "$5", "a"});
    CHECK(topic.new_address == "ne");
    CHECK(config.brokers.at("o").options.at("a") == "ne");
}

TEST_CASE("a password in the environment may hold any character") {
    const std::string secret = "p@ss:w/o?r#d%41 ü,[]";
    const Variable password{"MQ_TEST_PASSWORD", secret.c_str()};
    const Variable hosts{"MQ_TEST_HOSTS", "h1:1,h2:2"};
    const Variable query{"MQ_TEST_QUERY", "/vhost?a=b"};
    const Config config = ParseConfig(
        "[brokers.b]\nurl = "
        "\"tt://${MQ_TEST_PASSWORD}:${MQ_TEST_PASSWORD}@${MQ_TEST_HOSTS}${MQ_TEST_QUERY}\"");
    const mq::Url url = mq::ParseUrl(config.brokers.at("b").url);
    CHECK(url.user == secret);
    CHECK(url.password == secret);
    CHECK(url.hosts == std::vector<mq::HostPort>{{"h1", 1}, {"h2", 2}});
    CHECK(url.path == "vhost");
    CHECK(url.query.size() == 1);
}

TEST_CASE("a whole URL may come from the environment") {
    const Variable url{"MQ_TEST_URL", "tt://app:secret@h/v"};
    CHECK(ParseConfig("[brokers.b]\nurl = \"${MQ_TEST_URL}\"").brokers.at("b").url ==
          "tt://app:secret@h/v");
}

TEST_CASE("a variable that is missing, empty in a URL, or malformed is reported by its name") {
    const Variable empty{"MQ_TEST_EMPTY", ""};
    CheckOnly("[client]\ngroup = \"a${MQ_TEST_MISSING}\"", "2:9", "client.group",
              {"MQ_TEST_MISSING", "not set"});
    CheckOnly("[brokers.b]\nurl = \"tt://app:${MQ_TEST_MISSING}@h\"", "2:7", "brokers.b.url",
              {"MQ_TEST_MISSING", "not set"});
    CheckOnly("[brokers.b]\nurl = \"tt://app:${MQ_TEST_EMPTY}@h\"", "2:7", "brokers.b.url",
              {"MQ_TEST_EMPTY", "is empty"});
    CheckOnly("[client]\ngroup = \"a${MQ_TEST\"", "2:9", "client.group", {"without '}'", "$${"});
    CheckOnly("[client]\ngroup = \"${}\"", "2:9", "client.group", {"no variable name", "$${"});
    CheckOnly("[client]\ngroup = \"${A-B}\"", "2:9", "client.group", {"no variable name"});
    CheckOnly("[client]\ngroup = \"${MQ_TEST_EMPTY}\"", "2:9", "client.group", {"empty"});
    const std::string both =
        WhatIsWrong("[client]\ngroup = \"${MQ_TEST_MISSING}${MQ_TEST_MISSING_TOO}\"");
    CHECK(Lines(both).size() == 2);
}

TEST_CASE("no password appears in any error") {
    const Variable password{"MQ_TEST_PASSWORD", "hunter2"};
    const Variable port{"MQ_TEST_PORT", ":hunter2"};
    const WithoutAdapter missing{"artemis"};
    const std::vector<std::string> documents{
        // syntax
        "url = tt://app:hunter2@h",
        "url = hunter2",
        "url = 1hunter2",
        "url = \"tt://app:\\hunter2@h\"",
        "url = \"tt://app:\"hunter2@h\"",
        "url = \"tt://app:hunter2@h",
        "url = '''hunter2",
        "url = \"tt://app:hunter2@h\" hunter2",
        "hunter2",
        "url = 0xhunter2",
        "url = +hunter2",
        "a = [\"hunter2\" \"hunter2\"]",
        "a = { b = \"hunter2\" \"hunter2\" }",
        "url = 1.hunter2",
        // brokers
        "[brokers]\nb = \"tt://app:hunter2@h\"",
        "[brokers.b]\nurl = [\"tt://app:hunter2@h\"]",
        "[brokers.b]\nurl = \"app:hunter2@h\"",
        "[brokers.b]\nurl = \"app:hunter2@tt://h\"",
        "[brokers.b]\nurl = \"tt://app:hunter2@h:port\"",
        "[brokers.b]\nurl = \"tt://app:hunter2\"",
        "[brokers.b]\nurl = \"tt://app:hun/hunter2@h\"",
        "[brokers.b]\nurl = \"tt://app:hun?hunter2@h\"",
        "[brokers.b]\nurl = \"tt://app:hunter2%@h\"",
        "[brokers.b]\nurl = \"tt://app:${hunter2@h\"",
        "[brokers.b]\nurl = \"tt://app:${-hunter2}@h\"",
        "[brokers.b]\nurl = \"tt://app:hunter2@[h\"",
        "[brokers.b]\nurl = \"tt://app:hunter2@\"",
        "[brokers.b]\nurl = \"amqb://app:hunter2@h\"",
        "[brokers.b]\nurl = \"artemis://app:hunter2@h\"",
        "[brokers.b]\nurl = \"tt://app:hunter2@refused\"",
        "[brokers.b]\nurl = \"tt://app:${MQ_TEST_PASSWORD}@refused\"",
        "[brokers.b]\nurl = \"tt://h${MQ_TEST_PORT}\"",
        "[brokers.b]\nurl = \"tt://h/?p=hunter2&q\"",
        // options
        "[brokers.b]\nurl = \"tt://h\"\noptions = \"hunter2\"",
        "[brokers.b]\nurl = \"tt://h\"\noptions = { un.known = \"hunter2\" }",
        "[brokers.b]\nurl = \"tt://h\"\noptions = { un.known = \"${MQ_TEST_PASSWORD}\" }",
        "[brokers.b]\nurl = \"tt://h\"\noptions = { a = [\"hunter2\"] }",
        "[brokers.b]\nurl = \"tt://h\"\noptions = { a = \"hunter2${\" }",
        // a URL where none belongs
        WithBrokers("[topics.t]\nbroker = \"tt://app:hunter2@h\""),
        WithBrokers("[topics.t]\nold = \"next\"\nnew = \"legacy\"\npolicy = \"tt://app:hunter2@h\""),
        WithBrokers("[topics.t]\nbroker = \"next\"\nquiet = \"app:hunter2@h\""),
    };
    for (const std::string& document : documents) {
        INFO(document);
        const std::string wrong = WhatIsWrong(document);
        INFO(wrong);
        CHECK_FALSE(wrong.empty());
        CHECK_FALSE(Has(wrong, "hunter"));
    }
    CHECK_FALSE(Has(WhatIsWrong("[brokers.b]\nurl = 4711471147114711471147114711"), "4711"));
    CHECK_FALSE(Has(WhatIsWrong("[brokers.b]\nurl = 1e4711471147"), "4711"));
}

TEST_CASE("a config file is read with its path in every error") {
    const TemporaryFolder folder;
    const auto good = folder.Write("good.toml", WithBrokers("[topics.t]\r\nbroker = \"next\"\r\n"));
    CHECK(mq::LoadConfig(good).topics.contains("t"));

    const auto bad = folder.Write("bad.toml", "[client]\nwrong = 1\n");
    try {
        (void)mq::LoadConfig(bad);
        FAIL("a wrong file was accepted");
    } catch (const mq::Error& error) {
        CHECK(Has(error.what(), bad.string() + ":2:1: client.wrong: "));
    }
}

TEST_CASE("a config file that cannot be read is reported with the reason") {
    const TemporaryFolder folder;
    const auto wrong = [](const std::filesystem::path& path) -> std::string {
        try {
            (void)mq::LoadConfig(path);
        } catch (const mq::Error& error) {
            CHECK(error.code() == mq::ErrorCode::kConfig);
            CHECK(Has(error.what(), path.string() + ": "));
            return error.what();
        }
        return {};
    };
    CHECK(Has(wrong(folder.path() / "missing.toml"), "No such file"));
    CHECK(Has(wrong(folder.path()), "not a regular file"));
    CHECK(Has(wrong(folder.Write("empty.toml", "")), "empty file"));
    CHECK(Has(wrong(folder.Write("comments.toml", "# nothing yet\n")), "empty file"));
}

TEST_CASE("a config that a program has read is checked again without another word") {
    const Config config = ParseConfig(WithBrokers("[topics.t]\nbroker = \"next\""));
    CHECK(mq::detail::CheckConfig(config).empty());
}

TEST_CASE("including the TOML header makes config files readable for the facade") {
    CHECK(mq::detail::FindConfigLoader() == &mq::LoadConfig);
}

TEST_CASE("a key of very many parts is an error, where toml++ would overflow the stack") {
    const auto dotted = [](std::size_t dots) {
        std::string key = "a";
        for (std::size_t i = 0; i < dots; ++i) key += ".a";
        return key;
    };
    const auto check = [](const std::string& document, std::string_view position) {
        const std::string wrong = WhatIsWrong(document);
        INFO(wrong.substr(0, 200));
        CHECK(wrong.substr(0, 9 + position.size()) == "mq.toml:" + std::string{position} + ":");
        CHECK(Has(wrong, "64 dots"));
        CHECK(Lines(wrong).size() == 1);
    };
    check(dotted(100'000) + " = 1", "1:130");
    check("[" + dotted(100'000) + "]\nb = 1", "1:131");
    check("[[" + dotted(100'000) + "]]", "1:132");
    check("x = { y = { " + dotted(100'000) + " = 1 } }", "1:142");
    check("x = { y = 1, " + dotted(40) + " = { " + dotted(40) + " = 1 } }", "1:149");
    std::string quoted = "a";
    for (int i = 0; i < 1000; ++i) quoted += " . \"b.c\"";
    check(quoted + " = 1", "1:515");
    // Dots elsewhere are no such thing.
    std::string numbers = "[brokers.b]\nurl = 'tt://h' # " + std::string(200, '.') + "\n[topics.t]\n" +
                          "broker = 'b'\ngroups = ['" + std::string(200, '.') + "']\nx = [";
    for (int i = 0; i < 200; ++i) numbers += "1.5,\n";
    CHECK_FALSE(Has(WhatIsWrong(numbers + "]"), "dots"));
    CHECK_FALSE(Has(WhatIsWrong(dotted(64) + " = 1"), "dots"));
}

TEST_CASE("a variable that holds user and password is no user name") {
    const Variable both{"MQ_TEST_BOTH", "app:hunter2"};
    const Variable colon{"MQ_TEST_COLON", "a:b"};
    const std::string document = "[brokers.b]\nurl = \"tt://${MQ_TEST_BOTH}@h\"";
    CheckOnly(document, "2:7", "brokers.b.url", {"MQ_TEST_BOTH", "${USER}:${PASSWORD}"});
    CHECK_FALSE(Has(WhatIsWrong(document), "hunter2"));
    CHECK(WhatIsWrong("[brokers.b]\nurl = \"tt://${MQ_TEST_COLON}:${MQ_TEST_COLON}@h\"").empty());
}

TEST_CASE("a password that has strayed into a name appears in no error") {
    const std::vector<std::string> documents{
        "[brokers]\n\"tt://app:hunter2@h\" = { url = 'tt://h' }",
        "[brokers.\"app:hunter2\"]\nurl = 'tt://h'",
        "[brokers.\"app:hunter2\"]\nurl = 1\n[topics.t]\nbroker = 'x'",
        "[brokers.b]\nurl = 'tt://h'\n\"tt://app:hunter2@h\" = 1",
        "[brokers.b]\nurl = 'tt://h'\n\"app:hunter2\" = 1",
        "\"tt://app:hunter2@h\" = 1",
        "\"tt://app:hunter2@h\" = 1\n\"tt://app:hunter2@h\" = 2",
        "[brokers.b]\nurl = 'tt://h'\noptions = { \"app:hunter2@h\" = 2020-01-01 }",
        "[\"tt://app:hunter2@h\"]\n[\"tt://app:hunter2@h\"]",
        "[topics.\"tt://app:hunter2@h\"]",
        WithBrokers("[topics.t]\nbroker = \"app:hunter2\""),
        WithBrokers("[topics.t]\n\"q\\\"app:hunter2@h\" = 1"),
    };
    for (const std::string& document : documents) {
        INFO(document);
        const std::string wrong = WhatIsWrong(document);
        INFO(wrong);
        CHECK_FALSE(wrong.empty());
        CHECK_FALSE(Has(wrong, "hunter"));
    }
    // A topic may have colons in its name.
    CHECK(WhatIsWrong(WithBrokers("[topics.\"orders:v2\"]\nbroker = \"next\"")).empty());
    CheckOnly(WithBrokers("[topics.\"orders:v2\"]\nbroker = \"nobody\""), "6:10",
              "topics.\"orders:v2\".broker", {"nobody"});
}

TEST_CASE("where the brokers cannot be read nothing is said of those that topics name") {
    CheckOnly("brokers = 5\n[topics.t]\nbroker = \"b\"\n[topics.u]\nbroker = \"c\"", "1:11", "brokers",
              {"an integer", "[brokers.NAME]"});
    CHECK(Has(WhatIsWrong("brokers = 5\n[topics.t]\nbroker = \"\""), "topics.t.broker"));
}

TEST_CASE("a quotation mark in a name is escaped in its key path") {
    CHECK(mq::KeyPath("topics", "a\"b", "x") == "topics.\"a\\\"b\".x");
    CHECK(mq::KeyPath("a\\b") == "\"a\\\\b\"");
    CheckOnly("[topics.'a\".b']\nbroker = 'q'", "2:10", "topics.\"a\\\".b\".broker", {"\"q\""});
}
