# Finds Qpid Proton's C++ client as Proton::cpp: by the CMake package of an upstream build, else by its
# headers and its library. Not by pkg-config: Debian's .pc file requires others that its package leaves
# out.
if(NOT TARGET Proton::cpp)
    find_package(ProtonCpp CONFIG QUIET)
endif()

if(NOT TARGET Proton::cpp)
    find_path(ProtonCpp_INCLUDE_DIR NAMES proton/io/connection_driver.hpp)
    find_library(ProtonCpp_LIBRARY NAMES qpid-proton-cpp)
    mark_as_advanced(ProtonCpp_INCLUDE_DIR ProtonCpp_LIBRARY)
    if(ProtonCpp_INCLUDE_DIR AND ProtonCpp_LIBRARY)
        add_library(Proton::cpp UNKNOWN IMPORTED)
        set_target_properties(Proton::cpp PROPERTIES
            IMPORTED_LOCATION "${ProtonCpp_LIBRARY}"
            INTERFACE_INCLUDE_DIRECTORIES "${ProtonCpp_INCLUDE_DIR}")
    endif()
endif()

if(TARGET Proton::cpp)
    set(ProtonCpp_TARGET Proton::cpp)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ProtonCpp REQUIRED_VARS ProtonCpp_TARGET)
