/// @file scripted_backend.hpp
/// A broker under the scheme script:// that says and does what a test tells it to: what its guards'
/// questions are answered, when publications are confirmed, what is delivered and from which sender,
/// and what happens in the middle of a question or of a consumer's stop.
#pragma once

#include "../conformance/fleet.hpp"
#include "../support/backend_fakes.hpp"
#include <mq/backend.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace mq::test {

/// Answers to what a group has left.
inline backend::Backlog Drained() {
    return {.answer = backend::Backlog::Answer::kDrained, .exact = true};
}
inline backend::Backlog DrainedAsFarAsSeen() {
    return {.answer = backend::Backlog::Answer::kDrained, .reason = "others are not seen"};
}
inline backend::Backlog NotDrained(std::uint64_t messages = 1) {
    return {.answer = backend::Backlog::Answer::kNotDrained, .messages = messages};
}
/// No more than that is left, of the whole group.
inline backend::Backlog AllThatIsLeft(std::uint64_t messages) {
    backend::Backlog backlog = NotDrained(messages);
    backlog.complete = true;
    return backlog;
}
inline backend::Backlog BacklogUnknown() { return {.messages = 3, .reason = "it does not say"}; }

/// Answers to who listens.
inline backend::Listening Listens() { return {.answer = backend::Listening::Answer::kYes}; }
inline backend::Listening ListensNot() {
    return {.answer = backend::Listening::Answer::kNo, .reason = "it has no consumer"};
}
inline backend::Listening ListeningUnknown() { return {.reason = "it does not say"}; }

/// What the broker does with a publication.
enum class Confirming : unsigned char {
    kAtOnce,
    kKept,         ///< Not before ConfirmKept, whatever the deadline.
    kUnavailable,  ///< It fails: the broker certainly does not have it.
    kUnknown,      ///< It fails: the broker may have it.
};

/// One script://NAME. Until it is told something else it confirms at once, everybody listens, and
/// everything is drained. Thread-safe. Its hooks are called with no lock of its own held, and may do
/// whatever a test may do.
class Script {
public:
    using Clock = backend::Clock;
    using BacklogAnswer = std::function<backend::Backlog(Clock::time_point deadline)>;
    using ListeningAnswer = std::function<backend::Listening(Clock::time_point deadline)>;

    /// The one of that name, made where it does not exist yet.
    static Script& Of(const std::string& name) {
        static std::mutex mutex;
        static std::map<std::string, std::unique_ptr<Script>> scripts;
        const std::lock_guard lock{mutex};
        auto& script = scripts[name];
        if (script == nullptr) script = std::make_unique<Script>();
        return *script;
    }

    // ---- what it says

    void OnBacklog(BacklogAnswer answer) { Set(on_backlog_, std::move(answer)); }
    void SetBacklog(backend::Backlog backlog) {
        OnBacklog([backlog](Clock::time_point) { return backlog; });
    }
    /// From now on one group has something else left than the others.
    void SetBacklogOf(const std::string& group, backend::Backlog backlog) {
        const std::lock_guard lock{mutex_};
        of_group_[group] = std::move(backlog);
    }
    void OnListening(ListeningAnswer answer) { Set(on_listening_, std::move(answer)); }
    void SetListening(backend::Listening listening) {
        OnListening([listening](Clock::time_point) { return listening; });
    }

    /// How its consumers stand from now on, of which their receivers are told.
    void SetState(backend::ConsumerState state) {
        std::vector<std::shared_ptr<Member>> members;
        {
            const std::lock_guard lock{mutex_};
            state_ = std::move(state);
            members = members_;
        }
        for (const auto& member : members) member->receiver->OnStateChange();
    }

    /// Runs at the beginning of the next Stop of a consumer that takes, while it does so still.
    void OnNextStop(std::function<void()> hook) { Set(on_next_stop_, std::move(hook)); }

    // ---- what it does

    void SetConfirming(Confirming confirming) { Set(confirming_, confirming); }

    void ConfirmKept() {
        std::vector<Kept> kept;
        {
            const std::lock_guard lock{mutex_};
            kept.swap(kept_);
        }
        for (Kept& each : kept) Finish(*each.sink, std::move(each.publication), nullptr);
    }

    /// Has a consumer get a message from that sender; one that takes, or the next one that comes.
    void Deliver(const std::string& body, const std::string& sender = {},
                 const std::string& key = "k") {
        HandOver({.message = MakeMessage(body, key), .sender = sender});
    }

    // ---- what it has seen

