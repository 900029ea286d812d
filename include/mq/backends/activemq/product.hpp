/// @file product.hpp
/// Whether a broker is the one that its URL's scheme means. Classic and Artemis speak one protocol and
/// lay a topic out differently: with the wrong one every message is confirmed, and nobody gets it. Both
/// name themselves in AMQP's open frame, by the property "product". Knows nothing of the client
/// library.
#pragma once

#include <mq/backends/activemq/failure.hpp>
#include <mq/backends/activemq/options.hpp>
#include <mq/detail/config_check.hpp>
#include <mq/url.hpp>

#include <algorithm>
#include <cctype>
#include <optional>
#include <string>
#include <string_view>

namespace mq::activemq {

/// Which broker a product's name means; nothing for one that is not known, or has said no name.
/// "ActiveMQ" is Classic's (seen with 5.18), "apache-activemq-artemis" Artemis's (seen with 2.40).
inline std::optional<Flavor> FlavorOfProduct(std::string_view product) {
    std::string name{product};
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (name.find("artemis") != std::string::npos || name.find("amq-broker") != std::string::npos) {
        return Flavor::kArtemis;
    }
    if (name.find("activemq") != std::string::npos) return Flavor::kClassic;
    return std::nullopt;
}

/// What is wrong with a broker that is known to be of the other kind; nothing where it is not.
inline std::optional<Failure> WrongProduct(const std::string& where, const Url& url,
                                           const std::string& product) {
    const auto found = FlavorOfProduct(product);
    if (!found || *found == FlavorOf(url)) return std::nullopt;
    const std::string right =
        std::string{*found == Flavor::kArtemis ? "artemis" : "activemq"} + (UsesTls(url) ? "s" : "");
    return Failure{ErrorCode::kConfig,
                   where + ": the URL says " + url.scheme + "://, and the broker there is " +
                       (*found == Flavor::kArtemis ? "ActiveMQ Artemis" : "ActiveMQ Classic") + " (" +
                       mq::detail::Shown(product) + "), expected " + right + "://",
                   {}};
}

}  // namespace mq::activemq
