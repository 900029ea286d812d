#include "../support/catch.hpp"
#include <mq/migration/standstill.hpp>

#include <chrono>
#include <string>
#include <vector>

using mq::Side;
using mq::backend::kStandstill;
using mq::migration::Clock;
using mq::migration::kLook;
using mq::migration::kSilence;
using mq::migration::Observation;
using mq::migration::StandstillWatch;
using namespace std::chrono_literals;

namespace {

constexpr Clock::time_point kStart{1h};
constexpr std::chrono::system_clock::time_point kToday{24h};

Observation Fence(const std::string& progress) {
    return {.what = "fence",
            .side = Side::kNew,
            .group = "billing",
            .text = "3 are held",
            .progress = progress};
}

// A look `after` the first one.
std::vector<StandstillWatch::News> See(StandstillWatch& watch, std::vector<Observation> seen,
                                       Clock::duration after) {
    return watch.Look(std::move(seen), kStart + after,
                      kToday + std::chrono::duration_cast<std::chrono::system_clock::duration>(after));
}

}  // namespace

TEST_CASE("What is silent stands still, is said once, and once when it is over", "[standstill]") {
    StandstillWatch watch;
    CHECK(See(watch, {Fence("1")}, 0s).empty());
    CHECK(See(watch, {Fence("1")}, kSilence - 1ms).empty());
    CHECK(watch.Standing().empty());
    const auto begin = See(watch, {Fence("1")}, kSilence);
    REQUIRE(begin.size() == 1);
    CHECK(begin[0].begins);
    CHECK(begin[0].text == "3 are held");
    REQUIRE(watch.Standing().size() == 1);
    const mq::Standstill expected{
        .side = Side::kNew, .group = "billing", .text = "3 are held", .since = kToday + kSilence};
    CHECK(watch.Standing()[0] == expected);
    CHECK(watch.StillSince("fence") == kStart + kSilence);
    CHECK(See(watch, {Fence("1")}, 2h).empty());
    CHECK(watch.Standing().size() == 1);
    std::vector<StandstillWatch::News> end;
    SECTION("by progress") { end = See(watch, {Fence("2")}, 3h); }
    SECTION("because it has nothing to go on for") { end = See(watch, {}, 3h); }
    REQUIRE(end.size() == 1);
    CHECK_FALSE(end[0].begins);
    CHECK(watch.Standing().empty());
    CHECK_FALSE(watch.StillSince("fence"));
    // And again, from the beginning.
    CHECK(See(watch, {Fence("2")}, 3h + 1s).empty());
    CHECK(See(watch, {Fence("2")}, 3h + 1s + kSilence).size() == 1);
}

TEST_CASE("Progress begins the silence anew", "[standstill]") {
    StandstillWatch watch;
    See(watch, {Fence("1")}, 0s);
    CHECK(See(watch, {Fence("2")}, kSilence).empty());
    CHECK(See(watch, {Fence("2")}, 2 * kSilence - 1ms).empty());
    CHECK(See(watch, {Fence("2")}, 2 * kSilence).size() == 1);
}

TEST_CASE("What was judged by somebody else stands still at once", "[standstill]") {
    StandstillWatch watch;
    Observation said = Fence("");
    said.patience = 0ms;
    CHECK(See(watch, {said}, 0s).size() == 1);
    // In other words it is still the same.
    said.text = "3 are held, and have been for long";
    CHECK(See(watch, {said}, 1s).empty());
    CHECK(watch.Standing().at(0).text == said.text);
}

TEST_CASE("One that goes on does not speak for another", "[standstill]") {
    StandstillWatch watch;
    Observation other = Fence("1");
    other.what = "sends";
    See(watch, {Fence("1"), other}, 0s);
    CHECK(See(watch, {Fence("2"), other}, kSilence).size() == 1);
    CHECK(watch.StillSince("sends"));
    CHECK_FALSE(watch.StillSince("fence"));
}

TEST_CASE("A look in time finds a standstill within the bound that is promised", "[standstill]") {
    CHECK(kSilence + kLook <= kStandstill);
}
