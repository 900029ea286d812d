/// @file process_end_test.cpp
/// Clients at the end of a program, and in the children of a fork. Each case that may hang or crash
/// runs in a process of its own: the hidden case that it names.
#include "../support/backend_fakes.hpp"
#include "../support/catch.hpp"
#include "../support/child_process.hpp"
#include "../support/collector.hpp"
#include "probe_backend.hpp"
#include <mq/mq.hpp>
#include <mq/toml.hpp>

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace {

using mq::Client;
using mq::Config;
using mq::Error;
using mq::ErrorCode;
using mq::Message;
using mq::Outcome;
using mq::Policy;
using mq::SendResult;
using mq::Subscription;
using mq::test::AwaitChild;
using mq::test::Counter;
using mq::test::Gate;
using mq::test::kPatience;
using mq::test::kPrompt;
using mq::test::RunInChild;
using std::chrono::milliseconds;

constexpr int kOwnCode = 7;
const std::string kEnds = "exit " + std::to_string(kOwnCode);

Config MemoryConfig() {
    Config config;
    config.brokers["only"].url = "memory://" + mq::test::UniqueId("ends");
    config.brokers["next"].url = "memory://" + mq::test::UniqueId("ends");
    config.topics["orders"].broker = "only";
    config.topics["moving"] = {.old_broker = "only", .new_broker = "next"};
    return config;
}

// The rest of a case whose process ends elsewhere.
[[noreturn]] void WaitForTheEnd() {
    Counter{}.WaitFor(1, kPatience);
    ::_exit(1);
}

void Ignore(mq::LogLevel /*level*/, std::string_view /*line*/) {}

template <typename Call>
std::optional<Error> ErrorOf(Call&& call) {
    try {
        std::forward<Call>(call)();
    } catch (const Error& error) {
        return error;
    }
    return std::nullopt;
}

}  // namespace

// ---- exit

TEST_CASE("ends: exit in a handler", "[.]") {
    static Client client{MemoryConfig()};
    static Subscription subscription;
    subscription = client.RecvMsg("orders", [](const Message&) { std::exit(kOwnCode); });
    client.SendMsg("orders", "b", [](const SendResult&) {});
    WaitForTheEnd();
}

TEST_CASE("ends: exit in a handler, beside one that runs", "[.]") {
    static Client client{MemoryConfig()};
    static Gate both;
    static Counter inside;
    static Subscription subscription;
    subscription = client.RecvMsg("orders",
                                  [](const Message&) {
                                      if (inside.Add() == 2) std::exit(kOwnCode);
                                      inside.WaitFor(2);
                                      Counter{}.WaitFor(1, milliseconds{300});
                                  },
                                  {.concurrency = 2});
    client.SendMsg("orders", "b");
    client.SendMsg("orders", "b");
    WaitForTheEnd();
}

TEST_CASE("ends: exit in a callback", "[.]") {
    static Client client{MemoryConfig()};
    client.SendMsg("orders", "b", [](const SendResult&) { std::exit(kOwnCode); });
    WaitForTheEnd();
}

TEST_CASE("ends: exit in a log sink on a handler's thread", "[.]") {
    static Client client{MemoryConfig(),
                         {.log = [](mq::LogLevel, std::string_view) { std::exit(kOwnCode); }}};
    static Subscription subscription;
    subscription =
        client.RecvMsg("orders", [](const Message&) { throw std::runtime_error{"not today"}; });
    client.SendMsg("orders", "b");
    WaitForTheEnd();
}

TEST_CASE("ends: exit in a log sink on another thread of the library", "[.]") {
    static const auto file = std::filesystem::temp_directory_path() / mq::test::UniqueId("mq-ends");
    std::ofstream{file} << "[brokers.only]\nurl = \"memory://x\"\n[topics.orders]\nbroker = \"only\"\n";
    static const std::thread::id main = std::this_thread::get_id();
    static Client client{mq::LoadConfig(file), {.log = [](mq::LogLevel level, std::string_view) {
                             if (level < mq::LogLevel::kError) return;
                             if (std::this_thread::get_id() == main) ::_exit(2);
                             std::filesystem::remove(file);
                             std::exit(kOwnCode);
                         }}};
    client.Watch(file);
    std::ofstream{file} << "nonsense";
    WaitForTheEnd();
}

