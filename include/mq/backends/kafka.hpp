/// @file kafka.hpp
/// The adapter for Apache Kafka (schemes kafka and kafkas) over librdkafka's C API. A topic is a Kafka
/// topic, a group is a group.id, and the key is the record's key. The parts are in kafka/; those that
/// need no librdkafka do not include it.
///
/// **Handles and threads.** A client has, for each Kafka broker of its config and only from their first
/// use on: one producer with one thread that serves delivery reports; one consumer with one thread for
/// each group (a second subscription of the same group to the same topic gets a consumer of its own);
/// and one handle with one thread that creates topics and answers questions. Each handle has threads of
/// librdkafka's own, which grow with the brokers of the cluster.
///
/// **On the wire.** The body is the record's value, the key its key (none where empty), headers are
/// headers in their order, the timestamp is the record's. What Kafka has no field for are the headers
/// mq-id, mq-content-type, mq-correlation-id, mq-reply-to, and mq-possible-duplicate on a message that
/// was sent again. A record without a value (a tombstone) is received with an empty body.
///
/// **Rebalances.** A partition that goes to another member waits until the handlers that have its
/// messages are done, so that they are neither handled twice nor, where the order of a key matters,
/// beside their successors: up to revoke_wait, an option of the adapter (a duration, "30s" by default,
/// at least 5s less than max.poll.interval.ms, which it also is where that is short). Then the
/// partition goes all the same, and what is not settled comes again. Meanwhile the member stays in its
/// group, but its thread waits: it takes no new message of any topic of the group, and the rest of the
/// group waits for the partitions that change hands. Set it to the longest time that a handler takes;
/// longer is of use to nobody, for a handler that hangs delays each rebalance by so much. Whoever
/// closes a subscription waits for its handlers before, by the deadline of that.
///
/// **Who has which partition** is shared out by cooperative-sticky where librdkafka, at run time, is
/// 2.6.1 or newer, and else by roundrobin or range: before, the former computes for ever where members
/// of one group have different topics. With these, all members give back all their partitions at each
/// change of the group. A member whose group shares out otherwise joins by the group's way, so that
/// processes can be replaced one by one; partition.assignment.strategy, where it is set, is kept.
///
/// **Static members.** With group.instance.id, each process needs one of its own; a further consumer of
/// the same group in one client adds "-1", "-2" and so on. A member whose id another process takes over
/// gives way: it is refused, says so once, and comes back when nobody has the id any more.
///
/// **A standstill.** A partition of this client's that gives nothing, though the broker has messages
/// there and there is room for them, or a topic of which it has no partition although some are
/// nobody's, is noticed and has its consumer replaced within 30 seconds; see standstill.hpp. Where that
/// does not help, it is tried again after pauses of up to 5 minutes.
///
/// **Memory.** A consumer fetches ahead of its handlers up to queued.max.messages.kbytes, here 8192,
/// for *each* topic of its group, and one fetch more, so that a slow topic holds up no other. Only a
/// topic whose backlog is that long takes so much: 8 of them up to 128 MiB, 500 up to 8 GiB. For many
/// such topics set consumer.queued.max.messages.kbytes lower.
///
/// **The end.** Closing is bounded by its deadline and a second or two, the destructor by 15 seconds,
/// whatever librdkafka does. A handle that it has not ended 5 seconds after that was asked for, or a
/// thread that it does not give back, is left to itself, with a line of the log, until it ends or the
/// process does; the end of the process waits 2 seconds for all of them.
///
/// **Positions** that go back, because a log was lost or a topic made anew, are committed like others.
/// Those of a group that has left are remembered while the client lives, for 1024 pairs of group and
/// topic, and are written to the broker again when it has forgotten them, which it does after
/// offsets.retention.minutes without a member: a week by default.
///
/// **Redelivered** is known only where this client has received the offset before for the group, or the
/// sender has marked the message: Kafka itself keeps no such mark.
#pragma once

