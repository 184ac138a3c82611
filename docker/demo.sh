#!/usr/bin/env bash
# Shows Forebay at work: a RabbitMQ, a worker, a burst of jobs, and what becomes of each of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh
# shellcheck source=docker/demo/broker.sh
. docker/demo/broker.sh
# shellcheck source=docker/demo/screen.sh
. docker/demo/screen.sh
# shellcheck source=docker/demo/stop.sh
. docker/demo/stop.sh

MOST_SECONDS=150 # from the first publish on
MOST_FILES=20000

usage() {
    cat <<'TEXT'
usage: docker/demo.sh [--keep] [--broker docker|local] [--jobs N]

  --keep      leave broker and worker running, to play with, and a stop.sh that ends them
  --broker    docker: a container; local: a private rabbitmq-server process
              (default: the broker in AMQP_URL, else docker if a daemon answers, else local)
  --jobs N    digest so many files (default: every file of /usr/share/doc, at most 20,000)
  -h, --help  this text

It builds Forebay, which takes some minutes the first time, and then runs for about a minute. It
works in a namespace of its own, so it gets along with whatever else is on a broker, and it removes
what it made. As root on Debian or Ubuntu it installs rabbitmq-server if there is no broker to use.

Exit code: 0 if every job fared as it should and none is missing, else 1.
TEXT
}

main() {
    local wanted=''
    while [ $# -gt 0 ]; do
        case $1 in
            --keep) keep=1 ;;
            --broker | --jobs)
                [ $# -ge 2 ] || die "$1 needs a value" "see docker/demo.sh --help"
                set -- "$1=$2" "${@:3}"
                continue
                ;;
            --broker=docker | --broker=local) wanted=${1#*=} ;;
            --jobs=*) jobs=${1#*=} ;;
            -h | --help) usage; exit ;;
            *) die "cannot make sense of '$1'" "see docker/demo.sh --help" ;;
        esac
        shift
    done
    case $jobs in
        0* | *[!0-9]* | ??????*) die "--jobs cannot be '$jobs'" "a number from 1 to 99999" ;;
    esac
    look_at_terminal
    make_folder

    title "Broker and programs"
    need_tools
    choose_broker "$wanted"
    prepare_broker "$wanted"
    start_broker
    line broker "$broker_is"
    find_files
    start_receiver
    write_manifest
    build
    wait_for_broker
    declared=1
    line namespace "$FOREBAY_NAMESPACE"

    title "Before there is a worker"
    publish_too_early
    start_worker

    title "A burst of jobs"
    publish_burst
    title "Killing the worker"
    kill_worker
    title "Waiting for those that are still to be retried"
    watch nothing_left || true

    summarize
    if [ "$keep" ]; then leave_running; else tell_of_keep; fi
    exit $wrong
}

make_folder() {
    suffix=$(od -An -N3 -tx1 /dev/urandom | tr -d ' \n')
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    tmp=$(mktemp -d "${TMPDIR:-/tmp}/forebay-demo.XXXXXX")
    mkdir "$tmp/jobs" "$tmp/published" "$tmp/results"
    export FOREBAY_NAMESPACE=demo-$suffix
    # Settings for the user's own work, not for this.
    management_url=${FOREBAY_MANAGEMENT_URL:-}
    unset FOREBAY_DECLARE FOREBAY_STRICT_TOPOLOGY FOREBAY_MANAGEMENT_URL RUST_LOG
}

need_tools() {
    command -v cargo >/dev/null || die "cargo is not on the PATH" "install Rust: https://rustup.rs"
    command -v cc >/dev/null || apt_install gcc libc6-dev
}

build() {
    local quiet=(--quiet)
    if [ "$terminal" ]; then quiet=(); fi
    line build "cargo build --release (the first time it takes some minutes)"
    cargo build --release --locked -p forebay-producer -p forebay-handlers ${quiet[@]+"${quiet[@]}"} \
        --message-format json-render-diagnostics >"$tmp/build.json" ||
        die "cargo could not build Forebay (its reason is above)" "the README says what it needs, under Install"
    forebay=$(built forebay)
    forebay_run=$(built forebay-run)
}

