/// @file service.cpp
/// One service of the torture test, a process of its own: it sends, or handles, or both, and follows
/// its own config file. What has happened goes into books that outlive a SIGKILL: a confirmed send is
/// entered when its callback runs, a handled message before it is settled.
///
/// The books, one line each, times in nanoseconds of the monotonic clock:
///   C TIME ID KEY                          a send was confirmed
///   U TIME ID KEY CODE                     a send ended, and its outcome is unknown
///   N TIME ID KEY CODE                     a send ended, and the broker does not have the message
///   H TIME GROUP ID KEY SIDE REPEAT SENT   a message was handled; SENT is when it was given to SendMsg
///   B TIME ID                              a message did not arrive as it was sent
///   S TIME TOPIC POLICY STAGE              where the client is
///   P TIME subscribed|producing|flushed|unflushed|ended
/// An ID is NAME/LANE:SEQUENCE. A lane is a topic, or a topic and "+" for what handlers send: each has
/// an order of its own, by its sequence.
/// SIGUSR1 ends the sending, SIGTERM the service.
///
/// The file --mood, where there is one, says how the service behaves, in lines of a word and a number:
///   slow MS     handlers take so much longer
///   block 1     handlers do not return
///   poison 1    the handlers of the orders fail for some messages
///   burst N     it sends N times as much
///   away 1      it leaves the orders

#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <CLI/CLI.hpp>
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;

constexpr const char* kTopic = "orders";
constexpr int kMood = 100;  // milliseconds from one look at the file to the next

struct Options {
    std::string name;  // unlike that of any other process of the run, also of one that ran before
    std::string config;
    std::string books;
    std::string mood;
    std::vector<std::string> topics;                            // to report on
    std::vector<std::pair<std::string, std::string>> consumed;  // topic, group
    std::vector<std::pair<std::string, unsigned>> produced;     // topic, messages a second
    std::string sends;  // a topic that handlers of orders send to
    unsigned keys = 8;
    unsigned concurrency = 4;
    std::uint64_t most = 2'000'000;  // sends to a topic, so that a run is bounded
};

// What the file says that the service is to do.
struct Mood {
    std::atomic<unsigned> slow = 0;
    std::atomic<unsigned> block = 0;
    std::atomic<unsigned> poison = 0;
    std::atomic<unsigned> burst = 0;
    std::atomic<unsigned> away = 0;

    void Read(const std::string& path) {
        std::map<std::string, unsigned> said;
        std::ifstream file{path};
        std::string word;
        unsigned number = 0;
        while (file >> word >> number) said[word] = number;
        slow = said["slow"];
        block = said["block"];
        poison = said["poison"];
        burst = said["burst"];
        away = said["away"];
    }
};

std::int64_t Now() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// A file of lines. Each is one write: a process that is killed leaves whole lines behind, and they are
// the kernel's by then. Thread-safe.
class Lines {
public:
    explicit Lines(const std::string& path)
        : descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
        if (descriptor_ < 0) throw std::runtime_error{"cannot write " + path};
    }
    Lines(const Lines&) = delete;
    Lines& operator=(const Lines&) = delete;
    ~Lines() { ::close(descriptor_); }

    void Write(std::string line) const noexcept {
        line += '\n';
        if (::write(descriptor_, line.data(), line.size()) == static_cast<ssize_t>(line.size())) return;
        // Books with a gap prove nothing.
        std::perror("the books");
        std::abort();
    }

private:
    const int descriptor_;
};

std::string Body(std::string_view id) {
    const std::size_t size = 100 + std::hash<std::string_view>{}(id) % 900;
    std::string body{id};
    body.resize(id.size() + size, '.');
    return body;
}

std::string Number(std::int64_t number) { return std::to_string(number); }

class Service {
public:
    explicit Service(Options options)
        : options_(std::move(options)),
          books_(options_.books + ".books"),
          log_(options_.books + ".log"),
          client_(mq::LoadConfig(options_.config),
                  {.log = [this](mq::LogLevel level, std::string_view line) { Log(level, line); }}) {}

