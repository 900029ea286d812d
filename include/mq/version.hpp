/// @file version.hpp
/// The library's version. CMake reads it from here, so it is written in one place only.
#pragma once

#define MQ_VERSION_MAJOR 0
#define MQ_VERSION_MINOR 1
#define MQ_VERSION_PATCH 0
