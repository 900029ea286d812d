/// @file command.hpp
/// A shell command that runs beside the demonstration: what it does to a broker, by whatever means.
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>
#include <stdexcept>
#include <string>

namespace live {

/// One thread uses it.
class Command {
public:
    /// Starts `line` in /bin/sh, without input and output; what it says on standard error is seen. It
    /// is a process group of its own: a Ctrl-C, after which the demonstration still settles, does not
    /// leave a broker half restarted. @throws std::runtime_error where it cannot be started.
    explicit Command(std::string line) {
        std::string shell = "/bin/sh";
        std::string option = "-c";
        char* arguments[] = {shell.data(), option.data(), line.data(), nullptr};
        posix_spawn_file_actions_t files;
        posix_spawn_file_actions_init(&files);
        posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
        posix_spawnattr_t attributes;
        posix_spawnattr_init(&attributes);
        // The signals that this process waits for are blocked here, and are not to be there.
        sigset_t none;
        sigemptyset(&none);
        posix_spawnattr_setsigmask(&attributes, &none);
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
        const int failed = posix_spawn(&pid_, shell.c_str(), &files, &attributes, arguments, environ);
        posix_spawnattr_destroy(&attributes);
        posix_spawn_file_actions_destroy(&files);
        if (failed != 0) throw std::runtime_error("cannot run " + line);
    }
    Command(const Command&) = delete;
    Command& operator=(const Command&) = delete;

    /// Ends it where it still runs.
    ~Command() {
        if (pid_ < 0) return;
        Terminate();
        ::waitpid(pid_, nullptr, 0);
    }

    /// Asks it to end, with everything that it runs. Does not block.
    void Terminate() const noexcept {
        if (pid_ > 0) ::kill(-pid_, SIGTERM);
    }

    /// Its exit status, once it has ended. Does not block.
    std::optional<int> Status() {
        int status = 0;
        if (pid_ > 0 && ::waitpid(pid_, &status, WNOHANG) == pid_) {
            pid_ = -1;
            status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        return status_;
    }

private:
    pid_t pid_ = -1;
    std::optional<int> status_ = {};
};

}  // namespace live
