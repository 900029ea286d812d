# shellcheck shell=bash
# What the scripts of brokers that run in a Java VM share: their process, their ports, where they come
# from. Sourced by KIND.sh, which has set `kind` and `here` (its own folder), and which defines
#
#   resolve          sees to it that what the broker consists of is in the cache
#   prepare          writes its files into `dir`, at the first start; `url` is among them
#   answers PORT     whether it serves its protocol there
#   launch_command   sets `command` to what comes after `java`
# shellcheck disable=SC2034,SC2154  # set there and read here, or the other way round

# shellcheck source=tests/brokers/standstill.sh
source "$(dirname "${BASH_SOURCE[0]}")/standstill.sh"

readonly start_seconds=${MQ_BROKER_START_SECONDS:-90}
readonly stop_seconds=20
readonly user=mq password=mq-secret

unavailable() { printf '%s.sh: %s\n' "$kind" "$1" >&2; exit 69; }
fail() { printf '%s.sh: %s\n' "$kind" "$1" >&2; exit 1; }

# The process of DIR/pid, where it still is the one that was started: a pid alone may have been reused.
broker_pid() {
    local pid started
    [[ -r $dir/pid && -r $dir/started ]] || return 1
    pid=$(<"$dir/pid") started=$(<"$dir/started")
    [[ -n $pid && -n $started && $(start_time "$pid") == "$started" ]] || return 1
    printf '%s' "$pid"
}

# The kernel's start time of a process; nothing for one that has ended, also as a zombie.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    stat=${stat##*) }
    # Fields 3 (state) and 22 (start time) of proc(5), counted from after the name.
    # shellcheck disable=SC2086
    set -- $stat
    [[ $1 == Z ]] || printf '%s' "${20}"
}

# Waits until the command succeeds, for so many seconds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

