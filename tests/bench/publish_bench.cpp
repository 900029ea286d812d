// How much of a hand-written client's confirmed throughput the facade reaches: the same messages with
// the same properties to the same broker, both programs alternately, medians of their runs.
//
// With MQ_TEST_RABBITMQ_DIR, MQ_TEST_ACTIVEMQ_DIR and MQ_TEST_ARTEMIS_DIR set, on the brokers whose
// URLs are in those folders; and on the mock cluster of librdkafka, which needs no broker. Prints two
// lines for each, and exits 0 whatever they say: a shared machine is no judge.

#include "raw_kafka.hpp"
#include "raw_proton.hpp"
#include "raw_rabbitmq.hpp"
#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/mq.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRuns = 5;
constexpr std::size_t kBodyBytes = 200;
constexpr std::size_t kKeys = 16;

// Messages a second of one run that publishes `count` messages and waits for their confirms.
double Rate(std::size_t count, const std::function<void()>& run) {
    const auto begin = Clock::now();
    run();
    return static_cast<double>(count) / std::chrono::duration<double>(Clock::now() - begin).count();
}

double Median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

void Compare(const char* name, double bar, std::size_t count, const std::function<void()>& facade,
             const std::function<void()>& raw) {
    facade();
    raw();
    std::vector<double> ratios;
    std::vector<double> facade_rates;
    std::vector<double> raw_rates;
    for (int run = 0; run < kRuns; ++run) {
        facade_rates.push_back(Rate(count, facade));
        raw_rates.push_back(Rate(count, raw));
        ratios.push_back(facade_rates.back() / raw_rates.back());
    }
    const auto [low, high] = std::minmax_element(ratios.begin(), ratios.end());
    std::printf("%s: mq %.0f/s, by hand %.0f/s, medians of %d runs of %zu messages\n", name,
                Median(facade_rates), Median(raw_rates), kRuns, count);
    std::printf("%s: ratio %.2f (from %.2f to %.2f), the bar is %.2f\n", name, Median(ratios), *low,
                *high, bar);
    std::fflush(stdout);
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

void BenchRabbitMq(const std::string& url) {
    constexpr std::size_t kCount = 40'000;
    const std::string body(kBodyBytes, 'x');
    const std::vector<std::string> keys = MakeKeys();
    const std::string address = "mq-bench";
    bench::RawRabbitMq raw{mq::ParseUrl(url), address};
    mq::Client client{ConfigFor(url, address)};
    Compare(
        "rabbitmq", 0.9, kCount, [&] { PublishByFacade(client, kCount, body, keys); },
        [&] { raw.Publish(kCount, body, keys); });
}

void BenchActiveMq(const char* name, const std::string& url, const std::string& address,
                   const std::string& capability) {
    constexpr std::size_t kCount = 40'000;
    const std::string body(kBodyBytes, 'x');
    const std::vector<std::string> keys = MakeKeys();
    bench::RawProton raw{mq::ParseUrl(url), address, capability};
    mq::Client client{ConfigFor(url, "mq-bench")};
    Compare(
        name, 0.9, kCount, [&] { PublishByFacade(client, kCount, body, keys); },
        [&] { raw.Publish(kCount, body, keys); });
}

void BenchKafka() {
    constexpr std::size_t kCount = 400'000;
    const std::string body(kBodyBytes, 'x');
    const std::vector<std::string> keys = MakeKeys();
    const bench::MockCluster cluster;
    bench::RawKafka raw{cluster.servers(), "mq-bench"};
    mq::Client client{ConfigFor("kafka://" + cluster.servers(), "mq-bench")};
    Compare(
        "kafka (mock cluster)", 0.85, kCount, [&] { PublishByFacade(client, kCount, body, keys); },
        [&] { raw.Publish(kCount, body, keys); });
}

// The URL in the folder that a variable names; empty, and said so, without one.
std::string UrlOf(const char* name, const char* variable) {
    std::string url;
    if (const char* const folder = std::getenv(variable)) {
        std::ifstream file{std::string{folder} + "/url"};
        std::getline(file, url);
    }
    if (url.empty()) std::printf("%s: skipped, %s is not set\n", name, variable);
    return url;
}

}  // namespace

int main() try {
    if (const auto url = UrlOf("rabbitmq", "MQ_TEST_RABBITMQ_DIR"); !url.empty()) BenchRabbitMq(url);
    if (const auto url = UrlOf("activemq", "MQ_TEST_ACTIVEMQ_DIR"); !url.empty()) {
        BenchActiveMq("activemq", url, "topic://VirtualTopic.mq-bench", "");
    }
    if (const auto url = UrlOf("artemis", "MQ_TEST_ARTEMIS_DIR"); !url.empty()) {
        BenchActiveMq("artemis", url, "mq-bench", "topic");
    }
    BenchKafka();
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return EXIT_FAILURE;
}
