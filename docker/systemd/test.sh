#!/usr/bin/env bash
# Has systemd check the unit of this folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! command -v systemd-analyze >/dev/null; then
    echo "skipped: systemd-analyze is not installed"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# It looks for the program too.
sed "s#^ExecStart=/usr/local/bin/forebay-run#ExecStart=$(command -v true)#" forebay-worker.service >"$work/forebay-worker.service"
# An unknown key is a warning to it, and no fault.
said=$(systemd-analyze verify "$work/forebay-worker.service" 2>&1) || said="it failed. $said"
if [ -n "$said" ]; then
    printf '%s\n' "$said" >&2
    exit 1
fi
echo "forebay-worker.service is fine for $(systemd-analyze --version | head -n 1)"
