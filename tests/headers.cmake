# Every header compiles alone, and together with all others in two translation units of one program.
# What lies in a folder of its own below backends/ is a part of the adapter that includes it.
set(include_dir "${PROJECT_SOURCE_DIR}/include")
file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE "${include_dir}" "${include_dir}/mq/*.hpp")
list(FILTER headers EXCLUDE REGEX "^mq/backends/[^/]+/")

set(every_header "")
set(header_checks "")
foreach(header IN LISTS headers)
    string(APPEND every_header "#include <${header}>\n")
    string(REPLACE "/" "_" name "${header}")
    set(source "${CMAKE_CURRENT_BINARY_DIR}/headers/${name}.cpp")
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include <${header}>\n#include <${header}>\n")
    list(APPEND header_checks "${source}")
endforeach()
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/generated/every_header.hpp"
    CONTENT "#pragma once\n\n${every_header}")

# unit/odr_a.cpp and unit/odr_b.cpp include it.
if(TARGET mq_unit)
    target_include_directories(mq_unit PRIVATE "${CMAKE_CURRENT_BINARY_DIR}/generated")
endif()

if(MQ_HEADER_CHECK)
    add_library(mq_header_check OBJECT ${header_checks})
    target_link_libraries(mq_header_check PRIVATE mq_everything)
endif()
