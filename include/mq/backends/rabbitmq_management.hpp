/// @file rabbitmq_management.hpp
/// RabbitMQ's management HTTP API, over libcurl: including this header makes the option `management` of
/// amqp:// and amqps:// brokers available. With it a side is not left while another process holds a
/// message unsettled, which AMQP alone does not tell. The only header that includes libcurl.
///
/// **Option.** `management = "http://HOST:15672"`, or https://, several hosts with commas. User and
/// password are those of the broker's URL where it names none; the user needs the tag `monitoring` or
/// `management`. By https:// the certificate is checked as tls.verify and tls.ca say. No proxy is used,
/// as for the broker itself.
///
/// **Age.** RabbitMQ collects the counts every five seconds (collect_statistics_interval; the option
/// `management_age` says how old they may be). Zero is believed after it was seen for so long.
#pragma once

#include <mq/backends/rabbitmq/management.hpp>
#include <mq/detail/json.hpp>

#include <curl/curl.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace mq::rabbitmq {

/// The totals in an answer about one queue; nothing where none were collected yet.
/// @throws std::invalid_argument where it is no such answer.
inline std::optional<QueueTotals> ReadQueueTotals(std::string_view body) {
    using mq::detail::Json;
    try {
        const Json queue = Json::parse(body);
        if (!queue.is_object()) throw std::invalid_argument("not an object");
        if (!queue.contains("messages_ready") || !queue.contains("messages_unacknowledged")) {
            return std::nullopt;
        }
        return QueueTotals{queue.at("messages_ready").get<std::uint64_t>(),
                           queue.at("messages_unacknowledged").get<std::uint64_t>()};
    } catch (const Json::exception& error) {
        throw std::invalid_argument(std::string{"not what is told of a queue: "} + error.what());
    }
}

/// What policies say, in an answer about one queue.
/// @throws std::invalid_argument where it is no such answer.
inline QueuePolicy ReadQueuePolicy(std::string_view body) {
    using mq::detail::Json;
    try {
        const Json queue = Json::parse(body);
        if (!queue.is_object()) throw std::invalid_argument("not an object");
        QueuePolicy policy;
        // Without a policy it is an empty list, or null.
        if (!queue.contains("effective_policy_definition")) return policy;
        const Json& definition = queue.at("effective_policy_definition");
        if (!definition.is_object()) return policy;
        for (const auto& [name, value] : definition.items()) {
            if (value.is_string()) policy[name] = value.get<std::string>();
            if (value.is_number_integer()) policy[name] = std::to_string(value.get<std::int64_t>());
        }
        return policy;
    } catch (const Json::exception& error) {
        throw std::invalid_argument(std::string{"not what is told of a queue: "} + error.what());
    }
}

namespace detail {

/// Asks by HTTP. Connections are kept: one for each question that is asked at the same time.
class HttpManagement final : public Management {
public:
    explicit HttpManagement(ManagementSettings settings) : settings_(std::move(settings)) {
        static const CURLcode initialised = ::curl_global_init(CURL_GLOBAL_DEFAULT);
        if (initialised != CURLE_OK) throw std::runtime_error(::curl_easy_strerror(initialised));
    }

    std::optional<QueueTotals> TotalsOf(const std::string& virtual_host, const std::string& queue,
                                        std::chrono::steady_clock::time_point deadline) override {
        const auto answer =
            Ask(virtual_host, queue, "messages_ready,messages_unacknowledged", deadline);
        if (!answer) return std::nullopt;
        return Read(*answer, &ReadQueueTotals);
    }

    QueuePolicy PolicyOf(const std::string& virtual_host, const std::string& queue,
                         std::chrono::steady_clock::time_point deadline) override {
        const auto answer = Ask(virtual_host, queue, "name,effective_policy_definition", deadline);
        if (!answer) return {};
        return Read(*answer, &ReadQueuePolicy);
    }

private:
    struct Cleanup {
        void operator()(CURL* handle) const noexcept { ::curl_easy_cleanup(handle); }
    };
    using Handle = std::unique_ptr<CURL, Cleanup>;
    struct FreeText {
        void operator()(char* text) const noexcept { ::curl_free(text); }
    };

    struct Response {
        std::string body = {};
        long status = 0;
        std::string trouble = {};
    };

    struct Answer {
        std::string where = {};
        std::string body = {};
    };

    // Some columns of what is told of a queue, by the first host that answers; nothing where there is
    // no such queue.
    std::optional<Answer> Ask(const std::string& virtual_host, const std::string& queue,
                              const std::string& columns,
                              std::chrono::steady_clock::time_point deadline) {
        Handle handle = Take();
        const std::string path = "/api/queues/" + Escaped(handle.get(), virtual_host) + "/" +
                                 Escaped(handle.get(), queue) + "?columns=" + columns;
        std::string why;
        std::size_t left = settings_.url.hosts.size();
        for (const HostPort& host : settings_.url.hosts) {
            const std::string address = AddressOf(host);
            const std::string where = settings_.broker + ": the management at " + address;
            Response response;
            // Each host its share: one that stands still leaves time for the others.
            const auto share = (deadline - std::chrono::steady_clock::now()) / left--;
            if (!Get(handle.get(), address + path, share, response)) {
                why = where + ": " + response.trouble;
                continue;
            }
            Keep(std::move(handle));
            if (response.status == 404) return std::nullopt;
            if (response.status != 200) {
                throw std::runtime_error(where + " answers " + std::to_string(response.status));
            }
            return Answer{where, std::move(response.body)};
        }
        throw std::runtime_error(why);
    }

