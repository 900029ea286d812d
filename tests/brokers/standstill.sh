# shellcheck shell=bash
# Stops a process so that it is seen to stand still. Sourced by the scripts of the brokers.

# stand_still PID SECONDS: SIGSTOP; returns when every thread of the process has stopped, or fails. One
# thread acts upon the signal and stops the others, which go on until then: for up to a quarter of a
# second where processors are wanted, long enough for a broker to confirm a message.
stand_still() {
    local deadline=$((SECONDS + $2))
    kill -STOP "$1"
    until stands_still "$1"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.01
    done
}

stands_still() {
    local file stat
    for file in /proc/"$1"/task/*/stat; do
        # A thread may end between two looks.
        { IFS= read -r stat <"$file"; } 2>/dev/null || continue
        [[ ${stat##*) } == [TZX]* ]] || return 1
    done
}
