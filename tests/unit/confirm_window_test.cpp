/// @file confirm_window_test.cpp
/// The RabbitMQ adapter's bookkeeping, without a broker: confirms and returns on the publishing side,
/// acknowledgements on the consuming side.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include <mq/backends/rabbitmq/ack_ranges.hpp>
#include <mq/backends/rabbitmq/confirm_window.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using mq::rabbitmq::AckRanges;
using mq::rabbitmq::ConfirmWindow;
using mq::rabbitmq::Pending;
using mq::rabbitmq::Returned;
using Clock = mq::backend::Clock;

Pending MakePending(const std::string& body,
                    std::chrono::milliseconds timeout = std::chrono::hours{1}) {
    Pending pending;
    pending.publication = mq::test::MakePublication(body, "key", timeout);
    return pending;
}

/// A window, and what has come out of it.
struct Recorded {
    explicit Recorded(std::size_t limit) : window(limit) {}

    std::uint64_t Add(const std::string& body,
                      std::chrono::milliseconds timeout = std::chrono::hours{1}) {
        return window.Add(MakePending(body, timeout), 0);
    }

    void Confirm(std::uint64_t tag, bool multiple = false) {
        window.Confirm(tag, multiple, [this](Pending pending, const Returned* why) {
            std::string text = pending.publication->message.body;
            if (why != nullptr) text += " returned " + std::to_string(why->code);
            finished.push_back(std::move(text));
        });
    }

    bool Return(const std::string& body, std::uint16_t code = 312) {
        return window.MarkReturned(
            [&](const Pending& pending) { return pending.publication->message.body == body; },
            Returned{code, "NO_ROUTE"});
    }

    std::vector<std::string> TakeAll() {
        std::vector<std::string> taken;
        window.TakeAll([&](Pending pending, std::uint64_t begin, const Returned* why) {
            std::string text = pending.publication->message.body + "@" + std::to_string(begin);
            if (why != nullptr) text += " returned";
            taken.push_back(std::move(text));
        });
        return taken;
    }

    ConfirmWindow window;
    std::vector<std::string> finished = {};
};

using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("a confirm finishes the message with its tag", "[rabbitmq]") {
    Recorded recorded{10};
    CHECK(recorded.Add("a") == 1);
    CHECK(recorded.Add("b") == 2);
    CHECK(recorded.Add("c") == 3);
    recorded.Confirm(2);
    recorded.Confirm(1);
    CHECK(recorded.finished == Texts{"b", "a"});
    CHECK(recorded.window.Unfinished() == 1);
    CHECK(recorded.window.Size() == 1);
}

TEST_CASE("a multiple confirm finishes everything up to its tag in order, and nothing twice",
          "[rabbitmq]") {
    Recorded recorded{10};
    for (const char* body : {"a", "b", "c", "d"}) recorded.Add(body);
    recorded.Confirm(2);
    recorded.Confirm(3, true);
    CHECK(recorded.finished == Texts{"b", "a", "c"});
    recorded.Confirm(3, true);
    recorded.Confirm(2);
    CHECK(recorded.finished.size() == 3);
    CHECK(recorded.window.Unfinished() == 1);
}

TEST_CASE("a multiple confirm of tag 0 finishes everything", "[rabbitmq]") {
    Recorded recorded{10};
    for (const char* body : {"a", "b", "c"}) recorded.Add(body);
    recorded.Confirm(0, true);
    CHECK(recorded.finished == Texts{"a", "b", "c"});
    CHECK(recorded.window.Size() == 0);
}

TEST_CASE("confirms for tags that were never given are ignored", "[rabbitmq]") {
    Recorded recorded{10};
    recorded.Confirm(0, true);
    recorded.Confirm(1);
    recorded.Add("a");
    recorded.Confirm(0);
    recorded.Confirm(2);
    recorded.Confirm(7, true);
    CHECK(recorded.finished.empty());
    CHECK(recorded.window.Unfinished() == 1);
}

