/// @file header_list.hpp
/// Headers as AMQP 1.0 can carry them: a map of texts, and where that cannot say everything (their
/// order, a name twice, bytes that are no text), a list beside it in a property of our own. Knows
/// nothing of the client library.
#pragma once

#include <mq/message.hpp>
#include <mq/url.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace mq::activemq {

/// Whether the bytes are text in UTF-8 (RFC 3629), which a string of AMQP must be.
inline bool IsUtf8(std::string_view text) noexcept {
    for (std::size_t i = 0; i < text.size();) {
        const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
        const unsigned first = byte(i);
        const std::size_t more = first < 0x80   ? 0
                                 : first < 0xC2 ? 4
                                 : first < 0xE0 ? 1
                                 : first < 0xF0 ? 2
                                 : first < 0xF5 ? 3
                                                : 4;
        if (more == 4 || more >= text.size() - i) return false;
        for (std::size_t k = 1; k <= more; ++k) {
            if ((byte(i + k) & 0xC0u) != 0x80) return false;
        }
        if (more > 0) {
            // Overlong forms, surrogates and what lies behind the last code point.
            const unsigned second = byte(i + 1);
            if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) {
                return false;
            }
        }
        i += more + 1;
    }
    return true;
}

/// Whether the bytes can be one of Proton's C strings.
inline bool IsPlainText(std::string_view text) noexcept {
    return text.find('\0') == std::string_view::npos && IsUtf8(text);
}

/// The bytes in ASCII: what is not a letter, a digit or one of - . _ ~ becomes %XX.
inline std::string PercentEncoded(std::string_view text) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    std::string encoded;
    for (const char c : text) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                           c == '-' || c == '.' || c == '_' || c == '~';
        if (plain) {
            encoded += c;
            continue;
        }
        const auto byte = static_cast<unsigned char>(c);
        encoded += {'%', kDigits[byte >> 4u], kDigits[byte & 15u]};
    }
    return encoded;
}

/// The same backwards. What another program has written otherwise is taken as it is.
inline std::string PercentDecodedOrRaw(const std::string& text) {
    try {
        return mq::detail::PercentDecode(text);
    } catch (const std::invalid_argument&) {
        return text;
    }
}

/// Whether a broker takes a property of this name for an order to itself, or drops it. Classic acts on
/// the names of JMS (seen with 5.18: JMSDeliveryMode makes a message that a restart loses, JMSPriority
/// with a word in it ruins the whole message) and on those of its scheduler; Artemis on its own (seen
/// with 2.40: a second message with the same _AMQ_DUPL_ID is confirmed and thrown away).
inline bool IsReserved(std::string_view name) noexcept {
    constexpr std::array<std::string_view, 3> kPrefixes{"JMS", "AMQ_SCHEDULED_", "_AMQ_"};
    return std::any_of(kPrefixes.begin(), kPrefixes.end(),
                       [name](std::string_view prefix) { return name.starts_with(prefix); });
}

/// The headers as a map holds them, in the order of a map. A name with a text keeps its first value.
using HeaderMap = std::map<std::string, std::string, std::less<>>;

/// Whether the value can stand in the map.
inline bool FitsMap(const std::pair<std::string, std::string>& header) {
    return !header.first.empty() && !IsReserved(header.first) && IsUtf8(header.second);
}

/// The headers that stand in the map.
inline HeaderMap MapOf(const Headers& headers) {
    HeaderMap map;
    for (const auto& header : headers) {
        if (FitsMap(header)) map.insert(header);
    }
    return map;
}

/// Whether the map alone gives the headers back.
inline bool MapSuffices(const Headers& headers) {
    return std::all_of(headers.begin(), headers.end(), FitsMap) &&
           std::adjacent_find(headers.begin(), headers.end(), [](const auto& one, const auto& next) {
               return one.first >= next.first;
           }) == headers.end();
}

/// The list: names with & between them, each with its value behind a = where the map has another one
/// or none, all percent-encoded.
inline std::string ListOf(const Headers& headers, const HeaderMap& map) {
    std::string list;
    HeaderMap seen;
    for (const auto& [name, value] : headers) {
        if (!list.empty()) list += '&';
        list += PercentEncoded(name);
        const auto held = map.find(name);
        const bool first = seen.emplace(name, std::string{}).second;
        if (first && held != map.end() && held->second == value) continue;
        list += '=' + PercentEncoded(value);
    }
    return list;
}

/// The headers that a list and a map say together. What only the map has (another program added it)
/// comes last; what the list names and the map has lost is left out.
/// @throws std::invalid_argument where the list is none.
inline Headers HeadersOf(HeaderMap map, std::string_view list) {
    Headers headers;
    mq::detail::Split(list, '&', [&](std::string_view part) {
        const auto equals = part.find('=');
        std::string name = mq::detail::PercentDecode(part.substr(0, equals));
        if (equals != std::string_view::npos) {
            headers.emplace_back(std::move(name), mq::detail::PercentDecode(part.substr(equals + 1)));
        } else if (auto node = map.extract(name); !node.empty()) {
            headers.emplace_back(std::move(name), std::move(node.mapped()));
        }
    });
    // A value behind a = stands for the one in the map, where both are there.
    for (const auto& [name, value] : headers) map.erase(name);
    for (auto& [name, value] : map) headers.emplace_back(name, std::move(value));
    return headers;
}

}  // namespace mq::activemq
