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

  --binaries DIR  take the programs in DIR (default: those that `cargo test` has built)
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
    command -v openssl >/dev/null || apt_install openssl
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
    check "RabbitMQ, two workers and a gateway become healthy, as docs/deploy.md says" first_up
    check "the first jobs run, as docs/deploy.md says" first_jobs
    check "a job published through the gateway is run, as docs/deploy.md says" first_job_of_a_browser
    check "users made by hand, as docs/deploy.md says, may do the same" users_by_hand
    check "workers and gateway have no root, no capability, nothing to write to" all_are_confined
    check "no user can do more than its role" roles_are_limited
    check "a gateway that may not read events says so, and follows them once it may" gateway_without_rights
    check "a client misses nothing over a stop and a crash of its gateway" gateway_goes
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
    block=${block//127.0.0.1:5672/127.0.0.1:$FOREBAY_AMQP_PORT}
    (cd "$work" && PATH=$work:$PATH bash -euc "${block//127.0.0.1:8090/127.0.0.1:$FOREBAY_GATEWAY_PORT}")
}

# container N: the name of a worker.
container() { echo "$project-worker-$1"; }
gateway_container() { echo "$project-gateway-1"; }

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
    local id program
    id=$(docker create "$FOREBAY_IMAGE")
    for program in forebay forebay-gateway; do
        docker cp "$id:/usr/local/bin/$program" "$work/$program" >/dev/null
    done
    docker rm "$id" >/dev/null
}

compose_wants_passwords() {
    local name said
    for name in "${secrets[@]}"; do
        settings | grep -v "$name" >"$work/docker/.env"
        if said=$(compose config 2>&1); then say "it took no $name"; return 1; fi
        grep -q "$name.*docker/.env" <<<"$said" || { say "it said: $said"; return 1; }
    done
    # What cannot stand in a URL is refused by RabbitMQ's own start.
    settings FOREBAY_WORKER_PASSWORD 'd/e@f' >"$work/docker/.env"
    if said=$(compose run --rm --no-deps rabbitmq 2>&1); then return 1; fi
    grep -q 'FOREBAY_WORKER_PASSWORD has other characters' <<<"$said" || { say "it said: $said"; return 1; }
    # And a secret that could be guessed by the gateway's.
    settings FOREBAY_GATEWAY_SECRET short >"$work/docker/.env"
    if said=$(compose run --rm --no-deps gateway 2>&1); then return 1; fi
    grep -q '5 bytes, 32 are the least' <<<"$said" || { say "it said: $said"; return 1; }
    local folder
    echo "a secret for a gateway that nobody asks" >"$work/secret"
    for folder in compose/app kubernetes; do
        sed "s#/run/secrets/gateway/[a-z-]*#$work/secret#" "docker/$folder/gateway.toml" >"$work/gateway.toml"
        "$work/forebay-gateway" --check --config "$work/gateway.toml" --secret-file "$work/secret" >"$log"
    done
}

# settings [NAME VALUE]: docker/.env as it is, or with any passwords; NAME is VALUE in it.
settings() {
    local name
    for name in "${secrets[@]}"; do
        if [ "$name" = "${1:-}" ]; then echo "$name=$2"; else echo "$name=${!name:-any}"; fi
    done
}

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

first_job_of_a_browser() {
    documented gateway >"$log" 2>&1 || { cat "$log" >&2; return 1; }
    grep -q '"state":"succeeded"' "$log" || { say "it said:"; cat "$log" >&2; return 1; }
}

# In a virtual host of their own, beside those that users.sh has made.
users_by_hand() {
    local by_hand
    by_hand=$(awk '/^<!-- tried: users -->$/ { on = 1 } on && /^rabbitmqctl/ { print } on && /^```$/ { exit }' docs/deploy.md |
        sed -E 's/(-p|add_vhost) forebay/\1 by-hand/; s/ (operator|publisher|worker|gateway|scaler) / by-hand-\1 /; s/"\$[A-Z_]*"/none/; s/ (operator|publisher|worker|gateway|scaler) / by-hand-\1 /')
    compose exec -T rabbitmq bash -euc "$by_hand" >"$log" 2>&1 || { cat "$log" >&2; return 1; }
    diff <(permissions forebay) <(permissions by-hand | sed 's/^by-hand-//' | grep -v '^scaler') >&2
}

permissions() { compose exec -T rabbitmq rabbitmqctl -q list_permissions -p "$1" --no-table-headers | sort; }

up() { compose up --detach --wait >"$log" 2>&1 || { cat "$log" >&2; return 1; }; }

all_are_confined() {
    local health name
    # What the image comes with serves workers and gateways alike.
    health=$(docker image inspect --format '{{index .Config.Healthcheck.Test 1}}' "$FOREBAY_IMAGE")
    for name in "$(container 1)" "$(gateway_container)"; do
        is_confined "$name" || { say "$name is not"; return 1; }
        docker exec "$name" sh -c "$health" >"$log" 2>&1 || { say "$name:"; cat "$log" >&2; return 1; }
    done
}

