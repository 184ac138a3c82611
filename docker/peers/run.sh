#!/usr/bin/env bash
# Measures Forebay beside other job systems: the same jobs, in interleaved rounds, on this machine.
set -euo pipefail
exec </dev/null # nothing here may wait for an answer
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

known=(forebay forebay-quorum lapin apalis celery-solo celery-threads celery-prefork dramatiq taskiq sidekiq bullmq)

usage() {
    cat <<'TEXT'
usage: docker/peers/run.sh [--rounds N] [--jobs N] [--only NAME...] [--write FILE] [--once]
       docker/peers/run.sh --render RESULTS [--write FILE]

  --rounds N      how often each system publishes and drains (default: 5; at least 3 for an interval)
  --jobs N        jobs a round for the fastest (default: 50000); Sidekiq and BullMQ get a fifth, the
                  Python systems a tenth, so that each drains for some seconds
  --only NAME...  these beside Forebay, which is always measured: lapin apalis celery celery-solo
                  celery-threads celery-prefork dramatiq taskiq sidekiq bullmq forebay-quorum
  --write FILE    put the result between the two marker lines of FILE, and a plot beside it:
                  docs/benchmarks-peers.md has such lines
  --once          one round of few jobs: does all of it work? Its rates mean little
  --render FILE   measure nothing: show the results of an earlier run, and --write them
  -h, --help      this text

  docker/peers/run.sh                                      everything; about 15 minutes after the first build
  docker/peers/run.sh --only celery dramatiq --rounds 15   a comparison of some, with narrower intervals
  docker/peers/run.sh --write docs/benchmarks-peers.md     the figures in the documentation
  docker/peers/run.sh --once                               a minute or two

It starts a RabbitMQ in a container and a Redis of its own, and ends both. As root on Debian or Ubuntu it
installs Docker, redis-server and ruby-sidekiq if they are missing; Python's, Node's and Rust's packages
go into target/peers and docker/peers/node/node_modules, by pinned versions. What cannot be installed is
left out, and the result says so. Do nothing else on the machine meanwhile.

Exit code: 0 if every system ran every job, else 1.
TEXT
}

main() {
    while [ $# -gt 0 ]; do
        case $1 in
            --rounds | --jobs | --write | --render)
                [ $# -ge 2 ] || die "$1 needs a value" "see docker/peers/run.sh --help"
                set -- "$1=$2" "${@:3}"
                continue
                ;;
            --rounds=*) rounds=${1#*=} ;;
            --jobs=*) jobs=${1#*=} ;;
            --write=*) write=$(cd "$caller" && realpath -m -- "${1#*=}") ;;
            --render=*) render=$(cd "$caller" && realpath -m -- "${1#*=}") ;;
            --once) once=--once ;;
            --only)
                [ $# -ge 2 ] || die "--only needs names" "see docker/peers/run.sh --help"
                while [ $# -ge 2 ] && [[ $2 != -* ]]; do
                    only+=("$2")
                    shift
                done
                ;;
            -h | --help) usage; exit ;;
            *) die "cannot make sense of '$1'" "see docker/peers/run.sh --help" ;;
        esac
        shift
    done
    number --rounds "$rounds" 1 100
    number --jobs "$jobs" 1000 1000000
    [ -z "$write" ] || grep -qsF "<!-- measured by docker/peers/run.sh -->" "$write" ||
        die "'$write' has no line '<!-- measured by docker/peers/run.sh -->'" \
            "put it and '<!-- end of docker/peers/run.sh -->' where the figures shall stand"
    [ -z "$once" ] || [ -z "$write" ] || die "--once measures too little to --write it" "leave one of them out"
    need_python
    if [ "$render" ]; then
        exec python3 docker/peers/measure.py --render "$render" ${write:+--write "$write"}
    fi
    choose
    home=$(realpath -m "${CARGO_TARGET_DIR:-target}")/peers
    mkdir -p "$home"
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP

    install
    start_rabbitmq
    if wants sidekiq || wants bullmq; then start_redis; fi
    measure
}

