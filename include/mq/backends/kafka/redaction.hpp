/// @file redaction.hpp
/// Keeps secrets out of what the client library logs. Knows nothing of the library but its lines.
#pragma once

#include <mq/backends/kafka/options.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace mq::kafka {

/// Knows the secrets of one handle. Immutable, and so thread-safe.
class Redaction {
public:
    Redaction() = default;

    explicit Redaction(const std::vector<Property>& properties) {
        for (const auto& [name, value] : properties) {
            if (!IsSecret(name) || value.empty()) continue;
            runs_command_ = runs_command_ || name == kCommand;
            names_.push_back(name);
            values_.push_back(value);
        }
        // One that contains another goes first.
        std::sort(values_.begin(), values_.end(),
                  [](const auto& a, const auto& b) { return a.size() > b.size(); });
    }

    /// A line without the secrets.
    [[nodiscard]] std::string Of(std::string_view facility, std::string_view line) const {
        // "Refreshing Kerberos ticket with command: …", "Slow Kerberos ticket refresh: 6000ms: …": the
        // command with its variables filled in, which is none of the values.
        if (runs_command_ && facility == kRefresh) return Cut(line, line.find(": "), 2);
        // "  NAME = VALUE" of debug=conf; a long value is cut there, and is not recognised.
        for (const std::string& name : names_) {
            const auto place = line.find(name + " = ");
            if (place != std::string_view::npos) return Cut(line, place, name.size() + 3);
        }
        std::string text{line};
        for (const std::string& value : values_) Replace(text, value);
        return text;
    }

private:
    static constexpr std::string_view kCommand = "sasl.kerberos.kinit.cmd";
    static constexpr std::string_view kRefresh = "SASLREFRESH";
    static constexpr std::string_view kMark = "[redacted]";

    // What stands before `place`, and `size` characters more.
    static std::string Cut(std::string_view line, std::size_t place, std::size_t size) {
        if (place == std::string_view::npos) return std::string{line};
        return std::string{line.substr(0, place + size)}.append(kMark);
    }

    static void Replace(std::string& text, const std::string& value) {
        for (std::size_t at = text.find(value); at != std::string::npos;
             at = text.find(value, at + kMark.size())) {
            text.replace(at, value.size(), kMark);
        }
    }

    std::vector<std::string> names_ = {};
    std::vector<std::string> values_ = {};
    bool runs_command_ = false;  // one that the config gives
};

}  // namespace mq::kafka