forebay() { "$forebay" --config "$tmp/forebay.toml" "$@"; }

# Where cargo put a program: its configuration may say elsewhere than target/release.
built() { sed -n 's#.*"executable":"\([^"]*/'"$1"'\)".*#\1#p' "$tmp/build.json"; }

# ── jobs ────────────────────────────────────────────────────────────────────────────────────────

# Real files to work on: their list, and of those the ones that look like text.
find_files() {
    files=/usr/share/doc
    list_files >"$tmp/files"
    if [ "$(wc -l <"$tmp/files")" -lt 100 ]; then # as in many a container
        files=$PWD
        list_files >"$tmp/files"
    fi
    grep -Ev '\.(gz|bz2|xz|zst|zip|png|jpe?g|gif|ico|pdf|woff2?)$' "$tmp/files" >"$tmp/texts"
}

# The names go through lines and JSON as they are, so odd ones are left out.
list_files() {
    find "$files" \( -name .git -o -name target \) -prune -o -type f -print 2>/dev/null |
        LC_ALL=C grep '^[ -~]*$' | grep -v '["\\]' | head -n $MOST_FILES |
        while IFS= read -r file; do
            if [ -r "$file" ]; then printf '%s\n' "$file"; fi
        done
}

# plan QUEUE KIND JOBS DIE REASON REMARK: what is going to be published, and what should become of it.
plan() {
    printf '%s %s %s %s %s %s\n' "$@" >>"$tmp/plan"
    queue_count=$(cut -d ' ' -f 1 "$tmp/plan" | sort -u | wc -l)
}

# take N FILE: so many lines, from the beginning again if there are fewer.
take() { awk -v n="$1" '{ line[NR] = $0 } END { for (i = 0; i < n; i++) print line[i % NR + 1] }' "$2"; }

# numbered NAME N: {"NAME": 1} to {"NAME": N}
numbered() { awk -v name="$1" -v n="$2" 'BEGIN { for (i = 1; i <= n; i++) printf "{\"%s\": %d}\n", name, i }'; }

# publish KIND ARGUMENTS FOR forebay publish...: ends when all is confirmed.
publish() {
    forebay publish "$@" --output json >"$(mktemp "$tmp/published/XXXXXX")" 2>>"$tmp/publish.log" ||
        remark "not all jobs of $1 were published: $(tail -n 1 "$tmp/publish.log")"
}

# publish_beside KIND ARGUMENTS...: the same, while other things go on.
publish_beside() {
    "$forebay" --config "$tmp/forebay.toml" publish "$@" --output json >"$(mktemp "$tmp/published/XXXXXX")" 2>>"$tmp/publish.log" </dev/null &
    publishers="$publishers $!"
}

publish_too_early() {
    plan trouble coupon.send 10 10 expired "published before there was a worker"
    plan trouble video.encode 1 1 unknown_kind "no worker has a function for it"
    numbered coupon 10 >"$tmp/jobs/coupons.jsonl"
    command_line "forebay publish coupon.send --jsonl coupons.jsonl --expires 1s" 10
    publish coupon.send --jsonl "$tmp/jobs/coupons.jsonl" --expires 1s
    command_line "forebay publish video.encode '{\"video\": 1}'" 1
    echo '{"video": 1}' | publish video.encode --jsonl -
    sleep 1 # the coupons expire
}

