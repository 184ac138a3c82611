"""Checks the files of this folder against the API schemas, and against each other.

usage: validate.py [RENDERED]    RENDERED: what `kubectl kustomize` has made of them
"""

import copy
import functools
import pathlib
import sys
import tomllib

import kubernetes_validate.utils
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus
from pydantic import ValidationError

# It reads megabytes for each document otherwise.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

HERE = pathlib.Path(__file__).parent
# The oldest and the newest that the files are meant for.
VERSIONS = ["1.32", "1.37"]
CUSTOM = {
    "keda.sh/v1alpha1": keda,
    "monitoring.coreos.com/v1": prometheus,
}
# No package carries the schema of RabbitmqCluster. These are the names that ours may use; what stands below
# `affinity` and `resources` is Kubernetes' own and is checked as part of a pod.
CLUSTER = {"replicas", "image", "persistence", "resources", "affinity", "rabbitmq"}
CLUSTER_PARTS = {"persistence": {"storage", "storageClassName"}, "rabbitmq": {"additionalConfig"}}
# The keys of KEDA's triggers are free text to its schema, and a misspelt one is ignored.
TRIGGER_KEYS = {
    "rabbitmq": {"protocol", "excludeUnacknowledged", "queueName", "mode", "value", "activationValue"},
    "metrics-api": {"url", "format", "valueLocation", "targetValue", "activationTargetValue",
                    "aggregateFromKubeServiceEndpoints", "aggregationType"},
}


def main():
    documents = read(HERE.glob("*.yaml"))
    for document in documents:
        faults(document)
    if len(sys.argv) > 1:
        for document in read([pathlib.Path(sys.argv[1])]):
            faults(document)
    fit(documents)
    count = negative(documents)
    print(f"{len(documents)} manifests are valid for Kubernetes {' and '.join(VERSIONS)}; "
          f"each of {count} misspelt fields was refused")


def read(paths):
    documents = []
    for path in sorted(paths):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] != "Kustomization":
                documents.append(document)
    return documents


def faults(document, versions=VERSIONS):
    """Raises ValueError if the API would refuse the document, or ignore a field of it."""
    name = f"{document['kind']} {document['metadata'].get('name') or document['metadata']['generateName']}"
    try:
        if document["kind"] == "RabbitmqCluster":
            cluster(document)
        elif document["apiVersion"] in CUSTOM:
            custom(document)
        else:
            for version in versions:
                kubernetes_validate.validate(document, version, strict=True)
    except (kubernetes_validate.ValidationError, ValidationError, ValueError) as error:
        raise ValueError(f"{name}: {getattr(error, 'message', error)}") from error


def custom(document):
    model = getattr(CUSTOM[document["apiVersion"]], document["kind"])
    known = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
    same(document, known, "")
    for trigger in document["spec"].get("triggers", []):
        unknown = set(trigger["metadata"]) - TRIGGER_KEYS[trigger["type"]]
        if unknown:
            raise ValueError(f"trigger {trigger['type']} has unknown keys {sorted(unknown)}")


def same(written, known, path):
    """The model leaves out what it does not know, as the API does."""
    if isinstance(written, dict):
        for key, value in written.items():
            if not isinstance(known, dict) or key not in known:
                raise ValueError(f"unknown field {path}.{key}")
            same(value, known[key], f"{path}.{key}")
    elif isinstance(written, list):
        for index, value in enumerate(written):
            same(value, known[index], f"{path}[{index}]")


def cluster(document):
    if set(document) != {"apiVersion", "kind", "metadata", "spec"} or set(document["metadata"]) != {"name"}:
        raise ValueError("unknown fields")
    spec = document["spec"]
    unknown = set(spec) - CLUSTER
    for part, keys in CLUSTER_PARTS.items():
        unknown |= set(spec.get(part, {})) - keys
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "part"},
        "spec": {
            "affinity": spec["affinity"],
            "containers": [{"name": "part", "image": spec["image"], "resources": spec["resources"]}],
        },
    }
    faults(pod, VERSIONS[-1:])


def fit(documents):
    """What one file says of another one."""
    kinds = {document["kind"]: document for document in documents}
    deployment, template = kinds["Deployment"], kinds["Deployment"]["spec"]["template"]
    container = template["spec"]["containers"][0]
    labels = template["metadata"]["labels"]
    name = deployment["metadata"]["name"]
    for selector in (deployment["spec"], kinds["PodDisruptionBudget"]["spec"], kinds["PodMonitor"]["spec"]):
        must(selector["selector"]["matchLabels"].items() <= labels.items(), "a selector does not match the workers")
    must(template["spec"]["serviceAccountName"] == kinds["ServiceAccount"]["metadata"]["name"], "service account")
    ports = {port["name"] for port in container["ports"]}
    used = {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    used |= {endpoint["port"] for endpoint in kinds["PodMonitor"]["spec"]["podMetricsEndpoints"]}
    must(used <= ports, "a port that the container does not have")

    must(kinds["Service"]["spec"]["selector"].items() <= labels.items(), "the service does not find the workers")
    must({port["targetPort"] for port in kinds["Service"]["spec"]["ports"]} <= ports, "a port of the service")
    must("replicas" not in deployment["spec"], "an apply would undo what KEDA has set")
    scaled = [document["spec"] for document in documents if document["kind"] == "ScaledObject"]
    must(all(spec["scaleTargetRef"]["name"] == name for spec in scaled), "KEDA scales something else")
    by_queue = [trigger for spec in scaled for trigger in spec["triggers"] if trigger["type"] == "rabbitmq"]
    secret = kinds["TriggerAuthentication"]["metadata"]["name"]
    must(all(trigger["authenticationRef"]["name"] == secret for trigger in by_queue), "KEDA's secret")

    manifest = tomllib.loads((HERE / "forebay.toml").read_text())
    grace = int(manifest["worker"]["grace"].removesuffix("s"))
    must(template["spec"]["terminationGracePeriodSeconds"] >= grace + 15, "the grace of the pod is too short")
    queues = {f"forebay.{queue}" for queue in manifest["queues"]}
    must({trigger["metadata"]["queueName"] for trigger in by_queue} == queues, "KEDA's queues")
    applied = kinds["Job"]["spec"]["template"]["spec"]["containers"][0]["args"]
    must(all(queue.split(".")[1] in applied for queue in queues), "a queue that nobody declares")

    kustomization = yaml.safe_load((HERE / "kustomization.yaml").read_text())
    files = kustomization["resources"] + kustomization["configMapGenerator"][0]["files"]
    must(all((HERE / file).is_file() for file in files), "kustomization.yaml names a file that is not there")


def must(holds, otherwise):
    if not holds:
        raise ValueError(f"these files do not fit together: {otherwise}")


def negative(documents):
    """Misspells every field once, except those that are free text to the API. Returns how many."""
    count = 0
    for document in documents:
        for path in fields(document):
            wrong = copy.deepcopy(document)
            parent = wrong
            for key in path[:-1]:
                parent = parent[key]
            parent[f"{path[-1]}x"] = parent.pop(path[-1])
            try:
                faults(wrong, VERSIONS[-1:])
            except (ValueError, KeyError):
                count += 1
                continue
            raise ValueError(f"{document['kind']}: misspelt {path} was taken")
    return count


# Any word may be the name of a resource, and of a label, which ours have a slash in.
FREE = {"requests", "limits"}


def fields(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            if "/" not in key and (not path or path[-1] not in FREE):
                yield (*path, key)
            yield from fields(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from fields(inner, (*path, index))


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
