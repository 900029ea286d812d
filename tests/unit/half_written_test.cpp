/// @file half_written_test.cpp
/// A config file that is read while it is being written, or is cut short, is often a valid one. It must
/// not let a topic move with less proof than its writer asks for, nor take a topic away that is in use.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/collector.hpp"
#include "../support/wait.hpp"
#include <mq/detail/reload_check.hpp>
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

namespace {

using mq::Client;
using mq::Config;
using mq::Error;
using mq::ErrorCode;
using mq::Policy;
using mq::TopicConfig;
using mq::detail::Widens;
using mq::test::Eventually;
using mq::test::Has;
using mq::test::Stays;
using std::chrono::milliseconds;
using std::chrono::seconds;

class Folder {
public:
    Folder() : path_(std::filesystem::temp_directory_path() / mq::test::UniqueId("mq-half")) {
        std::filesystem::create_directory(path_);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path_, ignored);
    }

    [[nodiscard]] std::filesystem::path file() const { return path_ / "mq.toml"; }
    void WriteInPlace(std::string_view text) const { std::ofstream{file()} << text; }
    void Replace(std::string_view text) const {
        std::ofstream{path_ / "draft"} << text;
        std::filesystem::rename(path_ / "draft", file());
    }

private:
    std::filesystem::path path_;
};

// A topic that migrates between two brokers of its own, as a file says it; with a group to wait for
// behind the policy, where a file that is cut short loses it.
struct Bench {
    [[nodiscard]] std::string UpToPolicy(std::string_view policy) const {
        return "[brokers.legacy]\nurl = \"memory://" + legacy +
               "\"\n[brokers.next]\nurl = \"memory://" + next +
               "\"\n[topics.invoices]\nbroker = \"legacy\"\n" +
               "[topics.orders]\nold = \"legacy\"\nnew = \"next\"\npolicy = \"" + std::string{policy} +
               "\"\n";
    }
    [[nodiscard]] std::string Whole(std::string_view policy) const {
        return UpToPolicy(policy).append(kRest);
    }

    static constexpr std::string_view kRest = "groups = [\"billing\"]\nquiet = \"5m\"\n";

    const std::string legacy = mq::test::UniqueId("legacy");
    const std::string next = mq::test::UniqueId("next");
    mq::test::RecordingLog log = {};
};

template <typename Call>
std::optional<Error> ErrorOf(Call&& call) {
    try {
        std::forward<Call>(call)();
    } catch (const Error& error) {
        return error;
    }
    return std::nullopt;
}

bool IsAimedAt(const Client& client, Policy policy) { return client.Status("orders").policy == policy; }

}  // namespace

TEST_CASE("an edit that moves a topic must not leave out what the move waits for") {
    const Bench bench;
    Client client{mq::ParseConfig(bench.Whole("old"))};
    const auto error =
        ErrorOf([&] { client.Reload(mq::ParseConfig(bench.UpToPolicy("new-publish"))); });
    REQUIRE(error);
    CHECK(error->code() == ErrorCode::kConfig);
    CHECK(Has(error->what(), "topics.orders.groups"));
    CHECK(Has(error->what(), "groups = []"));
    CHECK(Has(error->what(), "topics.orders.quiet"));
    CHECK(IsAimedAt(client, Policy::kOld));

    // Said in so many words, it is what somebody wants.
    client.Reload(mq::ParseConfig(bench.UpToPolicy("new-publish") + "groups = []\nquiet = \"30s\"\n"));
    CHECK(IsAimedAt(client, Policy::kNewPublish));
}

TEST_CASE("an edit that leaves out the policy does not walk a topic back") {
    const Bench bench;
    Client client{mq::ParseConfig(bench.Whole("dual-subscribe"))};
    std::string text = bench.UpToPolicy("old");
    text.erase(text.find("policy"));
    const auto error = ErrorOf([&] { client.Reload(mq::ParseConfig(text)); });
    REQUIRE(error);
    CHECK(Has(error->what(), "topics.orders.policy"));
    CHECK(IsAimedAt(client, Policy::kDualSubscribe));
}

TEST_CASE("what a topic that rests does not need may be left out, and a program may do as it likes") {
    const Bench bench;
    Client client{mq::ParseConfig(bench.Whole("old"))};
    CHECK_NOTHROW(client.Reload(mq::ParseConfig(bench.UpToPolicy("old"))));
    CHECK_NOTHROW(client.Reload(mq::ParseConfig(bench.Whole("old"))));
    Config config = mq::ParseConfig(bench.Whole("new-publish"));
    config.origins.clear();
    config.topics["orders"].groups.clear();
    CHECK_NOTHROW(client.Reload(config));
}

TEST_CASE("a watched file that is cut behind its policy moves nothing") {
    Bench bench;
    const Folder folder;
    folder.Replace(bench.Whole("old"));
    Client client{mq::LoadConfig(folder.file()), {.log = bench.log.Sink()}};
    client.Watch(folder.file());
    folder.Replace(bench.UpToPolicy("new-publish"));
    CHECK(bench.log.WaitForLine("topics.orders.groups"));
    CHECK(IsAimedAt(client, Policy::kOld));
    folder.Replace(bench.Whole("new-publish"));
    CHECK(Eventually([&] { return IsAimedAt(client, Policy::kNewPublish); }));
    CHECK(bench.log.WaitForLine("topic orders: policy old -> new-publish"));
}