publish_burst() {
    local digests
    digests=$(wc -l <"$tmp/files" | tr -d ' ')
    digests=${jobs:-$digests}
    { take "$digests" "$tmp/files"; echo /etc/passwd; echo "$files/no/such/file"; } >"$tmp/jobs/files.txt"
    take 300 "$tmp/texts" >"$tmp/jobs/texts.txt"
    plan files file.digest $((digests + 2)) 2 rejected "one is outside its folder, one missing"
    plan texts text.count 300 0 - "200 of them with a worker that is killed"
    numbered ticket 20 >"$tmp/jobs/tickets.jsonl"
    numbered mail 10 >"$tmp/jobs/mails.jsonl"
    numbered invoice 10 >"$tmp/jobs/invoices.jsonl"
    numbered report 5 >"$tmp/jobs/reports.jsonl"
    plan trouble ticket.print 20 0 - "fails twice, then works"
    plan trouble mail.send 10 10 failed "three attempts of three"
    plan trouble invoice.check 10 10 rejected "exit code 65, not tried again"
    plan trouble report.render 5 5 timeout "takes longer than it may"

    start_clock
    publish_beside file.digest --lines "$tmp/jobs/files.txt"
    publish_beside text.count --lines "$tmp/jobs/texts.txt"
    command_line "find $files -type f | forebay publish file.digest --lines" $((digests + 2))
    command_line "forebay publish text.count --lines texts.txt" 300
    if [ "$receiver" ]; then
        plan hooks order.notify 300 3 rejected "answered with 404; 30 with 503 at first"
        numbered order 300 >"$tmp/jobs/orders.jsonl"
        publish_beside order.notify --jsonl "$tmp/jobs/orders.jsonl"
        command_line "forebay publish order.notify --jsonl orders.jsonl" 300
    fi
    publish_beside ticket.print --jsonl "$tmp/jobs/tickets.jsonl"
    publish_beside mail.send --jsonl "$tmp/jobs/mails.jsonl"
    publish_beside invoice.check --jsonl "$tmp/jobs/invoices.jsonl"
    publish_beside report.render --jsonl "$tmp/jobs/reports.jsonl"
    command_line "and so on: jobs that go wrong, each in its own way" 45
    printf '\n'
    if watch burst_is_over; then tell_rates; fi
}

burst_is_over() { [ "$(left file.digest text.count order.notify)" -eq 0 ]; }
nothing_left() { [ "$(left)" -eq 0 ]; }

# left [KIND...]: how many of the planned jobs of these kinds, or of all, are neither done nor dead.
left() {
    awk -v kinds=" $* " 'kinds != "  " && !index(kinds, " " (plan ? $2 : $1) " ") { next }
        plan { left += $3; next }
        $1 != "-" { left -= $2 + $3 }
        END { print left + 0 }' plan=1 "$tmp/plan" plan='' "$tmp/tally"
}

# Seconds since midnight UTC, as the log of the worker has them.
start_clock() {
    local now=${EPOCHREALTIME:-$(date +%s)}
    start=$(awk -v now="${now/,/.}" 'BEGIN { printf "%.3f", now % 86400 }')
    began=$SECONDS
}

tell_rates() {
    LC_ALL=C awk -f docker/demo/numbers.awk -f - "$tmp/tally" <<'AWK'
    $1 ~ /^(file\.digest|text\.count|order\.notify)$/ && $6 > 0 {
        jobs += $2
        if ($6 > seconds) seconds = $6
        each = each (each ? ", " : "") sprintf("%s %s/s", $1, commas($2 / $6))
    }
    END { if (seconds) printf "  %s jobs done in %.1f s: %s jobs/s (%s)\n", commas(jobs), seconds, commas(jobs / seconds), each }
AWK
    remark "from the first publish to the last job done; broker, worker and all they run on the same $(getconf _NPROCESSORS_ONLN) cores"
}

# ── the worker and what it works with ───────────────────────────────────────────────────────────

write_manifest() {
    local hooks=''
    cp docker/demo/count.sh docker/demo/trouble.sh "$tmp"
    [ "$receiver" ] || hooks='/^\[queues.hooks\]/,$d' # the last part of the file
    sed -e "s|@files@|$(printf '%s' "$files" | sed 's/[\|&"]/\\&/g')|" -e "s|@port@|$port|" -e "$hooks" \
        docker/demo/forebay.toml >"$tmp/forebay.toml"
}

start_receiver() {
    local deadline=$((SECONDS + 10))
    if ! python3 -c 'import http.server' 2>/dev/null; then
        remark "python3 is not here: without it there is no web server, and no order.notify jobs"
        return
    fi
    cp docker/demo/receiver.py "$tmp"
    set -m # in a process group of its own, so that Ctrl-C does not reach it before us
    nohup python3 "$tmp/receiver.py" "$tmp" </dev/null >"$tmp/receiver.log" 2>&1 &
    receiver=$!
    set +m
    until [ -f "$tmp/port" ]; do
        kill -0 "$receiver" 2>/dev/null && [ $SECONDS -lt $deadline ] ||
            die "the web server for order.notify does not start: $(tail -n 1 "$tmp/receiver.log")" "see docker/demo/receiver.py"
        sleep 0.1
    done
    port=$(<"$tmp/port")
}

