/// @file service.cpp
/// One service of the torture test, a process of its own: it sends, or handles, or both, and follows
/// its own config file. What has happened goes into books that outlive a SIGKILL: a confirmed send is
/// entered when its callback runs, a handled message before it is settled.
///
/// The books, one line each, times in nanoseconds of the monotonic clock:
///   C TIME SEQUENCE KEY              a send was confirmed
///   U TIME SEQUENCE KEY CODE         a send ended, and its outcome is unknown
///   N TIME SEQUENCE KEY CODE         a send ended, and the broker does not have the message
///   H TIME ID KEY SIDE REPEAT SENT   a message was handled; SENT is when it was given to SendMsg
///   B TIME ID                        a message did not arrive as it was sent
///   S TIME POLICY STAGE              where the client is
///   P TIME subscribed|producing|flushed|unflushed|ended
/// SIGUSR1 ends the sending, SIGTERM the service.

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

#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace {

using namespace std::chrono_literals;

constexpr const char* kTopic = "orders";

struct Options {
    std::string name;  // unlike that of any other process of the run, also of one that ran before
    std::string config;
    std::string books;
    std::string group;  // empty: handles nothing
    unsigned rate = 0;  // messages a second; 0: sends nothing
    unsigned keys = 8;
    unsigned concurrency = 4;
    std::uint64_t most = 200'000;  // sends, so that a run is bounded
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
        client_.Watch(options_.config);
        std::jthread reporter{[this](const std::stop_token& stop) { Report(stop); }};
        std::optional<int> signal;
        if (!options_.group.empty()) signal = Subscribe(signals);
        std::jthread producer;
        if (!signal && options_.rate > 0) {
            Phase("producing");
            producer = std::jthread{[this](const std::stop_token& stop) { Produce(stop); }};
        }
        while (signal != SIGTERM) {
            if (signal == SIGUSR1 && producer.joinable()) EndSending(producer);
            signal = Await(signals, 3600s);
        }
        if (producer.joinable()) EndSending(producer);
        subscription_.Close();
        client_.Close(10s);
        reporter.request_stop();
        reporter.join();
        ReportNow();
        Phase("ended");
    }

