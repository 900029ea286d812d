/// @file kafka_standstill_test.cpp
/// What counts as a standstill of a Kafka partition, and how partitions are shared out.
#include "../support/catch.hpp"
#include <mq/backends/kafka/assignors.hpp>
#include <mq/backends/kafka/standstill.hpp>

#include <chrono>
#include <cstdint>
#include <optional>

namespace {

using mq::kafka::DeliveryWatch;
using Clock = DeliveryWatch::Clock;
using namespace std::chrono_literals;

constexpr Clock::time_point kStart{1h};

}  // namespace

TEST_CASE("a partition with a lag that gives nothing stands still when two answers agree") {
    DeliveryWatch watch{kStart};
    CHECK_FALSE(watch.Due(kStart + DeliveryWatch::kQuiet - 1ms));
    CHECK(watch.Due(kStart + DeliveryWatch::kQuiet));

    const auto now = kStart + DeliveryWatch::kQuiet;
    watch.Answer(now, 10, 15);
    CHECK_FALSE(watch.StandsStill());  // may have come to the broker just now
    watch.Answer(now + DeliveryWatch::kConfirm - 1ms, 10, 15);
    CHECK_FALSE(watch.StandsStill());
    watch.Answer(now + DeliveryWatch::kConfirm, 10, 17);
    CHECK(watch.StandsStill());
    CHECK(watch.since() == now);
}

TEST_CASE("a standstill is noticed early enough to be mended in time, whenever it begins") {
    // A message that does not come, at each moment of the watch's round.
    for (auto message = kStart; message < kStart + 20s; message += 250ms) {
        DeliveryWatch watch{kStart};
        auto now = kStart;
        while (!watch.StandsStill()) {
            now += DeliveryWatch::kAskAgain;
            REQUIRE(now < kStart + 2min);
            if (watch.Due(now)) watch.Answer(now, 10, now >= message ? 11 : 10);
        }
        CHECK(now - message + DeliveryWatch::kMending < mq::backend::kStandstill);
    }
}

TEST_CASE("a partition that is read to its end does not stand still, however long it is quiet") {
    DeliveryWatch watch{kStart};
    for (auto now = kStart; now < kStart + 10min; now += DeliveryWatch::kAskAgain) {
        watch.Answer(now, 10, 10);
        CHECK_FALSE(watch.StandsStill());
    }
}

TEST_CASE("any progress between two answers is no standstill") {
    DeliveryWatch watch{kStart};
    std::int64_t position = 10;
    for (auto now = kStart + DeliveryWatch::kQuiet; now < kStart + 10min;
         now += DeliveryWatch::kConfirm) {
        watch.Answer(now, position, 1'000'000);
        CHECK_FALSE(watch.StandsStill());
        ++position;
        watch.Progress(now + 1s);
    }
}

TEST_CASE("a standstill is over with the first progress, and one that is asked too early is none") {
    DeliveryWatch watch{kStart};
    const auto first = kStart + DeliveryWatch::kQuiet;
    const auto second = first + DeliveryWatch::kConfirm;
    watch.Answer(first, 10, 15);
    watch.Answer(second, 10, 15);
    REQUIRE(watch.StandsStill());
    watch.Progress(second + 1s);
    CHECK_FALSE(watch.StandsStill());
    // Asked before that, and answered after it.
    watch.Answer(second, 10, 15);
    watch.Answer(second + 1s + DeliveryWatch::kConfirm, 10, 15);
    CHECK_FALSE(watch.StandsStill());
}

TEST_CASE("where a partition begins must be known after a while, also of an empty one") {
    DeliveryWatch watch{kStart};
    const auto first = kStart + DeliveryWatch::kQuiet;
    watch.Answer(first, std::nullopt, 0);
    watch.Answer(first + DeliveryWatch::kConfirm, std::nullopt, 0);
    CHECK(watch.StandsStill());
}

TEST_CASE("without an answer of the broker nothing is judged") {
    DeliveryWatch watch{kStart};
    CHECK(watch.Due(kStart + 10min));
    CHECK_FALSE(watch.StandsStill());
}

TEST_CASE("the cooperative assignor is for librdkafka from 2.6.1 on, and the others for those before") {
    using mq::kafka::OtherAssignors;
    using mq::kafka::PreferredAssignors;
    for (const int version : {0x020000ff, 0x020002ff, 0x020503ff, 0x020600ff}) {
        CHECK_FALSE(mq::kafka::CooperativeIsSound(version));
        CHECK(PreferredAssignors(version) == mq::kafka::kEager);
    }
    for (const int version : {0x020601ff, 0x020700ff, 0x030000ff}) {
        CHECK(PreferredAssignors(version) == mq::kafka::kCooperative);
    }
    CHECK(OtherAssignors(mq::kafka::kEager) == mq::kafka::kCooperative);
    CHECK(OtherAssignors(mq::kafka::kCooperative) == mq::kafka::kEager);
    CHECK(mq::kafka::NamesCooperative("range, cooperative-sticky"));
    CHECK_FALSE(mq::kafka::NamesCooperative("roundrobin,range"));
}
