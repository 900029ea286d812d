/// @file resources_cases.cpp
/// Conformance cases on what a client costs: threads and sockets that do not grow with topics, no time
/// while nothing happens, and memory that stays level.
#include "../support/catch.hpp"
#include "../support/wait.hpp"
#include "cases.hpp"
#include "target.hpp"

#include <malloc.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace mq::conformance {

namespace {

/// Whether the program runs slower and larger than it is, under a sanitizer.
constexpr bool kSanitized =
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    true;
#else
    false;
#endif
#else
    false;
#endif

/// What the process has open.
struct Footprint {
    std::size_t threads = 0;
    std::size_t descriptors = 0;
};

std::size_t EntriesOf(const char* folder) {
    const std::filesystem::directory_iterator entries{folder};
    return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
}

Footprint MeasureFootprint() {
    return {.threads = EntriesOf("/proc/self/task"), .descriptors = EntriesOf("/proc/self/fd")};
}

}  // namespace

void ThreadsAndSocketsDoNotGrowWithTopics(Target& target) {
    if (target.traits().lives_in_process) {
        return test::SkipCase("what the broker opens counts as this process's own");
    }
    constexpr std::size_t kFew = 10;
    constexpr std::size_t kMany = 100;
    // A thread or socket that happens to be born in between is no growth.
    constexpr std::size_t kSlack = 4;
    test::Collector received;
    test::Notes failures;
    World world{target};
    // All of them run before the first look, as busy handlers would start them at any time.
    world.config.client.handler_threads = 2;
    const auto name = [](std::size_t i) { return "topic " + std::to_string(i); };
    for (std::size_t i = 0; i < kMany; ++i) world.AddTopic(name(i));
    Client& client = world.NewClient();
    std::vector<Subscription> subscriptions(kMany);
    // Ten at a time: a group that grows one topic after the other would be rearranged a hundred times.
    const auto subscribe = [&](std::size_t begin) {
        std::vector<std::thread> threads;
        for (std::size_t i = begin; i < begin + 10; ++i) {
            threads.emplace_back([&, i] {
                const auto error =
                    ErrorOf([&] { subscriptions[i] = client.RecvMsg(name(i), received.Handler()); });
                if (error) failures.Add(error->what());
            });
        }
        for (std::thread& thread : threads) thread.join();
    };
    const auto send_to = [&](std::size_t begin, std::size_t end) {
        const std::size_t before = received.Count();
        for (std::size_t i = begin; i < end; ++i) client.SendMsg(name(i), "to " + name(i));
        return received.WaitForCount(before + end - begin, 2 * test::kPatience);
    };
    subscribe(0);
    REQUIRE(failures.All() == std::vector<std::string>{});
    REQUIRE(send_to(0, kFew));
    const Footprint few = MeasureFootprint();
    for (std::size_t i = kFew; i < kMany; i += 10) subscribe(i);
    REQUIRE(failures.All() == std::vector<std::string>{});
    REQUIRE(send_to(0, kMany));
    const Footprint many = MeasureFootprint();
    CHECK(many.threads <= few.threads + kSlack);
    CHECK(many.descriptors <= few.descriptors + kSlack);
    subscriptions.clear();
}

namespace {

/// The processor time that this process has used.
std::chrono::nanoseconds ProcessTime() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return std::chrono::seconds{time.tv_sec} + std::chrono::nanoseconds{time.tv_nsec};
}

}  // namespace

void AnIdleClientUsesNoTime(Target& target) {
    if (kSanitized) return test::SkipCase("under a sanitizer, time is not what it was");
    constexpr std::chrono::seconds kIdle{2};
    constexpr std::chrono::milliseconds kBearable{30};
    // The measure is the least of several looks. A loaded machine makes the same wake-ups dearer for a
    // while; a client that polls or spins does so in every look.
    constexpr std::size_t kLooks = 5;
    test::Collector received;
    World world{target};
    world.AddTopic("invoices");
    Client& client = world.NewClient();
    const Subscription a = client.RecvMsg("orders", received.Handler());
    const Subscription b = client.RecvMsg("invoices", received.Handler());
    client.SendMsg("orders", "one");
    client.SendMsg("invoices", "two");
    REQUIRE(received.WaitForCount(2));
    // What the messages have left to do, such as a commit, happens in the first look.
    REQUIRE_FALSE(received.WaitForCount(3, kIdle));
    auto least = std::chrono::microseconds::max();
    for (std::size_t look = 0; look < kLooks && least >= kBearable; ++look) {
        const auto before = ProcessTime();
        REQUIRE_FALSE(received.WaitForCount(3, kIdle));
        const auto used = std::chrono::duration_cast<std::chrono::microseconds>(ProcessTime() - before);
        UNSCOPED_INFO("used " << used.count() << " microseconds in two seconds");
        least = std::min(least, used);
    }
    CHECK(least < kBearable);
}

namespace {

#if defined(__GLIBC__) && (__GLIBC__ > 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ >= 33))
/// What this process has allocated and not freed, in bytes.
std::size_t Allocated() {
    const auto info = mallinfo2();
    return info.uordblks + info.hblkhd;
}
constexpr bool kCanMeasureMemory = !kSanitized;
#else
std::size_t Allocated() { return 0; }
constexpr bool kCanMeasureMemory = false;
#endif

}  // namespace

void MemoryStaysLevel(Target& target) {
    if (!kCanMeasureMemory) return test::SkipCase("the C library's count of memory cannot be had");
    if (target.traits().lives_in_process) {
        return test::SkipCase("what the broker keeps counts as this process's own");
    }
    constexpr std::size_t kRound = 4'000;
    constexpr std::size_t kRounds = 5;
    constexpr std::size_t kWindows = 4;
    constexpr std::size_t kBearable = 1u << 20u;
    test::Counter received;
    test::Counter ended;
    test::SendLog failures;
    World world{target};
    // A broker that syncs its disk for each message takes its time for a round, and longer where others
    // use the disk: it has it as long as it goes on.
    world.config.client.send_timeout = std::chrono::minutes{10};
    Client& client = world.NewClient();
    const Subscription subscription =
        client.RecvMsg(world.topic, [&](const Message&) { received.Add(); }, {.concurrency = 2});
    std::size_t sent = 0;
    const auto round = [&] {
        for (std::size_t i = 0; i < kRound; ++i) {
            client.SendMsg(world.topic,
                           Message{.body = std::string(200, 'x'), .key = std::to_string(i)},
                           [&](const SendResult& result) {
                               if (!result.ok()) failures.Add(result);
                               ended.Add();
                           });
        }
        sent += kRound;
        return test::EventuallyReaches([&] { return ended.Value(); }, sent) &&
               test::EventuallyReaches([&] { return received.Value(); }, sent);
    };
    // What is kept for later use, such as sendings for the next sends, takes a while to reach its
    // bound; what is lost with each message grows for ever.
    std::vector<std::size_t> levels{Allocated()};
    const auto level = [&] {
        return levels.size() > 1 && levels.back() < levels[levels.size() - 2] + kBearable;
    };
    while (!level() && levels.size() <= kWindows) {
        for (std::size_t i = 0; i < kRounds; ++i) REQUIRE(round());
        levels.push_back(Allocated());
        UNSCOPED_INFO(levels.back() << " bytes after " << sent << " messages");
    }
    CHECK(level());
    CHECK(failures.Count() == 0);
}

}  // namespace mq::conformance
