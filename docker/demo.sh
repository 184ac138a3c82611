#!/usr/bin/env bash
# Shows Forebay at work: a RabbitMQ, a worker, a gateway, a burst of jobs, and what becomes of each of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh
# shellcheck source=docker/demo/broker.sh
. docker/demo/broker.sh
# shellcheck source=docker/demo/jobs.sh
. docker/demo/jobs.sh
# shellcheck source=docker/demo/worker.sh
. docker/demo/worker.sh
# shellcheck source=docker/demo/gateway.sh
. docker/demo/gateway.sh
# shellcheck source=docker/demo/screen.sh
. docker/demo/screen.sh
# shellcheck source=docker/demo/summary.sh
. docker/demo/summary.sh
# shellcheck source=docker/demo/stop.sh
. docker/demo/stop.sh

usage() {
    cat <<'TEXT'
usage: docker/demo.sh [--keep] [--broker docker|local] [--jobs N]

  --keep      leave broker, worker and gateway running, to play with, with a page to open in a
              browser, and a stop.sh that ends them
  --broker    docker: a container; local: a private rabbitmq-server process
              (default: the broker in AMQP_URL, else docker if a daemon answers, else local)
  --jobs N    digest so many files (default: every file of /usr/share/doc, at most 20,000)
  -h, --help  this text

It builds Forebay, which takes some minutes the first time, and then runs for less than a minute. It
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
            --jobs=*) digests=${1#*=} ;;
            -h | --help) usage; exit ;;
            *) die "cannot make sense of '$1'" "see docker/demo.sh --help" ;;
        esac
        shift
    done
    case $digests in
        0* | *[!0-9]* | ??????*) die "--jobs cannot be '$digests'" "a number from 1 to 99999" ;;
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

    title "Jobs that come too early"
    publish_too_early
    start_worker
    start_gateway
    title "A burst of jobs"
    publish_burst
    title "Killing the worker"
    kill_worker
    title "Waiting for the last"
    remark "a deploy may yet bring video.encode: it is put off for 1, 5 and 25 s"
    watch nothing_left || give_back

    title "What became of the jobs"
    show_jobs
    title "Is anything lost?"
    reconcile
    if [ "$keep" ]; then leave_running; else tell_of_keep; fi
    return $wrong
}

make_folder() {
    suffix=$(od -An -N3 -tx1 /dev/urandom | tr -d ' \n')
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    tmp=$(mktemp -d "${TMPDIR:-/tmp}/forebay-demo.XXXXXX")
    mkdir "$tmp/jobs" "$tmp/published" "$tmp/results"
    : >"$tmp/queues"
    export FOREBAY_NAMESPACE=demo-$suffix
    # These are for the user's own work.
    unset FOREBAY_DECLARE FOREBAY_STRICT_TOPOLOGY FOREBAY_MANAGEMENT_URL RUST_LOG "${!FOREBAY_GATEWAY_@}"
}

need_tools() {
    command -v cargo >/dev/null || die "cargo is not on the PATH" "install Rust: https://rustup.rs"
    command -v cc >/dev/null || apt_install gcc libc6-dev
    command -v curl >/dev/null || apt_install curl
}

build() {
    local quiet=(--quiet)
    if [ -t 2 ]; then quiet=(); fi
    line build "cargo build --release (the first time it takes some minutes)"
    cargo build --release --locked -p forebay-producer -p forebay-handlers -p forebay-gateway ${quiet[@]+"${quiet[@]}"} \
        --message-format json-render-diagnostics >"$tmp/build.json" ||
        die "cargo could not build Forebay (its reason is above)" "the README says under Install what it needs"
    forebay=$(built forebay)
    forebay_run=$(built forebay-run)
    forebay_gateway=$(built forebay-gateway)
}

# Where cargo has put a program: its settings may say elsewhere than target/release.
built() { sed -n 's#.*"executable":"\([^"]*/'"$1"'\)".*#\1#p' "$tmp/build.json"; }

# Redirect it only in parentheses: if Ctrl-C comes meanwhile, what is said then would be redirected too.
forebay() { "$forebay" --config "$tmp/forebay.toml" "$@"; }

tell_of_keep() {
    title "Next"
    printf '  ./docker/demo.sh --keep     the same, and leaves it all running to play with\n'
    printf '  docker/demo/forebay.toml    what the worker went by\n\n'
}

# What runs from now on is ended by a stop.sh in the demo's folder, by the same functions.
leave_running() {
    local name letter
    {
        printf '#!/usr/bin/env bash\n# Ends what docker/demo.sh --keep has left running, and removes this folder.\n'
        for name in tmp publishers receiver worker gateway follower broker container starting rabbitmq epmd \
            epmd_port declared forebay AMQP_URL FOREBAY_NAMESPACE; do
            printf 'export %s=%q\n' "$name" "${!name}"
        done
        printf 'cd %q\n. docker/lib.sh\n. docker/demo/stop.sh\nstop_everything\n' "$PWD"
    } >"$tmp/stop.sh"
    chmod 700 "$tmp/stop.sh"
    letter=$(forebay dead ls --kind mail.send | awk 'NR == 2 { print $1 }')
    kept=1

    title "It is all still running. Paste this to play with it:"
    printf "\n  cd %q\n  export PATH=%q:\"\$PATH\" FOREBAY_NAMESPACE=%s\n" "$tmp" "${forebay%/*}" "$FOREBAY_NAMESPACE"
    if [ "$broker" != given ]; then
        printf '  export AMQP_URL=%s\n' "$AMQP_URL"
    fi
    if [ "$container" ]; then
        printf '  export FOREBAY_MANAGEMENT_URL=%s\n' "$management_url"
    fi
    cat <<TEXT

  forebay queues --watch
  forebay dead ls
  forebay dead show $letter
  forebay dead redrive --kind mail.send        # and they fail again
  forebay publish ticket.print '{"ticket": 99}' --delay 5s
  find $files -type f | forebay publish file.digest --lines
  kill -USR1 $worker; tail worker-$workers.log        # what it is running just now

A page to publish jobs and see what becomes of them, also while its network is away:
  $door/
The same from here:
  forebay publish report.render '{}' --follow
  curl -N '$door/events?kind=report.render' &
  curl $door/jobs -d '{"kind": "report.render", "payload": {"id": 7}}'

It ends with:  $tmp/stop.sh

TEXT
}

finish() {
    local status=$?
    trap '' INT TERM HUP PIPE
    trap - EXIT
    set +e
    remove_policy
    [ "$kept" ] || stop_everything
    exit "$status"
}

digests='' keep='' kept='' wrong=0
tmp='' suffix='' forebay='' forebay_run='' forebay_gateway=''
broker='' broker_is='' image='' policy='' declared='' management_url=''
publishers='' worker='' workers=0 gateway='' door='' report='' follower='' receiver='' container='' starting='' rabbitmq='' epmd='' epmd_port=''
main "$@"
