/// @file credit.hpp
/// How many more messages a subscription may hold, and when its reader is worth waking: not for each
/// message that is settled, but for a batch, or a little later for what there is.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>

namespace mq::kafka {

/// The prefetch of one subscription. One reader takes; any thread gives back.
class Credit {
public:
    explicit Credit(std::size_t limit)
        : limit_(std::max<std::size_t>(limit, 1)), batch_(std::max<std::size_t>(limit_ / 4, 1)) {}

    /// How many more may be handed over. Thread-safe.
    [[nodiscard]] std::size_t Available() const noexcept { return limit_ - taken_.load(); }

    /// How many make it worth reading on at once.
    [[nodiscard]] std::size_t batch() const noexcept { return batch_; }

    /// Takes one of those that are available. For the reader.
    void Take() noexcept { taken_.fetch_add(1); }

    /// Gives one back. Whether to wake the reader: it waits for credit, and this is either the first,
    /// which has it read before long, or makes a batch. Thread-safe.
    bool Give() noexcept {
        const std::size_t available = limit_ - (taken_.fetch_sub(1) - 1);
        return starved_.load() && (available == 1 || available == batch_);
    }

    /// Whether the reader waits for credit. It looks at Available() once more after it has said so:
    /// what was given in between woke nobody. For the reader.
    void SetStarved(bool starved) noexcept { starved_.store(starved); }

    /// For the reader.
    [[nodiscard]] bool Starved() const noexcept { return starved_.load(); }

private:
    const std::size_t limit_;
    const std::size_t batch_;
    std::atomic<std::size_t> taken_{0};
    std::atomic<bool> starved_{false};
};

}  // namespace mq::kafka
