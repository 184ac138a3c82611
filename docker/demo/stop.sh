# Ends what docker/demo.sh started, by what was noted of it and by nothing else.
# Sourced by docker/demo.sh, and by the stop.sh that its --keep leaves in the demo's folder.
# shellcheck shell=bash
# shellcheck disable=SC2154 # variables of demo.sh

stop_everything() {
    local process
    for process in $publishers; do
        end "$process" 5
    done
    if alive "$worker"; then
        say "worker: draining"
        end "$worker" 30 # its grace period and some more
        say "worker: $(tail -n 1 "$tmp/worker.out")"
    fi
    end "$receiver" 5
    stop_broker
    [ -z "$tmp" ] || rm -rf "$tmp"
}

stop_broker() {
    if [ "$container" ]; then
        [ -z "$starting" ] || wait "$starting" 2>/dev/null || true
        docker rm --force --volumes "$container" >/dev/null 2>&1 ||
            say "the container is still there: docker rm --force --volumes $container"
    fi
    end "$rabbitmq" 20
    end "$epmd" 5
    [ "$broker" != given ] || leave_broker
}

# end PROCESS SECONDS: TERM, and KILL for one that does not heed it.
end() {
    local deadline=$((SECONDS + $2))
    alive "$1" || return 0
    kill -TERM "$1" 2>/dev/null || true
    while alive "$1" && [ $SECONDS -lt $deadline ]; do
        sleep 0.1
    done
    ! alive "$1" || kill -KILL "$1" 2>/dev/null || true
}

# Whether it still runs and is ours: with --keep, its number may be another process's by now.
alive() {
    [ "$1" ] || return 1
    case $(arguments_of "$1") in
        *"$tmp"* | *"-port ${epmd_port:-none}"*) ;;
        *) return 1 ;;
    esac
}

arguments_of() {
    if [ -r /proc/self/cmdline ]; then
        tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline"
    else
        ps -o args= -p "$1"
    fi 2>/dev/null || true
}

# A broker that was given stays as it was found: everything of our namespace goes. `forebay` only
# declares, so it takes the management API, if there is one.
leave_broker() {
    local url
    [ "$declared" ] || return 0
    for url in "$management_url" "$(local_management)"; do
        if [ "$url" ] && delete_namespace "${url%/}"; then
            say "broker: removed all of $FOREBAY_NAMESPACE"
            return
        fi
    done
    say "broker: the queues and exchanges of $FOREBAY_NAMESPACE are still there. The demo removes them"
    say "  by itself if FOREBAY_MANAGEMENT_URL=http://user:password@host:15672 is set. By hand:"
    say "  rabbitmqctl -q list_queues name | grep '^$FOREBAY_NAMESPACE\.' | xargs -n 1 rabbitmqctl delete_queue"
    say "  and the exchanges on RabbitMQ's management page"
}

# Where the management API is if nobody has changed that, for a broker on this machine.
local_management() {
    printf '%s' "$AMQP_URL" |
        sed -nE 's#^amqp://(([^@/]*)@)?(127\.0\.0\.1|localhost)(:[0-9]+)?([/?].*)?$#http://\2@\3:15672#p' |
        sed 's#//@#//guest:guest@#'
}

# delete_namespace MANAGEMENT_URL. Fails unless there was something: it may be another broker's.
delete_namespace() {
    local vhost what name deleted=''
    vhost=$(printf '%s' "$AMQP_URL" | sed -nE 's#^amqps?://[^/]*/([^?]+).*#\1#p')
    vhost=${vhost:-%2F}
    for what in queues exchanges; do
        for name in $(ask "$1/api/$what/$vhost?columns=name" | grep -o '"name":"[^"]*"' | cut -d '"' -f 4 |
            grep "^$FOREBAY_NAMESPACE\($\|\.\)"); do
            ask "$1/api/$what/$vhost/$name" --request DELETE || return 1
            deleted=1
        done
    done
    [ "$deleted" ]
}

# ask URL ARGUMENTS FOR curl...: the URL holds a password, which others would see among arguments.
ask() {
    printf 'url = "%s"\n' "$1" |
        curl --silent --fail --globoff --noproxy '*' --max-time 10 --config - "${@:2}" 2>/dev/null
}
