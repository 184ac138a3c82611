#!/usr/bin/env bash
# Builds the image of Forebay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh
# shellcheck source=docker/debian.sh
. docker/debian.sh

usage() {
    cat <<'TEXT'
usage: docker/image.sh [--tag TAG] [--binaries DIR]

  --tag TAG       name of the image (default: forebay:latest)
  --binaries DIR  take forebay, forebay-run and forebay-gateway of DIR as they are, for
                  example target/release
  -h, --help      this text

Without --binaries it compiles them in rust:1-trixie (RUST_IMAGE names another image), or with this
machine's cargo if that image can neither be found nor pulled. The image is based on
debian:trixie-slim (BASE_IMAGE names another one). Where that cannot be pulled, a stand-in of the
same name is built from Debian's packages, as root on Debian or Ubuntu.
TEXT
}

main() {
    local tag=forebay:latest binaries=''
    while [ $# -gt 0 ]; do
        case $1 in
            --tag | --binaries)
                [ $# -ge 2 ] || die "$1 needs a value" "see docker/image.sh --help"
                set -- "$1=$2" "${@:3}"
                continue
                ;;
            --tag=*) tag=${1#*=} ;;
            --binaries=*) binaries=${1#*=} ;;
            -h | --help) usage; exit ;;
            *) die "cannot make sense of '$1'" "see docker/image.sh --help" ;;
        esac
        shift
    done
    ensure_docker
    obtain_base
    labels=(--build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)"
        --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
    if [ -z "$binaries" ] && here_or_pulled "$builder"; then
        say "building $tag: compiling in $builder (the first time it takes some minutes)"
        docker build --file docker/Dockerfile --build-arg "BASE_IMAGE=$base" --build-arg "RUST_IMAGE=$builder" \
            "${labels[@]}" --tag "$tag" . >&2
    else
        prebuilt "$tag" "${binaries:-$(compile)}"
    fi
    say "built $tag: $(docker run --rm "$tag" forebay-run --version), $(size "$tag")"
}

here_or_pulled() {
    docker image inspect "$1" >/dev/null 2>&1 && return
    say "pulling $1"
    timeout 300 docker pull --quiet "$1" </dev/null >&2
}

obtain_base() {
    if here_or_pulled "$base"; then return; fi
    case $base in
        debian:trixie-slim) ;;
        *) die "'$base' could not be pulled (docker's reason is above)" "unset BASE_IMAGE, or 'docker load' the image" ;;
    esac
    say "$base could not be pulled: building a stand-in under that name from Debian's packages"
    work=$(mktemp -d)
    # With apt, as in the official one, so that images can be built on it.
    debian_root trixie apt,ca-certificates,tini "$work/root.tar" --customize-hook="$apt_source"
    docker_import "$work/root.tar" "$base" "Debian trixie with tini, in place of the official image" 'CMD ["bash"]' \
        'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
    rm -rf "$work"
}

# Prints the folder of what it has compiled.
compile() {
    command -v cargo >/dev/null ||
        die "'$builder' could not be pulled (docker's reason is above) and cargo is not on the PATH" \
            "install Rust (https://rustup.rs), or give --binaries"
    cargo build --release --locked -p forebay-producer -p forebay-handlers -p forebay-gateway \
        --features forebay-handlers/full >&2
    echo "${CARGO_TARGET_DIR:-target}/release"
}

# prebuilt TAG DIR: from a context that holds the programs and nothing else.
prebuilt() {
    local program
    work=$(mktemp -d)
    for program in forebay forebay-run forebay-gateway; do
        [ -x "$2/$program" ] || die "there is no program $2/$program" "build it, or name its folder with --binaries"
        # Without debug information they are a fifth of the size. Not every machine has strip.
        strip -o "$work/$program" "$2/$program" 2>/dev/null || cp "$2/$program" "$work/$program"
    done
    chmod 755 "$work"/*
    say "building $1 from the programs in $2"
    docker build --quiet --file docker/Dockerfile --target prebuilt --build-arg "BASE_IMAGE=$base" "${labels[@]}" \
        --tag "$1" "$work" >&2 ||
        die "docker could not build '$1' (its reason is above)" \
            "if the C library is too old for the programs: compile them on Debian trixie or older, or set BASE_IMAGE"
    rm -rf "$work"
}

size() { docker image inspect --format '{{.Size}}' "$1" | awk '{ printf "%.0f MB", $1 / 1e6 }'; }

base=${BASE_IMAGE:-debian:trixie-slim} builder=${RUST_IMAGE:-rust:1-trixie}
# shellcheck disable=SC2016 # "$1" is for mmdebstrap to fill in
apt_source='echo "deb http://deb.debian.org/debian trixie main" >"$1/etc/apt/sources.list"'
labels=() work=''
trap 'rm -rf "$work"' EXIT
main "$@"
