#!/usr/bin/env bash
# Checks the model of the migration protocol, migration.pml, with spin: what is promised holds in every
# reachable state of each configuration, and with a guard taken out it does not. Prints a line for each
# configuration, leaves the steps to what has gone wrong in build/model/NAME/steps, and writes
# "PASSED FAILED SKIPPED" into the file that MQ_TEST_TALLY names.
#
#   tests/model/run.sh           every configuration
#   tests/model/run.sh NAME...   those only
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=tests/lib/common.sh
source "$root/tests/lib/common.sh"

readonly work=$root/build/model
readonly tally=${MQ_TEST_TALLY:-/dev/null}
readonly kSeconds=240     # for one configuration; the longest takes some 30
readonly kMegabytes=1800  # the largest takes some 800
passed=0
failed=0
only=("$@")

nothing() { :; }

# explore NAME MACRO...: breadth first, so that the steps to an error are the fewest. Sets `states`,
# `depth`, `seconds`, and `outcome`: exhausted, error, or what stood in the way of either.
explore() {
    local dir=$work/$1 begin=$SECONDS out
    shift
    out=$dir/output
    states=- depth=- outcome="no verifier"
    rm -rf "$dir"
    mkdir -p "$dir"
    # The file is copied because spin takes the name of its traces from it.
    cp "$here/migration.pml" "$dir/" && cd "$dir" || return
    if run_limited 30 spin "${@/#/-D}" -a migration.pml >build.log 2>&1 &&
        run_limited 60 "${CC:-cc}" -O1 -w -DBFS -DSAFETY -DCOLLAPSE -DMEMLIM=$kMegabytes -DVECTORSZ=512 \
            -o pan pan.c >>build.log 2>&1; then
        run_limited "$kSeconds" ./pan -m100000 >"$out" 2>&1 || true
        states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$out")
        depth=$(sed -n 's/.*depth reached \([0-9]*\),.*/\1/p' "$out")
        if grep -q 'errors: [1-9]' "$out"; then
            outcome=error
            run_limited 30 ./pan -r 2>/dev/null | grep -E '^(producer|member|side|the|no) ' >steps || true
        elif ! grep -q 'errors: 0' "$out"; then
            outcome="not done after $kSeconds seconds"
        elif grep -qiE 'max search depth too small|search not completed|out of memory|memory limit' "$out"; then
            outcome="not exhausted"
        else
            outcome=exhausted
        fi
        rm -f pan pan.? ./*.trail
    fi
    seconds=$((SECONDS - begin))
    cd "$root" || return
}

# configuration EXPECTED VERDICT NAME WHAT MACRO...
configuration() {
    local expected=$1 verdict=$2 name=$3 what=$4 mark=passed
    shift 4
    if ((${#only[@]} > 0)) && [[ " ${only[*]} " != *" $name "* ]]; then return; fi
    echo "$name" >"$tally.running"
    explore "$name" "$@"
    if [[ $outcome == "$expected" ]]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        mark=FAILED verdict=$outcome
    fi
    printf '%s: %-22s %8s states, depth %3s, %3ds, %s: %s\n' \
        "$mark" "$name" "$states" "$depth" "$seconds" "$verdict" "$what"
    [[ $mark == passed ]] ||
        tail -n 40 "$work/$name/build.log" "$work/$name/output" "$work/$name/steps" 2>/dev/null
}

holds() { configuration exhausted holds "$@"; }
# A guard taken out: something must go wrong.
breaks() { configuration error "goes wrong" "$@"; }
# What the library does not keep today. Once it does, the macro that stands for the remedy is the rule, and
# the line moves up.
known() { configuration error "known to go wrong" "$@"; }

if ! have spin || ! have "${CC:-cc}"; then
    echo "skipped: the model: spin or a C compiler is not installed"
    echo "0 0 1" >"$tally"
    exit 0
fi
mkdir -p "$work"
on_exit nothing

readonly order=(ORDER QUIET)

# Nothing confirmed is lost or left behind, in whatever order flags change, without any quiet period.
holds members-restart "flags go up and down, members are killed" FREE CRASH_M
holds two-groups "flags go up and down, two groups" FREE G=2 M=1 N=1
holds two-producers "flags go up and down, two producers" FREE P=2 M=1 N=1
holds jumps "flags jump, members are killed" JUMP N=1 CRASH_M
holds jumps-two-groups "flags jump, two groups" JUMP G=2 M=1 N=1
holds walk-alone "one rung everywhere before the next, and nobody comes back to a side" QUIET NO_RESUBSCRIBE
holds producers-restart "one rung everywhere before the next, producers are killed" QUIET CRASH_P
holds producers-ask "as producers-hasty, but a producer that starts asks who listens first" \
    FREE CRASH_P PRODUCER_ASKS M=1

# And the order of a key is kept, where a change settles before it is turned round.
holds order "one rung everywhere before the next" "${order[@]}"
holds order-no-quiet "the same without any quiet period" ORDER
holds order-three "three messages" "${order[@]}" N=3
holds order-hasty "any mixture of neighbouring flags" "${order[@]}" HASTY
holds order-two-groups "two groups" "${order[@]}" G=2 M=1
holds order-four-members "two groups of two members" "${order[@]}" G=2
holds order-two-producers "two producers" "${order[@]}" P=2
holds order-turn-early "turned round with messages on their way" "${order[@]}" EARLY HASTY
holds order-members-restart "members are killed" "${order[@]}" CRASH_M
holds order-restarts "as order-producer-restarts, but a producer that starts asks first" \
    "${order[@]}" CRASH_P CRASH_M PRODUCER_ASKS

breaks no-listen-guard "publishing moves to where a group does not listen" FREE NO_LISTEN_GUARD
breaks no-resubscribe "nobody looks at the side that was left" FREE NO_RESUBSCRIBE
breaks no-resubscribe-restart "the same, one rung everywhere before the next, when members are killed" \
    QUIET CRASH_M NO_RESUBSCRIBE
breaks no-drain-guard "a side is left with something there" "${order[@]}" NO_DRAIN_GUARD
breaks no-group-wide-drain "what other members work on is not counted" "${order[@]}" NO_GROUP_WIDE_DRAIN
breaks no-quiet "a side is left while somebody publishes there" ORDER HASTY
breaks no-sender-fence "publishing moves before the last confirm" "${order[@]}" NO_SENDER_FENCE
breaks no-hold "the new side's messages are not held" "${order[@]}" NO_HOLD
breaks no-mark "what has come after the question is let go of too" "${order[@]}" P=2 M=1 NO_MARK
breaks no-turn-rule "a member turns round with messages on their way" \
    "${order[@]}" EARLY NO_TURN_RULE
breaks no-quiet-turn "a member turns because the new side is empty at that moment" \
    "${order[@]}" EARLY NO_QUIET_TURN
breaks no-member-asks "a member that starts at new takes what is new before what is left on old" \
    "${order[@]}" CRASH_M NO_MEMBER_ASKS
breaks no-direction "a member that starts during a way back holds the wrong side" \
    "${order[@]}" CRASH_M NO_DIRECTION
breaks no-lowered-start "a producer that starts does not allow for members that turn" \
    "${order[@]}" CRASH_P PRODUCER_ASKS NO_LOWERED_START
breaks no-turn-back "producers turn round before members have, or members are told too late" \
    "${order[@]}" NO_TURN_BACK
breaks overlapping-turns "directions overlap, which README.md does not promise" "${order[@]}" FREE

known producers-hasty "a producer that starts at new-publish before groups listen asks nobody: a message is lost" \
    QUIET CRASH_P HASTY
known order-producer-restarts "a producer that starts while its flag is lowered does not wait for members" \
    "${order[@]}" CRASH_P

echo "$passed $failed 0" >"$tally"
((failed == 0))
