/// @file direction.hpp
/// Up or down the ladder, between the brokers of the migration tests.
#pragma once

#include "../conformance/direction.hpp"
#include "fleet.hpp"
