// Moves a topic from one broker to another while producers and two consumer groups keep working, by
// doing what an operator does: editing the config file that every client watches. In the end it
// compares what the brokers have confirmed with what each group has handled.

#include "live_migration/audit.hpp"
#include "live_migration/command.hpp"
#include "live_migration/interrupt.hpp"
#include "live_migration/screen.hpp"
#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
    std::string old_url = "memory://old";
    std::string new_url = "memory://new";
    unsigned rate = 2000;  // messages a second, of all producers together
    unsigned seconds = 10;
    unsigned producers = 3;
    unsigned consumers = 2;  // members of each group
    std::vector<std::string> walk{"old", "dual-subscribe", "new-publish",
                                  "new"};  // words of the config
    std::string order = "key";
    std::string quiet = "1s";
    std::string halfway = {};  // a shell command
};

const std::vector<std::string> kGroups{"billing", "search"};
constexpr const char* kTopic = "orders";
// How long a rung, or the last messages, may take before the demonstration gives up.
constexpr std::chrono::seconds kPatience{120};
// How long nothing may come in before what is missing counts as lost.
constexpr std::chrono::seconds kStill{20};
// How long a demonstration that was interrupted may take to settle.
constexpr std::chrono::seconds kHaste{20};

// The config file that every client follows. Each run uses addresses of its own, so that what an
// earlier run has left on a broker is not taken for a loss or a repeat.
class ConfigFile {
public:
    ConfigFile(const Options& options, mq::Policy policy) : options_(options) {
        std::string pattern = (std::filesystem::temp_directory_path() / "mq-live-XXXXXX").string();
        if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make " + pattern);
        folder_ = pattern;
        address_ = "orders-" + pattern.substr(pattern.size() - 6);
        Write(policy);
    }
    ConfigFile(const ConfigFile&) = delete;
    ConfigFile& operator=(const ConfigFile&) = delete;
    ~ConfigFile() { Remove(); }

    [[nodiscard]] std::filesystem::path path() const { return folder_ / "mq.toml"; }
    [[nodiscard]] const std::string& address() const { return address_; }

    // Replaces the file in one go, as an editor does.
    void Write(mq::Policy policy) const {
        const std::filesystem::path draft = folder_ / "mq.toml.new";
        {
            std::ofstream file{draft};
            file << "[brokers.old]\nurl = '" << options_.old_url << "'\n"
                 << "[brokers.new]\nurl = '" << options_.new_url << "'\n\n"
                 << "[topics." << kTopic << "]\nold = \"old\"\nnew = \"new\"\n"
                 << "policy = \"" << mq::ToString(policy) << "\"\n"
                 << "groups = [\"billing\", \"search\"]\n"
                 << "address = { old = \"" << address_ << "\", new = \"" << address_ << "\" }\n"
                 << "order = \"" << options_.order << "\"\nquiet = \"" << options_.quiet << "\"\n";
        }
        std::filesystem::rename(draft, path());
    }

    void Remove() const noexcept {
        std::error_code ignored;
        std::filesystem::remove_all(folder_, ignored);
    }

private:
    const Options& options_;
    std::filesystem::path folder_;
    std::string address_;
};

// A service: a client of its own, as if it were a process of its own.
struct Service {
    std::string name;
    std::unique_ptr<mq::Client> client;
    mq::Subscription subscription = {};
};

// All services, and the picture of what they do.
class Fleet {
public:
    Fleet(const Options& options, const ConfigFile& config, live::Audit& audit, live::Screen& screen)
        : options_(options), config_(config), audit_(audit), screen_(screen) {
        for (const std::string& group : kGroups) {
            for (unsigned i = 0; i < options.consumers; ++i) AddConsumer(group, i);
        }
        for (unsigned i = 0; i < options.producers; ++i) Add("producer-" + std::to_string(i));
    }
    Fleet(const Fleet&) = delete;
    Fleet& operator=(const Fleet&) = delete;

    // Sends until it is told to stop, each producer on a thread of its own.
    void StartProducing() {
        for (unsigned i = 0; i < options_.producers; ++i) {
            mq::Client& client = *services_[services_.size() - options_.producers + i].client;
            ++sending_;
            producing_.emplace_back(
                [this, &client, i](const std::stop_token& stop) { Produce(client, i, stop); });
        }
    }

    // Does not wait: Sending() says when they have stopped.
    void StopProducing() {
        for (std::jthread& thread : producing_) thread.request_stop();
    }

