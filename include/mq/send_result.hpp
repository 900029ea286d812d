/// @file send_result.hpp
/// What became of a pipelined send.
#pragma once

#include <mq/error.hpp>

#include <memory>
#include <string>
#include <utility>

namespace mq {

/// Handed to the callback of a pipelined send, exactly once for each send. Copyable; thread-safe to
/// read.
class SendResult {
public:
    /// A confirmed send.
    explicit SendResult(std::string id) : id_(std::move(id)) {}

    /// A failed one.
    SendResult(std::string id, std::shared_ptr<const Error> error)
        : id_(std::move(id)), error_(std::move(error)) {}

    /// Whether the broker has confirmed the message.
    [[nodiscard]] bool ok() const noexcept { return error_ == nullptr; }

    /// Why it has not. Only where ok() is false.
    [[nodiscard]] const Error& error() const noexcept { return *error_; }

    /// The message's id: the one that the sender gave, or the one that was made.
    [[nodiscard]] const std::string& id() const& noexcept { return id_; }
    [[nodiscard]] std::string id() && noexcept { return std::move(id_); }

private:
    std::string id_;
    std::shared_ptr<const Error> error_;
};

}  // namespace mq
