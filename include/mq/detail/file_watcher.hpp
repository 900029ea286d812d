/// @file file_watcher.hpp
/// Tells when a file has changed, however it is changed: written in place, replaced by a rename, or
/// reached through symbolic links one of which is swapped (as Kubernetes does with mounted
/// configuration). By inotify(7) where there is one, and otherwise by looking twice a second.
#pragma once

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if __has_include(<sys/inotify.h>)
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string_view>
#endif

namespace mq::detail {

/// How the name of a file leads to it.
struct ResolvedFile {
    /// A name that matters and the directory that it is in: each symbolic link on the way, then the
    /// file, or what is missing of the way to it.
    struct Step {
        std::filesystem::path directory = {};
        std::string name = {};

        friend bool operator==(const Step&, const Step&) = default;
    };
    std::vector<Step> steps = {};
    /// The directories on the way. Any of them may be renamed, and another one put in its place.
    std::vector<std::filesystem::path> directories = {};
    /// Without symbolic links; empty where the file does not exist.
    std::filesystem::path target = {};

    friend bool operator==(const ResolvedFile&, const ResolvedFile&) = default;
};

/// Follows an absolute path through its symbolic links. What cannot be looked at counts as missing.
inline ResolvedFile ResolveFile(const std::filesystem::path& file) {
    constexpr int kMostLinks = 40;  // as in path_resolution(7)
    ResolvedFile resolved;
    std::filesystem::path directory = file.root_path();
    resolved.directories.push_back(directory);
    std::deque<std::filesystem::path> rest;
    const auto push_front = [&rest](const std::filesystem::path& path) {
        const std::filesystem::path relative = path.relative_path();
        rest.insert(rest.begin(), relative.begin(), relative.end());
    };
    push_front(file);
    int links = 0;
    while (!rest.empty()) {
        const std::filesystem::path name = std::move(rest.front());
        rest.pop_front();
        if (name.empty() || name == ".") continue;
        if (name == "..") {
            directory = directory.parent_path();
            continue;
        }
        const std::filesystem::path here = directory / name;
        std::error_code failed;
        const auto type = std::filesystem::symlink_status(here, failed).type();
        if (type == std::filesystem::file_type::symlink) {
            resolved.steps.push_back({directory, name.string()});
            const std::filesystem::path link = std::filesystem::read_symlink(here, failed);
            if (failed || ++links > kMostLinks) return resolved;
            if (link.is_absolute()) directory = link.root_path();
            push_front(link);
        } else if (rest.empty() || type != std::filesystem::file_type::directory) {
            resolved.steps.push_back({directory, name.string()});
            const bool found = type != std::filesystem::file_type::not_found &&
                               type != std::filesystem::file_type::none;
            if (rest.empty() && found) resolved.target = here;
            return resolved;
        } else {
            directory = here;
            resolved.directories.push_back(directory);
        }
    }
    return resolved;
}

/// What tells one state of a file from another, without reading it.
struct FileStamp {
    std::filesystem::path target = {};  ///< Empty where the file does not exist.
    dev_t device = 0;
    ino_t inode = 0;
    off_t size = 0;
    mode_t mode = 0;
    std::filesystem::file_time_type changed = {};

