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
readonly kSeconds=240     # for one configuration; the longest takes some 20
readonly kMegabytes=1200  # the largest takes some 800
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
    printf '%s: %-24s %8s states, depth %3s, %3ds, %s: %s\n' \
        "$mark" "$name" "$states" "$depth" "$seconds" "$verdict" "$what"
    [[ $mark == passed ]] ||
        tail -n 40 "$work/$name/build.log" "$work/$name/output" "$work/$name/steps" 2>/dev/null
}

holds() { configuration exhausted holds "$@"; }
# A guard taken out: something must go wrong.
breaks() { configuration error "goes wrong" "$@"; }
# What the library does not promise, and README.md says so.
known() { configuration error "not promised" "$@"; }

if ! have spin || ! have "${CC:-cc}"; then
    echo "skipped: the model: spin or a C compiler is not installed"
    echo "0 0 1" >"$tally"
    exit 0
fi
mkdir -p "$work"
on_exit nothing

# Nothing confirmed is lost or left behind, in whatever order flags change, without any quiet period; where no
# producer starts at new-publish, without the groups' names in the config as well.
holds members-restart "flags go up and down, members are killed" UNNAMED FREE CRASH_M
holds two-groups "flags go up and down, two groups" UNNAMED FREE G=2 M=1 N=1
holds two-producers "flags go up and down, two producers" UNNAMED FREE P=2 M=1 N=1
holds jumps "flags jump, members are killed" UNNAMED JUMP N=1 CRASH_M
holds jumps-two-groups "flags jump, two groups" UNNAMED JUMP G=2 M=1 N=1
holds walk-alone "one rung everywhere before the next, and nobody comes back to a side" QUIET NO_RESUBSCRIBE
holds producers-restart "one rung everywhere before the next, producers are killed" QUIET CRASH_P
holds producers-hasty "producers are killed, and start at new-publish before groups listen" QUIET CRASH_P HASTY
holds producers-free "flags go up and down, producers are killed" FREE CRASH_P
holds old-off "the old broker is switched off when every service is at new" QUIET HASTY OFF

# And the order of a key is kept as well.
holds order "one rung everywhere before the next" ORDER QUIET
holds order-positions "the same with brokers that tell what was there at a moment" ORDER QUIET POSITIONS
holds order-hasty "any mixture of neighbouring flags" ORDER QUIET POSITIONS HASTY
holds order-no-quiet "the same without any quiet period, as most below" ORDER POSITIONS HASTY
holds order-three "three messages" ORDER POSITIONS N=3
holds order-two-groups "two groups, turned round with messages on their way" ORDER POSITIONS EARLY HASTY G=2 M=1
holds order-four-members "two groups of two members" ORDER G=2
holds order-two-producers "two producers, turned round with messages on their way" ORDER POSITIONS EARLY P=2 M=1
holds order-turn-early "turned round with messages on their way" ORDER EARLY HASTY N=3
holds order-members-restart "the same, members are killed" ORDER POSITIONS EARLY HASTY CRASH_M
holds order-producers-restart "producers are killed" ORDER POSITIONS CRASH_P
holds order-restarts "producers and members are killed" ORDER CRASH_P CRASH_M
holds order-old-off "the old broker is switched off when every service is at new" ORDER POSITIONS QUIET HASTY OFF
holds order-overlap "directions overlap" ORDER POSITIONS FREE
holds order-overlap-three "directions overlap, three messages" ORDER FREE N=3 M=1
holds order-overlap-groups "directions overlap, two groups" ORDER FREE G=2 M=1
holds order-overlap-restarts "directions overlap, producers and members are killed" \
    ORDER POSITIONS FREE CRASH_P CRASH_M M=1
holds order-jumps "flags jump, members are killed" ORDER POSITIONS JUMP M=1 CRASH_M
holds order-mixture "two producers, and flags stay as they are at any moment" ORDER FREE P=2 M=1 N=1

breaks no-listen-guard "publishing moves to where a group does not listen" FREE UNNAMED NO_LISTEN_GUARD
breaks no-resubscribe "nobody looks at the side that was left" FREE NO_RESUBSCRIBE
breaks no-resubscribe-restart "the same, one rung everywhere before the next, when members are killed" \
    QUIET CRASH_M NO_RESUBSCRIBE
breaks no-drain-guard "a side is left with something there, and switched off" QUIET OFF NO_DRAIN_GUARD
breaks no-group-wide-drain "what other members work on is not counted" ORDER NO_GROUP_WIDE_DRAIN
breaks no-quiet "a side is left with something on its way there, and switched off" OFF
breaks no-route-check "a send goes where publishing was when it began" ORDER QUIET NO_ROUTE_CHECK
breaks no-call-off "a move of publishing is not called off when it is not wanted any more" ORDER FREE NO_CALL_OFF
breaks no-sender-fence "publishing moves before the last confirm" ORDER QUIET NO_SENDER_FENCE
breaks no-hold "what has come over to the new side is not held" ORDER QUIET NO_HOLD
breaks no-mark "what has come after the question is let go of too" ORDER QUIET POSITIONS P=2 M=1 NO_MARK
breaks no-member-asks "a member that starts at new takes what is new before what is left on old" \
    ORDER QUIET CRASH_M NO_MEMBER_ASKS
breaks no-turn-back "publishing goes back before what was sent is handled" ORDER QUIET NO_TURN_BACK
breaks no-turn-back-positions "the same with brokers that tell what was there at a moment" \
    ORDER QUIET POSITIONS NO_TURN_BACK
breaks no-second-look "the same, because it was asked before the last confirm" ORDER QUIET NO_SECOND_LOOK

known unnamed "groups are not named: a producer that starts at new-publish before they listen loses a message" \
    UNNAMED FREE CRASH_P
known one-producer "a producer that was killed and its successor, taken for one: out of order" \
    ORDER QUIET CRASH_P ONE_PRODUCER

echo "$passed $failed 0" >"$tally"
((failed == 0))
