/// @file log.hpp
/// The messages of one topic of a memory broker, and how many it may hold. A part of
/// backends/memory.hpp.
#pragma once

#include <mq/backend.hpp>
#include <mq/message.hpp>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>

namespace mq::memory {

using backend::Clock;

namespace detail {

/// How much a topic may hold and whether a client may create it, as the client's options say.
struct Limits {
    std::size_t capacity = 100'000;
    std::size_t capacity_bytes = 256u << 20u;
    bool declare = true;
};

/// A message in a log.
struct Entry {
    std::shared_ptr<const Message> message = {};
    std::size_t weight = 0;
    Clock::time_point stored_at = {};
    bool possible_duplicate = false;
    std::string sender = {};
};

/// The messages of a topic. Not thread-safe: the broker's mutex guards it.
class Log {
public:
    void Append(Entry entry) {
        bytes_ += entry.weight;
        entries_.push_back(std::move(entry));
    }

    void DropFront() {
        bytes_ -= entries_.front().weight;
        entries_.pop_front();
        ++begin_;
    }

    void Clear() {
        begin_ = end();
        bytes_ = 0;
        entries_.clear();
    }

    /// Whether one more message of that weight is within the limits.
    [[nodiscard]] bool Fits(std::size_t weight, const Limits& limits) const {
        return entries_.size() < limits.capacity && bytes_ + weight <= limits.capacity_bytes;
    }

    /// The entry at an offset from begin() to end().
    [[nodiscard]] const Entry& At(std::uint64_t offset) const { return entries_[offset - begin_]; }

    [[nodiscard]] std::uint64_t begin() const { return begin_; }
    [[nodiscard]] std::uint64_t end() const { return begin_ + entries_.size(); }
    [[nodiscard]] std::size_t size() const { return entries_.size(); }

private:
    std::deque<Entry> entries_ = {};
    std::uint64_t begin_ = 0;
    std::size_t bytes_ = 0;
};

}  // namespace detail

}  // namespace mq::memory
