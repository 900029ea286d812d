/// @file admin.hpp
/// Topics and groups: made, and asked about.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/handle.hpp>
#include <mq/backends/kafka/native.hpp>
#include <mq/backends/kafka/questions.hpp>
#include <mq/detail/backoff.hpp>
#include <mq/detail/signal.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mq::kafka::detail {

/// Topics and groups, asked about and made over a handle of their own, which is connected at first use.
/// Every call blocks until its deadline at most, and fails at once while no broker can be reached.
class Admin {
public:
    /// What became of a topic.
    struct Verdict {
        ErrorPtr error = {};   ///< Null where it exists.
        bool created = false;  ///< Just now.
        bool last = true;      ///< Else it is tried again, and there will be another verdict.
    };
    using Ensured = std::function<void(const Verdict&)>;
    /// Until when something is tried again; asked for each time.
    using Until = std::function<Clock::time_point()>;

    explicit Admin(std::shared_ptr<const Broker> broker) : broker_(std::move(broker)) {}

    Admin(const Admin&) = delete;
    Admin& operator=(const Admin&) = delete;
    ~Admin() { Close(); }

    /// Sees that a topic exists, creating it where the options say so, and calls `done` on a thread of
    /// its own with no lock held; not at all after Close. What fails in a way that passes by itself is
    /// tried again until `until`, and `done` is called each time; without one, it is tried once. Never
    /// blocks. Thread-safe.
    void Ensure(std::string topic, Ensured done, Until until = {}) {
        const std::lock_guard lock{mutex_};
        if (closing_) return;
        jobs_[std::move(topic)].emplace_back(std::move(done), std::move(until));
        StartLocked();
    }

    /// The same, and waits for the verdict until the deadline at most. Thread-safe.
    void EnsureNow(std::string topic, Clock::time_point deadline) {
        const auto answered = std::make_shared<mq::detail::Signal>();
        const auto seen = answered->Generation();
        Ensure(std::move(topic), [answered](const Verdict&) { answered->Raise(); });
        answered->WaitChange(seen, deadline);
    }

    /// Ensure for a topic whose messages do not go out, not more than once in a second. The broker
    /// should know it by then. Never blocks. Thread-safe.
    void LookAfter(const std::string& topic, std::chrono::milliseconds patience) {
        const auto now = Clock::now();
        {
            const std::lock_guard lock{mutex_};
            Clock::time_point& next = look_after_[topic];
            if (now < next) return;
            next = now + kLookAfter;
        }
        Ensure(
            topic, [](const Verdict&) {}, [until = now + patience] { return until; });
    }

    /// Runs `task` on the same thread, with no lock held; not at all after Close. It blocks for some
    /// seconds at most, and throws nothing. Never blocks. Thread-safe.
    void Post(std::function<void()> task) {
        const std::lock_guard lock{mutex_};
        if (closing_) return;
        tasks_.push_back(std::move(task));
        StartLocked();
    }

    /// Why a topic could not be made or found, when that was tried last; null where it could, or nobody
    /// has tried. Thread-safe.
    [[nodiscard]] ErrorPtr TroubleOf(const std::string& topic) const {
        const std::lock_guard lock{mutex_};
        const auto trouble = troubles_.find(topic);
        return trouble == troubles_.end() ? nullptr : trouble->second;
    }

    /// How many partitions a topic has; nothing where it does not exist. What this client has seen
    /// there once may be hidden by a broker that starts: that it is gone is believed after kHidden. An
    /// answer that is no older than `age` may be reused. Thread-safe.
    /// @throws Error where the broker did not answer, or what it says cannot be.
    std::optional<int> PartitionCount(const std::string& topic, Clock::time_point deadline,
                                      milliseconds age = milliseconds{0}) {
        {
            const std::lock_guard lock{mutex_};
            const auto known = partitions_.find(topic);
            if (known != partitions_.end() && Clock::now() - known->second.asked < age) {
                return known->second.count;
            }
        }
        const auto handle = Connected(deadline);
        const auto count = AskMetadata(*handle, topic, deadline);
        const std::lock_guard lock{mutex_};
        const int known = count.value_or(0);
        const auto seen = seen_.find(topic);
        if (seen != seen_.end() && known < seen->second.most && !seen->second.BelieveLess()) {
            throw MakeError(*broker_, "asking for '" + topic + "'",
                            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
                            "the broker knows " + std::to_string(known) + " of the " +
                                std::to_string(seen->second.most) + " partitions that it had");
        }
        if (seen != seen_.end()) seen->second = {known, {}};
        partitions_[topic] = {count, Clock::now()};
        return count;
    }

