/// @file json.hpp
/// JSON, as nlohmann's library reads and writes it: what the management interfaces of brokers answer.
/// The only header that includes it.
#pragma once

#include <nlohmann/json.hpp>

namespace mq::detail {

using Json = nlohmann::json;

}  // namespace mq::detail
