/// @file config_loader.hpp
/// Where the facade finds the way to read a config file. The header that can read files puts its
/// function here, so that the facade itself needs no parser.
#pragma once

#include <mq/config.hpp>

#include <atomic>
#include <filesystem>

namespace mq::detail {

/// Reads and checks a config file. Throws Error with ErrorCode::kConfig, as LoadConfig does.
using ConfigLoader = Config (*)(const std::filesystem::path& path);

inline std::atomic<ConfigLoader>& ConfigLoaderSlot() noexcept {
    static std::atomic<ConfigLoader> slot{nullptr};
    return slot;
}

/// Makes a loader available, in place of an earlier one; what toml.hpp does in the initialiser of an
/// inline variable. Thread-safe.
inline bool RegisterConfigLoader(ConfigLoader loader) noexcept {
    ConfigLoaderSlot().store(loader);
    return true;
}

/// The loader; null where no header that reads files is included. Thread-safe.
[[nodiscard]] inline ConfigLoader FindConfigLoader() noexcept { return ConfigLoaderSlot().load(); }

}  // namespace mq::detail
