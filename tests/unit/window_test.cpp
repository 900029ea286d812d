#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include <mq/runtime/window.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>

using mq::runtime::Window;
using mq::test::After;
using mq::test::kGlance;
using std::chrono::milliseconds;

namespace {

Window::Clock::time_point Now() { return Window::Clock::now(); }

}  // namespace

TEST_CASE("a window takes reservations up to its limit and no further") {
    Window window{100};
    CHECK(window.Reserve(60, Now()));
    CHECK(window.Reserve(40, Now()));
    CHECK_FALSE(window.Reserve(1, Now()));
    window.Release(40);
    CHECK(window.Reserve(10, Now()));
}

TEST_CASE("a reservation larger than the window goes through alone") {
    Window window{100};
    CHECK(window.Reserve(1000, Now()));
    CHECK_FALSE(window.Reserve(1, Now()));
    window.Release(1000);
    CHECK(window.Reserve(1, Now()));
    CHECK_FALSE(window.Reserve(1000, Now()));
    window.Release(1);
    CHECK(window.Reserve(1000, Now()));
}

TEST_CASE("a reservation that finds no room fails at its deadline and not before") {
    Window window{100};
    REQUIRE(window.Reserve(100, Now()));
    const auto deadline = After(milliseconds{60});
    CHECK_FALSE(window.Reserve(10, deadline));
    CHECK(Now() >= deadline);
}

TEST_CASE("a reservation that failed takes no room") {
    Window window{100};
    REQUIRE(window.Reserve(100, Now()));
    for (int i = 0; i < 10; ++i) CHECK_FALSE(window.Reserve(50, Now()));
    CHECK_FALSE(window.ReserveNow(500));
    window.Release(100);
    CHECK(window.Reserve(100, Now()));
}

TEST_CASE("reserving without waiting goes up to twice the limit") {
    Window window{100};
    REQUIRE(window.Reserve(100, Now()));
    CHECK(window.ReserveNow(60));
    CHECK(window.ReserveNow(40));
    CHECK_FALSE(window.ReserveNow(1));
    window.Release(200);
    CHECK(window.Reserve(100, Now()));
}

TEST_CASE("a release wakes those who wait for room") {
    Window window{100};
    REQUIRE(window.Reserve(100, Now()));
    mq::test::Counter reserved;
    std::vector<std::thread> waiting;
    for (int i = 0; i < 3; ++i) {
        waiting.emplace_back([&] {
            // Longer than the test waits: a wait that nobody ends must show.
            if (window.Reserve(20, After(2 * mq::test::kPatience))) reserved.Add();
        });
    }
    CHECK_FALSE(reserved.WaitFor(1, milliseconds{50}));
    window.Release(100);
    CHECK(reserved.WaitFor(3));
    for (std::thread& thread : waiting) thread.join();
}

TEST_CASE("many threads never have more out than the limit, and all get their turn") {
    constexpr std::size_t kThreads = 4;
    constexpr std::size_t kEach = 2000;
    constexpr std::size_t kLimit = 64;
    Window window{kLimit};
    std::atomic<std::size_t> out{0};
    std::atomic<std::size_t> most{0};
    std::atomic<std::size_t> failures{0};
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < kThreads; ++i) {
        threads.emplace_back([&, bytes = 8 * (i + 1)] {
            for (std::size_t turn = 0; turn < kEach; ++turn) {
                if (!window.Reserve(bytes, After())) {
                    ++failures;
                    continue;
                }
                const std::size_t now = out.fetch_add(bytes) + bytes;
                std::size_t seen = most.load();
                while (seen < now && !most.compare_exchange_weak(seen, now)) {
                }
                out.fetch_sub(bytes);
                window.Release(bytes);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(failures == 0);
    CHECK(most <= kLimit);
    CHECK(window.Reserve(kLimit, Now()));
}
