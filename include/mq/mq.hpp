/// @file mq.hpp
/// The facade and the in-memory backend: all that business code includes, but for the adapters of its
/// brokers (<mq/backends/…>) and the loader of config files (<mq/toml.hpp>).
#pragma once

#include <mq/backends/memory.hpp>
#include <mq/client.hpp>
#include <mq/config.hpp>
#include <mq/dedup.hpp>
#include <mq/delivery.hpp>
#include <mq/error.hpp>
#include <mq/log.hpp>
#include <mq/message.hpp>
#include <mq/policy.hpp>
#include <mq/send_result.hpp>
#include <mq/status.hpp>
#include <mq/subscription.hpp>
#include <mq/version.hpp>