    void Run(const sigset_t& signals) {
        mood_.Read(options_.mood);
        client_.Watch(options_.config);
        std::jthread reporter{[this](const std::stop_token& stop) { Report(stop); }};
        std::optional<int> signal;
        for (const auto& [topic, group] : options_.consumed) {
            if (!signal) signal = Subscribe(signals, topic, group);
        }
        if (!signal && !options_.consumed.empty()) Phase("subscribed");
        std::vector<std::jthread> producers;
        if (!signal && !options_.produced.empty()) {
            Phase("producing");
            for (const auto& [topic, rate] : options_.produced) {
                producers.emplace_back([this, topic = topic, rate = rate](const std::stop_token& stop) {
                    Produce(stop, topic, rate);
                });
            }
        }
        while (signal != SIGTERM) {
            if (signal == SIGUSR1) EndSending(producers);
            signal = Await(signals, std::chrono::milliseconds{kMood});
            if (!signal) signal = ComeAndGo(signals);
        }
        EndSending(producers);
        subscriptions_.clear();
        client_.Close(10s);
        reporter.request_stop();
        reporter.join();
        ReportNow();
        Phase("ended");
    }

private:
    static std::optional<int> Await(const sigset_t& signals, std::chrono::milliseconds patience) {
        const timespec limit{.tv_sec = static_cast<time_t>(patience.count() / 1000),
                             .tv_nsec = static_cast<long>(patience.count() % 1000) * 1'000'000};
        const int signal = ::sigtimedwait(&signals, nullptr, &limit);
        return signal < 0 ? std::nullopt : std::optional{signal};
    }

    void Log(mq::LogLevel level, std::string_view line) const {
        log_.Write(Number(Now()) + " " + std::string{mq::ToString(level)} + ": " + std::string{line});
    }

    void Phase(const std::string& phase) const { books_.Write("P " + Number(Now()) + " " + phase); }

    // A broker may be away when the service starts: it tries again, as a supervisor would.
    std::optional<int> Subscribe(const sigset_t& signals, const std::string& topic,
                                 const std::string& group) {
        while (true) {
            try {
                subscriptions_[topic] = client_.RecvMsg(
                    topic, [this, group](const mq::Message& message) { Handle(group, message); },
                    {.group = group, .concurrency = options_.concurrency});
                return std::nullopt;
            } catch (const mq::Error& error) {
                Log(mq::LogLevel::kError, std::string{"not subscribed: "} + error.what());
            }
            if (const auto signal = Await(signals, 1s)) return signal;
        }
    }

    // Leaves the orders, or subscribes again, as the mood says.
    std::optional<int> ComeAndGo(const sigset_t& signals) {
        const auto found = std::find_if(options_.consumed.begin(), options_.consumed.end(),
                                        [](const auto& each) { return each.first == kTopic; });
        if (found == options_.consumed.end()) return std::nullopt;
        if (mood_.away != 0) {
            subscriptions_.erase(kTopic);
        } else if (!subscriptions_.contains(kTopic)) {
            return Subscribe(signals, kTopic, found->second);
        }
        return std::nullopt;
    }

    void Handle(const std::string& group, const mq::Message& message) {
        if (message.body != Body(message.id) || !mq::FindHeader(message, "sent")) {
            books_.Write("B " + Number(Now()) + " " + message.id);
            return;
        }
        if (ThrowsFirst(group + " " + message.id))
            throw std::runtime_error{"as this one does at first"};
        if (IsPoison(message)) throw std::runtime_error{"as this one does until it is healed"};
        // Business code that waits for something of its own.
        while (mood_.block != 0) std::this_thread::sleep_for(std::chrono::milliseconds{kMood / 2});
        std::this_thread::sleep_for(
            std::chrono::microseconds{std::hash<std::string>{}(message.id) % 2000} +
            std::chrono::milliseconds{mood_.slow});
        if (!options_.sends.empty()) Answer(message);
        books_.Write("H " + Number(Now()) + " " + group + " " + message.id + " " + message.key + " " +
                     std::string{mq::ToString(message.side)} + (message.redelivered ? " 1 " : " 0 ") +
                     std::string{*mq::FindHeader(message, "sent")});
    }

