#include "../support/catch.hpp"
#include <mq/backends/kafka/offset_tracker.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <random>
#include <set>
#include <vector>

using mq::kafka::OffsetTracker;

TEST_CASE("a partition of which nothing was delivered has no position") {
    OffsetTracker tracker;
    CHECK_FALSE(tracker.Position());
    CHECK_FALSE(tracker.End());
    CHECK_FALSE(tracker.Settle(0));
    CHECK(tracker.Window() == 0);
}

TEST_CASE("the position begins at the first offset that is delivered") {
    OffsetTracker tracker;
    REQUIRE(tracker.Deliver(100));
    CHECK(tracker.Position() == 100);
    CHECK(tracker.End() == 101);
    CHECK(tracker.Settle(100));
    CHECK(tracker.Position() == 101);
}

TEST_CASE("messages settled in order move the position one by one") {
    OffsetTracker tracker;
    for (std::int64_t offset = 0; offset < 10; ++offset) REQUIRE(tracker.Deliver(offset));
    for (std::int64_t offset = 0; offset < 10; ++offset) {
        CHECK(tracker.Settle(offset));
        CHECK(tracker.Position() == offset + 1);
    }
    CHECK(tracker.Unsettled() == 0);
    CHECK(tracker.Window() == 0);
}

TEST_CASE("a message settled early waits for those before it") {
    OffsetTracker tracker;
    for (std::int64_t offset = 5; offset < 9; ++offset) REQUIRE(tracker.Deliver(offset));
    CHECK_FALSE(tracker.Settle(7));
    CHECK_FALSE(tracker.Settle(6));
    CHECK(tracker.Position() == 5);
    CHECK(tracker.Unsettled() == 2);
    CHECK(tracker.Window() == 4);
    CHECK(tracker.Settle(5));
    CHECK(tracker.Position() == 8);
    CHECK(tracker.Window() == 1);
}

TEST_CASE("offsets that hold nothing for a consumer count as settled") {
    OffsetTracker tracker;
    REQUIRE(tracker.Deliver(10));
    REQUIRE(tracker.Deliver(13));
    REQUIRE(tracker.Deliver(20));
    CHECK(tracker.Settle(10));
    CHECK(tracker.Position() == 13);
    CHECK_FALSE(tracker.Settle(11));
    CHECK_FALSE(tracker.Settle(19));
    CHECK_FALSE(tracker.Settle(20));
    CHECK(tracker.Settle(13));
    CHECK(tracker.Position() == 21);
}

TEST_CASE("the partition's end moves the position only when everything before it is settled") {
    OffsetTracker tracker;
    SECTION("on a partition that holds nothing") {
        CHECK(tracker.ReachEnd(0));
        CHECK(tracker.Position() == 0);
        CHECK(tracker.ReachEnd(3));
        CHECK(tracker.Position() == 3);
    }
    SECTION("with a message unsettled, it waits") {
        REQUIRE(tracker.Deliver(0));
        CHECK_FALSE(tracker.ReachEnd(2));
        CHECK(tracker.Position() == 0);
        CHECK(tracker.End() == 2);
        CHECK(tracker.Settle(0));
        CHECK(tracker.Position() == 2);
    }
    SECTION("with all settled, at once") {
        REQUIRE(tracker.Deliver(0));
        REQUIRE(tracker.Settle(0));
        CHECK(tracker.ReachEnd(2));
        CHECK(tracker.Position() == 2);
        CHECK_FALSE(tracker.ReachEnd(2));
        CHECK_FALSE(tracker.ReachEnd(1));
    }
    SECTION("and delivery goes on behind it") {
        REQUIRE(tracker.ReachEnd(5));
        REQUIRE(tracker.Deliver(5));
        CHECK(tracker.Position() == 5);
        REQUIRE(tracker.ReachEnd(7) == false);
        REQUIRE(tracker.Deliver(9));
        CHECK(tracker.Settle(5));
        CHECK(tracker.Position() == 9);
    }
}

TEST_CASE("an offset that was delivered already is refused") {
    OffsetTracker tracker;
    REQUIRE(tracker.Deliver(4));
    CHECK_FALSE(tracker.Deliver(4));
    CHECK_FALSE(tracker.Deliver(3));
    CHECK(tracker.Unsettled() == 1);
    REQUIRE(tracker.Settle(4));
    CHECK_FALSE(tracker.Deliver(4));
    CHECK(tracker.Position() == 5);
}

TEST_CASE("settling twice, or what was never delivered, changes nothing") {
    OffsetTracker tracker;
    REQUIRE(tracker.Deliver(0));
    REQUIRE(tracker.Deliver(1));
    CHECK_FALSE(tracker.Settle(1));
    CHECK_FALSE(tracker.Settle(1));
    CHECK_FALSE(tracker.Settle(2));
    CHECK_FALSE(tracker.Settle(-1));
    CHECK(tracker.Unsettled() == 1);
    CHECK(tracker.Settle(0));
    CHECK_FALSE(tracker.Settle(0));
    CHECK(tracker.Position() == 2);
}

TEST_CASE("in any order and with any gaps the position is the first unsettled offset") {
    const std::uint32_t seed = GENERATE(1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u);
    std::minstd_rand random{seed};
    OffsetTracker tracker;
    std::set<std::int64_t> unsettled;
    std::int64_t next = 0;
    for (int step = 0; step < 4000; ++step) {
        if (random() % 2 == 0) {
            next += random() % 4 == 0 ? static_cast<std::int64_t>(random() % 50) : 0;
            REQUIRE(tracker.Deliver(next));
            unsettled.insert(next++);
        } else if (!unsettled.empty()) {
            auto chosen = unsettled.begin();
            std::advance(chosen, random() % std::min<std::size_t>(unsettled.size(), 40));
            const bool first = chosen == unsettled.begin();
            CHECK(tracker.Settle(*chosen) == first);
            unsettled.erase(chosen);
        }
        CHECK(tracker.Unsettled() == unsettled.size());
        if (next > 0) CHECK(tracker.Position() == (unsettled.empty() ? next : *unsettled.begin()));
    }
}
