#!/usr/bin/env bash
# Tries the image and docker/compose.yaml: builds the one, starts the other, and takes its workers away under load.
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

usage() {
    cat <<'TEXT'
usage: docker/deploy/test.sh [--binaries DIR]

  --binaries DIR  take DIR/forebay and DIR/forebay-run (default: those that `cargo test` has built)
  -h, --help      this text

The commands for compose and for users are those of docs/deploy.md, taken from there. Everything it
starts has a name of its own, random ports on loopback, and is removed at the end.
TEXT
}

main() {
    local binaries=''
    while [ $# -gt 0 ]; do
        case $1 in
            --binaries) [ $# -ge 2 ] || die "$1 needs a value" "see docker/deploy/test.sh --help"; binaries=$2; shift ;;
            -h | --help) usage; exit ;;
            *) die "cannot make sense of '$1'" "see docker/deploy/test.sh --help" ;;
        esac
        shift
    done
    ensure_docker
    ensure_compose
    command -v curl >/dev/null || apt_install curl
    docker/rabbitmq/obtain.sh "$rabbitmq_image"
    [ "$binaries" ] || binaries=$(built_for_tests)

    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    docker/image.sh --tag "$FOREBAY_IMAGE" --binaries "$binaries"
    work=$(mktemp -d)
    cp -R docker "$work/docker"
    rm -f "$work/docker/.env"
    check "the image runs without root, and names no secret" image_is_modest
    check "without a password compose says what to set" compose_wants_passwords
    check "RabbitMQ and two workers become healthy, as docs/deploy.md says" first_up
    check "the first jobs run, as docs/deploy.md says" first_jobs
    check "users made by hand, as docs/deploy.md says, may do the same" users_by_hand
    check "a worker has no root, no capability, nothing to write to" worker_is_confined
    check "no user can do more than its role" roles_are_limited
    check "a graceful stop under load loses nothing and doubles nothing" stop_under_load
    check "a killed worker loses nothing" kill_under_load
    check "a worker that crashes is started again" crash
    check "a restart of RabbitMQ under load loses nothing" restart_broker
    check "jobs and users outlive the containers" down_and_up
}

# check NAME COMMAND...: a line with the time it took. Failing ends the script.
check() {
    current=$1
    local started=$SECONDS
    "${@:2}"
    printf '%5ss  %s\n' $((SECONDS - started)) "$current"
    current=''
}

# No rebuild after `cargo test --workspace --all-features`: the same features, the same profile.
built_for_tests() {
    local program
    program=$(cargo test --workspace --all-features --locked --no-run --message-format json-render-diagnostics |
        sed -n 's#.*"executable":"\([^"]*/forebay-run\)".*#\1#p')
    dirname "$program"
}

# As in docs/deploy.md: a copy of docker/ and its docker/.env stand for a user's clone.
compose() { docker compose --env-file "$work/docker/.env" --file "$work/docker/compose.yaml" "$@"; }

# documented NAME: runs the block of docs/deploy.md that stands under that mark, in the user's clone.
documented() {
    local block
    block=$(awk -v mark="<!-- tried: $1 -->" '$0 == mark { on = 1; next } on && /^```$/ { exit } on && !/^```/' docs/deploy.md)
    [ "$block" ] || { say "docs/deploy.md has no block '$1'"; return 1; }
    (cd "$work" && PATH=$work:$PATH bash -euc "${block//127.0.0.1:5672/127.0.0.1:$FOREBAY_AMQP_PORT}")
}

# container N: the name of a worker.
container() { echo "$project-worker-$1"; }

# as USER ARGS...: the command line as that user, from the host, through the published port.
as() {
    AMQP_URL=$(url_of "$1" forebay) FOREBAY_DECLARE=never \
        "$work/forebay" --config docker/deploy/app/forebay.toml "${@:2}"
}