    template <typename Result>
    static Result Read(const Answer& answer, Result (*reader)(std::string_view)) {
        try {
            return reader(answer.body);
        } catch (const std::invalid_argument& error) {
            throw std::runtime_error(answer.where + ": " + error.what());
        }
    }

    // What is told of one queue, without the columns that are not asked for, is far shorter.
    static constexpr std::size_t kLongestBody = std::size_t{1} << 20u;
    static constexpr std::size_t kMostKept = 4;

    Handle Take() {
        {
            const std::lock_guard lock{mutex_};
            for (Handle& kept : kept_) {
                if (kept != nullptr) return std::move(kept);
            }
        }
        Handle made{::curl_easy_init()};
        if (made == nullptr) throw std::runtime_error(settings_.broker + ": no handle of libcurl");
        return made;
    }

    void Keep(Handle handle) {
        const std::lock_guard lock{mutex_};
        for (Handle& kept : kept_) {
            if (kept != nullptr) continue;
            kept = std::move(handle);
            return;
        }
    }

    [[nodiscard]] std::string AddressOf(const HostPort& host) const {
        const bool bare_ipv6 = host.host.find(':') != std::string::npos;
        std::string address = settings_.url.scheme + "://";
        address += bare_ipv6 ? "[" + host.host + "]" : host.host;
        const bool secure = settings_.url.scheme == "https";
        return address + ":" + std::to_string(host.port != 0 ? host.port : secure ? 15671 : 15672);
    }

    static std::string Escaped(CURL* handle, const std::string& text) {
        const std::unique_ptr<char, FreeText> escaped{
            ::curl_easy_escape(handle, text.data(), static_cast<int>(text.size()))};
        if (escaped == nullptr) throw std::runtime_error("no memory for a URL");
        return escaped.get();
    }

    static std::size_t Append(const char* data, std::size_t size, std::size_t count,
                              void* to) noexcept {
        auto& body = *static_cast<std::string*>(to);
        const std::size_t bytes = size * count;
        if (body.size() + bytes > kLongestBody) return 0;  // ends the transfer with an error
        try {
            body.append(data, bytes);
        } catch (const std::exception&) {
            return 0;
        }
        return bytes;
    }

    // Whether there was an answer, whatever it is.
    bool Get(CURL* handle, const std::string& address, std::chrono::nanoseconds time,
             Response& response) const {
        const auto limit = std::chrono::duration_cast<std::chrono::milliseconds>(time);
        if (limit.count() <= 0) {
            response.trouble = "no answer before the deadline";
            return false;
        }
        ::curl_easy_reset(handle);  // connections stay
        std::array<char, CURL_ERROR_SIZE> text{};
        ::curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, text.data());
        ::curl_easy_setopt(handle, CURLOPT_URL, address.c_str());
        ::curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
        ::curl_easy_setopt(handle, CURLOPT_PROXY, "");
        ::curl_easy_setopt(handle, CURLOPT_TIMEOUT_MS, static_cast<long>(limit.count()));
        ::curl_easy_setopt(handle, CURLOPT_HTTPAUTH, CURLAUTH_BASIC);
        ::curl_easy_setopt(handle, CURLOPT_USERNAME, settings_.user.c_str());
        ::curl_easy_setopt(handle, CURLOPT_PASSWORD, settings_.password.c_str());
        ::curl_easy_setopt(handle, CURLOPT_SSL_VERIFYPEER, settings_.tls_verify ? 1L : 0L);
        ::curl_easy_setopt(handle, CURLOPT_SSL_VERIFYHOST, settings_.tls_verify ? 2L : 0L);
        if (!settings_.tls_ca.empty()) {
            ::curl_easy_setopt(handle, CURLOPT_CAINFO, settings_.tls_ca.c_str());
        }
        ::curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, &HttpManagement::Append);
        ::curl_easy_setopt(handle, CURLOPT_WRITEDATA, &response.body);
        const CURLcode code = ::curl_easy_perform(handle);
        ::curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, nullptr);
        if (code != CURLE_OK) {
            response.trouble = text[0] != '\0' ? text.data() : ::curl_easy_strerror(code);
            return false;
        }
        ::curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &response.status);
        return true;
    }

    const ManagementSettings settings_;
    std::mutex mutex_ = {};  // guards kept_; not held while libcurl runs
    std::array<Handle, kMostKept> kept_ = {};
};

}  // namespace detail

inline std::unique_ptr<Management> MakeHttpManagement(ManagementSettings settings) {
    return std::make_unique<detail::HttpManagement>(std::move(settings));
}

/// Makes the option available to every program that includes this header.
inline const bool kManagementRegistered = [] {
    ManagementMaker() = &MakeHttpManagement;
    return true;
}();

}  // namespace mq::rabbitmq
