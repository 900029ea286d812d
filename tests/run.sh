#!/usr/bin/env bash
# Builds and runs mq's tests, on real brokers that it starts itself.
#
#   tests/run.sh                  unit, conformance and migration: whether it works here, on one build
#   tests/run.sh all              every part: what a change has to pass
#   tests/run.sh unit             what needs no broker
#   tests/run.sh PART...          any of: unit conformance migration restart interop asan tsan clang
#                                 lint packaging model bench torture
#
# What is missing is installed by apt-get where there is one. One run at a time in a checkout. The last
# line is "N passed, N failed, N skipped"; the exit status is 0 only where nothing failed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=tests/lib/common.sh
source tests/lib/common.sh
# shellcheck source=tests/lib/packages.sh
source tests/lib/packages.sh
# shellcheck source=tests/lib/brokers.sh
source tests/lib/brokers.sh
# shellcheck source=tests/lib/results.sh
source tests/lib/results.sh

readonly kParts=(unit conformance migration restart interop asan tsan clang lint packaging model bench
    torture)
readonly kQuickParts=(unit conformance migration)
readonly kBuildSeconds=1200
readonly kSuiteSeconds=${MQ_TEST_LIMIT:-1200}

readonly logs=$root/build/logs
readonly results=$root/build/logs/results
readonly brokers=$root/build/brokers
readonly lock_file=$root/build/run.lock

# lock_checkout: the runs of a checkout share its build folders, its logs and its brokers, and so it is
# one at a time. File descriptor 9 holds the lock until this shell is gone, and what it has forked.
lock_checkout() {
    mkdir -p "${lock_file%/*}"
    have flock || return 0
    exec 9>>"$lock_file"
    flock --nonblock 9 ||
        die "another run (process $(<"$lock_file")) is under way in $root: let it end, or end it"
    echo $$ >"$lock_file"
}

# limited SECONDS COMMAND...: run_limited, without the lock: a broker that is left behind by a run that
# was killed must not keep the next one out.
limited() { run_limited "$@" 9>&-; }

# build PRESET [TARGET...]: whether build/PRESET is up to date now. A failure is recorded.
build() {
    local preset=$1 log=$logs/build-$1.log begin=$SECONDS targets=()
    shift
    # With sanitizers clang compiles in a fraction of gcc's time, and its warnings are wanted anyway.
    if [[ $preset == [at]san ]] && have clang++-14; then local -x CXX=clang++-14; fi
    (($# == 0)) || targets=(--target "$@")
    if limited 300 cmake --preset "$preset" >"$log" 2>&1 &&
        limited "$kBuildSeconds" cmake --build "build/$preset" -j"$parallel" "${targets[@]}" \
            >>"$log" 2>&1; then
        printf '   built %s in %ds\n' "$preset" $((SECONDS - begin))
    else
        failed "build of $preset" "$log"
        return 1
    fi
}

has_sources() { compgen -G "tests/$1/*.cpp" >/dev/null; }

# suite PRESET NAME [PART SPEC]: runs one test program, or the part of its cases that a test spec of
# Catch2 names, and records its test cases.
suite() {
    local preset=$1 name=$2 part=${3:+-$3} status=0 begin=$SECONDS
    local log=$logs/$name-$preset$part.log tally=$logs/$name-$preset$part.tally
    rm -f "$tally" "$tally.running"
    MQ_TEST_TALLY=$tally limited "$kSuiteSeconds" "build/$preset/tests/mq_$name" ${4:+"$4"} \
        >"$log" 2>&1 || status=$?
    record_suite "$name$part ($preset)" "$status" "$log" "$tally" $((SECONDS - begin))
}

record_suite() {
    local name=$1 status=$2 log=$3 tally=$4 seconds=$5 cases_passed cases_failed cases_skipped
    if [[ ! -s $tally ]]; then
        local why="ended with status $status"
        ((status != 124)) || why="not done after $kSuiteSeconds seconds"
        failed "$name: $why, in: $(cat "$tally.running" 2>/dev/null || echo "no test case")" "$log"
        return
    fi
    read -r cases_passed cases_failed cases_skipped <"$tally"
    if ((status != 0 && cases_failed == 0)); then
        # Every assertion held, and still the program failed: what a sanitizer reports at the end.
        failed "$name: ended with status $status" "$log"
    elif ((cases_failed > 0)); then
        printf '   FAILED: %s\n' "$name"
        remember_failure "$name" "$log"
        grep -vE '^(skipped|note): ' "$log" | tail -n 200 | sed 's/^/   | /'
    fi
    grep -E '^(skipped|note): ' "$log" | sed 's/^/   /' || true
    record "$cases_passed" "$cases_failed" "$cases_skipped" "$name"
    printf '   %s: %d passed, %d failed, %d skipped in %ds\n' \
        "$name" "$cases_passed" "$cases_failed" "$cases_skipped" "$seconds"
}

begin_brokers() {
    claim_brokers "$brokers"
    if have openssl && make_certificates "$brokers/tls"; then
        export MQ_RABBITMQ_TLS_DIR=$brokers/tls
    fi
    local kind
    for kind in "${kBrokerKinds[@]}"; do begin_broker "$brokers/$kind" 9>&-; done
}

# await_brokers: waits for the brokers, and tells the test programs where they are. Those that the
# restart tests kill are begun only now: what the first start of a kind fetches is fetched once.
await_brokers() {
    export MQ_TEST_BROKER_SCRIPTS=$root/tests/brokers
    local kind
    for kind in "${kBrokerKinds[@]}"; do
        await_test_broker "MQ_TEST_${kind^^}_DIR" "$brokers/$kind"
    done
    for kind in $(restart_kinds); do begin_broker "$brokers/restart-$kind" 9>&-; done
}

# The kinds of brokers that are killed in what was asked for.
restart_kinds() {
    if wants restart asan; then
        echo "${kBrokerKinds[@]}"
    elif wants tsan; then
        echo rabbitmq kafka
    fi
}

await_restart_brokers() {
    local kind
    for kind in "${kBrokerKinds[@]}"; do
        await_test_broker "MQ_TEST_RESTART_${kind^^}_DIR" "$brokers/restart-$kind"
    done
}

await_test_broker() {
    local variable=$1 dir=$2 status=0
    [[ -n ${broker_jobs[$dir]:-} ]] || return 0
    await_broker "$dir" || status=$?
    case $status in
        0) export "$variable=$dir" ;;
        69) printf '   there is no %s here: %s\n' "${dir##*/}" "$(tail -n 1 "$(broker_log "$dir")")" ;;
        *) failed "start of the broker ${dir##*/}" "$(broker_log "$dir")" ;;
    esac
}