    /// For each partition, where the log ends (RD_KAFKA_OFFSET_END) or begins
    /// (RD_KAFKA_OFFSET_BEGINNING), or the first message that is no older than a moment, in
    /// milliseconds of the wall clock; negative where there is none. Thread-safe.
    /// @throws Error where the broker did not answer.
    std::vector<std::int64_t> Watermarks(const std::string& topic, int count, std::int64_t which,
                                         Clock::time_point deadline) {
        const auto handle = Connected(deadline);
        const auto list = AllPartitions(topic, count, which);
        const auto error = rd_kafka_offsets_for_times(handle->get(), list.get(), RemainingMs(deadline));
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR) Forget(topic);
        Check(error, "asking for the offsets of '" + topic + "'");
        return Offsets(*list, count);
    }

    /// For each partition, the position that the group has committed; negative where it has none.
    /// Thread-safe.
    /// @throws Error where the broker did not answer.
    std::vector<std::int64_t> Committed(const std::string& group, const std::string& topic, int count,
                                        Clock::time_point deadline) {
        const auto handle = Connected(deadline);
        const auto list = AllPartitions(topic, count, RD_KAFKA_OFFSET_INVALID);
        const Owned<rd_kafka_ListConsumerGroupOffsets_t> question{
            rd_kafka_ListConsumerGroupOffsets_new(group.c_str(), list.get())};
        rd_kafka_ListConsumerGroupOffsets_t* questions = question.get();
        const auto what = "asking for the positions of group '" + group + "'";
        const auto answer = AskCoordinator(
            handle, RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS, deadline, what,
            [&](const rd_kafka_AdminOptions_t* options, rd_kafka_queue_t* queue) {
                rd_kafka_ListConsumerGroupOffsets(handle->get(), &questions, 1, options, queue);
            });
        std::size_t groups = 0;
        const auto* const result = rd_kafka_ListConsumerGroupOffsets_result_groups(
            rd_kafka_event_ListConsumerGroupOffsets_result(answer.get()), &groups);
        if (groups != 1) Check(RD_KAFKA_RESP_ERR__BAD_MSG, what);
        const auto code = rd_kafka_error_code(rd_kafka_group_result_error(result[0]));
        if (code == RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND) return Offsets(*list, count);
        Check(code, what);
        return Offsets(*rd_kafka_group_result_partitions(result[0]), count);
    }

    /// Writes positions of a group that nobody is in; those below 0 are left out. Thread-safe.
    /// @throws Error where the broker did not answer, or somebody is in the group.
    void SetCommitted(const std::string& group, const std::string& topic,
                      const std::vector<std::int64_t>& positions, Clock::time_point deadline) {
        const auto list = MakeList(positions.size());
        for (std::size_t i = 0; i < positions.size(); ++i) {
            if (positions[i] < 0) continue;
            rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), static_cast<std::int32_t>(i))
                ->offset = positions[i];
        }
        if (list->cnt == 0) return;
        const auto handle = Connected(deadline);
        const Owned<rd_kafka_AlterConsumerGroupOffsets_t> order{
            rd_kafka_AlterConsumerGroupOffsets_new(group.c_str(), list.get())};
        rd_kafka_AlterConsumerGroupOffsets_t* orders = order.get();
        const auto what = "writing the positions of group '" + group + "'";
        const auto answer = AskCoordinator(
            handle, RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS, deadline, what,
            [&](const rd_kafka_AdminOptions_t* options, rd_kafka_queue_t* queue) {
                rd_kafka_AlterConsumerGroupOffsets(handle->get(), &orders, 1, options, queue);
            });
        std::size_t groups = 0;
        const auto* const result = rd_kafka_AlterConsumerGroupOffsets_result_groups(
            rd_kafka_event_AlterConsumerGroupOffsets_result(answer.get()), &groups);
        if (groups != 1) Check(RD_KAFKA_RESP_ERR__BAD_MSG, what);
        Check(rd_kafka_error_code(rd_kafka_group_result_error(result[0])), what);
        const auto* const written = rd_kafka_group_result_partitions(result[0]);
        for (int i = 0; written != nullptr && i < written->cnt; ++i) Check(written->elems[i].err, what);
    }

    /// What the config of a topic says, by the names that Kafka has for it. Thread-safe.
    /// @throws Error where the broker did not answer.
    std::map<std::string, std::string> ConfigOf(const std::string& topic, Clock::time_point deadline) {
        const auto handle = Connected(deadline);
        const auto what = "asking for the config of '" + topic + "'";
        const Owned<rd_kafka_ConfigResource_t> resource{
            rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topic.c_str())};
        rd_kafka_ConfigResource_t* resources = resource.get();
        const auto answer =
            Ask(*handle, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, deadline, what,
                [&](const rd_kafka_AdminOptions_t* options, rd_kafka_queue_t* queue) {
                    rd_kafka_DescribeConfigs(handle->get(), &resources, 1, options, queue);
                });
        std::size_t count = 0;
        const auto* const told = rd_kafka_DescribeConfigs_result_resources(
            rd_kafka_event_DescribeConfigs_result(answer.get()), &count);
        if (count != 1) Check(RD_KAFKA_RESP_ERR__BAD_MSG, what);
        Check(rd_kafka_ConfigResource_error(told[0]), what,
              rd_kafka_ConfigResource_error_string(told[0]));
        const auto* const entries = rd_kafka_ConfigResource_configs(told[0], &count);
        std::map<std::string, std::string> config;
        for (std::size_t i = 0; i < count; ++i) {
            const char* const value = rd_kafka_ConfigEntry_value(entries[i]);
            if (value != nullptr) config.emplace(rd_kafka_ConfigEntry_name(entries[i]), value);
        }
        return config;
    }

    /// The groups that have members. Thread-safe.
    /// @throws Error where the broker did not answer.
    std::vector<std::string> Groups(Clock::time_point deadline) {
        const auto handle = Connected(deadline);
        const auto what = "asking for the groups";
        const auto answer = Ask(*handle, RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPS, deadline, what,
                                [&](const rd_kafka_AdminOptions_t* options, rd_kafka_queue_t* queue) {
                                    rd_kafka_ListConsumerGroups(handle->get(), options, queue);
                                });
        const auto* const result = rd_kafka_event_ListConsumerGroups_result(answer.get());
        std::size_t count = 0;
        // Each broker answers for itself.
        const rd_kafka_error_t** const failed =
            rd_kafka_ListConsumerGroups_result_errors(result, &count);
        if (count > 0) Check(rd_kafka_error_code(failed[0]), what, rd_kafka_error_string(failed[0]));
        const auto* const listed = rd_kafka_ListConsumerGroups_result_valid(result, &count);
        std::vector<std::string> groups;
        for (std::size_t i = 0; i < count; ++i) {
            const auto state = rd_kafka_ConsumerGroupListing_state(listed[i]);
            if (state == RD_KAFKA_CONSUMER_GROUP_STATE_EMPTY) continue;
            if (state == RD_KAFKA_CONSUMER_GROUP_STATE_DEAD) continue;
            groups.emplace_back(rd_kafka_ConsumerGroupListing_group_id(listed[i]));
        }
        return groups;
    }

    /// Has `question` called on a thread that is there for that, one after another; see Questions.
    /// Thread-safe; never blocks.
    bool AskLater(std::function<void()> question) { return questions_.Ask(std::move(question)); }

    /// A partition: its topic and its number.
    using Place = std::pair<std::string, std::int32_t>;

    /// Where partitions end now; those that cannot be told are left out. With `stable` it is where a
    /// consumer of these options ends, before a transaction that is open, say; that is asked over a
    /// handle made for it. Thread-safe.
    /// @throws Error where no broker can be reached.
    std::map<Place, std::int64_t> Ends(const std::vector<Place>& places, bool stable,
                                       Clock::time_point deadline) {
        const auto handle = stable ? MakeStableHandle() : Connected(deadline);
        std::map<Place, std::int64_t> ends;
        if (places.empty() || AskEnds(*handle, places, deadline, ends)) return ends;
        // A topic that cannot be told hides no other.
        std::map<std::string, std::vector<Place>> by_topic;
        for (const Place& place : places) by_topic[place.first].push_back(place);
        for (const auto& [topic, its] : by_topic) {
            if (by_topic.size() == 1 || Clock::now() >= deadline) break;
            AskEnds(*handle, its, std::min(deadline, Clock::now() + kOneTopic), ends);
        }
        return ends;
    }

    /// What the members of a group have, and who they are.
    struct Members {
        std::set<Place> partitions = {};
        std::set<std::string> instances = {};  ///< group.instance.id, of those that have one.
        bool rebalancing = false;
    };

    /// Thread-safe.
    /// @throws Error where the broker did not answer; kUnsupported where it cannot tell.
    Members DescribeAll(const std::string& group, Clock::time_point deadline) {
        const auto handle = Connected(deadline);
        RequireGroupCalls(deadline);
        const char* name = group.c_str();
        const auto what = "asking for the members of group '" + group + "'";
        const auto answer =
            AskCoordinator(handle, RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, deadline, what,
                           [&](const rd_kafka_AdminOptions_t* options, rd_kafka_queue_t* queue) {
                               rd_kafka_DescribeConsumerGroups(handle->get(), &name, 1, options, queue);
                           });
        std::size_t count = 0;
        const auto* const groups = rd_kafka_DescribeConsumerGroups_result_groups(
            rd_kafka_event_DescribeConsumerGroups_result(answer.get()), &count);
        if (count != 1) Check(RD_KAFKA_RESP_ERR__BAD_MSG, what);
        const auto code = rd_kafka_error_code(rd_kafka_ConsumerGroupDescription_error(groups[0]));
        if (code == RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND) return {};
        Check(code, what);
        return MembersOf(*groups[0]);
    }

    /// Which partitions of a topic the members of a group have.
    struct Membership {
        std::set<std::int32_t> partitions = {};
        bool rebalancing = false;  ///< They are being shared out.
    };

    /// Thread-safe.
    /// @throws Error where the broker did not answer; kUnsupported where it cannot tell.
    Membership Describe(const std::string& group, const std::string& topic,
                        Clock::time_point deadline) {
        const auto handle = Connected(deadline);
        RequireGroupCalls(deadline);
        const char* name = group.c_str();
        const auto what = "asking for the members of group '" + group + "'";
        const auto answer =
            AskCoordinator(handle, RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, deadline, what,
                           [&](const rd_kafka_AdminOptions_t* options, rd_kafka_queue_t* queue) {
                               rd_kafka_DescribeConsumerGroups(handle->get(), &name, 1, options, queue);
                           });
        std::size_t count = 0;
        const auto* const groups = rd_kafka_DescribeConsumerGroups_result_groups(
            rd_kafka_event_DescribeConsumerGroups_result(answer.get()), &count);
        if (count != 1) Check(RD_KAFKA_RESP_ERR__BAD_MSG, what);
        const auto code = rd_kafka_error_code(rd_kafka_ConsumerGroupDescription_error(groups[0]));
        if (code == RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND) return {};
        Check(code, what);
        return MembershipOf(*groups[0], topic);
    }

    /// What a metadata answer that asked for one topic says of it: how many partitions it has; nothing
    /// where the broker does not know it.
    /// @throws Error where it says something else: that there is no leader, say, or nothing at all.
    static std::optional<int> PartitionsIn(const Broker& broker, const rd_kafka_metadata_t& metadata,
                                           const std::string& topic) {
        const auto what = "asking for '" + topic + "'";
        const auto odd = [&](const std::string& text) {
            return MakeError(broker, what, RD_KAFKA_RESP_ERR__BAD_MSG, text);
        };
        if (metadata.topic_cnt != 1) {
            throw odd("the answer is about " + std::to_string(metadata.topic_cnt) + " topics");
        }
        const rd_kafka_metadata_topic_t& found = metadata.topics[0];
        if (topic != found.topic) throw odd(std::string{"the answer is about '"} + found.topic + "'");
        if (found.err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) return std::nullopt;
        if (found.err != RD_KAFKA_RESP_ERR_NO_ERROR) throw MakeError(broker, what, found.err);
        if (found.partition_cnt <= 0) throw odd("the answer names no partition");
        return found.partition_cnt;
    }

    /// Ends the handle too, and waits for that until the deadline at most. Nobody asks any more.
    void End(Clock::time_point deadline) noexcept {
        Close();
        unanswered_ = {};
        if (handle_ != nullptr) handle_->End(deadline);
    }

    /// Ends the thread; what it has not done is dropped. Blocks for the request under way, some seconds
    /// at most. Thread-safe.
    void Close() noexcept {
        {
            const std::lock_guard lock{mutex_};
            closing_ = true;
            changed_.notify_all();
        }
        const std::lock_guard joining{join_mutex_};
        questions_.Close();
        if (thread_.joinable()) thread_.join();
    }