    [[nodiscard]] std::size_t backlog_questions() const { return Get(backlog_questions_); }
    [[nodiscard]] std::size_t listening_questions() const { return Get(listening_questions_); }
    [[nodiscard]] std::size_t subscriptions() const { return Get(subscriptions_); }
    [[nodiscard]] std::vector<std::string> published() const { return Get(published_); }
    /// What was written beside each of them.
    [[nodiscard]] std::vector<std::string> senders() const { return Get(senders_); }
    [[nodiscard]] std::vector<std::string> settled() const { return Get(settled_); }

private:
    friend class ScriptInbound;
    friend class ScriptConsumer;
    friend class ScriptPublisher;
    friend class ScriptBackend;

    struct Content {
        Message message = {};
        std::string sender = {};
    };

    struct Kept {
        backend::PublicationSink* sink = nullptr;
        std::unique_ptr<backend::Publication> publication = {};
    };

    // One consumer, for as long as messages of it are about.
    struct Member {
        std::shared_ptr<backend::Receiver> receiver = {};
        std::mutex delivering = {};  // guards taking, and is held while the receiver is called
        bool taking = true;
        // Under the script's lock:
        bool gone = false;
        std::map<std::uint64_t, Content> outstanding = {};
    };

    template <typename T>
    void Set(T& member, T value) {
        const std::lock_guard lock{mutex_};
        member = std::move(value);
    }
    template <typename T>
    [[nodiscard]] T Get(const T& member) const {
        const std::lock_guard lock{mutex_};
        return member;
    }

    static void Finish(backend::PublicationSink& sink,
                       std::unique_ptr<backend::Publication> publication,
                       std::unique_ptr<Error> error) noexcept {
        publication->error = std::move(error);
        backend::PublicationList finished;
        finished.PushBack(std::move(publication));
        sink.OnFinished(std::move(finished));
    }

    void Publish(backend::PublicationSink& sink, std::unique_ptr<backend::Publication> publication) {
        Confirming confirming{};
        {
            const std::lock_guard lock{mutex_};
            published_.push_back(publication->message.body);
            senders_.emplace_back(publication->sender);
            confirming = confirming_;
            if (confirming == Confirming::kKept) {
                kept_.push_back({.sink = &sink, .publication = std::move(publication)});
                return;
            }
        }
        std::unique_ptr<Error> error;
        if (confirming != Confirming::kAtOnce) {
            const bool unknown = confirming == Confirming::kUnknown;
            error = std::make_unique<Error>(ErrorCode::kUnavailable, "the script has no connection",
                                            unknown ? Outcome::kUnknown : Outcome::kNotSent);
        }
        Finish(sink, std::move(publication), std::move(error));
    }

    void FailKept(const backend::PublicationSink& sink) {
        std::vector<Kept> kept;
        {
            const std::lock_guard lock{mutex_};
            const auto others = std::partition(kept_.begin(), kept_.end(),
                                               [&](const Kept& each) { return each.sink != &sink; });
            std::move(others, kept_.end(), std::back_inserter(kept));
            kept_.erase(others, kept_.end());
        }
        for (Kept& each : kept) {
            Finish(*each.sink, std::move(each.publication),
                   std::make_unique<Error>(ErrorCode::kClosed, "closed", Outcome::kUnknown));
        }
    }

    backend::Backlog AnswerBacklog(const std::string& group, Clock::time_point deadline) {
        BacklogAnswer answer;
        {
            const std::lock_guard lock{mutex_};
            ++backlog_questions_;
            if (const auto own = of_group_.find(group); own != of_group_.end()) return own->second;
            answer = on_backlog_;
        }
        return answer(deadline);
    }

    backend::Listening AnswerListening(Clock::time_point deadline) {
        ListeningAnswer answer;
        {
            const std::lock_guard lock{mutex_};
            ++listening_questions_;
            answer = on_listening_;
        }
        return answer(deadline);
    }

    void HandOver(Content content);

    void Add(const std::shared_ptr<Member>& member) {
        std::vector<Content> waiting;
        {
            const std::lock_guard lock{mutex_};
            ++subscriptions_;
            members_.push_back(member);
            waiting.swap(waiting_);
        }
        for (Content& content : waiting) HandOver(std::move(content));
    }

    void Stop(Member& member) {
        std::function<void()> hook;
        {
            const std::lock_guard delivering{member.delivering};
            if (!member.taking) return;
        }
        {
            const std::lock_guard lock{mutex_};
            hook.swap(on_next_stop_);
        }
        if (hook) hook();
        const std::lock_guard delivering{member.delivering};
        member.taking = false;
    }

    // What it has not settled is there for the next one.
    void Remove(const std::shared_ptr<Member>& member) {
        std::map<std::uint64_t, Content> left;
        {
            const std::lock_guard lock{mutex_};
            member->gone = true;
            left.swap(member->outstanding);
            std::erase(members_, member);
        }
        for (auto& [number, content] : left) HandOver(std::move(content));
    }