# url_of USER VHOST
url_of() {
    local variable=FOREBAY_${1^^}_PASSWORD
    echo "amqp://$1:${!variable}@127.0.0.1:$FOREBAY_AMQP_PORT/$2"
}

# Below those that the system gives out by itself. Docker's own choice may be in use by somebody else.
free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)) && (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

image_is_modest() {
    local user
    user=$(docker image inspect --format '{{.Config.User}}' "$FOREBAY_IMAGE")
    [[ $user =~ ^[1-9][0-9]*: ]] || { say "it runs as '$user'"; return 1; }
    if { docker image inspect "$FOREBAY_IMAGE"; docker history --no-trunc "$FOREBAY_IMAGE"; } |
        grep -iE '(password|secret|token|key)[a-z_]*=|://[^/ ]*@' >&2; then
        return 1
    fi
    # The programs of the image are tried on the host too.
    local id
    id=$(docker create "$FOREBAY_IMAGE")
    docker cp "$id:/usr/local/bin/forebay" "$work/forebay" >/dev/null
    docker rm "$id" >/dev/null
}

compose_wants_passwords() {
    local name said
    for name in OPERATOR PUBLISHER WORKER; do
        passwords a b c | grep -v "$name" >"$work/docker/.env"
        if said=$(compose config 2>&1); then say "it took no password of $name"; return 1; fi
        grep -q "FOREBAY_${name}_PASSWORD.*docker/.env" <<<"$said" || { say "it said: $said"; return 1; }
    done
    # What cannot stand in a URL is refused by RabbitMQ's own start.
    passwords a b 'c/d@e' >"$work/docker/.env"
    if said=$(compose run --rm --no-deps rabbitmq 2>&1); then return 1; fi
    grep -q 'FOREBAY_WORKER_PASSWORD has other characters' <<<"$said" || { say "it said: $said"; return 1; }
}

passwords() { printf 'FOREBAY_%s_PASSWORD=%s\n' OPERATOR "$1" PUBLISHER "$2" WORKER "$3"; }

first_up() {
    documented compose >"$log" 2>&1 || { cat "$log" >&2; return 1; }
    # shellcheck source=docker/compose/env.example
    . "$work/docker/.env"
}

first_jobs() {
    documented first-job >"$log" 2>&1 || { cat "$log" >&2; return 1; }
    documented from-host >"$log" 2>&1 || { cat "$log" >&2; return 1; }
    local deadline=$((SECONDS + 20))
    until docker exec "$(container 1)" cat /data/notes 2>/dev/null | grep -q 'from the host'; do
        [ $SECONDS -lt $deadline ] || { say "the job from the host was not run"; return 1; }
        sleep 0.2
    done
}

# In a virtual host of their own, beside those that users.sh has made.
users_by_hand() {
    local by_hand
    by_hand=$(awk '/^<!-- tried: users -->$/ { on = 1 } on && /^rabbitmqctl/ { print } on && /^```$/ { exit }' docs/deploy.md |
        sed -E 's/(-p|add_vhost) forebay/\1 by-hand/; s/ (operator|publisher|worker|scaler) / by-hand-\1 /; s/"\$[A-Z_]*"/none/; s/ (operator|publisher|worker|scaler) / by-hand-\1 /')
    compose exec -T rabbitmq bash -euc "$by_hand" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
    diff <(permissions forebay) <(permissions by-hand | sed 's/^by-hand-//' | grep -v '^scaler') >&2
}

permissions() { compose exec -T rabbitmq rabbitmqctl -q list_permissions -p "$1" --no-table-headers | sort; }

up() { compose up --detach --wait >"$log" 2>&1 || { cat "$log" >&2; return 1; }; }

worker_is_confined() {
    docker exec "$(container 1)" sh -c '
        [ "$(id -u)" -ne 0 ] || { echo "it is root"; exit 1; }
        ! (: >/app/x) 2>/dev/null && ! (: >/usr/local/x) 2>/dev/null || { echo "it can write to the image"; exit 1; }
        grep -qx "CapEff:.0*" /proc/self/status && grep -qx "NoNewPrivs:.1" /proc/self/status ||
            { grep -E "Cap|NoNew" /proc/self/status; exit 1; }
    ' >&2
    # shellcheck disable=SC2016 # awk's
    docker top "$(container 1)" -eo pid,comm | awk 'NR == 2 && $2 != "tini" { print "process 1 is " $2; exit 1 }' >&2
}

roles_are_limited() {
    may_not publisher dead ls
    may_not publisher topology apply --declare auto --queue other
    may_not worker topology apply --declare auto --queue other
    may_not worker dead ls --namespace other
    may_not worker publish note.write '{}' --namespace other
    may_not worker queues --url "$(url_of worker '%2f')"
    as operator dead ls >"$log" 2>&1
    # What KEDA asks, and nothing for the others.
    management operator >"$log"
    grep -q '"messages_unacknowledged"' "$log"
    if management worker >/dev/null || management publisher >/dev/null; then return 1; fi
}

management() {
    local variable=FOREBAY_${1^^}_PASSWORD
    curl --silent --fail --user "$1:${!variable}" \
        "http://127.0.0.1:$FOREBAY_MANAGEMENT_PORT/api/queues/forebay/forebay.default"
}

# may_not USER ARGS...: it is refused by the broker, with exit code 3.
may_not() {
    local status=0
    as "$@" >"$log" 2>&1 || status=$?
    [ $status -eq 3 ] || { say "$1 was not refused '${*:2}' (exit code $status):"; cat "$log" >&2; return 1; }
}

# burst FROM TO: publishes a job for each number, as the publisher.
burst() {
    # shellcheck disable=SC2016 # {} is for forebay
    seq "$1" "$2" | as publisher publish note.write --lines --template '{"n": "{}"}' >"$log"
    grep -q "^$(($2 - $1 + 1)) published, 0 bad, 0 failed" "$log" || { cat "$log" >&2; return 1; }
}

# Every number that has been run, as often as it was.
notes() { docker exec "$(container 2)" sh -c 'cat /data/notes 2>/dev/null' | sed -nE 's/.*"n": *"([0-9]+)".*/\1/p'; }

# until_done FROM TO: waits until each of them was run.
until_done() {
    local missing deadline=$((SECONDS + 60))
    while missing=$(comm -23 <(seq "$1" "$2" | sort) <(notes | sort -u) | wc -l) && [ "$missing" -gt 0 ]; do
        [ $SECONDS -lt $deadline ] || { say "$missing of $1 to $2 were never run"; as operator queues >&2; return 1; }
        sleep 0.3
    done
}

# until_begun FROM: waits until some jobs of the burst are done, and most are not.
until_begun() {
    local deadline=$((SECONDS + 30))
    until [ "$(notes | awk -v from="$1" '$1 >= from' | wc -l)" -ge 20 ]; do
        [ $SECONDS -lt $deadline ] || { say "the burst does not begin"; return 1; }
        sleep 0.1
    done
}

# Nothing waits, nothing is dead: what was given back has been run as well.
nothing_left() {
    local left deadline=$((SECONDS + 20))
    # queue, ready, consumers, dead
    until left=$(as operator queues) && grep -qE '^default +0 +2 +0 *$' <<<"$left"; do
        [ $SECONDS -lt $deadline ] || { say "left: $left"; return 1; }
        sleep 0.3
    done
}

stop_under_load() {
    burst 1 400
    until_begun 1
    docker stop --time 45 "$(container 1)" >/dev/null
    local code
    code=$(docker inspect --format '{{.State.ExitCode}}' "$(container 1)")
    docker logs "$(container 1)" >"$log" 2>&1
    if [ "$code" -ne 0 ] || ! grep -qE '"message":"draining.*"running":[1-9]' "$log" || ! grep -qE '^done [1-9]' "$log"; then
        say "it ended with code $code and these words:"
        tail -n 20 "$log" >&2
        return 1
    fi
    [ "$(notes | wc -l)" -lt 400 ] || { say "the burst was over before the worker had stopped"; return 1; }
    docker start "$(container 1)" >/dev/null
    until_done 1 400
    nothing_left
    [ "$(notes | sort | uniq -d | wc -l)" -eq 0 ] || { say "run twice:"; notes | sort | uniq -d >&2; return 1; }
}

kill_under_load() {
    burst 1001 1400
    until_begun 1001
    docker kill "$(container 1)" >/dev/null
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$(container 1)")" -eq 137 ]
    docker start "$(container 1)" >/dev/null
    until_done 1001 1400
    nothing_left
}

