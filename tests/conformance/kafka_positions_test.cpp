/// @file kafka_positions_test.cpp
/// The Kafka adapter where the positions of a group and the log that they are about do not fit
/// together: the log was lost, a topic made anew or deleted, positions have expired. And topics that
/// are not to be made.
#include "../support/catch.hpp"
#include "../support/kafka_fixture.hpp"

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using mq::ErrorCode;
using mq::Outcome;
using mq::backend::Backlog;
using mq::test::After;
using mq::test::MakeDestination;
using mq::test::MakePublication;
using mq::test::MockCluster;
using mq::test::Receive;
using mq::test::RecordingReceiver;
using namespace mq::test::kafka;
using namespace std::chrono_literals;
using Phase = mq::backend::ConsumerState::Phase;
template <typename Type>
using Owned = mq::kafka::detail::Owned<Type>;

/// What an operator does with the broker's own tools.
class Operator {
public:
    explicit Operator(const std::string& url) {
        rd_kafka_conf_t* const conf = rd_kafka_conf_new();
        std::array<char, 256> text{};
        const std::string servers = url.substr(url.find("://") + 3);
        if (rd_kafka_conf_set(conf, "bootstrap.servers", servers.c_str(), text.data(), text.size()) !=
            RD_KAFKA_CONF_OK) {
            throw std::runtime_error(text.data());
        }
        // As mq::kafka's own: see Properties::Required.
        rd_kafka_conf_set(conf, "group.id", "operator", text.data(), text.size());
        rd_kafka_conf_set_log_cb(conf, nullptr);
        rk_ = rd_kafka_new(RD_KAFKA_CONSUMER, conf, text.data(), text.size());
        if (rk_ == nullptr) throw std::runtime_error(text.data());
        queue_.reset(rd_kafka_queue_new(rk_));
    }
    ~Operator() {
        queue_.reset();
        rd_kafka_destroy(rk_);
    }
    Operator(const Operator&) = delete;
    Operator& operator=(const Operator&) = delete;

    /// Also where a topic of the name is still being deleted.
    void Create(const std::string& topic, int partitions,
                const std::map<std::string, std::string>& config = {}) {
        std::array<char, 256> text{};
        const Owned<rd_kafka_NewTopic_t> wanted{
            rd_kafka_NewTopic_new(topic.c_str(), partitions, 1, text.data(), text.size())};
        for (const auto& [name, value] : config) {
            REQUIRE(rd_kafka_NewTopic_set_config(wanted.get(), name.c_str(), value.c_str()) ==
                    RD_KAFKA_RESP_ERR_NO_ERROR);
        }
        REQUIRE(Eventually([&] {
            rd_kafka_NewTopic_t* all = wanted.get();
            rd_kafka_CreateTopics(rk_, &all, 1, nullptr, queue_.get());
            const auto answer = Await();
            std::size_t count = 0;
            const auto* const topics = rd_kafka_CreateTopics_result_topics(
                rd_kafka_event_CreateTopics_result(answer.get()), &count);
            return count == 1 && rd_kafka_topic_result_error(topics[0]) == RD_KAFKA_RESP_ERR_NO_ERROR;
        }));
    }