    mutable std::mutex mutex_ = {};  // guards all that follows
    BacklogAnswer on_backlog_ = [](Clock::time_point) { return Drained(); };
    std::map<std::string, backend::Backlog> of_group_ = {};
    ListeningAnswer on_listening_ = [](Clock::time_point) { return Listens(); };
    std::function<void()> on_next_stop_ = {};
    backend::ConsumerState state_ = {.phase = backend::ConsumerState::Phase::kActive};
    Confirming confirming_ = Confirming::kAtOnce;
    std::vector<Kept> kept_ = {};
    std::vector<std::shared_ptr<Member>> members_ = {};
    std::vector<Content> waiting_ = {};  // for a consumer
    std::uint64_t last_number_ = 0;
    std::size_t backlog_questions_ = 0;
    std::size_t listening_questions_ = 0;
    std::size_t subscriptions_ = 0;
    std::vector<std::string> published_ = {};
    std::vector<std::string> senders_ = {};
    std::vector<std::string> settled_ = {};
};

class ScriptInbound final : public backend::Inbound {
public:
    ScriptInbound(Script& script, std::shared_ptr<Script::Member> member, std::uint64_t number)
        : script_(script), member_(std::move(member)), number_(number) {}

    void Settle() noexcept override {
        const std::lock_guard lock{script_.mutex_};
        const auto mine = member_->outstanding.extract(number_);
        if (!mine.empty()) script_.settled_.push_back(mine.mapped().message.body);
    }
    [[nodiscard]] bool Stale() const noexcept override {
        const std::lock_guard lock{script_.mutex_};
        return member_->gone;
    }

private:
    Script& script_;
    const std::shared_ptr<Script::Member> member_;
    const std::uint64_t number_;
};

inline void Script::HandOver(Content content) {
    std::vector<std::shared_ptr<Member>> members;
    {
        const std::lock_guard lock{mutex_};
        members = members_;
    }
    for (const auto& member : members) {
        const std::lock_guard delivering{member->delivering};
        if (!member->taking) continue;
        std::unique_ptr<ScriptInbound> inbound;
        {
            const std::lock_guard lock{mutex_};
            const std::uint64_t number = ++last_number_;
            member->outstanding.emplace(number, content);
            inbound = std::make_unique<ScriptInbound>(*this, member, number);
        }
        inbound->message = std::move(content.message);
        inbound->sender = std::move(content.sender);
        member->receiver->OnDelivery(std::move(inbound));
        return;
    }
    const std::lock_guard lock{mutex_};
    waiting_.push_back(std::move(content));
}

class ScriptPublisher final : public backend::Publisher {
public:
    ScriptPublisher(Script& script, backend::PublicationSink& sink) : script_(script), sink_(sink) {}

    void Publish(std::unique_ptr<backend::Publication> publication) noexcept override {
        script_.Publish(sink_, std::move(publication));
    }

private:
    Script& script_;
    backend::PublicationSink& sink_;
};

class ScriptConsumer final : public backend::Consumer {
public:
    ScriptConsumer(Script& script, std::shared_ptr<backend::Receiver> receiver) : script_(script) {
        member_->receiver = std::move(receiver);
        script_.Add(member_);
    }
    ScriptConsumer(const ScriptConsumer&) = delete;
    ScriptConsumer& operator=(const ScriptConsumer&) = delete;
    ~ScriptConsumer() override {
        script_.Stop(*member_);
        script_.Remove(member_);
    }

    [[nodiscard]] backend::ConsumerState State() const override { return script_.Get(script_.state_); }
    void Stop() noexcept override { script_.Stop(*member_); }
    void Close(backend::Clock::time_point /*deadline*/) noexcept override { script_.Remove(member_); }

private:
    Script& script_;
    const std::shared_ptr<Script::Member> member_ = std::make_shared<Script::Member>();
};

class ScriptBackend final : public backend::Backend {
public:
    explicit ScriptBackend(const backend::Context& context)
        : script_(Script::Of(context.url.hosts.at(0).host)), sink_(*context.sink) {}

    std::unique_ptr<backend::Publisher> MakePublisher(
        std::shared_ptr<const backend::Destination> /*destination*/) override {
        return std::make_unique<ScriptPublisher>(script_, sink_);
    }
    std::unique_ptr<backend::Consumer> Subscribe(backend::Subscribing /*subscribing*/,
                                                 std::shared_ptr<backend::Receiver> receiver) override {
        return std::make_unique<ScriptConsumer>(script_, std::move(receiver));
    }
    backend::Listening CheckListening(const backend::Destination& /*destination*/,
                                      const std::string& /*group*/,
                                      backend::Clock::time_point deadline) noexcept override {
        return script_.AnswerListening(deadline);
    }
    backend::Backlog CheckBacklog(const backend::Destination& /*destination*/, const std::string& group,
                                  backend::Clock::time_point deadline) noexcept override {
        return script_.AnswerBacklog(group, deadline);
    }
    void Close(backend::Clock::time_point /*deadline*/) noexcept override { script_.FailKept(sink_); }

private:
    Script& script_;
    backend::PublicationSink& sink_;
};

