/// @file rabbitmq_parts_test.cpp
/// What the RabbitMQ adapter knows without a broker: what a refusal tells of a queue, and when silence
/// is a standstill.
#include "../support/catch.hpp"
#include <mq/backends/rabbitmq/queue_arguments.hpp>
#include <mq/backends/rabbitmq/watch.hpp>

#include <chrono>
#include <string>

namespace {

using mq::rabbitmq::ConfirmWatch;
using mq::rabbitmq::ConsumerWatch;
using mq::rabbitmq::QueueArguments;
using namespace std::chrono_literals;

std::string Differs(const std::string& name, const std::string& current) {
    return "PRECONDITION_FAILED - inequivalent arg '" + name +
           "' for queue 'orders.g' in vhost '/': received none but current is " + current;
}

const mq::backend::Clock::time_point kBegin{1h};

}  // namespace

TEST_CASE("RabbitMQ: refusals tell what a queue was declared with", "[rabbitmq]") {
    QueueArguments guess{"classic"};
    CHECK(guess.Correct(Differs("x-queue-type", "the value 'quorum' of type 'longstr'")));
    CHECK(guess.Correct(Differs("x-delivery-limit", "the value '-1' of type 'signedint'")));
    CHECK(guess.Correct(Differs("x-single-active-consumer", "the value 'true' of type 'bool'")));
    CHECK(guess.Correct(Differs("x-dead-letter-exchange", "the value 'it's' of type 'longstr'")));
    CHECK(guess.Correct(Differs("durable", "'false'")));
    CHECK(guess.IsOfType("quorum"));
    CHECK(guess.DeliveryLimit() == -1);
    CHECK(guess.HasSingleActiveConsumer());
    CHECK(guess.Find("x-dead-letter-exchange")->text == "it's");
    CHECK_FALSE(guess.Durable());
}

TEST_CASE("RabbitMQ: what a queue may lose by itself is told from its arguments", "[rabbitmq]") {
    QueueArguments queue{"classic"};
    CHECK(queue.Losses().empty());
    CHECK(queue.Correct(Differs("x-max-length", "the value '1000' of type 'signedint'")));
    CHECK(queue.Correct(Differs("x-message-ttl", "the value '60000' of type 'signedint'")));
    CHECK(queue.Correct(Differs("auto_delete", "'true'")));
    CHECK(queue.Losses().size() == 3);
    CHECK(queue.Losses().front().find("drops") != std::string::npos);
    // A full queue that refuses loses nothing: the send fails.
    CHECK(queue.Correct(Differs("x-overflow", "the value 'reject-publish' of type 'longstr'")));
    CHECK(queue.Correct(Differs("x-dead-letter-exchange", "the value 'dead' of type 'longstr'")));
    REQUIRE(queue.Losses().size() == 2);
    CHECK(queue.Losses().front().find("dead-letters") != std::string::npos);
}

TEST_CASE("RabbitMQ: a policy adds to a queue's arguments, and the lower limit holds", "[rabbitmq]") {
    QueueArguments queue{"quorum"};
    CHECK(queue.Correct(Differs("x-delivery-limit", "the value '5' of type 'signedint'")));
    queue.Add({{"delivery-limit", "7"}, {"message-ttl", "1000"}, {"overflow", "reject-publish"}});
    CHECK(queue.DeliveryLimit() == 5);
    CHECK(queue.Losses().size() == 1);
    queue.Add({{"delivery-limit", "3"}});
    CHECK(queue.DeliveryLimit() == 3);
}

TEST_CASE("RabbitMQ: what a queue was not declared with is taken out of the guess", "[rabbitmq]") {
    QueueArguments guess{"quorum"};
    guess.Set("x-single-active-consumer", {QueueArguments::Type::kFlag, "true"});
    CHECK(guess.Correct(
        "PRECONDITION_FAILED - inequivalent arg 'x-single-active-consumer' for queue 'q' in "
        "vhost '/': received the value 'true' of type 'bool' but current is none"));
    CHECK_FALSE(guess.HasSingleActiveConsumer());
    CHECK(guess.Correct(
        "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': "
        "received 'quorum' but current is 'stream'"));
    CHECK(guess.IsOfType("stream"));
    CHECK_FALSE(guess.DeliveryLimit());
}

