#!/usr/bin/env bash
# Checks the manifests of this folder against the schemas of Kubernetes, KEDA and the Prometheus operator.
#
#   docker/kubernetes/test.sh      needs Python 3.11; installs the schemas into target/kubernetes-schemas
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=docker/lib.sh
. docker/lib.sh

here=docker/kubernetes
schemas=${CARGO_TARGET_DIR:-target}/kubernetes-schemas

if ! cmp -s "$here/requirements.txt" "$schemas/requirements.txt"; then
    python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || apt_install python3-venv
    rm -rf "$schemas"
    python3 -m venv "$schemas"
    "$schemas/bin/pip" --quiet install --requirement "$here/requirements.txt" ||
        die "pip could not install the schemas (its reason is above)" "mend the network or pip's settings, then run this again"
    cp "$here/requirements.txt" "$schemas/requirements.txt"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What would be applied, gateway included, names of the ConfigMaps and the image filled in.
if command -v kubectl >/dev/null; then
    cp "$here"/* "$work"
    sed 's/^  # - gateway.yaml/  - gateway.yaml/' "$here/kustomization.yaml" >"$work/kustomization.yaml"
    kubectl kustomize "$work" >"$work/rendered"
    "$schemas/bin/python" "$here/validate.py" "$work/rendered"
else
    say "kubectl is not installed: kustomization.yaml was not rendered"
    "$schemas/bin/python" "$here/validate.py"
fi
