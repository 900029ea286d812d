/// @file walk_test.cpp
/// A topic walks between every ordered pair of brokers, in every way that the ladder allows, while
/// producers and two groups of two members keep working.
#include "../conformance/walk.hpp"

#include "../support/catch.hpp"
#include "fleet.hpp"

#include <array>
#include <cstddef>
#include <string>
#include <utility>

namespace {

using namespace mq::test;

constexpr std::array kKinds{BrokerKind::kMemory, BrokerKind::kRabbitmq, BrokerKind::kKafka,
                            BrokerKind::kActivemq, BrokerKind::kArtemis};

// Every ordered pair of two kinds, and two brokers in memory.
constexpr auto kPairs = [] {
    std::array<Pair, kKinds.size() * (kKinds.size() - 1) + 1> pairs{
        Pair{BrokerKind::kMemory, BrokerKind::kMemory}};
    std::size_t count = 1;
    for (const BrokerKind from : kKinds) {
        for (const BrokerKind to : kKinds) {
            if (from != to) pairs[count++] = Pair{from, to};
        }
    }
    return pairs;
}();

void RunPair(Pair pair, const Walk& walk) {
    const auto old_url = UrlOf(pair.from);
    const auto new_url = UrlOf(pair.to);
    if (!old_url) return SkipCase("there is no " + std::string{ToString(pair.from)});
    if (!new_url) return SkipCase("there is no " + std::string{ToString(pair.to)});
    const Scene scene = SceneBetween({.url = *old_url}, {.url = *new_url});
    RunWalk(scene, walk, {.rate = Fleet::RateFor(scene)});
}

template <std::size_t Number>
void Case() {
    RunPair(kPairs.at(Number / kWalks), Walks().at(Number % kWalks));
}

template <std::size_t Number>
bool Register() {
    const Pair pair = kPairs.at(Number / kWalks);
    const std::string name =
        "Nothing is lost from " + NameOf(pair) + ", " + Walks().at(Number % kWalks).Title();
    const std::string tags = "[walk]" + TagsOf(pair);
    REGISTER_TEST_CASE(Case<Number>, name, tags);
    return true;
}

template <std::size_t... Numbers>
bool RegisterAll(std::index_sequence<Numbers...>) {
    return (Register<Numbers>() && ...);
}

const bool registered = RegisterAll(std::make_index_sequence<kPairs.size() * kWalks>{});

}  // namespace
