#!/usr/bin/env bash
# Builds a program that uses mq, and lets it exchange messages with one that speaks STOMP, on the
# brokers that MQ_TEST_ACTIVEMQ_DIR and MQ_TEST_ARTEMIS_DIR name. Writes "PASSED FAILED SKIPPED" into
# the file that MQ_TEST_TALLY names.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$here/../../build/interop

# The compiler cache only saves time.
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
cmake -S "$here" -B "$work"
cmake --build "$work" --target relay
work=$(cd "$work" && pwd)

export MQ_TEST_RELAY=$work/relay PYTHONDONTWRITEBYTECODE=1
python3 "$here/interop_test.py"