# Every process but process 1 and the shell, which has the same effect as a worker that is out of memory.
crash() {
    docker exec "$(container 1)" sh -c 'kill -KILL -1' || true
    local deadline=$((SECONDS + 60))
    until [ "$(docker inspect --format '{{.RestartCount}} {{.State.Health.Status}}' "$(container 1)")" = '1 healthy' ]; do
        if [ $SECONDS -ge $deadline ]; then
            docker inspect --format '{{json .State}}' "$(container 1)" >&2
            return 1
        fi
        sleep 0.5
    done
}

restart_broker() {
    burst 2001 2200
    until_begun 2001
    docker restart --time 60 "$project-rabbitmq-1" >/dev/null
    up
    until_done 2001 2200
    nothing_left
}

down_and_up() {
    compose stop worker >"$log" 2>&1
    burst 3001 3020
    compose down >>"$log" 2>&1
    # A changed password holds from the next start.
    FOREBAY_PUBLISHER_PASSWORD=changed-$suffix
    passwords "$FOREBAY_OPERATOR_PASSWORD" "$FOREBAY_PUBLISHER_PASSWORD" "$FOREBAY_WORKER_PASSWORD" >"$work/docker/.env"
    up
    until_done 3001 3020
    nothing_left
    as publisher publish note.write '{"n": "4000"}' >/dev/null
}