private:
    /// What Ensure was asked for.
    struct Job {
        Job(Ensured its_done, Until its_until)
            : done(std::move(its_done)), until(std::move(its_until)) {}

        Ensured done;
        Until until;
        mq::detail::Backoff pause{milliseconds{200}, milliseconds{1000}};
    };
    /// One that is tried again.
    struct Later {
        Clock::time_point due = {};
        std::string topic = {};
        Job job;
    };

    using Jobs = std::map<std::string, std::vector<Job>>;
    using Results = std::map<std::string, Verdict>;

    /// What was last heard of a topic.
    struct Known {
        std::optional<int> count = {};
        Clock::time_point asked = {};
    };

    /// The most partitions that a topic ever had.
    struct Seen {
        int most = 0;
        std::optional<Clock::time_point> less_since = {};  ///< It has had fewer ever since.

        /// The broker says that there are fewer: whether it has done so for long enough.
        bool BelieveLess() {
            const auto now = Clock::now();
            if (!less_since) less_since = now;
            return now - *less_since >= kHidden;
        }
    };

    /// A question to a coordinator that nobody waits for any more.
    struct Unanswered {
        std::shared_ptr<Handle> handle = {};  // outlives the queue
        Owned<rd_kafka_queue_t> queue = {};
        Clock::time_point asked = {};
    };

    /// The right to ask a coordinator, which one thread has at a time.
    class Turn {
    public:
        Turn(Admin& admin, Clock::time_point deadline) : admin_(admin) {
            std::unique_lock lock{admin_.mutex_};
            taken_ = admin_.turn_ended_.wait_until(lock, deadline, [this] { return !admin_.asking_; });
            if (taken_) admin_.asking_ = true;
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn() {
            if (!taken_) return;
            {
                const std::lock_guard lock{admin_.mutex_};
                admin_.asking_ = false;
            }
            admin_.turn_ended_.notify_one();
        }
        [[nodiscard]] bool taken() const noexcept { return taken_; }

    private:
        Admin& admin_;
        bool taken_ = false;
    };

    /// The longest time that librdkafka takes for a request, in milliseconds.
    static constexpr int kForever = 3'600'000;
    /// How long an answer may be missing.
    static constexpr std::chrono::seconds kMissing{10};
    /// How long a topic may be missing, or have fewer partitions than before, while a broker starts.
    static constexpr std::chrono::minutes kHidden{2};
    /// How long a step of Ensure may take.
    static constexpr milliseconds kPatience{3000};
    /// How long one topic of several may take that is asked about by itself.
    static constexpr milliseconds kOneTopic{500};
    /// From so many topics on, all topics of the cluster are asked for in one request.
    static constexpr std::size_t kManyTopics = 8;
    /// How often it is seen whether a topic exists that seems not to.
    static constexpr milliseconds kLookAfter{1000};
    /// How often an unreachable cluster is tried.
    static constexpr milliseconds kRetry{250};

    std::shared_ptr<Handle> GetHandle() {
        const std::lock_guard lock{mutex_};
        if (handle_ == nullptr) {
            // Given up, it ends in the background: whoever has asked does not wait for that.
            handle_ = std::shared_ptr<Handle>{
                new Handle{broker_, Role::kAdmin, Properties::Of(*broker_, Role::kAdmin), nullptr},
                [](Handle* handle) {
                    handle->Release();
                    delete handle;
                }};
        }
        return handle_;
    }

    /// The handle, once a broker is connected. The first time it waits for that; later it fails at once
    /// where there is none, and has librdkafka try again.
    std::shared_ptr<Handle> Connected(Clock::time_point deadline) {
        auto handle = GetHandle();
        rd_kafka_poll(handle->get(), 0);
        if (handle->connectivity().AnyUp()) return handle;
        Kick(*handle);
        if (handle->connectivity().WaitFirst(deadline)) return handle;
        rd_kafka_poll(handle->get(), 0);
        throw handle->Unavailable("no connection");
    }

    // librdkafka connects when something is asked for.
    void Kick(Handle& handle) {
        {
            const std::lock_guard lock{mutex_};
            if (Clock::now() < next_kick_) return;
            next_kick_ = Clock::now() + kRetry;
        }
        const rd_kafka_metadata_t* metadata = nullptr;
        // For all topics: for the local ones, librdkafka lets the broker create what is missing.
        if (rd_kafka_metadata(handle.get(), 1, nullptr, &metadata, 1) == RD_KAFKA_RESP_ERR_NO_ERROR) {
            const Owned<const rd_kafka_metadata_t> owned{metadata};
        }
    }

    /// librdkafka 2.0 aborts the process where a coordinator does not know DescribeGroups, which every
    /// real broker does and a mock cluster does not; not to know ListGroups is reported, and comes with
    /// it.
    /// @throws Error kUnsupported where the brokers do not know them.
    void RequireGroupCalls(Clock::time_point deadline) {
        {
            const std::lock_guard lock{mutex_};
            if (group_calls_) return;
        }
        Groups(deadline);
        const std::lock_guard lock{mutex_};
        group_calls_ = true;
    }

    void Check(rd_kafka_resp_err_t error, const std::string& what, const char* text = nullptr) const {
        if (error == RD_KAFKA_RESP_ERR_NO_ERROR) return;
        throw MakeError(*broker_, what, error, text != nullptr ? text : "");
    }

    static Owned<rd_kafka_topic_partition_list_t> AllPartitions(const std::string& topic, int count,
                                                                std::int64_t offset) {
        auto list = MakeList(static_cast<std::size_t>(count));
        for (int partition = 0; partition < count; ++partition) {
            rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), partition)->offset = offset;
        }
        return list;
    }

    std::vector<std::int64_t> Offsets(const rd_kafka_topic_partition_list_t& list, int count) const {
        std::vector<std::int64_t> offsets(static_cast<std::size_t>(count), RD_KAFKA_OFFSET_INVALID);
        for (int i = 0; i < list.cnt; ++i) {
            const rd_kafka_topic_partition_t& entry = list.elems[i];
            Check(entry.err, std::string{"asking for the offsets of '"} + entry.topic + "'");
            if (entry.partition < count) {
                offsets[static_cast<std::size_t>(entry.partition)] = entry.offset;
            }
        }
        return offsets;
    }

    /// One request of the admin API, and its answer.
    template <typename Request>
    Owned<rd_kafka_event_t> Ask(Handle& handle, rd_kafka_admin_op_t kind, Clock::time_point deadline,
                                const std::string& what, Request request) const {
        const int timeout = std::max(RemainingMs(deadline), 1);
        const auto queue = Begin(handle, kind, timeout, what, std::move(request));
        return Read(Owned<rd_kafka_event_t>{rd_kafka_queue_poll(queue.get(), timeout)}, what);
    }

    /// The same for what the coordinator of a group answers. librdkafka 2.0 aborts the process when it
    /// finds the coordinator after such a request has timed out: rd_kafka_coord_req_fsm reports its end
    /// a second time. So it never does here. Who waits for the answer gives up at the deadline, and
    /// nobody asks anything else until it is there, or until it has been missing for so long that the
    /// handle is given up with it.
    template <typename Request>
    Owned<rd_kafka_event_t> AskCoordinator(const std::shared_ptr<Handle>& handle,
                                           rd_kafka_admin_op_t kind, Clock::time_point deadline,
                                           const std::string& what, Request request) {
        const Turn turn{*this, deadline};
        if (!turn.taken() || !AwaitUnanswered(*handle, deadline)) {
            Check(RD_KAFKA_RESP_ERR__TIMED_OUT, what);
        }
        auto queue = Begin(*handle, kind, kForever, what, std::move(request));
        Owned<rd_kafka_event_t> answer{rd_kafka_queue_poll(queue.get(), RemainingMs(deadline))};
        if (answer == nullptr) unanswered_ = {handle, std::move(queue), Clock::now()};
        return Read(std::move(answer), what);
    }

    /// Whether the handle is free for a question. What it still answers to an earlier one is too old.
    /// In one's turn.
    bool AwaitUnanswered(const Handle& handle, Clock::time_point deadline) {
        if (unanswered_.handle.get() == &handle) {
            const auto missing = unanswered_.asked + kMissing;
            const Owned<rd_kafka_event_t> late{
                rd_kafka_queue_poll(unanswered_.queue.get(), RemainingMs(std::min(deadline, missing)))};
            if (late == nullptr) {
                if (Clock::now() < missing) return false;
                const std::lock_guard lock{mutex_};
                handle_ = nullptr;
            }
            const bool answered = late != nullptr;
            unanswered_ = {};
            return answered;
        }
        unanswered_ = {};
        return true;
    }

    template <typename Request>
    Owned<rd_kafka_queue_t> Begin(Handle& handle, rd_kafka_admin_op_t kind, int timeout,
                                  const std::string& what, Request request) const {
        const Owned<rd_kafka_AdminOptions_t> options{rd_kafka_AdminOptions_new(handle.get(), kind)};
        std::array<char, 256> text{};
        Check(
            rd_kafka_AdminOptions_set_request_timeout(options.get(), timeout, text.data(), text.size()),
            what, text.data());
        Owned<rd_kafka_queue_t> queue{rd_kafka_queue_new(handle.get())};
        request(options.get(), queue.get());
        return queue;
    }

    Owned<rd_kafka_event_t> Read(Owned<rd_kafka_event_t> answer, const std::string& what) const {
        if (answer == nullptr) Check(RD_KAFKA_RESP_ERR__TIMED_OUT, what);
        Check(rd_kafka_event_error(answer.get()), what, rd_kafka_event_error_string(answer.get()));
        return answer;
    }

    /// @throws Error where the broker did not answer, or the topic is not for us.
    std::optional<int> AskMetadata(Handle& handle, const std::string& topic,
                                   Clock::time_point deadline) {
        const Owned<rd_kafka_topic_t> local{rd_kafka_topic_new(handle.get(), topic.c_str(), nullptr)};
        const rd_kafka_metadata_t* metadata = nullptr;
        const auto what = "asking for '" + topic + "'";
        Check(rd_kafka_metadata(handle.get(), 0, local.get(), &metadata, RemainingMs(deadline)), what);
        const Owned<const rd_kafka_metadata_t> owned{metadata};
        const auto count = PartitionsIn(*broker_, *metadata, topic);
        if (count) NoteSeen(topic, *count);
        return count;
    }

    void NoteSeen(const std::string& topic, int count) {
        const std::lock_guard lock{mutex_};
        Seen& seen = seen_[topic];
        if (count >= seen.most) seen = {count, {}};
    }

    void Forget(const std::string& topic) {
        const std::lock_guard lock{mutex_};
        partitions_.erase(topic);
    }

    static void AddPartitions(const rd_kafka_MemberDescription_t& member, const std::string& topic,
                              std::set<std::int32_t>& numbers) {
        const auto* const assignment = rd_kafka_MemberDescription_assignment(&member);
        if (assignment == nullptr) return;
        const auto* const partitions = rd_kafka_MemberAssignment_partitions(assignment);
        if (partitions == nullptr) return;
        for (int i = 0; i < partitions->cnt; ++i) {
            const rd_kafka_topic_partition_t& entry = partitions->elems[i];
            if (topic == entry.topic) numbers.insert(entry.partition);
        }
    }

    static Membership MembershipOf(const rd_kafka_ConsumerGroupDescription_t& group,
                                   const std::string& topic) {
        Membership membership;
        const std::size_t members = rd_kafka_ConsumerGroupDescription_member_count(&group);
        for (std::size_t i = 0; i < members; ++i) {
            AddPartitions(*rd_kafka_ConsumerGroupDescription_member(&group, i), topic,
                          membership.partitions);
        }
        const auto state = rd_kafka_ConsumerGroupDescription_state(&group);
        membership.rebalancing = state == RD_KAFKA_CONSUMER_GROUP_STATE_PREPARING_REBALANCE ||
                                 state == RD_KAFKA_CONSUMER_GROUP_STATE_COMPLETING_REBALANCE;
        return membership;
    }

    static Members MembersOf(const rd_kafka_ConsumerGroupDescription_t& group) {
        Members members;
        const std::size_t count = rd_kafka_ConsumerGroupDescription_member_count(&group);
        for (std::size_t i = 0; i < count; ++i) {
            const auto* const member = rd_kafka_ConsumerGroupDescription_member(&group, i);
            const char* const instance = rd_kafka_MemberDescription_group_instance_id(member);
            if (instance != nullptr) members.instances.insert(instance);
            const auto* const assignment = rd_kafka_MemberDescription_assignment(member);
            const auto* const partitions =
                assignment != nullptr ? rd_kafka_MemberAssignment_partitions(assignment) : nullptr;
            for (int at = 0; partitions != nullptr && at < partitions->cnt; ++at) {
                members.partitions.emplace(partitions->elems[at].topic,
                                           partitions->elems[at].partition);
            }
        }
        const auto state = rd_kafka_ConsumerGroupDescription_state(&group);
        members.rebalancing = state == RD_KAFKA_CONSUMER_GROUP_STATE_PREPARING_REBALANCE ||
                              state == RD_KAFKA_CONSUMER_GROUP_STATE_COMPLETING_REBALANCE;
        return members;
    }

    /// Asks with the isolation level of this broker's consumers.
    [[nodiscard]] std::shared_ptr<Handle> MakeStableHandle() const {
        constexpr const char* kIsolation = "isolation.level";
        const auto level = Handle::Effective(
            Properties::Of(*broker_, Role::kConsumer, {{"group.id", "mq-admin"}}), kIsolation);
        return std::make_shared<Handle>(broker_, Role::kAdmin,
                                        Properties::Of(*broker_, Role::kAdmin, {{kIsolation, level}}),
                                        nullptr);
    }

    /// Whether there was an answer at all.
    static bool AskEnds(Handle& handle, const std::vector<Place>& places, Clock::time_point deadline,
                        std::map<Place, std::int64_t>& ends) {
        const auto list = MakeList(places.size());
        for (const auto& [topic, number] : places) {
            rd_kafka_topic_partition_list_add(list.get(), topic.c_str(), number)->offset =
                RD_KAFKA_OFFSET_END;
        }
        const auto error = rd_kafka_offsets_for_times(handle.get(), list.get(), RemainingMs(deadline));
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR) return false;
        for (int i = 0; i < list->cnt; ++i) {
            const rd_kafka_topic_partition_t& entry = list->elems[i];
            if (entry.err != RD_KAFKA_RESP_ERR_NO_ERROR || entry.offset < 0) continue;
            ends[{entry.topic, entry.partition}] = entry.offset;
        }
        return true;
    }

    void StartLocked() {
        if (!thread_.joinable()) thread_ = std::thread{[this] { Run(); }};
        changed_.notify_all();
    }

    [[nodiscard]] bool Closing() const {
        const std::lock_guard lock{mutex_};
        return closing_;
    }

    void Run() {
        while (true) {
            Jobs jobs;
            std::deque<std::function<void()>> tasks;
            {
                std::unique_lock lock{mutex_};
                while (!TakeDueLocked() && !closing_) changed_.wait_until(lock, NextDueLocked());
                if (closing_) return;
                jobs = std::exchange(jobs_, {});
                tasks = std::exchange(tasks_, {});
            }
            if (!jobs.empty()) Answer(jobs, EnsureAll(jobs));
            for (const auto& task : tasks) {
                if (Closing()) return;
                task();
            }
        }
    }

    // Whether there is something to do.
    bool TakeDueLocked() {
        const auto now = Clock::now();
        const auto due = std::stable_partition(later_.begin(), later_.end(),
                                               [&](const Later& each) { return now < each.due; });
        for (auto each = due; each != later_.end(); ++each) {
            jobs_[each->topic].push_back(std::move(each->job));
        }
        later_.erase(due, later_.end());
        return !jobs_.empty() || !tasks_.empty();
    }

    [[nodiscard]] Clock::time_point NextDueLocked() const {
        auto next = Clock::now() + std::chrono::hours{1};
        for (const Later& each : later_) next = std::min(next, each.due);
        return next;
    }

    void Answer(Jobs& jobs, const Results& results) {
        for (const auto& [topic, verdict] : results) {
            NoteTrouble(topic, verdict.error);
            for (Job& job : jobs[topic]) Answer(topic, job, verdict);
        }
    }

    void Answer(const std::string& topic, Job& job, Verdict verdict) {
        const bool passes = verdict.error != nullptr && PassesByItself(*verdict.error);
        verdict.last = !passes || !job.until || Clock::now() >= job.until();
        job.done(verdict);
        if (verdict.last) return;
        const auto due = Clock::now() + job.pause.Next();
        const std::lock_guard lock{mutex_};
        later_.push_back({due, topic, std::move(job)});
    }

    void NoteTrouble(const std::string& topic, const ErrorPtr& error) {
        const std::lock_guard lock{mutex_};
        if (error == nullptr) {
            troubles_.erase(topic);
        } else {
            troubles_[topic] = error;
        }
    }

    Results EnsureAll(const Jobs& jobs) {
        Results results;
        try {
            const auto handle = Connected(Clock::now() + kPatience);
            std::vector<std::string> missing = FindMissing(*handle, jobs, results);
            if (!broker_->options.declare) {
                for (const std::string& topic : missing) results[topic] = {NotFound(topic)};
            } else if (!missing.empty()) {
                Create(*handle, missing, results);
            }
        } catch (const Error& error) {
            for (const auto& [topic, done] : jobs) {
                results.try_emplace(topic, Verdict{std::make_shared<Error>(error)});
            }
        }
        return results;
    }

    std::vector<std::string> FindMissing(Handle& handle, const Jobs& jobs, Results& results) {
        std::vector<std::string> missing;
        std::map<std::string, int> existing;
        const bool many = jobs.size() >= kManyTopics;
        if (many) existing = AllTopics(handle);
        for (const auto& [topic, done] : jobs) {
            if (Closing()) break;
            try {
                const bool exists =
                    many ? existing.contains(topic)
                         : AskMetadata(handle, topic, Clock::now() + kPatience).has_value();
                if (exists) {
                    if (many) NoteSeen(topic, existing[topic]);
                    results[topic] = {};
                } else {
                    missing.push_back(topic);
                }
            } catch (const Error& error) {
                results[topic] = {std::make_shared<Error>(error)};
            }
        }
        return missing;
    }

    /// Every topic of the cluster, and how many partitions it has.
    std::map<std::string, int> AllTopics(Handle& handle) const {
        const rd_kafka_metadata_t* metadata = nullptr;
        Check(
            rd_kafka_metadata(handle.get(), 1, nullptr, &metadata, static_cast<int>(kPatience.count())),
            "asking for the topics");
        const Owned<const rd_kafka_metadata_t> owned{metadata};
        std::map<std::string, int> topics;
        for (int i = 0; i < metadata->topic_cnt; ++i) {
            const rd_kafka_metadata_topic_t& topic = metadata->topics[i];
            if (topic.err != RD_KAFKA_RESP_ERR_NO_ERROR || topic.partition_cnt <= 0) continue;
            topics.emplace(topic.topic, topic.partition_cnt);
        }
        return topics;
    }

    ErrorPtr NotFound(const std::string& topic) const {
        return std::make_shared<Error>(
            MakeError(*broker_, "there is no topic '" + topic + "', and declare = false",
                      RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART));
    }

    void Create(Handle& handle, const std::vector<std::string>& topics, Results& results) {
        constexpr int kBrokerDefault = -1;
        std::vector<Owned<rd_kafka_NewTopic_t>> wanted;
        std::vector<rd_kafka_NewTopic_t*> pointers;
        std::array<char, 256> text{};
        for (const std::string& topic : topics) {
            wanted.emplace_back(rd_kafka_NewTopic_new(
                topic.c_str(), broker_->options.partitions.value_or(kBrokerDefault),
                broker_->options.replication.value_or(kBrokerDefault), text.data(), text.size()));
            if (wanted.back() == nullptr) {
                wanted.pop_back();
                results[topic] = {
                    std::make_shared<Error>(ErrorCode::kInvalidArgument, broker_->Text(text.data()))};
            } else {
                pointers.push_back(wanted.back().get());
            }
        }
        if (pointers.empty()) return;
        try {
            const auto answer =
                Ask(handle, RD_KAFKA_ADMIN_OP_CREATETOPICS, Clock::now() + kPatience, "creating topics",
                    [&](const rd_kafka_AdminOptions_t* options, rd_kafka_queue_t* queue) {
                        rd_kafka_CreateTopics(handle.get(), pointers.data(), pointers.size(), options,
                                              queue);
                    });
            ReadCreated(handle, *answer, results);
        } catch (const Error& error) {
            // A broker without this call creates topics when they are first used.
            const bool itself =
                error.code() == ErrorCode::kUnsupported && broker_->options.AutoCreate();
            const Verdict verdict{itself ? nullptr : std::make_shared<Error>(error)};
            for (const std::string& topic : topics) results.try_emplace(topic, verdict);
        }
    }

    void ReadCreated(Handle& handle, rd_kafka_event_t& answer, Results& results) {
        std::size_t count = 0;
        const auto* const created =
            rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(&answer), &count);
        for (std::size_t i = 0; i < count; ++i) {
            const std::string topic = rd_kafka_topic_result_name(created[i]);
            const auto code = rd_kafka_topic_result_error(created[i]);
            const char* const text = rd_kafka_topic_result_error_string(created[i]);
            if (code == RD_KAFKA_RESP_ERR_NO_ERROR || code == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS) {
                if (code == RD_KAFKA_RESP_ERR_NO_ERROR) {
                    broker_->Log(LogLevel::kInfo, "created topic '" + topic + "'");
                }
                results[topic] = {AwaitTopic(handle, topic), true};
            } else {
                std::string reason = text != nullptr ? text : rd_kafka_err2str(code);
                if (code == RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR) {
                    reason.insert(0, Replication(handle));
                }
                results[topic] = {std::make_shared<Error>(
                    MakeError(*broker_, "creating topic '" + topic + "'", code, std::move(reason)))};
            }
        }
    }

    // What is asked for, and what there is: a replication that is larger than the cluster never comes
    // to be, and one broker that starts anew looks the same for a moment.
    std::string Replication(Handle& handle) const {
        const rd_kafka_metadata_t* metadata = nullptr;
        const auto error =
            rd_kafka_metadata(handle.get(), 0, nullptr, &metadata, static_cast<int>(kPatience.count()));
        if (error != RD_KAFKA_RESP_ERR_NO_ERROR) return {};
        const Owned<const rd_kafka_metadata_t> owned{metadata};
        const auto& wanted = broker_->options.replication;
        const int there = metadata->broker_cnt;
        return (wanted ? "replication = " + std::to_string(*wanted)
                       : std::string{"the replication that is the cluster's default"}) +
               " is asked for, and the cluster has " + std::to_string(there) +
               (there == 1 ? " broker: " : " brokers: ");
    }

    // A new topic takes a moment to reach every broker.
    ErrorPtr AwaitTopic(Handle& handle, const std::string& topic) {
        constexpr milliseconds kInterval{20};
        const auto deadline = Clock::now() + kPatience;
        while (true) {
            ErrorPtr last;
            try {
                if (AskMetadata(handle, topic, deadline)) return nullptr;
            } catch (const Error& error) {
                last = std::make_shared<Error>(error);
            }
            std::unique_lock lock{mutex_};
            const bool closing = changed_.wait_for(lock, kInterval, [&] { return closing_; });
            if (closing || Clock::now() >= deadline) {
                return last != nullptr ? last : NotKnownYet(topic);
            }
        }
    }

    ErrorPtr NotKnownYet(const std::string& topic) const {
        const char* const text = rd_kafka_err2str(RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        return std::make_shared<Error>(
            ErrorCode::kUnavailable,
            broker_->Text("topic '" + topic + "' has been made and is not known yet: " + text),
            Outcome::kNotSent, NativeError{RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, text});
    }

    const std::shared_ptr<const Broker> broker_;

    Questions questions_ = {};
    Unanswered unanswered_ = {};  // of whoever has the turn

    mutable std::mutex mutex_ = {};  // guards everything below, but for joining thread_
    std::condition_variable changed_ = {};
    std::condition_variable turn_ended_ = {};
    bool asking_ = false;  // a thread asks a coordinator
    std::shared_ptr<Handle> handle_ = {};
    Clock::time_point next_kick_ = {};
    std::map<std::string, Known> partitions_ = {};
    std::map<std::string, Seen> seen_ = {};
    bool group_calls_ = false;  // known to be supported
    Jobs jobs_ = {};
    std::vector<Later> later_ = {};
    std::deque<std::function<void()>> tasks_ = {};
    std::map<std::string, ErrorPtr> troubles_ = {};
    std::map<std::string, Clock::time_point> look_after_ = {};
    bool closing_ = false;
    std::thread thread_ = {};
    std::mutex join_mutex_ = {};  // held while thread_ is joined
};

}  // namespace mq::kafka::detail
