#!/usr/bin/env bash
# Makes sure that a RabbitMQ image is here: present already, else pulled, else built from Debian's packages.
#
#   obtain.sh [IMAGE]      IMAGE: the one pinned in producer/src/rabbitmq-image, unless given
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=docker/lib.sh
. "$here/../lib.sh"

image=${1:-$(<"$here/../../producer/src/rabbitmq-image")}

ensure_docker
if docker image inspect "$image" >/dev/null 2>&1; then
    say "$image is here"
    exit
fi

say "pulling $image"
if timeout 300 docker pull --quiet "$image" </dev/null >&2; then
    exit
fi

# Debian has no image for every version, only one RabbitMQ per suite.
case $image in
    rabbitmq:3.10*) suite=bookworm version=3.10 ;;
    rabbitmq:4.0*) suite=trixie version=4.0 ;;
    rabbitmq:4.3*) suite=forky version=4.3 ;;
    *) die "'$image' could not be pulled (docker's reason is above) and no Debian suite has its version" \
        "use rabbitmq:3.10-management, rabbitmq:4.0-management or rabbitmq:4.3-management, or 'docker load' the image" ;;
esac
say "$image could not be pulled: building a stand-in under that name from Debian's packages"
"$here/build-from-debian.sh" "$suite" "$image"

# A suite that is not yet released moves on; a wrong version under this name would make the tests lie.
built=$(docker run --rm "$image" rabbitmqctl version)
case $built in
    "$version".*) ;;
    *)
        docker image rm "$image" >/dev/null
        die "Debian $suite now has RabbitMQ $built, not $version" \
            "set FOREBAY_DEBIAN_MIRROR to a snapshot that still has $version, or change the suites in $0"
        ;;
esac
