# The targets mq::mq, and mq::COMPONENT for each component. A component's target exists whether or not
# its dependency was looked for: it names the dependency, and whoever links it must have found that.
include(GNUInstallDirs)

# Imported targets belong to the directory that finds them. As a subproject, mq's own are made global:
# its parent, which links them through mq's targets, could not see them otherwise.
function(mq_make_global)
    if(MQ_IS_TOP_LEVEL)
        return()
    endif()
    get_property(imported DIRECTORY PROPERTY IMPORTED_TARGETS)  # CMake 3.21
    foreach(target IN LISTS imported ARGN)
        if(TARGET ${target})
            get_target_property(global ${target} IMPORTED_GLOBAL)
            if(NOT global)
                set_target_properties(${target} PROPERTIES IMPORTED_GLOBAL TRUE)
            endif()
        endif()
    endforeach()
endfunction()

if(NOT TARGET Threads::Threads)
    set(THREADS_PREFER_PTHREAD_FLAG ON)
    find_package(Threads REQUIRED)
    mq_make_global(Threads::Threads)
endif()

foreach(component IN LISTS MQ_COMPONENTS)
    set(mq_found_here "")
    foreach(dependency IN LISTS mq_dependency_${component})
        if(NOT TARGET ${dependency})
            list(APPEND mq_found_here ${dependency})
        endif()
    endforeach()
    if(mq_found_here)
        mq_find_component("${component}")
        if(mq_missing)
            message(FATAL_ERROR "${mq_missing} Install it, or leave the component out of MQ_COMPONENTS.")
        endif()
        mq_make_global(${mq_found_here})
    endif()
endforeach()

add_library(mq INTERFACE)
add_library(mq::mq ALIAS mq)
target_compile_features(mq INTERFACE cxx_std_20)
target_link_libraries(mq INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
target_include_directories(mq INTERFACE
    "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>"
    "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")

foreach(component IN LISTS MQ_ALL_COMPONENTS)
    add_library(mq_${component} INTERFACE)
    add_library(mq::${component} ALIAS mq_${component})
    set_target_properties(mq_${component} PROPERTIES EXPORT_NAME ${component})
    target_link_libraries(mq_${component} INTERFACE mq ${mq_dependency_${component}})
endforeach()
