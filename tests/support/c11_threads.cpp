/// @file c11_threads.cpp
/// The C11 thread functions on top of POSIX threads, linked into the ThreadSanitizer build only.
/// ThreadSanitizer of gcc 12 intercepts pthread_* but not thrd_*, mtx_* and cnd_*, and dies on a thread
/// that thrd_create has started. librdkafka is built on those: defined here, in the executable, they
/// take the place of the C library's, so that its threads and locks are seen.
#include <pthread.h>
#include <threads.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <ctime>
#include <memory>

// The C library's own mtx_t and cnd_t are a POSIX mutex and condition in other clothes. Both are used
// only through the functions below, so all that matters is that they fit.
static_assert(sizeof(mtx_t) >= sizeof(pthread_mutex_t) && alignof(mtx_t) >= alignof(pthread_mutex_t));
static_assert(sizeof(cnd_t) >= sizeof(pthread_cond_t) && alignof(cnd_t) >= alignof(pthread_cond_t));
static_assert(sizeof(thrd_t) >= sizeof(pthread_t));

namespace {

pthread_mutex_t* Posix(mtx_t* mutex) { return reinterpret_cast<pthread_mutex_t*>(mutex); }
pthread_cond_t* Posix(cnd_t* condition) { return reinterpret_cast<pthread_cond_t*>(condition); }

int Result(int error) {
    switch (error) {
        case 0: return thrd_success;
        case EBUSY: return thrd_busy;
        case ETIMEDOUT: return thrd_timedout;
        case ENOMEM: return thrd_nomem;
        default: return thrd_error;
    }
}

struct Start {
    thrd_start_t function;
    void* argument;
};

void* Run(void* opaque) {
    const std::unique_ptr<Start> start{static_cast<Start*>(opaque)};
    return reinterpret_cast<void*>(static_cast<std::intptr_t>(start->function(start->argument)));
}

}  // namespace

extern "C" {

int thrd_create(thrd_t* thread, thrd_start_t function, void* argument) {
    auto start = std::make_unique<Start>(Start{function, argument});
    const int error = pthread_create(thread, nullptr, &Run, start.get());
    if (error == 0) static_cast<void>(start.release());
    return error == EAGAIN ? static_cast<int>(thrd_nomem) : Result(error);
}

int thrd_join(thrd_t thread, int* result) {
    void* value = nullptr;
    const int error = pthread_join(thread, &value);
    if (error == 0 && result != nullptr)
        *result = static_cast<int>(reinterpret_cast<std::intptr_t>(value));
    return Result(error);
}

int thrd_detach(thrd_t thread) { return Result(pthread_detach(thread)); }

int mtx_init(mtx_t* mutex, int type) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    const bool recursive = (type & mtx_recursive) != 0;
    pthread_mutexattr_settype(&attributes, recursive ? PTHREAD_MUTEX_RECURSIVE : PTHREAD_MUTEX_NORMAL);
    const int error = pthread_mutex_init(Posix(mutex), &attributes);
    pthread_mutexattr_destroy(&attributes);
    return Result(error);
}

int mtx_lock(mtx_t* mutex) { return Result(pthread_mutex_lock(Posix(mutex))); }
int mtx_trylock(mtx_t* mutex) { return Result(pthread_mutex_trylock(Posix(mutex))); }
int mtx_timedlock(mtx_t* __restrict mutex, const timespec* __restrict until) {
    return Result(pthread_mutex_timedlock(Posix(mutex), until));
}
int mtx_unlock(mtx_t* mutex) { return Result(pthread_mutex_unlock(Posix(mutex))); }
void mtx_destroy(mtx_t* mutex) { pthread_mutex_destroy(Posix(mutex)); }

int cnd_init(cnd_t* condition) { return Result(pthread_cond_init(Posix(condition), nullptr)); }
int cnd_signal(cnd_t* condition) { return Result(pthread_cond_signal(Posix(condition))); }
int cnd_broadcast(cnd_t* condition) { return Result(pthread_cond_broadcast(Posix(condition))); }
int cnd_wait(cnd_t* condition, mtx_t* mutex) {
    return Result(pthread_cond_wait(Posix(condition), Posix(mutex)));
}
int cnd_timedwait(cnd_t* __restrict condition, mtx_t* __restrict mutex,
                  const timespec* __restrict until) {
    return Result(pthread_cond_timedwait(Posix(condition), Posix(mutex), until));
}
void cnd_destroy(cnd_t* condition) { pthread_cond_destroy(Posix(condition)); }
}
