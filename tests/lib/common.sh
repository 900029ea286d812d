# shellcheck shell=bash
# What the test command, the examples and the CI command share: messages, time limits, signals.
# Sourced by scripts that have set `root` to the top of the checkout.
# shellcheck disable=SC2030,SC2031,SC2034  # each shell has children of its own; parallel is for the caller

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# A heading with the time since the script began.
heading() { printf '== %3ds  %s\n' "$SECONDS" "$*"; }

# What runs in the background or under a time limit, to be ended when this shell is.
children=()

# run_limited SECONDS COMMAND...: runs a command that reads nothing, ends it with everything that it has
# started when the time is up (status 124), and leaves this shell open to signals meanwhile.
run_limited() {
    local limit=$1 status=0
    shift
    timeout --kill-after=60 "$limit" "$@" </dev/null &
    local pid=$!
    children+=("$pid")
    wait "$pid" || status=$?
    forget "$pid"
    return "$status"
}

# in_background FUNCTION ARGUMENT...: sets `started` to the process id of a shell that runs it.
in_background() {
    (
        children=()
        trap 'end_children; exit 143' TERM
        "$@"
    ) </dev/null &
    started=$!
    children+=("$started")
}

# join PID: the status of what in_background has started.
join() {
    local status=0
    wait "$1" || status=$?
    forget "$1"
    return "$status"
}

forget() {
    local pid kept=()
    for pid in "${children[@]}"; do
        [[ $pid == "$1" ]] || kept+=("$pid")
    done
    children=("${kept[@]}")
}

end_children() {
    local pid
    for pid in "${children[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
    done
    for pid in "${children[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    children=()
}

# on_exit FUNCTION: runs it once when the script ends, also by Ctrl-C, TERM or a closed terminal. While
# it runs, further signals are ignored: half a clean-up would leave brokers behind.
on_exit() {
    exit_function=$1
    trap 'run_exit_function' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

run_exit_function() {
    local status=$?
    trap - EXIT
    trap '' HUP INT TERM
    end_children
    "$exit_function"
    exit "$status"
}

# The generator of every build, and how many compilers run at once.
prepare_build() {
    if [[ -z ${CMAKE_GENERATOR:-} ]] && have ninja; then
        export CMAKE_GENERATOR=Ninja
    fi
    parallel=$(nproc 2>/dev/null || echo 2)
    # What one checkout has compiled serves every other one on the machine.
    # shellcheck disable=SC2154  # root is set by who sources this
    export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1
}
