#!/bin/sh
# Starts RabbitMQ with the virtual host `forebay` and one user for each role. The passwords come from the
# environment, and only salted hashes of them are written. RabbitMQ loads the file at each start, so that
# a changed password holds after the next one. There is no administrator: rabbitmqctl in this container is.
set -eu
umask 077
file=/tmp/forebay-definitions.json

main() {
    operator=$(hash FOREBAY_OPERATOR_PASSWORD "${FOREBAY_OPERATOR_PASSWORD:-}")
    publisher=$(hash FOREBAY_PUBLISHER_PASSWORD "${FOREBAY_PUBLISHER_PASSWORD:-}")
    worker=$(hash FOREBAY_WORKER_PASSWORD "${FOREBAY_WORKER_PASSWORD:-}")
    gateway=$(hash FOREBAY_GATEWAY_PASSWORD "${FOREBAY_GATEWAY_PASSWORD:-}")
    # The permissions are those of docs/wire.md, for the namespace `forebay`.
    cat >"$file" <<JSON
{
  "vhosts": [{"name": "forebay"}],
  "users": [
    {"name": "operator", "password_hash": "$operator", "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ["monitoring"]},
    {"name": "publisher", "password_hash": "$publisher", "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": []},
    {"name": "worker", "password_hash": "$worker", "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": []},
    {"name": "gateway", "password_hash": "$gateway", "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": []}
  ],
  "permissions": [
    {"user": "operator", "vhost": "forebay", "configure": "^forebay(\\\\..*)?\$", "write": "^(amq\\\\.default|forebay(\\\\..*)?)\$", "read": "^forebay(\\\\..*)?\$"},
    {"user": "publisher", "vhost": "forebay", "configure": "^\$", "write": "^forebay(\\\\.events|\\\\.delay\\\\.[0-9]{2})?\$", "read": "^\$"},
    {"user": "worker", "vhost": "forebay", "configure": "^\$", "write": "^(amq\\\\.default|forebay(\\\\.dead-letters|\\\\.events|\\\\.delay\\\\.[0-9]{2})?)\$", "read": "^forebay\\\\.[a-z0-9_-]+\$"},
    {"user": "gateway", "vhost": "forebay", "configure": "^\$", "write": "^forebay(\\\\.events|\\\\.delay\\\\.[0-9]{2})?\$", "read": "^forebay\\\\.events\$"}
  ]
}
JSON
    unset FOREBAY_OPERATOR_PASSWORD FOREBAY_PUBLISHER_PASSWORD FOREBAY_WORKER_PASSWORD FOREBAY_GATEWAY_PASSWORD
    # The official image prepares its folders in a script of this name.
    if command -v docker-entrypoint.sh >/dev/null; then
        exec docker-entrypoint.sh rabbitmq-server
    fi
    exec rabbitmq-server
}

# hash VARIABLE PASSWORD: base64 of a salt and the SHA-256 of salt and password.
hash() {
    case $2 in
        '') refuse "$1 is empty" ;;
        *[!A-Za-z0-9._~-]*) refuse "$1 has other characters than letters, digits and . _ ~ -, and could not stand in a URL" ;;
    esac
    salt=$(od -An -N4 -tx1 /dev/urandom | tr -d ' \n')
    sum=$({ bytes "$salt"; printf %s "$2"; } | sha256sum)
    bytes "$salt${sum%% *}" | base64 | tr -d '\n'
}

# bytes HEX: what they stand for.
bytes() {
    for byte in $(printf %s "$1" | sed 's/../& /g'); do
        # shellcheck disable=SC2059 # the format is the byte
        printf "\\$(printf %03o "0x$byte")"
    done
}

refuse() {
    echo "error: $1" >&2
    echo "  remedy: set it in docker/.env, for example to what 'openssl rand -hex 24' prints" >&2
    exit 1
}

main