    /// The broker forgets the positions of a group on a topic that none of its members has.
    void DeletePositions(const std::string& group, const std::string& topic) {
        REQUIRE(Eventually([&] {
            const auto list = mq::kafka::detail::MakeList(1);
            rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), 0);
            rd_kafka_DeleteConsumerGroupOffsets_t* it =
                rd_kafka_DeleteConsumerGroupOffsets_new(group.c_str(), list.get());
            rd_kafka_DeleteConsumerGroupOffsets(rk_, &it, 1, nullptr, queue_.get());
            const auto answer = Await();
            rd_kafka_DeleteConsumerGroupOffsets_destroy(it);
            return Committed(group, topic) < 0;
        }));
    }

    void Delete(const std::string& topic) {
        rd_kafka_DeleteTopic_t* it = rd_kafka_DeleteTopic_new(topic.c_str());
        rd_kafka_DeleteTopics(rk_, &it, 1, nullptr, queue_.get());
        const auto answer = Await();
        rd_kafka_DeleteTopic_destroy(it);
        std::size_t count = 0;
        const auto* const topics = rd_kafka_DeleteTopics_result_topics(
            rd_kafka_event_DeleteTopics_result(answer.get()), &count);
        REQUIRE(count == 1);
        REQUIRE(rd_kafka_topic_result_error(topics[0]) == RD_KAFKA_RESP_ERR_NO_ERROR);
    }

    /// The broker forgets the positions of a group that nobody is in, as it does by itself after a
    /// week.
    void DeleteGroup(const std::string& group) {
        REQUIRE(Eventually([&] {
            rd_kafka_DeleteGroup_t* it = rd_kafka_DeleteGroup_new(group.c_str());
            rd_kafka_DeleteGroups(rk_, &it, 1, nullptr, queue_.get());
            const auto answer = Await();
            rd_kafka_DeleteGroup_destroy(it);
            std::size_t count = 0;
            const auto* const groups = rd_kafka_DeleteGroups_result_groups(
                rd_kafka_event_DeleteGroups_result(answer.get()), &count);
            return count == 1 && rd_kafka_group_result_error(groups[0]) == nullptr;
        }));
    }

    /// What a group has committed for partition 0; -1001 for nothing.
    std::int64_t Committed(const std::string& group, const std::string& topic) {
        const auto list = mq::kafka::detail::MakeList(1);
        rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), 0);
        const Owned<rd_kafka_ListConsumerGroupOffsets_t> question{
            rd_kafka_ListConsumerGroupOffsets_new(group.c_str(), list.get())};
        rd_kafka_ListConsumerGroupOffsets_t* all = question.get();
        rd_kafka_ListConsumerGroupOffsets(rk_, &all, 1, nullptr, queue_.get());
        const auto answer = Await();
        std::size_t count = 0;
        const auto* const groups = rd_kafka_ListConsumerGroupOffsets_result_groups(
            rd_kafka_event_ListConsumerGroupOffsets_result(answer.get()), &count);
        REQUIRE(count == 1);
        const auto* const offsets = rd_kafka_group_result_partitions(groups[0]);
        REQUIRE(offsets != nullptr);
        REQUIRE(offsets->cnt == 1);
        return offsets->elems[0].offset;
    }

    /// Sets what a group that nobody is in has committed for partition 0.
    void SetCommitted(const std::string& group, const std::string& topic, std::int64_t offset) {
        const auto list = mq::kafka::detail::MakeList(1);
        rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), 0)->offset = offset;
        rd_kafka_AlterConsumerGroupOffsets_t* it =
            rd_kafka_AlterConsumerGroupOffsets_new(group.c_str(), list.get());
        rd_kafka_AlterConsumerGroupOffsets(rk_, &it, 1, nullptr, queue_.get());
        const auto answer = Await();
        rd_kafka_AlterConsumerGroupOffsets_destroy(it);
        REQUIRE(Committed(group, topic) == offset);
    }

private:
    Owned<rd_kafka_event_t> Await() {
        Owned<rd_kafka_event_t> event{rd_kafka_queue_poll(queue_.get(), 30'000)};
        REQUIRE(event != nullptr);
        INFO(rd_kafka_event_error_string(event.get()));
        REQUIRE(rd_kafka_event_error(event.get()) == RD_KAFKA_RESP_ERR_NO_ERROR);
        return event;
    }

    rd_kafka_t* rk_ = nullptr;
    Owned<rd_kafka_queue_t> queue_ = {};
};

const std::map<std::string, std::string> kOnePartition{{"partitions", "1"}};

}  // namespace

TEST_CASE("Kafka: a group whose positions have expired is known to who has seen it", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    Operator tools{url};
    Client client{url, kOnePartition};
    client.Send(destination, 10);
    {
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(destination, group, receiver);
        REQUIRE(receiver->WaitForMessages(10));
        REQUIRE(Eventually([&] { return tools.Committed(group, destination->address) == 10; }));
        CloseNow(*consumer);
    }
    REQUIRE(Drained(client, *destination, group) == Backlog::Answer::kDrained);
    tools.DeleteGroup(group);
    CHECK(Drained(client, *destination, group) == Backlog::Answer::kDrained);
    // Written again, so that who comes finds it, whoever that is.
    CHECK(tools.Committed(group, destination->address) == 10);
    tools.DeleteGroup(group);
    client.Send(destination, 3);  // of a producer that is late
    const Backlog late = client.backend->CheckBacklog(*destination, group, After(30s));
    CHECK(late.answer == Backlog::Answer::kNotDrained);
    CHECK(late.known);
    CHECK(late.messages == 3);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForMessages(3));
    CHECK(
        Eventually([&] { return Drained(client, *destination, group) == Backlog::Answer::kDrained; }));
    CHECK(receiver->Count() == 3);
    CloseNow(*consumer);
}

