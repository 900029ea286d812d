/// @file odr_a.cpp
/// One of two translation units that include every header: what a header defines without `inline` shows
/// as a duplicate symbol when they are linked.
#include <every_header.hpp>

namespace mq::test {

const void* RegistrySeenByA();

const void* RegistrySeenByA() { return &mq::backend::Registry::Instance(); }

}  // namespace mq::test
