/// @file fetch_waker.hpp
/// Has librdkafka fetch on as soon as a full queue has room again.
#pragma once

#include <mq/backends/kafka/native.hpp>
#include <mq/detail/option_text.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace mq::kafka::detail {

/// A thread of librdkafka that has found the queue of each of its partitions full looks again after a
/// second, unless something wakes it (its issue 2879): a fast reader waits most of the time. From 2.2
/// on a property says after how long it looks; before, this wakes it each time that an eighth of the
/// queue has been read. For the thread that reads.
class FetchWaker {
public:
    /// After how long a full queue is looked at again, in milliseconds.
    static constexpr const char* kProperty = "fetch.queue.backoff.ms";

    /// Whether the library, at run time, knows the property.
    static bool LibraryLooksItself() {
        static const bool known = [] {
            const Owned<rd_kafka_conf_t> conf{rd_kafka_conf_new()};
            return !Get(*conf, kProperty).empty();
        }();
        return known;
    }

    /// Wakes nobody.
    FetchWaker() = default;

    /// For handles that are made of these properties.
    explicit FetchWaker(const std::vector<Property>& properties) {
        const Owned<rd_kafka_conf_t> conf{rd_kafka_conf_new()};
        for (const auto& [name, value] : properties) {
            rd_kafka_conf_set(conf.get(), name.c_str(), value.c_str(), nullptr, 0);
        }
        constexpr std::uint64_t kKilobyte = 1000;  // librdkafka's, here
        bytes_ = Number(Get(*conf, "queued.max.messages.kbytes")) * kKilobyte / kSteps + 1;
        messages_ = Number(Get(*conf, "queued.min.messages")) / kSteps + 1;
        if (LibraryLooksItself()) return;
        user_ = FindProperty(properties, "sasl.username").value_or("");
        password_ = FindProperty(properties, "sasl.password").value_or("");
        // Kerberos looks at the user too, where it must stay unset.
        const bool sasl = Get(*conf, "security.protocol").starts_with("sasl");
        wakes_ = !sasl || !user_.empty() || Get(*conf, "sasl.mechanisms") != "GSSAPI";
    }

    /// `count` messages of `size` bytes together have been read. Never blocks.
    void OnRead(rd_kafka_t* rk, std::size_t count, std::size_t size) {
        if (!wakes_) return;
        read_messages_ += count;
        read_bytes_ += size;
        if (read_messages_ < messages_ && read_bytes_ < bytes_) return;
        read_messages_ = read_bytes_ = 0;
        // No call says just that. This one wakes every thread of the handle, asks no broker, and sets
        // what is set anyway.
        const Owned<rd_kafka_error_t> ignored{
            rd_kafka_sasl_set_credentials(rk, user_.c_str(), password_.c_str())};
    }

    /// Whether a queue of `count` messages of `size` bytes each may be so full that nothing is fetched
    /// for it.
    [[nodiscard]] bool MayBeFull(std::size_t count, std::size_t size) const {
        constexpr std::uint64_t kQuarter = kSteps / 4;
        return count >= messages_ * kQuarter || count * size >= bytes_ * kQuarter;
    }

private:
    static constexpr std::uint64_t kSteps = 8;

    static std::string Get(const rd_kafka_conf_t& conf, const char* name) {
        std::array<char, 256> text{};
        std::size_t size = text.size();
        if (rd_kafka_conf_get(&conf, name, text.data(), &size) != RD_KAFKA_CONF_OK) return {};
        return text.data();
    }

    static std::uint64_t Number(const std::string& text) {
        return mq::detail::ReadNumber<std::uint64_t>(text, 0, UINT32_MAX).value_or(0);
    }

    bool wakes_ = false;
    std::uint64_t bytes_ = 0;
    std::uint64_t messages_ = 0;
    std::uint64_t read_bytes_ = 0;
    std::uint64_t read_messages_ = 0;
    std::string user_ = {};
    std::string password_ = {};
};

}  // namespace mq::kafka::detail
