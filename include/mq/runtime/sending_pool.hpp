/// @file sending_pool.hpp
/// Sendings that have ended, kept for the next sends. Without it a sender would allocate what the
/// callback thread frees, message by message, and both would wait for the allocator's lock: in
/// publishing through Kafka that took more time than everything else in the library.
#pragma once

#include <mq/runtime/sending.hpp>

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>

namespace mq::runtime {

/// Thread-safe. Never blocks for longer than it takes to move a pointer: where another thread is at it,
/// a sender allocates.
class SendingPool {
public:
    SendingPool() = default;
    SendingPool(const SendingPool&) = delete;
    SendingPool& operator=(const SendingPool&) = delete;

    /// A sending as good as new, but for strings that may have kept their room.
    std::unique_ptr<Sending> Get() {
        if (const std::unique_lock lock{mutex_, std::try_to_lock}; lock && kept_ > 0) {
            --kept_;
            return std::unique_ptr<Sending>{static_cast<Sending*>(ended_.PopFront().release())};
        }
        return std::make_unique<Sending>();
    }

    /// Takes back sendings that have ended; what the pool has no use for is destroyed.
    void Put(std::span<std::unique_ptr<backend::Publication>> ended) noexcept {
        for (const auto& publication : ended) Clear(static_cast<Sending&>(*publication));
        {
            const std::lock_guard lock{mutex_};
            while (!ended.empty() && kept_ < kMost) {
                ++kept_;
                ended_.PushBack(std::move(ended.front()));
                ended = ended.subspan(1);
            }
        }
        for (auto& publication : ended) publication.reset();
    }

    /// How many it has.
    [[nodiscard]] std::size_t kept() const {
        const std::lock_guard lock{mutex_};
        return kept_;
    }

private:
    /// A few milliseconds' worth of the fastest sender: as long as a thread may have to wait for a
    /// core.
    static constexpr std::size_t kMost = 4096;
    /// Strings with more room than this give it back.
    static constexpr std::size_t kMostBytes = 1024;

    static void Clear(Sending& sending) noexcept {
        Message& message = sending.message;
        for (std::string* const text : {&message.body, &message.key, &message.id, &message.content_type,
                                        &message.correlation_id, &message.reply_to}) {
            text->clear();
            if (text->capacity() > kMostBytes) std::string{}.swap(*text);  // an assignment keeps it
        }
        message.headers = Headers{};
        message.timestamp = {};
        sending.possible_duplicate = false;
        sending.sender = {};
        sending.error.reset();
        sending.outlet = nullptr;
        sending.failover = nullptr;
        sending.weight = 0;
        sending.waiter.reset();
        sending.callback = SendCallback{};
    }

    mutable std::mutex mutex_;  // guards the rest
    backend::PublicationList ended_;
    std::size_t kept_ = 0;
};

}  // namespace mq::runtime