    // Whether a producer goes on, or a send has not ended.
    [[nodiscard]] bool Sending() const { return sending_ > 0 || audit_.InFlight() > 0; }

    [[nodiscard]] bool Reached(mq::Policy rung) const {
        return std::all_of(services_.begin(), services_.end(), [rung](const Service& service) {
            const mq::TopicStatus status = service.client->Status(kTopic);
            return status.policy == rung && status.stage == rung;
        });
    }

    // Where the first client is.
    [[nodiscard]] mq::Policy Stage() const { return services_.front().client->Status(kTopic).stage; }

    [[nodiscard]] live::Picture Look(const std::vector<mq::Policy>& walk, std::size_t rung) const {
        live::Picture picture{.walk = walk, .rung = rung};
        for (const Service& service : services_) {
            picture.clients.push_back({service.name, service.client->Status(kTopic)});
            const mq::TopicStatus& status = picture.clients.back().status;
            AddTo(picture.old_side, status.old_side);
            AddTo(picture.new_side, status.new_side);
        }
        picture.old_side.broker = mq::Redacted(mq::ParseUrl(options_.old_url));
        picture.new_side.broker = mq::Redacted(mq::ParseUrl(options_.new_url));
        return picture;
    }

private:
    mq::Client& Add(const std::string& name) {
        mq::ClientOptions options{.log = [this, name](mq::LogLevel level, std::string_view line) {
            if (level >= mq::LogLevel::kWarning) screen_.Note(name + ": " + std::string{line});
        }};
        auto client = std::make_unique<mq::Client>(mq::LoadConfig(config_.path()), std::move(options));
        client->Watch(config_.path());
        services_.push_back({.name = name, .client = std::move(client)});
        return *services_.back().client;
    }

    void AddConsumer(const std::string& group, unsigned number) {
        mq::Client& client = Add(group + "-" + std::to_string(number));
        services_.back().subscription = client.RecvMsg(
            kTopic, [this, group](const mq::Message& message) { audit_.Processed(group, message); },
            {.group = group, .concurrency = 4});
    }

    void Produce(mq::Client& client, std::size_t number, const std::stop_token& stop) {
        const std::chrono::duration<double> gap{static_cast<double>(options_.producers) /
                                                options_.rate};
        const auto begin = Clock::now();
        std::mutex mutex;
        std::unique_lock lock{mutex};
        std::condition_variable_any turn;  // comes by the clock; only a stop comes before it
        for (std::uint64_t sent = 0; !stop.stop_requested(); ++sent) {
            const auto due =
                begin + std::chrono::duration_cast<Clock::duration>(gap * static_cast<double>(sent));
            turn.wait_until(lock, stop, due, [] { return false; });
            if (stop.stop_requested()) break;
            client.SendMsg(kTopic, audit_.Make(number),
                           [this](const mq::SendResult& result) { Ended(result); });
        }
        --sending_;
    }

    void Ended(const mq::SendResult& result) {
        if (result.ok()) return audit_.Confirmed(result.id());
        // A broker that is away refuses thousands of them.
        constexpr std::uint64_t kShown = 5;
        const std::uint64_t failed = audit_.Failed();
        if (failed > kShown) return;
        screen_.Note("not confirmed: " + std::string{result.error().what()});
        if (failed == kShown) screen_.Note("further sends that are not confirmed are only counted");
    }

    static void AddTo(live::SideRow& row, const mq::SideStatus& side) {
        row.published += side.published;
        row.confirmed += side.confirmed;
        row.received += side.received;
        row.processed += side.processed;
        row.held += side.held;
        const std::uint64_t due = row.confirmed * kGroups.size();
        row.backlog = due > row.processed ? due - row.processed : 0;
    }

    const Options& options_;
    const ConfigFile& config_;
    live::Audit& audit_;
    live::Screen& screen_;
    std::vector<Service> services_;
    std::atomic<unsigned> sending_{0};
    std::vector<std::jthread> producing_;
};

// The command that runs in the middle of the walk, if there is one.
class Halfway {
public:
    Halfway(const Options& options, live::Screen& screen) : line_(options.halfway), screen_(screen) {}

    void Begin() {
        if (line_.empty()) return;
        screen_.Note("runs: " + line_);
        const std::lock_guard lock{mutex_};
        began_ = Clock::now();
        command_.emplace(line_);
    }

