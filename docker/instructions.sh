#!/usr/bin/env bash
# Counts the instructions that one no-op job costs the worker, without a broker.
set -euo pipefail
exec </dev/null # nothing here may wait for an answer
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

usage() {
    cat <<'TEXT'
usage: docker/instructions.sh [--write | --help]

Runs 1,000 and 3,000 no-op jobs through the worker's rooms under valgrind (callgrind), divides the
difference, and compares it with the figure in worker/benches/instructions.txt. Ends with 1 if it is
more than 10 % above that and was made by the same compiler. Times swing on a busy machine; this
number does not.

  --write    records the figure
  -h, --help this text
TEXT
}

main() {
    local write=''
    case ${1:-} in
        '') ;;
        --write) write=1 ;;
        -h | --help) usage; exit ;;
        *) die "unknown option '$1'" "see docker/instructions.sh --help" ;;
    esac
    if ! command -v valgrind >/dev/null; then
        say "skipped: valgrind is not installed (apt-get install valgrind)"
        exit
    fi
    local record=worker/benches/instructions.txt program few many now before percent compiler
    program=$(cargo bench -p forebay-worker --features testing --bench instructions --no-run --locked 2>&1 |
        sed -n 's/.*Executable .*(\(.*\))$/\1/p')
    [ -x "$program" ] || die "the benchmark was not built" \
        "cargo bench -p forebay-worker --features testing --bench instructions --no-run"
    few=$(count "$program" 1000)
    many=$(count "$program" 3000)
    now=$(((many - few) / 2000))
    compiler=$(rustc --version | cut -d ' ' -f 1,2)
    before=$(sed -n 's/^\([0-9]*\) instructions.*/\1/p' "$record" 2>/dev/null || true)
    if [ "$write" ]; then
        printf '%s instructions for one no-op job (docker/instructions.sh, %s, %s)\n' \
            "$now" "$compiler" "$(uname -m)" >"$record"
    fi
    if [ -z "$before" ]; then
        printf 'one no-op job: %s instructions; nothing to compare with\n' "$now"
        exit
    fi
    percent=$(((now - before) * 100 / before))
    printf 'one no-op job: %s instructions, recorded: %s, difference %s %%\n' "$now" "$before" "$percent"
    if ! grep -qF "$compiler" "$record"; then
        say "the record is another compiler's (this is $compiler): nothing is judged"
        exit
    fi
    [ "$write" ] || [ "$percent" -le 10 ] ||
        die "a job costs $percent % more instructions than recorded" \
            "find what was added, or record it: docker/instructions.sh --write"
}

# count PROGRAM JOBS: the instructions of a whole run.
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$1" "$2" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

main "$@"
