/// @file conformance.hpp
/// The conformance suite, as a program that links mq::conformance includes it.
#pragma once

#include "../../suite.hpp"
