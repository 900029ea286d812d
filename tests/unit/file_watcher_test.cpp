/// @file file_watcher_test.cpp
/// Following a file through every way in which editors, deployments and Kubernetes replace one.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include <mq/detail/file_watcher.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>

namespace {

namespace fs = std::filesystem;
using mq::test::kPatience;
using mq::test::kPrompt;
using std::chrono::hours;
using std::chrono::milliseconds;

class Folder {
public:
    Folder()
        : path_(fs::temp_directory_path() /
                ("mq-watcher-test-" + std::to_string(std::random_device{}()))) {
        fs::create_directories(path_);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { fs::remove_all(path_); }

    [[nodiscard]] fs::path operator/(const std::string& name) const { return path_ / name; }

private:
    fs::path path_;
};

void Write(const fs::path& file, const std::string& text) {
    std::ofstream{file, std::ios::binary | std::ios::trunc} << text;
}

void WriteByRename(const fs::path& file, const std::string& text) {
    const fs::path other = file.string() + ".new";
    Write(other, text);
    fs::rename(other, file);
}

std::string Read(const fs::path& file) {
    std::ifstream in{file, std::ios::binary};
    if (!in) return "(missing)";
    return {std::istreambuf_iterator<char>{in}, {}};
}

// What a follower of a file has seen of it: read in every call of the watcher.
template <typename Events>
class Follower {
public:
    // Polling as often as this is for the tests, which would wait for most of their time otherwise.
    explicit Follower(fs::path file, milliseconds poll_interval = milliseconds{20})
        : file_(std::move(file)) {
        watcher_.emplace(
            file_, [this] { Look(); }, poll_interval);
    }

    // Whether a call has found this text in the file, or finds it before the deadline.
    bool Sees(const std::string& text) {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, kPatience, [&] { return calls_ > 0 && text_ == text; });
    }

    int calls() {
        const std::lock_guard lock{mutex_};
        return calls_;
    }

    void Close() { watcher_.reset(); }

private:
    void Look() {
        std::string text = Read(file_);
        const std::lock_guard lock{mutex_};
        text_ = std::move(text);
        ++calls_;
        changed_.notify_all();
    }

    const fs::path file_;
    std::mutex mutex_;  // guards text_ and calls_
    std::condition_variable changed_;
    std::string text_;
    int calls_ = 0;
    std::optional<mq::detail::BasicFileWatcher<Events>> watcher_;
};

// Events in the middle of a burst that never settles: something has happened, and more is to come until
// the watcher is to end.
class BurstEvents {
public:
    using Timeout = std::optional<milliseconds>;

    static bool Watch(const mq::detail::ResolvedFile& /*file*/) { return true; }

    mq::detail::FileEvents Wait(Timeout /*timeout*/) {
        std::unique_lock lock{mutex_};
        if (!begun_) {
            begun_ = true;
            changed_.notify_all();
            return {.any = true, .written = true};
        }
        changed_.wait_for(lock, kPatience, [this] { return stopped_; });
        return {.stopped = stopped_, .any = true, .written = true};
    }

    void Stop() {
        const std::lock_guard lock{mutex_};
        stopped_ = true;
        changed_.notify_all();
    }

private:
    std::mutex mutex_;  // guards the rest
    std::condition_variable changed_;
    bool begun_ = false;
    bool stopped_ = false;
};

using Inotify = mq::detail::InotifyEvents;
using Polling = mq::detail::PollingEvents;

}  // namespace

TEMPLATE_TEST_CASE("a file that is written in place is followed", "", Inotify, Polling) {
    const Folder folder;
    Write(folder / "mq.toml", "first");
    Follower<TestType> follower{folder / "mq.toml"};
    Write(folder / "mq.toml", "other");
    CHECK(follower.Sees("other"));
    std::ofstream{folder / "mq.toml", std::ios::app} << " and more";
    CHECK(follower.Sees("other and more"));
}

TEMPLATE_TEST_CASE("a file that is replaced by a rename is followed, again and again", "", Inotify,
                   Polling) {
    const Folder folder;
    Write(folder / "mq.toml", "0");
    Follower<TestType> follower{folder / "mq.toml"};
    for (const std::string text : {"1", "2", "3"}) {
        WriteByRename(folder / "mq.toml", text);
        CHECK(follower.Sees(text));
    }
}

TEMPLATE_TEST_CASE("a file that vanishes and comes back is followed", "", Inotify, Polling) {
    const Folder folder;
    Write(folder / "mq.toml", "first");
    Follower<TestType> follower{folder / "mq.toml"};
    fs::rename(folder / "mq.toml", folder / "aside");
    CHECK(follower.Sees("(missing)"));
    fs::rename(folder / "aside", folder / "mq.toml");
    CHECK(follower.Sees("first"));
    fs::remove(folder / "mq.toml");
    CHECK(follower.Sees("(missing)"));
    Write(folder / "mq.toml", "second");
    CHECK(follower.Sees("second"));
}