#include <mq/backend.hpp>
#include <mq/backends/kafka/admin.hpp>
#include <mq/backends/kafka/end_history.hpp>
#include <mq/backends/kafka/group_consumer.hpp>
#include <mq/backends/kafka/handle.hpp>
#include <mq/backends/kafka/native.hpp>
#include <mq/backends/kafka/options.hpp>
#include <mq/backends/kafka/position_memory.hpp>
#include <mq/backends/kafka/publisher.hpp>
#include <mq/backends/kafka/sender.hpp>
#include <mq/backends/kafka/stream.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::kafka {
namespace detail {

/// What this process itself knows of a topic in a group: its own subscriptions.
struct Own {
    /// The partitions that they have.
    std::map<std::int32_t, Partition::Progress> progress = {};
    /// Those of them that are delivered, from a position that is known.
    std::set<std::int32_t> listening = {};
};

/// Ends the log of a broker.
class Dismissal {
public:
    explicit Dismissal(std::shared_ptr<const Broker> broker) : broker_(std::move(broker)) {}
    Dismissal(const Dismissal&) = delete;
    Dismissal& operator=(const Dismissal&) = delete;
    ~Dismissal() { broker_->audience->Dismiss(); }

private:
    const std::shared_ptr<const Broker> broker_;
};

class Backend final : public backend::Backend {
public:
    explicit Backend(std::shared_ptr<const Broker> broker)
        : broker_(std::move(broker)),
          admin_(std::make_shared<Admin>(broker_)),
          sender_(broker_, Topics()) {
        WarnOfRisks();
    }

    /// Blocks for kLongestEnd at most, whatever librdkafka does: what it does not end by then is left
    /// to itself, and calls nobody.
    ~Backend() override {
        Close(Clock::now());
        const auto groups = Groups();
        for (const auto& group : groups) group->BeginEnd();
        const auto deadline = Clock::now() + GroupConsumer::kEndPatience;
        for (const auto& group : groups) group->End(deadline, admin_);
        // What has begun to end late gets a moment all the same.
        constexpr std::chrono::seconds kMoment{1};
        sender_.End(std::max(deadline, Clock::now() + kMoment));
        admin_->End(std::max(deadline, Clock::now() + kMoment));
    }

    std::unique_ptr<backend::Publisher> MakePublisher(
        std::shared_ptr<const backend::Destination> destination) override {
        CheckAddress(*destination);
        return std::make_unique<Publisher>(broker_, sender_, *admin_, std::move(destination));
    }

    std::unique_ptr<backend::Consumer> Subscribe(backend::Subscribing subscribing,
                                                 std::shared_ptr<backend::Receiver> receiver) override {
        CheckAddress(*subscribing.destination);
        if (subscribing.group.empty()) {
            throw Error{ErrorCode::kInvalidArgument, broker_->Text("a Kafka group needs a name")};
        }
        const std::lock_guard lock{mutex_};
        std::erase_if(groups_, [](const auto& group) { return group->Ended(); });
        auto& received = received_[{subscribing.group, subscribing.destination->address}];
        if (received == nullptr) received = std::make_shared<Received>();
        std::set<std::size_t> indices;
        for (const auto& group : groups_) {
            if (group->group() != subscribing.group) continue;
            if (auto stream = group->TryAdd(subscribing, receiver, received)) {
                return MakeConsumer(group, std::move(stream), subscribing);
            }
            indices.insert(group->index());
        }
        std::size_t index = 0;
        while (indices.contains(index)) ++index;
        auto group = std::make_shared<GroupConsumer>(broker_, *admin_, subscribing.group, index);
        auto stream = group->TryAdd(subscribing, receiver, received);
        groups_.push_back(group);
        return MakeConsumer(std::move(group), std::move(stream), subscribing);
    }

    backend::Listening CheckListening(const backend::Destination& destination, const std::string& group,
                                      Clock::time_point deadline) noexcept override {
        using Answer = backend::Listening::Answer;
        try {
            return group.empty() ? AnyListening(destination.address, deadline)
                                 : GroupListening(destination.address, group, true, deadline);
        } catch (const std::exception& error) {
            return {Answer::kUnknown, error.what()};
        }
    }

    backend::Backlog CheckBacklog(const backend::Destination& destination, const std::string& group,
                                  Clock::time_point deadline) noexcept override {
        try {
            return Backlog(destination.address, group, deadline);
        } catch (const std::exception& error) {
            return {backend::Backlog::Answer::kUnknown, 0, false, error.what(), {}};
        }
    }

    [[nodiscard]] backend::Limits GetLimits() const override {
        const auto properties = Properties::Of(*broker_, Role::kProducer);
        return {.message_bytes = std::stoull(Handle::Effective(properties, "message.max.bytes")),
                .settles_in_order = true};
    }

