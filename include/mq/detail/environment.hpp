/// @file environment.hpp
/// `${NAME}` in the texts of a config: the environment variable of that name. `$${` is a plain `${`.
/// In a URL, what stands where user name and password are is percent-encoded on insertion, so that a
/// password in the environment may hold any character.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mq::detail {

/// What a text is, where its variables are inserted.
enum class TextKind : unsigned char { kPlain, kUrl };

/// A text with its variables inserted, and what was wrong with them. Only names are quoted, no values.
struct ExpandedText {
    std::string text = {};
    std::vector<std::string> problems = {};
};

/// Every byte that RFC 3986 does not call unreserved, as '%' and two hexadecimal digits.
inline std::string PercentEncode(std::string_view text) {
    constexpr std::string_view kUnreserved =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    std::string encoded;
    for (const char c : text) {
        if (kUnreserved.find(c) != std::string_view::npos) {
            encoded += c;
        } else {
            const auto byte = static_cast<unsigned char>(c);
            encoded.append({'%', kDigits[byte >> 4u], kDigits[byte & 15u]});
        }
    }
    return encoded;
}

/// Replaces the variables of one text.
class EnvironmentExpander {
public:
    EnvironmentExpander(std::string_view text, TextKind kind) : text_(text), kind_(kind) {
        if (kind == TextKind::kUrl) FindUserInfo();
    }

    ExpandedText Run() {
        while (position_ < text_.size()) {
            const std::string_view rest = text_.substr(position_);
            if (rest.starts_with("$${")) {
                Take("${", 3);
            } else if (rest.starts_with("${")) {
                TakeVariable(rest);
            } else {
                Take(rest.substr(0, 1), 1);
            }
        }
        return std::move(result_);
    }

private:
    // The user info ends at the last '@' of the authority, as ParseUrl has it.
    void FindUserInfo() {
        const std::size_t scheme_end = text_.find("://");
        if (scheme_end == std::string_view::npos) return;
        const std::size_t begin = scheme_end + 3;
        const std::string_view authority =
            text_.substr(begin, text_.find_first_of("/?", begin) - begin);
        const std::size_t at = authority.rfind('@');
        if (at == std::string_view::npos) return;
        user_info_begin_ = begin;
        user_info_end_ = begin + at;
        has_password_ = authority.substr(0, at).find(':') != std::string_view::npos;
    }

    void Take(std::string_view inserted, std::size_t length) {
        result_.text += inserted;
        position_ += length;
    }

    void TakeVariable(std::string_view rest) {
        const std::size_t close = rest.find('}');
        if (close == std::string_view::npos) {
            result_.problems.emplace_back(
                "found '${' without '}', expected ${NAME}; a plain '${' is written '$${'");
            position_ = text_.size();
            return;
        }
        const std::string name{rest.substr(2, close - 2)};
        if (const auto value = Lookup(name)) {
            const bool encode = position_ >= user_info_begin_ && position_ < user_info_end_;
            result_.text += encode ? PercentEncode(*value) : *value;
            // It would pass for a user name, which is printed.
            if (encode && !has_password_ && value->find(':') != std::string::npos) {
                result_.problems.push_back(
                    "the environment variable " + name +
                    " holds a ':', expected a user name alone; write user name and password as "
                    "${USER}:${PASSWORD}, from a variable each");
            }
        }
        position_ += close + 1;
    }

    std::optional<std::string> Lookup(const std::string& name) {
        if (!IsName(name)) {
            // What stands there is not quoted: it may be a password with '${' in it.
            result_.problems.emplace_back(
                "found '${' with something that is no variable name, expected ${NAME} of letters, "
                "digits "
                "and '_'; a plain '${' is written '$${'");
            return std::nullopt;
        }
        const char* const value = std::getenv(name.c_str());
        if (value == nullptr) {
            result_.problems.push_back("the environment variable " + name +
                                       " is not set; set it (a plain '${' is written '$${')");
            return std::nullopt;
        }
        if (*value == '\0' && kind_ == TextKind::kUrl) {
            result_.problems.push_back("the environment variable " + name +
                                       " is empty, expected a part of the URL; set it");
            return std::nullopt;
        }
        return value;
    }

    static bool IsName(std::string_view name) noexcept {
        constexpr std::string_view kLetters =
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
        if (name.empty() || (name.front() >= '0' && name.front() <= '9')) return false;
        return name.find_first_not_of(kLetters) == std::string_view::npos;
    }

    std::string_view text_;
    TextKind kind_;
    std::size_t position_ = 0;
    std::size_t user_info_begin_ = 0;
    std::size_t user_info_end_ = 0;
    bool has_password_ = false;  // the user info has a ':' of its own
    ExpandedText result_ = {};
};

/// Inserts the environment's variables into a text. Reads the environment: safe from several threads
/// as long as none changes it (see getenv(3)).
inline ExpandedText ExpandEnvironment(std::string_view text, TextKind kind) {
    return EnvironmentExpander{text, kind}.Run();
}

}  // namespace mq::detail
