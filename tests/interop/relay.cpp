/// @file relay.cpp
/// mq for a test that is written in another language: sends a message that it reads from standard
/// input, or writes what it receives to standard output.
///
///     relay send URL ADDRESS
///     relay receive URL ADDRESS GROUP COUNT
///
/// A message is one line a field, `NAME HEX` or `header HEX HEX`, where HEX are the bytes of the value
/// in hexadecimal digits, and then a line `end`. Before the first message that is received a line
/// `ready` says that the group is subscribed, and after one that was sent `confirmed`.
#include <mq/backends/activemq.hpp>
#include <mq/mq.hpp>

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <semaphore>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

constexpr const char* kTopic = "orders";
constexpr std::chrono::minutes kPatience{2};

std::string ToHex(std::string_view bytes) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string hex;
    for (const char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        hex += kDigits[byte / 16u];
        hex += kDigits[byte % 16u];
    }
    return hex;
}

std::string FromHex(const std::string& hex) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
        bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

using Field = std::pair<const char*, std::string mq::Message::*>;
const std::vector<Field> kFields{{"body", &mq::Message::body},
                                 {"key", &mq::Message::key},
                                 {"id", &mq::Message::id},
                                 {"content_type", &mq::Message::content_type},
                                 {"correlation_id", &mq::Message::correlation_id},
                                 {"reply_to", &mq::Message::reply_to}};

mq::Message Read(std::istream& in) {
    mq::Message message;
    for (std::string line; std::getline(in, line) && line != "end";) {
        std::istringstream words{line};
        std::string name;
        std::string first;
        std::string second;
        words >> name >> first >> second;
        if (name == "header") message.headers.emplace_back(FromHex(first), FromHex(second));
        for (const auto& [field, member] : kFields) {
            if (name == field) message.*member = FromHex(first);
        }
    }
    return message;
}

std::string Write(const mq::Message& message) {
    std::string text;
    for (const auto& [field, member] : kFields) {
        text += std::string{field} + " " + ToHex(message.*member) + "\n";
    }
    for (const auto& [name, value] : message.headers) {
        text += "header " + ToHex(name) + " " + ToHex(value) + "\n";
    }
    return text + "end\n";
}

mq::Config MakeConfig(const std::string& url, const std::string& address) {
    mq::Config config;
    config.brokers["broker"].url = url;
    config.topics[kTopic].broker = "broker";
    config.topics[kTopic].address = address;
    return config;
}

void Send(mq::Client& client) {
    client.SendMsg(kTopic, Read(std::cin));
    std::cout << "confirmed" << std::endl;
}

void Receive(mq::Client& client, const std::string& group, std::ptrdiff_t count) {
    std::mutex writing;
    std::ptrdiff_t left = count;  // guarded by writing
    std::binary_semaphore done{0};
    const mq::Subscription subscription = client.RecvMsg(kTopic,
                                                         [&](const mq::Message& message) {
                                                             const std::lock_guard lock{writing};
                                                             if (left == 0) return;
                                                             std::cout << Write(message) << std::flush;
                                                             if (--left == 0) done.release();
                                                         },
                                                         {.group = group});
    {
        const std::lock_guard lock{writing};
        std::cout << "ready" << std::endl;
    }
    if (!done.try_acquire_for(kPatience)) throw std::runtime_error{"the messages did not come"};
}

}  // namespace

int main(int argc, char** argv) try {
    const std::vector<std::string> arguments{argv + 1, argv + argc};
    const bool sends = arguments.size() == 3 && arguments[0] == "send";
    const bool receives = arguments.size() == 5 && arguments[0] == "receive";
    if (!sends && !receives)
        throw std::invalid_argument{"relay send|receive URL ADDRESS [GROUP COUNT]"};
    mq::Client client{MakeConfig(arguments[1], arguments[2])};
    if (sends) {
        Send(client);
    } else {
        Receive(client, arguments[3], std::stol(arguments[4]));
    }
    return EXIT_SUCCESS;
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return EXIT_FAILURE;
}
