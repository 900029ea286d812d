/// @file main.cpp
/// The main of every test program. Besides running the tests it counts the test cases, so that the test
/// command can add up several programs: it writes "PASSED FAILED SKIPPED" into the file that the
/// variable MQ_TEST_TALLY names and, while a test case runs, its name into that file with ".running"
/// appended, which tells where a program hung or died.
#define CATCH_CONFIG_RUNNER
// A sanitizer's own report of a fatal signal says more, and so does what is below.
#define CATCH_CONFIG_NO_POSIX_SIGNALS
#include "catch.hpp"

#include <execinfo.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>

namespace {

#if __has_include(<catch2/catch_all.hpp>)
using ListenerBase = Catch::EventListenerBase;
const Catch::TestCaseInfo& Info(const Catch::TestCaseStats& stats) { return *stats.testInfo; }
#else
using ListenerBase = Catch::TestEventListenerBase;
const Catch::TestCaseInfo& Info(const Catch::TestCaseStats& stats) { return stats.testInfo; }
#endif

// Catch2 counts what its own SKIP has skipped from 3.3 on.
template <typename Counts>
bool SkippedByCatch([[maybe_unused]] const Counts& counts) {
    if constexpr (requires { counts.skipped; }) return counts.skipped > 0;
    return false;
}

// A filter that leaves nothing to run is no failure; Catch2 2 agrees, and 3 has to be told.
template <typename ConfigData>
void AllowNoTests([[maybe_unused]] ConfigData& config) {
    if constexpr (requires { config.allowZeroTests; }) config.allowZeroTests = true;
}

// Catch2 keeps the state of an assertion without a lock: one that another thread makes is a data race,
// which shows only now and then. This shows it each time.
class OneThread : public ListenerBase {
public:
    using ListenerBase::ListenerBase;

    void assertionStarting(const Catch::AssertionInfo& assertion) override {
        if (std::this_thread::get_id() == thread_) return;
        std::cerr << assertion.lineInfo
                  << ": an assertion in a thread other than the test's; return what it is about to the "
                     "test's thread, and assert it there"
                  << std::endl;
        std::abort();
    }

private:
    std::thread::id thread_ = std::this_thread::get_id();
};

CATCH_REGISTER_LISTENER(OneThread)

std::string TallyFile() {
    const char* const path = std::getenv("MQ_TEST_TALLY");
    return path != nullptr ? path : "";
}

class Tally : public ListenerBase {
public:
    using ListenerBase::ListenerBase;

    void testCaseStarting(const Catch::TestCaseInfo& test) override {
        mq::test::SkipReason().clear();
        if (!file_.empty()) std::ofstream{file_ + ".running"} << test.name << '\n';
    }

    void testCaseEnded(const Catch::TestCaseStats& stats) override {
        const Catch::Counts& counts = stats.totals.testCases;
        if (counts.failed > 0) {
            ++failed_;
        } else if (!mq::test::SkipReason().empty()) {
            ++skipped_;
            std::cout << "skipped: " << Info(stats).name << ": " << mq::test::SkipReason() << std::endl;
        } else if (SkippedByCatch(counts)) {
            ++skipped_;
        } else {
            ++passed_;
        }
    }

    void testRunEnded(const Catch::TestRunStats&) override {
        if (file_.empty()) return;
        std::ofstream{file_} << passed_ << ' ' << failed_ << ' ' << skipped_ << '\n';
    }

private:
    std::string file_ = TallyFile();
    int passed_ = 0;
    int failed_ = 0;
    int skipped_ = 0;
};

CATCH_REGISTER_LISTENER(Tally)

// Where a program without a sanitizer died: the frames of the thread, as addresses for addr2line. What
// was printed before is in buffers, and must not be lost with them.
extern "C" void PrintFrames(int signal_number) {
    std::array<void*, 64> frames{};
    const int count = ::backtrace(frames.data(), static_cast<int>(frames.size()));
    ::backtrace_symbols_fd(frames.data(), count, STDERR_FILENO);
    std::signal(signal_number, SIG_DFL);
    std::raise(signal_number);
}

void PrintFramesOnFatalSignals() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    return;
#endif
#endif
    std::array<void*, 1> loaded{};
    ::backtrace(loaded.data(), 1);  // loads what it needs now, and not in the handler
    std::cout << std::unitbuf;
    for (const int fatal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) std::signal(fatal, &PrintFrames);
#endif
}

}  // namespace

int main(int argc, char* argv[]) {
    PrintFramesOnFatalSignals();
    Catch::Session session;
    AllowNoTests(session.configData());
    return session.run(argc, argv);
}