    // Whether it has ended, or there is none.
    [[nodiscard]] bool Done() {
        const std::lock_guard lock{mutex_};
        if (!command_) return true;
        const auto status = command_->Status();
        if (!status) return false;
        const std::chrono::duration<double> taken = Clock::now() - began_;
        char text[80];
        std::snprintf(text, sizeof text, "it ended with status %d after %.1f s", *status,
                      taken.count());
        screen_.Note(text);
        command_.reset();
        failed_ = *status != 0;
        return true;
    }

    // Ends it where it runs. Does not wait for it; any thread may call.
    void Terminate() {
        const std::lock_guard lock{mutex_};
        if (command_) command_->Terminate();
    }

    [[nodiscard]] bool Failed() const { return failed_; }

private:
    const std::string line_;
    live::Screen& screen_;
    std::mutex mutex_;  // guards began_ and command_
    Clock::time_point began_ = {};
    std::optional<live::Command> command_ = {};
    bool failed_ = false;
};

std::vector<std::string> PolicyWords() {
    std::vector<std::string> words;
    for (const mq::Policy policy : mq::kPolicies) words.emplace_back(mq::ToString(policy));
    return words;
}

std::vector<mq::Policy> ParseWalk(const std::vector<std::string>& words) {
    std::vector<mq::Policy> walk;
    for (const std::string& word : words) walk.push_back(mq::ParsePolicy(word).value());
    return walk;
}

// The walk, what is seen of it, and its end.
class Demonstration {
public:
    explicit Demonstration(const Options& options)
        : options_(options), walk_(ParseWalk(options.walk)) {}
    Demonstration(const Demonstration&) = delete;
    Demonstration& operator=(const Demonstration&) = delete;

    // Returns the exit status.
    int Run() {
        fleet_.StartProducing();
        const bool arrived = Walk();
        fleet_.StopProducing();
        Settle();
        const int status = Report();
        if (status != EXIT_SUCCESS) return status;
        if (interrupt_.Signal() != 0) return 128 + interrupt_.Signal();
        return arrived ? EXIT_SUCCESS : EXIT_FAILURE;
    }

private:
    // False where it was interrupted, or a rung was not reached.
    bool Walk() {
        const std::chrono::milliseconds dwell{options_.seconds * 1000 / walk_.size()};
        const auto interrupted = [this] { return interrupt_.Signal() != 0; };
        for (rung_ = 0;; ++rung_) {
            const auto enough = Clock::now() + dwell;
            const mq::Policy policy = walk_[rung_];
            const std::string word{mq::ToString(policy)};
            if (rung_ == walk_.size() / 2) halfway_.Begin();
            config_.Write(policy);
            screen_.Note("mq.toml now says policy = \"" + word + "\"");
            const bool reached = DrawUntil(Clock::now() + kPatience, [&] {
                return interrupted() || (halfway_.Done() && fleet_.Reached(policy));
            });
            if (interrupted()) return false;
            screen_.Note(reached ? "every client has reached " + word
                                 : "gave up: a client has not reached " + word);
            if (!reached) return false;
            DrawUntil(enough, interrupted);
            if (interrupted()) return false;
            if (rung_ + 1 == walk_.size()) return true;
        }
    }

    // Waits for what is on its way, as long as something still comes in.
    void Settle() {
        std::uint64_t handled = audit_.Handled();
        auto stalled = Clock::now() + kStill;
        const bool settled = DrawUntil(Clock::now() + kPatience, [&] {
            const bool busy = !halfway_.Done() || fleet_.Sending();
            const std::uint64_t now_handled = audit_.Handled();
            if (busy || now_handled != handled) {
                handled = now_handled;
                stalled = Clock::now() + kStill;
            }
            return !busy && (audit_.Complete() || Clock::now() >= stalled);
        });
        if (!settled) screen_.Note("gave up: not everything that was sent has ended or come in");
        screen_.Draw(fleet_.Look(walk_, rung_));
    }

