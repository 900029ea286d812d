// How much of a hand-written client's confirmed throughput the facade reaches: the same messages with
// the same properties to the same broker, both programs alternately, medians of their runs. And what a
// change of policy costs those who send meanwhile. And the same for receiving what lies on a Kafka.
//
// With MQ_TEST_RABBITMQ_DIR, MQ_TEST_ACTIVEMQ_DIR, MQ_TEST_ARTEMIS_DIR and MQ_TEST_KAFKA_DIR set, on
// the brokers whose URLs are in those folders; and on the mock cluster of librdkafka, which needs no
// broker. Prints what it measures and the bar for it, and writes "PASSED FAILED SKIPPED" into the file
// that MQ_TEST_TALLY names. A shared machine is a poor judge of throughput: one and the same program
// was seen to come out at half of itself. So what reaches half of its bar passes, and the figures say
// by how much it missed.

#include "../support/backend_fakes.hpp"
#include "../support/mock_kafka.hpp"
#include "raw_kafka.hpp"
#include "raw_kafka_consumer.hpp"
#include "raw_proton.hpp"
#include "raw_rabbitmq.hpp"
#include "send_stopwatch.hpp"
#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/mq.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRuns = 5;
constexpr double kNoise = 0.5;
constexpr std::size_t kBodyBytes = 200;
constexpr std::size_t kKeys = 16;

// Messages a second of one run that publishes `count` messages and waits for their confirms.
double Rate(std::size_t count, const std::function<void()>& run) {
    const auto begin = Clock::now();
    run();
    return static_cast<double>(count) / std::chrono::duration<double>(Clock::now() - begin).count();
}

double Milliseconds(mq::test::Microseconds time) { return static_cast<double>(time.count()) / 1000; }

double Median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// Whether the median of the facade's shares is good enough, of runs that tell their rates.
bool CompareRates(const char* name, double bar, std::size_t count,
                  const std::function<double()>& facade, const std::function<double()>& raw) {
    facade();
    raw();
    std::vector<double> ratios;
    std::vector<double> facade_rates;
    std::vector<double> raw_rates;
    for (int run = 0; run < kRuns; ++run) {
        facade_rates.push_back(facade());
        raw_rates.push_back(raw());
        ratios.push_back(facade_rates.back() / raw_rates.back());
    }
    const auto [low, high] = std::minmax_element(ratios.begin(), ratios.end());
    const double ratio = Median(ratios);
    const bool good = ratio >= kNoise * bar;
    std::printf("%s: mq %.0f/s, by hand %.0f/s, medians of %d runs of %zu messages\n", name,
                Median(facade_rates), Median(raw_rates), kRuns, count);
    std::printf("%s: ratio %.2f (from %.2f to %.2f), the bar is %.2f%s\n", name, ratio, *low, *high,
                bar,
                ratio >= bar ? ""
                : good       ? ", missed by what may be noise"
                             : ": FAILED");
    return good;
}

// The same of runs that take as long as they take.
bool Compare(const char* name, double bar, std::size_t count, const std::function<void()>& facade,
             const std::function<void()>& raw) {
    return CompareRates(
        name, bar, count, [&] { return Rate(count, facade); }, [&] { return Rate(count, raw); });
}

mq::Config ConfigFor(const std::string& url, const std::string& address) {
    mq::Config config;
    config.brokers["broker"].url = url;
    config.topics["bench"] = {.broker = "broker", .address = address};
    return config;
}

void PublishByFacade(mq::Client& client, std::size_t count, const std::string& body,
                     const std::vector<std::string>& keys) {
    std::atomic<std::size_t> failed{0};
    for (std::size_t i = 0; i < count; ++i) {
        client.SendMsg("bench", mq::Message{.body = body, .key = keys[i % keys.size()]},
                       [&failed](const mq::SendResult& result) {
                           if (!result.ok()) failed.fetch_add(1);
                       });
    }
    if (!client.Flush(std::chrono::seconds{60}) || failed > 0) {
        throw std::runtime_error("the facade's sends were not all confirmed");
    }
}

std::vector<std::string> MakeKeys() {
    std::vector<std::string> keys;
    for (std::size_t i = 0; i < kKeys; ++i) keys.push_back("customer-" + std::to_string(i));
    return keys;
}

bool BenchRabbitMq(const std::string& url) {
    constexpr std::size_t kCount = 40'000;
    const std::string body(kBodyBytes, 'x');
    const std::vector<std::string> keys = MakeKeys();
    const std::string address = "mq-bench";
    bench::RawRabbitMq raw{mq::ParseUrl(url), address};
    mq::Client client{ConfigFor(url, address)};
    return Compare(
        "rabbitmq", 0.9, kCount, [&] { PublishByFacade(client, kCount, body, keys); },
        [&] { raw.Publish(kCount, body, keys); });
}

