/// @file catch.hpp
/// Catch2, in whichever of its versions 2.13 and 3 is installed, and the way for a test to say that it
/// cannot run here. The test program's main counts its cases as passed, failed and skipped.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#include <string>
#include <utility>

namespace mq::test {

/// Why the running test case is skipped; empty where it is not. For the thread of the test only.
inline std::string& SkipReason() {
    static std::string reason;
    return reason;
}

/// Has the running test case counted as skipped unless something in it fails. It goes on: return from
/// it, as in `return SkipCase("there is no RabbitMQ")`. Catch2 has a SKIP of its own from 3.3 on only.
/// For the thread of the test only.
inline void SkipCase(std::string reason) { SkipReason() = std::move(reason); }

}  // namespace mq::test
