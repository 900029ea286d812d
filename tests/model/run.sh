#!/usr/bin/env bash
# Checks the model of the migration protocol, migration.pml, with spin: what is promised holds in every
# reachable state of each configuration, and with a guard taken out it does not. Prints a line for each
# configuration, leaves the steps to what has gone wrong in build/model/NAME/steps, and writes
# "PASSED FAILED SKIPPED" into the file that MQ_TEST_TALLY names.
#
#   tests/model/run.sh           every configuration that a change has to pass
#   tests/model/run.sh --long    the longer ones as well, and those that others include
#   tests/model/run.sh NAME...   those only
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=tests/lib/common.sh
source "$root/tests/lib/common.sh"

readonly work=$root/build/model
readonly tally=${MQ_TEST_TALLY:-/dev/null}
readonly kSeconds=600     # for one configuration; the longest takes some 10 on a free core, or 20 with --long
readonly kMegabytes=1200  # the largest takes some 800
readonly kAtOnce=2
names=()
declare -A running=() # configurations that are under way, by their shells
long=0
if [[ ${1:-} == --long ]]; then
    long=1
    shift
fi
only=("$@")

nothing() { :; }

# explore EXPECTED NAME MACRO...: breadth first, so that the steps to an error are the fewest; with LIVENESS
# depth first, for a way round that can go on for ever though every process gets its turn. Sets `states`, `depth`,
# `seconds`, and `outcome`: exhausted, error, or what stood in the way of either.
explore() {
    local dir=$work/$2 begin=$SECONDS out
    # An error is found soon: there the compiler is what takes time.
    local how=(-O1 -DBFS -DSAFETY) run=(-m100000)
    [[ $1 == error ]] && how[0]=-O0
    shift 2
    if [[ " $* " == *" LIVENESS "* ]]; then
        how=(-O1 -DNFAIR=5 -DNOREDUCE)
        run=(-a -f -m1000000)
    fi
    out=$dir/output
    states=- depth=- outcome="no verifier"
    rm -rf "$dir"
    mkdir -p "$dir"
    # The file is copied because spin takes the name of its traces from it.
    cp "$here/migration.pml" "$dir/" && cd "$dir" || return
    if run_limited 120 spin "${@/#/-D}" -a migration.pml >build.log 2>&1 &&
        run_limited 300 "${CC:-cc}" "${how[@]}" -w -DCOLLAPSE -DMEMLIM=$kMegabytes -DVECTORSZ=512 \
            -o pan pan.c >>build.log 2>&1; then
        run_limited "$kSeconds" ./pan "${run[@]}" >"$out" 2>&1 || true
        states=$(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$out")
        depth=$(sed -n 's/.*depth reached \([0-9]*\),.*/\1/p' "$out")
        if grep -q 'errors: [1-9]' "$out"; then
            outcome=error
            run_limited 120 ./pan -r 2>/dev/null | grep -E '^(producer|member|side|the|no) ' >steps || true
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

# check EXPECTED VERDICT NAME WHAT MACRO...: a line for one configuration, and its outcome for the count.
check() {
    local expected=$1 verdict=$2 name=$3 what=$4 mark=passed report
    shift 4
    explore "$expected" "$name" "$@"
    [[ $outcome == "$expected" ]] || mark=FAILED verdict=$outcome
    report=$(printf '%s: %-24s %8s states, depth %4s, %3ds, %s: %s' \
        "$mark" "$name" "$states" "$depth" "$seconds" "$verdict" "$what")
    [[ $mark == passed ]] ||
        report+=$'\n'$(tail -n 40 "$work/$name/build.log" "$work/$name/output" "$work/$name/steps" 2>/dev/null)
    # At once, so that the lines of two do not mix.
    echo "$report"
    echo "$mark" >"$work/$name.mark"
}

# configuration EXPECTED VERDICT NAME WHAT MACRO...: two at a time, as they come.
configuration() {
    local name=$3
    if ((${#only[@]} > 0)) && [[ " ${only[*]} " != *" $name "* ]]; then return; fi
    make_room "$kAtOnce"
    names+=("$name")
    rm -f "$work/$name.mark"
    in_background check "$@"
    running[$started]=$name
    echo "${running[*]}" >"$tally.running"
}

# make_room MOST: waits until fewer than so many are under way.
make_room() {
    local pid
    while ((${#running[@]} >= $1)); do
        wait -n "${!running[@]}" || true
        for pid in "${!running[@]}"; do
            kill -0 "$pid" 2>/dev/null && continue
            join "$pid" || true
            unset "running[$pid]"
        done
    done
}

# Only with --long, or by name.
at_length() { if ((long || ${#only[@]} > 0)); then "$@"; fi; }
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
holds old-off-silent "the same, and it does not answer at times" QUIET HASTY OFF SILENT
holds brokers-restart "brokers, producers and members are killed, confirms are lost" \
    QUIET RESTARTS LOST_CONFIRMS CRASH_P CRASH_M
holds one-unnamed "one of two groups is not named, one rung everywhere before the next" QUIET CRASH_M G=2 M=1 NAMED=1

# And the order of a key is kept as well.
at_length holds order "one rung everywhere before the next" ORDER QUIET
at_length holds order-positions "the same with brokers that tell what was there at a moment" ORDER QUIET POSITIONS
at_length holds order-hasty "any mixture of neighbouring flags" ORDER QUIET POSITIONS HASTY
at_length holds order-no-quiet "the same without any quiet period, as most below" ORDER POSITIONS HASTY
holds order-three "three messages" ORDER POSITIONS N=3
holds order-two-groups "two groups, turned round with messages on their way" ORDER POSITIONS EARLY HASTY G=2 M=1
at_length holds order-four-members "two groups of two members" ORDER G=2
holds order-two-producers "two producers, turned round with messages on their way" ORDER POSITIONS EARLY P=2 M=1
holds order-turn-early "turned round with messages on their way" ORDER EARLY HASTY N=3
holds order-members-restart "the same, members are killed" ORDER POSITIONS EARLY HASTY CRASH_M
holds order-producers-restart "producers are killed" ORDER POSITIONS CRASH_P
holds order-restarts "producers and members are killed" ORDER CRASH_P CRASH_M
holds order-brokers-restart "brokers are killed, confirms are lost" ORDER POSITIONS RESTARTS LOST_CONFIRMS
holds order-old-off "the old broker is switched off when every service is at new" ORDER POSITIONS QUIET HASTY OFF
holds order-overlap "directions overlap" ORDER POSITIONS FREE
holds order-overlap-three "directions overlap, three messages" ORDER FREE N=3 M=1
holds order-overlap-groups "directions overlap, two groups" ORDER FREE G=2 M=1
holds order-overlap-restarts "directions overlap, producers and members are killed" \
    ORDER POSITIONS FREE CRASH_P CRASH_M M=1
holds order-jumps "flags jump, members are killed" ORDER POSITIONS JUMP M=1 CRASH_M
holds order-mixture "two producers, and flags stay as they are at any moment" ORDER FREE P=2 M=1 N=1

# Groups that are partly named, and a config that is read again.
holds order-own-unnamed "one of two groups is not named, and the producer's client subscribes for it" \
    ORDER POSITIONS EARLY G=2 M=1 NAMED=1 ASKED=2
holds order-up-unnamed "one of two groups is not named, and publishing does not go back" \
    ORDER POSITIONS UP G=2 M=1 NAMED=1
holds order-reload "a config that names one more group is read in between" ORDER RELOAD EARLY G=2 M=1 NAMED=1 ASKED=2

holds order-unvouched "one of two groups is not named, and holds what comes back" \
    ORDER QUIET G=2 M=1 NAMED=1 UNVOUCHED

# Time-outs: what is let go of without an answer or a proof may overtake what it was to wait for, and nothing else.
holds order-silent "the old broker does not answer at times, members are killed" ORDER FREE M=1 SILENT CRASH_M
holds order-silent-jumps "the same with positions, flags jump" ORDER POSITIONS JUMP M=1 SILENT CRASH_M
at_length holds order-silent-mixture "the same, two members, any mixture of neighbouring flags" \
    ORDER POSITIONS HASTY SILENT
at_length holds order-silent-producers "the same, two producers" ORDER HASTY UP P=2 M=1 FROM=1 SILENT
holds order-unproved "publishing goes back without proof" ORDER UNPROVED
holds order-unproved-overlap "the same, directions overlap, three messages" ORDER FREE N=3 M=1 UNPROVED

# Handlers that send to their own topic, or to one that another one moves.
holds handlers-send "a handler sends to its own topic, members are killed" ORDER POSITIONS N=3 HANDLER_SENDS CRASH_M
holds handlers-send-elsewhere "a handler of another topic sends" ORDER POSITIONS N=3 M=1 HANDLER_SENDS OTHER_TOPIC

# A message whose handler never succeeds, or takes very long: other keys pass, where it is in the member's own hands.
# Two producers at dual-subscribe are two keys here.
keys=(ORDER KEYS UP P=2 FROM=1 MEMBERS_FROM=2 TO=2)
holds keys "what is left is in one's own hands, and other keys pass" "${keys[@]}"
holds keys-positions "the same with brokers that tell what was there at a moment" "${keys[@]}" M=1 POSITIONS
holds keys-restart "the same, brokers and members are killed" "${keys[@]}" M=1 RESTARTS CRASH_M
holds keys-poison "a message is never handled, and those of other keys are" "${keys[@]}" M=1 POISON=2
at_length holds keys-positions-two "two members, positions, members are killed" "${keys[@]}" POSITIONS CRASH_M

# A broker that tells what is ready and what is handed out, one after the other.
lists=(ORDER POSITIONS UP FROM=1 MEMBERS_FROM=2 TO=2)
holds lists "what is ready is asked for first, and nothing is given back" "${lists[@]}" LISTS=2 RETURNS=0
holds lists-twice "both are asked for twice, what is ready first, and something is given back" \
    "${lists[@]}" LISTS=4 RETURNS=1

# The end comes: flags change no more, and nothing waits or goes round for ever.
holds progress "in order" LIVENESS ORDER
holds progress-positions "the same with positions, turned round with messages on their way" \
    LIVENESS ORDER POSITIONS EARLY M=1
holds progress-trouble "brokers are killed and silent, confirms are lost, services are killed" \
    LIVENESS QUIET SILENT RESTARTS LOST_CONFIRMS CRASH_P CRASH_M
holds progress-order-trouble "the same in order, brokers alone" LIVENESS ORDER SILENT RESTARTS LOST_CONFIRMS M=1
holds progress-unproved "publishing goes back without proof" LIVENESS ORDER UNPROVED M=1
holds progress-handlers-send "a handler sends to its own topic" LIVENESS ORDER POSITIONS HANDLER_SENDS M=1
holds progress-poison "a message is never handled, those of other keys are" LIVENESS "${keys[@]}" M=1 POISON=2
holds progress-poison-positions "the same with brokers that tell what was there at a moment" \
    LIVENESS "${keys[@]}" M=1 POISON=2 POSITIONS
at_length holds progress-keys "what is left is in one's own hands" LIVENESS "${keys[@]}" M=1
at_length holds progress-unvouched "one of two groups is not named, and holds what comes back" \
    LIVENESS ORDER G=2 M=1 NAMED=1 UNVOUCHED
holds progress-restless "flags go up and down for ever, and what is confirmed is handled" \
    LIVENESS RESTLESS ORDER POSITIONS FREE M=1

breaks no-listen-guard "publishing moves to where a group does not listen" FREE UNNAMED NO_LISTEN_GUARD
breaks no-resubscribe "nobody looks at the side that was left" FREE NO_RESUBSCRIBE
breaks no-resubscribe-restart "the same, one rung everywhere before the next, when members are killed" \
    QUIET CRASH_M NO_RESUBSCRIBE
breaks no-drain-guard "a side is left with something there, and switched off" QUIET OFF NO_DRAIN_GUARD
breaks unknown-is-drained "a broker that does not answer is taken for drained, left, and switched off" \
    QUIET OFF SILENT UNKNOWN_IS_DRAINED
breaks no-group-wide-drain "what other members work on is not counted" ORDER NO_GROUP_WIDE_DRAIN
breaks no-quiet "a side is left with something on its way there, and switched off" OFF
breaks no-route-check "a send goes where publishing was when it began" ORDER QUIET NO_ROUTE_CHECK
breaks no-route-wait "a config is read again, and new sends do not wait for those before" ORDER RELOAD M=1 NO_ROUTE_WAIT
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
breaks keeps-asked "who has opened a fence without an answer once does not wait for one again" \
    ORDER HASTY UP P=2 M=1 FROM=1 MEMBERS_FROM=2 SILENT KEEPS_ASKED
breaks no-old-fence "what has gone back without proof is not held" ORDER UNPROVED M=1 NO_OLD_FENCE
breaks no-patience "a fence on the old side and one on the new side wait for each other" ORDER UNPROVED M=1 NO_PATIENCE
breaks no-unvouched "publishing goes back before a group that is not named has handled what was sent" \
    ORDER QUIET G=2 M=1 NAMED=1
breaks no-last-look "what a handler has sent since it was asked is not seen" \
    ORDER N=3 M=1 HANDLER_SENDS OTHER_TOPIC NO_LAST_LOOK
breaks no-ask-again "the same, because it is not asked again" ORDER POSITIONS N=3 M=1 HANDLER_SENDS NO_ASK_AGAIN
breaks no-keys "a message is never handled, and a fence waits for it with all keys" \
    ORDER UP P=2 M=1 FROM=1 MEMBERS_FROM=2 TO=2 POISON=2
breaks no-all-in-hands "keys pass that another member has something older of" "${keys[@]}" NO_ALL_IN_HANDS
breaks only-before "what one had before the question is taken for what was counted" "${keys[@]}" ONLY_BEFORE
breaks only-after "what one has after the question is taken for what was counted" "${keys[@]}" ONLY_AFTER
breaks all-keys "what is in one's own hands is not waited for, and its broker gives it to another one" \
    "${keys[@]}" M=1 RESTARTS ALL_KEYS
breaks no-raise "the same, because a key goes whose message was given back" "${keys[@]}" M=1 RESTARTS NO_RAISE
breaks delivered-first "a message is handed out between the two questions" \
    "${lists[@]}" LISTS=2 RETURNS=0 DELIVERED_FIRST
breaks delivered-first-twice "the same, both asked for twice, and something is given back" \
    "${lists[@]}" LISTS=4 RETURNS=1 DELIVERED_FIRST
breaks gives-up-sooner "sends are held and let go of again and again, and nobody has asked in between" \
    LIVENESS ORDER POSITIONS M=1 GIVES_UP_SOONER
breaks no-pass "a handler sends to its own topic, waits until it moves, and is waited for" \
    LIVENESS ORDER HANDLER_SENDS M=1 NO_PASS
breaks no-resubscribe-restless "nobody looks at the side that was left, while flags change for ever" \
    LIVENESS RESTLESS ORDER FREE M=1 NO_RESUBSCRIBE

known unnamed "groups are not named: a producer that starts at new-publish before they listen loses a message" \
    UNNAMED FREE CRASH_P
known one-unnamed-hasty "the same for one of two groups, where publishing moves before it listens" \
    FREE G=2 M=1 N=1 NAMED=1
known one-producer "a producer that was killed and its successor, taken for one: out of order" \
    ORDER QUIET CRASH_P ONE_PRODUCER
known newer "what is held on the side where a producer went last is taken for newer, also what is from before" \
    ORDER UNPROVED NEWER M=1 FREE N=3
known late-send "a send has failed with its outcome unknown, and arrives behind the next one" ORDER QUIET M=1 TIMES_OUT
known poison-elsewhere "a message is never handled by another member: a fence waits for it with all keys" \
    "${keys[@]}" POISON=2
known lists-in-step "a message is given back and handed out again in step with each question, twice" \
    "${lists[@]}" LISTS=4 RETURNS=2

make_room 1
passed=0
for name in "${names[@]}"; do
    if [[ $(cat "$work/$name.mark" 2>/dev/null) == passed ]]; then passed=$((passed + 1)); fi
done
failed=$((${#names[@]} - passed))
echo "$passed $failed 0" >"$tally"
((failed == 0))
