#!/usr/bin/env bash
# Runs the fault suites for as long as they are told: no job is lost and no event is missed,
# whatever breaks.
set -euo pipefail
exec </dev/null # nothing here may wait for an answer
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

usage() {
    cat <<'TEXT'
usage: docker/faults.sh [--minutes N | --once] [--fault NAME] [--seed S] [--keep] [--write]
       docker/faults.sh --list | --help

Repeats every fault with random timing for N minutes, each at least once, and prints a table; then
those of the gateway for a quarter of that time.
Ends with 1 if a job was lost, dead or run again without need, or if a worker did not consume again
within 2 s of the broker's first answer (in a cluster within 5 s of the fault's end); or if a client
of the gateway missed an event, or had one twice in a session.

  --minutes N   how long, in minutes (default: 10)
  --once        the short form: each fault once, but for two that take minutes, in about six
                minutes. How long recovery took is printed and not judged: a busy machine is no fault
  --fault NAME  only the faults with NAME in their name
  --seed S      a number; the seed of round n is S + n. A red row tells its own, and
                --fault NAME --seed S begins with it
  --keep        keeps records and logs of good runs, too; those of bad ones always stay
  --write       puts the tables into docs/reliability.md; with --fault only the rows of those faults,
                and none of the gateway
  --list        the names of all faults

The image is the one named in producer/src/rabbitmq-image, or in FOREBAY_RABBITMQ_IMAGE.
TEXT
}

main() {
    local list='' known
    export FOREBAY_FAULTS_MINUTES=10
    while [ $# -gt 0 ]; do
        case $1 in
            --minutes) value "$@"; FOREBAY_FAULTS_MINUTES=$2; shift ;;
            --fault) value "$@"; export FOREBAY_FAULTS_ONLY=$2; shift ;;
            --seed) value "$@"; export FOREBAY_FAULTS_SEED=$2; shift ;;
            --keep) export FOREBAY_FAULTS_KEEP=true ;;
            --once) FOREBAY_FAULTS_MINUTES='' ;;
            --write) export FOREBAY_FAULTS_WRITE=$PWD/docs/reliability.md ;;
            --list) list=1 ;;
            -h | --help) usage; exit ;;
            *) die "unknown option '$1'" "see docker/faults.sh --help" ;;
        esac
        shift
    done
    [[ $FOREBAY_FAULTS_MINUTES =~ ^([0-9]+([.][0-9]+)?)?$ ]] ||
        die "--minutes '$FOREBAY_FAULTS_MINUTES' is not a number" "for example: --minutes 30"
    [[ ${FOREBAY_FAULTS_SEED:-0} =~ ^[0-9]{1,18}$ ]] ||
        die "--seed '$FOREBAY_FAULTS_SEED' is not a number of up to 18 digits" "for example: --seed 7"
    [ -z "${AMQP_URL:-}" ] || say "AMQP_URL is set: faults that leave the broker alone use that one"
    if [ "$list" ]; then
        names 2>/dev/null
        exit
    fi
    if [ -n "${FOREBAY_FAULTS_ONLY:-}" ]; then
        known=$(names)
        [[ $known == *"$FOREBAY_FAULTS_ONLY"* ]] ||
            die "no fault has '$FOREBAY_FAULTS_ONLY' in its name" "see docker/faults.sh --list"
    fi
    ensure_docker
    export FOREBAY_RABBITMQ_IMAGE=${FOREBAY_RABBITMQ_IMAGE:-$(<producer/src/rabbitmq-image)}
    docker/rabbitmq/obtain.sh "$FOREBAY_RABBITMQ_IMAGE"
    # The clock of a worker is turned with libfaketime; without it that fault is left out.
    ! is_root_on_debian || apt_install libfaketime
    suite
}

# value OPTION [VALUE]: the option has one.
value() { [ $# -ge 2 ] || die "$1 needs a value" "see docker/faults.sh --help"; }

names() { list=1 suite | sed -n 's/^fault: //p'; }

# Both suites. As members of the workspace they have the features of docker/test.sh, so that nothing is
# built twice.
suite() {
    FOREBAY_FAULTS_LIST=$list cargo test --quiet --workspace --all-features --locked --no-fail-fast \
        --test faults -- --exact campaign::no_fault_loses_a_job \
        campaign::no_fault_costs_a_client_an_event --nocapture --ignored
}

main "$@"