    friend bool operator==(const FileStamp&, const FileStamp&) = default;
};

inline FileStamp StampOf(const std::filesystem::path& target) {
    struct stat status = {};
    std::error_code failed;
    if (target.empty() || ::stat(target.c_str(), &status) != 0) return {};
    const auto changed = std::filesystem::last_write_time(target, failed);
    if (failed) return {};
    return {.target = target,
            .device = status.st_dev,
            .inode = status.st_ino,
            .size = status.st_size,
            .mode = status.st_mode,
            .changed = changed};
}

/// How the last change of a file was made, as far as it was seen.
enum class FileChange : unsigned char {
    kUnseen,    ///< By what is not told: it was found by looking, or is about the way to the file.
    kReplaced,  ///< Another file was put in its place, which was whole by then as far as one can tell.
    kClosed,    ///< Written in place by somebody who has closed it.
    kOpen,      ///< Written in place by somebody who may go on.
};

/// A changed file as its follower is shown it.
struct ChangedFile {
    FileChange last = FileChange::kUnseen;
    std::chrono::steady_clock::duration still = {};  ///< Since the last change.
};

/// What a wait for changes has seen.
struct FileEvents {
    bool stopped = false;                 ///< Stop was called.
    bool any = false;                     ///< Something on the way to the file has changed.
    bool written = false;                 ///< The file may have changed, even where its stamp has not.
    bool complete = false;                ///< The last of the changes was one that ends a change.
    std::optional<FileChange> last = {};  ///< The last of the changes that tells how it was made.
};

/// The wait for changes where nothing tells of them. Stop is thread-safe, the rest for one thread.
class PollingEvents {
public:
    using Timeout = std::optional<std::chrono::milliseconds>;

    /// Whether Wait will see every change on the way to this file.
    static bool Watch(const ResolvedFile& /*file*/) { return false; }

    /// Blocks for the timeout, without one until Stop.
    FileEvents Wait(Timeout timeout) {
        std::unique_lock lock{mutex_};
        if (timeout) {
            stop_.wait_for(lock, *timeout, [this] { return stopped_; });
        } else {
            stop_.wait(lock, [this] { return stopped_; });
        }
        return {.stopped = stopped_};
    }

    /// Makes every Wait return at once, also the present one.
    void Stop() {
        const std::lock_guard lock{mutex_};
        stopped_ = true;
        stop_.notify_all();
    }

private:
    std::mutex mutex_ = {};  // guards stopped_
    std::condition_variable stop_ = {};
    bool stopped_ = false;
};

#if __has_include(<sys/inotify.h>)

/// A file descriptor, closed at the end; -1 for none.
class FileDescriptor {
public:
    explicit FileDescriptor(int value) noexcept : value_(value) {}
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;
    ~FileDescriptor() {
        if (value_ >= 0) ::close(value_);
    }

    [[nodiscard]] int get() const noexcept { return value_; }

private:
    const int value_;
};

/// The wait for changes by inotify(7). Stop is thread-safe, the rest for one thread.
class InotifyEvents {
public:
    using Timeout = std::optional<std::chrono::milliseconds>;

