/// @file failure.hpp
/// Why something did not work at a RabbitMQ, in the words of this library: reply codes of AMQP 0-9-1
/// translated, and texts that name the broker. Knows nothing of the client library.
#pragma once

#include <mq/error.hpp>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace mq::rabbitmq {

/// The reply codes that mean something special here (AMQP 0-9-1, section 1.1; RabbitMQ's use of them).
enum ReplyCode : std::uint16_t {
    kConnectionForced = 320,
    kAccessRefused = 403,
    kNotFoundReply = 404,
    kResourceLocked = 405,
    kPreconditionFailed = 406,
    kNotAllowed = 530,
    kNotImplemented = 540,
};

/// A failure before it is known what became of a particular message.
struct Failure {
    ErrorCode code = ErrorCode::kUnavailable;
    std::string text = {};
    NativeError native = {};

    /// The error of a message, or of something else where `outcome` is left out.
    [[nodiscard]] Error ToError(Outcome outcome = Outcome::kNotSent) const {
        return {code, text, outcome, native};
    }

    [[nodiscard]] std::unique_ptr<Error> ForMessage(Outcome outcome) const {
        return std::make_unique<Error>(ToError(outcome));
    }
};

/// What a reply code of a closed channel or connection means.
inline ErrorCode CodeOf(std::uint16_t reply_code, std::string_view reply_text) noexcept {
    const auto says = [&](std::string_view part) {
        return reply_text.find(part) != std::string_view::npos;
    };
    switch (reply_code) {
        case kAccessRefused: return ErrorCode::kAccessDenied;
        case kNotFoundReply:
            // The same code says that the node of a queue is down, or does not answer in time; what is
            // not there is "no queue 'NAME'" or "no exchange 'NAME'" (RabbitMQ's rabbit_amqqueue and
            // rabbit_misc).
            return says("no queue '") || says("no exchange '") || says("no binding ")
                       ? ErrorCode::kNotFound
                       : ErrorCode::kUnavailable;
        case kResourceLocked: return ErrorCode::kRefused;
        case kPreconditionFailed:
            return says("message size") ? ErrorCode::kTooLarge : ErrorCode::kRefused;
        // "access to vhost '…' refused", and also "connection limit (…) is reached".
        case kNotAllowed: return says("limit") ? ErrorCode::kUnavailable : ErrorCode::kAccessDenied;
        case kNotImplemented: return ErrorCode::kUnsupported;
        default: return ErrorCode::kUnavailable;
    }
}

/// The failure that a broker's reply tells. `where` is the text's beginning: the broker's name.
inline Failure FromReply(const std::string& where, std::uint16_t reply_code, std::string reply_text) {
    Failure failure;
    failure.code = CodeOf(reply_code, reply_text);
    failure.text = where + ": " + reply_text + " (" + std::to_string(reply_code) + ")";
    failure.native = {reply_code, std::move(reply_text)};
    return failure;
}

}  // namespace mq::rabbitmq
