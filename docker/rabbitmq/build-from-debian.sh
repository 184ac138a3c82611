#!/usr/bin/env bash
# Builds a RabbitMQ image out of Debian's packages, for where no image can be pulled.
#
#   build-from-debian.sh SUITE TAG
#   build-from-debian.sh forky rabbitmq:4.3-management
#
# SUITE is bookworm (RabbitMQ 3.10), trixie (4.0) or forky (4.3). TAG is the name the image gets;
# an image of that name is replaced. It behaves like the official image as far as Forebay needs:
# same ports, conf.d, data directory, RABBITMQ_DEFAULT_USER/PASS/VHOST and RABBITMQ_ERLANG_COOKIE.
# Packages come from this machine's Debian mirror, or from FOREBAY_DEBIAN_MIRROR.
# shellcheck disable=SC2016 # "$1" is for mmdebstrap to fill in
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=docker/lib.sh
. "$here/../lib.sh"
# shellcheck source=docker/debian.sh
. "$here/../debian.sh"

[ $# -eq 2 ] || die "expected SUITE and TAG, got $# arguments" "build-from-debian.sh forky rabbitmq:4.3-management"
suite=$1 tag=$2
case $suite in
    bookworm | trixie | forky) ;;
    *) die "suite '$suite' is not known to work" "use bookworm (RabbitMQ 3.10), trixie (4.0) or forky (4.3)" ;;
esac
ensure_docker

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Named as in the official image, so that files mounted beside it sort, and override, the same way.
cat >"$work/10-defaults.conf" <<'CONF'
# guest may log in through a mapped port, not from loopback only
loopback_users = none
CONF
echo '[rabbitmq_management,rabbitmq_prometheus].' >"$work/enabled_plugins"

# The standalone packages keep systemd itself out. An Erlang cookie made by the package would be the
# same in every container, so it goes too.
say "building $tag from Debian $suite"
debian_root "$suite" rabbitmq-server,systemd-standalone-sysusers,systemd-standalone-tmpfiles "$work/root.tar" \
    --customize-hook='mkdir -p "$1/etc/rabbitmq/conf.d"' \
    --customize-hook="copy-in $work/10-defaults.conf /etc/rabbitmq/conf.d" \
    --customize-hook="copy-in $work/enabled_plugins /etc/rabbitmq" \
    --customize-hook='cd "$1" && ln -s usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins plugins' \
    --customize-hook='chroot "$1" chown -R rabbitmq:rabbitmq /etc/rabbitmq /var/lib/rabbitmq /var/log/rabbitmq' \
    --customize-hook='rm -rf "$1/var/lib/rabbitmq/.erlang.cookie"'

# PATH: Debian's own wrapper in /usr/sbin sends rabbitmq-server's output to files; the scripts behind it do not.
# RABBITMQ_PLUGINS_DIR: rabbitmq-plugins does not find it by itself on every suite.
# RUNNING_UNDER_SYSTEMD: makes the server process 1, so that it gets docker's signals.
# ERL_MAX_PORTS: Erlang sizes a table by the limit of open files, which under docker may be a thousand million.
# +sbwt none: idle schedulers sleep instead of spinning; the tests share the cores.
docker_import "$work/root.tar" "$tag" "RabbitMQ from Debian $suite, in place of the official image" \
    'ENV PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/var/lib/rabbitmq LANG=C.UTF-8' \
    'ENV RABBITMQ_LOGS=- RABBITMQ_PLUGINS_DIR=/plugins RUNNING_UNDER_SYSTEMD=true ERL_MAX_PORTS=65536' \
    'ENV RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none"' \
    'WORKDIR /var/lib/rabbitmq' \
    'USER rabbitmq' \
    'EXPOSE 5672 15672 15692' \
    'CMD ["rabbitmq-server"]'

say "built $tag: RabbitMQ $(docker run --rm "$tag" rabbitmqctl version) from Debian $suite, a stand-in for the official image"
