#!/usr/bin/env bash
# Runs a RabbitMQ broker of one's own as an ordinary process, on loopback, with everything it writes in
# one folder. Several can run side by side, next to one that the machine runs anyway.
#
#   rabbitmq.sh start|stop|kill|pause|resume DIR
#   rabbitmq.sh block|unblock DIR           # publishers are blocked, as when its memory runs out
#   rabbitmq.sh ctl DIR ARGUMENT...         # rabbitmqctl against that broker
#
# start leaves DIR/url (AMQP), DIR/management (HTTP) and DIR/pid (the Erlang VM) behind. Ports are chosen
# at the first start and kept, so a killed broker comes back at the same place with the same data.
# With MQ_RABBITMQ_TLS_DIR set at the first start to a folder with ca.pem, cert.pem and key.pem there is
# a TLS listener as well, in DIR/url-tls. Exit status 69: the broker is not installed here.
set -euo pipefail

readonly kBin=/usr/lib/rabbitmq/bin
readonly kStartSeconds=${MQ_BROKER_START_SECONDS:-90}
readonly kStopSeconds=20
readonly kMemory=1GB

# shellcheck source=tests/brokers/standstill.sh
source "$(dirname "${BASH_SOURCE[0]}")/standstill.sh"

die() {
    echo "rabbitmq.sh: $*" >&2
    exit 1
}

usage() {
    echo "usage: rabbitmq.sh start|stop|kill|pause|resume|block|unblock|ctl DIR [ARGUMENT...]" >&2
    exit 64
}

require_broker() {
    local tool
    if [[ ! -x $kBin/rabbitmq-server ]]; then
        echo "rabbitmq.sh: $kBin/rabbitmq-server is missing (Debian: apt-get install rabbitmq-server)" >&2
        exit 69
    fi
    for tool in erl epmd setsid; do
        if ! command -v "$tool" >/dev/null; then
            echo "rabbitmq.sh: the program '$tool' is missing" >&2
            exit 69
        fi
    done
}

port_answers() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# Below the range that the kernel gives to outgoing connections, so that a port stays free while the
# broker is down.
choose_port() {
    local port
    for _ in {1..200}; do
        port=$((15000 + (RANDOM * 32768 + RANDOM) % 15000))
        if [[ " $* " != *" $port "* ]] && ! port_answers "$port"; then
            echo "$port"
            return
        fi
    done
    die "found no free port"
}

choose_ports() {
    local amqp management dist epmd tls
    amqp=$(choose_port)
    management=$(choose_port "$amqp")
    dist=$(choose_port "$amqp" "$management")
    epmd=$(choose_port "$amqp" "$management" "$dist")
    tls=$(choose_port "$amqp" "$management" "$dist" "$epmd")
    printf 'amqp_port=%s\nmanagement_port=%s\ndist_port=%s\nepmd_port=%s\ntls_port=%s\n' \
        "$amqp" "$management" "$dist" "$epmd" "$tls" >"$dir/ports"
}

load_ports() {
    # shellcheck disable=SC1091  # written by choose_ports
    source "$dir/ports"
    node="mq-${amqp_port:?}@localhost"
    : "${management_port:?}" "${dist_port:?}" "${epmd_port:?}" "${tls_port:?}"
}

write_config() {
    local cores
    cores=$(nproc 2>/dev/null || echo 2)
    {
        echo "listeners.tcp.1 = 127.0.0.1:$amqp_port"
        echo "management.tcp.ip = 127.0.0.1"
        echo "management.tcp.port = $management_port"
        echo "collect_statistics_interval = 1000"
        echo "num_acceptors.tcp = 2"
        echo "log.console = false"
        echo "log.file.level = warning"
        echo "vm_memory_high_watermark.absolute = $kMemory"
        echo "channel_max = 500"
        echo "disk_free_limit.absolute = 10MB"
        if [[ -f $dir/tls/cert.pem ]]; then
            echo "listeners.ssl.1 = 127.0.0.1:$tls_port"
            echo "ssl_options.cacertfile = $dir/tls/ca.pem"
            echo "ssl_options.certfile = $dir/tls/cert.pem"
            echo "ssl_options.keyfile = $dir/tls/key.pem"
            echo "ssl_options.verify = verify_none"
            echo "ssl_options.fail_if_no_peer_cert = false"
        fi
    } >"$dir/rabbitmq.conf"
    echo '[rabbitmq_management].' >"$dir/enabled_plugins"
    : >"$dir/rabbitmq-env.conf"
    schedulers="+S $((cores < 4 ? cores : 4))"
}

# The surroundings of the broker and of rabbitmqctl: nothing of the machine's own installation is used.
export_environment() {
    export HOME=$dir
    export RABBITMQ_NODENAME=$node
    export RABBITMQ_CONF_ENV_FILE=$dir/rabbitmq-env.conf
    export RABBITMQ_CONFIG_FILE=$dir/rabbitmq.conf
    export RABBITMQ_ADVANCED_CONFIG_FILE=$dir/advanced.config
    export RABBITMQ_ENABLED_PLUGINS_FILE=$dir/enabled_plugins
    export RABBITMQ_MNESIA_BASE=$dir/mnesia
    export RABBITMQ_LOG_BASE=$dir/log
    export RABBITMQ_PID_FILE=$dir/rabbitmq.pid
    export RABBITMQ_DIST_PORT=$dist_port
    export ERL_EPMD_PORT=$epmd_port
    export ERL_EPMD_ADDRESS=127.0.0.1
    export ERL_CRASH_DUMP_SECONDS=0
    unset RABBITMQ_NODE_PORT RABBITMQ_NODE_IP_ADDRESS RABBITMQ_USE_LONGNAME
}

