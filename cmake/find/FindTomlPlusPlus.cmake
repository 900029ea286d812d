# Finds toml++ as tomlplusplus::tomlplusplus: by its own CMake package, else by pkg-config, else by its
# header alone, which is the whole library.
if(NOT TARGET tomlplusplus::tomlplusplus)
    find_package(tomlplusplus CONFIG QUIET)
endif()

if(NOT TARGET tomlplusplus::tomlplusplus)
    find_package(PkgConfig QUIET)
    if(PkgConfig_FOUND)
        pkg_check_modules(PC_TOMLPLUSPLUS QUIET IMPORTED_TARGET tomlplusplus)
    endif()
    if(TARGET PkgConfig::PC_TOMLPLUSPLUS)
        add_library(tomlplusplus::tomlplusplus INTERFACE IMPORTED)
        set_target_properties(tomlplusplus::tomlplusplus PROPERTIES
            INTERFACE_LINK_LIBRARIES PkgConfig::PC_TOMLPLUSPLUS)
    endif()
endif()

if(NOT TARGET tomlplusplus::tomlplusplus)
    find_path(TomlPlusPlus_INCLUDE_DIR NAMES toml++/toml.hpp toml++/toml.h)
    mark_as_advanced(TomlPlusPlus_INCLUDE_DIR)
    if(TomlPlusPlus_INCLUDE_DIR)
        add_library(tomlplusplus::tomlplusplus INTERFACE IMPORTED)
        set_target_properties(tomlplusplus::tomlplusplus PROPERTIES
            INTERFACE_INCLUDE_DIRECTORIES "${TomlPlusPlus_INCLUDE_DIR}")
    endif()
endif()

if(TARGET tomlplusplus::tomlplusplus)
    set(TomlPlusPlus_TARGET tomlplusplus::tomlplusplus)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TomlPlusPlus REQUIRED_VARS TomlPlusPlus_TARGET)
