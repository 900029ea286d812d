/// @file in_flight.hpp
/// What the client library has of a producer's messages: it hands each one back with the pointer that
/// it was given, in an order of its own and, where it is stuck, not at all. Here they have a number
/// each in the order in which they were sent, and can all be found. Knows nothing of the library.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace mq::kafka {

/// Values that are out, each in a place of its own until it is taken. Places come in blocks that are
/// used again once each of their values has been taken, and are kept until the end: 8 bytes for each
/// value that was added while the oldest one was out. Thread-safe, without a lock for all but one of
/// kPlaces values.
class InFlight {
public:
    using Value = std::uintptr_t;

    /// How many values a block has room for.
    static constexpr std::size_t kPlaces = 480;

    struct Entry {
        std::uint64_t number = 0;  ///< Rises with each Add of one thread.
        Value value = 0;           ///< 0 where TakeAll has taken it.
    };

    InFlight() = default;
    InFlight(const InFlight&) = delete;
    InFlight& operator=(const InFlight&) = delete;

    /// Puts a value, not 0, into a place, which is for Take. The place's address is even.
    void* Add(Value value) {
        while (true) {
            Block* const block = current_.load(std::memory_order_acquire);
            if (block != nullptr) {
                const std::uint32_t index = block->used.fetch_add(1, std::memory_order_acq_rel);
                if (index < kPlaces) {
                    block->places[index].store(value, std::memory_order_release);
                    return &block->places[index];
                }
            }
            Advance(block);
        }
    }

    /// Takes what Add has put there. Once for each Add, at most; not beside another call for the place.
    static Entry Take(void* address) {
        Place& place = *static_cast<Place*>(address);
        Block& block = BlockOf(place);
        const auto index = static_cast<std::uint64_t>(&place - block.places.data());
        const Entry entry{block.first + index, place.load(std::memory_order_acquire)};
        place.store(0, std::memory_order_relaxed);
        if (block.taken.fetch_add(1, std::memory_order_acq_rel) + 1 == kPlaces) {
            block.owner->Recycle(block);
        }
        return entry;
    }

    /// Takes everything that is out, in its order. Nobody adds or takes meanwhile.
    std::vector<Entry> TakeAll() {
        const std::lock_guard lock{mutex_};
        std::vector<Entry> entries;
        for (const auto& block : blocks_) {
            for (std::size_t i = 0; i < kPlaces; ++i) {
                const Value value = block->places[i].exchange(0, std::memory_order_acq_rel);
                if (value != 0) entries.push_back({block->first + i, value});
            }
        }
        std::sort(entries.begin(), entries.end(),
                  [](const Entry& a, const Entry& b) { return a.number < b.number; });
        return entries;
    }

    /// How many values there is room for at present.
    [[nodiscard]] std::size_t Capacity() const {
        const std::lock_guard lock{mutex_};
        return blocks_.size() * kPlaces;
    }

private:
    /// What one thread writes does not slow down what another one does.
    static constexpr std::size_t kCacheLine = 64;
    /// Where a block begins follows from the address of a place in it.
    static constexpr std::size_t kBlockSize = 4096;

    using Place = std::atomic<Value>;

    struct alignas(kBlockSize) Block {
        InFlight* owner = nullptr;
        std::uint64_t first = 0;  // the number of the first place
        // How many places are given out; more where somebody has found none left. A block that is used
        // again begins at 0 only when it is the current one: who comes late finds either none or a good
        // one.
        alignas(kCacheLine) std::atomic<std::uint32_t> used{0};
        alignas(kCacheLine) std::atomic<std::uint32_t> taken{0};
        alignas(kCacheLine) std::array<Place, kPlaces> places = {};
    };
    static_assert(sizeof(Block) == kBlockSize);

    static Block& BlockOf(Place& place) {
        const auto address = reinterpret_cast<std::uintptr_t>(&place);
        // NOLINTNEXTLINE(performance-no-int-to-ptr)
        return *reinterpret_cast<Block*>(address & ~std::uintptr_t{kBlockSize - 1});
    }

    // Makes another block than `full` the current one, unless somebody has done so.
    void Advance(const Block* full) {
        const std::lock_guard lock{mutex_};
        if (current_.load(std::memory_order_relaxed) != full) return;
        if (free_.empty()) {
            blocks_.push_back(std::make_unique<Block>());
            free_.reserve(blocks_.size());
            free_.push_back(blocks_.back().get());
            free_.back()->owner = this;
        }
        Block* const next = free_.back();
        free_.pop_back();
        next->first = numbered_;
        numbered_ += kPlaces;
        next->taken.store(0, std::memory_order_relaxed);
        next->used.store(0, std::memory_order_release);
        current_.store(next, std::memory_order_release);
    }

    void Recycle(Block& block) {
        const std::lock_guard lock{mutex_};
        free_.push_back(&block);
    }

    std::atomic<Block*> current_{nullptr};

    mutable std::mutex mutex_ = {};  // guards everything below
    std::vector<std::unique_ptr<Block>> blocks_ = {};
    std::vector<Block*> free_ = {};  // every value of theirs has been taken
    std::uint64_t numbered_ = 0;
};

}  // namespace mq::kafka
