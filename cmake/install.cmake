# Installs the headers and the package that find_package(mq) reads. The package has every component,
# whatever this build was configured with: a component's dependency is looked for by who uses it.
include(CMakePackageConfigHelpers)

set(mq_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/mq")
set(mq_kit_dir "${CMAKE_INSTALL_DATADIR}/mq/tests")

install(DIRECTORY include/mq DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp")

install(TARGETS mq EXPORT mq)
install(EXPORT mq NAMESPACE mq:: FILE mqTargets.cmake DESTINATION "${mq_package_dir}")
foreach(component IN LISTS MQ_ALL_COMPONENTS)
    install(TARGETS mq_${component} EXPORT mq_${component})
    install(EXPORT mq_${component} NAMESPACE mq:: FILE mqComponent-${component}.cmake
        DESTINATION "${mq_package_dir}")
endforeach()

configure_package_config_file(cmake/mqConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/mqConfig.cmake"
    INSTALL_DESTINATION "${mq_package_dir}" PATH_VARS mq_kit_dir NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/mqConfigVersion.cmake"
    COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)

install(FILES
    "${CMAKE_CURRENT_BINARY_DIR}/mqConfig.cmake"
    "${CMAKE_CURRENT_BINARY_DIR}/mqConfigVersion.cmake"
    cmake/components.cmake
    DESTINATION "${mq_package_dir}")
install(DIRECTORY cmake/find DESTINATION "${mq_package_dir}")

# The tests that an adapter is held to, as sources.
install(DIRECTORY tests/conformance DESTINATION "${mq_kit_dir}"
    FILES_MATCHING PATTERN "*.hpp" PATTERN "*_cases.cpp" PATTERN "kit.cmake")
install(FILES tests/support/audit.hpp tests/support/backend_fakes.hpp tests/support/catch.hpp
    tests/support/collector.hpp tests/support/main.cpp tests/support/wait.hpp
    DESTINATION "${mq_kit_dir}/support")
