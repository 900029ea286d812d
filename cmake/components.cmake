# The components of mq, and what each one needs. Read by the build and, installed, by find_package(mq).

set(MQ_ALL_COMPONENTS toml rabbitmq rabbitmq_management kafka activemq)
# And one that is no part of the library: the tests that an adapter is held to.
set(mq_test_components conformance)
set(mq_find_modules "${CMAKE_CURRENT_LIST_DIR}/find")

# Of each component: the CMake packages, the target that each defines, and where Debian has it.
set(mq_package_toml TomlPlusPlus)
set(mq_dependency_toml tomlplusplus::tomlplusplus)
set(mq_debian_toml libtomlplusplus-dev)

set(mq_package_rabbitmq RabbitmqC)
set(mq_dependency_rabbitmq rabbitmq::rabbitmq)
set(mq_debian_rabbitmq librabbitmq-dev)

set(mq_package_rabbitmq_management RabbitmqC CURL nlohmann_json)
set(mq_dependency_rabbitmq_management rabbitmq::rabbitmq CURL::libcurl nlohmann_json::nlohmann_json)
set(mq_debian_rabbitmq_management librabbitmq-dev libcurl4-openssl-dev nlohmann-json3-dev)

set(mq_package_kafka RdKafka)
set(mq_dependency_kafka RdKafka::rdkafka)
set(mq_debian_kafka librdkafka-dev)

set(mq_package_activemq ProtonCpp nlohmann_json)
set(mq_dependency_activemq Proton::cpp nlohmann_json::nlohmann_json)
set(mq_debian_activemq libqpid-proton-cpp12-dev nlohmann-json3-dev)

set(mq_package_conformance Catch2)
set(mq_dependency_conformance Catch2::Catch2)
set(mq_debian_conformance catch2)

# Looks for what a component needs. Sets mq_missing to a sentence for a person where it is not there,
# and to nothing where it is. A macro, so that the targets and variables of the package that it finds
# belong to the caller's scope.
macro(mq_find_component component)
    set(mq_missing "")
    set(mq_known ${MQ_ALL_COMPONENTS} ${mq_test_components})
    if(NOT "${component}" IN_LIST mq_known)
        list(JOIN mq_known ", " mq_known)
        set(mq_missing "mq has no component \"${component}\", only ${mq_known}.")
    else()
        set(mq_saved_module_path "${CMAKE_MODULE_PATH}")
        list(PREPEND CMAKE_MODULE_PATH "${mq_find_modules}")
        foreach(mq_package mq_dependency mq_debian IN ZIP_LISTS
                mq_package_${component} mq_dependency_${component} mq_debian_${component})
            if(NOT TARGET ${mq_dependency})
                find_package(${mq_package} QUIET)
            endif()
            if(NOT TARGET ${mq_dependency} AND NOT mq_missing)
                set(mq_missing "mq's component \"${component}\" needs ${mq_dependency}, which was not \
found. Debian and Ubuntu have it in ${mq_debian}.")
            endif()
        endforeach()
        set(CMAKE_MODULE_PATH "${mq_saved_module_path}")
    endif()
endmacro()