is_confined() {
    # shellcheck disable=SC2016 # $ is for sh and awk
    docker exec "$1" sh -c '
        [ "$(id -u)" -ne 0 ] || { echo "it is root"; exit 1; }
        ! (: >/app/x) 2>/dev/null && ! (: >/usr/local/x) 2>/dev/null || { echo "it can write to the image"; exit 1; }
        grep -qx "CapEff:.0*" /proc/self/status && grep -qx "NoNewPrivs:.1" /proc/self/status ||
            { grep -E "Cap|NoNew" /proc/self/status; exit 1; }
    ' >&2 &&
        docker top "$1" -eo pid,comm | awk 'NR == 2 && $2 != "tini" { print "process 1 is " $2; exit 1 }' >&2
}

roles_are_limited() {
    may_not publisher dead ls
    may_not publisher topology apply --declare auto --queue other
    may_not worker topology apply --declare auto --queue other
    may_not worker dead ls --namespace other
    may_not worker publish note.write '{}' --namespace other
    may_not worker queues --url "$(url_of worker '%2f')"
    may_not gateway dead ls
    may_not gateway topology apply --declare auto --queue other
    may_not gateway publish note.write '{}' --namespace other
    as operator dead ls >"$log" 2>&1
    # What KEDA asks, and nothing for the others.
    management operator >"$log"
    grep -q '"messages_unacknowledged"' "$log"
    if management worker >/dev/null || management publisher >/dev/null || management gateway >/dev/null; then return 1; fi
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

# A second gateway, on the host, as a user who may publish jobs and tell events, and read nothing.
gateway_without_rights() {
    local operation status=0
    operation=127.0.0.1:$(free_port)
    AMQP_URL=$(url_of publisher forebay) FOREBAY_DECLARE=never FOREBAY_GATEWAY_OPERATION=$operation \
        "$work/forebay-gateway" --listen 127.0.0.1:0 --secret-file "$work/secret" >"$work/gateway.log" 2>&1 &
    gateway=$!
    readyz_says "$operation" "cannot read stream .forebay.events.*grant this user .read. on it"
    grep -q '"level":"ERROR".*cannot follow the stream of events.*grant this user .read. on it' "$work/gateway.log"
    # Nothing about publishing, which it may.
    if FOREBAY_GATEWAY_OPERATION=$operation "$work/forebay-gateway" --probe readyz 2>&1 | grep '^publishing' >&2; then return 1; fi
    may_read publisher '^forebay\.events$'
    readyz_says "$operation" '^ready$'
    may_read publisher '^$'
    kill -TERM "$gateway"
    wait "$gateway" || status=$?
    gateway=''
    [ $status -eq 0 ] || { say "it ended with code $status:"; tail -n 5 "$work/gateway.log" >&2; return 1; }
}

# may_read USER PATTERN
may_read() {
    compose exec -T rabbitmq rabbitmqctl -q set_permissions -p forebay "$1" '^$' '^forebay(\.events|\.delay\.[0-9]{2})?$' "$2"
}

# readyz_says ADDRESS PATTERN: in the end.
readyz_says() {
    local said deadline=$((SECONDS + 30))
    until said=$(FOREBAY_GATEWAY_OPERATION=$1 "$work/forebay-gateway" --probe readyz 2>&1) || true; grep -q "$2" <<<"$said"; do
        [ $SECONDS -lt $deadline ] || { say "/readyz of the gateway: $said"; return 1; }
        sleep 0.3
    done
}

# Three jobs of one client: one before its gateway is stopped, one while it is gone, one after it came back.
# Then the gateway crashes, and a fourth follows.
gateway_goes() {
    local code since=$SECONDS
    token=$(token bea '{"read": ["kind:note.*"], "publish": ["note.*"]}')
    follow_notes beginning
    ask_gateway /jobs --data '{"kind": "note.write", "payload": {"n": "first"}}' >"$log"
    until_told first 1
    compose stop gateway >"$log" 2>&1
    code=$(docker inspect --format '{{.State.ExitCode}}' "$(gateway_container)")
    [ "$code" -eq 0 ] || { say "it ended with code $code after $((SECONDS - since)) s:"; docker logs --tail 20 "$(gateway_container)" >&2; return 1; }
    wait "$follower" || true
    grep -q '"reason":"going_away"' "$work/told" || { say "its client was not told:"; tail -n 3 "$work/told" >&2; return 1; }
    as publisher publish note.write '{"n": "away"}' --track --owner bea >"$log"
    until_done_note away
    up
    follow_notes "$(newest_token)"
    ask_gateway /jobs --data '{"kind": "note.write", "payload": {"n": "back"}}' >"$log"
    until_told back 3
    crashes "$(gateway_container)"
    wait "$follower" || true
    follow_notes "$(newest_token)"
    ask_gateway /jobs --data '{"kind": "note.write", "payload": {"n": "crashed"}}' >"$log"
    until_told crashed 4
    kill "$follower"
    wait "$follower" || true
    follower=''
    each_event_once
}

# What the client was told, before and after, against what the operator reads from the stream.
each_event_once() {
    local told
    told=$(event_ids <"$work/told")
    timeout 5 env AMQP_URL="$(url_of operator forebay)" "$work/forebay" --config docker/deploy/app/forebay.toml \
        follow --kind note.write --from beginning --output json >"$log" || true
    diff <(grep '"owner":"bea"' "$log" | event_ids) <(echo "$told") >&2 || { say "< the stream, > the client"; return 1; }
}

event_ids() { grep -o '"specversion":"1.0","id":"[^"]*"'; }

# A client's connection, until it ends; what it is told is kept behind what it was told before.
follow_notes() {
    ask_gateway "/events?kind=note.write&from=$1" --no-buffer --max-time 300 >>"$work/told" 2>/dev/null &
    follower=$!
}

newest_token() { sed -n 's/^id: *//p' "$work/told" | tail -n 1; }

# until_told NAME JOBS: the client has seen so many jobs succeed.
until_told() {
    local deadline=$((SECONDS + 60))
    until [ "$(grep -c '"forebay.job.succeeded"' "$work/told")" -ge "$2" ]; do
        [ $SECONDS -lt $deadline ] || { say "nothing is heard of job '$1'; of those before:"; tail -n 5 "$work/told" >&2; return 1; }
        sleep 0.2
    done
}

until_done_note() {
    local deadline=$((SECONDS + 60))
    until docker exec "$(container 1)" grep -q "\"$1\"" /data/notes; do
        [ $SECONDS -lt $deadline ] || { say "job '$1' was not run"; return 1; }
        sleep 0.2
    done
}

# ask_gateway PATH ARGUMENTS FOR curl...: with a token.
ask_gateway() {
    curl --silent --show-error --fail --noproxy '*' --header "Authorization: Bearer $token" \
        "http://127.0.0.1:$FOREBAY_GATEWAY_PORT$1" "${@:2}"
}

# token SUBJECT GRANTS: for an hour, signed with the secret of docker/.env.
token() {
    local claims signed
    claims="{\"sub\": \"$1\", \"exp\": $(($(date +%s) + 3600)), \"forebay\": $2}"
    signed=$(printf '{"alg": "HS256"}' | base64url).$(printf %s "$claims" | base64url)
    echo "$signed.$(printf %s "$signed" | openssl dgst -sha256 -hmac "$FOREBAY_GATEWAY_SECRET" -binary | base64url)"
}

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d =; }

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