finish() {
    local status=$?
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    [ -z "$work" ] || passwords any any any >"$work/docker/.env" # compose does nothing without
    if [ $status -ne 0 ] && [ "$work" ]; then
        say "==> containers, and the ends of their logs"
        compose ps --all >&2
        compose logs --tail 30 --no-color --no-log-prefix topology worker >&2
        compose logs --tail 10 --no-color --no-log-prefix rabbitmq >&2
        [ -z "$current" ] || say "failed: $current"
    fi
    [ -z "$work" ] || compose down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1
    docker image rm "$FOREBAY_IMAGE" >/dev/null 2>&1
    rm -rf "$work" "$log"
    exit "$status"
}

suffix=$(od -An -N3 -tx1 /dev/urandom | tr -d ' \n')
project=forebay-test-$suffix
rabbitmq_image=${FOREBAY_RABBITMQ_IMAGE:-$(<producer/src/rabbitmq-image)}
work='' current='' log=$(mktemp)
unset AMQP_URL FOREBAY_NAMESPACE FOREBAY_MANAGEMENT_URL FOREBAY_STRICT_TOPOLOGY
export COMPOSE_PROJECT_NAME=$project FOREBAY_IMAGE=forebay:test-$suffix RABBITMQ_IMAGE=$rabbitmq_image FOREBAY_APP=$PWD/docker/deploy/app
FOREBAY_AMQP_PORT=$(free_port) FOREBAY_MANAGEMENT_PORT=$(free_port)
export FOREBAY_AMQP_PORT FOREBAY_MANAGEMENT_PORT
unset FOREBAY_OPERATOR_PASSWORD FOREBAY_PUBLISHER_PASSWORD FOREBAY_WORKER_PASSWORD
main "$@"