    /// @throws std::system_error where the process has no file descriptor left.
    InotifyEvents()
        : stop_(::eventfd(0, EFD_CLOEXEC)), inotify_(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) {
        if (stop_.get() < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    }

    /// Watches the directories on the way to a file, and no others from before.
    /// @returns whether Wait will see every change there: false where inotify has reached a limit, may
    ///     not read a directory, or cannot see what other machines do.
    bool Watch(const ResolvedFile& file) {
        if (inotify_.get() < 0) return false;
        std::map<int, Watched> watched;
        bool complete = true;
        const auto add = [&](const std::filesystem::path& directory, std::uint32_t events) {
            const int watch = ::inotify_add_watch(inotify_.get(), directory.c_str(), events);
            complete = complete && watch >= 0 && IsLocal(directory);
            return watch;
        };
        for (const auto& [directory, name] : file.steps) {
            const int watch = add(directory, kDirectoryEvents);
            if (watch >= 0) watched[watch].names.insert(name);
        }
        // Of the others it matters only that they are still in their place: what else goes on in them
        // wakes nobody. One that is among those above keeps its events.
        for (const auto& directory : file.directories) {
            const int watch = add(directory, kPlaceEvents | IN_MASK_ADD);
            if (watch >= 0) watched[watch];
        }
        // The file too: its directory does not tell of a write by another name of the file, such as the
        // other end of a bind mount.
        if (!file.target.empty()) {
            const int watch = ::inotify_add_watch(inotify_.get(), file.target.c_str(), kFileEvents);
            if (watch >= 0) watched[watch].is_file = true;
        }
        for (const auto& [watch, what] : watched_) {
            if (!watched.contains(watch)) ::inotify_rm_watch(inotify_.get(), watch);
        }
        watched_ = std::move(watched);
        return complete;
    }

    /// Blocks until something happens in a watched directory, until Stop, or for the timeout.
    FileEvents Wait(Timeout timeout) {
        std::array<pollfd, 2> waits{{{.fd = stop_.get(), .events = POLLIN, .revents = 0},
                                     {.fd = inotify_.get(), .events = POLLIN, .revents = 0}}};
        FileEvents seen;
        if (::poll(waits.data(), waits.size(), PollTimeout(timeout)) <= 0) return seen;
        seen.stopped = waits[0].revents != 0;
        if (waits[1].revents != 0) ReadEvents(seen);
        return seen;
    }

    /// Makes every Wait return at once, also the present one.
    void Stop() noexcept { ::eventfd_write(stop_.get(), 1); }

private:
    /// What stands behind a watch: the file, or a directory with the names in it that matter.
    struct Watched {
        std::set<std::string> names = {};
        bool is_file = false;
    };

    static constexpr std::uint32_t kFinished = IN_CLOSE_WRITE | IN_MOVED_TO;
    static constexpr std::uint32_t kWritten = kFinished | IN_MODIFY;
    static constexpr std::uint32_t kPlaceEvents = IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;
    static constexpr std::uint32_t kDirectoryEvents =
        kWritten | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_ATTRIB | kPlaceEvents;
    static constexpr std::uint32_t kFileEvents = IN_CLOSE_WRITE | IN_MODIFY;

    static int PollTimeout(Timeout timeout) {
        if (!timeout) return -1;
        return static_cast<int>(std::clamp<std::int64_t>(timeout->count(), 0, INT_MAX));
    }

    // inotify(7) does not see what happens on the other side of a network file system, nor what a FUSE
    // server does. The numbers are those of statfs(2).
    static bool IsLocal(const std::filesystem::path& directory) {
        constexpr std::array<std::uint32_t, 9> kRemote{
            0x6969u /* NFS */,      0x517bu /* SMB */,      0xff534d42u /* CIFS */,
            0xfe534d42u /* SMB2 */, 0x65735546u /* FUSE */, 0x01021997u /* 9P */,
            0x00c36400u /* Ceph */, 0x5346414fu /* AFS */,  0x786f4256u /* VirtualBox */};
        struct statfs status = {};
        if (::statfs(directory.c_str(), &status) != 0) return false;
        const auto type = static_cast<std::uint32_t>(status.f_type);
        return std::find(kRemote.begin(), kRemote.end(), type) == kRemote.end();
    }

    // One read, so that a busy directory cannot keep the caller here.
    void ReadEvents(FileEvents& seen) {
        std::array<char, 16384> buffer{};
        const ssize_t length = ::read(inotify_.get(), buffer.data(), buffer.size());
        std::size_t next = 0;
        while (length > 0 && next + sizeof(inotify_event) <= static_cast<std::size_t>(length)) {
            inotify_event event{};
            std::memcpy(&event, buffer.data() + next, sizeof(event));
            next += sizeof(event);
            // The name is filled up with zeros.
            Note(event, event.len == 0 ? std::string_view{} : std::string_view{buffer.data() + next},
                 seen);
            next += event.len;
        }
    }

    void Note(const inotify_event& event, std::string_view name, FileEvents& seen) {
        const bool lost = (event.mask & IN_Q_OVERFLOW) != 0;
        const bool concerns = lost || Concerns(event, name);
        if ((event.mask & IN_IGNORED) != 0) watched_.erase(event.wd);
        if (!concerns) return;
        seen.any = true;
        seen.written = seen.written || lost || (event.mask & kWritten) != 0;
        seen.complete = lost || (event.mask & kFinished) != 0;
        if (const auto change = ChangeOf(event.mask)) seen.last = change;
    }

    static std::optional<FileChange> ChangeOf(std::uint32_t mask) {
        if ((mask & IN_Q_OVERFLOW) != 0) return FileChange::kUnseen;
        if ((mask & IN_MOVED_TO) != 0) return FileChange::kReplaced;
        if ((mask & IN_CLOSE_WRITE) != 0) return FileChange::kClosed;
        if ((mask & IN_MODIFY) != 0) return FileChange::kOpen;
        return std::nullopt;
    }

    // An event without a name is about the watched directory or file itself. The end of the watch on a
    // file that was replaced says nothing new: the directory has told of it.
    [[nodiscard]] bool Concerns(const inotify_event& event, std::string_view name) const {
        const auto watch = watched_.find(event.wd);
        if (watch == watched_.end()) return false;
        const auto& [names, is_file] = watch->second;
        if (event.len == 0) return !is_file || (event.mask & kFileEvents) != 0;
        return names.contains(std::string{name});
    }

    const FileDescriptor stop_;
    const FileDescriptor inotify_;
    std::map<int, Watched> watched_ = {};
};

#endif

/// Calls a function whenever a file has changed, has vanished or has appeared, by a thread of its own.
/// A burst of changes makes one call: some 30 ms after a file was closed or renamed, and 0.2 s to 0.5 s
/// after a change that nothing has ended yet (0.5 s later at most where the file must be polled).
///
/// A follower that takes a ChangedFile may answer that it wants to see the file again once it has
/// stayed as it is for some time longer; it is called again then, or after the next change.
///
/// The calls come one at a time, on the watcher's thread and with no lock held. A call may find the
/// file in the middle of the next change; there is another call after that. `on_change` must not throw
/// (an exception ends the program, as in any thread) and must not destroy the watcher.
template <typename Events>
class BasicFileWatcher {
public:
    /// Answers how much longer the file must stay as it is to be shown again; zero for no need.
    using OnChange = std::function<std::chrono::milliseconds(const ChangedFile& file)>;

