/// @file activemq_standstill_test.cpp
/// When a subscription of an ActiveMQ is taken to stand still, and what is done about it.
#include "../support/catch.hpp"
#include <mq/backends/activemq.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

using mq::activemq::QueueState;
using mq::activemq::StandstillWatch;
using Advice = StandstillWatch::Advice;
using Clock = StandstillWatch::Clock;
using namespace std::chrono_literals;

QueueState Has(std::uint64_t ready, std::uint64_t held = 0, std::uint64_t settled = 7) {
    return {.messages = ready + held, .ready = ready, .settled = settled};
}

/// A subscription on which nothing arrives, and a broker that always answers the same.
struct Quiet {
    StandstillWatch watch = {};
    Clock::time_point begin = Clock::now();
    Clock::time_point now = begin;

    Quiet() { watch.Progress(begin); }

    /// Goes on to the next question, and answers it.
    Advice Next(const QueueState& answer) {
        now = watch.NextAt();
        REQUIRE(watch.Decide(now - 1ms) == Advice::kNothing);
        REQUIRE(watch.Decide(now) == Advice::kAsk);
        // One at a time.
        REQUIRE(watch.Decide(now + 1h) == Advice::kNothing);
        const Advice advice = watch.Answer(answer, now);
        if (advice == Advice::kReplaceLink || advice == Advice::kReconnect) watch.Replaced(now);
        return advice;
    }

    /// The times since the beginning at which something was done, in an hour.
    std::vector<std::chrono::seconds> Mended(const QueueState& answer) {
        std::vector<std::chrono::seconds> times;
        while (now < begin + 1h) {
            if (Next(answer) == Advice::kNothing) continue;
            times.push_back(std::chrono::duration_cast<std::chrono::seconds>(now - begin));
        }
        return times;
    }
};

}  // namespace

TEST_CASE("ActiveMQ standstill: ready messages that nobody takes are found in time", "[activemq]") {
    Quiet quiet;
    CHECK(quiet.Next(Has(5)) == Advice::kNothing);
    CHECK_FALSE(quiet.watch.Since());
    CHECK(quiet.Next(Has(5)) == Advice::kReplaceLink);
    CHECK(quiet.watch.Since() == quiet.begin);
    CHECK(quiet.now - quiet.begin < mq::backend::kStandstill);
    // A link that is new is given the time to bring something; then the connection is made anew.
    CHECK(quiet.Next(Has(5)) == Advice::kNothing);
    CHECK(quiet.Next(Has(5)) == Advice::kReconnect);
    CHECK(quiet.watch.Since() == quiet.begin);
    quiet.watch.Progress(quiet.now);
    CHECK_FALSE(quiet.watch.Since());
}

TEST_CASE("ActiveMQ standstill: it is over where nothing is ready any more", "[activemq]") {
    Quiet quiet;
    quiet.Next(Has(5));
    quiet.Next(Has(5));
    CHECK(quiet.watch.Since());
    quiet.Next(Has(0));
    CHECK_FALSE(quiet.watch.Since());
}

TEST_CASE("ActiveMQ standstill: an idle queue, or one that others work on, is none", "[activemq]") {
    Quiet idle;
    for (int i = 0; i < 20; ++i) CHECK(idle.Next(Has(0)) == Advice::kNothing);
    // Each answer finds others that have settled some.
    Quiet beside;
    std::size_t replaced = 0;
    for (std::uint64_t i = 0; i < 100; ++i) {
        const Advice advice = beside.Next(Has(5, 0, i));
        CHECK(advice != Advice::kReconnect);
        replaced += advice == Advice::kReplaceLink ? 1 : 0;
        CHECK_FALSE(beside.watch.Since());
    }
    // It may be stuck all the same: the link is replaced now and then.
    CHECK(replaced > 0);
    CHECK(replaced < 8);
    // Others have some for an hour, by their message group perhaps.
    Quiet grouped;
    CHECK(grouped.Mended(Has(5, 1)).size() < 12);
    CHECK_FALSE(grouped.watch.Since());
}

TEST_CASE("ActiveMQ standstill: what does not help is done less and less often", "[activemq]") {
    Quiet quiet;
    const auto times = quiet.Mended(Has(5));
    REQUIRE(times.size() > 3);
    CHECK(times.size() < 15);
    CHECK(times[1] - times[0] < 30s);
    CHECK(times.back() - times[times.size() - 2] > 500s);
}

TEST_CASE("ActiveMQ standstill: a broker that does not answer is asked less and less often",
          "[activemq]") {
    StandstillWatch watch;
    auto now = Clock::now();
    const auto begin = now;
    watch.Progress(now);
    int asked = 0;
    while (now < begin + 1h) {
        now = watch.NextAt();
        REQUIRE(watch.Decide(now) == Advice::kAsk);
        watch.Unanswered(now);
        ++asked;
    }
    CHECK(asked < 15);
    CHECK_FALSE(watch.Since());
}
