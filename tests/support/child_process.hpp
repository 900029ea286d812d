/// @file child_process.hpp
/// A test case of this very program run in a process of its own: for what ends a process, or might hang
/// or crash at its end.
#pragma once

#include "backend_fakes.hpp"
#include "wait.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace mq::test {

/// Waits for a child. Says how it ended: "exit 7", "signal 11", or "hangs" where it has not by the
/// deadline; it is killed then.
inline std::string AwaitChild(pid_t child, std::chrono::milliseconds patience = kPatience) {
    int status = 0;
    if (!Eventually([&] { return ::waitpid(child, &status, WNOHANG) == child; }, patience)) {
        ::kill(child, SIGKILL);
        ::waitpid(child, &status, 0);
        return "hangs";
    }
    if (WIFEXITED(status)) return "exit " + std::to_string(WEXITSTATUS(status));
    return "signal " + std::to_string(WTERMSIG(status));
}

/// Runs the hidden test case of that name in a process of its own, and says how that has ended; as
/// AwaitChild does.
inline std::string RunInChild(const std::string& test, std::chrono::milliseconds patience = kPatience) {
    // ThreadSanitizer by itself ends a process that has threads and forks, and takes for a race what
    // the end of a process does beside its threads; LeakSanitizer takes for a leak what the other
    // threads of a parent own in its child.
    const std::array<std::pair<std::string, std::string>, 2> added{
        {{"TSAN_OPTIONS=", "die_after_fork=0:report_bugs=0"}, {"ASAN_OPTIONS=", "detect_leaks=0"}}};
    std::vector<std::string> environment;
    for (const auto& [name, value] : added) {
        const char* const set = std::getenv(name.substr(0, name.size() - 1).c_str());
        environment.push_back(name + (set != nullptr ? std::string{set} + ":" : "") + value);
    }
    for (char** entry = environ; *entry != nullptr; ++entry) {
        const std::string variable{*entry};
        const bool again = std::any_of(added.begin(), added.end(), [&](const auto& each) {
            return variable.starts_with(each.first);
        });
        // The tally is the parent's.
        if (!again && !variable.starts_with("MQ_TEST_TALLY=")) environment.push_back(variable);
    }
    std::vector<char*> pointers;
    for (std::string& variable : environment) pointers.push_back(variable.data());
    pointers.push_back(nullptr);

    std::string program = "/proc/self/exe";
    std::string name = test;
    std::array<char*, 3> arguments{program.data(), name.data(), nullptr};
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    pid_t child = 0;
    const int failed =
        ::posix_spawn(&child, program.c_str(), &actions, nullptr, arguments.data(), pointers.data());
    ::posix_spawn_file_actions_destroy(&actions);
    if (failed != 0) return "no process";
    return AwaitChild(child, patience);
}

}  // namespace mq::test