    backend::Limits AskLimits(const backend::Destination& destination,
                              Clock::time_point deadline) noexcept override {
        backend::Limits limits = GetLimits();
        try {
            // Who asks is about to use it: what is still to be made is made first.
            if (broker_->options.declare && !admin_->PartitionCount(destination.address, deadline)) {
                admin_->EnsureNow(destination.address, deadline);
            }
            Tighten(limits, admin_->ConfigOf(destination.address, deadline));
        } catch (const std::exception& error) {
            broker_->Log(LogLevel::kDebug, error.what());
        }
        return limits;
    }

    void Close(Clock::time_point deadline) noexcept override { sender_.Close(deadline); }

    /// A moment for what Close would hand back, and then the handles, together; see ~Backend.
    static constexpr std::chrono::seconds kLongestEnd{15};

private:
    /// Whom the sender asks about topics.
    Sender::Topics Topics() {
        if (!broker_->options.declare) return {};
        const auto patience = broker_->context.send_timeout;
        return {
            [admin = admin_, patience](const std::string& topic) { admin->LookAfter(topic, patience); },
            [admin = admin_](const std::string& topic) { return admin->TroubleOf(topic); }};
    }

    // Consumers are closed before this ends: see backend::Backend.
    std::unique_ptr<backend::Consumer> MakeConsumer(std::shared_ptr<GroupConsumer> group,
                                                    std::shared_ptr<Stream> stream,
                                                    const backend::Subscribing& subscribing) {
        return std::make_unique<Consumer>(
            std::move(group), std::move(stream),
            [memory = memory_, topic = subscribing.destination->address,
             name = subscribing.group](const Stream& its) {
                Offsets positions;
                for (const auto& [number, partition] : its.Partitions()) {
                    const auto place = static_cast<std::size_t>(number);
                    if (positions.size() <= place) positions.resize(place + 1, -1);
                    positions[place] = partition->GetProgress().position.value_or(-1);
                }
                memory->Note(topic, name, positions, PositionMemory::WallClock::now());
            });
    }

    /// How old the number of a topic's partitions may be in an answer that is asked for again soon.
    static constexpr milliseconds kMetadataAge{1000};
    /// How long it is believed that no group listens.
    static constexpr milliseconds kNobodyAge{1000};

    static void Tighten(backend::Limits& limits, const std::map<std::string, std::string>& config) {
        const auto number = [&](const char* name) -> std::optional<std::int64_t> {
            const auto entry = config.find(name);
            if (entry == config.end()) return std::nullopt;
            try {
                return std::stoll(entry->second);
            } catch (const std::exception&) {
                return std::nullopt;
            }
        };
        const auto policy = config.find("cleanup.policy");
        const auto has = [&](const char* what) {
            return policy != config.end() && policy->second.find(what) != std::string::npos;
        };
        limits.keeps_only_latest = has("compact");
        const auto time = number("retention.ms");
        if (has("delete") && time && *time >= 0) limits.retention = milliseconds{*time};
        const auto bytes = number("retention.bytes");
        if (has("delete") && bytes && *bytes >= 0) {
            limits.retained_bytes = static_cast<std::uint64_t>(*bytes);
        }
        const auto largest = number("max.message.bytes");
        if (largest && *largest >= 0) {
            const auto allowed = static_cast<std::uint64_t>(*largest);
            limits.message_bytes = std::min(limits.message_bytes.value_or(allowed), allowed);
        }
    }

    // By what librdkafka makes of the URL and the options, whichever of them it comes from.
    void WarnOfRisks() const {
        bool clear = false;
        bool unverified = false;
        for (const Role role : {Role::kProducer, Role::kConsumer}) {
            const auto properties = Properties::Of(*broker_, role);
            const auto is = [&](const char* name, std::string_view value) {
                return Handle::Effective(properties, name) == value;
            };
            const bool tls = is("security.protocol", "ssl") || is("security.protocol", "sasl_ssl");
            clear =
                clear || (is("security.protocol", "sasl_plaintext") && is("sasl.mechanisms", "PLAIN"));
            unverified = unverified || (tls && (is("enable.ssl.certificate.verification", "false") ||
                                                is("ssl.endpoint.identification.algorithm", "none")));
        }
        WarnOfAssignor();
        if (clear) {
            broker_->Log(LogLevel::kWarning,
                         "the password goes over the network in the clear: use kafkas://");
        }
        if (unverified) {
            broker_->Log(LogLevel::kWarning,
                         "certificates or their names are not verified: anybody can pretend to be this "
                         "broker");
        }
    }

