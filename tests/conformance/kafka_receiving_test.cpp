/// @file kafka_receiving_test.cpp
/// The Kafka adapter's receiving side: members of a group beside each other, and what stands still.
#include "../support/catch.hpp"
#include "../support/kafka_calls.hpp"
#include "../support/kafka_fixture.hpp"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

// The consumer that was made last, which no test gets to see otherwise.
std::atomic<rd_kafka_t*> last_consumer{nullptr};
// One of whose group's thread no answer comes.
std::atomic<rd_kafka_t*> silent{nullptr};
// How often that was called with what would have waited for it for ever.
std::atomic<int> lost_calls{0};

void CountLost(const rd_kafka_t* rk) {
    if (rk == silent.load()) ++lost_calls;
}

template <typename Function>
Function* RealOne(Function* /*mine*/, const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// These stand before librdkafka's own, which they call.
extern "C" rd_kafka_resp_err_t rd_kafka_poll_set_consumer(rd_kafka_t* rk) {
    static const auto real = RealOne(&rd_kafka_poll_set_consumer, "rd_kafka_poll_set_consumer");
    last_consumer.store(rk);
    return real(rk);
}

extern "C" rd_kafka_resp_err_t rd_kafka_commit_queue(
    rd_kafka_t* rk, const rd_kafka_topic_partition_list_t* offsets, rd_kafka_queue_t* rkqu,
    void (*cb)(rd_kafka_t*, rd_kafka_resp_err_t, rd_kafka_topic_partition_list_t*, void*),
    void* opaque) {
    static const auto real = RealOne(&rd_kafka_commit_queue, "rd_kafka_commit_queue");
    return rk == silent.load() ? RD_KAFKA_RESP_ERR_NO_ERROR : real(rk, offsets, rkqu, cb, opaque);
}

namespace {

using mq::ErrorCode;
using mq::backend::ConsumerState;
using mq::kafka::detail::Destroy;
using mq::kafka::detail::MakeList;
using mq::kafka::detail::Owned;
using mq::test::After;
using mq::test::MakeDestination;
using mq::test::MakePublication;
using mq::test::MockCluster;
using mq::test::RecordingReceiver;
using mq::test::Stays;
using namespace mq::test::kafka;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Options = std::map<std::string, std::string>;
using Phase = ConsumerState::Phase;

// The mock lets a group that has members rebalance only when their session is nearly over.
Options Quick() { return {{"session.timeout.ms", "4000"}, {"heartbeat.interval.ms", "200"}}; }

bool HasLine(const Client& client, const std::string& part) {
    for (const auto& [level, line] : client.log.Lines()) {
        if (line.find(part) != std::string::npos) return true;
    }
    return false;
}

std::size_t CountLines(const Client& client, const std::string& part) {
    std::size_t count = 0;
    for (const auto& [level, line] : client.log.Lines()) {
        count += line.find(part) != std::string::npos ? 1U : 0U;
    }
    return count;
}

// Has partition 0 fetch nothing any more, and nothing tells the adapter, as with a defect of the
// library.
void PauseBehindItsBack(const std::string& topic) {
    const auto list = MakeList();  // not kept: it holds what the consumer's end waits for
    rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), 0);
    REQUIRE(rd_kafka_pause_partitions(last_consumer.load(), list.get()) == RD_KAFKA_RESP_ERR_NO_ERROR);
}

// A handle of another program's.
class Raw {
public:
    Raw(const std::string& url, rd_kafka_type_t type, const Options& properties = {}) : type_(type) {
        rd_kafka_conf_t* const conf = rd_kafka_conf_new();
        std::array<char, 256> text{};
        rd_kafka_conf_set(conf, "bootstrap.servers", url.substr(url.find("://") + 3).c_str(), nullptr,
                          0);
        for (const auto& [name, value] : properties) {
            REQUIRE(rd_kafka_conf_set(conf, name.c_str(), value.c_str(), text.data(), text.size()) ==
                    RD_KAFKA_CONF_OK);
        }
        rd_kafka_conf_set_log_cb(conf, nullptr);
        rk_ = rd_kafka_new(type, conf, text.data(), text.size());
        if (rk_ == nullptr) throw std::runtime_error(text.data());
    }
    Raw(const Raw&) = delete;
    Raw& operator=(const Raw&) = delete;
    ~Raw() {
        if (type_ == RD_KAFKA_CONSUMER) rd_kafka_consumer_close(rk_);
        rd_kafka_destroy(rk_);
    }

