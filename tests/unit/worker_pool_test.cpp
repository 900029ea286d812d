#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "../support/wait.hpp"
#include "no_threads.hpp"
#include <mq/runtime/callback_runner.hpp>
#include <mq/runtime/worker_pool.hpp>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

using mq::runtime::WorkerPool;
using mq::test::Counter;
using mq::test::Gate;
using std::chrono::milliseconds;

namespace {

// Notes which threads have run it, and the most that ran at once.
class Crowd {
public:
    void Enter() {
        const std::lock_guard lock{mutex_};
        threads_.insert(std::this_thread::get_id());
        most_ = std::max(most_, ++inside_);
    }
    void Leave() {
        const std::lock_guard lock{mutex_};
        --inside_;
    }
    [[nodiscard]] std::size_t Most() const {
        const std::lock_guard lock{mutex_};
        return most_;
    }
    [[nodiscard]] std::size_t Threads() const {
        const std::lock_guard lock{mutex_};
        return threads_.size();
    }

private:
    mutable std::mutex mutex_;  // guards everything below
    std::set<std::thread::id> threads_;
    std::size_t inside_ = 0;
    std::size_t most_ = 0;
};

}  // namespace

TEST_CASE("posted tasks run, each once, on threads of the pool") {
    Counter done;
    std::atomic<std::size_t> on_pool{0};
    WorkerPool pool{4};
    for (int i = 0; i < 200; ++i) {
        pool.Post([&] {
            if (pool.OnOwnThread()) ++on_pool;
            done.Add();
        });
    }
    REQUIRE(done.WaitFor(200));
    pool.Stop();
    CHECK(done.Value() == 200);
    CHECK(on_pool == 200);
    CHECK_FALSE(pool.OnOwnThread());
}

TEST_CASE("a thread belongs to one pool only") {
    Counter done;
    std::atomic<bool> confused{false};
    WorkerPool pool{1};
    WorkerPool other{1};
    pool.Post([&] {
        confused = other.OnOwnThread() || !pool.OnOwnThread();
        done.Add();
    });
    REQUIRE(done.WaitFor(1));
    CHECK_FALSE(confused);
}

TEST_CASE("no more tasks run at once than the limit, and as many as that do") {
    constexpr std::size_t kLimit = 3;
    Crowd crowd;
    Gate release;
    Counter started;
    Counter done;
    WorkerPool pool{kLimit};
    for (std::size_t i = 0; i < 2 * kLimit; ++i) {
        pool.Post([&] {
            crowd.Enter();
            started.Add();
            release.Wait();
            crowd.Leave();
            done.Add();
        });
    }
    REQUIRE(started.WaitFor(kLimit));
    CHECK_FALSE(started.WaitFor(kLimit + 1, mq::test::kGlance));
    release.Open();
    REQUIRE(done.WaitFor(2 * kLimit));
    CHECK(crowd.Most() == kLimit);
}

TEST_CASE("a raised limit lets more tasks run, and a lower one changes nothing") {
    Gate release;
    Counter started;
    WorkerPool pool{1};
    pool.RaiseLimit(3);
    pool.RaiseLimit(2);
    for (int i = 0; i < 3; ++i) {
        pool.Post([&] {
            started.Add();
            release.Wait();
        });
    }
    CHECK(started.WaitFor(3));
    release.Open();
}

TEST_CASE("tasks that come one after the other need one thread") {
    Crowd crowd;
    Counter done;
    WorkerPool pool{8};
    for (std::size_t i = 1; i <= 50; ++i) {
        pool.Post([&] {
            crowd.Enter();
            crowd.Leave();
            done.Add();
        });
        REQUIRE(done.WaitFor(i));
        // Who has counted is not idle yet.
        const auto deadline = mq::test::After();
        while (pool.Idle() == 0 && WorkerPool::Clock::now() < deadline) std::this_thread::yield();
    }
    CHECK(crowd.Threads() == 1);
}

TEST_CASE("tasks for later run when they are due, the earliest first") {
    std::mutex mutex;
    std::vector<int> order;  // guarded by mutex
    Counter done;
    WorkerPool pool{1};
    const auto begin = WorkerPool::Clock::now();
    const auto note = [&](int number) {
        return [&, number] {
            {
                const std::lock_guard lock{mutex};
                order.push_back(number);
            }
            done.Add();
        };
    };
    pool.PostAt(begin + milliseconds{90}, note(3));
    pool.PostAt(begin + milliseconds{30}, note(1));
    pool.PostAt(begin + milliseconds{60}, note(2));
    pool.Post(note(0));
    REQUIRE(done.WaitFor(4));
    CHECK(WorkerPool::Clock::now() >= begin + milliseconds{90});
    const std::lock_guard lock{mutex};
    CHECK(order == std::vector<int>{0, 1, 2, 3});
}

TEST_CASE("a task for later runs while every other thread is busy") {
    Gate release;
    Counter busy;
    Counter later;
    WorkerPool pool{2};
    pool.PostAt(WorkerPool::Clock::now() + milliseconds{20}, [&] { later.Add(); });
    pool.Post([&] {
        busy.Add();
        release.Wait();
    });
    CHECK(busy.WaitFor(1));
    CHECK(later.WaitFor(1));
    release.Open();
}

