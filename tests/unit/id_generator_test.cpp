#include "../support/catch.hpp"
#include <mq/detail/id_generator.hpp>

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>
#include <thread>
#include <vector>

using mq::detail::IdGenerator;

TEST_CASE("an id has 24 characters of Crockford's base 32") {
    IdGenerator ids;
    for (int i = 0; i < 100; ++i) {
        const std::string id = ids.Next();
        CHECK(id.size() == 24);
        CHECK(id.find_first_not_of("0123456789ABCDEFGHJKMNPQRSTVWXYZ") == std::string::npos);
        CHECK(id.starts_with(ids.Prefix()));
    }
}

TEST_CASE("the ids of a generator sort in the order in which they were made") {
    IdGenerator ids;
    std::string last = ids.Next();
    bool sorted = true;
    // Beyond 32 and 1024, where the count takes another digit.
    for (int i = 0; i < 5000; ++i) {
        std::string next = ids.Next();
        sorted = sorted && last < next;
        last = std::move(next);
    }
    CHECK(sorted);
}

TEST_CASE("many threads get ids that differ") {
    constexpr std::size_t kThreads = 4;
    constexpr std::size_t kEach = 5000;
    IdGenerator ids;
    std::vector<std::vector<std::string>> made(kThreads);
    std::vector<std::thread> threads;
    for (auto& mine : made) {
        threads.emplace_back([&ids, &mine] {
            for (std::size_t i = 0; i < kEach; ++i) mine.push_back(ids.Next());
        });
    }
    for (std::thread& thread : threads) thread.join();
    std::set<std::string> all;
    for (const auto& mine : made) {
        CHECK(std::is_sorted(mine.begin(), mine.end()));
        all.insert(mine.begin(), mine.end());
    }
    CHECK(all.size() == kThreads * kEach);
}

TEST_CASE("generators do not share a prefix") {
    std::set<std::string> prefixes;
    for (int i = 0; i < 1000; ++i) prefixes.insert(IdGenerator{}.Prefix());
    CHECK(prefixes.size() == 1000);
}
