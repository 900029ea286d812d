/// @file suite.hpp
/// The conformance suite: one set of cases that every adapter is held to. Whoever writes an adapter
/// derives a Target, registers the suite for it, and links mq::conformance, which has the cases and a
/// main. Each case then is a test case of its own, named after the broker and tagged:
///
/// | tag             | cases                                                                      |
/// |-----------------|----------------------------------------------------------------------------|
/// | `[conformance]` | all of them, with the tags that the registration adds                      |
/// | `[faults]`      | a broker that goes away, confirms that are lost, where the Target can      |
/// | `[resources]`   | threads, sockets, time and memory; slow                                    |
/// | `[pair]`        | a topic that moves between this broker and one in memory, both ways; slow  |
///
///     class MyTarget final : public mq::conformance::Target { … };
///     const bool kRegistered = mq::conformance::RegisterSuite<MyTarget>("mybroker", "[mybroker]");
#pragma once

#include "../support/catch.hpp"
#include "cases.hpp"
#include "target.hpp"

#include <string>
#include <utility>

namespace mq::conformance {

/// The program's one target of that kind.
template <typename T>
T& TargetOf() {
    static T target;
    return target;
}

/// Runs a case, or has it counted as skipped where there is no broker.
template <typename T, Case kCase>
void RunCase() {
    T& target = TargetOf<T>();
    if (auto why = target.WhyUnavailable(); !why.empty()) return test::SkipCase(std::move(why));
    kCase(target);
}

/// Registers one case for a target; for cases that an adapter adds to the suite, too.
template <typename T, Case kCase>
void RegisterCase(const std::string& name, const std::string& tags) {
    REGISTER_TEST_CASE((&RunCase<T, kCase>), name, tags);
}

/// A case of a pair, as one of the target.
template <PairCase kCase, Pair kPair>
void OfPair(Target& target) {
    kCase(target, kPair);
}

/// Registers one case for both pairs of a target and a broker in memory.
template <typename T, PairCase kCase>
void RegisterPairCase(const std::string& broker, const std::string& name, const std::string& tags) {
    RegisterCase<T, OfPair<kCase, Pair::kToMemory>>(broker + " to memory: " + name, tags);
    RegisterCase<T, OfPair<kCase, Pair::kFromMemory>>("memory to " + broker + ": " + name, tags);
}

/// Registers the cases of a topic that moves between a target and a broker in memory.
template <typename T>
void RegisterPairs(const std::string& broker, const std::string& tags) {
    const std::string all = "[conformance][pair]" + tags;
    RegisterPairCase<T, ATopicWalksUp>(broker, "nothing is lost or reordered, rung by rung up", all);
    RegisterPairCase<T, ATopicWalksDown>(broker, "nothing is lost or reordered, rung by rung down",
                                         all);
    RegisterPairCase<T, ATopicJumpsUpAndDown>(broker, "nothing is lost in one jump up and one down",
                                              all);
    RegisterPairCase<T, ATopicWalksBackAndForth>(broker, "nothing is lost or reordered, back and forth",
                                                 all);
    RegisterPairCase<T, PublishingStaysUntilEveryGroupListens>(
        broker, "publishing stays until every group listens", all);
    RegisterPairCase<T, ASideIsNotLeftWhileAMessageIsUnsettled>(
        broker, "a side is not left while a message is unsettled", all);
    RegisterPairCase<T, TheOrderOfAKeyIsKeptAcrossTheChange>(
        broker, "the order of a key is kept across the change", all);
}

/// What belongs to a suite.
struct SuiteOptions {
    /// Whether the pairs with memory do. False where another program walks the same pairs, as the
    /// migration tests do for the kinds of broker that come with the library.
    bool pairs = true;
};

/// Registers every case for a target. Called once a program for each, before main begins or from it.
/// @param broker What the names of the cases begin with.
/// @param tags Further tags of Catch2 for each case, such as "[mybroker]".
template <typename T>
bool RegisterSuite(const std::string& broker, const std::string& tags, SuiteOptions options = {}) {
    const std::string all = "[conformance]" + tags;
    const std::string faults = all + "[faults]";
    const std::string slow = all + "[resources]";
    const auto name = [&](const char* text) { return broker + ": " + text; };

    RegisterCase<T, EveryByteOfABodyArrives>(name("every byte of a body arrives"), all);
    RegisterCase<T, AnEmptyMessageArrives>(name("an empty message arrives"), all);
    RegisterCase<T, BodiesOfOneMebibyteArrive>(name("bodies of one mebibyte arrive"), all);
    RegisterCase<T, HeadersArriveInTheirOrder>(name("headers arrive in their order"), all);
    RegisterCase<T, OddStringsInHeadersArrive>(name("odd strings in headers arrive"), all);
    RegisterCase<T, AHeaderMayOccurTwice>(name("a header may occur twice"), all);
    RegisterCase<T, KeysArrive>(name("keys arrive"), all);
    RegisterCase<T, IdsTimesAndAttributesArrive>(name("ids, times and attributes arrive"), all);
    RegisterCase<T, AMissingIdAndTimeAreMade>(name("a missing id and time are made"), all);

    RegisterCase<T, EachGroupGetsEveryMessage>(name("each group gets every message"), all);
    RegisterCase<T, MembersOfAGroupShareTheMessages>(name("members of a group share"), all);
    RegisterCase<T, SubscriptionsOfOneClientShareAGroup>(
        name("two subscriptions of one client share a group"), all);
    RegisterCase<T, TopicsAreApart>(name("topics are apart"), all);
    RegisterCase<T, ABusyHandlerHoldsUpNoOtherTopic>(name("a busy handler holds up no other topic"),
                                                     all);
    RegisterCase<T, ANewGroupGetsWhatWasSentBefore>(name("a new group gets what was sent before"), all);
    RegisterCase<T, AnUnroutableMessageIsReported>(name("an unroutable message is reported"), all);
    RegisterCase<T, AGroupThatIsNamedInTheConfigMissesNothing>(
        name("a group that the config names misses nothing"), all);
    RegisterCase<T, ASendToWhatDoesNotExistFails>(name("a send to what does not exist fails"), all);
    RegisterCase<T, ASubscriptionToWhatDoesNotExistFails>(
        name("a subscription to what does not exist fails"), all);

    RegisterCase<T, ANackedMessageComesAgain>(name("a nacked message comes again"), all);
    RegisterCase<T, AMessageWhoseHandlerThrewComesAgain>(
        name("a message whose handler threw comes again"), all);
    RegisterCase<T, ADroppedDeliveryComesAgain>(name("a dropped delivery comes again"), all);
    RegisterCase<T, HandlersThatFailForAWhileGetEverything>(
        name("handlers that fail for a while get everything"), all);
    RegisterCase<T, NoMoreThanThePrefetchIsHandedOut>(name("no more than the prefetch is handed out"),
                                                      all);
    RegisterCase<T, TheOrderOfAKeyIsKept>(name("the order of a key is kept"), all);
    RegisterCase<T, TheOrderOfAKeyIsKeptAmongMembers>(name("the order of a key is kept among members"),
                                                      all);
    RegisterCase<T, SettlingTwiceIsHarmless>(name("settling twice is harmless"), all);
    RegisterCase<T, NackAfterNackIsHarmless>(name("a second nack is harmless"), all);
    RegisterCase<T, AMessageIsSettledFromAnotherThread>(
        name("messages are settled from another thread, the last first"), all);
    RegisterCase<T, SettlingAfterTheSubscriptionWasClosedIsHarmless>(
        name("settling after the subscription was closed is harmless"), all);
    RegisterCase<T, SettlingAfterTheClientWasClosedIsHarmless>(
        name("settling after the client was closed is harmless"), all);
    RegisterCase<T, WhatIsUnsettledAtTheCloseComesToTheNextOne>(
        name("what is unsettled at the close comes to the next subscriber"), all);
    RegisterCase<T, ClosingAndSubscribingAgainLosesNothing>(
        name("closing and subscribing again loses nothing"), all);

    RegisterCase<T, ManyThreadsSendAtOnce>(name("many threads send at once"), all);
    RegisterCase<T, ManyThreadsSubscribeAtOnce>(name("many threads subscribe at once"), all);
    RegisterCase<T, ManyThreadsCloseAtOnce>(name("many threads close at once"), all);
    RegisterCase<T, ASendAfterTheCloseFails>(name("a send after the close fails"), all);
    RegisterCase<T, ACloseDuringSendsTellsTheTruth>(name("a close during sends tells the truth"), all);
    RegisterCase<T, FlushWaitsForEverySend>(name("Flush waits for every send and callback"), all);
    RegisterCase<T, CallbacksSend>(name("callbacks send"), all);
    RegisterCase<T, HandlersSend>(name("handlers send"), all);
    RegisterCase<T, AHandlerClosesItsOwnSubscription>(name("a handler closes its own subscription"),
                                                      all);
    RegisterCase<T, ASendCallbackClosesASubscription>(name("a send callback closes a subscription"),
                                                      all);

    RegisterCase<T, ABrokerThatIsRestartedTwiceLosesNothing>(
        name("a broker that is restarted twice loses nothing"), faults);
    RegisterCase<T, ALostConfirmLosesNoMessage>(name("a lost confirm loses no message"), faults);

    RegisterCase<T, ThreadsAndSocketsDoNotGrowWithTopics>(
        name("threads and sockets do not grow with topics"), slow);
    RegisterCase<T, AnIdleClientUsesNoTime>(name("an idle client uses no time"), slow);
    RegisterCase<T, MemoryStaysLevel>(name("memory stays level under steady traffic"), slow);

    if (options.pairs) RegisterPairs<T>(broker, tags);
    return true;
}

}  // namespace mq::conformance
