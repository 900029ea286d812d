/// @file faults_cases.cpp
/// Conformance cases on a broker that goes away in the middle, and on confirms that are lost. The
/// target makes it happen; one that cannot has them skipped.
#include "../support/catch.hpp"
#include "../support/wait.hpp"
#include "cases.hpp"
#include "fleet.hpp"
#include "target.hpp"
#include "walk.hpp"

#include <chrono>
#include <cstddef>
#include <vector>

namespace mq::conformance {

namespace {

// A broker may take its time to start, and clients theirs to find it again.
constexpr std::chrono::seconds kRecovery{120};

}  // namespace

void ABrokerThatIsRestartedTwiceLosesNothing(Target& target) {
    if (!target.Stop()) return test::SkipCase("the target has no way to stop its broker");
    target.Start();
    const BrokerConfig broker = target.Broker();
    const test::Scene scene{.old_url = broker.url,
                            .order = Order::kKey,
                            .send_timeout = kRecovery,
                            .address = target.FreshAddress(),
                            .migrates = false,
                            .old_options = broker.options};
    const unsigned rate = target.traits().rate;
    test::Fleet fleet{scene, Policy::kOld, {.rate = rate}};
    fleet.StartTraffic();
    REQUIRE(fleet.audit().WaitProcessed(rate, kRecovery));
    for (int restart = 0; restart < 2; ++restart) {
        target.Stop();
        // Sends pile up: those of half a second wait for their confirms.
        const bool gone = test::Eventually([&] { return fleet.audit().Check().pending >= rate; });
        target.Start();
        INFO(fleet.Describe());
        REQUIRE(gone);
        REQUIRE(fleet.audit().WaitProcessed(2 * rate, kRecovery));
    }
    test::CheckBooks(fleet, true, kRecovery);
}

void ALostConfirmLosesNoMessage(Target& target) {
    test::Collector received;
    World world{target};
    world.config.client.send_timeout = std::chrono::seconds{3};
    Client& client = world.NewClient();
    const Subscription subscription = client.RecvMsg(world.topic, received.Handler());
    client.SendMsg(world.topic, Message{.body = "before"});
    REQUIRE(received.WaitForCount(1));
    if (!target.LoseConfirm()) return test::SkipCase("the target has no way to lose a confirm");
    const std::string id = test::UniqueId("lost");
    const auto error = ErrorOf([&] { client.SendMsg(world.topic, Message{.body = "lost", .id = id}); });
    // Either the adapter has sent it once more, on a new connection, or nobody knows what became of it.
    if (error) CHECK(error->outcome() == Outcome::kUnknown);
    CHECK(received.WaitForIds({id}));
    CHECK_NOTHROW(client.SendMsg(world.topic, Message{.body = "after"}));
    CHECK(received.WaitForDistinct(3));
    // What comes more than once says so.
    std::size_t times = 0;
    for (const Message& message : received.Messages()) {
        if (message.id == id && times++ > 0) CHECK(message.redelivered);
    }
}

}  // namespace mq::conformance
