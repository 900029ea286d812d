# Finds librdkafka's C library as RdKafka::rdkafka: by the CMake package of an upstream build, else by
# pkg-config, which is all that Debian's package has.
if(NOT TARGET RdKafka::rdkafka)
    find_package(RdKafka CONFIG QUIET)
endif()

if(NOT TARGET RdKafka::rdkafka)
    find_package(PkgConfig QUIET)
    if(PkgConfig_FOUND)
        pkg_check_modules(PC_RDKAFKA QUIET IMPORTED_TARGET rdkafka)
    endif()
    if(TARGET PkgConfig::PC_RDKAFKA)
        add_library(RdKafka::rdkafka INTERFACE IMPORTED)
        set_target_properties(RdKafka::rdkafka PROPERTIES INTERFACE_LINK_LIBRARIES PkgConfig::PC_RDKAFKA)
        set(RdKafka_VERSION "${PC_RDKAFKA_VERSION}")
    endif()
endif()

if(TARGET RdKafka::rdkafka)
    set(RdKafka_TARGET RdKafka::rdkafka)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RdKafka REQUIRED_VARS RdKafka_TARGET VERSION_VAR RdKafka_VERSION)
