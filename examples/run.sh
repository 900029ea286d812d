#!/usr/bin/env bash
# Builds the examples and shows a topic moving between two brokers under live traffic; --help says how.
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

usage() {
    cat <<'HELP'
examples/run.sh [OPTION...]

Builds the examples, and moves a topic from one broker to another under live traffic. Without an option
both are in memory, and it takes some ten seconds. Each option that takes a value may also be written
--OPTION=VALUE.

  --old BROKER, --new BROKER   from where, and to where; each is one of
                                 memory                              nothing to start (the default)
                                 rabbitmq kafka activemq artemis     started here, and stopped again
                                 a URL                               one of yours that runs already:
                                 amqp:// amqps:// kafka:// kafkas:// activemq:// activemqs://
                                 artemis:// artemiss:// memory://
  --real                       the same as --old rabbitmq --new kafka
  --walk RUNG,RUNG,...         the rungs to take: old, dual-subscribe, new-publish, new (the default is
                               these four); also back, and jumping
  --restart old|new|both       kills brokers that were started here, in the middle of the walk, and
                               starts them again
  --rate N                     messages a second, of all producers together (2000; 300 with
                               --old or --new activemq, which waits for its disk once for each message)
  --seconds N                  how long to keep sending, at least (10)
  --producers N                producer services (3)
  --consumers N                consumer services in each of the two groups (2)
  --order key|none             what the topic promises (key)
  --quiet DURATION             no arrival for this long before a side is left, 500ms say (1s)
  --halfway COMMAND            a shell command to run in the middle of the walk; not with --restart
  -h, --help                   prints this

Ctrl-C ends it early: it stops sending, waits for what is on its way, and prints the audit; a second one
ends it at once. Brokers that were started here are stopped in any case. On brokers of yours the queues or
topics that it has used, orders-XXXXXX with other letters in each run, remain.

What is missing is installed by apt-get where there is one, with sudo where you are not root, and
otherwise named. The exit status is 0 only where messages were sent, none was lost, and with --order key
none was reordered; it is 69 where a broker cannot be had on this machine.
HELP
}

readonly kRungs=(old dual-subscribe new-publish new)

declare -A sides=([old]=memory [new]=memory) # what was asked for: a kind of broker, or a URL
declare -A knobs=([restart]="")              # the other options that were given
arguments=()                                 # of the program

# wrong WHAT: an option that makes no sense, said before anything is installed or built.
wrong() { die "$* (--help names every option)"; }

parse() {
    while (($# > 0)); do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --real) sides=([old]=rabbitmq [new]=kafka) ;;
            --?*=*)
                set -- "${1%%=*}" "${1#*=}" "${@:2}"
                continue
                ;;
            --old | --new | --restart | --rate | --seconds | --producers | --consumers | --walk | \
                --order | --quiet | --halfway)
                (($# > 1)) || wrong "$1 needs a value"
                if [[ -v sides[${1#--}] ]]; then sides[${1#--}]=$2; else knobs[${1#--}]=$2; fi
                shift
                ;;
            *) wrong "no such option: $1" ;;
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
    case ${knobs[restart]} in
        "") ;;
        both) echo old new ;;
        *) echo "${knobs[restart]}" ;;
    esac
}

check_sides() {
    local side
    local url='^(memory|amqps?|kafkas?|activemqs?|artemiss?)://.'
    for side in old new; do
        started_here "$side" || [[ ${sides[$side]} == memory || ${sides[$side]} =~ $url ]] ||
            wrong "--$side: \"${sides[$side]}\" is neither the URL of a broker nor one of memory" \
                "${kBrokerKinds[*]}"
    done
    [[ ${knobs[restart]} =~ ^(|old|new|both)$ ]] ||
        wrong "--restart: \"${knobs[restart]}\" is none of old, new, both"
    for side in $(restarted_sides); do
        started_here "$side" || wrong "--restart $side: only a broker that is started here is restarted"
    done
    [[ -z ${knobs[restart]} || -z ${knobs[halfway]:-} ]] || wrong "--restart and --halfway: give one of them"
}

# check_number OPTION MOST
check_number() {
    local value=${knobs[$1]-1}
    if ! [[ $value =~ ^[1-9][0-9]{0,7}$ ]] || ((value > $2)); then
        wrong "--$1: \"$value\" is no whole number from 1 to $2"
    fi
}

check_walk() {
    local rung rungs
    [[ -v knobs[walk] ]] || return 0
    # With a comma behind it, an empty last word is one of the words, too.
    IFS=, read -r -a rungs <<<"${knobs[walk]},"
    for rung in "${rungs[@]}"; do
        [[ " ${kRungs[*]} " == *" $rung "* && -n $rung ]] ||
            wrong "--walk: \"$rung\" is none of ${kRungs[*]}; put commas between them"
    done
}

check() {
    check_sides
    check_number rate 1000000
    check_number seconds 86400
    check_number producers 64
    check_number consumers 64
    check_walk
    [[ ${knobs[order]-key} =~ ^(key|none)$ ]] || wrong "--order: \"${knobs[order]}\" is none of key, none"
    [[ ${knobs[quiet]-1s} =~ ^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$ && -n ${knobs[quiet]-1s} ]] ||
        wrong "--quiet: \"${knobs[quiet]}\" is no duration such as 500ms, 2s or 1m30s"
}

install_missing() {
    local needed side
    mapfile -t needed < <(missing_for_build)
    install_or_stop "${needed[@]}"
    for side in $(own_sides); do
        mapfile -t needed < <("missing_for_${sides[$side]}")
        install_or_give_up "$(broker_name "${sides[$side]}")" "${needed[@]}"
    done
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

# Classic waits for its disk once for each message of a connection and group.
rate_for_classic() {
    [[ " ${sides[*]} " != *" activemq "* || -v knobs[rate] ]] || knobs[rate]=300
}

add_knobs() {
    local knob
    for knob in "${!knobs[@]}"; do
        [[ $knob == restart ]] || arguments+=("--$knob" "${knobs[$knob]}")
    done
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
    [[ -z $line ]] || knobs[halfway]=$line
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
add_knobs

# In the foreground, with the terminal: it draws there, and Ctrl-C is its own to handle.
status=0
"$build/examples/live_migration" "${arguments[@]}" || status=$?
exit "$status"