/// Makes the scheme available; call before the first config that names it.
inline void RegisterScript() {
    backend::Registry::Instance().Add(
        {.name = "script",
         .schemes = {"script"},
         .check = nullptr,
         .make = [](backend::Context context) -> std::unique_ptr<backend::Backend> {
             return std::make_unique<ScriptBackend>(context);
         }});
}

/// A topic between two scripted brokers, `legacy` and `next`, for one group.
struct ScriptedScene {
    explicit ScriptedScene(Order order, std::chrono::milliseconds quiet) {
        RegisterScript();
        scene.old_url = "script://" + old_name;
        scene.new_url = "script://" + new_name;
        scene.order = order;
        scene.quiet = quiet;
        scene.groups = {"billing"};
    }

    const std::string old_name = UniqueId("old");
    const std::string new_name = UniqueId("new");
    Script& legacy = Script::Of(old_name);
    Script& next = Script::Of(new_name);
    Scene scene = {};
};

/// What handlers have got, and when. Thread-safe; outlives the client whose handlers use it.
class Handled {
public:
    using Clock = backend::Clock;

    /// Begins to listen for the one group.
    void Listen(Service& service) {
        service.subscription =
            service.client->RecvMsg(kTopic, [this](const Message& message) { Handle(message); },
                                    {.group = "billing", .concurrency = 4});
    }

    /// Has handlers wait, until Open.
    void Shut() {
        const std::lock_guard lock{mutex_};
        open_ = false;
    }
    void Open() {
        const std::lock_guard lock{mutex_};
        open_ = true;
        changed_.notify_all();
    }

    /// Waits until `count` handlers have begun since the beginning; false at the deadline.
    bool WaitBegun(std::size_t count) const {
        return Wait([&] { return begun_.size() >= count; });
    }
    /// Waits until `count` handlers have ended since the beginning; false at the deadline.
    bool WaitDone(std::size_t count) const {
        return Wait([&] { return done_ >= count; });
    }

    /// The bodies that handlers have begun with, in that order.
    [[nodiscard]] std::vector<std::string> Begun() const {
        const std::lock_guard lock{mutex_};
        return begun_;
    }
    [[nodiscard]] bool empty() const { return Begun().empty(); }

    /// When a handler began with it; the caller has waited for it.
    [[nodiscard]] Clock::time_point When(const std::string& body) const {
        const std::lock_guard lock{mutex_};
        return when_.at(body);
    }

private:
    void Handle(const Message& message) {
        std::unique_lock lock{mutex_};
        begun_.push_back(message.body);
        when_.emplace(message.body, Clock::now());
        changed_.notify_all();
        changed_.wait_for(lock, kPatience, [this] { return open_; });
        ++done_;
        changed_.notify_all();
    }

    template <typename Predicate>
    bool Wait(Predicate predicate) const {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, kPatience, predicate);
    }

    mutable std::mutex mutex_ = {};  // guards all that follows
    mutable std::condition_variable changed_ = {};
    bool open_ = true;
    std::vector<std::string> begun_ = {};
    std::map<std::string, Clock::time_point> when_ = {};
    std::size_t done_ = 0;
};

/// Answers "not drained" from the first question on for that long, and notes when it did so last.
/// Thread-safe; a question that comes late changes nothing.
class NotYet {
public:
    explicit NotYet(std::chrono::milliseconds time) : time_(time) {}

    /// Answers `then` when the time is over.
    backend::Backlog Or(backend::Backlog then) {
        const std::lock_guard lock{mutex_};
        const auto now = backend::Clock::now();
        if (first_ == backend::Clock::time_point{}) first_ = now;
        if (now - first_ >= time_) return then;
        last_ = now;
        return NotDrained();
    }

    [[nodiscard]] backend::Clock::time_point last() const {
        const std::lock_guard lock{mutex_};
        return last_;
    }

private:
    const std::chrono::milliseconds time_;
    mutable std::mutex mutex_ = {};  // guards what follows
    backend::Clock::time_point first_ = {};
    backend::Clock::time_point last_ = {};
};

/// A moment that one thread notes and another one reads. Thread-safe.
class Moment {
public:
    void Note() {
        const std::lock_guard lock{mutex_};
        at_ = backend::Clock::now();
    }
    [[nodiscard]] backend::Clock::time_point at() const {
        const std::lock_guard lock{mutex_};
        return at_;
    }

private:
    mutable std::mutex mutex_ = {};  // guards at_
    backend::Clock::time_point at_ = {};
};

}  // namespace mq::test
