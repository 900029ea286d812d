# shellcheck shell=bash
# Finds what a machine lacks and installs it. Each missing_* function prints the Debian packages that
# are missing for one purpose; what is there in another way, by hand say, is not asked for again.
# Needs common.sh.
# shellcheck disable=SC2154  # root is set by who sources it

have_header() { [[ -e /usr/include/$1 || -e /usr/local/include/$1 ]]; }
have_library() { pkg-config --exists "$1" 2>/dev/null; }

missing_for_build() {
    have g++ || echo g++
    have cmake || echo cmake
    have ninja || have make || echo ninja-build
    have pkg-config || echo pkg-config
    have ccache || echo ccache
    have_library tomlplusplus || echo libtomlplusplus-dev
    have_library librabbitmq || echo librabbitmq-dev
    have_library rdkafka || echo librdkafka-dev
    # Debian's .pc file names others that the package leaves out, and so is of no use.
    have_header proton/io/connection_driver.hpp || echo libqpid-proton-cpp12-dev
    have_header nlohmann/json.hpp || echo nlohmann-json3-dev
    have_library libcurl || echo libcurl4-openssl-dev
    have_library CLI11 || echo libcli11-dev
}

missing_for_tests() {
    have_library catch2 || have_library catch2-with-main || echo catch2
}

missing_for_rabbitmq() {
    [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] || echo rabbitmq-server
    have setsid || echo util-linux
    have openssl || echo openssl
}

missing_for_kafka() {
    have java || echo default-jre-headless
    have mvn || echo maven
    have setsid || echo util-linux
}

missing_for_activemq() {
    missing_for_kafka
    have openssl || echo openssl
}

missing_for_artemis() { missing_for_activemq; }

# The program of the other protocol is in Python, by its standard library alone.
missing_for_interop() {
    have python3 || echo python3
}

# The verifier that spin writes is in C.
missing_for_model() {
    have spin || echo spin
    have "${CC:-cc}" || echo gcc
}

# What drives the services of the torture test is in Python, too.
missing_for_torture() { missing_for_interop; }

# broker_name KIND: what a person calls it.
broker_name() {
    case $1 in
        rabbitmq) echo RabbitMQ ;;
        kafka) echo Kafka ;;
        activemq) echo "ActiveMQ Classic" ;;
        artemis) echo "ActiveMQ Artemis" ;;
    esac
}

missing_for_clang() {
    have clang++-14 || echo clang-14
    compgen -G '/usr/lib/llvm-14/lib/clang/*/lib/linux/libclang_rt.tsan*.a' >/dev/null ||
        echo libclang-rt-14-dev
}

missing_for_lint() {
    have clang-format-14 || echo clang-format-14
    have clang-tidy-14 || echo clang-tidy-14
    have shellcheck || echo shellcheck
}

# can_install: whether this machine has a way; otherwise sets `obstacle` to why not.
can_install() {
    obstacle=""
    as_root=()
    if ! have apt-get; then
        obstacle="this machine has no apt-get"
    elif [[ $(id -u) != 0 ]]; then
        if ! have sudo; then
            obstacle="you are not root and there is no sudo"
        elif [[ -t 0 ]]; then
            as_root=(sudo)
        elif sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            obstacle="sudo asks for a password and there is no terminal"
        fi
    fi
    [[ -z $obstacle ]]
}

apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >>"$apt_log" 2>&1 </dev/null
}

# install PACKAGE...: whether they are installed in the end. The lists are fetched once.
install() {
    (($# > 0)) || return 0
    can_install || return 1
    apt_log=$root/build/logs/apt.log
    mkdir -p "${apt_log%/*}"
    if [[ -z ${apt_is_fresh:-} ]]; then
        # A source that cannot be reached need not be the one that has the packages.
        apt update || echo "apt-get update failed, see $apt_log" >&2
        apt_is_fresh=yes
    fi
    heading "installing $*"
    install_without_services "$@"
}

systemd_runs() { [[ -d /run/systemd/system ]]; }

# install_without_services PACKAGE...: of a broker only the programs are wanted. Debian would start a
# service of its own, now and with the machine. It is masked rather than forbidden by a policy-rc.d,
# which the machine may have, and which a run that is killed would leave behind: this mask is gone with
# the next start of the machine.
install_without_services() {
    local status=0 masked="" unit=rabbitmq-server.service
    if [[ " $* " == *" ${unit%.service} "* ]] && systemd_runs; then
        "${as_root[@]}" systemctl mask --runtime "$unit" >>"$apt_log" 2>&1 && masked=yes
    fi
    apt install -y --no-install-recommends "$@" || status=$?
    if [[ -n $masked ]]; then
        "${as_root[@]}" systemctl unmask --runtime "$unit" >>"$apt_log" 2>&1 || true
        "${as_root[@]}" systemctl disable "$unit" >>"$apt_log" 2>&1 || true
        echo "   $unit is left disabled: nothing here needs it, systemctl enable --now starts it"
    fi
    return "$status"
}

# install_or_stop PACKAGE...: what cannot be done without.
install_or_stop() {
    install "$@" && return
    if [[ -n $obstacle ]]; then
        die "these are missing, and $obstacle. Install what Debian calls: $*"
    fi
    tail -n 20 "$apt_log" >&2
    die "installing failed: $*"
}

# install_or_give_up WHAT PACKAGE...: what cannot be had on every machine. Status 69 says so.
install_or_give_up() {
    local what=$1
    shift
    install "$@" && return
    [[ -n $obstacle ]] || tail -n 5 "$apt_log" >&2
    echo "${0##*/}: $what cannot be had (${obstacle:-apt-get failed}). Install what Debian calls: $*" >&2
    exit 69
}

# install_or_skip WHAT PACKAGE...: what some tests can be skipped without. Says what will be missing.
install_or_skip() {
    local what=$1
    shift
    install "$@" || echo "$what cannot be installed (${obstacle:-apt-get failed}): $*" >&2
}
