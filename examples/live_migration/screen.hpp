/// @file screen.hpp
/// What the demonstration shows while it runs: on a terminal a table that is drawn over itself, and
/// otherwise a plain line a second.
#pragma once

#include "terminal.hpp"
#include <mq/log.hpp>
#include <mq/policy.hpp>
#include <mq/status.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstddef>
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
        if (ended_) return;
        if (!terminal_) {
            std::printf("%6.1fs  %s\n", Elapsed(), line.c_str());
            std::fflush(stdout);
            return;
        }
        notes_.push_back(Printable(line));
        if (notes_.size() > kNotes) notes_.pop_front();
    }

    /// Nothing is shown from now on: what clients have to say while they close does not come between
    /// the demonstration's last lines.
    void End() {
        const std::lock_guard lock{mutex_};
        ended_ = true;
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
    static constexpr std::size_t kFewClients = 3;
    static constexpr std::size_t kNarrowest = 40;  // columns; below, the terminal cuts

    [[nodiscard]] double Elapsed() const {
        return std::chrono::duration<double>(Clock::now() - began_).count();
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

    // Draws over the table before it. Its lines do not wrap and fit the height: the way back to the
    // first one is counted in lines.
    void DrawTable(const Picture& picture, double old_rate, double new_rate) {
        const Extent extent = TerminalExtent();
        // A terminal of another width may have wrapped what was drawn before.
        const bool resized = lines_ > 0 && extent.columns != columns_;
        std::string text = resized      ? "\033[H\033[2J"
                           : lines_ > 0 ? "\033[" + std::to_string(lines_) + "F"
                                        : "\r";
        text += "\033[?7l";  // a character may be wider than it counts
        // The last column and the last row stay free: there terminals differ.
        const Extent inner{.columns = std::max(extent.columns, kNarrowest) - 1,
                           .rows = extent.rows - 1};
        const std::vector<std::string> lines = Table(picture, old_rate, new_rate, inner);
        for (const std::string& line : lines) text += line + "\033[K\n";
        text += "\033[J\033[?7h";
        lines_ = lines.size();
        columns_ = extent.columns;
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
    }

    [[nodiscard]] std::vector<std::string> Table(const Picture& picture, double old_rate,
                                                 double new_rate, const Extent& extent) const {
        std::vector<std::string> lines{"",
                                       "  " + Ladder(picture, extent.columns - 2),
                                       "",
                                       Dim(SideHeader(extent.columns)),
                                       SideLine("old", picture.old_side, old_rate, extent.columns),
                                       SideLine("new", picture.new_side, new_rate, extent.columns),
                                       ""};
        const std::size_t room = extent.rows - std::min(extent.rows, lines.size());
        // Where not all fit: a few clients, then the notes, then the other clients.
        const std::size_t clients = std::min(picture.clients.size(), kFewClients);
        const std::size_t notes = std::min(notes_.size(), room - std::min(room, clients + 1));
        AddClients(lines, picture.clients, notes > 0 ? room - notes - 1 : room, extent.columns);
        if (notes > 0) lines.emplace_back();
        for (std::size_t i = notes_.size() - notes; i < notes_.size(); ++i) {
            lines.push_back(Dim(Cut("  " + notes_[i], extent.columns)));
        }
        lines.resize(std::min(lines.size(), extent.rows));
        return lines;
    }

    // The walk, with the rung that the config asks for marked. Both ends give way in a narrow terminal.
    static std::string Ladder(const Picture& picture, std::size_t columns) {
        constexpr std::string_view kArrow = " → ";
        constexpr std::string_view kMore = "… → ";
        const auto word = [&](std::size_t i) { return std::string{mq::ToString(picture.walk[i])}; };
        const std::string here = Cut(" " + word(picture.rung) + " ", columns);
        std::string before;
        for (std::size_t i = picture.rung; i-- > 0;) {
            const std::string longer = word(i).append(kArrow) + before;
            const std::size_t ellipsis = i > 0 ? Columns(kMore) : 0;
            if (ellipsis + Columns(longer) + Columns(here) > columns) {
                before.insert(0, kMore);
                break;
            }
            before = longer;
        }
        before = Cut(before, columns - Columns(here));
        std::string after;
        for (std::size_t i = picture.rung + 1; i < picture.walk.size(); ++i) {
            after.append(kArrow).append(word(i));
        }
        after = Cut(after, columns - Columns(here) - Columns(before));
        return before + "\033[1;7m" + here + "\033[0m" + after;
    }

    static std::string Dim(const std::string& text) { return "\033[2m" + text + "\033[0m"; }

    // The name of the broker gives way in a narrow terminal.
    static std::string SideStart(std::string_view side, std::string_view broker, std::size_t columns) {
        constexpr std::size_t kOthers = 61;
        const std::size_t width = columns > kOthers ? columns - kOthers : 0;
        return "  " + Pad(side, 4) + " " + Pad(broker, std::clamp<std::size_t>(width, 6, 40));
    }

    static std::string SideHeader(std::size_t columns) {
        char row[160];
        std::snprintf(row, sizeof row, " %9s %9s %9s %7s %6s %8s", "published", "confirmed", "received",
                      "backlog", "held", "rate");
        return Cut(SideStart("side", "broker", columns) + row, columns);
    }

    static std::string SideLine(std::string_view name, const SideRow& side, double rate,
                                std::size_t columns) {
        char row[160];
        std::snprintf(row, sizeof row,
                      " %9" PRIu64 " %9" PRIu64 " %9" PRIu64 " %7" PRIu64 " %6" PRIu64 " %6.0f/s",
                      side.published, side.confirmed, side.received, side.backlog, side.held, rate);
        return Cut(SideStart(name, side.broker, columns) + row, columns);
    }

    static void AddClients(std::vector<std::string>& lines, const std::vector<ClientRow>& clients,
                           std::size_t room, std::size_t columns) {
        const bool all = clients.size() <= room;
        const std::size_t shown = all ? clients.size() : room - std::min<std::size_t>(room, 1);
        for (std::size_t i = 0; i < shown; ++i) {
            const mq::TopicStatus& status = clients[i].status;
            std::string line =
                "  " + Pad(clients[i].name, 12) + " " + Pad(mq::ToString(status.stage), 14) + " ";
            if (!status.waiting_for.empty()) line += "waits for " + Printable(status.waiting_for);
            lines.push_back(Cut(line, columns));
        }
        if (all) return;
        const auto waiting =
            std::count_if(clients.begin() + static_cast<std::ptrdiff_t>(shown), clients.end(),
                          [](const ClientRow& client) { return !client.status.waiting_for.empty(); });
        std::string more = "  … and " + std::to_string(clients.size() - shown) + " more";
        if (waiting > 0) more += ", of which " + std::to_string(waiting) + " wait";
        lines.push_back(Cut(more, columns));
    }

    const bool terminal_;
    const Clock::time_point began_ = Clock::now();
    std::mutex mutex_;  // guards all that follows
    Clock::time_point drawn_at_ = began_;
    std::uint64_t old_processed_ = 0;
    std::uint64_t new_processed_ = 0;
    std::deque<std::string> notes_;
    std::size_t lines_ = 0;    // of the table as it was drawn
    std::size_t columns_ = 0;  // of the terminal then
    bool ended_ = false;
};

}  // namespace live
