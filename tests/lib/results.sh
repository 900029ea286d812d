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
    if [[ -n ${2:-} ]]; then
        printf '   --- %s: first errors, and its end\n' "${2#"$root"/}"
        { grep -E -m 10 'error: |Error|FAILED|WARNING: ' "$2" && echo ...; tail -n 30 "$2"; } | sed 's/^/   | /'
    fi
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

print_sum() {
    awk '{ passed += $1; failed += $2; skipped += $3 }
         END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
               exit failed > 0 || passed == 0 }' "$results"
}
