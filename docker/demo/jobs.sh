# The jobs of docker/demo.sh: what they work on, how they are published, and what should become of
# them. Sourced by it.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of demo.sh

MOST_FILES=20000

# Real files to work on: their list, and of those the ones that may be text.
find_files() {
    files=/usr/share/doc
    list_files >"$tmp/files"
    if [ "$(wc -l <"$tmp/files")" -lt 500 ]; then # as in many a container
        files=$PWD
        list_files >"$tmp/files"
    fi
    grep -Ev '\.(gz|bz2|xz|zst|zip|png|jpe?g|gif|ico|pdf|woff2?)$' "$tmp/files" >"$tmp/texts"
}

# The names go through lines and JSON as they are, so odd ones are left out.
list_files() {
    # find may well end with an error: a folder may be missing, or closed to us.
    { find "$files" \( -name .git -o -name target \) -prune -o -type f -print 2>/dev/null || true; } |
        LC_ALL=C awk -v most="$MOST_FILES" '!/[^ -~]/ && !/["\\]/ && listed++ < most' |
        while IFS= read -r file; do
            if [ -r "$file" ]; then printf '%s\n' "$file"; fi
        done
}

publish_too_early() {
    plan trouble coupon.send 10 10 expired "no worker came in time"
    plan trouble video.encode 1 1 unknown_kind "no function came"
    numbered coupon 10 >"$tmp/jobs/coupons.jsonl"
    command_line "forebay publish coupon.send --jsonl coupons.jsonl --expires 1s" 10
    publish coupon.send --jsonl "$tmp/jobs/coupons.jsonl" --expires 1s
    command_line "forebay publish video.encode '{\"video\": 1}' --queue trouble" 1
    echo '{"video": 1}' | publish video.encode --jsonl - --queue trouble
    sleep 1.2 # the coupons expire
}

publish_burst() {
    digests=${digests:-$(wc -l <"$tmp/files" | tr -d ' ')}
    { take "$digests" "$tmp/files"; echo /etc/passwd; echo "$files/no/such/file"; } >"$tmp/jobs/files.txt"
    take 300 "$tmp/texts" >"$tmp/jobs/texts.txt"
    numbered order 300 >"$tmp/jobs/orders.jsonl"
    numbered ticket 20 >"$tmp/jobs/tickets.jsonl"
    numbered mail 10 >"$tmp/jobs/mails.jsonl"
    numbered invoice 10 >"$tmp/jobs/invoices.jsonl"
    numbered chart 5 >"$tmp/jobs/charts.jsonl"
    plan files file.digest $((digests + 2)) 2 rejected "one outside, one missing"
    plan texts text.count 300 0 - ""
    plan trouble ticket.print 20 0 - "fails twice, then works"
    plan trouble mail.send 10 10 failed "three attempts of three"
    plan trouble invoice.check 10 10 rejected "exit code 65, no retry"
    plan trouble chart.draw 5 5 timeout "ran longer than it may"

    remark "files.txt lists files of $files, texts.txt those of them that are text"
    start_clock
    publish_beside file.digest --lines "$tmp/jobs/files.txt"
    publish_beside text.count --lines "$tmp/jobs/texts.txt"
    command_line "forebay publish file.digest --lines files.txt" $((digests + 2))
    command_line "forebay publish text.count --lines texts.txt" 300
    if [ "$receiver" ]; then
        plan hooks order.notify 300 3 rejected "404; 503 is retried"
        publish_beside order.notify --jsonl "$tmp/jobs/orders.jsonl"
        command_line "forebay publish order.notify --jsonl orders.jsonl" 300
    fi
    publish_beside ticket.print --jsonl "$tmp/jobs/tickets.jsonl"
    publish_beside mail.send --jsonl "$tmp/jobs/mails.jsonl"
    publish_beside invoice.check --jsonl "$tmp/jobs/invoices.jsonl"
    publish_beside chart.draw --jsonl "$tmp/jobs/charts.jsonl"
    with_count "and some that go wrong, each in its own way" 45
    printf '\n'
    if watch burst_is_over; then tell_rates; fi
}

# plan QUEUE KIND JOBS DEAD REASON REMARK: what is to be published, and how many of it should die.
plan() { printf '%s %s %s %s %s %s\n' "$@" >>"$tmp/plan"; }

# take N FILE: so many of its lines, from the beginning again if there are fewer.
take() { awk -v n="$1" '{ line[NR] = $0 } END { for (i = 0; i < n; i++) print line[i % NR + 1] }' "$2"; }

# numbered NAME N: {"NAME": 1} to {"NAME": N}, a line each.
numbered() { awk -v name="$1" -v n="$2" 'BEGIN { for (i = 1; i <= n; i++) printf "{\"%s\": %d}\n", name, i }'; }

# publish KIND ARGUMENTS FOR forebay publish...: ends when all is confirmed.
publish() {
    (forebay publish "$@" --output json) >"$(mktemp "$tmp/published/XXXXXX")" 2>>"$tmp/publish.log" ||
        remark "some jobs of $1 were not published: $(tail -n 1 "$tmp/publish.log")"
}

# publish_beside KIND ARGUMENTS...: the same, while other things go on.
publish_beside() {
    "$forebay" --config "$tmp/forebay.toml" publish "$@" --output json \
        >"$(mktemp "$tmp/published/XXXXXX")" 2>>"$tmp/publish.log" </dev/null &
    publishers="$publishers $!"
}

burst_is_over() { [ "$(left file.digest text.count order.notify)" -eq 0 ]; }
nothing_left() { [ "$(left)" -eq 0 ]; }

# left [KIND...]: how many of the planned jobs of these kinds, or of all, are neither done nor dead.
left() {
    awk -v kinds=" $* " '
        kinds != "  " && !index(kinds, " " (planned ? $2 : $1) " ") { next }
        planned { left += $3; next }
        $1 != "-" { left -= $2 + $3 }
        END { print left + 0 }' planned=1 "$tmp/plan" planned='' "$tmp/tally"
}

# Seconds since midnight UTC, for comparison with the times in the worker's log.
start_clock() {
    local now=${EPOCHREALTIME:-$(date +%s)}
    start=$(awk -v now="${now/,/.}" 'BEGIN { printf "%.3f", now % 86400 }')
    began=$SECONDS
}

tell_rates() {
    LC_ALL=C awk -v cores="$(getconf _NPROCESSORS_ONLN)" -f docker/demo/numbers.awk -f docker/demo/rates.awk "$tmp/tally"
}