bool BenchActiveMq(const char* name, const std::string& url, const std::string& address,
                   const std::string& capability) {
    constexpr std::size_t kCount = 40'000;
    const std::string body(kBodyBytes, 'x');
    const std::vector<std::string> keys = MakeKeys();
    bench::RawProton raw{mq::ParseUrl(url), address, capability};
    mq::Client client{ConfigFor(url, "mq-bench")};
    return Compare(
        name, 0.9, kCount, [&] { PublishByFacade(client, kCount, body, keys); },
        [&] { raw.Publish(kCount, body, keys); });
}

bool BenchKafka() {
    constexpr std::size_t kCount = 400'000;
    const std::string body(kBodyBytes, 'x');
    const std::vector<std::string> keys = MakeKeys();
    const mq::test::MockCluster cluster;
    bench::RawKafka raw{cluster.url().substr(std::string_view{"kafka://"}.size()), "mq-bench"};
    mq::Client client{ConfigFor(cluster.url(), "mq-bench")};
    return Compare(
        "kafka (mock cluster)", 0.85, kCount, [&] { PublishByFacade(client, kCount, body, keys); },
        [&] { raw.Publish(kCount, body, keys); });
}

// Works on each message for a while, and notes when the first and the last one came.
class Worker {
public:
    explicit Worker(std::size_t count) : count_(count) {}

    void Handle() {
        constexpr std::chrono::microseconds kWork{2};
        const auto begin = Clock::now();
        if (handled_ == 0) first_ = begin;
        while (Clock::now() - begin < kWork) {
        }
        if (++handled_ != count_) return;
        last_ = Clock::now();
        done_.store(true);
        done_.notify_all();
    }

    [[nodiscard]] double AwaitRate() const {
        done_.wait(false);
        return static_cast<double>(count_) / std::chrono::duration<double>(last_ - first_).count();
    }

private:
    const std::size_t count_;
    std::size_t handled_ = 0;
    Clock::time_point first_ = {};
    Clock::time_point last_ = {};
    std::atomic<bool> done_{false};
};

// Whether a backlog is received as fast as by a program that does the same work for each message.
bool BenchKafkaReceiving(const std::string& url) {
    constexpr std::size_t kCount = 200'000;
    const std::string servers = url.substr(std::string_view{"kafka://"}.size());
    const std::string topic = mq::test::UniqueId("mq-bench");
    bench::RawKafka{servers, topic}.Publish(kCount, std::string(kBodyBytes, 'x'), MakeKeys());
    const auto by_facade = [&] {
        mq::Client client{ConfigFor(url, topic)};
        Worker worker{kCount};
        const auto subscription =
            client.RecvMsg("bench", [&](const mq::Message&) { worker.Handle(); },
                           {.group = mq::test::UniqueId("facade"), .concurrency = 1});
        return worker.AwaitRate();
    };
    const auto by_hand = [&] {
        bench::RawKafkaConsumer consumer{servers, mq::test::UniqueId("raw"), topic};
        Worker worker{kCount};
        consumer.Receive(kCount, [&] { worker.Handle(); });
        return worker.AwaitRate();
    };
    return CompareRates("kafka, receiving", 0.9, kCount, by_facade, by_hand);
}

