#!/usr/bin/env bash
# An ActiveMQ Artemis broker of one's own: one process on loopback, in a folder.
#
#   artemis.sh start|kill|stop|pause|resume DIR
#
# start   makes DIR where it is missing, starts the broker and waits until it answers. DIR/url and
#         DIR/pid name it. Started again after a kill or stop, it has the same ports and the same data.
#         DIR/url-stomp and DIR/url-openwire (which speaks Core as well) are the same broker for clients
#         of those protocols. With MQ_ARTEMIS_TLS_DIR (or MQ_RABBITMQ_TLS_DIR) set at the first start to
#         a folder with ca.pem, cert.pem and key.pem, DIR/url-tls is the same broker by TLS, and
#         DIR/tls/ca.pem what vouches for it. DIR/url-mtls takes a client's certificate instead of a
#         password (SASL EXTERNAL): cert.pem is that of the user. An address that begins with what
#         DIR/declared-prefix has in it must exist already: the broker makes none.
# kill    SIGKILL, and waits until the process is gone.
# stop    SIGTERM, and SIGKILL after 20 seconds.
# pause   SIGSTOP; resume undoes it.
#
# Needs java and, at the first start, mvn, which resolves pom-artemis.xml into a cache that is kept:
# ${MQ_BROKER_CACHE:-build/brokers-cache}/artemis. Exits with 69 where the broker cannot be had.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly kind=artemis
# shellcheck source=tests/brokers/jvm_broker.sh
source "$here/jvm_broker.sh"

readonly tls_source=${MQ_ARTEMIS_TLS_DIR:-${MQ_RABBITMQ_TLS_DIR:-}}

resolve() { unpack_distribution; }
answers() { answers_amqp "$1"; }

# Messages go to the dead-letter address DLQ only by being rejected: there is no limit to deliveries.
# The critical analyzer would halt a broker that was paused.
write_broker() {
    local tls="" tls_acceptors=""
    if [[ -n $tls_source ]]; then
        convert_certificates "$tls_source"
        tls="protocols=AMQP;sslEnabled=true;keyStoreType=PKCS12;trustStoreType=PKCS12"
        tls+=";keyStorePath=$dir/tls/server.p12;keyStorePassword=$password"
        tls+=";trustStorePath=$dir/tls/trust.p12;trustStorePassword=$password"
        tls_acceptors="<acceptor name=\"amqps\">tcp://127.0.0.1:${ports[3]}?$tls</acceptor>
      <acceptor name=\"amqps-mutual\">tcp://127.0.0.1:${ports[4]}?$tls;\
needClientAuth=true;saslMechanisms=EXTERNAL</acceptor>"
    fi
    cat >"$dir/etc/broker.xml" <<XML
<configuration xmlns="urn:activemq">
  <core xmlns="urn:activemq:core">
    <name>mq</name>
    <persistence-enabled>true</persistence-enabled>
    <journal-type>NIO</journal-type>
    <journal-directory>$dir/data/journal</journal-directory>
    <bindings-directory>$dir/data/bindings</bindings-directory>
    <large-messages-directory>$dir/data/large-messages</large-messages-directory>
    <paging-directory>$dir/data/paging</paging-directory>
    <journal-datasync>true</journal-datasync>
    <journal-sync-transactional>true</journal-sync-transactional>
    <journal-sync-non-transactional>true</journal-sync-non-transactional>
    <journal-file-size>4M</journal-file-size>
    <journal-min-files>2</journal-min-files>
    <journal-pool-files>10</journal-pool-files>
    <critical-analyzer>false</critical-analyzer>
    <max-disk-usage>100</max-disk-usage>
    <global-max-size>64M</global-max-size>
    <acceptors>
      <acceptor name="amqp">tcp://127.0.0.1:${ports[0]}?protocols=AMQP</acceptor>
      <acceptor name="stomp">tcp://127.0.0.1:${ports[1]}?protocols=STOMP</acceptor>
      <acceptor name="openwire">tcp://127.0.0.1:${ports[2]}?protocols=CORE,OPENWIRE</acceptor>
      $tls_acceptors
    </acceptors>
    <security-settings>
      <security-setting match="#">
        <permission type="createNonDurableQueue" roles="users"/>
        <permission type="deleteNonDurableQueue" roles="users"/>
        <permission type="createDurableQueue" roles="users"/>
        <permission type="deleteDurableQueue" roles="users"/>
        <permission type="createAddress" roles="users"/>
        <permission type="deleteAddress" roles="users"/>
        <permission type="consume" roles="users"/>
        <permission type="browse" roles="users"/>
        <permission type="send" roles="users"/>
        <permission type="manage" roles="users"/>
      </security-setting>
    </security-settings>
    <address-settings>
      <address-setting match="#">
        <dead-letter-address>DLQ</dead-letter-address>
        <max-delivery-attempts>-1</max-delivery-attempts>
        <redelivery-delay>0</redelivery-delay>
        <address-full-policy>PAGE</address-full-policy>
        <page-size-bytes>1M</page-size-bytes>
        <auto-create-queues>true</auto-create-queues>
        <auto-create-addresses>true</auto-create-addresses>
        <auto-delete-queues>false</auto-delete-queues>
        <auto-delete-addresses>false</auto-delete-addresses>
        <default-address-routing-type>MULTICAST</default-address-routing-type>
        <default-queue-routing-type>MULTICAST</default-queue-routing-type>
      </address-setting>
      <address-setting match="declared.#">
        <auto-create-queues>false</auto-create-queues>
        <auto-create-addresses>false</auto-create-addresses>
      </address-setting>
    </address-settings>
    <addresses>
      <address name="DLQ"><anycast><queue name="DLQ"/></anycast></address>
    </addresses>
  </core>
</configuration>
XML
}

