#!/usr/bin/env bash
# Runs every check that a change must pass; continuous integration runs exactly this.
set -euo pipefail
exec </dev/null # nothing here may wait for an answer
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

usage() {
    cat <<'TEXT'
usage: docker/test.sh [--fast] [--matrix] [-- ARGS FOR CARGO TEST]

  --fast      only cargo's tests: installs nothing; no formatting, lint or documentation checks, no image,
              no faults
  --matrix    the tests on RabbitMQ 3.10, 4.0 and 4.3, not on the pinned version only
  -h, --help  this text

The tests start RabbitMQ in containers. The image is the one named in producer/src/rabbitmq-image,
or in FOREBAY_RABBITMQ_IMAGE. As root on Debian or Ubuntu, what is missing is installed.

  docker/test.sh --fast -- -p forebay-worker retry     one crate, tests with "retry" in the name
TEXT
}

main() {
    local fast='' matrix=''
    while [ $# -gt 0 ]; do
        case $1 in
            --fast) fast=1 ;;
            --matrix) matrix=1 ;;
            -h | --help) usage; exit ;;
            --) shift; break ;;
            *) die "unknown option '$1'" "see docker/test.sh --help; arguments for cargo test go after --" ;;
        esac
        shift
    done
    local images=("${FOREBAY_RABBITMQ_IMAGE:-$(<producer/src/rabbitmq-image)}")
    if [ "$matrix" ]; then
        images=(rabbitmq:3.10-management rabbitmq:4.0-management rabbitmq:4.3-management)
        unset AMQP_URL # it would put one broker in place of all of them
    fi

    # cargo ignores --package beside --workspace.
    local scope=(--workspace)
    case " $* " in *" -p "* | *" --package"*) scope=() ;; esac

    log=$(mktemp)
    trap finish EXIT
    [ "$fast" ] || step "install what the tests need" install_needs
    step "docker" ensure_docker
    local image
    for image in "${images[@]}"; do
        step "image $image" docker/rabbitmq/obtain.sh "$image"
    done
    choose_python
    need_node
    if [ -z "$fast" ]; then
        step "format" cargo fmt --all --check
        step "lint" cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
        step "lint of each feature" features
        step "documentation" documentation
        step "dependencies" dependencies
        step "unit for systemd" docker/systemd/test.sh
        step "manifests for Kubernetes" docker/kubernetes/test.sh
        step "arithmetic of docker/peers" python3 -m unittest discover --quiet --start-directory docker/peers
    fi
    local targets=()
    for image in "${images[@]}"; do
        step "tests on $image" run_tests "$image" "${scope[@]}" "${targets[@]}" "$@"
        targets=(--tests) # documentation examples do not depend on the broker's version
        # Apart from the others: it takes the machine for itself. Not when single tests are asked for.
        [ "$fast" ] || [ $# -gt 0 ] || step "faults, short form, on $image" faults "$image"
    done
    [ "$fast" ] || [ $# -gt 0 ] || step "instructions of a job" docker/instructions.sh
    # What ships has no OpenTelemetry unless it is asked for.
    [ "$fast" ] || step "logs without otel" cargo test -p forebay-handlers --locked --test it logs::
    [ "$fast" ] || step "image and compose" docker/deploy/test.sh
}

# step NAME COMMAND...: a heading, the command, and a line for the summary. Failing ends the script.
step() {
    current=$1
    local started=$SECONDS
    printf '\n==> %s\n' "$current"
    "${@:2}"
    summary+=("$(printf '%5ss  %s' $((SECONDS - started)) "$current")")
    printf '<== %s: %ss\n' "$current" $((SECONDS - started))
    current=''
}

install_needs() {
    command -v cargo >/dev/null || die "cargo is not on the PATH" "install Rust: https://rustup.rs"
    command -v cc >/dev/null || apt_install gcc libc6-dev
    command -v pkg-config >/dev/null || apt_install pkg-config
    # The tests of what other languages see publish and consume with pika; those of email.send have
    # their mail server from aiosmtpd; python-socketio is one of the gateway's stock clients.
    python_for_tests >/dev/null || apt_install python3 python3-pika python3-aiosmtpd \
        python3-socketio python3-requests python3-websocket
    # And with amqplib and socket.io-client; functions in JavaScript run in node too.
    command -v node >/dev/null || apt_install nodejs
    local folder
    for folder in "${npm_folders[@]}"; do
        [ "$folder/node_modules/.package-lock.json" -nt "$folder/package-lock.json" ] || install_npm "$folder"
    done
    # Pages use the gateway in a real browser.
    [ -n "${FOREBAY_CHROMIUM:-}" ] || has_chromium || apt_install chromium
    # Asks the gateway by its own description.
    [ -n "${FOREBAY_SCHEMATHESIS:-}" ] || install_schemathesis
    # The stores of idempotency keys: the tests start servers of their own from these packages.
    [ -n "${FOREBAY_TEST_REDIS_URL:-}" ] || command -v redis-server >/dev/null || apt_install redis-server
    [ -n "${FOREBAY_TEST_POSTGRES_URL:-}" ] || has_postgres || apt_install postgresql
    # Counts the instructions of a job; without it that step is skipped.
    command -v valgrind >/dev/null || ! is_root_on_debian || apt_install valgrind
}

# Debian keeps the programs of each version apart.
has_postgres() { command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }

has_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null

# The very files that package-lock.json names by their hashes.
install_npm() {
    command -v npm >/dev/null || apt_install npm
    local output
    output=$(npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund 2>&1) ||
        die "npm could not install what $1 needs: $output" "look at the network, then: npm ci --prefix $1"
}

# In a folder of its own, since Debian has none and its Python takes nothing from pip.
install_schemathesis() {
    local wanted=gateway/tests/openapi/requirements.txt into=${CARGO_TARGET_DIR:-target}/schemathesis
    if ! cmp -s "$wanted" "$into/requirements.txt"; then
        python3 -c 'import venv, ensurepip' 2>/dev/null || apt_install python3-venv
        rm -rf "$into"
        python3 -m venv "$into"
        "$into/bin/pip" --quiet install --requirement "$wanted" ||
            die "pip could not install schemathesis (its reason is above)" "mend the network or pip's settings, then run this again"
        cp "$wanted" "$into/requirements.txt"
    fi
    FOREBAY_SCHEMATHESIS=$(realpath "$into")/bin/schemathesis
    export FOREBAY_SCHEMATHESIS
}

need_node() {
    command -v node >/dev/null ||
        die "node is not on the PATH" "run docker/test.sh without --fast as root, or install Node 18 or newer"
    local folder
    for folder in "${npm_folders[@]}"; do
        [ -d "$folder/node_modules" ] ||
            die "what $folder needs is not installed" "run docker/test.sh without --fast, or: npm ci --prefix $folder"
    done
}

# The python3 on the PATH may be another one than Debian's, without Debian's packages.
python_for_tests() {
    local python
    for python in "${FOREBAY_PYTHON:-}" python3 /usr/bin/python3; do
        if [ -n "$python" ] && "$python" -c 'import pika, aiosmtpd, socketio' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}

choose_python() {
    FOREBAY_PYTHON=$(python_for_tests) ||
        die "no python3 here can import pika, aiosmtpd and socketio" \
            "run docker/test.sh without --fast as root, or: pip install pika aiosmtpd 'python-socketio[client]'"
    export FOREBAY_PYTHON
}

# What is shipped has not all features, and what users build has any of them.
features() {
    local feature
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo check -p forebay-producer --no-default-features --locked
    for feature in '' redis postgres otel; do
        cargo check -p forebay-worker --no-default-features --features "$feature" --locked
    done
    for feature in '' bench cli email image postgres redis; do
        cargo check -p forebay-handlers --no-default-features --features "$feature" --locked
    done
    cargo check -p forebay-gateway --no-default-features --locked
}

# Of the libraries: what stands over the arguments of a program is its --help.
documentation() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --lib --all-features --no-deps --locked; }