# run_suites PRESET NAME...: the named suites on one build. A test that meets a broker which is not to
# be had skips itself; the Kafka conformance cases go on with librdkafka's mock cluster. The conformance
# suite comes first where processors are wanted, with some of the walks beside it; the other walks and the
# restarts, which wait most of the time, go on beside each other, in parts that share as little as can be.
# The walks of ActiveMQ Classic wait for conformance to end: both would sync the broker's disk for each
# message. Those of Artemis do as well: two processors have enough to do by then.
run_suites() {
    local preset=$1 name
    shift
    begun=()
    if runs migration "$@"; then begin_part "$preset" migration others "~[activemq]~[artemis]"; fi
    for name in unit conformance; do
        runs "$name" "$@" || continue
        heading "$name on $preset"
        suite "$preset" "$name"
    done
    if runs migration "$@"; then
        begin_part "$preset" migration activemq "[activemq]"
        begin_part "$preset" migration artemis "[artemis]~[activemq]"
    fi
    if runs restart "$@"; then
        await_restart_brokers
        begin_part "$preset" restart others "~[activemq]~[artemis]"
        begin_part "$preset" restart activemq "[activemq],[artemis]"
    fi
    end_parts "walks and restarts on $preset"
}

runs() { # NAME ASKED...: whether it is asked for, and there is something of it
    [[ " ${*:2} " == *" $1 "* ]] && has_sources "$1"
}

# begin_part PRESET NAME PART SPEC: a part of a suite in the background, behind what waits in the
# foreground for the same processors.
begin_part() {
    local out=$logs/$2-$1-$3.out
    in_background lowered 5 suite_to "$out" "$@"
    begun+=("$started" "$out")
}

suite_to() { # FILE ARGUMENT...
    local out=$1
    shift
    suite "$@" >"$out" 2>&1
}

