/// @file groups_cases.cpp
/// Conformance cases on who gets what: groups, members, topics, groups that come later, and
/// destinations that are not there.
#include "../support/catch.hpp"
#include "cases.hpp"
#include "target.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace mq::conformance {

void EachGroupGetsEveryMessage(Target& target) {
    constexpr std::size_t kCount = 60;
    test::Collector first;
    test::Collector second;
    World world{target};
    Client& client = world.NewClient();
    const std::string other = test::UniqueId("audit");
    const Subscription one = client.RecvMsg(world.topic, first.Handler());
    const Subscription two = client.RecvMsg(world.topic, second.Handler(), {.group = other});
    const auto messages = MakeSpreadMessages(kCount);
    REQUIRE(SendAll(client, world.topic, messages));
    CHECK(first.WaitForIds(IdsOf(messages)));
    CHECK(second.WaitForIds(IdsOf(messages)));
    CHECK(first.Count() == kCount);
    CHECK(second.Count() == kCount);
}

namespace {

/// Two subscriptions of one group, in one client or in two, come to share what is sent: each message
/// goes to one of them, once.
void CheckSharing(Target& target, std::size_t clients) {
    test::Collector received;
    test::Counter first;
    test::Counter second;
    World world{target};
    Client& one = world.NewClient();
    Client& two = clients == 1 ? one : world.NewClient();
    const auto counting = [&received](test::Counter& counter) {
        return [&received, &counter](const Message& message) {
            counter.Add();
            received.Add(message);
        };
    };
    const Subscription a = one.RecvMsg(world.topic, counting(first));
    const Subscription b = two.RecvMsg(world.topic, counting(second));
    // Membership settles in the broker's own time: more is sent until both have a part of it.
    bool shared = false;
    const auto deadline = test::After();
    while (!shared && backend::Clock::now() < deadline) {
        const std::size_t first_before = first.Value();
        const std::size_t second_before = second.Value();
        const auto messages = MakeSpreadMessages(40);
        REQUIRE(SendAll(one, world.topic, messages));
        REQUIRE(received.WaitForIds(IdsOf(messages)));
        received.WaitForCount(received.Count() + 1, test::kGlance);
        const bool once = std::all_of(messages.begin(), messages.end(), [&](const Message& message) {
            return received.Times(message.id) == 1;
        });
        shared = once && first.Value() > first_before && second.Value() > second_before;
    }
    CHECK(shared);
    if (target.traits().repeats_while_members_change) return;
    CHECK(received.Repeated() == std::vector<std::string>{});
}

}  // namespace

void MembersOfAGroupShareTheMessages(Target& target) { CheckSharing(target, 2); }

void SubscriptionsOfOneClientShareAGroup(Target& target) { CheckSharing(target, 1); }

void TopicsAreApart(Target& target) {
    constexpr std::size_t kCount = 30;
    test::Collector orders;
    test::Collector invoices;
    World world{target};
    world.AddTopic("invoices");
    Client& client = world.NewClient();
    const Subscription a = client.RecvMsg("orders", orders.Handler());
    const Subscription b = client.RecvMsg("invoices", invoices.Handler());
    const auto of_orders = MakeSpreadMessages(kCount);
    const auto of_invoices = MakeSpreadMessages(kCount);
    REQUIRE(SendAll(client, "orders", of_orders));
    REQUIRE(SendAll(client, "invoices", of_invoices));
    CHECK(orders.WaitForIds(IdsOf(of_orders)));
    CHECK(invoices.WaitForIds(IdsOf(of_invoices)));
    CHECK(orders.Count() == kCount);
    CHECK(invoices.Count() == kCount);
    for (const Message& message : orders.Messages()) CHECK(message.topic == "orders");
    for (const Message& message : invoices.Messages()) CHECK(message.topic == "invoices");
}

void ABusyHandlerHoldsUpNoOtherTopic(Target& target) {
    test::Gate release;
    test::Counter busy;
    test::Collector quick;
    World world{target};
    world.AddTopic("slow");
    Client& client = world.NewClient();
    const Subscription a = client.RecvMsg("slow",
                                          [&](const Message&) {
                                              busy.Add();
                                              release.Wait();
                                          },
                                          {.concurrency = 1, .prefetch = 2});
    const Subscription b = client.RecvMsg("orders", quick.Handler());
    REQUIRE(SendAll(client, "slow", MakeMessages(10, "k")));
    REQUIRE(busy.WaitFor(1));
    const auto messages = MakeSpreadMessages(30);
    REQUIRE(SendAll(client, "orders", messages));
    CHECK(quick.WaitForIds(IdsOf(messages)));
    CHECK(busy.Value() == 1);
    release.Open();
    CHECK(busy.WaitFor(10));
}

void ANewGroupGetsWhatWasSentBefore(Target& target) {
    if (!target.traits().new_group_sees_older) {
        return test::SkipCase("the broker begins to keep messages for a group when it is declared");
    }
    test::Collector received;
    World world{target};
    Client& client = world.NewClient();
    const auto messages = MakeSpreadMessages(30);
    REQUIRE(SendAll(client, world.topic, messages));
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    CHECK(received.WaitForIds(IdsOf(messages)));
    CHECK(received.Count() == messages.size());
}

void AnUnroutableMessageIsReported(Target& target) {
    World world{target};
    Client& client = world.NewClient();
    const auto error = ErrorOf([&] { client.SendMsg(world.topic, "nobody is there"); });
    if (!target.traits().reports_unroutable) {
        CHECK_FALSE(error);
        return;
    }
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kUnroutable);
    CHECK(error->outcome() == Outcome::kNotSent);
    // The next one finds a queue, and is not mistaken for the first.
    test::Collector received;
    Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    CHECK_NOTHROW(client.SendMsg(world.topic, "somebody is there"));
    CHECK(received.WaitForCount(1));
    subscription.Close();
}

void AGroupThatIsNamedInTheConfigMissesNothing(Target& target) {
    test::Collector received;
    World world{target};
    world.Topic().groups = {world.group};
    Client& client = world.NewClient();
    const auto messages = MakeSpreadMessages(30);
    REQUIRE(SendAll(client, world.topic, messages));
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    CHECK(received.WaitForIds(IdsOf(messages)));
}

void ASendToWhatDoesNotExistFails(Target& target) {
    auto broker = target.BrokerThatDeclaresNothing();
    if (!broker) return test::SkipCase("this broker makes a topic of every name");
    World world{target, std::move(*broker)};
    Client& client = world.NewClient();
    const auto error = ErrorOf([&] { client.SendMsg(world.topic, "to nowhere"); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kNotFound);
    CHECK(error->outcome() == Outcome::kNotSent);

    test::SendLog sends;
    client.SendMsg(world.topic, "to nowhere, again", sends.Callback());
    REQUIRE(sends.WaitForCount(1));
    REQUIRE(sends.Failures().size() == 1);
    CHECK(sends.Failures().front().code == ErrorCode::kNotFound);
}

void ASubscriptionToWhatDoesNotExistFails(Target& target) {
    auto broker = target.BrokerThatDeclaresNothing();
    if (!broker) return test::SkipCase("this broker makes a topic of every name");
    test::Collector received;
    World world{target, std::move(*broker)};
    Client& client = world.NewClient();
    const auto error =
        ErrorOf([&] { const Subscription none = client.RecvMsg(world.topic, received.Handler()); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kNotFound);
}

}  // namespace mq::conformance
