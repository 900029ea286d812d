/// @file id_generator.hpp
/// Message ids: eighty random bits for the client that makes them and a count, in Crockford's base 32,
/// so that no two messages anywhere share one and those of a client sort in the order they were made.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>

namespace mq::detail {

/// Makes ids. Thread-safe.
class IdGenerator {
public:
    IdGenerator() {
        std::random_device random;
        for (char& digit : prefix_) digit = kDigits[random() % kDigits.size()];
    }

    /// A new id of 24 characters.
    std::string Next() {
        std::string id;
        Next(id);
        return id;
    }

    /// The same in a string whose room is used.
    void Next(std::string& id) {
        std::uint64_t count = count_.fetch_add(1, std::memory_order_relaxed);
        id.assign(prefix_.data(), prefix_.size());
        id.resize(kLength);
        for (std::size_t i = kLength; i-- > prefix_.size(); count >>= 5u) id[i] = kDigits[count & 31u];
    }

    /// What tells this generator's ids from all others.
    [[nodiscard]] std::string Prefix() const { return {prefix_.begin(), prefix_.end()}; }

private:
    static constexpr std::size_t kLength = 24;
    static constexpr std::string_view kDigits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

    std::array<char, 16> prefix_{};
    std::atomic<std::uint64_t> count_{0};
};

}  // namespace mq::detail
