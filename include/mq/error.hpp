/// @file error.hpp
/// The one exception type of the library: what went wrong, whether the broker may have taken the
/// message all the same, and what the broker's own client said about it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace mq {

/// What kind of failure an Error reports.
enum class ErrorCode {
    kConfig,           ///< The config is wrong; the text lists every problem with its position.
    kInvalidArgument,  ///< A call was made with something it cannot accept.
    kUnknownTopic,     ///< The config names no such topic.
    kClosed,           ///< The client (or subscription) was closed.
    kTimeout,          ///< The deadline passed first.
    kOverflow,         ///< A bounded buffer is full and the call may not wait.
    kUnavailable,      ///< The broker could not be reached.
    kAccessDenied,     ///< The broker refused the credentials, or a permission is missing.
    kNotFound,         ///< The destination does not exist on the broker and may not be created.
    kUnroutable,       ///< The broker has the destination, but no queue takes the message.
    kTooLarge,         ///< The message is larger than the broker or its client accepts.
    kRefused,          ///< The broker answered, and the answer was no.
    kUnsupported,      ///< The broker cannot do what was asked.
    kInternal,         ///< A defect in the library or its adapter.
};

/// The enumerator's name in the words of the documentation, such as "unroutable".
constexpr std::string_view ToString(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::kConfig: return "config";
        case ErrorCode::kInvalidArgument: return "invalid argument";
        case ErrorCode::kUnknownTopic: return "unknown topic";
        case ErrorCode::kClosed: return "closed";
        case ErrorCode::kTimeout: return "timeout";
        case ErrorCode::kOverflow: return "overflow";
        case ErrorCode::kUnavailable: return "unavailable";
        case ErrorCode::kAccessDenied: return "access denied";
        case ErrorCode::kNotFound: return "not found";
        case ErrorCode::kUnroutable: return "unroutable";
        case ErrorCode::kTooLarge: return "too large";
        case ErrorCode::kRefused: return "refused";
        case ErrorCode::kUnsupported: return "unsupported";
        case ErrorCode::kInternal: return "internal";
    }
    return "unknown";
}

/// What is certain about a message whose send failed.
enum class Outcome {
    kNotSent,  ///< The broker does not have it: sending it again makes no duplicate.
    kUnknown,  ///< The broker may have taken it: sending it again may make a duplicate.
};

constexpr std::string_view ToString(Outcome outcome) noexcept {
    return outcome == Outcome::kNotSent ? "not sent" : "unknown";
}

/// What the broker or its client library said: an AMQP reply code, an rd_kafka_resp_err_t, an errno.
struct NativeError {
    std::int64_t code = 0;
    std::string text = {};
};

/// Thrown by every call that fails, and handed to the callbacks of pipelined sends.
/// No password is ever part of it.
class Error : public std::runtime_error {
public:
    Error(ErrorCode code, const std::string& what, Outcome outcome = Outcome::kNotSent,
          NativeError native = {})
        : std::runtime_error(what), code_(code), outcome_(outcome), native_(std::move(native)) {}

    [[nodiscard]] ErrorCode code() const noexcept { return code_; }

    /// Whether the broker may have taken the message. kNotSent for errors that are not about a send.
    [[nodiscard]] Outcome outcome() const noexcept { return outcome_; }

    /// The code of the broker or its client library; 0 where there was none.
    [[nodiscard]] std::int64_t native_code() const noexcept { return native_.code; }

    /// The words of the broker or its client library; empty where there were none.
    [[nodiscard]] const std::string& native_text() const noexcept { return native_.text; }

private:
    ErrorCode code_;
    Outcome outcome_;
    NativeError native_;
};

}  // namespace mq
