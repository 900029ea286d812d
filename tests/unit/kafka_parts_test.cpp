#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include <mq/backends/kafka/connectivity.hpp>
#include <mq/backends/kafka/credit.hpp>
#include <mq/backends/kafka/early_deadlines.hpp>
#include <mq/backends/kafka/end_history.hpp>
#include <mq/backends/kafka/in_flight.hpp>
#include <mq/backends/kafka/options.hpp>
#include <mq/backends/kafka/partition.hpp>
#include <mq/backends/kafka/position_memory.hpp>
#include <mq/backends/kafka/redaction.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

using mq::kafka::Connectivity;
using mq::kafka::Credit;
using mq::kafka::EarlyDeadlines;
using mq::kafka::EndHistories;
using mq::kafka::EndHistory;
using mq::kafka::InFlight;
using mq::kafka::Partition;
using mq::kafka::Redaction;
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

namespace {

// A moment of the clock that the histories are kept by.
EndHistory::Clock::time_point At(std::int64_t milliseconds) {
    return EndHistory::Clock::time_point{std::chrono::milliseconds{milliseconds}};
}

}  // namespace

TEST_CASE("what was there by a moment is settled when every partition has come to its end of then") {
    EndHistory history;
    CHECK_FALSE(history.SettledBefore({}));
    history.Note(At(1), {3, 0});
    CHECK_FALSE(history.SettledBefore({2, 5}));
    history.Note(At(2), {3, 7});
    history.Note(At(3), {9, 7});
    CHECK(history.SettledBefore({3, 6}) == At(1));
    CHECK(history.SettledBefore({8, 7}) == At(2));
    CHECK(history.SettledBefore({9, 7}) == At(3));
    CHECK(history.size() == 1);

    SECTION("it stays known while more comes") {
        history.Note(At(4), {12, 8});
        CHECK(history.SettledBefore({9, 7}) == At(3));
    }
    SECTION("and not where the group goes back") { CHECK_FALSE(history.SettledBefore({8, 7})); }
    SECTION("a moment that has passed adds nothing") {
        history.Note(At(3), {1, 1});
        history.Note(At(2), {1, 1});
        CHECK_FALSE(history.SettledBefore({8, 7}));
        CHECK(history.SettledBefore({9, 7}) == At(3));
    }
}

TEST_CASE("a partition counts from the first moment at which it was there") {
    EndHistory history;
    history.Note(At(1), {3});
    history.Note(At(2), {3, 1});
    CHECK(history.SettledBefore({3, -1}) == At(1));
    CHECK_FALSE(history.SettledBefore({2, 1}));
    CHECK(history.SettledBefore({3, 1}) == At(2));
    // Of the second one nothing is known here.
    CHECK_FALSE(history.SettledBefore({3}));
}

TEST_CASE("the ends of a topic that was made anew replace those from before") {
    EndHistory history;
    history.Note(At(1), {2, 2});
    history.Note(At(2), {8, 2});
    history.Note(At(3), {9, 9});
    SECTION("with less in it") {
        history.Note(At(4), {3, 3});
        CHECK(history.size() == 2);
        CHECK(history.SettledBefore({3, 2}) == At(1));
        CHECK(history.SettledBefore({3, 3}) == At(4));
    }
    SECTION("with fewer partitions") {
        history.Note(At(4), {10});
        CHECK(history.size() == 1);
        CHECK(history.SettledBefore({10}) == At(4));
    }
}

TEST_CASE("a topic to which nothing comes has ended there until now") {
    EndHistory history;
    for (int i = 1; i <= 100; ++i) history.Note(At(i), {5, 5});
    CHECK(history.size() == 1);
    CHECK(history.SettledBefore({5, 5}) == At(100));
    // However often it is asked about, the ends of before are not pushed out.
    history.Note(At(101), {6, 5});
    for (int i = 102; i <= 200; ++i) history.Note(At(i), {7, 5});
    CHECK(history.SettledBefore({6, 5}) == At(101));
}

TEST_CASE("the next step of a group is seen, however much comes before it takes it") {
    EndHistory history;
    history.Note(At(1), {1});
    CHECK(history.SettledBefore({1}) == At(1));
    for (int i = 2; i <= 1000; ++i) history.Note(At(i), {i});
    CHECK(history.size() == EndHistory::kMost);
    CHECK(history.SettledBefore({2}) == At(2));
}

