# What mq's own tests and examples are built with, and no user of mq is.

set(MQ_SANITIZE "" CACHE STRING "Sanitizers for the tests and examples: address,undefined or thread")
# Off for who only wants to see the examples run: a newer compiler than ours warns of more.
option(MQ_WERROR "Warnings in the tests and examples are errors" OFF)

set(CMAKE_CXX_EXTENSIONS OFF)

if(MQ_IS_TOP_LEVEL)
    set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
    if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
        set(CMAKE_BUILD_TYPE Release CACHE STRING "The kind of build" FORCE)
    endif()
    find_program(MQ_CCACHE ccache)
    mark_as_advanced(MQ_CCACHE)
    if(MQ_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
        set(CMAKE_CXX_COMPILER_LAUNCHER "${MQ_CCACHE}")
    endif()
endif()

add_library(mq_development INTERFACE)
target_compile_features(mq_development INTERFACE cxx_std_20)
target_compile_options(mq_development INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
if(MQ_WERROR)
    target_compile_options(mq_development INTERFACE
        -Werror
        # gcc 12 sees overlaps in std::string's own operator+ when it optimises (gcc bug 105651).
        $<$<CXX_COMPILER_ID:GNU>:-Wno-error=restrict>)
endif()

if(MQ_SANITIZE)
    set(mq_sanitizer_flags "-fsanitize=${MQ_SANITIZE}" -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_compile_options(mq_development INTERFACE ${mq_sanitizer_flags})
    target_link_options(mq_development INTERFACE ${mq_sanitizer_flags})
endif()

# All of mq, for the programs that use every component.
add_library(mq_everything INTERFACE)
target_link_libraries(mq_everything INTERFACE mq_development mq::mq)
foreach(component IN LISTS MQ_ALL_COMPONENTS)
    if(NOT component IN_LIST MQ_COMPONENTS)
        message(FATAL_ERROR "mq's tests and examples need the component \"${component}\" in MQ_COMPONENTS")
    endif()
    target_link_libraries(mq_everything INTERFACE mq::${component})
endforeach()
if(MQ_SANITIZE MATCHES "thread")
    target_sources(mq_everything INTERFACE "${CMAKE_CURRENT_SOURCE_DIR}/tests/support/c11_threads.cpp")
endif()
