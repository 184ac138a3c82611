# Helpers shared by the scripts in docker/. Source it, do not run it.
# shellcheck shell=bash

say() { printf '%s\n' "$*" >&2; }

# die MESSAGE REMEDY: what failed and why, then what to do about it.
die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  remedy: %s\n' "$2" >&2
    exit 1
}

is_root_on_debian() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

# need_root_or_die WHAT REMEDY
need_root_or_die() { is_root_on_debian || die "$1 needs root on Debian or Ubuntu" "$2"; }

# apt_install PACKAGE...: installs those that are missing; asks nothing.
apt_install() {
    local package output='' missing=()
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    need_root_or_die "installing ${missing[*]}" "install by hand: ${missing[*]}"
    say "installing ${missing[*]}"
    apt_get update || die "'apt-get update' failed: $output" "mend apt's sources or the network, then run this again"
    apt_get install -y --no-install-recommends "${missing[@]}" ||
        die "apt-get could not install ${missing[*]}: $output" "install by hand: ${missing[*]}"
}

# Quiet: leaves what apt-get said in `output`, for when it failed.
apt_get() {
    output=$(DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" </dev/null 2>&1)
}

# macOS has none. There we wait for as long as it takes.
command -v timeout >/dev/null || timeout() { shift && "$@"; }

docker_answers() { timeout 20 docker info >/dev/null 2>&1; }

# ensure_docker: afterwards `docker` talks to a daemon, or the script has ended.
# It asks the daemon, not the PATH: a docker command without an engine is common.
ensure_docker() {
    if docker_answers; then return; fi
    [ -z "${DOCKER_HOST:-}" ] ||
        die "no Docker daemon answers at DOCKER_HOST=$DOCKER_HOST" "start it there, or unset DOCKER_HOST"
    need_root_or_die "no Docker daemon answers, and starting one" \
        "install Docker Engine, start it (sudo systemctl start docker) and join the group docker"
    if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
        apt_install docker.io ca-certificates
    fi
    if [ -d /run/systemd/system ]; then
        systemctl start docker || die "systemctl start docker failed" "see: journalctl -u docker"
        docker_answers || die "dockerd runs, yet 'docker info' fails" "see: docker info; journalctl -u docker"
    else
        start_dockerd
    fi
}

# For machines without an init system, such as most CI machines.
start_dockerd() {
    local log=${TMPDIR:-/tmp}/dockerd.log file deadline=$((SECONDS + 60)) dockerd
    # A pid file left by a machine that was switched off may name a process that is now another one.
    for file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
        [ ! -f "$file" ] || grep -qsE '^(dockerd|containerd)$' "/proc/$(<"$file")/comm" || rm -f "$file"
    done
    say "starting dockerd (log: $log)"
    setsid nohup dockerd </dev/null >"$log" 2>&1 &
    dockerd=$!
    until docker_answers; do
        if [ $SECONDS -ge $deadline ] || ! kill -0 $dockerd 2>/dev/null; then
            tail -n 20 "$log" >&2
            die "dockerd does not answer (the end of $log is above)" \
                "start Docker by hand until 'docker info' works, then run this again"
        fi
        sleep 0.5
    done
}