TEST_CASE("a file that is written in two goes is applied when the second one is done") {
    // Groups are named for the first time, in the second half: nothing in the first tells of them.
    Bench bench;
    const Folder folder;
    folder.Replace(bench.UpToPolicy("old"));
    Client client{mq::LoadConfig(folder.file()), {.log = bench.log.Sink()}};
    client.Watch(folder.file());
    constexpr std::string_view kApplied = "is applied, which changes: topic orders";
    const auto not_applied = [&] { return !bench.log.WaitForLine(kApplied, milliseconds{0}); };
    SECTION("by a writer that keeps the file open") {
        std::ofstream writer{folder.file(), std::ios::trunc};
        writer << bench.UpToPolicy("new-publish") << std::flush;
        CHECK(Stays(not_applied, seconds{4}));
        writer << Bench::kRest << std::flush;
        CHECK(Stays(not_applied, milliseconds{500}));
        writer.close();
    }
    SECTION("by two writers") {
        folder.WriteInPlace(bench.UpToPolicy("new-publish"));
        CHECK(Stays(not_applied, milliseconds{1500}));
        std::ofstream{folder.file(), std::ios::app} << Bench::kRest;
    }
    REQUIRE(bench.log.WaitForLine(kApplied));
    for (const auto& [level, line] : bench.log.Lines()) {
        if (Has(line, kApplied)) CHECK(Has(line, "groups = [billing]"));
    }
    CHECK(IsAimedAt(client, Policy::kNewPublish));
}

TEST_CASE("a file with a writer that never closes it is applied when it has been still for long") {
    Bench bench;
    const Folder folder;
    folder.Replace(bench.Whole("old"));
    Client client{mq::LoadConfig(folder.file()), {.log = bench.log.Sink()}};
    client.Watch(folder.file());
    std::ofstream writer{folder.file(), std::ios::trunc};
    writer << bench.Whole("dual-subscribe") << std::flush;
    CHECK(Eventually([&] { return IsAimedAt(client, Policy::kDualSubscribe); }));
}

TEST_CASE("Watch waits for a file that was only just written, where it would widen something") {
    Bench bench;
    const Folder folder;
    Client client{mq::ParseConfig(bench.Whole("old")), {.log = bench.log.Sink()}};
    folder.WriteInPlace(bench.UpToPolicy("new-publish"));
    std::thread writer{[&] {
        mq::test::Counter{}.WaitFor(1, milliseconds{500});  // as a slow writer does
        std::ofstream{folder.file(), std::ios::app} << Bench::kRest;
    }};
    client.Watch(folder.file());
    writer.join();
    CHECK(IsAimedAt(client, Policy::kNewPublish));
    for (const auto& [level, line] : bench.log.Lines()) CHECK_FALSE(Has(line, "was not applied"));
}

TEST_CASE("a reload cannot take out a topic that the client has sent to") {
    Bench bench;
    Client client{mq::ParseConfig(bench.Whole("old")), {.log = bench.log.Sink()}};
    Config without = mq::ParseConfig(bench.Whole("old"));
    without.topics.erase("invoices");
    SECTION("and which was used") {
        client.SendMsg("invoices", "b");
        const auto error = ErrorOf([&] { client.Reload(without); });
        REQUIRE(error);
        CHECK(error->code() == ErrorCode::kConfig);
        CHECK(Has(error->what(), "topics.invoices"));
        CHECK(Has(error->what(), "has sent to it"));
        CHECK_NOTHROW(client.SendMsg("invoices", "b"));
    }
    SECTION("but one that was not used goes, and the log says so") {
        client.Reload(without);
        CHECK(bench.log.WaitForLine("topic invoices: gone", milliseconds{0}));
        const auto error = ErrorOf([&] { client.SendMsg("invoices", "b"); });
        REQUIRE(error);
        CHECK(error->code() == ErrorCode::kUnknownTopic);
        client.Reload(mq::ParseConfig(bench.Whole("old")));
        CHECK(bench.log.WaitForLine("topic invoices: new", milliseconds{0}));
        CHECK_NOTHROW(client.SendMsg("invoices", "b"));
    }
}

TEST_CASE("what widens a guard is told from what does not") {
    const TopicConfig before{.old_broker = "a",
                             .new_broker = "b",
                             .policy = Policy::kDualSubscribe,
                             .groups = {"billing", "search"},
                             .order = mq::Order::kKey,
                             .dedup = seconds{60}};
    TopicConfig after = before;
    CHECK_FALSE(Widens(before, after));
    SECTION("a move with its groups does not") {
        after.policy = Policy::kNewPublish;
        CHECK_FALSE(Widens(before, after));
    }
    SECTION("a group less does") {
        after.groups = {"search"};
        CHECK(Widens(before, after));
    }
    SECTION("a group more does not") {
        after.groups.emplace_back("audit");
        CHECK_FALSE(Widens(before, after));
    }
    SECTION("no guard does") {
        after.guard = false;
        CHECK(Widens(before, after));
    }
    SECTION("a shorter quiet does") {
        after.quiet = seconds{1};
        CHECK(Widens(before, after));
    }
    SECTION("no order does") {
        after.order = mq::Order::kNone;
        CHECK(Widens(before, after));
    }
    SECTION("a shorter window does") {
        after.dedup = seconds{1};
        CHECK(Widens(before, after));
    }
    SECTION("another broker does") {
        after.broker = "b";
        CHECK(Widens(before, after));
    }
    SECTION("a move for which anybody will do, does; listening to both sides does not") {
        TopicConfig anybody{.old_broker = "a", .new_broker = "b"};
        TopicConfig moved = anybody;
        moved.policy = Policy::kDualSubscribe;
        CHECK_FALSE(Widens(anybody, moved));
        moved.policy = Policy::kNewPublish;
        CHECK(Widens(anybody, moved));
    }
}
