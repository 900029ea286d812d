# Installs the headers and the package that find_package(mq) reads. The package has every component,
# whatever this build was configured with: a component's dependency is looked for by who uses it.
include(CMakePackageConfigHelpers)

set(mq_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/mq")

install(DIRECTORY include/mq DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp")

install(TARGETS mq EXPORT mq)
install(EXPORT mq NAMESPACE mq:: FILE mqTargets.cmake DESTINATION "${mq_package_dir}")
foreach(component IN LISTS MQ_ALL_COMPONENTS)
    install(TARGETS mq_${component} EXPORT mq_${component})
    install(EXPORT mq_${component} NAMESPACE mq:: FILE mqComponent-${component}.cmake
        DESTINATION "${mq_package_dir}")
endforeach()

configure_package_config_file(cmake/mqConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/mqConfig.cmake"
    INSTALL_DESTINATION "${mq_package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/mqConfigVersion.cmake"
    COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)

install(FILES
    "${CMAKE_CURRENT_BINARY_DIR}/mqConfig.cmake"
    "${CMAKE_CURRENT_BINARY_DIR}/mqConfigVersion.cmake"
    cmake/components.cmake
    DESTINATION "${mq_package_dir}")
install(DIRECTORY cmake/find DESTINATION "${mq_package_dir}")
