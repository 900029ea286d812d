# Finds rabbitmq-c as rabbitmq::rabbitmq: by its own CMake package, shared or else static, and where
# that is missing by pkg-config.
if(NOT TARGET rabbitmq::rabbitmq)
    find_package(rabbitmq-c CONFIG QUIET)
    if(TARGET rabbitmq::rabbitmq-static AND NOT TARGET rabbitmq::rabbitmq)
        add_library(rabbitmq::rabbitmq INTERFACE IMPORTED)
        set_target_properties(rabbitmq::rabbitmq PROPERTIES
            INTERFACE_LINK_LIBRARIES rabbitmq::rabbitmq-static)
    endif()
endif()

if(NOT TARGET rabbitmq::rabbitmq)
    find_package(PkgConfig QUIET)
    if(PkgConfig_FOUND)
        pkg_check_modules(PC_RABBITMQ_C QUIET IMPORTED_TARGET librabbitmq)
    endif()
    if(TARGET PkgConfig::PC_RABBITMQ_C)
        add_library(rabbitmq::rabbitmq INTERFACE IMPORTED)
        set_target_properties(rabbitmq::rabbitmq PROPERTIES
            INTERFACE_LINK_LIBRARIES PkgConfig::PC_RABBITMQ_C)
    endif()
endif()

if(TARGET rabbitmq::rabbitmq)
    set(RabbitmqC_TARGET rabbitmq::rabbitmq)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RabbitmqC REQUIRED_VARS RabbitmqC_TARGET)