    [[nodiscard]] rd_kafka_t* get() const { return rk_; }

    // Joins its group and waits for a message of the topic.
    void Receive(const std::string& topic) const {
        const auto list = MakeList();
        rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), RD_KAFKA_PARTITION_UA);
        REQUIRE(rd_kafka_subscribe(rk_, list.get()) == RD_KAFKA_RESP_ERR_NO_ERROR);
        const auto deadline = After(mq::test::kPatience);
        while (Clock::now() < deadline) {
            const Owned<rd_kafka_message_t> message{rd_kafka_consumer_poll(rk_, 100)};
            if (message != nullptr && message->err == RD_KAFKA_RESP_ERR_NO_ERROR) return;
        }
        FAIL("no message has come");
    }

    void Produce(const std::string& topic, std::int32_t partition, const std::string& body) const {
        const Owned<rd_kafka_topic_t> handle{rd_kafka_topic_new(rk_, topic.c_str(), nullptr)};
        REQUIRE(Eventually([&] {
            return rd_kafka_produce(handle.get(), partition, RD_KAFKA_MSG_F_COPY,
                                    const_cast<char*>(body.data()), body.size(), nullptr, 0,
                                    nullptr) == 0;
        }));
        REQUIRE(rd_kafka_flush(rk_, 20'000) == RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    // One request of the admin API, which succeeds.
    template <typename Call>
    void Administer(rd_kafka_admin_op_t kind, Call call) const {
        const Owned<rd_kafka_AdminOptions_t> options{rd_kafka_AdminOptions_new(rk_, kind)};
        const Owned<rd_kafka_queue_t> queue{rd_kafka_queue_new(rk_)};
        call(options.get(), queue.get());
        const Owned<rd_kafka_event_t> event{rd_kafka_queue_poll(queue.get(), 30'000)};
        REQUIRE(event != nullptr);
        REQUIRE(rd_kafka_event_error(event.get()) == RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    void AddPartitions(const std::string& topic, std::size_t total) const {
        std::array<char, 256> text{};
        rd_kafka_NewPartitions_t* wanted =
            rd_kafka_NewPartitions_new(topic.c_str(), total, text.data(), text.size());
        Administer(RD_KAFKA_ADMIN_OP_CREATEPARTITIONS, [&](const auto* options, auto* queue) {
            rd_kafka_CreatePartitions(rk_, &wanted, 1, options, queue);
        });
        rd_kafka_NewPartitions_destroy(wanted);
    }

    void DeleteBefore(const std::string& topic, std::int32_t partition, std::int64_t offset) const {
        const auto list = MakeList();
        rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), partition)->offset = offset;
        rd_kafka_DeleteRecords_t* wanted = rd_kafka_DeleteRecords_new(list.get());
        Administer(RD_KAFKA_ADMIN_OP_DELETERECORDS, [&](const auto* options, auto* queue) {
            rd_kafka_DeleteRecords(rk_, &wanted, 1, options, queue);
        });
        rd_kafka_DeleteRecords_destroy(wanted);
    }

private:
    const rd_kafka_type_t type_;
    rd_kafka_t* rk_ = nullptr;
};

}  // namespace

TEST_CASE("Kafka: partitions that librdkafka does not begin with get another consumer", "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), Quick()};
    const auto destination = Fresh();
    mock.CreateTopic(destination->address, 2);
    client.Send(destination, 5);
    // A coordinator that is none any more when it is asked for the positions: librdkafka 2.0.2 says so,
    // and never fetches.
    mock.FailWith(MockCluster::kOffsetFetch, RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, Group(), receiver);
    REQUIRE(receiver->WaitForMessages(5));
    CHECK(client.log.WaitForLine("is replaced"));
    CloseNow(*consumer);
}

TEST_CASE("Kafka: a partition that gives nothing has its consumer replaced, and is said to stand still",
          "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), Quick()};
    const auto destination = Fresh();
    mock.CreateTopic(destination->address, 1);
    client.Send(destination, 1);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, Group(), receiver);
    REQUIRE(receiver->WaitForMessages(1));
    REQUIRE(consumer->State().standstill.empty());

    PauseBehindItsBack(destination->address);
    const auto begin = Clock::now();
    client.Send(destination, 5);
    std::string standstill;
    REQUIRE(Eventually([&] {
        standstill = consumer->State().standstill;
        return !standstill.empty();
    }));
    CHECK(Has(standstill, "partition 0 of '" + destination->address + "' gives nothing"));
    REQUIRE(receiver->WaitForMessages(6));
    CHECK(Clock::now() - begin < mq::backend::kStandstill);
    CHECK(Eventually([&] { return consumer->State().standstill.empty(); }));
    CHECK(receiver->WaitForPhase(*consumer, Phase::kActive));
    CHECK(CountLines(client, "its consumer is replaced") == 1);
    CloseNow(*consumer);
}

TEST_CASE("Kafka: a consumer whose library does not answer is given up and replaced", "[kafka]") {
    MockCluster mock;
    Client client{mock.url(), Quick()};
    const auto destination = Fresh();
    mock.CreateTopic(destination->address, 1);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, Group(), receiver);
    before_unsubscribe = &CountLost;
    silent = last_consumer.load();
    REQUIRE(Eventually([&] { return !consumer->State().standstill.empty(); }));
    CHECK(Has(consumer->State().standstill, "librdkafka has not answered"));
    CHECK(Eventually([&] { return last_consumer != silent; }));
    CHECK(lost_calls == 0);
    const auto begin = Clock::now();
    CloseNow(*consumer);
    CHECK(Clock::now() - begin < mq::test::kPrompt + 5s);
}

TEST_CASE("Kafka: members of one group with different topics share out what is theirs", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    // librdkafka before 2.6.1 computes for ever with its cooperative assignor; see assignors.hpp.
    constexpr std::size_t kMany = 10;
    constexpr std::size_t kFew = 3;
    const auto many = Fresh();
    const auto few = Fresh();
    const std::string group = Group();
    Client producer{url, {{"partitions", "10"}}};
    Client other_producer{url, {{"partitions", "5"}}};
    producer.Send(many, 100);
    other_producer.Send(few, 100);
    const auto receiver = std::make_shared<RecordingReceiver>();
    std::vector<std::unique_ptr<Client>> clients;
    std::vector<std::unique_ptr<mq::backend::Consumer>> consumers;
    for (std::size_t i = 0; i < kMany + kFew; ++i) {
        clients.push_back(std::make_unique<Client>(url, Options{{"heartbeat.interval.ms", "200"}}));
        consumers.push_back(clients.back()->Subscribe(i < kMany ? many : few, group, receiver));
        REQUIRE(receiver->WaitForPhase(*consumers.back(), Phase::kActive, 60s));
    }
    const std::size_t before = receiver->Count();
    producer.Send(many, 100);
    other_producer.Send(few, 100);
    CHECK(receiver->WaitForMessages(before + 200, 60s));
    for (const auto& consumer : consumers) consumer->Stop();
    for (const auto& consumer : consumers) consumer->Close(After(1s));
}

TEST_CASE("Kafka: a member joins a group that shares out its partitions otherwise", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    const bool cooperative = mq::kafka::CooperativeIsSound(rd_kafka_version());
    const std::string theirs = cooperative ? "range" : "cooperative-sticky";
    Client client{url};
    client.Send(destination, 10);
    const Raw member{url,
                     RD_KAFKA_CONSUMER,
                     {{"group.id", group},
                      {"heartbeat.interval.ms", "200"},
                      {"partition.assignment.strategy", theirs},
                      {"auto.offset.reset", "earliest"}}};
    member.Receive(destination->address);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.Subscribe(destination, group, receiver);
    std::atomic<bool> done{false};
    std::thread poller{[&] {  // who does not poll holds up the group
        while (!done) Owned<rd_kafka_message_t>{rd_kafka_consumer_poll(member.get(), 100)};
    }};
    const bool active = receiver->WaitForPhase(*consumer, Phase::kActive);
    done = true;
    poller.join();
    CHECK(active);
    CHECK(HasLine(client, "has members that share out its partitions otherwise"));
    CloseNow(*consumer);
}

TEST_CASE("Kafka: an assignor that is asked for is kept, and warned of where it can hang", "[kafka]") {
    MockCluster mock;
    const bool sound = mq::kafka::CooperativeIsSound(rd_kafka_version());
    const Client chosen{mock.url(), {{"partition.assignment.strategy", "cooperative-sticky"}}};
    CHECK(HasLine(chosen, "can hang") == !sound);
    const Client preferred{mock.url()};
    CHECK_FALSE(HasLine(preferred, "can hang"));
}

TEST_CASE("Kafka: of two consumers with one group.instance.id, the first gives way", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    const Options options{{"group.instance.id", "us"}, {"session.timeout.ms", "15000"}};
    Client first{url, options};
    Client second{url, options};
    first.Send(destination, 20);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = first.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForMessages(20));
    // Committed, as another process sees it.
    REQUIRE(Eventually([&] {
        return Drained(second, *destination, group) == mq::backend::Backlog::Answer::kDrained;
    }));

    const auto other = std::make_shared<RecordingReceiver>();
    const auto newer = second.SubscribeActive(destination, group, other);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    CHECK(Has(consumer->State().error->what(), "group.instance.id 'us'"));
    first.Send(destination, 20);
    REQUIRE(other->WaitForMessages(20));
    // Longer than it waited at first, and it has not come back: nobody was driven out once more.
    CHECK(Stays([&] { return consumer->State().phase == Phase::kRefused; }, 14s));
    CHECK(CountLines(first, "gives way") == 1);
    CHECK(receiver->Count() + other->Count() == 40);

    CloseNow(*newer);  // a static member does not leave: its place is free after its session
    CHECK(receiver->WaitForPhase(*consumer, Phase::kActive, 60s));
    CloseNow(*consumer);
}