    /// A change after the constructor has returned is seen: to miss none, read the file after that.
    /// The file need not exist; a relative path is meant from the present working directory.
    /// @param poll_interval  How often to look at the file where its changes are not reported.
    /// @throws std::system_error where no thread, no file descriptor or no working directory is to be
    /// had.
    BasicFileWatcher(const std::filesystem::path& file, std::function<void()> on_change,
                     std::chrono::milliseconds poll_interval = std::chrono::milliseconds{500})
        : BasicFileWatcher(file, OnChange{[call = std::move(on_change)](const ChangedFile& /*file*/) {
                               call();
                               return std::chrono::milliseconds{0};
                           }},
                           poll_interval) {
        Start();
    }

    /// The same for a follower that may want to see the file again. No call comes before Start.
    BasicFileWatcher(const std::filesystem::path& file, OnChange on_change,
                     std::chrono::milliseconds poll_interval = std::chrono::milliseconds{500})
        : file_(std::filesystem::absolute(file)),
          on_change_(std::move(on_change)),
          poll_interval_(poll_interval) {
        reported_ = Arm();
    }

    /// Begins to call. Where `again` is above zero, also after that time, should nothing change before.
    /// Once.
    /// @throws std::system_error where no thread is to be had.
    void Start(std::chrono::milliseconds again = {}) {
        changed_ = Clock::now();
        wanted_ = again > std::chrono::milliseconds{0};
        if (wanted_) again_ = changed_ + again;
        thread_ = std::thread{[this] { Run(); }};
    }

    BasicFileWatcher(const BasicFileWatcher&) = delete;
    BasicFileWatcher& operator=(const BasicFileWatcher&) = delete;

    /// Waits for a call that runs, and for nothing else; there is none after it.
    ~BasicFileWatcher() {
        events_.Stop();
        if (thread_.joinable()) thread_.join();
    }

private:
    using Clock = std::chrono::steady_clock;

    static constexpr std::chrono::milliseconds kSettleComplete{30};
    static constexpr std::chrono::milliseconds kSettleIncomplete{200};
    static constexpr std::chrono::milliseconds kSettleAtMost{500};

