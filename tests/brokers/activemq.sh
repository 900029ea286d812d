#!/usr/bin/env bash
# An ActiveMQ Classic broker of one's own: one process on loopback, in a folder.
#
#   activemq.sh start|kill|stop|pause|resume DIR
#
# start   makes DIR where it is missing, starts the broker and waits until it answers. DIR/url and
#         DIR/pid name it. Started again after a kill or stop, it has the same ports and the same data.
#         DIR/url-stomp and DIR/url-openwire are the same broker for clients of those protocols. With
#         MQ_ACTIVEMQ_TLS_DIR (or MQ_RABBITMQ_TLS_DIR) set at the first start to a folder with ca.pem,
#         cert.pem and key.pem, DIR/url-tls is the same broker by TLS, and DIR/tls/ca.pem what vouches
#         for it.
# kill    SIGKILL, and waits until the process is gone.
# stop    SIGTERM, and SIGKILL after 20 seconds.
# pause   SIGSTOP; resume undoes it.
#
# Needs java and, at the first start, mvn, which resolves pom-activemq.xml into a cache that is kept:
# ${MQ_BROKER_CACHE:-build/brokers-cache}/activemq. Exits with 69 where the broker cannot be had.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly kind=activemq
# shellcheck source=tests/brokers/jvm_broker.sh
source "$here/jvm_broker.sh"

readonly tls_source=${MQ_ACTIVEMQ_TLS_DIR:-${MQ_RABBITMQ_TLS_DIR:-}}

resolve() { unpack_distribution; }
answers() { answers_amqp "$1"; }

# The journal is on the disk before a message is confirmed. The transformer "jms" is the one by which
# AMQP, STOMP and OpenWire clients read each other: with "native" and "raw" the others are given the
# encoded AMQP message as the body. Acknowledgements are not compacted: a broker that is killed twice
# after that forgets what it has confirmed in between (seen with 5.18.3).
write_config() {
    local tls_context="" tls_connector=""
    if [[ -n $tls_source ]]; then
        convert_certificates "$tls_source"
        tls_context="<sslContext><sslContext keyStore=\"file:$dir/tls/server.p12\" keyStoreType=\"PKCS12\"
        keyStorePassword=\"$password\"/></sslContext>"
        tls_connector="<transportConnector name=\"amqps\"
        uri=\"amqp+ssl://127.0.0.1:${ports[3]}?transport.transformer=jms\"/>"
    fi
    cat >"$dir/activemq.xml" <<XML
<beans xmlns="http://www.springframework.org/schema/beans"
       xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
       xsi:schemaLocation="http://www.springframework.org/schema/beans
                           http://www.springframework.org/schema/beans/spring-beans.xsd
                           http://activemq.apache.org/schema/core
                           http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core" brokerName="mq" dataDirectory="$dir/data"
          tmpDataDirectory="$dir/tmp" useJmx="false" schedulerSupport="false">
    <persistenceAdapter>
      <kahaDB directory="$dir/data/kahadb" journalMaxFileLength="8mb" journalDiskSyncStrategy="always"
              enableAckCompaction="false"/>
    </persistenceAdapter>
    <plugins>
      <simpleAuthenticationPlugin>
        <users>
          <authenticationUser username="$user" password="$password" groups="users,admins"/>
        </users>
      </simpleAuthenticationPlugin>
      <statisticsBrokerPlugin/>
    </plugins>
    $tls_context
    <systemUsage>
      <systemUsage>
        <memoryUsage><memoryUsage limit="96 mb"/></memoryUsage>
        <storeUsage><storeUsage limit="2 gb"/></storeUsage>
        <tempUsage><tempUsage limit="256 mb"/></tempUsage>
      </systemUsage>
    </systemUsage>
    <transportConnectors>
      <transportConnector name="amqp"
        uri="amqp://127.0.0.1:${ports[0]}?transport.transformer=jms"/>
      <transportConnector name="stomp" uri="stomp://127.0.0.1:${ports[1]}"/>
      <transportConnector name="openwire" uri="tcp://127.0.0.1:${ports[2]}"/>
      $tls_connector
    </transportConnectors>
  </broker>
</beans>
XML
}

prepare() {
    choose_ports 4
    write_config
    write_logging
    local credentials=$user:$password@127.0.0.1
    printf 'stomp://%s:%s\n' "$credentials" "${ports[1]}" >"$dir/url-stomp"
    printf 'tcp://127.0.0.1:%s\n' "${ports[2]}" >"$dir/url-openwire"
    if [[ -n $tls_source ]]; then
        printf 'activemqs://%s@localhost:%s\n' "$user:$password" "${ports[3]}" >"$dir/url-tls"
    fi
    printf 'activemq://%s:%s\n' "$credentials" "${ports[0]}" >"$dir/url"
}

# The journal's files are made whole: each sync writes the data alone.
launch_command() {
    command=("${vm_options[@]}" -Xms64m -Xmx256m "-Djava.io.tmpdir=$dir/tmp"
        -Dorg.apache.activemq.kahaDB.files.skipMetadataUpdate=true
        "-Dlog4j2.configurationFile=$dir/log4j2.properties"
        "-Dactivemq.home=$home" "-Dactivemq.base=$dir" "-Dactivemq.conf=$dir"
        "-Dactivemq.data=$dir/data" -cp "$home/lib/*:$home/lib/optional/*"
        org.apache.activemq.console.Main start "xbean:file:$dir/activemq.xml")
}

run_command "$@"