    // A handler that fails now and then: the message keeps its place.
    bool ThrowsFirst(const std::string& what) {
        if (std::hash<std::string>{}(what) % 400 != 0) return false;
        const std::lock_guard lock{mutex_};
        return thrown_.insert(what).second;
    }

    // One that fails each time, in every process of the group, until the mood changes.
    bool IsPoison(const mq::Message& message) const {
        return mood_.poison != 0 && message.topic == kTopic &&
               std::hash<std::string>{}("poison " + message.id) % 50 == 0;
    }

    // A handler that sends, and waits for the confirm. What handlers have sent is not answered.
    void Answer(const mq::Message& message) {
        if (message.topic != kTopic || message.id.find('+') != std::string::npos ||
            std::hash<std::string>{}("answer " + message.id) % 20 != 0) {
            return;
        }
        const std::string id = options_.name + "/" + options_.sends + "+:" + std::to_string(answers_++);
        try {
            client_.SendMsg(options_.sends, Make(id, message.key));
            books_.Write("C " + Number(Now()) + " " + id + " " + message.key);
        } catch (const mq::Error& error) {
            WriteFailure(id, message.key, error);
        }
    }

    static mq::Message Make(const std::string& id, const std::string& key) {
        return {.body = Body(id), .key = key, .headers = {{"sent", Number(Now())}}, .id = id};
    }

    void WriteFailure(const std::string& id, const std::string& key, const mq::Error& error) const {
        std::string code{mq::ToString(error.code())};
        for (char& letter : code) letter = letter == ' ' ? '-' : letter;
        books_.Write((error.outcome() == mq::Outcome::kUnknown ? "U " : "N ") + Number(Now()) + " " +
                     id + " " + key + " " + code);
        Log(mq::LogLevel::kError, "send " + id + " failed: " + error.what());
    }

