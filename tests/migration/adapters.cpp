/// @file adapters.cpp
/// Makes the real brokers' schemes, and the loader of config files, available to the whole program:
/// including them in one translation unit is enough.
#include <mq/backends/activemq.hpp>
#include <mq/backends/kafka.hpp>
#include <mq/backends/rabbitmq.hpp>
#include <mq/toml.hpp>