    void WarnOfAssignor() const {
        const auto assignors = Handle::Effective(
            Properties::Of(*broker_, Role::kConsumer, {{"group.id", "check"}}), Properties::kAssignors);
        if (!NamesCooperative(assignors) || CooperativeIsSound(rd_kafka_version())) return;
        broker_->Log(
            LogLevel::kWarning,
            std::string{"partition.assignment.strategy is "} + assignors + ", with which librdkafka " +
                rd_kafka_version_str() +
                " can hang where members of one group have different topics (mended in "
                "2.6.1): leave it out, or have every member of a group receive the same topics");
    }

    void CheckAddress(const backend::Destination& destination) const {
        if (IsTopicName(destination.address)) return;
        throw Error{ErrorCode::kInvalidArgument,
                    broker_->Text("'" + destination.address +
                                  "' is not the name of a Kafka topic: up to 249 letters, digits, "
                                  "'.', '_' and '-'")};
    }

    [[nodiscard]] std::vector<std::shared_ptr<GroupConsumer>> Groups() const {
        const std::lock_guard lock{mutex_};
        return groups_;
    }

    /// An empty group stands for any.
    [[nodiscard]] Own AskOwn(const std::string& address, const std::string& group) const {
        Own own;
        for (const auto& member : Groups()) {
            if (!group.empty() && member->group() != group) continue;
            const auto streams = member->Streams();
            const auto stream = streams.find(address);
            if (stream == streams.end()) continue;
            const bool active = !stream->second->Stopped() &&
                                stream->second->State().phase == backend::ConsumerState::Phase::kActive;
            for (const auto& [number, partition] : stream->second->Partitions()) {
                const Partition::Progress progress = partition->GetProgress();
                own.progress[number] = progress;
                // Who may not be given more is not told where the partition begins.
                const bool begun = progress.position || stream->second->credit().Available() == 0;
                if (active && begun && !partition->Fenced()) own.listening.insert(number);
            }
        }
        return own;
    }

    /// Whether a group has members with every partition, in whatever process, or else a committed
    /// position in every one, where that counts: whoever joins the group begins there and misses
    /// nothing, also where nobody is there at the moment, because a service is started anew, say. A
    /// member of our own counts for the partitions of which it knows where it begins.
    backend::Listening GroupListening(const std::string& address, const std::string& group,
                                      bool positions_count, Clock::time_point deadline) {
        using Answer = backend::Listening::Answer;
        const auto count = admin_->PartitionCount(address, deadline, kMetadataAge);
        if (!count) return {Answer::kNo, "there is no topic '" + address + "'"};
        const Own own = AskOwn(address, group);
        std::set<std::int32_t> listening = own.listening;
        if (Without(listening, *count).empty()) return {Answer::kYes, {}};
        bool rebalancing = false;
        try {
            const auto members = admin_->Describe(group, address, deadline);
            rebalancing = members.rebalancing;
            for (const std::int32_t number : members.partitions) {
                if (!own.progress.contains(number)) listening.insert(number);
            }
        } catch (const Error& error) {
            if (error.code() != ErrorCode::kUnsupported) throw;
            positions_count = true;  // who has committed everywhere has been there
        }
        const std::set<std::int32_t> without = Without(listening, *count);
        if (without.empty()) return {Answer::kYes, {}};
        if (positions_count) {
            const auto committed = admin_->Committed(group, address, *count, deadline);
            const bool all = std::all_of(committed.begin(), committed.end(),
                                         [](std::int64_t offset) { return offset >= 0; });
            if (all) return {Answer::kYes, {}};
        }
        if (rebalancing) return {Answer::kUnknown, "group '" + group + "' is rebalancing"};
        return {Answer::kNo,
                "group '" + group + "' has no member for " + std::to_string(without.size()) +
                    " of the " + std::to_string(*count) + " partitions of '" + address + "' (" +
                    std::to_string(*without.begin()) + (without.size() > 1 ? ", …)" : ")") +
                    (positions_count ? ", nor a committed position in every one" : "")};
    }

    /// The partitions that are not there.
    static std::set<std::int32_t> Without(const std::set<std::int32_t>& there, int count) {
        std::set<std::int32_t> without;
        for (std::int32_t number = 0; number < count; ++number) {
            if (!there.contains(number)) without.insert(number);
        }
        return without;
    }