TEMPLATE_TEST_CASE("a file that does not exist yet is seen when it appears, folders and all", "",
                   Inotify, Polling) {
    const Folder folder;
    Follower<TestType> follower{folder / "a/b/mq.toml"};
    fs::create_directories(folder / "a/b");
    Write(folder / "a/b/mq.toml", "here");
    CHECK(follower.Sees("here"));
    Write(folder / "a/b/mq.toml", "there");
    CHECK(follower.Sees("there"));
}

TEMPLATE_TEST_CASE("a folder that is replaced by another is followed", "", Inotify, Polling) {
    const Folder folder;
    fs::create_directories(folder / "conf");
    fs::create_directories(folder / "next");
    Write(folder / "conf/mq.toml", "first");
    Write(folder / "next/mq.toml", "second");
    Follower<TestType> follower{folder / "conf/mq.toml"};
    fs::rename(folder / "conf", folder / "before");
    fs::rename(folder / "next", folder / "conf");
    CHECK(follower.Sees("second"));
    Write(folder / "conf/mq.toml", "third");
    CHECK(follower.Sees("third"));
}

TEMPLATE_TEST_CASE("a mounted Kubernetes config is followed through the swap of its links", "", Inotify,
                   Polling) {
    const Folder folder;
    const auto mount = [&](const std::string& version, const std::string& text) {
        fs::create_directories(folder / version);
        Write(folder / (version + "/mq.toml"), text);
        fs::create_symlink(version, folder / "..data_tmp");
        fs::rename(folder / "..data_tmp", folder / "..data");
    };
    mount("..1", "first");
    fs::create_symlink("..data/mq.toml", folder / "mq.toml");
    Follower<TestType> follower{folder / "mq.toml"};

    mount("..2", "other");
    CHECK(follower.Sees("other"));
    fs::remove_all(folder / "..1");
    mount("..3", "third");
    CHECK(follower.Sees("third"));
    Write(folder / "..3/mq.toml", "in place");
    CHECK(follower.Sees("in place"));
}

TEMPLATE_TEST_CASE("a file behind an absolute link in another folder is followed", "", Inotify,
                   Polling) {
    const Folder folder;
    fs::create_directories(folder / "real");
    fs::create_directories(folder / "links");
    Write(folder / "real/a.toml", "first");
    Write(folder / "real/b.toml", "swapped");
    fs::create_symlink(folder / "real/a.toml", folder / "links/mq.toml");
    Follower<TestType> follower{folder / "links/mq.toml"};
    Write(folder / "real/a.toml", "written");
    CHECK(follower.Sees("written"));
    fs::remove(folder / "links/mq.toml");
    fs::create_symlink(folder / "real/b.toml", folder / "links/mq.toml");
    CHECK(follower.Sees("swapped"));
}

TEST_CASE("a file that is written by its other name is followed") {
    const Folder folder;
    fs::create_directories(folder / "elsewhere");
    Write(folder / "mq.toml", "first");
    fs::create_hard_link(folder / "mq.toml", folder / "elsewhere/other.toml");
    Follower<Inotify> follower{folder / "mq.toml"};
    Write(folder / "elsewhere/other.toml", "second");
    CHECK(follower.Sees("second"));
}

TEST_CASE("a change that leaves size and time as they were is followed") {
    const Folder folder;
    Write(folder / "mq.toml", "aaaa");
    const auto time = fs::last_write_time(folder / "mq.toml");
    Follower<Inotify> follower{folder / "mq.toml"};
    Write(folder / "mq.toml", "bbbb");
    fs::last_write_time(folder / "mq.toml", time);
    CHECK(follower.Sees("bbbb"));
}

TEST_CASE("a writer that keeps the file open is followed all the same") {
    const Folder folder;
    Write(folder / "mq.toml", "");
    Follower<Inotify> follower{folder / "mq.toml"};
    std::ofstream writer{folder / "mq.toml", std::ios::trunc};
    writer << "flushed" << std::flush;
    CHECK(follower.Sees("flushed"));
}

TEST_CASE("a loop of links counts as a missing file") {
    const Folder folder;
    fs::create_symlink("mq.toml", folder / "mq.toml");
    CHECK(mq::detail::ResolveFile(folder / "mq.toml").target.empty());
    Follower<Inotify> follower{folder / "mq.toml"};
    WriteByRename(folder / "mq.toml", "untied");
    CHECK(follower.Sees("untied"));
}

TEST_CASE("the way to a file names every link on it") {
    const Folder folder;
    fs::create_directories(folder / "real/deep");
    fs::create_symlink("real", folder / "link");
    Write(folder / "real/mq.toml", "");
    const fs::path root = fs::canonical(folder / "");
    const auto resolved = mq::detail::ResolveFile(root / "link/deep/.././mq.toml");
    REQUIRE(resolved.steps.size() == 2);
    CHECK(resolved.steps[0].directory == fs::canonical(root));
    CHECK(resolved.steps[0].name == "link");
    CHECK(resolved.steps[1].directory == fs::canonical(root / "real"));
    CHECK(resolved.steps[1].name == "mq.toml");
    CHECK(resolved.target == fs::canonical(root / "real/mq.toml"));
}