    // Ends with the line that says whether anything was lost.
    int Report() {
        screen_.End();
        const live::Verdict verdict = audit_.Check();
        if (verdict.sent == 0) std::puts("no broker has confirmed anything");
        Say(verdict.unconfirmed, "sends were not confirmed, and are not counted");
        Say(verdict.foreign, "messages came that were not sent here, or not so, and are not counted");
        std::printf(
            "audit: sent=%llu processed=%llu lost=%llu duplicated=%llu reordered=%llu stage=%s\n",
            Printed(verdict.sent), Printed(verdict.processed), Printed(verdict.lost),
            Printed(verdict.duplicated), Printed(verdict.reordered),
            std::string{mq::ToString(fleet_.Stage())}.c_str());
        std::fflush(stdout);
        // Only a broker that was killed on purpose may leave sends without an answer.
        const bool unanswered = verdict.unconfirmed > 0 && options_.halfway.empty();
        const bool disorder = verdict.reordered > 0 && options_.order == "key";
        const bool good = verdict.sent > 0 && verdict.lost == 0 && !unanswered && !disorder;
        return good && !halfway_.Failed() ? EXIT_SUCCESS : EXIT_FAILURE;
    }

    // Draws until `done` says so; false where the deadline passes first, or it takes long after an
    // interrupt.
    template <typename Done>
    bool DrawUntil(Clock::time_point deadline, Done done) {
        auto next_picture = Clock::now();
        while (!done()) {
            const auto now = Clock::now();
            if (interrupt_.Signal() != 0 && !in_haste_until_) in_haste_until_ = now + kHaste;
            if (now >= std::min(deadline, in_haste_until_.value_or(deadline))) return false;
            if (now >= next_picture) {
                screen_.Draw(fleet_.Look(walk_, rung_));
                next_picture = now + screen_.Interval();
            }
            std::this_thread::sleep_for(std::chrono::milliseconds{20});
        }
        return true;
    }

    static unsigned long long Printed(std::uint64_t number) { return number; }

    static void Say(std::uint64_t number, const char* what) {
        if (number > 0) std::printf("%llu %s\n", Printed(number), what);
    }

    const Options& options_;
    const std::vector<mq::Policy> walk_;
    std::size_t rung_ = 0;  // the index in walk_ that the config asks for
    std::optional<Clock::time_point> in_haste_until_ = {};
    live::Screen screen_;
    const ConfigFile config_{options_, walk_.front()};
    live::Audit audit_{config_.address(), kGroups, options_.producers};
    Halfway halfway_{options_, screen_};
    live::Interrupt interrupt_{
        [this] {
            screen_.Note("interrupted: waits for what is on its way; a second time ends it at once");
        },
        [this] {
            halfway_.Terminate();
            config_.Remove();
        }};
    Fleet fleet_{options_, config_, audit_, screen_};  // its threads come after interrupt_
};

}  // namespace

int main(int argc, char** argv) {
    Options options;
    CLI::App app{
        "Moves a topic from one broker to another under live traffic, and proves that nothing was "
        "lost."};
    app.add_option("--old", options.old_url, "URL of the old broker")->capture_default_str();
    app.add_option("--new", options.new_url, "URL of the new broker")->capture_default_str();
    app.add_option("--rate", options.rate, "messages a second, of all producers together")
        ->capture_default_str()
        ->check(CLI::Range(1, 1'000'000));
    app.add_option("--seconds", options.seconds, "how long to keep sending, at least")
        ->capture_default_str()
        ->check(CLI::Range(1, 86'400));
    app.add_option("--producers", options.producers, "producer services")
        ->capture_default_str()
        ->check(CLI::Range(1, 64));
    app.add_option("--consumers", options.consumers, "consumer services in each of the two groups")
        ->capture_default_str()
        ->check(CLI::Range(1, 64));
    app.add_option("--walk", options.walk, "the rungs, in order; between them every rung is taken")
        ->delimiter(',')
        ->capture_default_str()
        ->check(CLI::IsMember(PolicyWords()));
    app.add_option("--order", options.order, "what the topic promises: key or none")
        ->capture_default_str()
        ->check(CLI::IsMember({"key", "none"}));
    app.add_option("--quiet", options.quiet, "no arrival for this long before a side is left")
        ->capture_default_str();
    app.add_option("--halfway", options.halfway,
                   "a shell command to run while the middle rung is taken, to restart a broker say");
    app.footer(
        "Ctrl-C ends it early: it stops sending, waits for what is on its way, and prints the audit;\n"
        "a second one ends it at once.\n\n"
        "The topic has an address of its own in each run, orders-XXXXXX. On brokers that outlive the\n"
        "run, what lies under that address remains: the exchange and the durable queues on RabbitMQ,\n"
        "the topic and the groups' offsets on Kafka, the queues or the address on ActiveMQ.");
    CLI11_PARSE(app, argc, argv);
    try {
        return Demonstration{options}.Run();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return EXIT_FAILURE;
    }
}