start_worker() {
    local deadline=$((SECONDS + 30)) log
    workers=$((workers + 1))
    log=$tmp/worker-$workers.log
    set -m
    nohup "$forebay_run" --config "$tmp/forebay.toml" --log info,lapin=off,forebay_worker::telemetry=debug \
        </dev/null >"$tmp/worker.out" 2>"$log" &
    worker=$!
    set +m
    until [ "$(grep -c '"message":"consuming"' "$log")" -ge "$(grep -c '^\[queues' "$tmp/forebay.toml")" ]; do
        worker_lives
        [ $SECONDS -lt $deadline ] ||
            die "the worker does not consume after 30 s; the end of its log: $(tail -n 3 "$log")" "see what the broker logs"
        sleep 0.1
    done
    line worker "forebay-run, process $worker; log: $log"
}

worker_lives() {
    kill -0 "$worker" 2>/dev/null ||
        die "the worker has ended by itself; the end of its log: $(tail -n 5 "$tmp/worker-$workers.log")" \
            "please report it, with what ./docker/demo.sh --keep leaves in its folder"
}

kill_worker() {
    local running unsettled
    tail -n 200 "$tmp/texts" >"$tmp/more"
    take 200 "$tmp/more" >"$tmp/jobs/more.txt"
    plan texts text.count 200 0 - ""
    command_line "forebay publish text.count --lines more.txt" 200
    publish text.count --lines "$tmp/jobs/more.txt"
    until take_stock; [ "$(left text.count)" -le 150 ]; do
        [ $((SECONDS - began)) -lt $MOST_SECONDS ] || return 0
        worker_lives
        sleep 0.1
    done
    kill -USR1 "$worker" # it logs what is running
    sleep 0.2
    kill -KILL "$worker"
    { wait "$worker"; } 2>/dev/null || true
    take_stock
    running=$(grep -c '"message":"running"' "$tmp/worker-$workers.log" || true)
    unsettled=$(left text.count)
    line "kill -9" "process $worker, with $running jobs running and $unsettled of text.count unsettled"
    start_worker
}

# ── the end ─────────────────────────────────────────────────────────────────────────────────────

