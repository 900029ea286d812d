#!/usr/bin/env bash
# Installs mq into a folder of its own and builds programs that use it: by find_package with and without
# components, as a subproject, and with nothing but a compiler; and an adapter from outside, which is held
# to the conformance suite. Writes "PASSED FAILED SKIPPED" into the file that MQ_TEST_TALLY names.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$root/build/packaging
prefix=$work/installed
tally=${MQ_TEST_TALLY:-/dev/null}
passed=0
failed=0

expect() { # WHAT COMMAND...
    local what=$1 log=$work/last.log
    shift
    echo "$what" >"$tally.running"
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "passed: $what"
    else
        failed=$((failed + 1))
        echo "FAILED: $what"
        tail -n 40 "$log" | sed 's/^/    /'
    fi
}

# configure NAME ARGUMENT...: configures the project of that name. Only the installed mq is found.
configure() {
    local name=$1
    shift
    cmake -S "$here/$name" -B "$work/$name" -DCMAKE_PREFIX_PATH="$prefix" -DMQ_SOURCE_DIR="$root" \
        -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF "$@"
}

builds_and_runs() {
    configure "$@" && cmake --build "$work/$1" && "$work/$1/program"
}

# Installed by a build that has looked for no dependency, then moved: a package is relocatable.
installs() {
    cmake -S "$root" -B "$work/mq" -DMQ_TESTS=OFF -DMQ_EXAMPLES=OFF -DMQ_COMPONENTS= \
        -DCMAKE_INSTALL_PREFIX="$work/first" &&
        cmake --build "$work/mq" --target install &&
        mv "$work/first" "$prefix"
}

names_no_folder_of_this_machine() {
    local folder found=0
    for folder in "$root" "$work/first" "$prefix"; do
        if grep -rnF "$folder" "$prefix"; then found=1; fi
    done
    return "$found"
}

# looks_for NAME PACKAGES: whether configuring the project NAME afresh looks for these packages only, an
# extended regular expression.
looks_for() {
    local trace=$work/$1.trace found
    rm -rf "${work:?}/$1"
    configure "$1" --trace-expand --trace-redirect="$trace" || return 1
    found=$(sed -n 's/.*): *find_package(\([A-Za-z0-9_+-]*\).*/\1/p' "$trace" | sort -u | xargs)
    echo "looks for: $found"
    [[ $found =~ ^($2)$ ]]
}

# refuses TEXT ARGUMENT... : whether find_package(mq ARGUMENT...) fails, saying TEXT.
refuses() {
    local text=$1 project=$work/refusal
    shift
    rm -rf "$project"
    mkdir -p "$project"
    printf '%s\n' "cmake_minimum_required(VERSION 3.20)" "project(refusal LANGUAGES CXX)" \
        "find_package(mq $* REQUIRED)" >"$project/CMakeLists.txt"
    ! cmake -S "$project" -B "$project/build" -DCMAKE_PREFIX_PATH="$prefix" \
        -DCMAKE_DISABLE_FIND_PACKAGE_RdKafka=ON -DCMAKE_DISABLE_FIND_PACKAGE_ProtonCpp=ON \
        -DCMAKE_DISABLE_FIND_PACKAGE_Catch2=ON >"$project/output" 2>&1 || return 1
    tr -s ' \n' ' ' <"$project/output" | tee "$project/flat"
    grep -qF -- "$text" "$project/flat"
}

takes_an_optional_component_that_is_missing() {
    local project=$work/optional
    mkdir -p "$project"
    cat >"$project/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.20)
project(optional LANGUAGES CXX)
find_package(mq REQUIRED COMPONENTS toml OPTIONAL_COMPONENTS kafka)
if(NOT mq_toml_FOUND OR mq_kafka_FOUND OR TARGET mq::kafka)
    message(FATAL_ERROR "wrong components")
endif()
END
    cmake -S "$project" -B "$project/build" -DCMAKE_PREFIX_PATH="$prefix" \
        -DCMAKE_DISABLE_FIND_PACKAGE_RdKafka=ON
}

# The cases wait most of the time: they run side by side.
holds_an_adapter_to_the_suite() {
    local suite=$work/adapter_kit part number=0 jobs=() status=0
    configure adapter_kit && cmake --build "$suite" || return 1
    for part in "toy: *" "toy to memory: *" "memory to toy: *"; do
        number=$((number + 1))
        MQ_TEST_TALLY=$suite/tally.$number "$suite/program" "$part" >"$suite/log.$number" 2>&1 &
        jobs+=("$!")
    done
    for part in "${jobs[@]}"; do wait "$part" || status=1; done
    cat "$suite"/log.*
    # The toy lives in the process, whose threads and memory are then no measure: two cases.
    awk '{ passed += $1; failed += $2; skipped += $3 }
         END { print passed " passed, " failed " failed, " skipped " skipped"
               exit !(passed >= 60 && failed == 0 && skipped == 2) }' "$suite"/tally.* || status=1
    return "$status"
}

has_the_suite_as_a_subproject() {
    cmake -S "$here/adapter_kit" -B "$work/adapter_kit_subdirectory" -DMQ_SOURCE_DIR="$root" \
        -DADAPTER_KIT_SUBDIRECTORY=ON -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF
}

needs_only_a_compiler() {
    "${CXX:-c++}" -std=c++20 -O0 -I "$prefix/include" "$here/plain/main.cpp" -pthread -o "$work/bare" &&
        "$work/bare"
}

rm -rf "$work"
mkdir -p "$work"
# The compiler cache is mq's own business in mq's own builds; here it only saves time.
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi

expect "the package installs without any dependency" installs
expect "the installed package names no folder of this machine" names_no_folder_of_this_machine
expect "a program with no component looks for threads only" looks_for plain "Threads mq"
expect "a program with no component builds and runs" builds_and_runs plain
expect "a program with one component looks for what that needs only" \
    looks_for one_component "(PkgConfig )?RabbitmqC Threads mq rabbitmq-c"
expect "a program with one component builds and runs" builds_and_runs one_component
expect "a program with every component builds and runs" builds_and_runs find_package
expect "a subproject with no component looks for threads only" looks_for subdirectory_plain Threads
expect "a subproject with no component builds, runs and leaves its parent alone" \
    builds_and_runs subdirectory_plain
expect "a subproject with every component builds and runs" builds_and_runs subdirectory
expect "a missing dependency is named with its Debian package" refuses librdkafka-dev COMPONENTS kafka
expect "a missing AMQP 1.0 client is named with its Debian package" \
    refuses libqpid-proton-cpp12-dev COMPONENTS activemq
expect "a missing Catch2 is named with its Debian package" refuses "have it in catch2" COMPONENTS conformance
expect "an unknown component is named with those there are" \
    refuses 'no component "pulsar", only toml, rabbitmq, rabbitmq_management, kafka, activemq, conformance' \
    COMPONENTS pulsar
expect "an optional component may be missing" takes_an_optional_component_that_is_missing
expect "another minor version is refused" refuses 'requested version "0.2"' 0.2
expect "a compiler and the headers are enough" needs_only_a_compiler
expect "an adapter from outside is held to the conformance suite" holds_an_adapter_to_the_suite
expect "a subproject has the conformance suite where it asks for it" has_the_suite_as_a_subproject

echo "$passed $failed 0" >"$tally"
((failed == 0))
