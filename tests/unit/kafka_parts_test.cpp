#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include <mq/backends/kafka/connectivity.hpp>
#include <mq/backends/kafka/credit.hpp>
#include <mq/backends/kafka/early_deadlines.hpp>
#include <mq/backends/kafka/options.hpp>
#include <mq/backends/kafka/partition.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <thread>
#include <vector>

using mq::kafka::Connectivity;
using mq::kafka::Credit;
using mq::kafka::EarlyDeadlines;
using mq::kafka::Partition;
using mq::test::After;
using namespace std::chrono_literals;

TEST_CASE("a reader without credit is woken by the first message given back, and by a batch") {
    Credit credit{8};
    REQUIRE(credit.batch() == 2);
    for (int i = 0; i < 8; ++i) credit.Take();
    CHECK(credit.Available() == 0);
    credit.SetStarved(true);
    CHECK(credit.Give());
    CHECK(credit.Give());
    CHECK_FALSE(credit.Give());
    CHECK(credit.Available() == 3);
}

TEST_CASE("a reader that has credit is not woken") {
    Credit credit{1};
    credit.Take();
    CHECK_FALSE(credit.Give());
    CHECK(credit.Available() == 1);
}

TEST_CASE("a fenced partition still counts what is settled, a sealed one does not") {
    Partition partition{"t", 0};
    REQUIRE(partition.Deliver(0));
    REQUIRE(partition.Deliver(1));
    CHECK_FALSE(partition.Fenced());
    partition.Fence();
    CHECK(partition.Fenced());
    CHECK(partition.Settle(0));
    CHECK(partition.GetProgress().position == 1);
    partition.Seal();
    CHECK_FALSE(partition.Settle(1));
    CHECK(partition.GetProgress().position == 1);
}

TEST_CASE("a partition is released when every message is settled or gone") {
    Partition partition{"t", 0};
    CHECK(partition.WaitReleased(After(0ms)));
    REQUIRE(partition.Deliver(0));
    REQUIRE(partition.Deliver(1));
    partition.Release();
    CHECK_FALSE(partition.WaitReleased(After(1ms)));
    std::thread settler{[&] { partition.Settle(1); }};
    CHECK(partition.WaitReleased(After()));
    settler.join();
    CHECK(partition.GetProgress().position == 0);
    CHECK(partition.GetProgress().end == 2);
    CHECK(partition.GetProgress().unsettled == 1);
}

TEST_CASE("a cluster is up as long as one of its brokers is") {
    std::atomic<int> turns{0};
    Connectivity connectivity{[&] { ++turns; }};
    CHECK_FALSE(connectivity.AnyUp());
    connectivity.OnState("a", 1, "CONNECT");
    connectivity.OnState("a", 1, "UP");
    CHECK(connectivity.AnyUp());
    CHECK_FALSE(connectivity.CoordinatorUp());
    connectivity.OnState("GroupCoordinator", 0, "UP");
    CHECK(connectivity.CoordinatorUp());
    connectivity.OnState("a", 1, "DOWN");
    CHECK(connectivity.AnyUp());
    connectivity.OnState("GroupCoordinator", 0, "DOWN");
    CHECK_FALSE(connectivity.AnyUp());
    CHECK(turns == 2);
}

TEST_CASE("the first attempt to connect is waited for, and later ones are not") {
    Connectivity connectivity;
    CHECK_FALSE(connectivity.WaitFirst(After(1ms)));
    std::thread broker{[&] { connectivity.OnState("a", 1, "DOWN"); }};
    CHECK_FALSE(connectivity.WaitFirst(After()));
    broker.join();
    const auto begun = mq::backend::Clock::now();
    CHECK_FALSE(connectivity.WaitFirst(After()));
    CHECK(mq::backend::Clock::now() - begun < 10s);
    connectivity.OnState("a", 1, "UP");
    CHECK(connectivity.WaitFirst(After(0ms)));
}

TEST_CASE("an early deadline gives a publication back once, at its report or at its time") {
    EarlyDeadlines early;
    const auto now = mq::backend::Clock::now();
    const auto add = [&](const std::string& body, std::chrono::milliseconds time) {
        auto publication = mq::test::MakePublication(body);
        publication->deadline = now + time;
        return early.Add(std::move(publication));
    };
    const auto later = add("later", 20ms);
    const auto sooner = add("sooner", 10ms);
    const auto refused = add("refused", 5ms);
    CHECK_FALSE(early.Next());
    CHECK(early.TakeDue(now + 1s) == nullptr);
    CHECK(early.Release(later));
    CHECK(early.Release(sooner));
    CHECK(early.Take(refused)->message.body == "refused");
    CHECK(early.Next() == now + 10ms);
    CHECK(early.TakeDue(now + 9ms) == nullptr);
    CHECK(early.TakeDue(now + 10ms)->message.body == "sooner");
    CHECK(early.Take(sooner) == nullptr);
    CHECK(early.Take(later)->message.body == "later");
    CHECK(early.TakeDue(now + 1s) == nullptr);
    CHECK_FALSE(early.Next());
}

TEST_CASE("a Kafka URL becomes librdkafka's properties") {
    const auto properties = [](const std::string& url) {
        const auto made = mq::kafka::UrlProperties(mq::ParseUrl(url));
        return std::map<std::string, std::string>{made.begin(), made.end()};
    };
    CHECK(properties("kafka://a,b:19092,[::1]") ==
          std::map<std::string, std::string>{{"bootstrap.servers", "a:9092,b:19092,[::1]:9092"}});
    const auto tls = properties("kafkas://user:p%40ss@a");
    CHECK(tls.at("security.protocol") == "sasl_ssl");
    CHECK(tls.at("sasl.mechanisms") == "PLAIN");
    CHECK(tls.at("sasl.username") == "user");
    CHECK(tls.at("sasl.password") == "p@ss");
    CHECK(tls.at("ssl.endpoint.identification.algorithm") == "https");
    CHECK(properties("kafka://u:p@a").at("security.protocol") == "sasl_plaintext");
    CHECK(properties("kafkas://a").at("security.protocol") == "ssl");
}

TEST_CASE("options are sorted into the adapter's own and each handle's") {
    std::vector<mq::ConfigProblem> problems;
    const auto options = mq::kafka::ParseOptions({{"declare", "false"},
                                                  {"partitions", "6"},
                                                  {"linger.ms", "1"},
                                                  {"producer.batch.size", "2"},
                                                  {"consumer.fetch.min.bytes", "3"}},
                                                 problems);
    CHECK(problems.empty());
    CHECK_FALSE(options.declare);
    CHECK_FALSE(options.AutoCreate());
    CHECK(options.partitions == 6);
    CHECK(options.both == std::vector<mq::kafka::Property>{{"linger.ms", "1"}});
    CHECK(options.producer == std::vector<mq::kafka::Property>{{"batch.size", "2"}});
    CHECK(options.consumer == std::vector<mq::kafka::Property>{{"fetch.min.bytes", "3"}});
}
