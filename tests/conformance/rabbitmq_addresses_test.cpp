/// @file rabbitmq_addresses_test.cpp
/// A broker whose name has several addresses, of which the first is silent. The resolver is this
/// program's own here: it answers for one name as a test wants it.
#include "../support/catch.hpp"
#include "../support/rabbitmq_fixture.hpp"
#include "../support/silent_port.hpp"

#include <dlfcn.h>
#include <netdb.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

namespace {

using mq::test::SilentPort;
using namespace mq::test::rabbitmq;
using namespace std::chrono_literals;

// While true, these two names are 127.0.0.2 first, and then this machine. The second is in no
// certificate.
constexpr const char* kName = "localhost";
constexpr const char* kOtherName = "elsewhere.example";
std::atomic<bool> two_addresses{false};

using GetAddrInfo = int (*)(const char*, const char*, const addrinfo*, addrinfo**);

GetAddrInfo Real() {
    static const GetAddrInfo real = [] {
        void* const symbol = ::dlsym(RTLD_NEXT, "getaddrinfo");
        GetAddrInfo found = nullptr;
        std::memcpy(&found, &symbol, sizeof(symbol));
        return found;
    }();
    return real;
}

/// Has the name lead to a silent address first, as long as it lives.
struct TwoAddresses {
    explicit TwoAddresses(std::uint16_t port) : silent("127.0.0.2", port) { two_addresses = true; }
    TwoAddresses(const TwoAddresses&) = delete;
    TwoAddresses& operator=(const TwoAddresses&) = delete;
    ~TwoAddresses() { two_addresses = false; }

    const SilentPort silent;
};

std::filesystem::path Folder() {
    return mq::test::FromEnvironment("MQ_TEST_RABBITMQ_DIR").value_or("");
}

std::string Trusted() { return (Folder() / "tls" / "ca.pem").string(); }

/// Empty, with the test case skipped, where there is none.
std::string TlsUrl() {
    std::ifstream file{Folder() / "url-tls"};
    std::string url;
    if (!std::getline(file, url)) mq::test::SkipCase("there is no RabbitMQ with a TLS listener");
    return url;
}

}  // namespace

extern "C" int getaddrinfo(const char* node, const char* service, const addrinfo* hints,
                           addrinfo** result) {
    const bool known =
        node != nullptr && (std::strcmp(node, kName) == 0 || std::strcmp(node, kOtherName) == 0);
    const bool numeric = hints != nullptr && (hints->ai_flags & AI_NUMERICHOST) != 0;
    if (!two_addresses || !known || numeric) return Real()(node, service, hints, result);
    addrinfo* rest = nullptr;
    if (const int error = Real()("127.0.0.1", service, hints, &rest); error != 0) return error;
    if (const int error = Real()("127.0.0.2", service, hints, result); error != 0) return error;
    addrinfo* last = *result;
    while (last->ai_next != nullptr) last = last->ai_next;
    last->ai_next = rest;
    return 0;
}

TEST_CASE("RabbitMQ: a silent address of a host does not keep from the others", "[rabbitmq]") {
    const std::string url = BrokerUrl();
    if (url.empty()) return;
    const std::uint16_t port = mq::ParseUrl(url).hosts[0].port;
    const TwoAddresses names{port};
    Connected client{With(url, "127.0.0.1", kName), {{"connect_timeout", "25s"}}};
    CHECK(client.Send(Fresh(), mq::test::MakeMessage("m"), 20s) == nullptr);
}

TEST_CASE("RabbitMQ: the same by TLS, with the certificate checked against the host's name",
          "[rabbitmq]") {
    const std::string url = TlsUrl();
    if (url.empty()) return;
    const TwoAddresses names{mq::ParseUrl(url).hosts[0].port};
    const std::string trusted = Trusted();
    Connected client{url, {{"tls.ca", trusted}, {"connect_timeout", "25s"}}};
    CHECK(client.Send(Fresh(), mq::test::MakeMessage("m"), 20s) == nullptr);
    Connected stranger{url};
    const mq::Error* const refused = stranger.Send(Fresh(), mq::test::MakeMessage("m"), 2s);
    REQUIRE(refused != nullptr);
    CHECK(stranger.log.WaitForLine("vouches for"));
    Connected elsewhere{With(url, kName, kOtherName), {{"tls.ca", trusted}}};
    REQUIRE(elsewhere.Send(Fresh(), mq::test::MakeMessage("m"), 2s) != nullptr);
    CHECK(elsewhere.log.WaitForLine("not one for the host elsewhere.example"));
}
