/// @file queue_arguments.hpp
/// What a queue that exists was declared with. AMQP has no method that tells it, but a broker that is
/// asked to declare the queue again with anything else refuses and says which argument differs: by
/// guessing and correcting the guess it becomes known. Pure; knows nothing of the client library.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::rabbitmq {

/// A guess at the properties and arguments of a queue, corrected by the broker's refusals.
class QueueArguments {
public:
    enum class Type : unsigned char { kText, kNumber, kFlag };

    struct Value {
        Type type = Type::kText;
        std::string text = {};  ///< A number in decimals, a flag as "true" or "false".

        bool operator==(const Value&) const = default;
    };

    /// A durable queue with a type and nothing more.
    explicit QueueArguments(std::string type) { Set("x-queue-type", {Type::kText, std::move(type)}); }

    void Set(const std::string& name, Value value) { values_[name] = std::move(value); }

    /// Adds what policies say, by the names of policies. Of two limits the lower one holds.
    void Add(const std::map<std::string, std::string>& policy) {
        for (const auto& [name, text] : policy) {
            const bool number = text.find_first_not_of("-0123456789") == std::string::npos;
            const auto value = Checked({number ? Type::kNumber : Type::kText, text});
            const auto known = Find("x-" + name);
            const bool lower = known && value && known->type == Type::kNumber &&
                               value->type == Type::kNumber &&
                               std::stoll(value->text) < std::stoll(known->text);
            if (value && (!known || lower)) Set("x-" + name, *value);
        }
    }

    /// Takes over what a refusal says, such as "PRECONDITION_FAILED - inequivalent arg 'x-expires' for
    /// queue 'q' in vhost '/': received none but current is the value '1000' of type 'signedint'".
    /// @returns false where it says nothing that could be taken over: the guess is not to be tried
    /// again.
    bool Correct(std::string_view refusal) {
        constexpr std::string_view kBegin = "inequivalent arg '";
        constexpr std::string_view kCurrent = " but current is ";
        const auto begin = refusal.find(kBegin);
        const auto current = refusal.rfind(kCurrent);
        if (begin == std::string_view::npos || current == std::string_view::npos) return false;
        const std::string_view named = refusal.substr(begin + kBegin.size());
        const std::string name{named.substr(0, named.find('\''))};
        const std::string_view value = refusal.substr(current + kCurrent.size());
        if (name == "durable") return CorrectFlag(durable_, value);
        if (name == "auto_delete") return CorrectFlag(auto_delete_, value);
        if (!name.starts_with("x-")) return false;
        if (value == "none") return values_.erase(name) > 0;
        const auto read = ReadValue(name, value);
        if (!read || Find(name) == read) return false;
        Set(name, *read);
        return true;
    }

    [[nodiscard]] std::optional<Value> Find(const std::string& name) const {
        const auto found = values_.find(name);
        if (found == values_.end()) return std::nullopt;
        return found->second;
    }

    [[nodiscard]] const std::map<std::string, Value>& All() const noexcept { return values_; }
    [[nodiscard]] bool Durable() const noexcept { return durable_; }
    [[nodiscard]] bool AutoDelete() const noexcept { return auto_delete_; }

    [[nodiscard]] bool IsOfType(std::string_view type) const {
        const auto found = Find("x-queue-type");
        return found && found->text == type;
    }

    [[nodiscard]] bool HasSingleActiveConsumer() const {
        return Find("x-single-active-consumer") == Value{Type::kFlag, "true"};
    }

    /// How often a message may be delivered again; nothing where the queue says nothing, a negative
    /// number for any number of times.
    [[nodiscard]] std::optional<std::int64_t> DeliveryLimit() const {
        const auto found = Find("x-delivery-limit");
        if (!found || found->type != Type::kNumber) return std::nullopt;
        return std::stoll(found->text);
    }

    /// What the broker may take away of what it has confirmed, because the queue was declared so: one
    /// clause for each reason; none for a queue that keeps everything.
    [[nodiscard]] std::vector<std::string> Losses() const {
        std::vector<std::string> losses;
        const std::string elsewhere = Find("x-dead-letter-exchange") ? "dead-letters" : "drops";
        const auto add_if = [&](const char* name, const std::string& text) {
            if (const auto found = Find(name))
                losses.push_back(text + " (" + name + " = " + found->text + ")");
        };
        add_if("x-message-ttl", "it " + elsewhere + " messages that have waited too long");
        const auto overflow = Find("x-overflow");
        if (!overflow || overflow->text == "drop-head") {
            add_if("x-max-length", "it " + elsewhere + " the oldest messages when it is full");
            add_if("x-max-length-bytes", "it " + elsewhere + " the oldest messages when it is full");
        }
        add_if("x-expires", "it is deleted, with its messages, when nobody has used it for a while");
        if (!durable_)
            losses.emplace_back("it is not durable, and gone with the broker's next restart");
        if (auto_delete_) {
            losses.emplace_back("it is deleted, with its messages, when its last consumer leaves");
        }
        return losses;
    }

private:
    static bool CorrectFlag(bool& flag, std::string_view value) {
        const bool is = value.find("true") != std::string_view::npos;
        if (flag == is) return false;
        flag = is;
        return true;
    }

    // "the value 'V' of type 'T'", or "'V'" where the types do not differ.
    [[nodiscard]] std::optional<Value> ReadValue(const std::string& name, std::string_view text) const {
        constexpr std::string_view kValue = "the value '";
        constexpr std::string_view kOfType = "' of type '";
        if (!text.starts_with(kValue)) {
            if (text.size() < 2 || text.front() != '\'' || text.back() != '\'') return std::nullopt;
            const auto sent = Find(name);
            return Checked(
                {sent ? sent->type : Type::kText, std::string{text.substr(1, text.size() - 2)}});
        }
        const auto type_at = text.rfind(kOfType);
        // A reply's text ends after 255 bytes: of a value that is cut, nothing is known.
        if (type_at == std::string_view::npos || text.back() != '\'') return std::nullopt;
        const std::string_view type =
            text.substr(type_at + kOfType.size(), text.size() - 1 - type_at - kOfType.size());
        const std::string value{text.substr(kValue.size(), type_at - kValue.size())};
        if (type == "longstr") return Value{Type::kText, value};
        if (type == "bool") return Checked({Type::kFlag, value});
        constexpr std::string_view kNumbers =
            " signedint long short byte unsignedint unsignedshort unsignedbyte ";
        const std::string spaced = " " + std::string{type} + " ";
        if (kNumbers.find(spaced) == std::string_view::npos) return std::nullopt;
        return Checked({Type::kNumber, value});
    }

    static std::optional<Value> Checked(Value value) {
        const bool negative = value.text.starts_with('-');
        const std::string_view digits = std::string_view{value.text}.substr(negative ? 1 : 0);
        const bool number = !digits.empty() && digits.size() <= 18 &&
                            digits.find_first_not_of("0123456789") == std::string_view::npos;
        if (value.type == Type::kNumber && !number) return std::nullopt;
        const bool flag = value.text == "true" || value.text == "false";
        if (value.type == Type::kFlag && !flag) return std::nullopt;
        return value;
    }

    std::map<std::string, Value> values_ = {};
    bool durable_ = true;
    bool auto_delete_ = false;
};

}  // namespace mq::rabbitmq
