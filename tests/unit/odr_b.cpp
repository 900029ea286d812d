/// @file odr_b.cpp
/// The other of two translation units that include every header, and what they must agree on.
#include "../support/catch.hpp"

#include <every_header.hpp>

namespace mq::test {

const void* RegistrySeenByA();

TEST_CASE("every translation unit of a program sees the same registry of brokers") {
    CHECK(RegistrySeenByA() == static_cast<const void*>(&mq::backend::Registry::Instance()));
}

}  // namespace mq::test
