# What docker/demo.sh says in the end: how each kind of job fared, and that none is missing.
# Sourced by it.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of demo.sh

show_jobs() {
    count_letters >"$tmp/letters"
    LC_ALL=C awk -f docker/demo/numbers.awk -f docker/demo/summary.awk \
        what=plan "$tmp/plan" what=tally "$tmp/tally" what=letters "$tmp/letters" || wrong=1
}

# How many dead letters of the expected reason each kind has on the broker.
count_letters() {
    local kind reason
    awk '$4 > 0 { print $2, $5 }' "$tmp/plan" | while read -r kind reason; do
        printf '%s %s\n' "$kind" \
            "$(forebay dead ls --kind "$kind" --reason "$reason" --limit 65535 --output json | sum matching)"
    done
}

# Everybody who has seen jobs is asked, and all must agree.
reconcile() {
    local published finished dead waiting again made
    published=$(cat "$tmp"/published/* | sum published)
    finished=$(tallied - 2)
    dead=$(forebay dead ls --limit 65535 --output json | sum total)
    waiting=$(forebay queues --output json | sum ready total unrouted)
    balance "published, each confirmed by the broker" "$published"
    balance "done, by job id in the worker's log" "$finished"
    balance "dead letters on the broker" "$dead"
    balance "waiting or delayed on the broker" "$waiting"
    if [ "$published" -eq $((finished + dead + waiting)) ]; then
        verdict yes "$(commas "$published") = $(commas "$finished") + $(commas "$dead") + $(commas "$waiting"), every job is accounted for"
    else
        verdict no "$(commas "$published") is not $(commas "$finished") + $(commas "$dead") + $(commas "$waiting")"
    fi
    [ -z "$report" ] || make_up_for_missed
    made=$(find "$tmp/results" -name '*.json' | wc -l | tr -d ' ')
    agree "text.count jobs done" "$(tallied text.count 2)" "results on the disk, one for each job id" "$made"
    if [ "$receiver" ]; then
        made=$(sed -n 's/^200 //p' "$tmp/answers" | sort -u | wc -l | tr -d ' ')
        agree "order.notify jobs done" "$(tallied order.notify 2)" "orders taken by the web server" "$made"
    fi
    again=$(tallied - 5)
    if [ "$again" -gt 0 ]; then
        remark "at least once: $again of them ran twice, the killed worker had not acked in time"
    fi
}

balance() { printf '  %-42s %7s\n' "$1" "$(commas "$2")"; }

# agree WHAT N WHAT N
agree() {
    if [ "$2" -eq "$4" ]; then verdict yes "$2 $1, $4 $3"; else verdict no "$2 $1, but $4 $3"; fi
}

# tallied KIND FIELD
tallied() { awk -v kind="$1" -v field="$2" '$1 == kind { n = $field } END { print n + 0 }' "$tmp/tally"; }

# sum NAME...: of these numbers, wherever they stand in JSON.
sum() {
    local names
    names=$(printf '|%s' "$@")
    { grep -oE "\"(${names#|})\":[0-9]+" || true; } | awk -F : '{ all += $2 } END { print all + 0 }'
}
