/// @file links.hpp
/// Links as both loops make them.
#pragma once

#include <mq/backends/activemq/proton.hpp>
#include <mq/backends/activemq/topology.hpp>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace mq::activemq::detail {

/// A name that no other link of this process has. Artemis reads the name of a subscription up to the |.
inline std::string FreshLinkName(const std::string& subscription) {
    static std::atomic<std::uint64_t> next{1};
    const std::string number = std::to_string(next.fetch_add(1));
    return subscription.empty() ? "mq-" + number : subscription + "|" + number;
}

/// A link that messages of a group come by; none come before it is given credit.
inline proton::receiver OpenReceiver(proton::connection connection, const GroupSource& from,
                                     const std::string& name, bool artemis_queue = false) {
    proton::source_options source;
    source.address(from.address);
    if (from.subscription) {
        source.capabilities(
            {proton::symbol{"topic"}, proton::symbol{"shared"}, proton::symbol{"global"}});
        source.durability_mode(proton::source::UNSETTLED_STATE);
        source.expiry_policy(proton::source::NEVER);
    } else if (artemis_queue) {
        source.capabilities({proton::symbol{"queue"}});
    }
    proton::receiver_options options;
    options.name(name).source(source).credit_window(0).auto_accept(false);
    return connection.open_receiver(from.address, options);
}

}  // namespace mq::activemq::detail