TEST_CASE("ends: a client that its handler drops before it exits", "[.]") {
    static auto client = std::make_shared<Client>(MemoryConfig(), mq::ClientOptions{.log = Ignore});
    static Subscription subscription;
    static Gate ready;
    subscription = client->RecvMsg("orders", [](const Message&) {
        ready.Wait();
        client.reset();
        std::exit(kOwnCode);
    });
    client->SendMsg("orders", "b");
    ready.Open();
    WaitForTheEnd();
}

TEST_CASE("ends: quick_exit in a handler", "[.]") {
    static Client client{MemoryConfig()};
    static Subscription subscription;
    subscription = client.RecvMsg("orders", [](const Message&) { std::quick_exit(kOwnCode); });
    client.SendMsg("orders", "b");
    WaitForTheEnd();
}

TEST_CASE("ends: the program, in the middle of a handler", "[.]") {
    static Client client{MemoryConfig()};
    static Gate inside;
    static Subscription subscription;
    subscription = client.RecvMsg("orders", [](const Message& message) {
        inside.Open();
        Counter{}.WaitFor(1, milliseconds{300});
        if (message.body != "b") ::_exit(3);
    });
    client.SendMsg("orders", "b");
    inside.Wait();
    std::exit(kOwnCode);
}

TEST_CASE("ends: a client of a thread", "[.]") {
    std::thread{[] {
        static thread_local Client client{MemoryConfig()};
        static thread_local Subscription subscription;
        subscription = client.RecvMsg("orders", [](const Message&) {});
        client.SendMsg("orders", "b");
    }}.join();
    static thread_local Client client{MemoryConfig()};
    client.SendMsg("orders", "b", [](const SendResult&) {});
    std::exit(kOwnCode);
}

TEST_CASE("ends: a client that no thing of the library was used before", "[.]") {
    // Whatever it needs at its end is made after it, and would be destroyed before it.
    static Client client{MemoryConfig(), {.log = Ignore}};
    static Subscription subscription;
    static Counter dropped;
    subscription = client.RecvMsg("orders", [](const Message&) {
        auto other = std::make_shared<Client>(MemoryConfig(), mq::ClientOptions{.log = Ignore});
        Client& last = *other;
        last.SendMsg("orders", "b", [owner = std::move(other)](const SendResult&) {});
        dropped.Add();
    });
    client.SendMsg("orders", "b");
    dropped.WaitFor(1);
    std::exit(kOwnCode);
}

TEST_CASE("a program ends, wherever it is ended and whatever its clients are at") {
    const std::string name =
        GENERATE(as<std::string>{}, "exit in a handler", "exit in a handler, beside one that runs",
                 "exit in a callback", "exit in a log sink on a handler's thread",
                 "exit in a log sink on another thread of the library",
                 "a client that its handler drops before it exits", "quick_exit in a handler",
                 "the program, in the middle of a handler", "a client of a thread",
                 "a client that no thing of the library was used before");
    const auto begin = std::chrono::steady_clock::now();
    std::string escaped = "ends: " + name;
    for (std::size_t at = 0; (at = escaped.find(',', at)) != std::string::npos; at += 2) {
        escaped.insert(at, "\\");
    }
    INFO(name);
    CHECK(RunInChild(escaped) == kEnds);
    CHECK(std::chrono::steady_clock::now() - begin < kPrompt);
}

// ---- OpenSSL

TEST_CASE("ends: OpenSSL used after a static client is made", "[.]") {
    static Client client{MemoryConfig()};
    using Initialise = int (*)(unsigned long long options, const void* settings);
    using AtExit = int (*)(void (*)());
    void* const initialise = ::dlsym(RTLD_DEFAULT, "OPENSSL_init_crypto");
    void* const at_exit = ::dlsym(RTLD_DEFAULT, "OPENSSL_atexit");
    if (initialise == nullptr || at_exit == nullptr) std::exit(kOwnCode);  // no OpenSSL, no trouble
    constexpr unsigned long long kSomething = 2;  // OPENSSL_INIT_LOAD_CRYPTO_STRINGS
    // As the first TLS connection does.
    reinterpret_cast<Initialise>(initialise)(kSomething, nullptr);
    // Called when OpenSSL frees what a TLS connection needs.
    reinterpret_cast<AtExit>(at_exit)([] { ::_exit(4); });
    std::exit(kOwnCode);
}

TEST_CASE("OpenSSL frees nothing at the end of a program that static clients still need") {
    CHECK(RunInChild("ends: OpenSSL used after a static client is made") == kEnds);
}