gone() { [[ $(start_time "$1") != "$2" ]]; }
taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Whether the broker serves AMQP 1.0: the protocol header that asks for SASL is answered in kind.
answers_amqp() {
    local bytes
    taken "$1" || return 1
    # shellcheck disable=SC2016
    bytes=$(timeout 10 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1"
        printf "AMQP\\3\\1\\0\\0" >&3
        head -c 8 <&3 | od -An -tx1' ask "$1" 2>/dev/null) || return 1
    [[ ${bytes// /} == 414d515003010000 ]]
}

answers_or_ended() { answers "$1" || ! broker_pid >/dev/null; }

# choose_ports COUNT: sets `ports` to as many that nobody has, no two of them the same. They lie below
# the range that the kernel gives to outgoing connections, and so stay free while the broker is down.
choose_ports() {
    local port attempts=0
    ports=()
    while ((${#ports[@]} < $1)); do
        ((attempts++ < 400)) || fail "no free port on loopback"
        port=$((15000 + (RANDOM * 32768 + RANDOM) % 15000))
        [[ " ${ports[*]-} " == *" $port "* ]] || taken "$port" || ports+=("$port")
    done
}

# resolve_by_maven NAME GOAL ARGUMENT...: what pom-KIND.xml asks for, in the folder NAME of `cache`.
# Several runs may resolve at once; it counts only when it is complete. One lock for every kind: they
# share the repository of the user's maven.
resolve_by_maven() {
    local name=$1 goal=$2
    shift 2
    [[ ! -e $cache/$name/complete ]] || return 0
    command -v mvn >/dev/null || unavailable "mvn is not installed (package maven), and $cache is empty"
    mkdir -p "$cache"
    (
        flock -w 600 9 || unavailable "another run holds ${cache%/*}/lock"
        [[ ! -e $cache/$name/complete ]] || exit 0
        rm -rf "${cache:?}/$name"
        mvn -B -q -Dstyle.color=never -f "$here/pom-$kind.xml" "dependency:$goal" "$@" \
            -DoutputDirectory="$cache/$name" >"$cache/mvn.log" 2>&1 ||
            unavailable "maven could not resolve the broker: $(grep -m1 ERROR "$cache/mvn.log" || true)"
        touch "$cache/$name/complete"
    ) 9>"${cache%/*}/lock"
}

# unpack_distribution: sets `home` to the unpacked archive of pom-KIND.xml.
unpack_distribution() {
    # What maven has unpacked it marks, by default in the folder of the pom.
    resolve_by_maven distribution unpack-dependencies '-Dmdep.unpack.includes=*/lib/**' \
        "-DmarkersDirectory=$cache/distribution/markers"
    home=$(echo "$cache"/distribution/apache-*)
    [[ -d $home/lib ]] || unavailable "$cache holds no distribution"
}

# convert_certificates SOURCE: DIR/tls/ca.pem for clients, and for the broker a key store and a trust store.
convert_certificates() {
    command -v openssl >/dev/null || unavailable "openssl is not installed"
    command -v keytool >/dev/null || unavailable "keytool is not installed (package default-jre-headless)"
    mkdir -p "$dir/tls"
    cp "$1"/ca.pem "$dir/tls/"
    openssl pkcs12 -export -in "$1/cert.pem" -inkey "$1/key.pem" -certfile "$1/ca.pem" -name broker \
        -passout "pass:$password" -out "$dir/tls/server.p12" 2>"$dir/tls/log" ||
        fail "the certificate cannot be converted: $(tail -n1 "$dir/tls/log")"
    # Not openssl: Java trusts a certificate of a PKCS #12 file only where an attribute says so.
    keytool -importcert -noprompt -alias ca -file "$dir/tls/ca.pem" -storetype PKCS12 \
        -storepass "$password" -keystore "$dir/tls/trust.p12" >>"$dir/tls/log" 2>&1 ||
        fail "the CA cannot be converted: $(tail -n1 "$dir/tls/log")"
}

# prepare_once: at the first start, prepare and then a mark that it is done.
prepare_once() {
    [[ ! -e $dir/prepared ]] || return 0
    prepare
    touch "$dir/prepared"
}

start() {
    local pid url port
    command -v java >/dev/null || unavailable "java is not installed (package default-jre-headless)"
    resolve
    mkdir -p "$dir/tmp"
    prepare_once
    read -r url <"$dir/url"
    port=${url##*:}
    if ! pid=$(broker_pid); then
        launch
    elif ! wait_for "$start_seconds" answers "$port"; then
        fail "the broker runs (pid $pid) and does not answer"
    fi
    wait_for "$start_seconds" answers_or_ended "$port" || fail "no answer within $start_seconds s; see $dir/broker.log"
    broker_pid >/dev/null || fail "the broker ended: $(tail -n1 "$dir/broker.log")"
}

# launch: starts the process and names it in DIR/pid. It holds DIR/launching locked until then, so that
# end() misses none whose script was ended meanwhile.
launch() {
    local command=()
    launch_command
    # A session of its own: it outlives the shell that called, and a Ctrl-C there does not reach it.
    # Field 22 of proc(5) is the process's start time, which exec leaves alone.
    # shellcheck disable=SC2016
    (
        flock 9
        setsid bash -c 'read -r -a stat </proc/$$/stat
            echo "${stat[21]}" >"$1/started" && echo $$ >"$1/pid" && cd "$1" || exit
            shift
            exec 9>&-
            exec "$@"' launch "$dir" java "${command[@]}" </dev/null >>"$dir/broker.log" 2>&1 &
    ) 9>"$dir/launching"
    await_launch
    broker_pid >/dev/null || fail "the broker could not be launched: $(tail -n1 "$dir/broker.log")"
}

await_launch() { [[ ! -e $dir/launching ]] || flock -w 10 "$dir/launching" true; }

# The options of every VM: a small heap, and no time spent on what pays only later.
readonly vm_options=(-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.awt.headless=true)

# The log lines of a broker that logs by Log4j 2: to standard error, and so to DIR/broker.log.
write_logging() {
    cat >"$dir/log4j2.properties" <<PROPERTIES
rootLogger.level=${MQ_BROKER_LOG:-warn}
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.target=SYSTEM_ERR
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %-5p %c{1}: %m%n
PROPERTIES
}

end() {
    local pid started
    await_launch || fail "a broker of $dir is neither launched nor given up"
    pid=$(broker_pid) || return 0
    started=$(start_time "$pid")
    kill "-$1" "$pid" 2>/dev/null || true
    # A stopped process takes SIGTERM only once it runs again.
    kill -CONT "$pid" 2>/dev/null || true
    if ! wait_for "$2" gone "$pid" "$started"; then
        kill -KILL "$pid" 2>/dev/null || true
        wait_for 30 gone "$pid" "$started" || fail "process $pid does not end"
    fi
}

pause() {
    local pid
    pid=$(broker_pid) || fail "no broker of $dir is running"
    stand_still "$pid" 30 || fail "process $pid does not stand still"
}

resume() {
    local pid
    pid=$(broker_pid) || fail "no broker of $dir is running"
    kill -CONT "$pid"
}

# run_command COMMAND DIR: what the script was called for.
run_command() {
    [[ $# -eq 2 ]] || fail "usage: $kind.sh start|kill|stop|pause|resume DIR"
    mkdir -p "$2"
    dir=$(cd "$2" && pwd)
    cache=${MQ_BROKER_CACHE:-$(cd "$here/../.." && pwd)/build/brokers-cache}/$kind
    [[ $cache == /* ]] || cache=$PWD/$cache
    readonly dir cache
    case $1 in
        start) start ;;
        kill) end KILL 10 ;;
        stop) end TERM "$stop_seconds" ;;
        pause) pause ;;
        resume) resume ;;
        *) fail "unknown command '$1'" ;;
    esac
}
