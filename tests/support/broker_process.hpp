/// @file broker_process.hpp
/// A real broker, as a test that kills it sees it: the scripts under tests/brokers do the work, and
/// this runs them with a deadline.
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace mq::test {

/// The value of an environment variable; nothing where it is absent or empty.
inline std::optional<std::string> FromEnvironment(const char* name) {
    const char* const value = std::getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return value;
}

/// A program that runs beside the test. Thread-safe to make; one thread uses it.
class ChildProcess {
public:
    /// Starts `program` with up to two arguments, without output or input.
    /// @throws std::runtime_error where it cannot be started.
    ChildProcess(const std::string& program, std::string first, std::string second) {
        std::string name = program;
        char* arguments[] = {name.data(), first.data(), second.data(), nullptr};
        posix_spawn_file_actions_t files;
        posix_spawn_file_actions_init(&files);
        for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
            posix_spawn_file_actions_addopen(&files, descriptor, "/dev/null", O_RDWR, 0);
        }
        const int failed = posix_spawn(&pid_, program.c_str(), &files, nullptr, arguments, environ);
        posix_spawn_file_actions_destroy(&files);
        if (failed != 0) throw std::runtime_error{"cannot run " + program};
    }
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;

    /// Kills it where it still runs.
    ~ChildProcess() {
        if (pid_ < 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }

    /// Its exit status; nothing where it has not ended within the patience.
    std::optional<int> Wait(std::chrono::milliseconds patience) {
        const auto deadline = std::chrono::steady_clock::now() + patience;
        int status = 0;
        // The end of a child can be asked for, but not waited for with a deadline, without a handler of
        // SIGCHLD that the whole process would share.
        while (::waitpid(pid_, &status, WNOHANG) == 0) {
            if (std::chrono::steady_clock::now() >= deadline) return std::nullopt;
            const timespec pause{.tv_sec = 0, .tv_nsec = 10'000'000};
            ::nanosleep(&pause, nullptr);
        }
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

private:
    pid_t pid_ = -1;
};

/// A broker that tests/brokers/KIND.sh has started in a folder. Every function throws
/// std::runtime_error where the script fails or does not end in time. One thread uses it.
class BrokerProcess {
public:
    BrokerProcess(std::string kind, std::filesystem::path folder)
        : script_((ScriptFolder() / (std::move(kind) + ".sh")).string()), folder_(std::move(folder)) {}
    BrokerProcess(const BrokerProcess&) = delete;
    BrokerProcess& operator=(const BrokerProcess&) = delete;

    /// Leaves it running, as it was found, for the tests that come after.
    ~BrokerProcess() {
        try {
            if (paused_) Resume();
            if (!running_) Start();
        } catch (const std::exception&) {
            // The test has failed already, and the next one that needs the broker says so.
        }
    }

    [[nodiscard]] std::string Url() const {
        std::ifstream file{folder_ / "url"};
        std::string url;
        std::getline(file, url);
        return url;
    }

    /// Starts it, on the same ports and with the same data. Returns when it serves clients.
    void Start() {
        Run("start", std::chrono::seconds{120});
        running_ = true;
    }

    /// SIGKILL. Returns when it is gone.
    void Kill() {
        running_ = false;
        Run("kill", std::chrono::seconds{30});
    }

    /// SIGSTOP: it keeps its connections and answers nothing. Returns when all its threads stand still.
    void Pause() {
        paused_ = true;
        Run("pause", std::chrono::seconds{30});
    }

    /// SIGCONT.
    void Resume() {
        Run("resume", std::chrono::seconds{30});
        paused_ = false;
    }

private:
    static std::filesystem::path ScriptFolder() {
        if (const auto folder = FromEnvironment("MQ_TEST_BROKER_SCRIPTS")) return *folder;
        throw std::runtime_error{"MQ_TEST_BROKER_SCRIPTS does not name the folder tests/brokers"};
    }

    void Run(const std::string& command, std::chrono::seconds patience) {
        ChildProcess child{script_, command, folder_.string()};
        const auto status = child.Wait(patience);
        if (status == 0) return;
        throw std::runtime_error{script_ + " " + command + " " +
                                 (status ? "ended with " + std::to_string(*status) : "did not end")};
    }

    const std::string script_;
    const std::filesystem::path folder_;
    bool running_ = true;
    bool paused_ = false;
};

}  // namespace mq::test