TEST_CASE("other files of the folder are none of the watcher's business") {
    const Folder folder;
    Write(folder / "mq.toml", "first");
    Inotify events;
    if (!events.Watch(mq::detail::ResolveFile(folder / "mq.toml"))) {
        WARN("the temporary folder is on a file system of which inotify does not see everything");
    }
    Write(folder / "mq.toml.swp", "x");
    fs::rename(folder / "mq.toml.swp", folder / "mq.toml.bak");
    fs::remove(folder / "mq.toml.bak");
    (void)Read(folder / "mq.toml");
    // What the kernel has queued is there at once.
    CHECK_FALSE(events.Wait(milliseconds{0}).any);
    Write(folder / "mq.toml", "second");
    const mq::detail::FileEvents seen = events.Wait(milliseconds{0});
    CHECK(seen.any);
    CHECK(seen.written);
    CHECK(seen.complete);
}

TEST_CASE("a burst of writes makes few calls, the last of which finds the last text") {
    const Folder folder;
    Write(folder / "mq.toml", "start");
    Follower<Inotify> follower{folder / "mq.toml"};
    constexpr int kWrites = 500;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 1; i <= kWrites; ++i) WriteByRename(folder / "mq.toml", "text " + std::to_string(i));
    CHECK(follower.Sees("text " + std::to_string(kWrites)));
    // One call in the time that a change is given to settle: a writer who is kept from the processor
    // for that long makes several bursts of it.
    constexpr milliseconds kSettle{30};
    const int calls = follower.calls();
    CHECK(calls <= (std::chrono::steady_clock::now() - begin) / kSettle + 1);
}

TEMPLATE_TEST_CASE("a watcher ends at once, also in the middle of a burst", "", Inotify, Polling) {
    const Folder folder;
    Write(folder / "mq.toml", "first");
    // The next look is an hour away for the one that looks.
    Follower<TestType> idle{folder / "mq.toml", hours{1}};
    Follower<TestType> busy{folder / "mq.toml", hours{1}};
    Write(folder / "mq.toml", "second");
    const auto begin = std::chrono::steady_clock::now();
    busy.Close();
    idle.Close();
    CHECK(std::chrono::steady_clock::now() - begin < kPrompt);
}

TEST_CASE("a watcher that ends in a burst neither waits for it to settle nor reports it") {
    const Folder folder;
    Write(folder / "mq.toml", "first");
    Follower<BurstEvents> follower{folder / "mq.toml"};
    follower.Close();
    CHECK(follower.calls() == 0);
}

TEST_CASE("a watcher waits for the call that runs, and makes none after it") {
    const Folder folder;
    Write(folder / "mq.toml", "first");
    std::promise<void> entered;
    std::promise<void> leave;
    std::atomic<int> calls{0};
    std::optional<mq::detail::FileWatcher> watcher;
    watcher.emplace(folder / "mq.toml", [&, left = leave.get_future().share()] {
        if (++calls == 1) entered.set_value();
        left.wait_for(kPatience);
    });
    Write(folder / "mq.toml", "second");
    REQUIRE(entered.get_future().wait_for(kPatience) == std::future_status::ready);
    Write(folder / "mq.toml", "third");
    auto closed = std::async(std::launch::async, [&] { watcher.reset(); });
    CHECK(closed.wait_for(milliseconds{50}) == std::future_status::timeout);
    leave.set_value();
    REQUIRE(closed.wait_for(kPatience) == std::future_status::ready);
    CHECK(calls == 1);
}

TEST_CASE("a relative path is meant from the folder in which the watcher was made") {
    const Folder folder;
    Write(folder / "mq.toml", "first");
    std::promise<void> called;
    std::once_flag once;
    const fs::path before = fs::current_path();
    fs::current_path(folder / "");
    const mq::detail::FileWatcher watcher{"mq.toml",
                                          [&] { std::call_once(once, [&] { called.set_value(); }); }};
    fs::current_path(before);
    Write(folder / "mq.toml", "second");
    CHECK(called.get_future().wait_for(kPatience) == std::future_status::ready);
}

TEST_CASE("a change is seen well within a second") {
    const Folder folder;
    Write(folder / "mq.toml", "0");
    Follower<Inotify> follower{folder / "mq.toml"};
    // The least of several measurements: what the watcher adds is in each of them, and what a loaded
    // machine adds is not.
    constexpr int kMeasurements = 5;
    auto written = std::chrono::steady_clock::duration::max();
    auto renamed = written;
    for (int i = 1; i <= kMeasurements; ++i) {
        const auto measure = [&](auto write, const std::string& text) {
            const auto begin = std::chrono::steady_clock::now();
            write(folder / "mq.toml", text);
            REQUIRE(follower.Sees(text));
            return std::chrono::steady_clock::now() - begin;
        };
        written = std::min(written, measure(Write, "written " + std::to_string(i)));
        renamed = std::min(renamed, measure(WriteByRename, "renamed " + std::to_string(i)));
    }
    CHECK(written < milliseconds{500});
    CHECK(renamed < milliseconds{500});
}