TEST_CASE("a stopped pool drops what is queued, and destroys it") {
    const auto token = std::make_shared<int>(0);
    Gate release;
    Counter started;
    Counter dropped;
    auto pool = std::make_unique<WorkerPool>(1);
    pool->Post([&] {
        started.Add();
        release.Wait();
    });
    REQUIRE(started.WaitFor(1));
    pool->Post([&, token] { dropped.Add(); });
    pool->PostAt(WorkerPool::Clock::now() + std::chrono::hours{1}, [&, token] { dropped.Add(); });
    std::thread stopper{[&] { pool->Stop(); }};
    release.Open();
    stopper.join();
    pool->Post([&, token] { dropped.Add(); });
    pool->PostAt(WorkerPool::Clock::now(), [&, token] { dropped.Add(); });
    CHECK(token.use_count() == 1);
    pool.reset();
    // The first queued task may have run before the stop was seen; the others may not.
    CHECK(dropped.Value() <= 1);
}

TEST_CASE("a stop waits for the task that runs") {
    Gate release;
    Counter started;
    std::atomic<bool> returned{false};
    WorkerPool pool{1};
    pool.Post([&] {
        started.Add();
        release.Wait();
        returned = true;
    });
    REQUIRE(started.WaitFor(1));
    std::thread opener{[&] { release.Open(); }};
    pool.Stop();
    CHECK(returned);
    opener.join();
    pool.Stop();
}

TEST_CASE("a task may post others") {
    Counter done;
    WorkerPool pool{2};
    std::function<void(int)> chain = [&](int left) {
        done.Add();
        if (left > 0) pool.Post([&, left] { chain(left - 1); });
    };
    pool.Post([&] { chain(100); });
    CHECK(done.WaitFor(101));
}

TEST_CASE("a pool goes on with the threads that it has where the system gives no more") {
    Counter done;
    Gate inside;
    Gate release;
    WorkerPool pool{4};
    pool.Start();
    REQUIRE(mq::test::Eventually([&] { return pool.Idle() == 1; }));
    pool.Post([&] {
        inside.Open();
        release.Wait();
        done.Add();
    });
    REQUIRE(inside.Wait());
    {
        const mq::test::NoThreads none;
        CHECK_NOTHROW(pool.Post([&] { done.Add(); }));
        CHECK_NOTHROW(pool.PostAt(WorkerPool::Clock::now(), [&] { done.Add(); }));
    }
    CHECK(done.Value() == 0);
    release.Open();
    CHECK(done.WaitFor(3));
}

TEST_CASE("a pool says at its start that the system gives no thread") {
    WorkerPool pool{4};
    {
        const mq::test::NoThreads none;
        CHECK_THROWS_AS(pool.Start(), std::system_error);
    }
    CHECK_NOTHROW(pool.Start());
    pool.Stop();
    CHECK_NOTHROW(pool.Start());  // nothing, for good
}

TEST_CASE("a pool destroys what it drops without its lock") {
    WorkerPool pool{1};
    Gate inside;
    Gate release;
    struct Asking {
        explicit Asking(WorkerPool& asked) : pool(asked) {}
        Asking(const Asking&) = delete;
        Asking& operator=(const Asking&) = delete;
        ~Asking() { static_cast<void>(pool.Idle()); }
        WorkerPool& pool;
    };
    pool.Post([&] {
        inside.Open();
        release.Wait();
    });
    REQUIRE(inside.Wait());
    pool.Post([asking = std::make_unique<Asking>(pool)] {});
    pool.PostAt(WorkerPool::Clock::time_point::max(), [asking = std::make_unique<Asking>(pool)] {});
    std::thread stopper{[&] { pool.Stop(); }};
    release.Open();
    stopper.join();
    CHECK(pool.Idle() == 0);
}

namespace {

// A queue of numbers, as the callback runner wants it.
struct Numbers {
    std::vector<int> all = {};
    [[nodiscard]] bool empty() const { return all.empty(); }
    void Append(Numbers&& other) { all.insert(all.end(), other.all.begin(), other.all.end()); }
};
Counter& Ran() {
    static Counter ran;
    return ran;
}

}  // namespace

TEST_CASE("a callback runner without a thread runs its batches as soon as it gets one, or at its end") {
    using Runner = mq::runtime::CallbackRunner<Numbers>;
    const auto count = [](Numbers numbers) { Ran().Add(numbers.all.size()); };
    const std::size_t before = Ran().Value();
    Runner runner{+count};
    {
        const mq::test::NoThreads none;
        CHECK_THROWS_AS(runner.Start(), std::system_error);
        runner.Post(Numbers{{1, 2}});
        CHECK(Ran().Value() == before);
        SECTION("at its end") {
            runner.Stop();
            CHECK(Ran().Value() == before + 2);
        }
    }
    SECTION("with the next one") {
        runner.Post(Numbers{{3}});
        CHECK(Ran().WaitFor(before + 3));
    }
    SECTION("once it is started") {
        runner.Start();
        CHECK(Ran().WaitFor(before + 2));
    }
    CHECK_FALSE(runner.OnOwnThread());
}