crash() { crashes "$(container 1)"; }

# crashes CONTAINER: every process but process 1 and the shell, which has the same effect as one that is out of
# memory. Waits until it was started again.
crashes() {
    docker exec "$1" sh -c 'kill -KILL -1' || true
    local deadline=$((SECONDS + 60))
    until [ "$(docker inspect --format '{{.RestartCount}} {{.State.Health.Status}}' "$1")" = '1 healthy' ]; do
        if [ $SECONDS -ge $deadline ]; then
            docker inspect --format '{{json .State}}' "$1" >&2
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
    # shellcheck disable=SC2034 # settings takes it
    FOREBAY_PUBLISHER_PASSWORD=changed-$suffix
    settings >"$work/docker/.env"
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
    # shellcheck disable=SC2086 # none, or one
    kill $gateway $follower 2>/dev/null
    [ -z "$work" ] || settings >"$work/docker/.env" # compose does nothing without
    if [ $status -ne 0 ] && [ "$work" ]; then
        say "==> containers, and the ends of their logs"
        compose ps --all >&2
        compose logs --tail 30 --no-color --no-log-prefix topology worker gateway >&2
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
work='' current='' gateway='' follower='' token='' log=$(mktemp)
unset AMQP_URL FOREBAY_NAMESPACE FOREBAY_MANAGEMENT_URL FOREBAY_STRICT_TOPOLOGY
export COMPOSE_PROJECT_NAME=$project FOREBAY_IMAGE=forebay:test-$suffix RABBITMQ_IMAGE=$rabbitmq_image FOREBAY_APP=$PWD/docker/deploy/app
FOREBAY_AMQP_PORT=$(free_port) FOREBAY_MANAGEMENT_PORT=$(free_port) FOREBAY_GATEWAY_PORT=$(free_port)
export FOREBAY_AMQP_PORT FOREBAY_MANAGEMENT_PORT FOREBAY_GATEWAY_PORT
secrets=(FOREBAY_OPERATOR_PASSWORD FOREBAY_PUBLISHER_PASSWORD FOREBAY_WORKER_PASSWORD FOREBAY_GATEWAY_PASSWORD FOREBAY_GATEWAY_SECRET)
unset "${secrets[@]}"
main "$@"