# number FLAG VALUE LEAST MOST
number() {
    case $2 in
        '' | 0* | *[!0-9]* | ????????*) ;;
        *) [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ] || return 0 ;;
    esac
    die "$1 cannot be '$2'" "a number from $3 to $4"
}

# Sets `systems` to the names of what was asked for.
choose() {
    local name word words found
    [ ${#only[@]} -gt 0 ] || only=("${known[@]}")
    IFS=', ' read -r -a words <<<"${only[*]}"
    systems=(forebay)
    for word in "${words[@]}"; do
        found=''
        for name in "${known[@]}"; do
            if [ "$word" = "$name" ] || [ "$word" = "${name%%-*}" ]; then
                found=1
                wants "$name" || systems+=("$name")
            fi
        done
        [ "$found" ] || die "there is no system '$word'" "one of: ${known[*]}, or celery for its three"
    done
}

wants() { case " ${systems[*]} " in *" $1 "*) ;; *) return 1 ;; esac }

# leave_out REASON NAME...
leave_out() {
    local name kept=() reason=$1
    shift
    for name in "${systems[@]}"; do
        case " $* " in
            *" $name "*) left_out+=(--left-out "$name=$reason") && say "left out: $name: $reason" ;;
            *) kept+=("$name") ;;
        esac
    done
    systems=("${kept[@]}")
}

need_python() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "there is no python3 of version 3.11 or newer on the PATH" "install Python"
}

install() {
    command -v cargo >/dev/null || die "cargo is not on the PATH" "install Rust: https://rustup.rs"
    command -v cc >/dev/null || apt_install gcc libc6-dev
    cargo_build --bin forebay --bin lapin || die "cargo could not build Forebay's worker (its reason is above)" \
        "the README says under Install what it needs"
    if wants apalis; then
        cargo_build --features apalis --bin apalis || leave_out "cargo could not build it" apalis
    fi
    local python=(celery-solo celery-threads celery-prefork dramatiq taskiq)
    if wants_one "${python[@]}"; then
        (install_python) || leave_out "its Python packages could not be installed" "${python[@]}"
    fi
    if wants bullmq; then
        (install_node) || leave_out "its Node packages could not be installed" bullmq
    fi
    if wants sidekiq && ! command -v sidekiq >/dev/null; then
        (apt_install ruby-sidekiq) || leave_out "it could not be installed" sidekiq
    fi
    if { wants sidekiq || wants bullmq; } && ! command -v redis-server >/dev/null; then
        (apt_install redis-server) || leave_out "redis-server could not be installed" sidekiq bullmq
    fi
}

wants_one() {
    local name
    for name in "$@"; do
        if wants "$name"; then return; fi
    done
    return 1
}

# Not --locked: a crate that is new to Forebay is not in this lock file until somebody builds here.
cargo_build() {
    say "building for release: ${*: -1} (the first time it takes some minutes)"
    cargo build --quiet --release --manifest-path docker/peers/rust/Cargo.toml --target-dir "$home/cargo" "$@"
}

install_python() {
    local wanted=docker/peers/python/requirements.txt
    cmp -s $wanted "$home/venv/requirements.txt" && return
    say "installing Python packages into $home/venv"
    python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv
    rm -rf "$home/venv"
    python3 -m venv "$home/venv" &&
        "$home/venv/bin/pip" --quiet --disable-pip-version-check install --requirement $wanted &&
        cp $wanted "$home/venv/requirements.txt"
}

# What package-lock.json names, by its hashes. Not `npm ci`: it refuses a lock without the optional
# packages of other platforms.
install_node() {
    local folder=docker/peers/node
    command -v npm >/dev/null || apt_install nodejs npm
    [ $folder/node_modules/.package-lock.json -nt $folder/package-lock.json ] ||
        npm install --prefix $folder --no-save --ignore-scripts --no-audit --no-fund --silent
}

