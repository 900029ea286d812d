// Moves a topic from one broker to another while producers and two consumer groups keep working, by
// doing what an operator does: editing the config file that every client watches. In the end it
// compares what the brokers have confirmed with what each group has handled.

#include "live_migration/audit.hpp"
#include "live_migration/command.hpp"
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
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
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
    std::vector<std::string> walk{"old", "dual-subscribe", "new-publish", "new"};
    std::string order = "key";
    std::string quiet = "1s";
    std::string halfway = {};  // a shell command
};

const std::vector<std::string> kGroups{"billing", "search"};
constexpr const char* kTopic = "orders";
// How long a rung, or the last messages, may take before the demonstration gives up.
constexpr std::chrono::seconds kPatience{120};

// The config file that every client follows. Each run uses addresses of its own, so that what an
// earlier run has left on a broker is not taken for a loss or a repeat.
class ConfigFile {
public:
    explicit ConfigFile(const Options& options) : options_(options) {
        std::string pattern = (std::filesystem::temp_directory_path() / "mq-live-XXXXXX").string();
        if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make " + pattern);
        folder_ = pattern;
        address_ = "orders-" + pattern.substr(pattern.size() - 6);
    }
    ConfigFile(const ConfigFile&) = delete;
    ConfigFile& operator=(const ConfigFile&) = delete;
    ~ConfigFile() {
        std::error_code ignored;
        std::filesystem::remove_all(folder_, ignored);
    }

    [[nodiscard]] std::filesystem::path path() const { return folder_ / "mq.toml"; }

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
    ~Fleet() { JoinProducers(); }

    // Sends until it is told to stop, each producer on a thread of its own.
    void StartProducing() {
        for (unsigned i = 0; i < options_.producers; ++i) {
            mq::Client& client = *services_[services_.size() - options_.producers + i].client;
            producing_.emplace_back([this, &client, i] { Produce(client, i); });
        }
    }

    void StopProducing() {
        JoinProducers();
        for (Service& service : services_) service.client->Flush(kPatience);
    }

    [[nodiscard]] bool Reached(mq::Policy rung) const {
        return std::all_of(services_.begin(), services_.end(), [rung](const Service& service) {
            const mq::TopicStatus status = service.client->Status(kTopic);
            return status.policy == rung && status.stage == rung;
        });
    }

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

    [[nodiscard]] std::uint64_t Failed() const { return failed_; }

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

    void Produce(mq::Client& client, std::size_t number) {
        const auto begin = Clock::now();
        const double per_second = static_cast<double>(options_.rate) / options_.producers;
        for (std::uint64_t sequence = 0; !stop_; ++sequence) {
            std::this_thread::sleep_until(
                begin + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(static_cast<double>(sequence) / per_second)));
            client.SendMsg(kTopic, live::Audit::Make(number, sequence),
                           [this, number, sequence](const mq::SendResult& result) {
                               if (result.ok()) return audit_.Confirmed(number, sequence);
                               ++failed_;
                               screen_.Note("not confirmed: " + std::string{result.error().what()});
                           });
        }
    }

    void JoinProducers() {
        stop_ = true;
        for (std::thread& thread : producing_) thread.join();
        producing_.clear();
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
    std::atomic<bool> stop_{false};
    std::atomic<std::uint64_t> failed_{0};
    std::vector<Service> services_;
    std::vector<std::thread> producing_;
};

// Draws until `done` says so; false where that takes longer than `limit`.
template <typename Done>
bool DrawUntil(live::Screen& screen, const Fleet& fleet, const std::vector<mq::Policy>& walk,
               std::size_t rung, std::chrono::milliseconds limit, Done done) {
    const auto deadline = Clock::now() + limit;
    auto next_picture = Clock::now();
    while (!done()) {
        const auto now = Clock::now();
        if (now >= deadline) return false;
        if (now >= next_picture) {
            screen.Draw(fleet.Look(walk, rung));
            next_picture = now + screen.Interval();
        }
        std::this_thread::sleep_for(std::chrono::milliseconds{20});
    }
    return true;
}

// The command that runs in the middle of the walk, if there is one.
class Halfway {
public:
    Halfway(const Options& options, live::Screen& screen) : line_(options.halfway), screen_(screen) {}

    void Begin() {
        if (line_.empty()) return;
        screen_.Note("runs: " + line_);
        began_ = Clock::now();
        command_.emplace(line_);
    }

