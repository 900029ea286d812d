#!/usr/bin/env bash
# Tortures mq: services that are processes of their own, on two real brokers, keep a topic working while
# it walks between them, and meanwhile processes and brokers are killed and stopped, and connections are
# cut, slowed and swallowed, by a script that a seed makes.
#
#   tests/torture/run.sh --seed N --minutes M --old KIND --new KIND [--order key|none]
#   tests/torture/run.sh --minutes 10 --old kafka --new rabbitmq --kill-every 40 --rate 1000 --load 20
#   tests/torture/run.sh            # two runs of a minute, of fixed seeds
#
# KIND is one of rabbitmq, kafka, activemq and artemis. Without --seed there is a random one, which is
# printed; the same seed makes the same script, and --script-only prints that and does nothing else.
# With --kill-every the old broker is killed and started again each so many seconds, at --rate messages a
# second, and nothing else is done; it says who stood still for how long, and fails where that was longer
# than the 30 seconds that the library promises. --load runs so many processes that want a processor.
# --restarts up spares what subscribes while a walk with an order goes down; the default is any.
# --keep keeps the folder of the run also where nothing was wrong. The last line is the audit; the exit
# status is 0 only where nothing was lost or reordered and the walk was completed, and 69 where a broker
# cannot be had.
#
# Without arguments "PASSED FAILED SKIPPED" goes into the file that MQ_TEST_TALLY names.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=tests/lib/common.sh
source "$root/tests/lib/common.sh"
# shellcheck source=tests/lib/packages.sh
source "$root/tests/lib/packages.sh"
# shellcheck source=tests/lib/brokers.sh
source "$root/tests/lib/brokers.sh"

readonly here=$root/tests/torture
readonly work=$root/build/torture
# Another build of the service, with a sanitizer say, may be put in its place.
readonly service=${MQ_TORTURE_SERVICE:-$root/build/release/tests/mq_torture_service}
export PYTHONDONTWRITEBYTECODE=1

seed=$((RANDOM * 32768 + RANDOM))
minutes=5
declare -A sides=([old]=rabbitmq [new]=kafka)
order=key
restarts=any
declare -A kills=([kill-every]=0 [rate]=0 [load]=0)
keep=""
script_only=""