TEST_CASE("a window is full at its limit, and has room again from its oldest message on",
          "[rabbitmq]") {
    Recorded recorded{3};
    for (const char* body : {"a", "b", "c"}) recorded.Add(body);
    CHECK(recorded.window.Full());
    recorded.Confirm(2);
    CHECK(recorded.window.Full());
    recorded.Confirm(1);
    CHECK_FALSE(recorded.window.Full());
    CHECK(recorded.Add("d") == 4);
    CHECK(recorded.Add("e") == 5);
    CHECK(recorded.window.Full());
    recorded.Confirm(5, true);
    CHECK(recorded.finished == Texts{"b", "a", "c", "d", "e"});
}

TEST_CASE("a returned message is finished as returned, when its confirm comes", "[rabbitmq]") {
    Recorded recorded{10};
    for (const char* body : {"a", "b", "c"}) recorded.Add(body);
    CHECK(recorded.Return("b", 312));
    CHECK(recorded.finished.empty());
    recorded.Confirm(3, true);
    CHECK(recorded.finished == Texts{"a", "b returned 312", "c"});
}

TEST_CASE("returned messages that look alike are told apart by their order", "[rabbitmq]") {
    Recorded recorded{10};
    for (const char* body : {"same", "other", "same", "same"}) recorded.Add(body);
    CHECK(recorded.Return("same", 1));
    CHECK(recorded.Return("same", 2));
    CHECK(recorded.Return("same", 3));
    CHECK_FALSE(recorded.Return("same", 4));
    recorded.Confirm(0, true);
    CHECK(recorded.finished == Texts{"same returned 1", "other", "same returned 2", "same returned 3"});
}

TEST_CASE("a return is matched although it is for an older message than the one before", "[rabbitmq]") {
    Recorded recorded{10};
    for (const char* body : {"a", "b", "c"}) recorded.Add(body);
    CHECK(recorded.Return("c"));
    CHECK(recorded.Return("a"));
    CHECK_FALSE(recorded.Return("unknown"));
    recorded.Confirm(0, true);
    CHECK(recorded.finished == Texts{"a returned 312", "b", "c returned 312"});
}

TEST_CASE("an expired message is handed back once, and keeps its place until the broker confirms it",
          "[rabbitmq]") {
    Recorded recorded{2};
    recorded.Add("late", std::chrono::milliseconds{0});
    recorded.Add("early", std::chrono::hours{1});
    const auto now = Clock::now();
    Texts expired;
    const auto keep = [&](Pending pending) { expired.push_back(pending.publication->message.body); };
    const auto next = recorded.window.Expire(now, keep);
    CHECK(expired == Texts{"late"});
    CHECK(next > now);
    CHECK(next < Clock::time_point::max());
    CHECK(recorded.window.Full());
    CHECK(recorded.window.Unfinished() == 1);
    recorded.window.Expire(now, keep);
    CHECK(expired.size() == 1);
    recorded.Confirm(1);
    CHECK(recorded.finished.empty());
    CHECK_FALSE(recorded.window.Full());
    recorded.Confirm(2);
    CHECK(recorded.finished == Texts{"early"});
    CHECK(recorded.window.Expire(now, keep) == Clock::time_point::max());
}

TEST_CASE("what was in flight comes back in order when the channel is lost, and tags begin again",
          "[rabbitmq]") {
    Recorded recorded{10};
    recorded.window.Add(MakePending("a"), 100);
    recorded.window.Add(MakePending("b"), 200);
    recorded.window.Add(MakePending("c"), 300);
    recorded.window.Add(MakePending("d"), 400);
    recorded.Confirm(2);
    CHECK(recorded.Return("c"));
    CHECK(recorded.TakeAll() == Texts{"a@100", "c@300 returned", "d@400"});
    CHECK(recorded.window.Size() == 0);
    CHECK(recorded.window.Unfinished() == 0);
    CHECK(recorded.Add("e") == 1);
    recorded.Confirm(1);
    CHECK(recorded.finished == Texts{"b", "e"});
}

TEST_CASE("tags begin again also where nothing was in flight", "[rabbitmq]") {
    Recorded recorded{4};
    for (int i = 0; i < 6; ++i) recorded.Confirm(recorded.Add("a"));
    CHECK(recorded.TakeAll().empty());
    CHECK(recorded.Add("b") == 1);
}

