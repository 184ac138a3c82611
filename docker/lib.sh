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

# The Debian mirror that this machine's apt uses, or FOREBAY_DEBIAN_MIRROR.
debian_mirror() {
    local mirror
    # shellcheck disable=SC2016 # $(REPO_URI) is for apt to fill in
    mirror=${FOREBAY_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sed -n '/^https\?:/{p;q}')}
    echo "${mirror:-http://deb.debian.org/debian}"
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

# ensure_compose: afterwards `docker compose` works, or the script has ended.
ensure_compose() {
    local package output=''
    if docker compose version >/dev/null 2>&1; then return; fi
    need_root_or_die "'docker compose' does not work, and installing it" \
        "install Docker Compose 2 (https://docs.docker.com/compose/install/)"
    apt_get update || die "'apt-get update' failed: $output" "mend apt's sources or the network, then run this again"
    # Docker's own repository, Ubuntu, Debian from 13 on. In Debian 12 the last one is version 1, a program of its own.
    for package in docker-compose-plugin docker-compose-v2 docker-compose; do
        case $(apt-cache policy "$package" | sed -n 's/^ *Candidate: //p') in
            1.* | '(none)' | '') continue ;;
        esac
        apt_install "$package"
        if docker compose version >/dev/null 2>&1; then return; fi
    done
    compose_from_trixie
    docker compose version >/dev/null ||
        die "'docker compose' does not work (docker's reason is above)" "install Docker Compose 2 by hand"
}

# Debian 13's package holds one program that needs nothing but the C library of Debian 12.
compose_from_trixie() {
    local work output='' plugins=/usr/local/lib/docker/cli-plugins mirror
    mirror=$(debian_mirror)
    say "installing docker-compose of Debian trixie into $plugins"
    apt_install debian-archive-keyring
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/sources.list"
    (
        cd "$work"
        options=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$work/lists"
            -o "Dir::Cache::PkgCache=" -o "Dir::Cache::SrcPkgCache=" -o APT::Sandbox::User=root)
        { apt_get "${options[@]}" update && apt_get "${options[@]}" download docker-compose; } ||
            die "docker-compose of Debian trixie could not be had from $mirror: $output" "install Docker Compose 2 by hand"
        dpkg-deb --extract docker-compose_*.deb root &&
            install -D -m 755 root/usr/libexec/docker/cli-plugins/docker-compose "$plugins/docker-compose"
    ) || exit 1
    rm -rf "$work"
}