parse() {
    while (($# > 0)); do
        case $1 in
            --keep | --script-only) ;;
            --*=*)
                set -- "${1%%=*}" "${1#*=}" "${@:2}"
                continue
                ;;
            *) (($# > 1)) || die "$1: no such option, or it needs a value" ;;
        esac
        case $1 in
            --keep) keep=yes ;;
            --script-only) script_only=yes ;;
            --seed) seed=$2 ;;
            --minutes) minutes=$2 ;;
            --old | --new) sides[${1#--}]=$2 ;;
            --order) order=$2 ;;
            --restarts) restarts=$2 ;;
            --kill-every | --rate | --load) kills[${1#--}]=$2 ;;
            *) die "no such option: $1" ;;
        esac
        [[ $1 == --keep || $1 == --script-only ]] || shift
        shift
    done
    local side
    for side in old new; do
        [[ " ${kBrokerKinds[*]} " == *" ${sides[$side]} "* ]] ||
            die "--$side: \"${sides[$side]}\" is none of ${kBrokerKinds[*]}"
    done
    [[ $seed =~ ^[0-9]+$ ]] || die "--seed: \"$seed\" is no number"
    [[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--minutes: \"$minutes\" is no number"
    [[ $order =~ ^(key|none)$ ]] || die "--order: \"$order\" is none of key, none"
    local option
    for option in "${!kills[@]}"; do
        [[ ${kills[$option]} =~ ^[0-9]{1,5}$ ]] || die "--$option: \"${kills[$option]}\" is no number"
    done
    [[ $restarts =~ ^(up|any)$ ]] || die "--restarts: \"$restarts\" is none of up, any"
}

arguments() {
    printf '%s\n' --seed "$seed" --minutes "$minutes" --old "${sides[old]}" --new "${sides[new]}" \
        --order "$order" --restarts "$restarts"
    local option
    for option in kill-every rate load; do
        ((kills[$option] == 0)) || printf '%s\n' "--$option" "${kills[$option]}"
    done
}

install_missing() {
    local needed side
    mapfile -t needed < <(missing_for_build; missing_for_tests; missing_for_torture)
    install_or_stop "${needed[@]}"
    for side in old new; do
        mapfile -t needed < <("missing_for_${sides[$side]}")
        install_or_give_up "$(broker_name "${sides[$side]}")" "${needed[@]}"
    done
}

build_service() {
    local log=$root/build/logs/build-torture.log
    [[ -z ${MQ_TORTURE_SERVICE:-} ]] || return 0
    mkdir -p "${log%/*}"
    heading "building the service"
    if ! (cd "$root" && run_limited 300 cmake --preset release) >"$log" 2>&1 ||
        ! run_limited 1200 cmake --build "$root/build/release" -j"$parallel" \
            --target mq_torture_service >>"$log" 2>&1; then
        tail -n 60 "$log" >&2
        die "the build failed, see $log"
    fi
}

folder_of() { echo "$work/brokers/torture-$1-${sides[$1]}"; }

# Brokers without TLS, which nothing here uses.
begin_own_brokers() {
    claim_brokers "$work/brokers"
    unset MQ_RABBITMQ_TLS_DIR MQ_KAFKA_TLS_DIR MQ_ACTIVEMQ_TLS_DIR MQ_ARTEMIS_TLS_DIR
    # What dies is started again while everything else goes on, which takes longer.
    export MQ_KAFKA_PROXIED=yes MQ_BROKER_START_SECONDS=240
    local side
    for side in old new; do begin_broker "$(folder_of "$side")"; done
}

await_own_brokers() {
    local side status
    for side in old new; do
        status=0
        heading "starting the $side broker, $(broker_name "${sides[$side]}")"
        await_broker "$(folder_of "$side")" || status=$?
        if ((status != 0)); then
            tail -n 5 "$(broker_log "$(folder_of "$side")")" >&2
            echo "tests/torture/run.sh: no ${sides[$side]} could be started" >&2
            exit "$status"
        fi
    done
}

run_one() {
    local status=0 folder=$work/${sides[old]}-${sides[new]}-$order-$seed
    mapfile -t asked < <(arguments)
    if [[ -n $script_only ]]; then
        exec python3 "$here/torture.py" "${asked[@]}" --script-only
    fi
    on_exit stop_brokers
    install_missing
    prepare_build
    begin_own_brokers
    build_service
    await_own_brokers
    rm -rf "$folder"
    heading "seed $seed: $minutes minutes, ${sides[old]} to ${sides[new]}, order $order"
    # What a run may take besides its script is bounded by the driver itself.
    run_limited $((${minutes%.*} * 240 + 1200)) python3 "$here/torture.py" "${asked[@]}" \
        --old-dir "$(folder_of old)" --new-dir "$(folder_of new)" --service "$service" \
        --scripts "$root/tests/brokers" --folder "$folder" || status=$?
    if ((status == 0)); then
        [[ -n $keep ]] || rm -rf "$folder"
        return
    fi
    keep_broker_logs "$folder"
    echo "FAILED. Scripts, books and logs are in ${folder#"$root"/}. To replay it:"
    echo "  tests/torture/run.sh ${asked[*]}"
    exit "$status"
}

keep_broker_logs() {
    local side from
    for side in old new; do
        from=$(folder_of "$side")
        mkdir -p "$1/broker-$side"
        cp -r "$from"/*.log "$from"/log "$1/broker-$side/" 2>/dev/null || true
    done
}

# ---- without arguments

expect() { # WHAT SECONDS COMMAND...
    local what=$1 limit=$2 status=0
    shift 2
    echo "$what" >"$tally.running"
    run_limited "$limit" "$@" || status=$?
    case $status in
        0) passed=$((passed + 1)) && echo "passed: $what" ;;
        69) skipped=$((skipped + 1)) && echo "skipped: $what: a broker is not to be had here" ;;
        *) failed=$((failed + 1)) && echo "FAILED: $what" ;;
    esac
}

run_suite() {
    local self=$here/run.sh
    tally=${MQ_TEST_TALLY:-/dev/null}
    passed=0 failed=0 skipped=0
    on_exit true
    expect "two hundred scripts are safe, and the same each time" 120 python3 "$here/plan.py" 200
    # Seeds whose minute has most of what a script can have; the second leaves a group unnamed.
    expect "RabbitMQ to Kafka, a fixed seed" 1000 "$self" --seed 96 --minutes 1 --old rabbitmq --new kafka
    expect "ActiveMQ to RabbitMQ, a fixed seed" 1000 "$self" --seed 156 --minutes 1 \
        --old activemq --new rabbitmq
    echo "$passed $failed $skipped" >"$tally"
    ((failed == 0))
}

# Read as a whole before it runs: an edit meanwhile does no harm.
main() {
    if (($# == 0)); then
        run_suite
    else
        parse "$@"
        run_one
    fi
    exit
}

main "$@"