start_rabbitmq() {
    local image deadline
    image=${FOREBAY_RABBITMQ_IMAGE:-$(<producer/src/rabbitmq-image)}
    docker/rabbitmq/obtain.sh "$image"
    # The flags: waiting schedulers sleep instead of spinning on the cores that the workers need.
    container=$(docker run --detach --label forebay.peers \
        --env 'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+sbwt none +sbwtdcpu none +sbwtdio none' \
        --publish 127.0.0.1::5672 --publish 127.0.0.1::15672 "$image") ||
        die "docker could not start $image (its reason is above)" "see: docker run --rm $image"
    amqp=amqp://guest:guest@$(published 5672)/%2f
    api=http://$(published 15672)
    deadline=$((SECONDS + 90))
    until python3 -c "import urllib.request as u; u.urlopen('$api', timeout=2)" 2>/dev/null; do
        if [ $SECONDS -ge $deadline ] || [ "$(docker inspect --format '{{.State.Running}}' "$container")" != true ]; then
            docker logs --tail 20 "$container" >&2 || true
            die "RabbitMQ does not answer (its last words are above)" "see whether the machine has memory to spare"
        fi
        sleep 0.5
    done
}

published() { docker port "$container" "$1/tcp" | sed -n '1p'; }

# What Sidekiq and BullMQ ask for in production: a log of every write, on disk within a second.
start_redis() {
    local deadline=$((SECONDS + 20))
    folder=$(mktemp -d "${TMPDIR:-/tmp}/forebay-peers.XXXXXX")
    redis_port=$((20000 + RANDOM % 12000))
    while (: <"/dev/tcp/127.0.0.1/$redis_port") 2>/dev/null; do redis_port=$((redis_port + 1)); done
    redis-server --bind 127.0.0.1 --port "$redis_port" --dir "$folder" --save '' \
        --appendonly yes --appendfsync everysec >"$folder/redis.log" 2>&1 &
    redis=$!
    until [ "$(redis-cli -p "$redis_port" ping 2>/dev/null)" = PONG ]; do
        if [ $SECONDS -ge $deadline ] || ! kill -0 "$redis" 2>/dev/null; then
            tail -n 5 "$folder/redis.log" >&2
            die "redis-server does not answer (its last words are above)" "try --only without sidekiq and bullmq"
        fi
        sleep 0.1
    done
}

measure() {
    local names command="docker/peers/run.sh"
    printf -v names '%s,' "${systems[@]}"
    if [ "$once" ]; then command+=" --once"; else command+=" --rounds $rounds --jobs $jobs"; fi
    [ "${only[*]}" = "${known[*]}" ] || command+=" --only ${only[*]}"
    # In the background, so that a signal is obeyed at once; measure.py ends what it has started.
    python3 docker/peers/measure.py --home "$home" --systems "${names%,}" "${left_out[@]}" --command "$command" \
        --rounds "$rounds" --jobs "$jobs" ${once:+--once} \
        --amqp "$amqp" --api "$api" --rabbitmq-pid "$(docker inspect --format '{{.State.Pid}}' "$container")" \
        ${redis:+--redis-port "$redis_port" --redis-pid "$redis"} \
        --results "$home/results.json" ${write:+--write "$write"} &
    measuring=$!
    wait "$measuring"
}

# shellcheck disable=SC2317 # called by the trap
finish() {
    local status=$?
    trap - EXIT
    if [ "$measuring" ] && kill "$measuring" 2>/dev/null; then wait "$measuring" || true; fi
    [ -z "$redis" ] || kill "$redis" 2>/dev/null || true
    [ -z "$redis" ] || wait "$redis" 2>/dev/null || true
    [ -z "$container" ] || docker rm --force --volumes "$container" >/dev/null || true
    [ -z "$folder" ] || rm -rf "$folder"
    exit $status
}

rounds=5 jobs=50000 once='' write='' render='' only=() systems=() left_out=()
home='' container='' amqp='' api='' folder='' redis='' redis_port='' measuring=''
main "$@"
