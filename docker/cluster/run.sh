#!/usr/bin/env bash
# Starts a RabbitMQ cluster of three nodes in Docker, to try by hand what happens when one is lost.
set -euo pipefail
exec </dev/null # nothing here may wait for an answer
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

usage() {
    cat <<'TEXT'
usage: docker/cluster/run.sh [--name NAME]
       docker/cluster/run.sh --down [--name NAME]
       docker/cluster/run.sh --help

Starts three RabbitMQ nodes of one cluster in containers NAME-1, NAME-2 and NAME-3, on a network of
their own, and prints the AMQP_URL that names all of them and the FOREBAY_MANAGEMENT_URL of the first:

  eval "$(docker/cluster/run.sh)"

It takes about half a minute. Ports are published on 127.0.0.1; free ones are chosen, and a node that
is stopped and started again keeps its own.

  --name NAME   a-z, 0-9 and -, at most 40 (default: forebay-cluster)
  --down        removes the cluster with all that is on it

The image is the one named in producer/src/rabbitmq-image, or in FOREBAY_RABBITMQ_IMAGE.
TEXT
}

main() {
    local name=forebay-cluster down=''
    while [ $# -gt 0 ]; do
        case $1 in
            --name) [ $# -ge 2 ] || die "--name needs a value" "see docker/cluster/run.sh --help"; name=$2; shift ;;
            --down) down=1 ;;
            -h | --help) usage; exit ;;
            *) die "unknown option '$1'" "see docker/cluster/run.sh --help" ;;
        esac
        shift
    done
    # It is part of host names and of the names of nodes.
    [[ $name =~ ^[a-z][a-z0-9-]{0,38}[a-z0-9]$ ]] ||
        die "--name '$name' is not allowed" "use a-z, 0-9 and -, at most 40, as in: --name shop"
    ensure_docker
    if [ "$down" ]; then
        take_down "$name" || die "there is no cluster '$name'" "see: docker ps --all --filter label=forebay.cluster"
        say "cluster $name is gone"
        exit
    fi
    [ -z "$(containers "$name")" ] ||
        die "cluster '$name' is there already" "docker/cluster/run.sh --down --name $name, or choose another --name"
    image=${FOREBAY_RABBITMQ_IMAGE:-$(<producer/src/rabbitmq-image)}
    docker image inspect "$image" >/dev/null 2>&1 || docker/rabbitmq/obtain.sh "$image"
    trap 'say "interrupted"; exit 130' INT TERM
    trap 'give_up "$?"' EXIT
    unfinished=$name
    start "$name" "$image"
    wait_until_formed "$name"
    unfinished=''
    tell "$name"
}

containers() { docker ps --all --quiet --filter "label=forebay.cluster=$1"; }

take_down() {
    local found
    found=$(containers "$1")
    # shellcheck disable=SC2086 # one word for each container
    [ -z "$found" ] || docker rm --force --volumes $found >/dev/null
    if docker network inspect "$1" >/dev/null 2>&1; then
        docker network rm "$1" >/dev/null
    else
        [ "$found" ]
    fi
}

# What was begun and did not come to its end is removed.
give_up() {
    [ -z "$unfinished" ] || take_down "$unfinished" || true
    [ -z "$settings" ] || rm -f "$settings"
    exit "$1"
}

# Nodes know each other by names of a network without a way out; clients come through the default one.
# So `docker network disconnect NAME NAME-1` cuts a node off from the others and not from its clients.
start() {
    local name=$1 image=$2 node
    say "starting $name-1, $name-2 and $name-3 of $image"
    docker network create --internal --label "forebay.cluster=$name" "$name" >/dev/null ||
        die "docker could not make the network '$name' (its reason is above)" "choose another --name"
    settings=$(mktemp)
    {
        echo 'cluster_formation.peer_discovery_backend = classic_config'
        for node in 1 2 3; do echo "cluster_formation.classic_config.nodes.$node = rabbit@$name-$node"; done
        # Where metadata lies in Mnesia, a node without the majority stops until it has it again.
        echo 'cluster_partition_handling = pause_minority'
        echo 'queue_leader_locator = balanced'
    } >"$settings"
    chmod 644 "$settings"
    find_free_ports
    for node in 1 2 3; do
        # The flags: an idle node keeps no core busy with waiting.
        docker create --name "$name-$node" --hostname "$name-$node" --label "forebay.cluster=$name" \
            --env "RABBITMQ_ERLANG_COOKIE=$name" \
            --env 'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+sbwt none +sbwtdcpu none +sbwtdio none' \
            --publish "127.0.0.1:${ports[node - 1]}:5672" --publish "127.0.0.1:${ports[node + 2]}:15672" "$image" >/dev/null ||
            die "docker could not make $name-$node (its reason is above)" "see: docker run --rm $image"
        docker cp "$settings" "$name-$node:/etc/rabbitmq/conf.d/90-cluster.conf" >/dev/null 2>&1
        docker network connect "$name" "$name-$node"
    done
    docker start "$name-1" "$name-2" "$name-3" >/dev/null ||
        die "docker could not start the nodes (its reason is above)" "see: docker run --rm $image"
}

# Sets `ports` to six on which nobody listens, below those that the system gives to clients. Docker
# would choose others each time that a node is started.
find_free_ports() {
    local port=$((20000 + RANDOM % 12000))
    ports=()
    while [ ${#ports[@]} -lt 6 ]; do
        port=$((port + 1))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || ports+=("$port")
    done
}

wait_until_formed() {
    local name=$1 node deadline=$((SECONDS + 120)) answer
    for node in 1 2 3; do
        # Asked one after the other: each question costs a start of Erlang.
        until answer=$(timeout 60 docker exec "$name-$node" rabbitmqctl -q await_online_nodes 3 --timeout 30 2>&1); do
            if [ $SECONDS -ge $deadline ] || [ "$(docker inspect --format '{{.State.Running}}' "$name-$node")" != true ]; then
                docker logs --tail 20 "$name-$node" >&2 || true
                die "$name-$node is not in the cluster after ${SECONDS}s (its last words are above): $answer" \
                    "see whether the machine has 1 GB of memory to spare, then run this again"
            fi
            sleep 1
        done
    done
}

# On standard output only what a shell is to evaluate.
tell() {
    local name=$1 hosts
    hosts=$(for node in 1 2 3; do port "$name-$node" 5672; done | paste -sd,)
    echo "export AMQP_URL=amqp://guest:guest@$hosts/%2f"
    echo "export FOREBAY_MANAGEMENT_URL=http://guest:guest@$(port "$name-1" 15672)"
    cat >&2 <<TEXT
the cluster runs; things to try while a worker works:
  docker exec $name-1 rabbitmqctl list_queues name leader online   who leads which queue
  docker kill $name-1; docker start $name-1                        lose a node, and have it back
  docker network disconnect $name $name-1                          cut it off from the others
  docker network connect $name $name-1                             and mend that
  docker/cluster/run.sh --down --name $name                        remove everything
TEXT
}

port() { docker port "$1" "$2/tcp" | sed -n '1p'; }

unfinished='' settings='' ports=()
main "$@"
