# How docker/demo.sh comes by a RabbitMQ: the one it is given, one in Docker, or a private process.
# Sourced by it; what is started is noted in variables that stop.sh, beside this file, goes by.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of demo.sh and stop.sh

# choose_broker WANTED: sets `broker` to given, docker or local. WANTED is docker, local or nothing.
choose_broker() {
    if [ "$1" ]; then
        broker=$1
    elif [ "${AMQP_URL:-}" ]; then
        broker=given
    elif docker_answers; then
        broker=docker
    elif rabbitmq_server >/dev/null || is_root_on_debian; then
        broker=local
    else
        die "there is no RabbitMQ to work with: AMQP_URL is not set, no Docker daemon answers, no rabbitmq-server is installed" \
            "start Docker, or install rabbitmq-server, or set AMQP_URL=amqp://user:password@host:5672"
    fi
}

# prepare_broker WANTED: gets image or package, which may take minutes.
prepare_broker() {
    image=${FOREBAY_RABBITMQ_IMAGE:-$(<producer/src/rabbitmq-image)}
    if [ "$broker" = docker ] && ! obtain_image; then
        # What is wrong was said. Without Docker there may still be a way, if it was not asked for.
        if [ "$1" ] || ! { rabbitmq_server >/dev/null || is_root_on_debian; }; then exit 1; fi
        say "going on without Docker"
        broker=local
    fi
    if [ "$broker" = local ] && ! rabbitmq_server >/dev/null; then
        install_rabbitmq
    fi
}

obtain_image() {
    docker image inspect "$image" >/dev/null 2>&1 || docker/rabbitmq/obtain.sh "$image"
}

# start_broker: sets AMQP_URL and `broker_is`. The broker need not answer yet.
start_broker() {
    case $broker in
        given) broker_is="the RabbitMQ at $(without_password "$AMQP_URL") (AMQP_URL)" ;;
        docker) start_container ;;
        local) start_process ;;
    esac
    export AMQP_URL
}

without_password() { printf '%s' "$1" | sed 's#^\(amqps\{0,1\}\)://.*@#\1://#; s#?.*##'; }

start_container() {
    container=forebay-demo-$suffix
    # Beside us, so that Ctrl-C does not end it before it has ended: we could not tell what it has started.
    set -m
    docker run --detach --name "$container" --label "forebay.demo=$suffix" \
        --publish 127.0.0.1::5672 --publish 127.0.0.1::15672 "$image" >/dev/null &
    starting=$!
    set +m
    wait "$starting" ||
        die "docker could not start $image (its reason is above)" "see: docker run --rm $image; or try --broker local"
    starting=''
    AMQP_URL=amqp://guest:guest@127.0.0.1:$(published_port 5672)
    management_url=http://guest:guest@127.0.0.1:$(published_port 15672)
    broker_is="$image in Docker, container $container"
}

published_port() { docker port "$container" "$1/tcp" | sed -n '1s/.*://p'; }

# The server's own script. Debian's wrapper in /usr/sbin writes where the system's broker does.
rabbitmq_server() {
    local server
    for server in /usr/lib/rabbitmq/bin/rabbitmq-server "$(command -v rabbitmq-server)" \
        /usr/sbin/rabbitmq-server /usr/local/sbin/rabbitmq-server /opt/homebrew/sbin/rabbitmq-server; do
        if [ -x "$server" ]; then
            printf '%s\n' "$server"
            return
        fi
    done
    return 1
}

# Debian's package starts a broker and enables it at boot. Nobody asked for that one.
install_rabbitmq() {
    need_root_or_die "installing rabbitmq-server" "install rabbitmq-server and run this again, or start Docker"
    local units=(rabbitmq-server.service)
    [ -e /usr/bin/epmd ] || units+=(epmd.service epmd.socket) # it comes along with Erlang
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101 # docker/demo.sh: start no service now\n' >$policy
        chmod +x $policy
    fi
    apt_install rabbitmq-server
    remove_policy
    if [ -d /run/systemd/system ]; then
        systemctl disable --quiet --now "${units[@]}" 2>/dev/null || true
        say "rabbitmq-server is installed; as a service it is off (systemctl enable --now rabbitmq-server)"
    elif [ -x /etc/init.d/rabbitmq-server ]; then
        /etc/init.d/rabbitmq-server stop >/dev/null 2>&1 || true # somebody's policy may have let it start
    fi
}

remove_policy() {
    [ -z "$policy" ] || rm -f "$policy"
    policy=''
}