// Whether no send waits for a change of policy where there is no order to keep: two threads send
// through one client, which also receives, and whose publishing moves to and fro.
bool BenchChange(const char* name, const std::string& old_url, const std::string& new_url) {
    using mq::Policy;
    constexpr unsigned kRate = 5'000;  // a second, of each of two senders
    mq::Config config;
    config.brokers["legacy"].url = old_url;
    config.brokers["next"].url = new_url;
    const std::string address = mq::test::UniqueId("mq-bench");
    config.topics["bench"] = {.old_broker = "legacy",
                              .new_broker = "next",
                              .policy = Policy::kDualSubscribe,
                              .old_address = address,
                              .new_address = address};
    std::atomic<std::size_t> received{0};
    std::atomic<std::size_t> failed{0};
    mq::Client client{config};
    const mq::Subscription subscription =
        client.RecvMsg("bench", [&received](const mq::Message&) { received.fetch_add(1); });
    const auto make = [] { return mq::Message{.body = std::string(kBodyBytes, 'x')}; };
    const auto ended = [&failed](const mq::SendResult& result) {
        if (!result.ok()) failed.fetch_add(1);
    };
    const auto begin = Clock::now();
    std::uint64_t calls = 0;
    mq::test::ChangeCost up;
    mq::test::ChangeCost down;
    {
        mq::test::SendStopwatch one{client, "bench", kRate, make, ended};
        mq::test::SendStopwatch two{client, "bench", kRate, make, ended};
        const auto change_to = [&](Policy policy) {
            return mq::test::MeasureChange(std::array{&one, &two}, [&] {
                client.SetPolicy("bench", policy);
                if (!mq::test::Eventually([&] { return client.Status("bench").stage == policy; })) {
                    throw std::runtime_error("the policy was not reached: " +
                                             client.Status("bench").waiting_for);
                }
            });
        };
        // The first messages make the connections.
        if (!mq::test::Eventually([&] { return received >= kRate; })) {
            throw std::runtime_error("nothing is received");
        }
        for (int run = 0; run < kRuns; ++run) {
            up.Add(change_to(Policy::kNewPublish));
            down.Add(change_to(Policy::kDualSubscribe));
        }
        calls = one.calls() + two.calls();
    }
    const double rate =
        static_cast<double>(calls) / std::chrono::duration<double>(Clock::now() - begin).count();
    if (!client.Flush(std::chrono::seconds{60}) || failed > 0) {
        throw std::runtime_error("the sends were not all confirmed");
    }
    const bool good = up.with <= up.Bound() && down.with <= down.Bound();
    std::printf(
        "change of policy, %s: under %.0f sends/s the longest call took %.2f ms beside a change up "
        "(%.2f "
        "beside none), %.2f ms beside one down (%.2f), the least of %d each, the bar is 10 ms%s\n",
        name, rate, Milliseconds(up.with), Milliseconds(up.without), Milliseconds(down.with),
        Milliseconds(down.without), kRuns, good ? "" : ": FAILED");
    return good;
}

// The URL in the folder that a variable names; empty without one.
std::string UrlOf(const char* variable) {
    std::string url;
    if (const char* const folder = std::getenv(variable)) {
        std::ifstream file{std::string{folder} + "/url"};
        std::getline(file, url);
    }
    return url;
}

// Counts what was measured, for the test command.
class Tally {
public:
    // Measures, and takes what is thrown for a failure.
    void Measure(const std::string& name, const std::function<bool()>& measure) {
        if (!file_.empty()) std::ofstream{file_ + ".running"} << name << '\n';
        bool good = false;
        try {
            good = measure();
        } catch (const std::exception& error) {
            std::printf("%s: %s: FAILED\n", name.c_str(), error.what());
        }
        ++(good ? passed_ : failed_);
        std::fflush(stdout);
    }

    // The same on a broker that may not be there.
    void Measure(const std::string& name, const char* variable,
                 const std::function<bool(const std::string&)>& measure) {
        if (const std::string url = UrlOf(variable); !url.empty()) {
            return Measure(name, [&] { return measure(url); });
        }
        ++skipped_;
        std::printf("skipped: benchmark of %s: %s names no running broker\n", name.c_str(), variable);
    }

    // The exit status of the program.
    [[nodiscard]] int Finish() const {
        if (!file_.empty()) {
            std::ofstream{file_} << passed_ << ' ' << failed_ << ' ' << skipped_ << '\n';
        }
        return failed_ == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
    }

private:
    static std::string FileOf(const char* variable) {
        const char* const name = std::getenv(variable);
        return name != nullptr ? name : "";
    }

    const std::string file_ = FileOf("MQ_TEST_TALLY");
    int passed_ = 0;
    int failed_ = 0;
    int skipped_ = 0;
};

}  // namespace

int main() {
    Tally tally;
    tally.Measure("rabbitmq", "MQ_TEST_RABBITMQ_DIR", BenchRabbitMq);
    tally.Measure("activemq", "MQ_TEST_ACTIVEMQ_DIR", [](const std::string& url) {
        return BenchActiveMq("activemq", url, "topic://VirtualTopic.mq-bench", "");
    });
    tally.Measure("artemis", "MQ_TEST_ARTEMIS_DIR", [](const std::string& url) {
        return BenchActiveMq("artemis", url, "mq-bench", "topic");
    });
    tally.Measure("kafka (mock cluster)", BenchKafka);
    tally.Measure("kafka, receiving", "MQ_TEST_KAFKA_DIR", BenchKafkaReceiving);
    tally.Measure("a change from memory to memory",
                  [] { return BenchChange("memory to memory", "memory://old", "memory://new"); });
    tally.Measure("a change from rabbitmq to kafka", "MQ_TEST_RABBITMQ_DIR",
                  [](const std::string& url) {
                      const mq::test::MockCluster cluster;
                      return BenchChange("rabbitmq to kafka (mock cluster)", url, cluster.url());
                  });
    return tally.Finish();
}