TEST_CASE("confirms in any order finish each message exactly once", "[rabbitmq]") {
    std::mt19937 random{42};
    Recorded recorded{64};
    std::vector<std::uint64_t> open;
    std::set<std::string> sent;
    for (int step = 0; step < 20'000; ++step) {
        if (!recorded.window.Full() && random() % 2 == 0) {
            const std::string body = std::to_string(step);
            open.push_back(recorded.Add(body));
            sent.insert(body);
        } else if (!open.empty()) {
            const std::size_t at = random() % open.size();
            const bool multiple = random() % 4 == 0;
            recorded.Confirm(open[at], multiple);
            if (multiple) {
                const std::uint64_t tag = open[at];
                std::erase_if(open, [tag](std::uint64_t each) { return each <= tag; });
            } else {
                open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
            }
            REQUIRE(recorded.window.Unfinished() == open.size());
        }
    }
    recorded.Confirm(0, true);
    const std::set<std::string> finished{recorded.finished.begin(), recorded.finished.end()};
    CHECK(finished == sent);
    CHECK(recorded.finished.size() == sent.size());
}

namespace {

using Acks = std::vector<std::pair<std::uint64_t, bool>>;

Acks FlushAfter(AckRanges& ranges, const std::vector<std::uint64_t>& tags) {
    for (const std::uint64_t tag : tags) ranges.Add(tag);
    Acks acks;
    const std::size_t count =
        ranges.Flush([&](std::uint64_t tag, bool multiple) { acks.emplace_back(tag, multiple); });
    CHECK(count == tags.size());
    return acks;
}

}  // namespace

TEST_CASE("settled deliveries without a gap are acknowledged by one acknowledgement", "[rabbitmq]") {
    AckRanges ranges;
    CHECK(FlushAfter(ranges, {1}) == Acks{{1, false}});
    CHECK(FlushAfter(ranges, {2, 3, 4}) == Acks{{4, true}});
    CHECK(FlushAfter(ranges, {7, 5, 6}) == Acks{{7, true}});
    CHECK(FlushAfter(ranges, {}).empty());
}

TEST_CASE("deliveries behind an unsettled one are acknowledged singly", "[rabbitmq]") {
    AckRanges ranges;
    CHECK(FlushAfter(ranges, {2, 3}) == Acks{{2, false}, {3, false}});
    CHECK(FlushAfter(ranges, {5}) == Acks{{5, false}});
    CHECK(FlushAfter(ranges, {1}) == Acks{{1, false}});
    // 4 closes the gap up to 5, and 6 follows.
    CHECK(FlushAfter(ranges, {4, 6}) == Acks{{6, true}});
    CHECK(FlushAfter(ranges, {7, 9}) == Acks{{7, false}, {9, false}});
}

TEST_CASE("acknowledgements hit exactly what was settled, in any order", "[rabbitmq]") {
    std::mt19937 random{7};
    for (int round = 0; round < 200; ++round) {
        AckRanges ranges;
        std::set<std::uint64_t> unsettled;
        std::set<std::uint64_t> settled;
        std::set<std::uint64_t> unacknowledged;
        std::uint64_t next = 1;
        for (int step = 0; step < 200; ++step) {
            if (unsettled.size() < 8) {
                unacknowledged.insert(next);
                unsettled.insert(next++);
            }
            if (random() % 3 != 0) {
                auto each = unsettled.begin();
                std::advance(each, static_cast<std::ptrdiff_t>(random() % unsettled.size()));
                ranges.Add(*each);
                settled.insert(*each);
                unsettled.erase(each);
            }
            if (random() % 5 != 0) continue;
            ranges.Flush([&](std::uint64_t tag, bool multiple) {
                REQUIRE(unacknowledged.contains(tag));
                for (auto each = unacknowledged.begin(); each != unacknowledged.end();) {
                    const bool hit = multiple ? *each <= tag : *each == tag;
                    if (hit) REQUIRE(settled.contains(*each));
                    each = hit ? unacknowledged.erase(each) : std::next(each);
                }
            });
            REQUIRE(unacknowledged == unsettled);
        }
    }
}
