# shellcheck shell=bash
# What passed, failed and was skipped, as lines of the file that `results` names, and their sum.
# Needs common.sh, and `logs`, the folder for what the commands print.
# shellcheck disable=SC2154  # root, logs and results are set by who sources it

# record PASSED FAILED SKIPPED NAME: one line of the sum at the end.
record() { echo "$*" >>"$results"; }

passed() {
    record 1 0 0 "$1"
    printf '   passed: %s\n' "$1"
}

failed() { # NAME [LOG]
    record 0 1 0 "$1"
    printf '   FAILED: %s\n' "$1"
    remember_failure "$@"
    if [[ -n ${2:-} ]]; then
        printf '   --- %s: first errors, and its end\n' "${2#"$root"/}"
        { grep -E -m 10 'error: |Error|FAILED|WARNING: ' "$2" && echo ...; tail -n 30 "$2"; } | sed 's/^/   | /'
    fi
}

# remember_failure NAME [LOG]: for the end of the run, where it is read first.
remember_failure() {
    {
        printf 'FAILED: %s\n' "$1"
        [[ -z ${2:-} ]] || excerpt "$2" | cut -c 1-300 | sed 's/^/   | /'
    } >>"$results.failed"
}

# excerpt LOG: what a log says of its failures, in 40 lines at most: the failed assertions of Catch2 with
# the names of their cases, or else the first errors and the end.
excerpt() {
    if grep -q ': FAILED:$' "$1"; then
        # The name stands between two rules of dashes.
        awk '/^(---+|===+|\.\.\.+|~~~+)$/ { wanted = 0; in_name = /^-/ && !in_name; if (in_name) name = ""; next }
             in_name { name = name (name == "" ? "" : " ") $0; next }
             / FAILED:$/ { wanted = 16; if (name != "") print name; name = "" }
             /^(skipped|note): / { wanted = 0 }
             wanted-- > 0 && /[^ ]/ { print }' "$1"
    else
        grep -E -m 6 -A 3 'error: |ERROR: |FAILED|failed: |WARNING: ' "$1" || true
        echo ...
        tail -n 10 "$1"
    fi | head -n 40
}

skipped() {
    record 0 0 1 "$1"
    printf '   skipped: %s\n' "$1"
}

# check NAME SECONDS COMMAND...: one thing that passes or fails by its exit status.
check() {
    local name=$1 limit=$2 log=$logs/${1//[^a-z0-9]/-}.log status=0
    shift 2
    run_limited "$limit" "$@" >"$log" 2>&1 || status=$?
    case $status in
        0) passed "$name" ;;
        124) failed "$name: not done after $limit seconds" "$log" ;;
        *) failed "$name" "$log" ;;
    esac
}

# begin_results: none so far.
begin_results() {
    : >"$results"
    : >"$results.failed"
}

# print_sum: what failed, and the sum as the last line. Fails where anything did, or nothing passed.
print_sum() {
    cat "$results.failed"
    awk '{ passed += $1; failed += $2; skipped += $3 }
         END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
               exit failed > 0 || passed == 0 }' "$results"
}
