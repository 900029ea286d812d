/// @file sender_test.cpp
/// What a producer writes beside its messages, and what is remembered of it.
#include "../support/catch.hpp"
#include <mq/migration/sender.hpp>

#include <array>
#include <string>
#include <string_view>

namespace {

using mq::Policy;
using mq::Side;
using mq::migration::ParseSender;
using mq::migration::SeenProducers;
using mq::migration::Sender;
using mq::migration::ToText;

TEST_CASE("A sender survives its text", "[sender]") {
    for (const Policy stage : mq::kPolicies) {
        const Sender sender{.id = "mq-0123456789ABCDEF", .stage = stage, .moves = 12};
        const std::string text = ToText(sender);
        CHECK(ParseSender(text) == sender);
    }
}

TEST_CASE("A text that no sender wrote is none", "[sender]") {
    for (const std::string_view text :
         {"", " ", "  ", "mq-1", "mq-1 old", "mq-1 old ", "mq-1 older 1", "mq-1 old x", "mq-1 old 1x",
          "mq-1 old -1", " old 1", "mq-1 old 99999999999999999999", "mq-1 old 1 "}) {
        INFO("\"" << text << "\"");
        CHECK_FALSE(ParseSender(text));
    }
}

TEST_CASE("Of a producer the last rung counts, not the last message to arrive", "[sender]") {
    SeenProducers seen;
    seen.Note(Side::kOld, "mq-1 dual-subscribe 0");
    seen.Note(Side::kNew, "mq-1 new-publish 1");
    seen.Note(Side::kOld, "mq-1 dual-subscribe 2");
    seen.Note(Side::kOld, "mq-1 old 0");  // delivered again, say
    seen.Note(Side::kOld, "nonsense");
    const auto old_side = seen.Lately(Side::kOld);
    REQUIRE(old_side.size() == 1);
    CHECK(old_side.front().client == "mq-1");
    CHECK(old_side.front().stage == Policy::kDualSubscribe);
    CHECK(old_side.front().moves == 2);
    CHECK(seen.Lately(Side::kNew).size() == 1);
}

TEST_CASE("Where each producer has gone last shows where publishing goes", "[sender]") {
    using Went = std::array<bool, 2>;  // to old, to new
    SeenProducers seen;
    CHECK(seen.WentTo() == Went{false, false});
    seen.Note(Side::kOld, "mq-1 dual-subscribe 0");
    seen.Note(Side::kNew, "mq-2 new-publish 0");
    CHECK(seen.WentTo() == Went{false, false});
    seen.Note(Side::kNew, "mq-1 new-publish 1");
    CHECK(seen.WentTo() == Went{false, true});
    seen.Note(Side::kOld, "mq-1 dual-subscribe 2");
    CHECK(seen.WentTo() == Went{true, false});
    seen.Note(Side::kOld, "mq-1 dual-subscribe 0");
    CHECK(seen.WentTo() == Went{true, false});
    // Of one that was seen on one side only, it is not known whether it is there still.
    seen.Note(Side::kNew, "mq-3 new-publish 7");
    CHECK(seen.WentTo() == Went{true, false});
    seen.Note(Side::kOld, "mq-3 dual-subscribe 6");
    CHECK(seen.WentTo() == Went{true, true});
}

TEST_CASE("The number of a move is even where nothing is left behind", "[sender]") {
    using mq::migration::NextMoves;
    CHECK(NextMoves(0, false) == 1);
    CHECK(NextMoves(0, true) == 2);
    CHECK(NextMoves(1, false) == 3);
    CHECK(NextMoves(1, true) == 2);
}

TEST_CASE("A producer is noticed once for each move that leaves something behind", "[sender]") {
    mq::migration::KnownMoves moves;
    CHECK_FALSE(moves.Note("mq-1 dual-subscribe 0"));
    CHECK(moves.Note("mq-1 new-publish 1"));
    CHECK_FALSE(moves.Note("mq-1 new-publish 1"));
    CHECK_FALSE(moves.Note("mq-1 dual-subscribe 2"));
    CHECK(moves.Note("mq-2 new-publish 1"));
    CHECK(moves.Note("mq-1 new 3"));
    CHECK_FALSE(moves.Note("nonsense"));
}

TEST_CASE("No more producers than the bound are remembered", "[sender]") {
    SeenProducers seen;
    for (int i = 0; i < 1200; ++i) seen.Note(Side::kOld, "mq-" + std::to_string(i) + " old 0");
    CHECK(seen.Lately(Side::kOld).size() == 1000);
}

}  // namespace