TEST_CASE("RabbitMQ: a refusal that says nothing new ends the guessing", "[rabbitmq]") {
    QueueArguments guess{"classic"};
    CHECK_FALSE(guess.Correct(""));
    CHECK_FALSE(guess.Correct("PRECONDITION_FAILED - something else"));
    CHECK_FALSE(guess.Correct(Differs("x-queue-type", "the value 'classic' of type 'longstr'")));
    CHECK_FALSE(guess.Correct(Differs("x-dead-letter-exchange", "the value 'cut off here")));
    CHECK_FALSE(guess.Correct(Differs("x-expires", "the value 'many' of type 'signedint'")));
    CHECK_FALSE(guess.Correct(Differs("x-expires", "the value '99999999999999999999' of type 'long'")));
    CHECK_FALSE(guess.Correct(Differs("x-new", "the value '[]' of type 'array'")));
    CHECK_FALSE(guess.Correct(Differs("x-absent", "none")));
    CHECK_FALSE(guess.Correct(Differs("durable", "'true'")));
    CHECK_FALSE(guess.Correct(Differs("exclusive", "'true'")));
    CHECK(guess.IsOfType("classic"));
    CHECK(guess.All().size() == 1);
}

TEST_CASE("RabbitMQ: a consumer with room whose queue keeps messages back stands still", "[rabbitmq]") {
    ConsumerWatch watch;
    watch.NoteProgress(kBegin);
    auto now = kBegin;
    bool stands_still = false;
    while (!stands_still && now < kBegin + 1min) {
        now += 1s;
        if (!watch.LookIsDue(now)) continue;
        watch.NoteLook(now);
        stands_still = watch.StandsStill(5, true, now);
    }
    REQUIRE(stands_still);
    CHECK(now - kBegin >= ConsumerWatch::kPatience);
    CHECK(now - kBegin < mq::backend::kStandstill);
    // Mending gets its time before the next judgement.
    CHECK_FALSE(watch.LookIsDue(now + 1s));
    CHECK_FALSE(watch.StandsStill(5, true, now + ConsumerWatch::kLookEvery));
}

TEST_CASE("RabbitMQ: no consumer stands still that gets nothing rightly", "[rabbitmq]") {
    enum class Why { kEmpty, kNotItsTurn, kBusy, kTakenAtOnce };
    const Why why = GENERATE(Why::kEmpty, Why::kNotItsTurn, Why::kBusy, Why::kTakenAtOnce);
    ConsumerWatch watch;
    watch.NoteProgress(kBegin);
    for (unsigned look = 1; look < 100; ++look) {
        const auto now = kBegin + look * ConsumerWatch::kLookEvery;
        if (why == Why::kBusy) watch.NoteProgress(now - 1s);
        const unsigned ready = why == Why::kEmpty ? 0 : why == Why::kTakenAtOnce ? look % 2 : 5;
        CHECK_FALSE(watch.StandsStill(ready, why != Why::kNotItsTurn, now));
    }
}

TEST_CASE("RabbitMQ: the first message after a long silence is no standstill", "[rabbitmq]") {
    ConsumerWatch watch;
    watch.NoteProgress(kBegin);
    CHECK_FALSE(watch.StandsStill(0, true, kBegin + 1h));
    CHECK_FALSE(watch.StandsStill(1, true, kBegin + 1h + 8s));
}

TEST_CASE("RabbitMQ: confirms that stay away are a standstill before the stated bound", "[rabbitmq]") {
    ConfirmWatch watch;
    watch.NoteProgress(kBegin);
    CHECK(watch.Deadline() > kBegin + 10s);
    CHECK(watch.Deadline() < kBegin + mq::backend::kStandstill);
}
