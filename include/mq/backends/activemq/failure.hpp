/// @file failure.hpp
/// Why something did not work at an ActiveMQ, in the words of this library: error conditions of
/// AMQP 1.0 translated, and texts that name the broker. Knows nothing of the client library.
#pragma once

#include <mq/error.hpp>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace mq::activemq {

/// A failure before it is known what became of a particular message.
struct Failure {
    ErrorCode code = ErrorCode::kUnavailable;
    std::string text = {};
    NativeError native = {};

    /// Whether trying again helps only after somebody has changed something.
    [[nodiscard]] bool NeedsSomebody() const noexcept {
        return code == ErrorCode::kAccessDenied || code == ErrorCode::kConfig;
    }

    /// The error of a message, or of something else where `outcome` is left out.
    [[nodiscard]] Error ToError(Outcome outcome = Outcome::kNotSent) const {
        return {code, text, outcome, native};
    }

    [[nodiscard]] std::unique_ptr<Error> ForMessage(Outcome outcome) const {
        return std::make_unique<Error>(ToError(outcome));
    }
};

/// What the symbol of an error condition means (AMQP 1.0, sections 2.8.15 to 2.8.18).
inline ErrorCode CodeOf(std::string_view condition) noexcept {
    if (condition == "amqp:unauthorized-access") return ErrorCode::kAccessDenied;
    if (condition == "amqp:not-found") return ErrorCode::kNotFound;
    if (condition == "amqp:link:message-size-exceeded") return ErrorCode::kTooLarge;
    if (condition == "amqp:not-implemented") return ErrorCode::kUnsupported;
    for (const std::string_view no :
         {"amqp:not-allowed", "amqp:precondition-failed", "amqp:invalid-field", "amqp:decode-error",
          "amqp:resource-limit-exceeded", "amqp:resource-locked", "amqp:frame-size-too-small"}) {
        if (condition == no) return ErrorCode::kRefused;
    }
    return ErrorCode::kUnavailable;
}

/// The failure that an error condition tells. `where` is the text's beginning: the broker's name.
inline Failure FromCondition(const std::string& where, std::string_view condition,
                             const std::string& description) {
    Failure failure;
    failure.code = CodeOf(condition);
    failure.text = where + ": ";
    failure.text += description.empty() ? std::string{condition} : description;
    if (!description.empty() && !condition.empty()) failure.text += " (" + std::string{condition} + ")";
    if (description.empty() && condition.empty()) failure.text += "no reason was given";
    failure.native = {0, std::string{condition} + (description.empty() ? "" : ": " + description)};
    return failure;
}

}  // namespace mq::activemq
