/// @file file_watcher_ancestors_test.cpp
/// Following a file below directories that are renamed, and others put in their place.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include <mq/detail/file_watcher.hpp>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

namespace fs = std::filesystem;
using mq::test::Counter;

void Write(const fs::path& file, const std::string& text) {
    fs::create_directories(file.parent_path());
    std::ofstream{file} << text;
}

// base/a/b/c/mq.toml, and another tree that may take the place of any of its directories.
struct Tree {
    Tree() { Write(file, "first"); }
    Tree(const Tree&) = delete;
    Tree& operator=(const Tree&) = delete;
    ~Tree() { fs::remove_all(base); }

    const fs::path base = fs::temp_directory_path() / mq::test::UniqueId("mq-ancestors");
    const fs::path file = base / "a" / "b" / "c" / "mq.toml";
};

}  // namespace

#if __has_include(<sys/inotify.h>)

TEST_CASE("a directory on the way to a file may be swapped for another, however far above") {
    const Tree tree;
    Counter changes;
    // What inotify sees, and nothing that a look now and then would.
    const mq::detail::BasicFileWatcher<mq::detail::InotifyEvents> watcher{
        tree.file, [&] { changes.Add(); }, std::chrono::hours{1}};
    fs::path swapped = tree.base / "a";
    fs::path below = fs::path{"b"} / "c" / "mq.toml";
    SECTION("two above its parent") {}
    SECTION("one above its parent") {
        swapped = tree.base / "a" / "b";
        below = fs::path{"c"} / "mq.toml";
    }
    SECTION("its parent") {
        swapped = tree.base / "a" / "b" / "c";
        below = "mq.toml";
    }
    Write(tree.base / "other" / below, "second");
    fs::rename(swapped, tree.base / "away");
    fs::rename(tree.base / "other", swapped);
    REQUIRE(changes.WaitFor(1));
    // It is the new one that is followed from then on.
    const std::size_t seen = changes.Value();
    Write(tree.file, "third");
    CHECK(changes.WaitFor(seen + 1));
}

TEST_CASE("what goes on beside the way to a file is of no interest") {
    const Tree tree;
    Counter changes;
    const mq::detail::BasicFileWatcher<mq::detail::InotifyEvents> watcher{
        tree.file, [&] { changes.Add(); }, std::chrono::hours{1}};
    Write(tree.base / "a" / "b" / "other" / "mq.toml", "not this one");
    Write(tree.base / "a" / "mq.toml", "nor this one");
    fs::rename(tree.base / "a" / "mq.toml", tree.base / "a" / "renamed.toml");
    CHECK_FALSE(changes.WaitFor(1, mq::test::kGlance));
    Write(tree.file, "second");
    CHECK(changes.WaitFor(1));
}

#endif