TEST_CASE("a group that never catches up is seen to come on, however far it lags behind") {
    const std::int64_t lag = GENERATE(1, 10, 300, 10'000);
    EndHistory history;
    std::int64_t latest = 0;  // how late an answer was at most, once the group had come on
    for (std::int64_t now = 1; now <= 5 * lag; ++now) {
        history.Note(At(now), {now});
        const std::int64_t position = now - lag;
        const auto settled = history.SettledBefore({position});
        REQUIRE(history.size() <= EndHistory::kMost);
        if (!settled) {
            REQUIRE(position < 1);
            continue;
        }
        REQUIRE(*settled <= At(position));
        latest = std::max<std::int64_t>(
            latest,
            std::chrono::duration_cast<std::chrono::milliseconds>(At(position) - *settled).count());
    }
    CAPTURE(lag, latest);
    CHECK(latest <= lag / 8);
}

TEST_CASE("each group has its history of each topic, and the ones asked about last are kept") {
    EndHistories histories;
    CHECK_FALSE(histories.Ask("t", "a", At(1), {5}, {4}));
    CHECK(histories.Ask("t", "b", At(2), {5}, {5}) == At(2));
    CHECK_FALSE(histories.Ask("u", "a", At(3), {9}, {5}));
    CHECK(histories.Ask("t", "a", At(4), {9}, {5}) == At(1));
    for (std::size_t i = 0; i < EndHistories::kMost - 1; ++i) {
        histories.Ask(std::to_string(i), "a", At(5), {1}, {1});
    }
    CHECK(histories.size() == EndHistories::kMost);
    CHECK(histories.Ask("t", "a", At(6), {10}, {5}) == At(1));
    CHECK_FALSE(histories.Ask("t", "b", At(7), {9}, {5}));
}

TEST_CASE("positions are remembered as they were seen last, each partition by itself") {
    using mq::kafka::PositionMemory;
    using WallClock = PositionMemory::WallClock;
    const WallClock::time_point monday{};
    const WallClock::time_point tuesday = monday + std::chrono::hours{24};
    PositionMemory memory;
    memory.Note("orders", "billing", {-1, -1}, monday);
    CHECK_FALSE(memory.Find("orders", "billing"));
    memory.Note("orders", "billing", {7, 3}, monday);
    // What goes back has gone back; what is not known any more is as old as it was.
    memory.Note("orders", "billing", {5, -1}, tuesday);
    auto found = memory.Find("orders", "billing");
    REQUIRE(found);
    CHECK(found->positions == mq::kafka::Offsets{5, 3});
    CHECK(found->seen == monday);
    memory.Note("orders", "billing", {6, 4, 2}, tuesday);
    found = memory.Find("orders", "billing");
    CHECK(found->positions == mq::kafka::Offsets{6, 4, 2});
    CHECK(found->seen == tuesday);
    CHECK_FALSE(memory.Find("orders", "search"));
    memory.Forget("orders", "billing");
    CHECK_FALSE(memory.Find("orders", "billing"));
}

TEST_CASE("positions are refreshed at first, and then once in a while") {
    using mq::kafka::PositionMemory;
    const PositionMemory::Clock::time_point now{};
    PositionMemory memory;
    CHECK_FALSE(memory.TakeRefresh("orders", "billing", now));
    memory.Note("orders", "billing", {7}, {});
    CHECK(memory.TakeRefresh("orders", "billing", now));
    CHECK_FALSE(memory.TakeRefresh("orders", "billing", now + PositionMemory::kRefresh / 2));
    CHECK(memory.TakeRefresh("orders", "billing", now + PositionMemory::kRefresh));
}

TEST_CASE("of the positions of very many groups those noted last are remembered") {
    using mq::kafka::PositionMemory;
    PositionMemory memory;
    for (std::size_t i = 0; i <= PositionMemory::kMost; ++i) {
        memory.Note("orders", std::to_string(i), {1}, {});
    }
    CHECK(memory.size() == PositionMemory::kMost);
    CHECK_FALSE(memory.Find("orders", "0"));
    CHECK(memory.Find("orders", std::to_string(PositionMemory::kMost)));
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

TEST_CASE("what is in flight has a number in its order, by whatever way it comes back") {
    InFlight in_flight;
    std::vector<void*> places;
    constexpr std::size_t kCount = 3 * InFlight::kPlaces + 1;
    for (std::size_t i = 0; i < kCount; ++i) places.push_back(in_flight.Add(i + 1));
    CHECK(in_flight.Capacity() == 4 * InFlight::kPlaces);
    std::uint64_t last = 0;
    for (const std::size_t i : {5u, 300u, 301u, 700u}) {
        const InFlight::Entry entry = InFlight::Take(places[i]);
        CHECK(entry.value == i + 1);
        CHECK(entry.number > last);
        last = entry.number;
    }
    const auto rest = in_flight.TakeAll();
    REQUIRE(rest.size() == kCount - 4);
    for (std::size_t i = 1; i < rest.size(); ++i) {
        REQUIRE(rest[i - 1].number < rest[i].number);
        REQUIRE(rest[i - 1].value < rest[i].value);
    }
    // Taken once, and not a second time.
    CHECK(InFlight::Take(places[6]).value == 0);
    CHECK(in_flight.TakeAll().empty());
}

TEST_CASE("the room for what is in flight is used again, however much goes through it") {
    InFlight in_flight;
    std::uint64_t last = 0;
    for (std::size_t i = 1; i <= 100 * InFlight::kPlaces; ++i) {
        const InFlight::Entry entry = InFlight::Take(in_flight.Add(i));
        REQUIRE(entry.value == i);
        REQUIRE((i == 1 || entry.number > last));
        last = entry.number;
    }
    CHECK(in_flight.Capacity() <= 2 * InFlight::kPlaces);
}

TEST_CASE("what many threads put in flight comes back once, and in the order of each thread") {
    constexpr std::size_t kThreads = 4;
    constexpr std::size_t kEach = 20'000;
    InFlight in_flight;
    std::vector<std::vector<std::uint64_t>> numbers(kThreads);
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < kThreads; ++t) {
        threads.emplace_back([&in_flight, &mine = numbers[t], t] {
            std::vector<void*> out;
            const auto take = [&] {
                for (void* const place : out) mine.push_back(InFlight::Take(place).number);
                out.clear();
            };
            for (std::size_t i = 0; i < kEach; ++i) {
                out.push_back(in_flight.Add(t * kEach + i + 1));
                if (out.size() == 100 + t) take();
            }
            take();
        });
    }
    for (std::thread& thread : threads) thread.join();
    std::set<std::uint64_t> all;
    bool rising = true;
    for (const auto& mine : numbers) {
        for (std::size_t i = 0; i < mine.size(); ++i) {
            rising = rising && (i == 0 || mine[i - 1] < mine[i]);
            all.insert(mine[i]);
        }
    }
    CHECK(rising);
    CHECK(all.size() == kThreads * kEach);
    CHECK(in_flight.TakeAll().empty());
}

TEST_CASE("no secret of the options is in a line of librdkafka's") {
    const Redaction redaction{
        {{"sasl.kerberos.kinit.cmd", "echo s3cret | kinit %{sasl.kerberos.principal}"},
         {"sasl.oauthbearer.client.secret", "hush"},
         {"ssl.key.password", ""},
         {"client.id", "s3cret is no secret here"}}};
    // The command with its variables filled in, which is not the value.
    CHECK(redaction.Of("SASLREFRESH",
                       "Refreshing Kerberos ticket with command: echo s3cret | kinit me@REALM") ==
          "Refreshing Kerberos ticket with command: [redacted]");
    CHECK(redaction.Of("SASLREFRESH", "Slow Kerberos ticket refresh: 6000ms: echo s3cret") ==
          "Slow Kerberos ticket refresh: [redacted]");
    // What is too long for a line is cut there.
    CHECK(redaction.Of("CONF", "[thrd:app]:   sasl.kerberos.kinit.cmd = echo s3cret | ki") ==
          "[thrd:app]:   sasl.kerberos.kinit.cmd = [redacted]");
    CHECK(redaction.Of("OIDC", "refused: hush, hush!") == "refused: [redacted], [redacted]!");
    CHECK(redaction.Of("FAIL", "Connect to a:9092 failed") == "Connect to a:9092 failed");
    // Nobody has said what to run: it is librdkafka's own command.
    CHECK(Redaction{}.Of("SASLREFRESH", "with command: kinit -R") == "with command: kinit -R");
}

TEST_CASE("a partition that is taken away waits for its handlers as long as the group can") {
    std::vector<mq::ConfigProblem> problems;
    const auto wait = [&](const std::map<std::string, std::string>& texts) {
        return mq::kafka::ParseOptions(texts, problems).RevokeWait();
    };
    CHECK(wait({}) == 30s);
    CHECK(wait({{"revoke_wait", "2m"}}) == 2min);
    CHECK(wait({{"revoke_wait", "9m"}, {"consumer.max.poll.interval.ms", "600000"}}) == 9min);
    CHECK(wait({{"max.poll.interval.ms", "12000"}}) == 7s);
    CHECK(problems.empty());
    wait({{"revoke_wait", "295001ms"}});
    REQUIRE(problems.size() == 1);
    CHECK(problems[0].key == "options.revoke_wait");
    CHECK(problems[0].text.find("at most 4m55s") != std::string::npos);
    wait({{"revoke_wait", "soon"}});
    CHECK(problems.size() == 2);
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