// ---- fork

namespace {

bool IsForked(const std::optional<Error>& error) {
    return error && error->code() == ErrorCode::kClosed && error->outcome() == Outcome::kNotSent &&
           std::string_view{error->what()}.find("fork") != std::string_view::npos;
}

// What every use of a parent's client comes to in a child: which one was wrong, 0 for none.
int UseInChild(std::unique_ptr<Client> client, Subscription subscription, const Config& config) {
    const std::array<std::function<void()>, 7> calls{
        [&] { client->SendMsg("orders", "b"); },
        [&] { client->SendMsg("orders", "b", [](const SendResult&) { ::_exit(90); }); },
        [&] { const auto none = client->RecvMsg("orders", [](const Message&) {}); },
        [&] { client->SetPolicy("moving", Policy::kNew); },
        [&] { static_cast<void>(client->Status("orders")); },
        [&] { client->Reload(config); },
        [&] { client->Watch("/nowhere/mq.toml"); }};
    int number = 0;
    for (const auto& call : calls) {
        ++number;
        if (!IsForked(ErrorOf(call))) return number;
    }
    if (client->Flush(kPatience)) return 50;
    client->Close(kPatience);
    subscription.Close();
    client.reset();
#if !defined(__SANITIZE_THREAD__)  // which knows no threads in a child of a program with threads
    Client own{config};
    Counter received;
    Subscription mine = own.RecvMsg("orders", [&](const Message&) { received.Add(); });
    own.SendMsg("orders", "b");
    if (!received.WaitFor(1)) return 51;
#endif
    return 0;
}

}  // namespace

TEST_CASE("ends: a fork beside a client", "[.]") {
    const Config config = MemoryConfig();
    auto client = std::make_unique<Client>(config);
    Counter received;
    Subscription subscription =
        client->RecvMsg("orders", [&](const Message&) { received.Add(); }, {.concurrency = 4});
    // Its threads are in the middle of something at the time.
    for (int i = 0; i < 500; ++i) client->SendMsg("orders", "b", [](const SendResult&) {});
    const pid_t child = ::fork();
    if (child == 0) ::_exit(UseInChild(std::move(client), std::move(subscription), config));
    if (AwaitChild(child) != "exit 0") ::_exit(1);
    if (!received.WaitFor(500)) ::_exit(2);
    client->SendMsg("orders", "b");
    if (!received.WaitFor(501)) ::_exit(3);
    client.reset();
    ::_exit(kOwnCode);
}

TEST_CASE("ends: a child with a static client of its parent", "[.]") {
    static Client client{MemoryConfig(), {.log = Ignore}};
    static Subscription subscription;
    subscription = client.RecvMsg("orders", [](const Message&) {});
    client.SendMsg("orders", "b");
    const pid_t child = ::fork();
    if (child == 0) std::exit(0);
    if (AwaitChild(child) != "exit 0") ::_exit(1);
    client.SendMsg("orders", "b");
    std::exit(kOwnCode);
}

TEST_CASE("ends: a fork in a handler whose child returns", "[.]") {
    static Client client{MemoryConfig(), {.log = Ignore}};
    static Counter received;
    static std::string child_ended;
    static Subscription subscription;
    subscription = client.RecvMsg("orders", [](const Message&) {
        const pid_t child = ::fork();
        if (child == 0) return;
        child_ended = AwaitChild(child);
        received.Add();
    });
    client.SendMsg("orders", "b");
    if (!received.WaitFor(1) || child_ended != "exit 0") ::_exit(1);
    std::exit(kOwnCode);
}

TEST_CASE("ends: a fork in a callback whose child returns", "[.]") {
    static Client client{MemoryConfig(), {.log = Ignore}};
    static Counter called;
    static std::string child_ended;
    client.SendMsg("orders", "b", [](const SendResult&) {
        const pid_t child = ::fork();
        if (child == 0) return;
        child_ended = AwaitChild(child);
        called.Add();
    });
    if (!called.WaitFor(1) || child_ended != "exit 0") ::_exit(1);
    std::exit(kOwnCode);
}

TEST_CASE("a child of a fork is told that the client is its parent's, which goes on") {
    const std::string name = GENERATE(
        as<std::string>{}, "a fork beside a client", "a child with a static client of its parent",
        "a fork in a handler whose child returns", "a fork in a callback whose child returns");
    INFO(name);
    CHECK(RunInChild("ends: " + name) == kEnds);
}
