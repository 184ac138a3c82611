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
    end "$follower" 5
    end "$gateway" 15
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

# A broker that was given stays as it was found: everything of our namespace goes.
leave_broker() {
    [ "$declared" ] || return 0
    if "$forebay" --config "$tmp/forebay.toml" topology delete --all --force --yes >/dev/null 2>"$tmp/delete.log"; then
        say "broker: removed all of $FOREBAY_NAMESPACE"
    else
        say "broker: the queues and exchanges of $FOREBAY_NAMESPACE may still be there: $(tail -n 1 "$tmp/delete.log")"
    fi
}