TEST_CASE("Kafka: positions of a topic that was made anew are not remembered", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    Operator tools{url};
    tools.Create(destination->address, 1);
    Client client{url, {{"declare", "false"}}};
    client.Send(destination, 10);
    {
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(destination, group, receiver);
        REQUIRE(receiver->WaitForMessages(10));
        CloseNow(*consumer);
    }
    REQUIRE(Drained(client, *destination, group) == Backlog::Answer::kDrained);
    tools.Delete(destination->address);
    tools.Create(destination->address, 1);
    Client producer{url};
    std::size_t sent = 0;
    SECTION("where it is shorter") { sent = 4; }
    SECTION("where it is longer") { sent = 20; }
    producer.Send(destination, sent);
    const Backlog backlog = client.backend->CheckBacklog(*destination, group, After(30s));
    CHECK(backlog.answer == Backlog::Answer::kNotDrained);
    CHECK(backlog.messages == sent);
    CHECK(backlog.known);
}

TEST_CASE("Kafka: positions are kept at the broker while nobody is there to commit them", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto left = Fresh();
    const auto kept = Fresh();
    const std::string group = Group();
    Operator tools{url};
    Client client{url, kOnePartition};
    client.Send(left, 5);
    client.Send(kept, 5);
    const auto stays = std::make_shared<RecordingReceiver>();
    const auto member = client.SubscribeActive(kept, group, stays);
    {
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(left, group, receiver);
        REQUIRE(receiver->WaitForMessages(5));
        CloseNow(*consumer);
    }
    REQUIRE(Drained(client, *left, group) == Backlog::Answer::kDrained);
    // A group that has members has its positions from them alone, also those of other topics.
    CHECK(Eventually([&] { return tools.Committed(group, left->address) == 5; }));
    tools.DeletePositions(group, left->address);
    REQUIRE(tools.Committed(group, left->address) < 0);
    // What the broker refuses, for the group is sharing out its partitions, is written with a later
    // look.
    CHECK(Eventually([&] {
        return Drained(client, *left, group) == Backlog::Answer::kDrained &&
               tools.Committed(group, left->address) == 5;
    }));
    CloseNow(*member);
}

TEST_CASE("Kafka: a topic with more replicas than there are brokers fails at the deadline, and says so",
          "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    Client client{url, {{"replication", "3"}}, 4s};
    const auto destination = Fresh();
    const auto publisher = client.backend->MakePublisher(destination);
    publisher->Publish(MakePublication("x", "", 4s));
    REQUIRE(client.sink.WaitForFailed(1));
    const auto& error = client.sink.At(0).error;
    INFO(error->what());
    CHECK(error->outcome() == Outcome::kNotSent);
    CHECK(Has(error->what(), "replication = 3 is asked for, and the cluster has 1 broker:"));
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.backend->Subscribe({destination, Group(), 1}, receiver);
    // It is tried again: a broker that starts anew looks the same for a moment.
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRetrying));
    REQUIRE(consumer->State().error != nullptr);
    CHECK(Has(consumer->State().error->what(), "replication = 3 is asked for"));
    CloseNow(*consumer);
}

