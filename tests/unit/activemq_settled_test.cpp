/// @file activemq_settled_test.cpp
/// Up to which moment a queue is settled, judged from scripted answers of both brokers.
#include "../support/catch.hpp"
#include <mq/backends/activemq.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using mq::activemq::Flavor;
using mq::activemq::detail::Inquiry;
using mq::activemq::detail::Marks;
using mq::activemq::detail::Question;
using mq::activemq::detail::SettledLook;
using mq::backend::Clock;
using Kind = Question::Kind;
using namespace std::chrono_literals;

std::string Message(std::int64_t number, int priority = 4) {
    return R"({\"messageID\":)" + std::to_string(number) + R"(,\"priority\":)" +
           std::to_string(priority) + "}";
}

/// The answer of an Artemis to what is delivered, or what is the first that is ready.
std::string Delivered(const std::vector<std::string>& messages) {
    std::string all;
    for (const std::string& message : messages) all += (all.empty() ? "" : ",") + message;
    return R"(["[{\"consumerName\":\"c\",\"elements\":[)" + all + R"(]}]"])";
}
std::string First(const std::string& message) { return R"(["[)" + message + R"(]"])"; }

/// A broker whose answers stand in the order of the questions; a mark's is a position.
struct Scripted {
    std::deque<Inquiry::Answer> answers = {};
    std::vector<Question> asked = {};

    Scripted& Mark(std::int64_t position, std::uint64_t connection = 1) {
        answers.push_back({.position = position, .connection = connection});
        return *this;
    }
    Scripted& Text(std::string text, std::uint64_t connection = 1) {
        answers.push_back({.text = std::move(text), .connection = connection});
        return *this;
    }
    Scripted& Found(bool found) {
        answers.push_back({.found = found, .connection = 1});
        return *this;
    }
    Scripted& Fail() {
        answers.push_back({.failure = mq::activemq::Failure{}});
        return *this;
    }

    SettledLook::Ask Asking() {
        return [this](Question question) {
            asked.push_back(std::move(question));
            REQUIRE_FALSE(answers.empty());
            Inquiry::Answer answer = std::move(answers.front());
            answers.pop_front();
            return answer;
        };
    }
};

/// One look at Artemis behind a mark at 100, with the four lists.
std::optional<Clock::time_point> LookAtArtemis(const std::vector<std::string>& lists,
                                               std::size_t expected) {
    Scripted broker;
    broker.Mark(100);
    for (const std::string& list : lists) broker.Text(list);
    SettledLook look{Flavor::kArtemis};
    const auto settled = look.SettledBefore("q", Clock::now(), broker.Asking());
    CHECK(broker.asked.size() == expected);
    return settled;
}

}  // namespace

TEST_CASE("ActiveMQ settled: Artemis has settled what no list has any more", "[activemq]") {
    const std::string newer = Delivered({Message(101), Message(107)});
    const std::string older = Delivered({Message(101), Message(99)});
    CHECK(LookAtArtemis({newer, First(Message(120)), newer, First(Message(120))}, 5));
    // An older one in any of the four.
    CHECK_FALSE(LookAtArtemis({older, First(Message(120))}, 3));
    CHECK_FALSE(LookAtArtemis({newer, First(Message(42))}, 3));
    CHECK_FALSE(LookAtArtemis({newer, First(Message(120)), older, First(Message(120))}, 5));
    CHECK_FALSE(LookAtArtemis({newer, First(Message(120)), newer, First(Message(99))}, 5));
    // The mark itself has a number of its own.
    CHECK_FALSE(LookAtArtemis({newer, First(Message(100))}, 3));
    // Nothing that came later was seen: what the queue has yet to take in may be older.
    CHECK_FALSE(LookAtArtemis({R"(["[]"])", R"(["[null]"])"}, 3));
    CHECK_FALSE(LookAtArtemis({R"(["[]"])", R"(["[{}]"])"}, 3));
    // Behind a higher priority others may wait.
    CHECK_FALSE(LookAtArtemis({newer, First(Message(120, 5))}, 3));
    // No answer that can be read.
    CHECK_FALSE(LookAtArtemis({"nonsense"}, 2));
}

