#!/usr/bin/env bash
# Builds the examples and shows a topic moving between two brokers under live traffic.
#
#   examples/run.sh               between two in-memory brokers, in some ten seconds
#   examples/run.sh --old KIND --new KIND
#                                 between any two of memory, rabbitmq, kafka, activemq and artemis,
#                                 started here and stopped again
#   examples/run.sh --real        the same as --old rabbitmq --new kafka
#   examples/run.sh --old URL --new URL
#                                 between brokers that run already
#
# --restart old|new|both kills a broker that was started here in the middle of the walk, and starts it
# again. Everything else is for the program: --rate N, --seconds N, --producers N, --consumers N,
# --walk old,dual-subscribe,..., --order key|none, --help. An ActiveMQ Classic that is started here is
# sent 300 messages a second unless --rate says otherwise: it waits for its disk once for each message
# of a connection and group. The exit status is the program's; it is 69 where a broker cannot be had.
# What is missing is installed by apt-get where there is one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tests/lib/common.sh
source "$root/tests/lib/common.sh"
# shellcheck source=tests/lib/packages.sh
source "$root/tests/lib/packages.sh"
# shellcheck source=tests/lib/brokers.sh
source "$root/tests/lib/brokers.sh"

readonly build=$root/build/examples
readonly brokers=$root/build/live

declare -A sides=([old]=memory [new]=memory) # what was asked for: a kind of broker, or a URL
restart=""
arguments=()

parse() {
    while (($# > 0)); do
        case $1 in
            --real) sides=([old]=rabbitmq [new]=kafka) ;;
            --old=* | --new=* | --restart=*)
                set -- "${1%%=*}" "${1#*=}" "${@:2}"
                continue
                ;;
            --old | --new | --restart)
                (($# > 1)) || die "$1 needs a value"
                if [[ $1 == --restart ]]; then restart=$2; else sides[${1#--}]=$2; fi
                shift
                ;;
            *) arguments+=("$1") ;;
        esac
        shift
    done
}

started_here() { [[ " ${kBrokerKinds[*]} " == *" ${sides[$1]} "* ]]; }
folder_of() { echo "$brokers/$1-${sides[$1]}"; }

# The sides whose brokers are started here.
own_sides() {
    local side
    for side in old new; do
        if started_here "$side"; then echo "$side"; fi
    done
}

restarted_sides() {
    case $restart in
        "") ;;
        both) echo old new ;;
        *) echo "$restart" ;;
    esac
}

check() {
    local side
    for side in old new; do
        started_here "$side" || [[ ${sides[$side]} == memory || ${sides[$side]} == *://* ]] ||
            die "--$side: \"${sides[$side]}\" is neither a URL nor one of memory ${kBrokerKinds[*]}"
    done
    [[ $restart =~ ^(|old|new|both)$ ]] || die "--restart: \"$restart\" is none of old, new, both"
    for side in $(restarted_sides); do
        started_here "$side" || die "--restart $side: only a broker that is started here is restarted"
    done
}

install_missing() {
    local needed side
    mapfile -t needed < <(missing_for_build)
    for side in $(own_sides); do
        mapfile -t -O "${#needed[@]}" needed < <("missing_for_${sides[$side]}")
    done
    install_or_stop "${needed[@]}"
}

build_examples() {
    local log=$root/build/logs/build-examples.log
    mkdir -p "${log%/*}"
    heading "building the examples"
    if ! run_limited 300 cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DMQ_TESTS=OFF \
        >"$log" 2>&1 ||
        ! run_limited 1200 cmake --build "$build" -j"$parallel" >>"$log" 2>&1; then
        tail -n 60 "$log" >&2
        die "the build failed, see $log"
    fi
}

# They start while the examples are being built.
begin_own_brokers() {
    local side own
    own=$(own_sides)
    [[ -n $own ]] || return 0
    claim_brokers "$brokers"
    for side in $own; do begin_broker "$(folder_of "$side")"; done
}

# Sets the URLs of both sides.
await_own_brokers() {
    local side folder status
    for side in $(own_sides); do
        folder=$(folder_of "$side") status=0
        heading "starting the $side broker, $(broker_name "${sides[$side]}")"
        await_broker "$folder" || status=$?
        if ((status != 0)); then
            tail -n 5 "$(broker_log "$folder")" >&2
            echo "examples/run.sh: no ${sides[$side]} could be started" >&2
            exit "$status"
        fi
    done
    for side in old new; do
        if started_here "$side"; then
            arguments+=("--$side" "$(<"$(folder_of "$side")/url")")
        elif [[ ${sides[$side]} == memory ]]; then
            arguments+=("--$side" "memory://$side")
        else
            arguments+=("--$side" "${sides[$side]}")
        fi
    done
}

rate_for_classic() {
    [[ " ${sides[*]} " == *" activemq "* ]] || return 0
    [[ " ${arguments[*]-}" == *" --rate"* ]] || arguments+=(--rate 300)
}

# Without a chance to finish anything, and all of them down at once.
add_restart() {
    local side action line=""
    for action in kill start; do
        for side in $(restarted_sides); do
            line+="${line:+ && }$(printf '%q %s %q' \
                "$(broker_script "$(folder_of "$side")")" "$action" "$(folder_of "$side")")"
        done
    done
    [[ -z $line ]] || arguments+=(--halfway "$line")
}

parse "$@"
check
on_exit stop_brokers
install_missing
prepare_build
begin_own_brokers
build_examples
await_own_brokers
rate_for_classic
add_restart

# In the foreground, with the terminal: it draws there, and Ctrl-C is its own to handle.
status=0
"$build/examples/live_migration" "${arguments[@]}" || status=$?
exit "$status"