# Whether the process in the file $1 is one of ours: it shows the text $3 in its command line or its
# environment ($2). The number alone may have been given to another process meanwhile.
owned() {
    local pid shown
    [[ -s $1 ]] || return 1
    pid=$(<"$1")
    [[ -r /proc/$pid/$2 ]] || return 1
    shown=$({ tr '\0' ' ' <"/proc/$pid/$2"; } 2>/dev/null) || return 1
    [[ " $shown " == *" $3 "* ]]
}

broker_runs() { owned "$dir/pid" environ "RABBITMQ_NODENAME=$node"; }
epmd_runs() { owned "$dir/epmd.pid" cmdline "-port $epmd_port"; }

wait_until_gone() {
    local deadline=$((SECONDS + $1))
    while broker_runs; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# The broker answers the protocol header only after it has recovered its queues.
amqp_answers() {
    local byte=""
    (
        exec 3<>"/dev/tcp/127.0.0.1/$amqp_port" || exit 1
        printf 'AMQP\0\0\x09\x01' >&3
        IFS= read -r -t 10 -N 1 -u 3 byte
        [[ $byte == $'\x01' ]]
    ) 2>/dev/null
}

start_epmd() {
    if epmd_runs; then return; fi
    setsid epmd -port "$epmd_port" -address 127.0.0.1 </dev/null >/dev/null 2>&1 &
    echo $! >"$dir/epmd.pid"
}

start_broker() {
    # With input allowed the start script becomes the Erlang VM instead of minding it, so that the
    # process that starts here is the one to stop; -noinput keeps the Erlang shell away all the same.
    RABBITMQ_ALLOW_INPUT=1 \
        RABBITMQ_SERVER_START_ARGS="-noinput" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="$schedulers -kernel inet_dist_use_interface {127,0,0,1}" \
        setsid "$kBin/rabbitmq-server" </dev/null >"$dir/log/console" 2>&1 &
    echo $! >"$dir/pid"
}

wait_until_started() {
    local deadline=$((SECONDS + kStartSeconds)) pid
    pid=$(<"$dir/pid")
    until amqp_answers && port_answers "$management_port"; do
        if ! kill -0 "$pid" 2>/dev/null; then
            tail -n 20 "$dir/log/console" >&2
            die "the broker ended while it was starting; see $dir/log"
        fi
        if ((SECONDS >= deadline)); then
            command_kill
            die "the broker did not start within $kStartSeconds seconds; see $dir/log"
        fi
        sleep 0.2
    done
}

command_start() {
    require_broker
    mkdir -p "$dir/log" "$dir/mnesia"
    if [[ ! -f $dir/ports ]]; then
        choose_ports
        if [[ -n ${MQ_RABBITMQ_TLS_DIR:-} ]]; then
            mkdir -p "$dir/tls"
            cp "$MQ_RABBITMQ_TLS_DIR"/{ca,cert,key}.pem "$dir/tls/"
        fi
    fi
    load_ports
    if ! broker_runs; then
        write_config
        export_environment
        start_epmd
        start_broker
    fi
    wait_until_started
    echo "amqp://guest:guest@127.0.0.1:$amqp_port/" >"$dir/url"
    echo "http://127.0.0.1:$management_port" >"$dir/management"
    if [[ -f $dir/tls/cert.pem ]]; then
        echo "amqps://guest:guest@localhost:$tls_port/" >"$dir/url-tls"
    fi
}

command_kill() {
    if broker_runs; then
        kill -KILL "$(<"$dir/pid")"
        wait_until_gone 10 || die "the broker does not go away"
    fi
    rm -f "$dir/pid"
}

command_stop() {
    if broker_runs; then
        kill -CONT "$(<"$dir/pid")"
        kill -TERM "$(<"$dir/pid")"
        wait_until_gone "$kStopSeconds" || command_kill
    fi
    if epmd_runs; then kill -TERM "$(<"$dir/epmd.pid")"; fi
    rm -f "$dir/pid" "$dir/epmd.pid"
}

command_pause() {
    broker_runs || die "no broker runs in $dir"
    stand_still "$(<"$dir/pid")" 30 || die "the broker does not stand still"
}

command_resume() {
    broker_runs || die "no broker runs in $dir"
    kill -CONT "$(<"$dir/pid")"
}

command_ctl() {
    broker_runs || die "no broker runs in $dir"
    export_environment
    exec "$kBin/rabbitmqctl" -n "$node" "$@"
}

(($# >= 2)) || usage
command=$1
dir=$2
shift 2

if [[ $command == start ]]; then
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    command_start
    exit
fi

[[ -d $dir ]] || die "there is no folder $dir"
dir=$(cd "$dir" && pwd)
if [[ ! -f $dir/ports ]]; then
    # Never started: nothing to end, and nothing to talk to.
    [[ $command == stop || $command == kill ]] && exit
    die "no broker was ever started in $dir"
fi
load_ports
case $command in
    kill) command_kill ;;
    stop) command_stop ;;
    pause) command_pause ;;
    resume) command_resume ;;
    block) command_ctl set_vm_memory_high_watermark 0.0000001 >/dev/null ;;
    unblock) command_ctl set_vm_memory_high_watermark absolute "$kMemory" >/dev/null ;;
    ctl) command_ctl "$@" ;;
    *) usage ;;
esac