    // Whether it has ended, or there is none.
    [[nodiscard]] bool Done() {
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

    [[nodiscard]] bool Failed() const { return failed_; }

private:
    const std::string line_;
    live::Screen& screen_;
    Clock::time_point began_ = {};
    std::optional<live::Command> command_ = {};
    bool failed_ = false;
};

std::vector<mq::Policy> ParseWalk(const std::vector<std::string>& words) {
    std::vector<mq::Policy> walk;
    for (const std::string& word : words) {
        const auto policy = mq::ParsePolicy(word);
        if (!policy) {
            throw std::invalid_argument("--walk: \"" + word +
                                        "\" is none of old, dual-subscribe, new-publish, new");
        }
        walk.push_back(*policy);
    }
    return walk;
}

// Ends with the line that says whether anything was lost.
int Report(const live::Audit& audit, const Fleet& fleet, const Options& options, mq::Policy stage) {
    const live::Verdict verdict = audit.Check();
    if (fleet.Failed() > 0) {
        std::printf("%llu sends were not confirmed in time, and are not counted\n",
                    static_cast<unsigned long long>(fleet.Failed()));
    }
    std::printf("audit: sent=%llu processed=%llu lost=%llu duplicated=%llu reordered=%llu stage=%s\n",
                static_cast<unsigned long long>(verdict.sent),
                static_cast<unsigned long long>(verdict.processed),
                static_cast<unsigned long long>(verdict.lost),
                static_cast<unsigned long long>(verdict.duplicated),
                static_cast<unsigned long long>(verdict.reordered),
                std::string{mq::ToString(stage)}.c_str());
    const bool disorder = options.order == "key" && verdict.reordered > 0;
    return verdict.lost > 0 || disorder ? EXIT_FAILURE : EXIT_SUCCESS;
}

int Run(const Options& options) {
    const std::vector<mq::Policy> walk = ParseWalk(options.walk);
    live::Screen screen;
    live::Audit audit{kGroups};
    const ConfigFile config{options};
    config.Write(walk.front());
    Halfway halfway{options, screen};
    Fleet fleet{options, config, audit, screen};
    fleet.StartProducing();

    const auto dwell = std::chrono::milliseconds{options.seconds * 1000 / walk.size()};
    bool arrived = true;
    for (std::size_t rung = 0; rung < walk.size() && arrived; ++rung) {
        const auto enough = Clock::now() + dwell;
        if (rung == walk.size() / 2) halfway.Begin();
        config.Write(walk[rung]);
        screen.Note("mq.toml now says policy = \"" + std::string{mq::ToString(walk[rung])} + "\"");
        arrived = DrawUntil(screen, fleet, walk, rung, kPatience,
                            [&] { return halfway.Done() && fleet.Reached(walk[rung]); });
        if (!arrived) break;
        screen.Note("every client has reached " + std::string{mq::ToString(walk[rung])});
        const auto rest = std::chrono::duration_cast<std::chrono::milliseconds>(enough - Clock::now());
        DrawUntil(screen, fleet, walk, rung, rest, [] { return false; });
    }
    if (!arrived) screen.Note("gave up: a client has not reached the rung");

    fleet.StopProducing();
    // Waits as long as something still comes in.
    std::uint64_t handled = audit.Handled();
    auto stalled = Clock::now() + std::chrono::seconds{20};
    DrawUntil(screen, fleet, walk, walk.size() - 1, kPatience, [&] {
        if (const auto now_handled = audit.Handled(); now_handled != handled) {
            handled = now_handled;
            stalled = Clock::now() + std::chrono::seconds{20};
        }
        return audit.Complete() || Clock::now() >= stalled;
    });
    const live::Picture last = fleet.Look(walk, walk.size() - 1);
    screen.Draw(last);
    const int code = Report(audit, fleet, options, last.clients.front().status.stage);
    return arrived && !halfway.Failed() ? code : EXIT_FAILURE;
}

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
        ->capture_default_str();
    app.add_option("--order", options.order, "what the topic promises: key or none")
        ->capture_default_str()
        ->check(CLI::IsMember({"key", "none"}));
    app.add_option("--quiet", options.quiet, "no arrival for this long before a side is left")
        ->capture_default_str();
    app.add_option("--halfway", options.halfway,
                   "a shell command to run while the middle rung is taken, to restart a broker say");
    CLI11_PARSE(app, argc, argv);
    try {
        return Run(options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return EXIT_FAILURE;
    }
}