TEST_CASE("ActiveMQ settled: Classic is asked for a later message before an earlier one",
          "[activemq]") {
    const auto look = [](std::vector<bool> found, std::size_t expected) {
        Scripted broker;
        broker.Mark(5000);
        for (const bool each : found) broker.Found(each);
        SettledLook settled{Flavor::kClassic};
        const auto before = settled.SettledBefore("q", Clock::now(), broker.Asking());
        REQUIRE(broker.asked.size() == expected);
        // A second of doubt about the broker's clock.
        CHECK(broker.asked[1].operation == "JMSActiveMQBrokerInTime > 6000");
        if (expected > 2) CHECK(broker.asked[2].operation == "JMSActiveMQBrokerInTime <= 6000");
        return before;
    };
    CHECK(look({true, false}, 3));
    CHECK_FALSE(look({true, true}, 3));
    // Without a later one it cannot be told whether the earlier ones were read in.
    CHECK_FALSE(look({false}, 2));
}

TEST_CASE("ActiveMQ settled: what was told once stays, and looks leave pauses", "[activemq]") {
    Scripted broker;
    broker.Mark(100).Text(Delivered({Message(101)})).Text(First(Message(120)));
    broker.Text(Delivered({Message(101)})).Text(First(Message(120)));
    SettledLook look{Flavor::kArtemis};
    const auto begin = Clock::now();
    const auto settled = look.SettledBefore("q", begin, broker.Asking());
    CHECK(settled == begin);
    // Too early for another look, which would ask.
    CHECK(look.SettledBefore("q", begin, broker.Asking()) == begin);
    CHECK(broker.asked.size() == 5);
    // Much later, where the broker does not answer.
    broker.Fail();
    CHECK(look.SettledBefore("q", begin + 1h, broker.Asking()) == begin);
    CHECK(broker.asked.size() == 6);
    // Another queue is another matter.
    broker.Fail();
    CHECK_FALSE(look.SettledBefore("other", begin, broker.Asking()));
}

TEST_CASE("ActiveMQ settled: another connection's positions are not compared", "[activemq]") {
    Scripted broker;
    broker.Mark(100, 1).Text(Delivered({Message(900)}), 2);
    SettledLook look{Flavor::kArtemis};
    CHECK_FALSE(look.SettledBefore("q", Clock::now(), broker.Asking()));
    // On the new one only what was marked there counts.
    const auto now = Clock::now() + 1h;
    broker.Mark(950, 2).Text(Delivered({Message(900)}), 2).Text(First(Message(960)), 2);
    CHECK_FALSE(look.SettledBefore("q", now, broker.Asking()));
    CHECK(broker.answers.empty());
}

TEST_CASE("ActiveMQ marks: the last one before the oldest message is found, also of many",
          "[activemq]") {
    Marks marks;
    const auto begin = Clock::now();
    CHECK_FALSE(marks.Before(1));
    for (int i = 0; i < 1000; ++i) marks.Add({begin + i * 1ms, i * 10});
    CHECK(marks.Newest() == begin + 999ms);
    CHECK(marks.Before(100'000)->moment == begin + 999ms);
    // Coarser the longer ago, and never too late.
    const auto middle = marks.Before(5000);
    REQUIRE(middle);
    CHECK(middle->position < 5000);
    CHECK(marks.Before(1)->moment == begin);
    CHECK_FALSE(marks.Before(0));
    CHECK(marks.After(std::nullopt)->moment >= begin);
    CHECK_FALSE(marks.After(begin + 999ms));
    // A clock that was set back begins anew.
    marks.Add({begin + 2s, 7});
    CHECK(marks.Before(100'000)->position == 7);
    CHECK_FALSE(marks.Before(7));
}
