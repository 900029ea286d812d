/// @file stragglers.hpp
/// Where threads go that nobody can wait for: what they are busy with cannot be interrupted.
#pragma once

#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace mq::detail {

/// Threads that could not be interrupted when they were no longer needed, because the system's resolver
/// or a TLS handshake held them. They touch nothing but what they own, and are joined when the program
/// ends.
class Stragglers {
public:
    static void Add(std::thread thread) {
        static Stragglers stragglers;
        const std::lock_guard lock{stragglers.mutex_};
        stragglers.threads_.push_back(std::move(thread));
    }

    Stragglers(const Stragglers&) = delete;
    Stragglers& operator=(const Stragglers&) = delete;

private:
    Stragglers() = default;
    ~Stragglers() {
        for (std::thread& thread : threads_) thread.join();
    }

    std::mutex mutex_ = {};  // guards threads_
    std::vector<std::thread> threads_ = {};
};

}  // namespace mq::detail
