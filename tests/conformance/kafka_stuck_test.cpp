/// @file kafka_stuck_test.cpp
/// What the end of a client does where librdkafka never returns. Two of its functions are stood in for
/// here, for the whole program: they do what they always do, unless a test holds them.
#include "../support/catch.hpp"
#include "../support/kafka_calls.hpp"
#include "../support/kafka_fixture.hpp"
#include <mq/detail/abandoned.hpp>

#include <dlfcn.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>

namespace {

using mq::detail::Abandoned;
using mq::test::MockCluster;
using mq::test::RecordingReceiver;
using namespace mq::test::kafka;
using namespace std::chrono_literals;

/// Holds whoever calls a function, from Hold to Release. Thread-safe.
class Barrier {
public:
    void Pass() {
        std::unique_lock lock{mutex_};
        opened_.wait(lock, [this] { return !held_; });
    }
    void Hold() { Set(true); }
    void Release() { Set(false); }

private:
    void Set(bool held) {
        const std::lock_guard lock{mutex_};
        held_ = held;
        opened_.notify_all();
    }

    std::mutex mutex_ = {};
    std::condition_variable opened_ = {};
    bool held_ = false;
};

Barrier& Unsubscribing() {
    static Barrier& barrier = *new Barrier;  // as long as any thread
    return barrier;
}

Barrier& Destroying() {
    static Barrier& barrier = *new Barrier;
    return barrier;
}

/// Holds a barrier for as long as it lives.
class Held {
public:
    explicit Held(Barrier& barrier) : barrier_(barrier) { barrier_.Hold(); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() { barrier_.Release(); }

private:
    Barrier& barrier_;
};

template <typename Function>
Function* Real(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

rd_kafka_resp_err_t rd_kafka_unsubscribe(rd_kafka_t* rk) {
    if (const auto tell = mq::test::kafka::before_unsubscribe.load()) tell(rk);
    Unsubscribing().Pass();
    return Real<decltype(rd_kafka_unsubscribe)>("rd_kafka_unsubscribe")(rk);
}

void rd_kafka_destroy_flags(rd_kafka_t* rk, int flags) {
    // What a test makes itself is another matter.
    if (flags == RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE) Destroying().Pass();
    Real<decltype(rd_kafka_destroy_flags)>("rd_kafka_destroy_flags")(rk, flags);
}

}  // extern "C"

TEST_CASE("Kafka: a client comes to an end where librdkafka does not, and the log says so",
          "[kafka][mock]") {
    MockCluster mock;
    const auto destination = Fresh();
    mock.CreateTopic(destination->address, 1);
    const std::size_t before = Abandoned::Count();
    const auto log = std::make_unique<mq::test::RecordingLog>();
    mq::test::RecordingSink sink;
    auto backend = mq::test::MakeBackend(mock.url(), sink, {}, log->Sink());
    backend->MakePublisher(destination)->Publish(mq::test::MakePublication("x"));
    REQUIRE(sink.WaitForConfirmed(1));
    const auto receiver = std::make_shared<RecordingReceiver>();
    auto consumer = backend->Subscribe({destination, Group(), 1}, receiver);
    REQUIRE(receiver->WaitForMessages(1));
    {
        const Held unsubscribing{Unsubscribing()};
        const Held destroying{Destroying()};
        const auto begun = mq::backend::Clock::now();
        consumer->Stop();
        consumer->Close(mq::test::After(100ms));
        CHECK(mq::backend::Clock::now() - begun < 10s);
        backend->Close(mq::test::After(100ms));
        consumer.reset();
        backend.reset();
        CHECK(mq::backend::Clock::now() - begun < 10s + mq::kafka::detail::Backend::kLongestEnd);
        CHECK(Abandoned::Count() > before);
        CHECK(log->WaitForLine("librdkafka does not give back the thread of the consumer", 0ms));
        CHECK(log->WaitForLine("librdkafka has not ended a producer within ", 0ms));
    }
    // Nobody hears of what goes on after that, and it ends when it can.
    const std::size_t lines = log->Lines().size();
    CHECK(Eventually([&] { return Abandoned::Count() == before; }));
    CHECK(log->Lines().size() == lines);
}
