/// @file abandoned_test.cpp
/// What a client library does not return from is waited for until a deadline, and then left to itself.
#include "../support/catch.hpp"
#include "../support/wait.hpp"
#include <mq/detail/abandoned.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <thread>

namespace {

using mq::detail::Abandoned;
using mq::test::Eventually;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// Holds whoever comes until it is opened.
class Barrier {
public:
    void Pass() {
        std::unique_lock lock{mutex_};
        opened_.wait(lock, [this] { return open_; });
    }
    void Open() {
        const std::lock_guard lock{mutex_};
        open_ = true;
        opened_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable opened_;
    bool open_ = false;
};

}  // namespace

TEST_CASE("work that ends is waited for, and what it had is gone by then") {
    const std::size_t before = Abandoned::Count();
    auto had = std::make_shared<int>(1);
    const std::weak_ptr<int> seen = had;
    std::thread::id where;
    CHECK(Abandoned::RunUntil([its = std::move(had), &where] { where = std::this_thread::get_id(); },
                              Clock::now() + 30s));
    CHECK(seen.expired());
    CHECK(where != std::this_thread::get_id());
    CHECK(Abandoned::Count() == before);
}

TEST_CASE("work that does not end is left at the deadline with what it has, and joined once it ends") {
    const std::size_t before = Abandoned::Count();
    const auto barrier = std::make_shared<Barrier>();
    auto had = std::make_shared<int>(1);
    const std::weak_ptr<int> seen = had;
    const auto begun = Clock::now();
    CHECK_FALSE(
        Abandoned::RunUntil([its = std::move(had), barrier] { barrier->Pass(); }, begun + 50ms));
    CHECK(Clock::now() - begun >= 50ms);
    CHECK_FALSE(seen.expired());
    CHECK(Abandoned::Count() == before + 1);
    barrier->Open();
    CHECK(Eventually([&] { return Abandoned::Count() == before; }));
    CHECK(seen.expired());
}

TEST_CASE("a thread that is given up keeps what it uses until it says that it has ended") {
    const std::size_t before = Abandoned::Count();
    const auto barrier = std::make_shared<Barrier>();
    const auto ended = std::make_shared<std::atomic<bool>>(false);
    auto used = std::make_shared<int>(1);
    const std::weak_ptr<int> seen = used;
    Abandoned::Keep(std::thread{[barrier, ended] {
                        barrier->Pass();
                        ended->store(true);
                    }},
                    std::move(used), [ended] { return ended->load(); });
    CHECK(Abandoned::Count() == before + 1);
    CHECK_FALSE(seen.expired());
    barrier->Open();
    CHECK(Eventually([&] { return Abandoned::Count() == before; }));
    CHECK(seen.expired());
}
