#!/usr/bin/env bash
# Measures one gateway under many clients: memory, latencies, and the return of everybody at once.
set -euo pipefail
exec </dev/null # nothing here may wait for an answer
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

usage() {
    cat <<'TEXT'
usage: docker/load.sh [--load NAME] [--short] [--write]

Runs the gateway as a process of its own, with up to 5,000 Socket.IO clients in another one, and
prints tables; about six minutes. Ends with 1 if a client lost an event, had it twice or out of
order. It needs a machine that nobody else uses.

  --load NAME   only loads with NAME in their name: idle, rooms, crowd, return, return-to-one
  --short       few clients and short, for a first look
  --write       puts the tables into docs/benchmarks-gateway.md
  -h, --help    this text

The broker is the one at AMQP_URL, else a container of the image named in
producer/src/rabbitmq-image, or in FOREBAY_RABBITMQ_IMAGE.
TEXT
}

main() {
    while [ $# -gt 0 ]; do
        case $1 in
            --load)
                [ $# -ge 2 ] || die "--load needs a value" "see docker/load.sh --help"
                export FOREBAY_LOAD_ONLY=$2
                shift
                ;;
            --short) export FOREBAY_LOAD_SHORT=true ;;
            --write) export FOREBAY_LOAD_WRITE=$PWD/docs/benchmarks-gateway.md ;;
            -h | --help) usage; exit ;;
            *) die "unknown option '$1'" "see docker/load.sh --help" ;;
        esac
        shift
    done
    if [ -z "${AMQP_URL:-}" ]; then
        ensure_docker
        export FOREBAY_RABBITMQ_IMAGE=${FOREBAY_RABBITMQ_IMAGE:-$(<producer/src/rabbitmq-image)}
        docker/rabbitmq/obtain.sh "$FOREBAY_RABBITMQ_IMAGE"
    fi
    # Each client takes a descriptor here, too.
    ulimit -n "$(ulimit -Hn)"
    cargo test --release --quiet --package forebay-gateway --locked --test load -- \
        --exact campaign::figures --nocapture --ignored
}

main "$@"
