# shellcheck shell=bash
# Starts brokers of one's own through tests/brokers/*.sh, side by side, and stops every one of them
# again. Needs common.sh.
# shellcheck disable=SC2154  # root and started are set by common.sh and who sources it

readonly kBrokerKinds=(rabbitmq kafka activemq artemis)

broker_dirs=()            # in the order of their start
declare -A broker_jobs=() # directory -> the process id of its start, until it is awaited

# broker_kind DIR: what the name of DIR says after its last dash, in "restart-kafka" say.
broker_kind() { echo "${1##*[-/]}"; }

broker_script() { echo "$root/tests/brokers/$(broker_kind "$1").sh"; }

# claim_brokers DIR: one run at a time owns the brokers below DIR. What an earlier run that was killed
# has left there is ended.
claim_brokers() {
    local kind left
    mkdir -p "$1"
    become_owner "$1/owner" || exit
    claimed_brokers=$1
    for kind in "${kBrokerKinds[@]}"; do
        for left in "$1/$kind" "$1"/*-"$kind"; do
            [[ -d $left ]] || continue
            "$(broker_script "$left")" stop "$left" >/dev/null 2>&1 || true
            rm -rf "$left"
        done
    done
}

# become_owner FILE: writes this script's process id there, unless it names another one that runs. Two
# that ask at once do so one after the other.
become_owner() (
    ! have flock || { exec 8>>"$1.lock" && flock 8; }
    owner=$(cat "$1" 2>/dev/null) || true
    if [[ -n $owner && $owner != "$$" ]] && grep -qs 'run\.sh' "/proc/$owner/cmdline"; then
        die "another run (process $owner) uses the brokers in ${1%/*}"
    fi
    echo $$ >"$1"
)

# begin_broker DIR: begins to start the broker that the end of DIR's name says.
begin_broker() {
    local dir=$1
    broker_dirs+=("$dir")
    mkdir -p "$root/build/logs"
    in_background start_broker "$dir"
    broker_jobs[$dir]=$started
}

start_broker() {
    run_limited 600 "$(broker_script "$1")" start "$1" >"$(broker_log "$1")" 2>&1
}

broker_log() { echo "$root/build/logs/broker-${1##*/}.log"; }

# await_broker DIR: the status of its start, once; 69 means that none is to be had on this machine.
await_broker() {
    local job=${broker_jobs[$1]}
    unset "broker_jobs[$1]"
    join "$job"
}

stop_broker() {
    "$(broker_script "$1")" stop "$1" >>"$(broker_log "$1")" 2>&1 || true
}

stop_brokers() {
    local dir jobs=()
    for dir in "${broker_dirs[@]}"; do
        stop_broker "$dir" &
        jobs+=("$!")
    done
    ((${#jobs[@]} == 0)) || wait "${jobs[@]}"
    broker_dirs=()
    [[ -z ${claimed_brokers:-} ]] || rm -f "$claimed_brokers/owner"
}

# make_certificates DIR: a CA and a server certificate for localhost, for the brokers' TLS listeners.
make_certificates() {
    local dir=$1
    mkdir -p "$dir"
    (
        cd "$dir" || exit
        openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj "/CN=mq test CA" \
            -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj "/CN=localhost" -keyout key.pem -out request.pem
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
            -extfile <(echo "subjectAltName = DNS:localhost, IP:127.0.0.1") -out cert.pem
    ) >"$root/build/logs/certificates.log" 2>&1
}
