/// @file fleet.hpp
/// The fleet of services that the conformance suite walks with, and the brokers that it walks between
/// here.
#pragma once

#include "../conformance/fleet.hpp"
#include "brokers.hpp"
