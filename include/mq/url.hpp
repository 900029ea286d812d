/// @file url.hpp
/// The URL of a broker, taken apart: `scheme://user:password@host:port,host:port/path?name=value`.
/// Percent-encoding is decoded as in RFC 3986; several hosts stand behind one another with commas.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mq {

/// One host of a broker's URL.
struct HostPort {
    std::string host = {};
    std::uint16_t port = 0;  ///< 0 where the URL gives none: the adapter's default.

    friend bool operator==(const HostPort&, const HostPort&) = default;
};

/// A broker's URL. A plain value; the password is in it, so print it with Redacted() only.
struct Url {
    std::string scheme = {};
    std::string user = {};
    std::string password = {};
    std::vector<HostPort> hosts = {};
    /// What follows the first slash, decoded; nothing where there is no slash (for AMQP, `/` and
    /// nothing are different virtual hosts).
    std::optional<std::string> path = {};
    std::vector<std::pair<std::string, std::string>> query = {};

    friend bool operator==(const Url&, const Url&) = default;
};

namespace detail {

inline int HexDigit(char c) noexcept {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

inline std::string PercentDecode(std::string_view text) {
    std::string decoded;
    decoded.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '%') {
            decoded.push_back(text[i]);
            continue;
        }
        const int high = i + 2 < text.size() ? HexDigit(text[i + 1]) : -1;
        const int low = i + 2 < text.size() ? HexDigit(text[i + 2]) : -1;
        if (high < 0 || low < 0) {
            throw std::invalid_argument(
                "a '%' must be followed by two hexadecimal digits (write "
                "'%25' for the sign itself)");
        }
        decoded.push_back(static_cast<char>(high * 16 + low));
        i += 2;
    }
    return decoded;
}

inline std::uint16_t ParsePort(std::string_view text) {
    if (text.empty()) throw std::invalid_argument("a port is missing after ':'");
    unsigned value = 0;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (code != std::errc{} || end != text.data() + text.size() || value == 0 || value > 65535) {
        // What was found is not quoted: without an '@', it may be a password.
        throw std::invalid_argument("the port must be a number from 1 to 65535");
    }
    return static_cast<std::uint16_t>(value);
}

/// `host`, `host:port`, `[IPv6]` or `[IPv6]:port`.
inline HostPort ParseHostPort(std::string_view text) {
    HostPort result;
    std::string_view rest;
    if (text.starts_with('[')) {
        const auto close = text.find(']');
        if (close == std::string_view::npos) {
            throw std::invalid_argument("an IPv6 address must end with ']'");
        }
        result.host = text.substr(1, close - 1);
        rest = text.substr(close + 1);
        if (!rest.empty() && !rest.starts_with(':')) {
            throw std::invalid_argument("expected ':port' after ']'");
        }
    } else {
        const auto colon = std::min(text.find(':'), text.size());
        result.host = PercentDecode(text.substr(0, colon));
        rest = text.substr(colon);
        if (rest.find(':', 1) != std::string_view::npos) {
            throw std::invalid_argument(
                "found more than one ':' in a host, write an IPv6 address as [::1]");
        }
    }
    if (result.host.empty()) throw std::invalid_argument("a host is missing");
    if (result.host.find_first_of(" \t\r\n") != std::string::npos) {
        throw std::invalid_argument("a host must not hold white space");
    }
    if (!rest.empty()) result.port = ParsePort(rest.substr(1));
    return result;
}

/// A scheme in lower case, as RFC 3986 section 3.1 takes it.
inline std::string ParseScheme(std::string_view text) {
    std::string scheme;
    for (const char c : text) {
        const bool upper = c >= 'A' && c <= 'Z';
        const bool letter = upper || (c >= 'a' && c <= 'z');
        const bool other = (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.';
        if (!letter && (!other || scheme.empty())) {
            // What was found is not quoted: it may be a password in the wrong place.
            throw std::invalid_argument(
                "a scheme must begin with a letter and hold only letters, digits, '+', '-' and '.'");
        }
        scheme.push_back(upper ? static_cast<char>(c - 'A' + 'a') : c);
    }
    return scheme;
}

/// Calls `visit` with each part of `text` between the separators.
template <typename Visitor>
void Split(std::string_view text, char separator, Visitor visit) {
    while (true) {
        const auto end = text.find(separator);
        visit(text.substr(0, end));
        if (end == std::string_view::npos) return;
        text.remove_prefix(end + 1);
    }
}

/// `user:password@host:port,host:port`. The credentials end at the last '@', so that a raw one in a
/// password still parses.
inline void ParseAuthority(std::string_view authority, Url& url) {
    if (const auto at = authority.rfind('@'); at != std::string_view::npos) {
        const auto credentials = authority.substr(0, at);
        const auto colon = credentials.find(':');
        url.user = PercentDecode(credentials.substr(0, colon));
        if (colon != std::string_view::npos)
            url.password = PercentDecode(credentials.substr(colon + 1));
        authority = authority.substr(at + 1);
    }
    Split(authority, ',', [&](std::string_view host) { url.hosts.push_back(ParseHostPort(host)); });
}

/// `name=value&name=value`.
inline void ParseQuery(std::string_view query, Url& url) {
    Split(query, '&', [&](std::string_view pair) {
        if (pair.empty()) return;
        const auto equals = pair.find('=');
        if (equals == std::string_view::npos || equals == 0) {
            throw std::invalid_argument("a query parameter must read name=value");
        }
        url.query.emplace_back(PercentDecode(pair.substr(0, equals)),
                               PercentDecode(pair.substr(equals + 1)));
    });
}

}  // namespace detail

/// Takes a URL apart.
/// @throws std::invalid_argument saying what was expected; the text never quotes a password.
inline Url ParseUrl(std::string_view text) {
    Url url;
    const auto scheme_end = text.find("://");
    if (scheme_end == std::string_view::npos || scheme_end == 0) {
        throw std::invalid_argument("expected SCHEME://HOST, such as amqp://user:password@host/vhost");
    }
    url.scheme = detail::ParseScheme(text.substr(0, scheme_end));
    const std::string_view rest = text.substr(scheme_end + 3);
    const std::string_view authority = rest.substr(0, rest.find_first_of("/?"));
    const std::string_view tail = rest.substr(authority.size());
    // A raw '@' here may end a password with a raw '/' or '?' in it, the rest of which would then pass
    // for a path and be printed.
    if (tail.find('@') != std::string_view::npos) {
        throw std::invalid_argument(
            "behind the host, '@' must be written '%40'; in a user name or password, '/' must be "
            "written "
            "'%2F' and '?' '%3F'");
    }
    detail::ParseAuthority(authority, url);
    const std::size_t question = std::min(tail.find('?'), tail.size());
    if (tail.starts_with('/')) url.path = detail::PercentDecode(tail.substr(1, question - 1));
    if (question < tail.size()) detail::ParseQuery(tail.substr(question + 1), url);
    return url;
}

/// The URL for a person to read: without password and query, for either may hold a secret, and without
/// what stands behind a colon in the user name, for that may be a password that has strayed there.
inline std::string Redacted(const Url& url) {
    std::string text = url.scheme + "://";
    if (!url.user.empty()) text += url.user.substr(0, url.user.find(':')) + "@";
    bool first = true;
    for (const auto& [host, port] : url.hosts) {
        if (!first) text += ",";
        first = false;
        text += host.find(':') != std::string::npos ? "[" + host + "]" : host;
        if (port != 0) text += ":" + std::to_string(port);
    }
    if (url.path) text += "/" + *url.path;
    return text;
}

}  // namespace mq
