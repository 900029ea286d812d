/// @file screen.hpp
/// What the demonstration shows while it runs: on a terminal a table that is drawn over itself, and
/// otherwise a plain line a second.
#pragma once

#include <mq/log.hpp>
#include <mq/policy.hpp>
#include <mq/status.hpp>

#include <unistd.h>

#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace live {

/// A client and what it says of the topic.
struct ClientRow {
    std::string name = {};
    mq::TopicStatus status = {};
};

/// One side, over all clients.
struct SideRow {
    std::string broker = {};
    std::uint64_t published = 0;
    std::uint64_t confirmed = 0;
    std::uint64_t received = 0;
    std::uint64_t processed = 0;
    std::uint64_t held = 0;
    std::uint64_t backlog = 0;  ///< Confirmed, and not yet processed by some group.
};

/// Everything that one picture shows.
struct Picture {
    std::vector<mq::Policy> walk = {};
    std::size_t rung = 0;  ///< The index in `walk` that the config asks for.
    SideRow old_side = {};
    SideRow new_side = {};
    std::vector<ClientRow> clients = {};
};

/// Thread-safe.
class Screen {
public:
    using Clock = std::chrono::steady_clock;

    Screen() : terminal_(isatty(STDOUT_FILENO) == 1) {}

    /// How often it should be drawn.
    [[nodiscard]] std::chrono::milliseconds Interval() const {
        return terminal_ ? std::chrono::milliseconds{200} : std::chrono::milliseconds{1000};
    }

    /// A line of its own: a rung, or something that the library logs.
    void Note(const std::string& line) {
        const std::lock_guard lock{mutex_};
        if (!terminal_) {
            std::printf("%6.1fs  %s\n", Elapsed(), line.c_str());
            std::fflush(stdout);
            return;
        }
        notes_.push_back(line);
        if (notes_.size() > kNotes) notes_.pop_front();
    }

    void Draw(const Picture& picture) {
        const std::lock_guard lock{mutex_};
        const auto now = Clock::now();
        const double seconds = std::chrono::duration<double>(now - drawn_at_).count();
        const auto rate = [&](const SideRow& side, std::uint64_t& last) {
            const double per_second =
                seconds > 0 ? static_cast<double>(side.processed - last) / seconds : 0;
            last = side.processed;
            return per_second;
        };
        const double old_rate = rate(picture.old_side, old_processed_);
        const double new_rate = rate(picture.new_side, new_processed_);
        drawn_at_ = now;
        terminal_ ? DrawTable(picture, old_rate, new_rate) : PrintLine(picture, old_rate, new_rate);
    }

private:
    static constexpr std::size_t kNotes = 6;

    [[nodiscard]] double Elapsed() const {
        return std::chrono::duration<double>(Clock::now() - began_).count();
    }

    static std::string Ladder(const Picture& picture, bool color) {
        std::string text;
        for (std::size_t i = 0; i < picture.walk.size(); ++i) {
            if (i > 0) text += " → ";
            const std::string word{mq::ToString(picture.walk[i])};
            if (i != picture.rung) {
                text += word;
            } else {
                text += color ? "\033[1;7m " + word + " \033[0m" : "[" + word + "]";
            }
        }
        return text;
    }

    static std::string Waiting(const Picture& picture) {
        for (const ClientRow& client : picture.clients) {
            if (!client.status.waiting_for.empty()) {
                return client.name + " waits for " + client.status.waiting_for;
            }
        }
        return {};
    }

    void PrintLine(const Picture& picture, double old_rate, double new_rate) const {
        std::string line = std::string{mq::ToString(picture.walk[picture.rung])};
        const auto side = [&](const char* name, const SideRow& row, double rate) {
            char text[160];
            std::snprintf(text, sizeof text,
                          " | %s: published %" PRIu64 " confirmed %" PRIu64 " received %" PRIu64
                          " backlog %" PRIu64 " held %" PRIu64 " (%.0f/s)",
                          name, row.published, row.confirmed, row.received, row.backlog, row.held,
                          rate);
            line += text;
        };
        side("old", picture.old_side, old_rate);
        side("new", picture.new_side, new_rate);
        if (const std::string waiting = Waiting(picture); !waiting.empty()) line += " | " + waiting;
        std::printf("%6.1fs  %s\n", Elapsed(), line.c_str());
        std::fflush(stdout);
    }

    void DrawTable(const Picture& picture, double old_rate, double new_rate) {
        std::string text = "\033[" + std::to_string(lines_) + "A\033[J";
        if (lines_ == 0) text = "\033[J";
        lines_ = 0;
        const auto line = [&](const std::string& content) {
            text += content + "\n";
            ++lines_;
        };
        char row[256];
        line("");
        line("  " + Ladder(picture, true));
        line("");
        std::snprintf(row, sizeof row, "  %-4s %-26s %10s %10s %10s %8s %6s %9s", "side", "broker",
                      "published", "confirmed", "received", "backlog", "held", "rate");
        line(std::string{"\033[2m"} + row + "\033[0m");
        const auto side = [&](const char* name, const SideRow& values, double rate) {
            std::snprintf(row, sizeof row,
                          "  %-4s %-26.26s %10" PRIu64 " %10" PRIu64 " %10" PRIu64 " %8" PRIu64
                          " %6" PRIu64 " %7.0f/s",
                          name, values.broker.c_str(), values.published, values.confirmed,
                          values.received, values.backlog, values.held, rate);
            line(row);
        };
        side("old", picture.old_side, old_rate);
        side("new", picture.new_side, new_rate);
        line("");
        for (const ClientRow& client : picture.clients) {
            const std::string stage{mq::ToString(client.status.stage)};
            std::snprintf(row, sizeof row, "  %-14s %-15s ", client.name.c_str(), stage.c_str());
            std::string entry = row;
            if (!client.status.waiting_for.empty()) entry += "waits for " + client.status.waiting_for;
            line(Cut(entry));
        }
        if (!notes_.empty()) line("");
        for (const std::string& note : notes_) line("\033[2m  " + Cut(note) + "\033[0m");
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
    }

    // A line that wraps would spoil the count of lines to draw over.
    static std::string Cut(const std::string& text) {
        constexpr std::size_t kWidth = 110;
        return text.size() <= kWidth ? text : text.substr(0, kWidth - 1) + "…";
    }

    const bool terminal_;
    const Clock::time_point began_ = Clock::now();
    std::mutex mutex_;  // guards all that follows
    Clock::time_point drawn_at_ = began_;
    std::uint64_t old_processed_ = 0;
    std::uint64_t new_processed_ = 0;
    std::deque<std::string> notes_;
    std::size_t lines_ = 0;
};

}  // namespace live