private:
    static std::optional<int> Await(const sigset_t& signals, std::chrono::seconds patience) {
        const timespec limit{.tv_sec = static_cast<time_t>(patience.count()), .tv_nsec = 0};
        const int signal = ::sigtimedwait(&signals, nullptr, &limit);
        return signal < 0 ? std::nullopt : std::optional{signal};
    }

    void Log(mq::LogLevel level, std::string_view line) const {
        log_.Write(Number(Now()) + " " + std::string{mq::ToString(level)} + ": " + std::string{line});
    }

    void Phase(const std::string& phase) const { books_.Write("P " + Number(Now()) + " " + phase); }

    // A broker may be away when the service starts: it tries again, as a supervisor would.
    std::optional<int> Subscribe(const sigset_t& signals) {
        while (true) {
            try {
                subscription_ =
                    client_.RecvMsg(kTopic, [this](const mq::Message& message) { Handle(message); },
                                    {.group = options_.group, .concurrency = options_.concurrency});
                Phase("subscribed");
                return std::nullopt;
            } catch (const mq::Error& error) {
                Log(mq::LogLevel::kError, std::string{"not subscribed: "} + error.what());
            }
            if (const auto signal = Await(signals, 1s)) return signal;
        }
    }

    void Handle(const mq::Message& message) {
        if (message.body != Body(message.id) || !mq::FindHeader(message, "sent")) {
            books_.Write("B " + Number(Now()) + " " + message.id);
            return;
        }
        if (ThrowsFirst(message.id)) throw std::runtime_error{"as this one does at first"};
        std::this_thread::sleep_for(
            std::chrono::microseconds{std::hash<std::string>{}(message.id) % 2000});
        books_.Write("H " + Number(Now()) + " " + message.id + " " + message.key + " " +
                     std::string{mq::ToString(message.side)} + (message.redelivered ? " 1 " : " 0 ") +
                     std::string{*mq::FindHeader(message, "sent")});
    }

    // A handler that fails now and then: the message keeps its place.
    bool ThrowsFirst(const std::string& id) {
        if (std::hash<std::string>{}(id + options_.group) % 400 != 0) return false;
        const std::lock_guard lock{mutex_};
        return thrown_.insert(id).second;
    }

    // At a steady rate; after a send that had to wait it does not make up for the time.
    void Produce(const std::stop_token& stop) {
        const std::chrono::nanoseconds pace{1'000'000'000 / options_.rate};
        auto next = std::chrono::steady_clock::now();
        std::minstd_rand keys{static_cast<unsigned>(std::hash<std::string>{}(options_.name))};
        for (std::uint64_t sequence = 0; sequence < options_.most; ++sequence) {
            if (Stopped(stop, next)) return;
            next = std::max(next + pace, std::chrono::steady_clock::now() - 10 * pace);
            Send(sequence, "k" + std::to_string(keys() % options_.keys));
        }
    }

    bool Stopped(const std::stop_token& stop, std::chrono::steady_clock::time_point until) {
        std::unique_lock lock{mutex_};
        pause_.wait_until(lock, stop, until, [] { return false; });
        return stop.stop_requested();
    }

    void Send(std::uint64_t sequence, const std::string& key) {
        const std::string id = options_.name + ":" + std::to_string(sequence);
        mq::Message message{
            .body = Body(id), .key = key, .headers = {{"sent", Number(Now())}}, .id = id};
        client_.SendMsg(kTopic, std::move(message),
                        [this, sequence, key](const mq::SendResult& result) {
                            const std::string place =
                                " " + Number(Now()) + " " + std::to_string(sequence) + " " + key;
                            if (result.ok()) return books_.Write("C" + place);
                            const mq::Error& error = result.error();
                            const bool unknown = error.outcome() == mq::Outcome::kUnknown;
                            std::string code{mq::ToString(error.code())};
                            for (char& letter : code) letter = letter == ' ' ? '-' : letter;
                            books_.Write((unknown ? "U" : "N") + place + " " + code);
                            Log(mq::LogLevel::kError,
                                "send " + std::to_string(sequence) + " failed: " + error.what());
                        });
    }

    void EndSending(std::jthread& producer) {
        producer.request_stop();
        producer.join();
        Phase(client_.Flush(45s) ? "flushed" : "unflushed");
    }

    void Report(const std::stop_token& stop) {
        while (!Stopped(stop, std::chrono::steady_clock::now() + 200ms)) ReportNow();
    }

    void ReportNow() {
        const mq::TopicStatus status = client_.Status(kTopic);
        const std::string rungs =
            std::string{mq::ToString(status.policy)} + " " + std::string{mq::ToString(status.stage)};
        books_.Write("S " + Number(Now()) + " " + rungs);
        std::string said =
            "status: policy " + rungs + Side("; old", status.old_side) + Side("; new", status.new_side);
        if (!status.waiting_for.empty()) said += "; waits for " + status.waiting_for;
        if (std::exchange(said_, said) != said) log_.Write(Number(Now()) + " " + said);
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
    std::string said_;  // the reporter's
    std::mutex mutex_;  // guards thrown_
    std::condition_variable_any pause_;
    std::set<std::string> thrown_;
    mq::Client client_;
    mq::Subscription subscription_;
};

}  // namespace

int main(int argc, char** argv) try {
    Options options;
    CLI::App app{"One service of the torture test."};
    app.add_option("--name", options.name, "what its messages are named after")->required();
    app.add_option("--config", options.config, "the config file to follow")->required();
    app.add_option("--books", options.books, "the path of its books and its log, without the ending")
        ->required();
    app.add_option("--consume", options.group, "the group to handle messages for");
    app.add_option("--produce", options.rate, "messages to send a second");
    app.add_option("--keys", options.keys, "keys to send with")->check(CLI::Range(1, 1000));
    app.add_option("--concurrency", options.concurrency, "handlers at once")->check(CLI::Range(1, 64));
    app.add_option("--most", options.most, "messages to send at the most");
    CLI11_PARSE(app, argc, argv);

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