    /// Whether somebody is there. A group that nobody has named may have ended for good: of such a
    /// group the positions do not count.
    backend::Listening AnyListening(const std::string& address, Clock::time_point deadline) {
        using Answer = backend::Listening::Answer;
        std::set<std::string> candidates = OwnGroups(address);
        {
            const std::lock_guard lock{mutex_};
            const auto known = listeners_.find(address);
            if (known != listeners_.end()) {
                const bool nobody = known->second.group.empty();
                if (candidates.empty() && nobody && Clock::now() - known->second.asked < kNobodyAge) {
                    return {Answer::kNo, Nobody(address)};
                }
                if (!nobody) candidates.insert(known->second.group);
            }
        }
        bool unsure = false;
        const auto ask = [&](const std::string& group) {
            backend::Listening answer = GroupListening(address, group, false, deadline);
            unsure = unsure || answer.answer == Answer::kUnknown;
            if (answer.answer != Answer::kYes) return false;
            const std::lock_guard lock{mutex_};
            listeners_[address] = {group, Clock::now()};
            return true;
        };
        for (const std::string& group : candidates) {
            if (ask(group)) return {Answer::kYes, {}};
        }
        for (const std::string& group : admin_->Groups(deadline)) {
            if (!candidates.contains(group) && ask(group)) return {Answer::kYes, {}};
        }
        if (unsure) return {Answer::kUnknown, "a group is rebalancing"};
        const std::lock_guard lock{mutex_};
        listeners_[address] = {{}, Clock::now()};
        return {Answer::kNo, Nobody(address)};
    }

    [[nodiscard]] std::set<std::string> OwnGroups(const std::string& address) const {
        std::set<std::string> names;
        for (const auto& member : Groups()) {
            if (member->Streams().contains(address)) names.insert(member->group());
        }
        return names;
    }

    static std::string Nobody(const std::string& address) {
        return "no group has members with every partition of '" + address + "'";
    }

    backend::Backlog Backlog(const std::string& address, const std::string& group,
                             Clock::time_point deadline) {
        using Answer = backend::Backlog::Answer;
        // What was there by now is in the partitions and below the ends that are asked for next.
        const auto begin = Clock::now();
        backend::Backlog backlog{Answer::kDrained, 0, true, {}, begin};
        const auto count = CountOf(address, deadline);
        if (!count) return backlog;
        const Lag lag = LagOf(address, group, *count, deadline);
        const auto settled_before = histories_.Ask(address, group, begin, lag.ends, lag.positions);
        if (lag.messages == 0) return backlog;
        backlog.answer = Answer::kNotDrained;
        backlog.messages = lag.messages;
        backlog.settled_before = settled_before;
        backlog.complete = true;
        backlog.known = lag.known_group;
        return backlog;
    }

    /// How many partitions a topic has; nothing where it does not exist, and then nothing is left on
    /// it.
    /// @throws Error where that is not certain.
    std::optional<int> CountOf(const std::string& address, Clock::time_point deadline) {
        const auto count = admin_->PartitionCount(address, deadline);
        const Own own = AskOwn(address, {});
        const int least = own.progress.empty() ? 0 : own.progress.rbegin()->first + 1;
        if (count.value_or(0) >= least) return count;
        throw Error{
            ErrorCode::kUnavailable,
            broker_->Text("the broker knows " + std::to_string(count.value_or(0)) + " partitions of '" +
                          address + "', and this client has number " + std::to_string(least - 1))};
    }

    /// What is between a group's position and the end, over all partitions.
    struct Lag {
        std::uint64_t messages = 0;
        bool known_group = true;  ///< It has a position in some partition.
        Offsets ends = {};
        Offsets positions = {};  ///< Everything below is settled, or not there any more.
    };