# A broker that shares nothing with the system's: other ports, node name, cookie, folders, settings.
start_process() {
    local server home=$tmp/rabbitmq amqp dist as_user=()
    server=$(rabbitmq_server)
    find_free_ports
    amqp=${ports[0]} dist=${ports[1]} epmd_port=${ports[2]}
    mkdir -p "$home/conf.d"
    printf 'listeners.tcp.1 = 127.0.0.1:%s\nlog.file = false\nlog.console = true\nlog.console.level = warning\n' \
        "$amqp" >"$home/rabbitmq.conf"
    printf '[].\n' >"$home/enabled_plugins"
    : >"$home/environment"
    if [ "$(id -u)" -eq 0 ] && id rabbitmq >/dev/null 2>&1 && command -v setpriv >/dev/null; then
        as_user=(setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups)
        chmod 711 "$tmp"
        chown -R rabbitmq "$home"
    fi

    # Where nodes find each other. One of our own, so that none stays behind on the usual port.
    set -m # in process groups of their own, so that Ctrl-C does not reach them before we do
    nohup ${as_user[@]+"${as_user[@]}"} "$(epmd_program)" -address 127.0.0.1 -port "$epmd_port" </dev/null >"$tmp/epmd.log" 2>&1 &
    epmd=$!
    # RUNNING_UNDER_SYSTEMD: the script becomes the server, instead of staying beside it.
    # The flag -forebay-demo means nothing to Erlang; stop.sh knows the process by it.
    nohup ${as_user[@]+"${as_user[@]}"} env -i PATH="$PATH" LANG=C.UTF-8 HOME="$home" \
        ERL_EPMD_PORT="$epmd_port" ERL_EPMD_ADDRESS=127.0.0.1 \
        RUNNING_UNDER_SYSTEMD=true \
        RABBITMQ_NODENAME="forebay-demo-$suffix@localhost" \
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_NODE_PORT="$amqp" RABBITMQ_DIST_PORT="$dist" \
        RABBITMQ_CONF_ENV_FILE="$home/environment" RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" \
        RABBITMQ_CONFIG_FILES="$home/conf.d" RABBITMQ_ADVANCED_CONFIG_FILE="$home/advanced.config" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins" \
        RABBITMQ_MNESIA_BASE="$home/data" RABBITMQ_LOG_BASE="$home/log" RABBITMQ_LOGS=- \
        RABBITMQ_GENERATED_CONFIG_DIR="$home/config" RABBITMQ_SCHEMA_DIR="$home/schema" \
        RABBITMQ_PID_FILE="$home/pid" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-forebay-demo $tmp" \
        "$server" </dev/null >"$tmp/rabbitmq.log" 2>&1 &
    rabbitmq=$!
    set +m
    AMQP_URL=amqp://guest:guest@127.0.0.1:$amqp
    broker_is="a private rabbitmq-server (process $rabbitmq) on 127.0.0.1:$amqp"
}

# Beside erl, where it is not on the PATH.
epmd_program() {
    command -v epmd || erl -noshell -eval \
        'io:put_chars(filename:join([code:root_dir(), "bin", "epmd"])), halt().'
}

# Sets `ports` to three on which nobody listens, below those that the system gives to clients.
find_free_ports() {
    local port=$((20000 + RANDOM % 12000))
    ports=()
    while [ ${#ports[@]} -lt 3 ]; do
        port=$((port + 1))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || ports+=("$port")
    done
}

# wait_for_broker: until it takes what `forebay` says.
wait_for_broker() {
    local most=90 deadline answer
    [ "$broker" != given ] || most=10
    deadline=$((SECONDS + most))
    until answer=$(forebay queues --queue files --timeout 3s 2>&1); do
        if [ $SECONDS -ge $deadline ]; then
            broker_said
            die "the broker does not take us after ${most}s: $answer" "$(broker_remedy)"
        elif [ "$rabbitmq" ] && ! kill -0 "$rabbitmq" 2>/dev/null; then
            broker_said
            die "rabbitmq-server has ended (its last words are above)" "$(broker_remedy)"
        fi
        sleep 0.5
    done
}

broker_said() {
    case $broker in
        docker) docker logs --tail 20 "$container" >&2 || true ;;
        local) tail -n 20 "$tmp/rabbitmq.log" >&2 ;;
    esac
}

broker_remedy() {
    case $broker in
        given) printf 'check AMQP_URL; or unset it, and the demo starts a broker of its own' ;;
        docker) printf 'see what docker says; or try --broker local' ;;
        local) printf 'try --broker docker, or set AMQP_URL' ;;
    esac
}
