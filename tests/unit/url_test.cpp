/// @file url_test.cpp
/// Taking the URL of a broker apart, and printing it without what is secret.
#include "../support/catch.hpp"
#include <mq/url.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using mq::HostPort;
using mq::ParseUrl;
using mq::Redacted;
using Pairs = std::vector<std::pair<std::string, std::string>>;

// What is wrong with a URL; empty where nothing is.
std::string WhatIsWrong(std::string_view url) {
    try {
        (void)ParseUrl(url);
    } catch (const std::invalid_argument& wrong) {
        return wrong.what();
    }
    return {};
}

bool Has(const std::string& text, std::string_view part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a URL with everything in it is taken apart") {
    const mq::Url url =
        ParseUrl("amqps://app:secret@rabbit-1:5671,rabbit-2/prod?heartbeat=5&ca=x%20y&flag=");
    CHECK(url.scheme == "amqps");
    CHECK(url.user == "app");
    CHECK(url.password == "secret");
    CHECK(url.hosts == std::vector<HostPort>{{"rabbit-1", 5671}, {"rabbit-2", 0}});
    CHECK(url.path == "prod");
    CHECK(url.query == Pairs{{"heartbeat", "5"}, {"ca", "x y"}, {"flag", ""}});
}

TEST_CASE("a URL with only a host has nothing else") {
    const mq::Url url = ParseUrl("memory://here");
    CHECK(url.scheme == "memory");
    CHECK(url.user.empty());
    CHECK(url.password.empty());
    CHECK(url.hosts == std::vector<HostPort>{{"here", 0}});
    CHECK(url.path == std::nullopt);
    CHECK(url.query.empty());
}

TEST_CASE("a slash behind the host and nothing are different paths") {
    CHECK(ParseUrl("amqp://h").path == std::nullopt);
    CHECK(ParseUrl("amqp://h/").path == "");
    CHECK(ParseUrl("amqp://h/%2F").path == "/");
    CHECK(ParseUrl("amqp://h/a/b").path == "a/b");
    CHECK(ParseUrl("amqp://h?a=b").path == std::nullopt);
    CHECK(ParseUrl("amqp://h/?a=b").path == "");
    CHECK(ParseUrl("amqp://h/v?a=b/c?d").query == Pairs{{"a", "b/c?d"}});
}

TEST_CASE("percent-encoding is decoded in every part") {
    const mq::Url url = ParseUrl("amqp://a%40b:p%3a%2F%25@h%2d1/v%20h?%61=%3D");
    CHECK(url.user == "a@b");
    CHECK(url.password == "p:/%");
    CHECK(url.hosts == std::vector<HostPort>{{"h-1", 0}});
    CHECK(url.path == "v h");
    CHECK(url.query == Pairs{{"a", "="}});
}

TEST_CASE("credentials end at the last at-sign before the path") {
    const mq::Url url = ParseUrl("amqp://user:p@ss:word@h");
    CHECK(url.user == "user");
    CHECK(url.password == "p@ss:word");
    CHECK(url.hosts.front().host == "h");
    CHECK(ParseUrl("amqp://user@h").user == "user");
    CHECK(ParseUrl("amqp://user:@h").password.empty());
}

TEST_CASE("IPv6 addresses stand in brackets") {
    CHECK(ParseUrl("amqp://[::1]:5672,[fe80::2]").hosts ==
          std::vector<HostPort>{{"::1", 5672}, {"fe80::2", 0}});
    CHECK(Redacted(ParseUrl("amqp://[::1]:5672/v")) == "amqp://[::1]:5672/v");
    CHECK(Has(WhatIsWrong("amqp://[::1"), "']'"));
    CHECK(Has(WhatIsWrong("amqp://[::1]5672"), "':port'"));
    CHECK(Has(WhatIsWrong("amqp://[]"), "host is missing"));
    CHECK(Has(WhatIsWrong("amqp://fe80::1:5672"), "IPv6"));
}