TEST_CASE("Kafka: a topic can be asked how long and how much it keeps", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    Operator tools{url};
    tools.Create(destination->address, 1,
                 {{"retention.ms", "60000"},
                  {"retention.bytes", "1048576"},
                  {"cleanup.policy", "compact,delete"},
                  {"max.message.bytes", "10000"}});
    Client client{url};
    const auto limits = client.backend->AskLimits(*destination, After(30s));
    CHECK(limits.retention == 60s);
    CHECK(limits.retained_bytes == 1048576U);
    CHECK(limits.keeps_only_latest);
    CHECK(limits.message_bytes == 10'000U);
    CHECK(limits.settles_in_order);
    // What is about to be made is made first.
    const auto made = client.backend->AskLimits(*Fresh(), After(30s));
    CHECK(made.retention == std::chrono::hours{7 * 24});
    CHECK_FALSE(made.keeps_only_latest);
}

TEST_CASE("Kafka: a broker that cannot be asked is taken as its options have it", "[kafka][mock]") {
    MockCluster mock;
    Client client{mock.url(), {{"message.max.bytes", "3000"}}};
    mock.Down();
    const auto limits = client.backend->AskLimits(*Fresh(), After(1s));
    CHECK(limits.message_bytes == 3000U);
    CHECK_FALSE(limits.retention);
    mock.Up();
}

// librdkafka 2.0.2 then never comes to an end with the consumer's handle.
TEST_CASE("Kafka: a client whose topic was deleted under its consumer comes to an end", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    Operator tools{url};
    tools.Create(destination->address, 4);
    auto client =
        std::make_unique<Client>(url, std::map<std::string, std::string>{{"declare", "false"}});
    client->Send(destination, 4);
    const auto receiver = std::make_shared<RecordingReceiver>();
    auto consumer = client->SubscribeActive(destination, Group(), receiver);
    REQUIRE(receiver->WaitForMessages(4));
    tools.Delete(destination->address);
    REQUIRE(receiver->WaitForPhase(*consumer, Phase::kRefused));
    const auto begun = mq::backend::Clock::now();
    CloseNow(*consumer);
    consumer.reset();
    client.reset();
    CHECK(mq::backend::Clock::now() - begun < 10s + mq::kafka::detail::Backend::kLongestEnd);
}

TEST_CASE("Kafka: what is handled after a topic was made anew is committed, though it lies below",
          "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    Operator tools{url};
    Client client{url, kOnePartition};
    client.Send(destination, 1000);
    const auto receiver = std::make_shared<RecordingReceiver>();
    const auto consumer = client.SubscribeActive(destination, group, receiver);
    REQUIRE(receiver->WaitForMessages(1000));
    REQUIRE(Eventually([&] { return tools.Committed(group, destination->address) == 1000; }));
    tools.Delete(destination->address);
    tools.Create(destination->address, 1);
    Client producer{url};
    producer.Send(destination, 300);
    REQUIRE(receiver->WaitForMessages(1300));
    CHECK(Eventually([&] { return tools.Committed(group, destination->address) == 300; }));
    CHECK(Drained(client, *destination, group) == Backlog::Answer::kDrained);
    CloseNow(*consumer);
}

TEST_CASE("Kafka: a member that begins below what was committed commits that it does", "[kafka]") {
    const std::string url = RealUrl();
    if (url.empty()) return;
    const auto destination = Fresh();
    const std::string group = Group();
    Operator tools{url};
    tools.Create(destination->address, 1);
    tools.SetCommitted(group, destination->address, 1000);
    Client client{url};
    client.Send(destination, 10);
    SECTION("so that nothing is skipped that comes before the old position is reached") {
        const auto receiver = std::make_shared<RecordingReceiver>();
        const auto consumer = client.SubscribeActive(destination, group, receiver);
        REQUIRE(receiver->WaitForMessages(10));
        CHECK(Eventually([&] { return tools.Committed(group, destination->address) == 10; }));
        client.Send(destination, 10);
        CHECK(Eventually([&] { return tools.Committed(group, destination->address) == 20; }));
        CloseNow(*consumer);
    }
    SECTION("and until then its messages are left") {
        const Backlog backlog = client.backend->CheckBacklog(*destination, group, After(30s));
        CHECK(backlog.answer == Backlog::Answer::kNotDrained);
        CHECK(backlog.messages == 10);
        CHECK(backlog.known);
    }
    SECTION("and its own position counts, though it is the lower one") {
        const auto receiver = std::make_shared<RecordingReceiver>(Receive::kHold);
        const auto consumer = client.SubscribeActive(destination, group, receiver);
        REQUIRE(receiver->WaitForHeld(10));
        const Backlog backlog = client.backend->CheckBacklog(*destination, group, After(30s));
        CHECK(backlog.answer == Backlog::Answer::kNotDrained);
        CHECK(backlog.messages == 10);
        receiver->SettleHeld();
        CloseNow(*consumer);
    }
}