    Lag LagOf(const std::string& address, const std::string& group, int count,
              Clock::time_point deadline) {
        Lag lag;
        Offsets& ends = lag.ends = admin_->Watermarks(address, count, RD_KAFKA_OFFSET_END, deadline);
        const Offsets committed = admin_->Committed(group, address, count, deadline);
        // What is settled here and not committed yet is no less settled. Asked for last, and so no
        // older than the ends.
        const Own own = AskOwn(address, group);
        Offsets& positions = lag.positions = WithOwn(committed, own);
        if (AnyAbove(positions, ends)) {
            // More has come and is settled since the ends were asked for; or else the log was lost, and
            // who takes over begins where it begins now.
            ends = admin_->Watermarks(address, count, RD_KAFKA_OFFSET_END, deadline);
            for (std::size_t i = 0; i < ends.size(); ++i) {
                if (positions[i] > ends[i]) positions[i] = 0;
            }
        }
        lag.known_group = HasSeen(address, group) || AnyKnown(positions);
        FillIn(address, group, lag, deadline);
        Keep(address, group, lag, committed, deadline);
        if (!AnyAbove(ends, positions)) return lag;
        // What retention has deleted is not left either.
        const auto begins = admin_->Watermarks(address, count, RD_KAFKA_OFFSET_BEGINNING, deadline);
        for (std::size_t i = 0; i < ends.size(); ++i) {
            const auto mine = own.progress.find(static_cast<std::int32_t>(i));
            const bool known = mine != own.progress.end() && mine->second.position;
            positions[i] = known ? *mine->second.position : std::max(positions[i], begins[i]);
            lag.messages += known ? LeftOf(mine->second, ends[i]) : Distance(positions[i], ends[i]);
        }
        return lag;
    }

    // Where a partition is with a member of ours, its own position is the one that counts, also where
    // it is below the one that is committed: the partition was rewound.
    static Offsets WithOwn(Offsets positions, const Own& own) {
        for (const auto& [number, progress] : own.progress) {
            const auto place = static_cast<std::size_t>(number);
            if (place < positions.size() && progress.position) positions[place] = *progress.position;
        }
        return positions;
    }

    static bool AnyAbove(const Offsets& some, const Offsets& others) {
        return !std::equal(some.begin(), some.end(), others.begin(),
                           [](std::int64_t one, std::int64_t other) { return one <= other; });
    }

    static bool AnyKnown(const Offsets& positions) {
        return std::any_of(positions.begin(), positions.end(),
                           [](std::int64_t position) { return position >= 0; });
    }

    /// Whether a member of ours was ever in the group, on the topic.
    [[nodiscard]] bool HasSeen(const std::string& address, const std::string& group) const {
        const std::lock_guard lock{mutex_};
        return received_.contains({group, address});
    }

    // A broker forgets the positions of a group that has left, after a week by default: what this
    // client remembers stands in for them, and is written back, so that who joins the group again
    // begins there.
    void FillIn(const std::string& address, const std::string& group, Lag& lag,
                Clock::time_point deadline) {
        const auto remembered = memory_->Find(address, group);
        if (!remembered) return;
        Offsets gone(lag.positions.size(), -1);
        for (std::size_t i = 0; i < gone.size() && i < remembered->positions.size(); ++i) {
            if (lag.positions[i] < 0) gone[i] = remembered->positions[i];
        }
        if (!AnyKnown(gone)) return;
        if (MadeAnew(address, gone, remembered->seen, lag.ends, deadline)) {
            memory_->Forget(address, group);
            return;
        }
        lag.known_group = true;
        for (std::size_t i = 0; i < gone.size(); ++i) {
            if (gone[i] >= 0) lag.positions[i] = gone[i];
        }
        broker_->Log(LogLevel::kWarning, "the positions of group '" + group + "' on '" + address +
                                             "' have expired at the broker: they are written again as "
                                             "this client remembers them");
        Write(address, group, gone, deadline);
    }

    // Whether the positions are about another log than the one that is there: it ends below them, or
    // has a message below them that is younger than they are.
    bool MadeAnew(const std::string& address, const Offsets& positions,
                  PositionMemory::WallClock::time_point seen, const Offsets& ends,
                  Clock::time_point deadline) {
        const auto moment = std::chrono::duration_cast<milliseconds>(seen.time_since_epoch()).count();
        const auto younger =
            admin_->Watermarks(address, static_cast<int>(positions.size()), moment, deadline);
        for (std::size_t i = 0; i < positions.size(); ++i) {
            if (positions[i] < 0) continue;
            if (ends[i] < positions[i]) return true;
            if (younger[i] >= 0 && younger[i] < positions[i]) return true;
        }
        return false;
    }

    // Remembers the positions, and sees that the broker does, where no member of ours is on the topic
    // who commits them.
    void Keep(const std::string& address, const std::string& group, const Lag& lag,
              const Offsets& committed, Clock::time_point deadline) {
        memory_->Note(address, group, lag.positions, PositionMemory::WallClock::now());
        if (!AnyKnown(committed) || AnyAbove(committed, lag.ends)) return;
        if (OwnGroups(address).contains(group)) return;
        if (memory_->TakeRefresh(address, group, Clock::now())) {
            Write(address, group, committed, deadline);
        }
    }