dependencies() {
    if cargo deny --version >/dev/null 2>&1; then
        cargo deny check bans licenses sources
    else
        echo "skipped: cargo-deny is not installed (cargo install --locked cargo-deny)"
    fi
}

# run_tests IMAGE ARGS FOR CARGO TEST...
run_tests() {
    remove_containers # a shared broker of another version would be taken for this one's
    FOREBAY_RABBITMQ_IMAGE=$1 cargo test --all-features --locked "${@:2}" 2>&1 | tee "$log"
    awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
         END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$log"
}

faults() { FOREBAY_RABBITMQ_IMAGE=$1 docker/faults.sh --once; }

# The tests share one broker and cannot know which of them is the last, so it is removed here.
remove_containers() {
    local containers
    containers=$(docker ps --all --quiet --filter label=forebay.test 2>/dev/null) || return 0
    # shellcheck disable=SC2086 # one word for each container
    [ -z "$containers" ] || docker rm --force --volumes $containers >/dev/null
    # Those of clusters whose test was killed; one that is in use stays.
    docker network ls --quiet --filter name=forebay-test- | xargs --no-run-if-empty docker network rm >/dev/null 2>&1 || true
}

finish() {
    local status=$?
    remove_containers || say "some test containers are still there: docker ps --filter label=forebay.test"
    rm -f "$log"
    printf '\n'
    [ ${#summary[@]} -eq 0 ] || printf '%s\n' "${summary[@]}"
    # A signal leaves no status, but a step that has not ended.
    if [ $status -eq 0 ] && [ -z "$current" ]; then
        printf 'all checks passed in %ss\n' "$SECONDS"
    else
        printf 'failed: %s (the reason is above)\n' "${current:-docker/test.sh}"
    fi
}

summary=() current='' log='' npm_folders=(producer/tests/amqplib gateway/tests/socketio)
main "$@"
