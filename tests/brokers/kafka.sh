#!/usr/bin/env bash
# A Kafka broker of one's own: one KRaft node (broker and controller) on loopback, in a folder.
#
#   kafka.sh start|kill|stop|pause|resume DIR
#
# start   makes DIR where it is missing, starts the broker and waits until it answers. DIR/url and
#         DIR/pid name it. Started again after a kill or stop, it has the same ports and the same data.
#         DIR/url-sasl is the same broker for a user with a password. With MQ_KAFKA_TLS_DIR (or
#         MQ_RABBITMQ_TLS_DIR) set at the first start to a folder with ca.pem, cert.pem and key.pem,
#         DIR/url-tls is the same broker by TLS, and DIR/tls/ca.pem what vouches for it. With
#         MQ_KAFKA_PROXIED=yes at the first start it sends its clients to the port of
#         DIR/url-advertised, where whoever started it lets a proxy listen.
# kill    SIGKILL, and waits until the process is gone.
# stop    SIGTERM, and SIGKILL after 20 seconds.
# pause   SIGSTOP; resume undoes it.
#
# Needs java and, at the first start, mvn, which resolves pom-kafka.xml into a cache that is kept:
# ${MQ_BROKER_CACHE:-build/brokers-cache}/kafka. Exits with 69 where the broker cannot be had.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly kind=kafka
# shellcheck source=tests/brokers/jvm_broker.sh
source "$here/jvm_broker.sh"

readonly tls_source=${MQ_KAFKA_TLS_DIR:-${MQ_RABBITMQ_TLS_DIR:-}}
readonly proxied=${MQ_KAFKA_PROXIED:-}

resolve() {
    resolve_by_maven jars copy-dependencies -DincludeScope=runtime
    java_options=("${vm_options[@]}" -Xms128m -Xmx512m
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=${MQ_BROKER_LOG:-warn}"
        -Dorg.slf4j.simpleLogger.showDateTime=true -cp "$cache/jars/*")
}

# Whether the broker serves requests, which it does some time after it listens: an ApiVersions request
# (version 0, no client id) gets bytes back.
answers() {
    local bytes
    taken "$1" || return 1
    # shellcheck disable=SC2016
    bytes=$(timeout 10 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1"
        printf "\\0\\0\\0\\12\\0\\22\\0\\0\\0\\0\\0\\1\\377\\377" >&3
        head -c 4 <&3 | wc -c' ask "$1" 2>/dev/null) || return 1
    [[ $bytes -eq 4 ]]
}

write_config() {
    local plain=${ports[0]} controller=${ports[1]} sasl=${ports[2]} tls=${ports[3]}
    local others=SASL://127.0.0.1:$sasl advertised=$plain
    [[ -z $tls_source ]] || others+=,TLS://127.0.0.1:$tls
    if [[ -n $proxied ]]; then
        advertised=${ports[4]}
        printf 'kafka://127.0.0.1:%s\n' "$advertised" >"$dir/url-advertised"
    fi
    cat >"$dir/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$plain,$others,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$advertised,$others
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_mq="mq-secret";
log.dirs=$dir/data
num.partitions=4
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=4194304
# A killed broker is fenced for as long as its old session lasts.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
PROPERTIES
    [[ -n $tls_source ]] || return 0
    mkdir -p "$dir/tls"
    cp "$tls_source/ca.pem" "$dir/tls/"
    cat "$tls_source/key.pem" "$tls_source/cert.pem" >"$dir/tls/server.pem"
    printf 'listener.name.tls.ssl.keystore.%s\n' type=PEM "location=$dir/tls/server.pem" \
        >>"$dir/server.properties"
    printf 'kafkas://127.0.0.1:%s\n' "$tls" >"$dir/url-tls"
}

prepare() {
    choose_ports 5
    write_config
    java "${java_options[@]}" kafka.tools.StorageTool random-uuid >"$dir/cluster-id" 2>"$dir/format.log" ||
        fail "java did not run: $(tail -n1 "$dir/format.log")"
    java "${java_options[@]}" kafka.tools.StorageTool format -t "$(tail -n1 "$dir/cluster-id")" \
        -c "$dir/server.properties" >>"$dir/format.log" 2>&1 ||
        fail "the storage could not be formatted: $(tail -n1 "$dir/format.log")"
    printf 'kafka://mq:mq-secret@127.0.0.1:%s\n' "${ports[2]}" >"$dir/url-sasl"
    printf 'kafka://127.0.0.1:%s\n' "${ports[0]}" >"$dir/url"
}

launch_command() { command=("${java_options[@]}" kafka.Kafka "$dir/server.properties"); }

run_command "$@"