    /// A change that has been seen and not reported.
    struct Pending {
        Clock::time_point first = {};
        Clock::time_point due = {};
        bool written = false;
    };

    void Run() {
        while (true) {
            const FileEvents seen = events_.Wait(UntilNextStep());
            if (seen.stopped) return;
            const Clock::time_point now = Clock::now();
            if (seen.any) Note(seen, now);
            if (polling_ && !pending_ && now >= next_poll_) Poll(now);
            if (pending_ && now >= pending_->due) {
                Report();
            } else if (again_ && now >= *again_) {
                ShowAgain(now);
            }
        }
    }

    [[nodiscard]] typename Events::Timeout UntilNextStep() const {
        if (!pending_ && !polling_ && !again_) return std::nullopt;
        Clock::time_point next = Clock::time_point::max();
        if (pending_) next = pending_->due;
        if (again_) next = std::min(next, *again_);
        if (polling_ && !pending_) next = std::min(next, next_poll_);
        return std::chrono::ceil<std::chrono::milliseconds>(
            std::max(next - Clock::now(), Clock::duration{0}));
    }

    void Note(const FileEvents& seen, Clock::time_point now) {
        again_.reset();
        changed_ = now;
        // A change that is not told of, such as one of the file's mode, says nothing about its writer.
        if (seen.last) last_ = *seen.last;
        if (!pending_) pending_ = Pending{.first = now};
        pending_->written = pending_->written || seen.written;
        pending_->due = std::min(now + (seen.complete ? kSettleComplete : kSettleIncomplete),
                                 pending_->first + kSettleAtMost);
    }

    void Poll(Clock::time_point now) {
        next_poll_ = now + poll_interval_;
        if (StampOf(ResolveFile(file_).target) == reported_) return;
        Note({.any = true, .last = FileChange::kUnseen}, now);
    }

    void Report() {
        const bool written = pending_->written;
        pending_.reset();
        FileStamp stamp = Arm();
        if (!written && stamp == reported_ && !wanted_) return;
        reported_ = std::move(stamp);
        Show();
    }

    void Show() {
        again_.reset();
        const auto again = on_change_({.last = last_, .still = Clock::now() - changed_});
        wanted_ = again > std::chrono::milliseconds{0};
        if (wanted_) again_ = Clock::now() + again;
    }

    // Where changes are not told of, there may have been one since the last look.
    void ShowAgain(Clock::time_point now) {
        if (StampOf(ResolveFile(file_).target) == reported_) return Show();
        Note({.any = true, .last = FileChange::kUnseen}, now);
    }

    // The watches stand before the file is looked at, so that no change falls between the two.
    FileStamp Arm() {
        constexpr int kMostTries = 8;
        ResolvedFile resolved = ResolveFile(file_);
        for (int i = 0; i < kMostTries; ++i) {
            polling_ = !events_.Watch(resolved);
            ResolvedFile again = ResolveFile(file_);
            if (again == resolved) break;
            resolved = std::move(again);
        }
        next_poll_ = Clock::now() + poll_interval_;
        return StampOf(resolved.target);
    }

    const std::filesystem::path file_;
    const OnChange on_change_;
    const std::chrono::milliseconds poll_interval_;
    Events events_ = {};
    // Used by the constructor, then by the thread alone.
    bool polling_ = false;
    Clock::time_point next_poll_ = {};
    std::optional<Pending> pending_ = {};
    FileStamp reported_ = {};  // as of the last call
    FileChange last_ = FileChange::kUnseen;
    Clock::time_point changed_ = {};               // when last_ was
    bool wanted_ = false;                          // the follower wants to see the file again
    std::optional<Clock::time_point> again_ = {};  // when, unless it changes before
    std::thread thread_ = {};
};

#if __has_include(<sys/inotify.h>)
using FileWatcher = BasicFileWatcher<InotifyEvents>;
#else
using FileWatcher = BasicFileWatcher<PollingEvents>;
#endif

}  // namespace mq::detail