TEST_CASE("a scheme may be written in capital letters") {
    CHECK(ParseUrl("AMQP://h").scheme == "amqp");
    CHECK(ParseUrl("x-1+y.z://h").scheme == "x-1+y.z");
}

TEST_CASE("what is no URL is refused with what was expected") {
    for (const std::string_view url : {"", "localhost", "amqp:/h", "://h", "amqp//h"}) {
        INFO(url);
        CHECK(Has(WhatIsWrong(url), "SCHEME://HOST"));
    }
    CHECK(Has(WhatIsWrong("am qp://h"), "scheme"));
    CHECK(Has(WhatIsWrong("1amqp://h"), "scheme"));
    CHECK(Has(WhatIsWrong("user:pw@amqp://h"), "scheme"));
    for (const std::string_view url :
         {"amqp://", "amqp:///v", "amqp://a,,b", "amqp://a,", "amqp://u:p@", "amqp://:1"}) {
        INFO(url);
        CHECK(Has(WhatIsWrong(url), "host is missing"));
    }
    CHECK(Has(WhatIsWrong("amqp://a b"), "white space"));
    CHECK(Has(WhatIsWrong("amqp://h\n"), "white space"));
    CHECK(Has(WhatIsWrong("amqp://h?a"), "name=value"));
    CHECK(Has(WhatIsWrong("amqp://h?=a"), "name=value"));
}

TEST_CASE("a port is a number from 1 to 65535") {
    CHECK(ParseUrl("amqp://h:1").hosts.front().port == 1);
    CHECK(ParseUrl("amqp://h:65535").hosts.front().port == 65535);
    for (const std::string_view port : {"0", "65536", "99999999999", "-1", "+1", "5672x", " 1", "x"}) {
        INFO(port);
        CHECK(Has(WhatIsWrong("amqp://h:" + std::string{port}), "from 1 to 65535"));
    }
    CHECK(Has(WhatIsWrong("amqp://h:"), "port is missing"));
    CHECK(Has(WhatIsWrong("amqp://h:,i"), "port is missing"));
}

TEST_CASE("a percent sign that begins no byte is refused") {
    for (const std::string_view text : {"%", "%4", "%zz", "a%4g", "%%41"}) {
        INFO(text);
        CHECK(Has(WhatIsWrong("amqp://u:" + std::string{text} + "@h"), "%25"));
        CHECK(Has(WhatIsWrong("amqp://h/" + std::string{text}), "%25"));
    }
}

TEST_CASE("a password with a raw slash or question mark is refused, not taken for a path") {
    for (const std::string_view url : {"amqp://u:pa/ss@h", "amqp://u:pa?ss@h", "amqp://us/er:pass@h",
                                       "amqp://u:p@1/ss@h", "amqp://u:pa?s=s@h"}) {
        INFO(url);
        CHECK(Has(WhatIsWrong(url), "%2F"));
    }
    CHECK(ParseUrl("amqp://u:p@h/a%40b").path == "a@b");
}

TEST_CASE("an error about a URL never quotes a password") {
    for (const std::string_view url :
         {"amqp:/u:hunter2@h", "u:hunter2@amqp://h", "amqp://u:hunter2", "amqp://u:hunter2@h:x",
          "amqp://u:hunter2@", "amqp://u:hunter2%@h", "amqp://u:hunter2@[h",
          "amqp://u:hun/ter2hunter2@h", "amqp://h?p=hunter2&x"}) {
        INFO(url);
        const std::string wrong = WhatIsWrong(url);
        CHECK_FALSE(wrong.empty());
        CHECK_FALSE(Has(wrong, "hunter2"));
    }
}

TEST_CASE("a redacted URL has neither password nor query") {
    CHECK(Redacted(ParseUrl("amqp://app:hunter2@a:1,b/v?password=hunter2")) == "amqp://app@a:1,b/v");
    CHECK(Redacted(ParseUrl("kafka://k")) == "kafka://k");
    // A password that an encoded colon has brought into the user name.
    CHECK(Redacted(ParseUrl("amqp://app%3Ahunter2@a")) == "amqp://app@a");
}