end_parts() { # WHAT
    ((${#begun[@]} == 0)) || heading "$1"
    while ((${#begun[@]} > 0)); do
        join "${begun[0]}" || failed "a part of a suite was ended, see ${begun[1]}"
        cat "${begun[1]}"
        begun=("${begun[@]:2}")
    done
}

# run_script NAME SECONDS: runs tests/NAME/run.sh, which counts its own cases.
run_script() {
    heading "$1"
    local log=$logs/$1.log tally=$logs/$1.tally status=0 begin=$SECONDS
    rm -f "$tally" "$tally.running"
    MQ_TEST_TALLY=$tally limited "$2" "tests/$1/run.sh" >"$log" 2>&1 || status=$?
    record_suite "$1" "$status" "$log" "$tally" $((SECONDS - begin))
}

run_packaging() { run_script packaging 900; }

run_model() {
    if have spin && have "${CC:-cc}"; then
        run_script model 1800
    else
        skipped "the model: spin or a C compiler is not installed"
    fi
}

run_interop() {
    if have python3; then
        run_script interop 600
    else
        skipped "interop: python3 is not installed"
    fi
}

# With brokers of its own, which nobody else disturbs.
run_torture() {
    if have python3; then
        run_script torture 2100
    else
        skipped "torture: python3 is not installed"
    fi
}

list_files() { # GLOB...
    git ls-files --cached --others --exclude-standard -- "$@" 2>/dev/null ||
        find .ci include tests examples -type f | sed 's|^\./||'
}

run_format() {
    local files
    mapfile -t files < <(list_files '*.hpp' '*.cpp' | grep -E '\.(hpp|cpp)$')
    if have clang-format-14; then
        check "clang-format" 120 clang-format-14 --dry-run -Werror "${files[@]}"
    else
        skipped "clang-format: clang-format-14 is not installed"
    fi
}

run_shellcheck() {
    local files
    mapfile -t files < <(list_files '*.sh' .ci/run | grep -E '\.sh$|^\.ci/run$')
    if have shellcheck; then
        check "shellcheck" 120 shellcheck -x "${files[@]}"
    else
        skipped "shellcheck: not installed"
    fi
}

# One translation unit that includes every header: the library is what is to be checked.
run_tidy() {
    if ! have clang-tidy-14 || ! have clang++-14; then
        skipped "clang-tidy: clang-tidy-14 or clang-14 is not installed"
    elif limited 300 cmake --preset clang >"$logs/configure-clang.log" 2>&1; then
        check "clang-tidy" 600 clang-tidy-14 -p build/clang --quiet tests/unit/odr_a.cpp
    else
        failed "clang-tidy: no build folder" "$logs/configure-clang.log"
    fi
}

run_lint() {
    heading "lint"
    run_format
    run_shellcheck
    run_tidy
}

run_clang() {
    heading "build with clang"
    if ! have clang++-14; then
        skipped "build with clang: clang-14 is not installed"
    elif build clang mq_header_check mq_examples mq_unit; then
        passed "build with clang"
        suite clang unit
    fi
}

# With nothing beside it: it measures.
run_bench() {
    has_sources bench || return 0
    heading "benchmark"
    build release mq_bench || return 0
    local log=$logs/bench.log tally=$logs/bench.tally status=0 begin=$SECONDS
    rm -f "$tally" "$tally.running"
    MQ_TEST_TALLY=$tally limited 600 build/release/tests/mq_bench >"$log" 2>&1 || status=$?
    grep -v '^skipped: ' "$log" | sed 's/^/   /' || true
    record_suite benchmark "$status" "$log" "$tally" $((SECONDS - begin))
}

set_sanitizer_options() {
    local symbolizer
    symbolizer=$(command -v llvm-symbolizer-14 || true)
    symbolizer=${symbolizer:+:external_symbolizer_path=$symbolizer}
    export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:strict_string_checks=1$symbolizer}
    export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$root/tests/lsan.supp:print_suppressions=0}
    export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1$symbolizer}
    export TSAN_OPTIONS=${TSAN_OPTIONS:-suppressions=$root/tests/tsan.supp:second_deadlock_stack=1$symbolizer}
}

run_asan() { run_suites asan unit migration conformance restart; }

# The walks are the library's own threads whatever the brokers: in memory they meet most often. The
# restarts are those of the two brokers that are back soonest, each with its own, side by side.
run_tsan() {
    local name
    begun=()
    begin_part tsan migration memory "$(printf '~[%s]' "${kBrokerKinds[@]}")"
    for name in unit conformance; do
        heading "$name on tsan"
        suite tsan "$name"
    done
    await_restart_brokers
    begin_part tsan restart rabbitmq "[rabbitmq]"
    begin_part tsan restart kafka "[kafka]"
    end_parts "walks in memory and restarts on tsan"
}

wants() { # PART...: whether any of them is asked for
    local part
    for part in "$@"; do
        [[ " ${parts[*]} " != *" $part "* ]] || return 0
    done
    return 1
}

install_missing() {
    local needed
    mapfile -t needed < <(missing_for_build; missing_for_tests)
    install_or_stop "${needed[@]}"
    if wants "${kBrokerParts[@]}" torture; then
        local kind
        for kind in "${kBrokerKinds[@]}"; do
            mapfile -t needed < <("missing_for_$kind")
            install_or_skip "$(broker_name "$kind")" "${needed[@]}"
        done
    fi
    if wants interop torture; then
        mapfile -t needed < <(missing_for_interop)
        install_or_skip "what interop and torture need" "${needed[@]}"
    fi
    if wants model; then
        mapfile -t needed < <(missing_for_model)
        install_or_skip "what the model needs" "${needed[@]}"
    fi
    if wants clang lint asan tsan; then
        mapfile -t needed < <(missing_for_clang)
        install_or_skip clang "${needed[@]}"
    fi
    if wants lint; then
        mapfile -t needed < <(missing_for_lint)
        install_or_skip "what lint needs" "${needed[@]}"
    fi
}

readonly kBrokerParts=(conformance migration restart interop asan tsan bench)

# While tests run on one build the next one is compiled, with what processors and disks have to spare:
# the tests have deadlines.
beside() { # FUNCTION ARGUMENT...
    in_background lowered 15 "$@"
    beside_job=$started
}

lowered() { # NICENESS FUNCTION ARGUMENT...
    renice -n "$1" -p "$BASHPID" >/dev/null 2>&1 || true
    if (($1 > 10)); then ionice --class idle --pid "$BASHPID" 2>/dev/null || true; fi
    "${@:2}"
}

side_of_dev() {
    if wants asan; then build asan || touch "$logs/asan.broken"; fi
    if wants packaging; then run_packaging; fi
    if wants lint; then run_lint; fi
}

side_of_asan() {
    if wants tsan; then build tsan || touch "$logs/tsan.broken"; fi
    if wants clang; then run_clang; fi
    if wants model; then run_model; fi
}

# What the head of this file says.
print_usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$root/tests/run.sh"; }

# choose_parts ARGUMENT...: sets `parts`, or ends the script.
choose_parts() {
    local part
    parts=("$@")
    (($# > 0)) || parts=("${kQuickParts[@]}")
    case "$*" in
        all) parts=("${kParts[@]}") ;;
        -h | --help)
            print_usage
            exit
            ;;
    esac
    for part in "${parts[@]}"; do
        [[ $part != all ]] || die "all stands alone: it is every part"
        [[ $part != -* ]] || die "no such option: $part (there is --help; parts are named without dashes)"
        [[ -n $part && " ${kParts[*]} " == *" $part "* ]] ||
            die "no such part: \"$part\" (there are: all ${kParts[*]})"
    done
}

main() {
    choose_parts "$@"

    lock_checkout
    mkdir -p "$logs"
    rm -f "$logs"/*.broken
    begin_results
    on_exit stop_brokers
    # A package may start a service, which is none of ours.
    install_missing 9>&-
    prepare_build
    set_sanitizer_options

    if wants "${kBrokerParts[@]}"; then begin_brokers; fi
    run_parts
    heading "sum"
    print_sum
}

# The suites that are asked for by name run on the build dev.
dev_suites() {
    local name
    for name in unit migration conformance restart; do
        if wants "$name"; then echo "$name"; fi
    done
}

run_parts() {
    local suites targets=()
    mapfile -t suites < <(dev_suites)

    local dev=no
    if ((${#suites[@]} > 0)); then
        heading "build"
        if is_quick; then mapfile -t suites < <(printf '%s\n' "${suites[@]}" | grep -vx unit); fi
        mapfile -t targets < <(dev_targets "${suites[@]}")
        ! build dev "${targets[@]}" || dev=yes
    fi
    if wants "${kBrokerParts[@]}"; then
        heading "brokers"
        await_brokers
    fi

    if is_quick; then beside build_and_run_unit; else beside side_of_dev; fi
    [[ $dev == no ]] || run_suites dev "${suites[@]}"
    if wants interop; then run_interop; fi
    join "$beside_job" || failed "what ran beside the tests on dev"

    beside side_of_asan
    if wants asan && [[ ! -e $logs/asan.broken ]]; then run_asan; fi
    join "$beside_job" || failed "what ran beside the tests on asan"

    if wants tsan && [[ ! -e $logs/tsan.broken ]]; then run_tsan; fi
    if wants bench; then run_bench; fi
    if wants torture; then run_torture; fi
}

# Whether it is the run of a newcomer, who waits for the compiler most of the time: what needs no broker
# is compiled while the brokers have the floor.
is_quick() { [[ ${parts[*]} == "${kQuickParts[*]}" ]]; }

build_and_run_unit() {
    build dev mq_unit || return 0
    suite dev unit
}

# A run of everything builds everything, with the examples and the check of the headers.
dev_targets() {
    [[ ${parts[*]} != "${kParts[*]}" ]] || return 0
    local name
    for name in "$@"; do
        if has_sources "$name"; then echo "mq_$name"; fi
    done
}

main "$@"
