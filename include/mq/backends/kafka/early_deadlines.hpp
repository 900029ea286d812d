/// @file early_deadlines.hpp
/// Publications that are due back before the client library gives them up by itself: it has one timeout
/// for all messages, while each publication has its own deadline. Knows nothing of the library.
#pragma once

#include <mq/backend.hpp>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

namespace mq::kafka {

/// Holds each publication until its report or its deadline, whichever is first. What the library keeps
/// of the message must be a copy. Thread-safe.
class EarlyDeadlines {
public:
    using Clock = backend::Clock;
    using Id = std::uintptr_t;

    /// Takes a publication over. It stays at least until Release: the caller may still read it.
    Id Add(std::unique_ptr<backend::Publication> publication) {
        const std::lock_guard lock{mutex_};
        const Id id = next_++;
        entries_.emplace(id, std::move(publication));
        return id;
    }

    /// The library has taken the message: from now on the deadline counts. Returns whether it is the
    /// earliest.
    bool Release(Id id) {
        const std::lock_guard lock{mutex_};
        const auto found = entries_.find(id);
        if (found == entries_.end()) return false;
        const auto added = due_.emplace(found->second->deadline, id).first;
        return added == due_.begin();
    }

    /// The publication, for its report, or because the library did not take it; null where it was
    /// handed back before.
    std::unique_ptr<backend::Publication> Take(Id id) {
        const std::lock_guard lock{mutex_};
        const auto found = entries_.find(id);
        if (found == entries_.end()) return nullptr;
        std::unique_ptr<backend::Publication> publication = std::move(found->second);
        due_.erase({publication->deadline, id});
        entries_.erase(found);
        return publication;
    }

    /// One whose deadline has passed; null where there is none.
    std::unique_ptr<backend::Publication> TakeDue(Clock::time_point now) {
        const std::lock_guard lock{mutex_};
        if (due_.empty() || due_.begin()->first > now) return nullptr;
        const auto found = entries_.find(due_.begin()->second);
        std::unique_ptr<backend::Publication> publication = std::move(found->second);
        entries_.erase(found);
        due_.erase(due_.begin());
        return publication;
    }

    /// The earliest deadline.
    [[nodiscard]] std::optional<Clock::time_point> Next() const {
        const std::lock_guard lock{mutex_};
        if (due_.empty()) return std::nullopt;
        return due_.begin()->first;
    }

private:
    mutable std::mutex mutex_ = {};  // guards everything below
    Id next_ = 1;
    std::map<Id, std::unique_ptr<backend::Publication>> entries_ = {};
    std::set<std::pair<Clock::time_point, Id>> due_ = {};  // those that are released
};

}  // namespace mq::kafka