summarize() {
    local published done dead waiting again taken
    title "What became of the jobs"
    count_letters >"$tmp/letters"
    LC_ALL=C awk -f docker/demo/numbers.awk -f docker/demo/summary.awk \
        what=plan "$tmp/plan" what=tally "$tmp/tally" what=letters "$tmp/letters" || wrong=1

    title "Is anything lost?"
    published=$(cat "$tmp"/published/* | sum published)
    done=$(tallied - 2)
    again=$(tallied - 5)
    dead=$(forebay dead ls --limit 65535 --output json | sum total)
    waiting=$(forebay queues --output json | sum ready total unrouted)
    balance "published, each confirmed by the broker" "$published"
    balance "done, by job id in the worker's log" "$done"
    balance "dead letters on the broker" "$dead"
    balance "waiting or delayed on the broker" "$waiting"
    verdict "$(same "$published" $((done + dead + waiting)))" \
        "$(commas "$published") = $(commas "$done") + $(commas "$dead") + $(commas "$waiting"): every job is accounted for"
    done=$(tallied text.count 2)
    taken=$(find "$tmp/results" -name '*.json' | wc -l | tr -d ' ')
    verdict "$(same "$taken" "$done")" "text.count has left $taken results, one for each of its $done jobs done"
    if [ "$receiver" ]; then
        done=$(tallied order.notify 2)
        taken=$(sed -n 's/^200 //p' "$tmp/answers" | sort -u | wc -l | tr -d ' ')
        verdict "$(same "$taken" "$done")" "the web server has taken $taken orders, one for each of $done jobs done"
    fi
    if [ "$again" -gt 0 ]; then
        remark "$again jobs were done twice: the killed worker had not yet acked them (at least once)"
    fi
}

# tallied KIND FIELD
tallied() { awk -v kind="$1" -v field="$2" '$1 == kind { n = $field } END { print n + 0 }' "$tmp/tally"; }

# How many letters of the expected reason each kind has, counted by the broker's own queues.
count_letters() {
    local kind reason
    awk '$4 > 0 { print $2, $5 }' "$tmp/plan" | while read -r kind reason; do
        printf '%s %s\n' "$kind" \
            "$(forebay dead ls --kind "$kind" --reason "$reason" --limit 65535 --output json | sum matching)"
    done
}

# sum NAME...: of these numbers, wherever they are in JSON.
sum() {
    local names
    names=$(printf '|%s' "$@")
    { grep -oE "\"(${names#|})\":[0-9]+" || true; } | awk -F : '{ all += $2 } END { print all + 0 }'
}

same() { if [ "$1" -eq "$2" ]; then echo yes; else echo no; fi; }
balance() { printf '  %-42s %8s\n' "$1" "$(commas "$2")"; }

tell_of_keep() {
    title "Next"
    printf '  ./docker/demo.sh --keep   leaves it all running: look at the dead letters, redrive them,\n'
    printf '                            change docker/demo/forebay.toml and publish jobs of your own\n\n'
}

# What runs from now on is ended by a stop.sh in the demo's folder, by the same functions.
leave_running() {
    local name
    {
        printf '#!/usr/bin/env bash\n# Ends what docker/demo.sh --keep left running, and removes this folder.\n'
        for name in tmp publishers receiver worker broker container rabbitmq epmd epmd_port declared \
            management_url AMQP_URL FOREBAY_NAMESPACE; do
            printf '%s=%q\n' "$name" "${!name}"
        done
        printf 'cd %q\n. docker/lib.sh\n. docker/demo/stop.sh\nstop_everything\n' "$PWD"
    } >"$tmp/stop.sh"
    chmod 700 "$tmp/stop.sh"
    kept=1

    title "It is still running. To play with it, paste this:"
    printf '\n  cd %q\n' "$tmp"
    printf '  export PATH=%q:"$PATH" FOREBAY_NAMESPACE=%s\n' "${forebay%/*}" "$FOREBAY_NAMESPACE"
    if [ "$broker" != given ]; then
        printf '  export AMQP_URL=%s%s\n' "$AMQP_URL" "${management_url:+ FOREBAY_MANAGEMENT_URL=$management_url}"
    fi
    cat <<TEXT

  forebay queues --watch
  forebay dead ls
  forebay dead show $(forebay dead ls --kind mail.send --output json | first_id)
  forebay dead redrive --kind mail.send            # and they fail three times more
  forebay publish ticket.print '{"ticket": 99}' --delay 5s
  find $files -type f | forebay publish file.digest --lines
  tail -f worker-$workers.log                           # one line of JSON for each event
  kill -USR1 $worker                                 # the worker logs what it is running
TEXT
    if [ "$container" ]; then
        printf '\n  RabbitMQ has a page of its own: %s (guest, guest)\n' "$(without_password "$management_url")"
    fi
    printf '\n  It ends with: %s/stop.sh\n\n' "$tmp"
}

first_id() { sed -n 's/.*"letters":\[{[^]]*"id":"\([^"]*\)".*/\1/p'; }

finish() {
    local status=$?
    trap '' INT TERM HUP PIPE
    trap - EXIT
    set +e
    [ -z "${terminal:-}" ] || printf '\033[?25h'
    remove_policy
    [ "$kept" ] || stop_everything
    exit $status
}

jobs='' keep='' kept='' wrong=0 workers=0
tmp='' suffix='' forebay='' forebay_run='' files='' port='' start=0 began=0 queue_count=0
broker='' broker_is='' image='' policy='' declared='' management_url='' ports=()
publishers='' worker='' receiver='' container='' rabbitmq='' epmd='' epmd_port=''
main "$@"
