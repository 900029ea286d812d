/// @file kafka_calls.hpp
/// Tells a test of calls of librdkafka's functions that are stood in for in the whole test program; one
/// source file defines each of those.
#pragma once

#include <librdkafka/rdkafka.h>

#include <atomic>

namespace mq::test::kafka {

/// Called before each rd_kafka_unsubscribe, on its thread; null for nobody.
inline std::atomic<void (*)(const rd_kafka_t*)> before_unsubscribe{nullptr};

}  // namespace mq::test::kafka
