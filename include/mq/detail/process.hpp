/// @file process.hpp
/// The ends of threads and of processes, as far as a library that has threads must know of them:
/// whether it runs in the child of a fork, where its threads are not, and whether a thread is in the
/// middle of exit(3).
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <utility>

namespace mq::detail {

/// The process that something belongs to. A child of fork(2) has a copy of everything but the threads;
/// locks stay as they were, and sockets are shared with the parent. So a child touches nothing that
/// belongs to the parent's threads. Thread-safe.
class ForkMark {
public:
    /// Belongs to the present process.
    ForkMark() noexcept : forks_(Forks().load(std::memory_order_relaxed)) {}

    /// Whether the present process is a child of the one that this belongs to. Costs a look at a number
    /// that never changes but in a child.
    [[nodiscard]] bool InChild() const noexcept {
        return forks_ != Forks().load(std::memory_order_relaxed);
    }

private:
    static std::atomic<unsigned>& Forks() noexcept {
        static std::atomic<unsigned> forks{0};
        // Where it cannot be registered there is no memory left; children then see no difference.
        static const int registered = ::pthread_atfork(nullptr, nullptr, [] { Forks().fetch_add(1); });
        static_cast<void>(registered);
        return forks;
    }

    unsigned forks_;
};

/// The same with the process's number beside it, which also sees a child that was made by a bare
/// clone(2). A system call each time that it is asked.
class ProcessMark {
public:
    [[nodiscard]] bool InChild() const noexcept { return fork_.InChild() || process_ != ::getpid(); }
    /// At a look alone; see ForkMark.
    [[nodiscard]] bool InForkedChild() const noexcept { return fork_.InChild(); }
    [[nodiscard]] pid_t process() const noexcept { return process_; }

private:
    ForkMark fork_ = {};
    pid_t process_ = ::getpid();
};

/// Ends the child of a fork whose thread has come back to the library: it is the only one there, and a
/// thread of the parent's, whose work is not the child's. Without the functions that the parent has
/// registered for its own end, and without writing once more what it has buffered.
[[noreturn]] inline void EndChild() noexcept { ::_exit(0); }

/// Keeps something for as long as the process lives, without ever using it: what may be neither used
/// nor destroyed here. Stays reachable, so that no leak checker takes it for lost. Thread-safe; takes
/// no lock.
template <typename Thing>
void LeaveBehind(Thing thing) {
    struct Left {
        Thing thing;
        Left* before;
    };
    static std::atomic<Left*> last{nullptr};
    Left* const left = new Left{std::move(thing), last.load()};
    while (!last.compare_exchange_weak(left->before, left)) {
    }
}

/// Whether a thread is ending, or is in the middle of exit(3), which destroys what belongs to its
/// thread before it destroys static objects. Asked by whoever would wait for what this very thread is
/// at.
class ThreadEnd {
public:
    /// Has the end of the calling thread noticed.
    static void Watch() noexcept {
        static thread_local const Sentinel sentinel;
        static_cast<void>(&sentinel);
    }

    /// Whether the end of the calling thread has begun; false where it is not watched.
    [[nodiscard]] static bool Begun() noexcept { return begun_; }

private:
    struct Sentinel {
        Sentinel() noexcept {}
        Sentinel(const Sentinel&) = delete;
        Sentinel& operator=(const Sentinel&) = delete;
        ~Sentinel() { begun_ = true; }
    };

    static inline thread_local bool begun_ = false;
};

}  // namespace mq::detail