    // At a steady rate; after a send that had to wait it does not make up for the time.
    void Produce(const std::stop_token& stop, const std::string& topic, unsigned rate) {
        const std::string lane = options_.name + "/" + topic;
        auto next = std::chrono::steady_clock::now();
        std::minstd_rand keys{static_cast<unsigned>(std::hash<std::string>{}(lane))};
        for (std::uint64_t sequence = 0; sequence < options_.most; ++sequence) {
            if (Stopped(stop, next)) return;
            const std::chrono::nanoseconds pace{1'000'000'000 / (rate * std::max(1u, +mood_.burst))};
            next = std::max(next + pace, std::chrono::steady_clock::now() - 10 * pace);
            Send(topic, lane + ":" + std::to_string(sequence),
                 "k" + std::to_string(keys() % options_.keys));
        }
    }

    bool Stopped(const std::stop_token& stop, std::chrono::steady_clock::time_point until) {
        std::unique_lock lock{mutex_};
        pause_.wait_until(lock, stop, until, [] { return false; });
        return stop.stop_requested();
    }

    void Send(const std::string& topic, const std::string& id, const std::string& key) {
        client_.SendMsg(topic, Make(id, key), [this, id, key](const mq::SendResult& result) {
            if (!result.ok()) return WriteFailure(id, key, result.error());
            books_.Write("C " + Number(Now()) + " " + id + " " + key);
        });
    }

    void EndSending(std::vector<std::jthread>& producers) {
        if (producers.empty()) return;
        for (std::jthread& producer : producers) producer.request_stop();
        producers.clear();
        Phase(client_.Flush(45s) ? "flushed" : "unflushed");
    }

    void Report(const std::stop_token& stop) {
        bool second = false;
        while (!Stopped(stop, std::chrono::steady_clock::now() + std::chrono::milliseconds{kMood})) {
            mood_.Read(options_.mood);
            second = !second;
            if (second) ReportNow();
        }
    }

    void ReportNow() {
        for (const std::string& topic : options_.topics) {
            const mq::TopicStatus status = client_.Status(topic);
            const std::string rungs = topic + " " + std::string{mq::ToString(status.policy)} + " " +
                                      std::string{mq::ToString(status.stage)};
            books_.Write("S " + Number(Now()) + " " + rungs);
            std::string said =
                "status: " + rungs + Side("; old", status.old_side) + Side("; new", status.new_side);
            if (!status.waiting_for.empty()) said += "; waits for " + status.waiting_for;
            for (const mq::Standstill& standstill : status.standstills) {
                said += "; stands still: " + standstill.text;
            }
            if (std::exchange(said_[topic], said) != said) log_.Write(Number(Now()) + " " + said);
        }
    }

    static std::string Side(const std::string& name, const mq::SideStatus& side) {
        std::string text = name + (side.publishing ? " publishing" : "") +
                           (side.subscribed ? " subscribed" : "") + " sent " +
                           std::to_string(side.published) + "/" + std::to_string(side.confirmed) + "/" +
                           std::to_string(side.failed) + " received " + std::to_string(side.received) +
                           "/" + std::to_string(side.processed) + " unsettled " +
                           std::to_string(side.unsettled) + " held " + std::to_string(side.held);
        if (side.backlog) text += " backlog " + std::to_string(*side.backlog);
        return text;
    }

    const Options options_;
    const Lines books_;
    const Lines log_;
    std::map<std::string, std::string> said_;  // the reporter's
    Mood mood_;
    std::atomic<std::uint64_t> answers_ = 0;
    std::mutex mutex_;  // guards thrown_
    std::condition_variable_any pause_;
    std::set<std::string> thrown_;
    mq::Client client_;
    std::map<std::string, mq::Subscription> subscriptions_;  // by topic; the main thread's
};

// "A:B" for CLI11, which has tuples of its own for "A B" only.
template <typename Second>
std::vector<std::pair<std::string, Second>> Pairs(const std::vector<std::string>& texts) {
    std::vector<std::pair<std::string, Second>> pairs;
    for (const std::string& text : texts) {
        const std::size_t colon = text.find(':');
        if (colon == std::string::npos) throw std::runtime_error{"no \":\" in " + text};
        std::istringstream rest{text.substr(colon + 1)};
        Second second{};
        rest >> second;
        pairs.emplace_back(text.substr(0, colon), second);
    }
    return pairs;
}

}  // namespace

int main(int argc, char** argv) try {
    Options options;
    CLI::App app{"One service of the torture test."};
    app.add_option("--name", options.name, "what its messages are named after")->required();
    app.add_option("--config", options.config, "the config file to follow")->required();
    app.add_option("--books", options.books, "the path of its books and its log, without the ending")
        ->required();
    app.add_option("--mood", options.mood, "the file that says how it behaves")->required();
    app.add_option("--topic", options.topics, "a topic to report on");
    std::vector<std::string> consumed;
    std::vector<std::string> produced;
    app.add_option("--consume", consumed, "TOPIC:GROUP to handle messages for");
    app.add_option("--produce", produced, "TOPIC:RATE, messages to send a second");
    app.add_option("--sends", options.sends, "a topic that the handlers of orders send to");
    app.add_option("--keys", options.keys, "keys to send with")->check(CLI::Range(1, 1000));
    app.add_option("--concurrency", options.concurrency, "handlers at once")->check(CLI::Range(1, 64));
    app.add_option("--most", options.most, "messages to send at the most");
    CLI11_PARSE(app, argc, argv);
    options.consumed = Pairs<std::string>(consumed);
    options.produced = Pairs<unsigned>(produced);

    // The library's threads inherit the mask, so that the signals wait for the main thread.
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    Service{std::move(options)}.Run(signals);
    return EXIT_SUCCESS;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return EXIT_FAILURE;
}
