/// @file deadline_test.cpp
/// From a timeout to the end of the waiting.
#include "../support/catch.hpp"
#include <mq/detail/deadline.hpp>

#include <chrono>

using mq::detail::DeadlineAfter;
using mq::detail::kLongestWait;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

TEST_CASE("a deadline is as far away as its timeout says, within what can be waited for") {
    // What lies between the two looks at the clock is the only difference.
    const auto check = [](milliseconds timeout, milliseconds expected) {
        const auto before = steady_clock::now();
        const auto deadline = DeadlineAfter(timeout);
        const auto after = steady_clock::now();
        CHECK((deadline >= before + expected));
        CHECK((deadline <= after + expected));
    };
    check(milliseconds{1000}, milliseconds{1000});
    check(milliseconds{-5}, milliseconds{0});
    check(milliseconds::min(), milliseconds{0});
    check(milliseconds::max(), kLongestWait);
}
