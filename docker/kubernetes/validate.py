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
    named = {(document["kind"], document["metadata"].get("name")): document for document in documents}
    kinds = {document["kind"]: document for document in documents}
    worker = program(named, kinds["PodMonitor"], "forebay-worker")
    must(worker["serviceAccountName"] == kinds["ServiceAccount"]["metadata"]["name"], "service account")
    must("replicas" not in named["Deployment", "forebay-worker"]["spec"], "an apply would undo what KEDA has set")
    scaled = [document["spec"] for document in documents if document["kind"] == "ScaledObject"]
    must(all(spec["scaleTargetRef"]["name"] == "forebay-worker" for spec in scaled), "KEDA scales something else")
    by_queue = [trigger for spec in scaled for trigger in spec["triggers"] if trigger["type"] == "rabbitmq"]
    secret = kinds["TriggerAuthentication"]["metadata"]["name"]
    must(all(trigger["authenticationRef"]["name"] == secret for trigger in by_queue), "KEDA's secret")

    manifest = tomllib.loads((HERE / "forebay.toml").read_text())
    must(worker["terminationGracePeriodSeconds"] >= seconds(manifest["worker"]["grace"]) + 15,
         "the grace of the worker's pod is too short")
    queues = {f"forebay.{queue}" for queue in manifest["queues"]}
    must({trigger["metadata"]["queueName"] for trigger in by_queue} == queues, "KEDA's queues")
    applied = kinds["Job"]["spec"]["template"]["spec"]["containers"][0]["args"]
    must(all(queue.split(".")[1] in applied for queue in queues), "a queue that nobody declares")
    must("--events" in applied, "the stream of events, which nobody declares")
    gateway(program(named, kinds["PodMonitor"], "forebay-gateway"))

    kustomization = yaml.safe_load((HERE / "kustomization.yaml").read_text())
    maps = {map["name"]: map["files"] for map in kustomization["configMapGenerator"]}
    files = kustomization["resources"] + sum(maps.values(), [])
    must(all((HERE / file).is_file() for file in files), "kustomization.yaml names a file that is not there")
    used = {volume["configMap"]["name"] for (kind, _), document in named.items() if kind == "Deployment"
            for volume in document["spec"]["template"]["spec"]["volumes"] if "configMap" in volume}
    must(used == set(maps), "a ConfigMap that kustomization.yaml does not make")


def program(named, monitor, name):
    """What holds for each Deployment; returns its pod."""
    deployment = named["Deployment", name]
    template = deployment["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    for spec in (deployment["spec"], named["PodDisruptionBudget", name]["spec"]):
        must(spec["selector"]["matchLabels"].items() <= labels.items(), f"a selector does not match {name}")
    expression, = monitor["spec"]["selector"]["matchExpressions"]
    must(labels[expression["key"]] in expression["values"], f"the PodMonitor does not find {name}")
    service = named["Service", name]["spec"]
    must(service["selector"].items() <= labels.items(), f"the service does not find {name}")
    container, = pod["containers"]
    ports = {port["name"] for port in container["ports"]}
    used = {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    used |= {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    used |= {port["targetPort"] for port in service["ports"]}
    must(used <= ports, f"a port that {name} does not have")
    mounts, volumes = (
        {entry["name"] for entry in entries} for entries in (container["volumeMounts"], pod["volumes"])
    )
    must(mounts == volumes, f"a volume of {name}")
    return pod


def gateway(pod):
    settings = tomllib.loads((HERE / "gateway.toml").read_text())
    container, = pod["containers"]
    begun = container["lifecycle"]["preStop"]["sleep"]["seconds"] + 2 * seconds(settings["grace"])
    must(pod["terminationGracePeriodSeconds"] >= begun + 10, "the grace of the gateway's pod is too short")
    folder = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    there = {f"{folder[volume['name']]}/{item['path']}"
             for volume in pod["volumes"] if "secret" in volume for item in volume["secret"]["items"]}
    for key in ("secret_file", "ticket_key_file"):
        must(settings["auth"][key] in there, f"{key} is not in the pod")


def seconds(text):
    return int(text.removesuffix("s"))


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