TEST_CASE("Kafka: further topics of a group that has been joined cost no second each", "[kafka]") {
    const AnyKafka kafka;
    Client client{kafka.url(), kafka.options()};
    constexpr std::size_t kTopics = 12;
    const std::string group = Group();
    std::vector<DestinationPtr> destinations;
    for (std::size_t i = 0; i < kTopics; ++i) {
        destinations.push_back(Fresh());
        client.Send(destinations.back(), 1);
    }
    const auto receiver = std::make_shared<RecordingReceiver>();
    std::vector<std::unique_ptr<mq::backend::Consumer>> consumers;
    consumers.push_back(client.SubscribeActive(destinations[0], group, receiver));
    const auto begin = Clock::now();
    for (std::size_t i = 1; i < kTopics; ++i) {
        consumers.push_back(client.SubscribeActive(destinations[i], group, receiver));
    }
    CHECK(Clock::now() - begin < (kTopics - 1) * 500ms);
    CHECK(receiver->WaitForMessages(kTopics));
    for (const auto& consumer : consumers) consumer->Stop();
    for (const auto& consumer : consumers) consumer->Close(After(5s));
}

TEST_CASE("Kafka: partitions that are added to a topic are read before long", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    Client client{url, {{"partitions", "1"}}};
    const auto destination = Fresh();
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, Group(), receiver);
    const Raw producer{url, RD_KAFKA_PRODUCER, {{"topic.metadata.refresh.interval.ms", "100"}}};
    producer.AddPartitions(destination->address, 2);
    producer.Produce(destination->address, 1, "new");
    CHECK(receiver->WaitForMessages(
        1, std::chrono::duration_cast<std::chrono::milliseconds>(mq::backend::kStandstill)));
    CloseNow(*consumer);
}

TEST_CASE("Kafka: messages that the broker has removed unhandled are counted", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    Client client{url, {{"partitions", "1"}}};
    const auto destination = Fresh();
    const std::string group = Group();
    client.Send(destination, 10);
    {
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(destination, group, receiver);
        REQUIRE(receiver->WaitForMessages(10));
        CloseNow(*consumer);
    }
    CHECK_FALSE(HasLine(client, "are lost to it"));
    client.Send(destination, 90);
    const Raw admin{url, RD_KAFKA_PRODUCER};
    admin.DeleteBefore(destination->address, 0, 50);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForMessages(50));
    CHECK(client.log.WaitForLine("up to 40 messages of partition 0 of '" + destination->address +
                                 "' (offsets 10 to 49) are lost to it"));
    // A group that was never there has lost nothing.
    const auto fresh = std::make_shared<RecordingReceiver>();
    const auto newcomer = client.SubscribeActive(destination, Group(), fresh);
    REQUIRE(fresh->WaitForMessages(50));
    CHECK(CountLines(client, "are lost to it") == 1);
    CloseNow(*consumer);
    CloseNow(*newcomer);
}