    // As a member of the group where there is one here, for from others the broker takes it only where
    // there is none at all. What fails is tried again with the next refresh.
    void Write(const std::string& address, const std::string& group, const Offsets& positions,
               Clock::time_point deadline) {
        for (const auto& member : Groups()) {
            if (member->group() == group && member->Commit(address, positions)) return;
        }
        try {
            admin_->SetCommitted(group, address, positions, deadline);
        } catch (const Error& error) {
            if (throttle_.Allow(group)) broker_->Log(LogLevel::kDebug, error.what());
        }
    }

    static std::uint64_t Distance(std::int64_t from, std::int64_t to) {
        return to > from ? static_cast<std::uint64_t>(to - from) : 0;
    }

    // A partition of our own: what is out, and what has not been received.
    static std::uint64_t LeftOf(const Partition::Progress& progress, std::int64_t end) {
        return progress.unsettled + Distance(progress.end, end);
    }

    /// A group that was seen listening to a topic; empty where none was.
    struct Listener {
        std::string group = {};
        Clock::time_point asked = {};
    };

    const std::shared_ptr<const Broker> broker_;
    const Dismissal dismissal_{broker_};  // the last that is destroyed here
    const std::shared_ptr<Admin> admin_;
    Sender sender_;
    EndHistories histories_ = {};
    const std::shared_ptr<PositionMemory> memory_ = std::make_shared<PositionMemory>();
    LogThrottle throttle_ = {};

    mutable std::mutex mutex_ = {};  // guards everything below
    std::vector<std::shared_ptr<GroupConsumer>> groups_ = {};
    // By group and address, for as long as the client lives: one number for each partition.
    std::map<std::pair<std::string, std::string>, std::shared_ptr<Received>> received_ = {};
    std::map<std::string, Listener> listeners_ = {};
};

/// What librdkafka makes of the options: every one by itself, and then all of them together by making
/// a handle that has no broker to connect to.
inline void CheckProperties(const Url& url, const Options& options,
                            const std::map<std::string, std::string>& texts,
                            std::vector<ConfigProblem>& problems) {
    const Owned<rd_kafka_conf_t> scratch{rd_kafka_conf_new()};
    for (const auto& [name, text] : texts) {
        std::string_view property = name;
        for (const std::string_view prefix : {"producer.", "consumer."}) {
            if (property.starts_with(prefix)) property.remove_prefix(prefix.size());
        }
        const auto sorted = [&](const std::vector<Property>& properties) {
            return FindProperty(properties, property).has_value();
        };
        if (!sorted(options.both) && !sorted(options.producer) && !sorted(options.consumer)) continue;
        const std::string problem = Handle::Set(*scratch, {std::string{property}, text});
        if (!problem.empty()) problems.push_back({KeyPath("options", name), problem});
    }
    if (!problems.empty()) return;
    backend::Context context;
    context.url = url;
    context.send_timeout = std::chrono::seconds{30};
    const Broker broker{std::move(context), options};
    for (const Role role : {Role::kProducer, Role::kConsumer}) {
        auto properties = Properties::Of(broker, role, {{"group.id", "check"}});
        std::erase_if(properties, [](const auto& entry) { return entry.first == "bootstrap.servers"; });
        const std::string problem = Handle::Try(role, properties);
        if (problem.empty()) continue;
        problems.push_back({"options", "librdkafka says: " + problem});
        return;
    }
}

inline std::vector<ConfigProblem> Check(const Url& url,
                                        const std::map<std::string, std::string>& texts) {
    std::vector<ConfigProblem> problems;
    const Options options = ParseOptions(texts, problems);
    CheckUrl(url, options, problems);
    CheckProperties(url, options, texts, problems);
    return problems;
}

inline std::unique_ptr<backend::Backend> Make(backend::Context context) {
    std::vector<ConfigProblem> problems;
    Options options = ParseOptions(context.options, problems);
    return std::make_unique<Backend>(
        std::make_shared<const Broker>(Broker{std::move(context), std::move(options)}));
}

}  // namespace detail

/// Makes the schemes kafka and kafkas available.
inline const bool kRegistered =
    backend::Registry::Instance().Add({"kafka", {"kafka", "kafkas"}, &detail::Check, &detail::Make});

}  // namespace mq::kafka