write_login() {
    cat >"$dir/etc/login.config" <<LOGIN
mq {
    org.apache.activemq.artemis.spi.core.security.jaas.TextFileCertificateLoginModule sufficient
        org.apache.activemq.jaas.textfiledn.user="certificates.properties"
        org.apache.activemq.jaas.textfiledn.role="roles.properties";
    org.apache.activemq.artemis.spi.core.security.jaas.PropertiesLoginModule sufficient
        org.apache.activemq.jaas.properties.user="users.properties"
        org.apache.activemq.jaas.properties.role="roles.properties";
};
LOGIN
    printf '%s = %s\n' "$user" "$password" >"$dir/etc/users.properties"
    printf 'users = %s\n' "$user" >"$dir/etc/roles.properties"
    printf '%s = CN=localhost\n' "$user" >"$dir/etc/certificates.properties"
}

# Without a web server.
write_bootstrap() {
    cat >"$dir/etc/bootstrap.xml" <<XML
<broker xmlns="http://activemq.apache.org/schema">
  <jaas-security domain="mq"/>
  <server configuration="file:$dir/etc/broker.xml"/>
</broker>
XML
    echo '<management-context xmlns="http://activemq.apache.org/schema"/>' >"$dir/etc/management.xml"
}

prepare() {
    choose_ports 5
    mkdir -p "$dir/etc"
    write_broker
    write_login
    write_bootstrap
    write_logging
    local credentials=$user:$password@127.0.0.1
    printf 'stomp://%s:%s\n' "$credentials" "${ports[1]}" >"$dir/url-stomp"
    printf 'tcp://127.0.0.1:%s\n' "${ports[2]}" >"$dir/url-openwire"
    if [[ -n $tls_source ]]; then
        printf 'artemiss://%s@localhost:%s\n' "$user:$password" "${ports[3]}" >"$dir/url-tls"
        printf 'artemiss://localhost:%s\n' "${ports[4]}" >"$dir/url-mtls"
    fi
    echo declared. >"$dir/declared-prefix"
    printf 'artemis://%s:%s\n' "$credentials" "${ports[0]}" >"$dir/url"
}

launch_command() {
    command=("${vm_options[@]}" -Xms64m -Xmx256m "-Djava.io.tmpdir=$dir/tmp"
        "-Dlog4j2.configurationFile=$dir/log4j2.properties"
        "-Dartemis.home=$home" "-Dartemis.instance=$dir" "-Dartemis.instance.etc=$dir/etc"
        "-Djava.security.auth.login.config=$dir/etc/login.config" -cp "$home/lib/*"
        org.apache.activemq.artemis.cli.Artemis run)
}

run_command "$@"
