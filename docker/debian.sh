# Images out of Debian's packages, for where none can be pulled. Source it after lib.sh, do not run it.
# shellcheck shell=bash
# shellcheck disable=SC2016 # "$1" is for mmdebstrap to fill in

# debian_root SUITE PACKAGES TAR [MMDEBSTRAP OPTION...]: a small root file system with these packages.
# They come from this machine's Debian mirror, or from FOREBAY_DEBIAN_MIRROR.
debian_root() {
    local suite=$1 packages=$2 tar=$3 mirror log status=0 apt_options=()
    shift 3
    apt_install mmdebstrap debian-archive-keyring
    mirror=$(debian_mirror)

    # What this machine's apt needs to reach its mirror (proxy, certificates, credentials) holds for this too.
    mapfile -t apt_options < <(apt-config dump | sed -nE 's/^(Acquire::(https?|Retries|Check)[^ ]* .*)/--aptopt=\1/p')
    apt_options+=(
        '--aptopt=Dir::Etc::netrc "/etc/apt/auth.conf"'
        '--aptopt=Dir::Etc::netrcparts "/etc/apt/auth.conf.d"'
        '--aptopt=Acquire::Check-Valid-Until "false"' # a mirror of a testing suite may lag behind its week of validity
    )

    # apt's settings do not stay in the image: they may hold credentials.
    log=$(mktemp)
    mmdebstrap --variant=essential --components=main --include="$packages" \
        "${apt_options[@]}" \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -rf "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1"/etc/apt/sources.list*' \
        "$@" \
        "$suite" "$tar" "$mirror" </dev/null >"$log" 2>&1 || status=$?
    [ $status -eq 0 ] || tail -n 15 "$log" >&2
    rm -f "$log"
    [ $status -eq 0 ] ||
        die "mmdebstrap could not build suite '$suite' from $mirror (its reason is above)" \
            "set FOREBAY_DEBIAN_MIRROR to a mirror that has '$suite'; a missing key means debian-archive-keyring is too old"
}

# docker_import TAR TAG LABEL [CHANGE...]: an image of what debian_root has made. LABEL says what it stands in for.
docker_import() {
    local tar=$1 tag=$2 label=$3 change changes=()
    shift 3
    for change in "$@"; do
        changes+=(--change "$change")
    done
    docker import "${changes[@]}" --change "LABEL forebay.stand-in=\"$label\"" "$tar" "$tag" >/dev/null ||
        die "docker could not import the image as '$tag'" "check the name, and 'df' of docker's directory"
    # The image that had the name before is of no use to anyone now.
    docker image prune --force --filter label=forebay.stand-in >/dev/null
}
