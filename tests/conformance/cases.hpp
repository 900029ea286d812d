/// @file cases.hpp
/// The cases of the conformance suite, each a sentence about what every broker does for business code.
/// They are defined in the *_cases.cpp beside this header, which mq::conformance is made of.
#pragma once

#include "target.hpp"

namespace mq::conformance {

/// One case; asserts by Catch2.
using Case = void (*)(Target& target);

// What a message carries
void EveryByteOfABodyArrives(Target& target);
void AnEmptyMessageArrives(Target& target);
void BodiesOfOneMebibyteArrive(Target& target);
void HeadersArriveInTheirOrder(Target& target);
void OddStringsInHeadersArrive(Target& target);
void AHeaderMayOccurTwice(Target& target);
void KeysArrive(Target& target);
void IdsTimesAndAttributesArrive(Target& target);
void AMissingIdAndTimeAreMade(Target& target);

// Who gets what
void EachGroupGetsEveryMessage(Target& target);
void MembersOfAGroupShareTheMessages(Target& target);
void SubscriptionsOfOneClientShareAGroup(Target& target);
void TopicsAreApart(Target& target);
void ABusyHandlerHoldsUpNoOtherTopic(Target& target);
void ANewGroupGetsWhatWasSentBefore(Target& target);
void AnUnroutableMessageIsReported(Target& target);
void AGroupThatIsNamedInTheConfigMissesNothing(Target& target);
void ASendToWhatDoesNotExistFails(Target& target);
void ASubscriptionToWhatDoesNotExistFails(Target& target);

// Settlement and order
void ANackedMessageComesAgain(Target& target);
void AMessageWhoseHandlerThrewComesAgain(Target& target);
void ADroppedDeliveryComesAgain(Target& target);
void HandlersThatFailForAWhileGetEverything(Target& target);
void NoMoreThanThePrefetchIsHandedOut(Target& target);
void TheOrderOfAKeyIsKept(Target& target);
void TheOrderOfAKeyIsKeptAmongMembers(Target& target);
void SettlingTwiceIsHarmless(Target& target);
void NackAfterNackIsHarmless(Target& target);
void AMessageIsSettledFromAnotherThread(Target& target);
void SettlingAfterTheSubscriptionWasClosedIsHarmless(Target& target);
void SettlingAfterTheClientWasClosedIsHarmless(Target& target);
void WhatIsUnsettledAtTheCloseComesToTheNextOne(Target& target);
void ClosingAndSubscribingAgainLosesNothing(Target& target);

// Many threads, and calls from where business code is called
void ManyThreadsSendAtOnce(Target& target);
void ManyThreadsSubscribeAtOnce(Target& target);
void ManyThreadsCloseAtOnce(Target& target);
void ASendAfterTheCloseFails(Target& target);
void ACloseDuringSendsTellsTheTruth(Target& target);
void FlushWaitsForEverySend(Target& target);
void CallbacksSend(Target& target);
void HandlersSend(Target& target);
void AHandlerClosesItsOwnSubscription(Target& target);
void ASendCallbackClosesASubscription(Target& target);

// What goes wrong
void ABrokerThatIsRestartedTwiceLosesNothing(Target& target);
void ALostConfirmLosesNoMessage(Target& target);

// What a client costs
void ThreadsAndSocketsDoNotGrowWithTopics(Target& target);
void AnIdleClientUsesNoTime(Target& target);
void MemoryStaysLevel(Target& target);

/// A topic between the target's broker and one in memory.
enum class Pair {
    kToMemory,    ///< The target's is the old one.
    kFromMemory,  ///< The target's is the new one.
};

/// One case of a pair; asserts by Catch2.
using PairCase = void (*)(Target& target, Pair pair);

// The walk of a topic between two brokers, each up and down the ladder
void ATopicWalksUp(Target& target, Pair pair);
void ATopicWalksDown(Target& target, Pair pair);
void ATopicJumpsUpAndDown(Target& target, Pair pair);
void ATopicWalksBackAndForth(Target& target, Pair pair);
void PublishingStaysUntilEveryGroupListens(Target& target, Pair pair);
void ASideIsNotLeftWhileAMessageIsUnsettled(Target& target, Pair pair);
void TheOrderOfAKeyIsKeptAcrossTheChange(Target& target, Pair pair);

}  // namespace mq::conformance
