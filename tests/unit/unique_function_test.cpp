#include "../support/catch.hpp"
#include <mq/detail/unique_function.hpp>

#include <array>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

using mq::detail::UniqueFunction;

namespace {

// Counts how many of it are alive.
struct Counted {
    explicit Counted(int& alive) : count(&alive) { ++*count; }
    Counted(Counted&& other) noexcept : count(other.count) { ++*count; }
    Counted(const Counted&) = delete;
    Counted& operator=(Counted&&) = delete;
    Counted& operator=(const Counted&) = delete;
    ~Counted() { --*count; }
    int* count;
};

int Twice(int value) { return 2 * value; }

static_assert(!std::is_copy_constructible_v<UniqueFunction<void()>>);
static_assert(std::is_nothrow_move_constructible_v<UniqueFunction<void()>>);
static_assert(!std::is_constructible_v<UniqueFunction<int(int)>, std::string>);
static_assert(
    !std::is_constructible_v<UniqueFunction<std::string(int)>, decltype([](int) { return 1.0; })>);

}  // namespace

TEST_CASE("an empty function says so, and an engaged one too") {
    UniqueFunction<void()> function;
    CHECK_FALSE(function);
    function = [] {};
    CHECK(function);
    function = UniqueFunction<void()>{};
    CHECK_FALSE(function);
}

TEST_CASE("arguments and results pass through") {
    UniqueFunction<std::string(const std::string&, int)> join =
        [](const std::string& text, int number) { return text + std::to_string(number); };
    CHECK(join("a", 7) == "a7");
    UniqueFunction<int(int)> twice = &Twice;
    CHECK(twice(21) == 42);
    UniqueFunction<int(std::unique_ptr<int>)> take = [](std::unique_ptr<int> value) { return *value; };
    CHECK(take(std::make_unique<int>(5)) == 5);
    int target = 0;
    UniqueFunction<int&(int&)> same = [](int& value) -> int& { return value; };
    CHECK(&same(target) == &target);
}

TEST_CASE("a result that nobody wants is dropped") {
    int calls = 0;
    UniqueFunction<void()> function = [&] { return ++calls; };
    function();
    CHECK(calls == 1);
}

TEST_CASE("a callable may own what cannot be copied") {
    auto value = std::make_unique<int>(3);
    UniqueFunction<int()> function = [value = std::move(value)] { return ++*value; };
    CHECK(function() == 4);
    UniqueFunction<int()> moved = std::move(function);
    CHECK_FALSE(function);  // NOLINT(bugprone-use-after-move): empty after a move, by contract
    CHECK(moved() == 5);
}

TEST_CASE("a callable keeps its state from call to call") {
    UniqueFunction<int()> count = [number = 0]() mutable { return ++number; };
    CHECK(count() == 1);
    CHECK(count() == 2);
}

TEST_CASE("small and large callables are each destroyed exactly once") {
    int alive = 0;
    const auto check = [&alive](auto callable) {
        using Function = UniqueFunction<void()>;
        {
            Function first = std::move(callable);
            CHECK(alive >= 1);
            Function second = std::move(first);
            Function third;
            third = std::move(second);
            third();
            CHECK_FALSE(second);  // NOLINT(bugprone-use-after-move): empty after a move, by contract
        }
    };
    check([counted = Counted{alive}] {});
    CHECK(alive == 0);
    check([counted = Counted{alive}, more = std::array<char, 200>{}] { static_cast<void>(more); });
    CHECK(alive == 0);
}

TEST_CASE("assigning destroys what was there before") {
    int first = 0;
    int second = 0;
    UniqueFunction<void()> function = [counted = Counted{first}] {};
    CHECK(first == 1);
    function = UniqueFunction<void()>{[counted = Counted{second}] {}};
    CHECK(first == 0);
    CHECK(second == 1);
    auto& itself = function;
    function = std::move(itself);
    CHECK(second == 1);
    CHECK(function);
}

TEST_CASE("exceptions of the callable reach the caller") {
    UniqueFunction<void()> function = [] { throw std::runtime_error{"no"}; };
    CHECK_THROWS_AS(function(), std::runtime_error);
    CHECK(function);
}

TEST_CASE("an over-aligned callable finds its alignment") {
    struct alignas(64) Wide {
        char bytes[64] = {};
    };
    bool aligned = false;
    UniqueFunction<void()> function = [wide = Wide{}, &aligned] {
        aligned = reinterpret_cast<std::uintptr_t>(&wide) % 64 == 0;
    };
    UniqueFunction<void()> moved = std::move(function);
    moved();
    CHECK(aligned);
}

TEST_CASE("a function object with state of its own can be passed by reference") {
    int calls = 0;
    const auto callable = [&calls] { ++calls; };
    UniqueFunction<void()> function = std::ref(callable);
    function();
    CHECK(calls == 1);
}
