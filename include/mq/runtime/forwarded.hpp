/// @file forwarded.hpp
/// A message that is sent on to the topic that it was received from, and the id that tells it from the
/// received one.
#pragma once

#include <mq/message.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mq::runtime {

/// The message that a handler is at on this thread; empty where none is. What it points to lives as
/// long as the handling.
struct Handled {
    std::string_view topic = {};
    std::string_view id = {};

    [[nodiscard]] static Handled& Here() noexcept {
        static thread_local Handled handled;
        return handled;
    }
};

/// Whether a message that is sent to `topic` was received from there: by its own word, which a copy
/// keeps on whatever thread, or because it has the id of the one that is being handled here.
[[nodiscard]] inline bool IsForwarded(const Message& message, std::string_view topic) noexcept {
    if (message.id.empty()) return false;
    const Handled& handled = Handled::Here();
    return message.topic == topic || (handled.topic == topic && handled.id == message.id);
}

/// The id of a message that is sent on: made from the id that it was received with and what it says, so
/// that a second send of the same is a copy of the first, also after the handler was run again, and a
/// message that says something else is another one. As long as the first 64 bytes of the id and 14 more
/// at most, however often a message goes round.
[[nodiscard]] inline std::string ForwardedId(const Message& message) {
    constexpr std::string_view kDigits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    constexpr std::size_t kMark = 13;  // digits of 64 bits
    constexpr std::size_t kLongest = 64;
    // FNV-1a, with the length of each part before it, so that no two lists of parts run together.
    std::uint64_t mark = 0xcbf29ce484222325u;
    const auto add = [&mark](std::string_view bytes) {
        const auto step = [&mark](unsigned char byte) { mark = (mark ^ byte) * 0x100000001b3u; };
        for (std::size_t rest = bytes.size(); rest > 0; rest >>= 8u) {
            step(static_cast<unsigned char>(rest & 0xffu));
        }
        step(0);
        for (const char c : bytes) step(static_cast<unsigned char>(c));
    };
    add(message.id);
    add(message.key);
    add(message.body);
    for (const auto& [name, value] : message.headers) {
        add(name);
        add(value);
    }
    std::string_view base = message.id;
    const std::size_t length = base.size();
    if (length > kMark + 1 && base[length - kMark - 1] == '~') base.remove_suffix(kMark + 1);
    std::string id{base.substr(0, kLongest)};
    id += '~';
    std::array<char, kMark> digits{};
    for (std::size_t i = kMark; i-- > 0; mark >>= 5u) digits[i] = kDigits[mark & 31u];
    return id.append(digits.data(), digits.size());
}

}  // namespace mq::runtime
