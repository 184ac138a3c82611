# What a person sees of docker/demo.sh: headings, lines, and how far it is, redrawn every second.
# Sourced by it.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of demo.sh

MOST_SECONDS=150 # from the first publish of the burst on

look_at_terminal() {
    terminal='' utf8='' bold='' green='' red='' dim='' plain='' tick=ok cross=NO
    case ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} in
        *[Uu][Tt][Ff]8* | *[Uu][Tt][Ff]-8*) utf8=1 tick=✓ cross=✗ ;;
    esac
    if [ ! -t 1 ] || [ "${TERM:-dumb}" = dumb ]; then return; fi
    # Redrawing goes wrong where lines are wrapped.
    if [ "$(tput cols 2>/dev/null || echo 80)" -ge 64 ]; then terminal=1; fi
    if [ "${NO_COLOR:-}" ]; then return; fi
    bold=$'\033[1m' green=$'\033[32m' red=$'\033[31m' dim=$'\033[2m' plain=$'\033[0m'
}

title() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
line() { printf '  %-11s %s\n' "$1" "$2"; }
remark() { printf '  %s%s%s\n' "$dim" "$1" "$plain"; }
commas() { printf '%s' "$1" | sed -e :a -e 's/\(.*[0-9]\)\([0-9]\{3\}\)/\1,\2/;ta'; }

# command_line COMMAND [JOBS]: what is being done, as a person would type it.
command_line() { with_count "$ $1" "${@:2}"; }

# with_count TEXT [JOBS]
with_count() {
    if [ $# -eq 2 ]; then
        printf '  %-65s %6s jobs\n' "$1" "$(commas "$2")"
    else
        printf '  %s\n' "$1"
    fi
}

# verdict YES|NO TEXT: with a tick or a cross. A cross makes the demo end with exit code 1.
verdict() {
    if [ "$1" = yes ]; then
        printf '  %s%s%s %s\n' "$green" "$tick" "$plain" "$2"
    else
        printf '  %s%s %s%s\n' "$red" "$cross" "$2" "$plain"
        wrong=1
    fi
}

# watch CONDITION...: shows how far it is, until the command CONDITION succeeds.
# Fails if the time is over before that.
watch() {
    local frame='' shown_at=-5 now
    while :; do
        take_stock
        now=$((SECONDS - began))
        if [ "$terminal" ]; then
            # Over the one before, which has as many lines.
            [ -z "$frame" ] || printf '\033[%sA' $(($(printf '%s\n' "$frame" | wc -l)))
            frame=$(draw table)
            printf '%s\n' "$frame" | sed $'s/$/\033[K/'
        fi
        if "$@"; then break; fi
        if [ -z "$terminal" ] && [ $now -ge $((shown_at + 5)) ]; then
            draw line
            shown_at=$now
        fi
        if is_late; then
            remark "$MOST_SECONDS s have passed; what is still under way is counted as such"
            return 1
        fi
        worker_lives
        sleep 1
    done
    [ "$terminal" ] || draw line
}

is_late() { [ $((SECONDS - began)) -ge $MOST_SECONDS ]; }

# take_stock: asks the worker's log what is done, and the broker what waits.
take_stock() {
    LC_ALL=C awk -v start="$start" -f docker/demo/tally.awk "$tmp"/worker-*.log >"$tmp/tally"
    (forebay queues --output json) >"$tmp/queues.new" 2>/dev/null && mv "$tmp/queues.new" "$tmp/queues"
}

draw() {
    LC_ALL=C awk -v as="$1" -v utf8="$utf8" -v seconds=$((SECONDS - began)) \
        -v queues="$(sed -n 's/^\[queues\.\(.*\)\]$/\1/p' "$tmp/forebay.toml" | tr '\n' ' ')" \
        -f docker/demo/numbers.awk -f docker/demo/screen.awk \
        what=plan "$tmp/plan" what=tally "$tmp/tally" what=queues "$tmp/queues"
}
