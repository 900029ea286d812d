# Makes mq::conformance: the cases that every adapter is held to, and a main that runs them. Read by mq's own
# build and, installed, by find_package(mq COMPONENTS conformance). In both it is compiled by the project that
# links it, with that project's compiler, flags and Catch2.
if(TARGET mq::conformance)
    return()
endif()

# One main for every test program: with Catch2 2, each would compile the whole runner again.
add_library(mq_test_main STATIC EXCLUDE_FROM_ALL "${CMAKE_CURRENT_LIST_DIR}/../support/main.cpp")
target_compile_features(mq_test_main PUBLIC cxx_std_20)
target_link_libraries(mq_test_main PUBLIC Catch2::Catch2)

file(GLOB mq_conformance_cases CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/*_cases.cpp")
add_library(mq_conformance_kit STATIC EXCLUDE_FROM_ALL ${mq_conformance_cases})
add_library(mq::conformance ALIAS mq_conformance_kit)
# Most of the time goes into the same headers.
set_target_properties(mq_conformance_kit PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 4)
target_include_directories(mq_conformance_kit INTERFACE "${CMAKE_CURRENT_LIST_DIR}/include")
target_link_libraries(mq_conformance_kit PUBLIC mq::mq mq_test_main)
