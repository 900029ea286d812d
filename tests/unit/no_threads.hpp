/// @file no_threads.hpp
/// A system that gives no thread, for as long as a test wants it.
#pragma once

#include <pthread.h>

#include <cstddef>

namespace mq::test {

/// While it lives, no thread starts in this process: the stack that each would get does not fit into
/// the address space. One at a time.
class NoThreads {
public:
    NoThreads() noexcept {
        pthread_getattr_default_np(&usual_);
        pthread_attr_t huge;
        pthread_attr_init(&huge);
        pthread_attr_setstacksize(&huge, kHuge);
        pthread_setattr_default_np(&huge);
        pthread_attr_destroy(&huge);
    }
    NoThreads(const NoThreads&) = delete;
    NoThreads& operator=(const NoThreads&) = delete;
    ~NoThreads() {
        pthread_setattr_default_np(&usual_);
        pthread_attr_destroy(&usual_);
    }

private:
    static constexpr std::size_t kHuge = std::size_t{1} << 47u;

    pthread_attr_t usual_ = {};
};

}  // namespace mq::test
