/// @file client_options.hpp
/// What a program gives its client beside the config.
#pragma once

#include <mq/dedup.hpp>
#include <mq/log.hpp>

#include <memory>

namespace mq {

/// What a client is given beside its config.
struct ClientOptions {
    /// Receives the client's log lines; see LogSink. Nothing is logged where it is empty.
    LogSink log = LogToStderr;
    /// Shares between processes which messages a group has handled, for the topics of the config that
    /// have a `dedup` window; see DedupStore. Without one every client remembers for itself.
    std::shared_ptr<DedupStore> dedup_store = {};
};

}  // namespace mq
