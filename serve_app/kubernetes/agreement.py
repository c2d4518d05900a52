"""Checks that the manifests' numbers agree with each other, the configuration, and the code that they deploy."""

from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from deployments.annotators.spec import network_sources
from deployments.engine.protocol.spec import sources_of
from deployments.pins import convert_command
from serve_app.config.secret import Secret
from serve_app.config.server import AppConfig
from serve_app.kubernetes.manifests import Manifests, PodTemplate
from serve_app.kubernetes.rendering import PORT
from serve_app.kubernetes.serve_schema import configuration_of

GPU: Final = "nvidia.com/gpu"
DRAIN: Final = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
NODES: Final = "darkroom-nodes"

COLD_START_S: Final = 190.0
"""What a request waits where there is neither replica nor machine: 120 s and 45 s, 15 % longer (docs/scaling.md)."""

STORE: Final = "object-store-memory"

UNITS: Final = {"Mi": 2**20, "Gi": 2**30}

SHARE_OF_SHM: Final = 0.95
"""Of /dev/shm: Ray puts an object store that needs more than is free there on the container's disk."""


def find_disagreements(manifests: Manifests) -> Iterator[str]:
    """Yields each disagreement as one line."""
    config = configuration_of(manifests)
    if (ray_version := manifests.cluster.get("rayVersion")) != version("ray"):
        yield f"rayVersion: it says {ray_version}, and the code runs on {version('ray')}"
    yield from _check_drain(manifests, config)
    yield from _check_cold_starts(config)
    yield from _check_gpus(manifests, config)
    yield from _check_capacity(manifests, config)
    for pod in manifests.ray_pods():
        yield from _check_pod(pod)
    yield from _check_object_stores(manifests)
    yield from _check_secrets(manifests, config)
    yield from _check_folders(manifests, config)
    yield from _check_disruption_budgets(manifests)
    yield from _check_pins(config)
    yield from _check_sizes(config)


def _check_drain(manifests: Manifests, config: AppConfig) -> Iterator[str]:
    """Checks that each of these periods is longer than the one before. The head has no replicas to drain."""
    replicas = [deployment.graceful_shutdown_timeout_s for deployment in config.deployments]
    steps: list[tuple[str, float | None]] = [
        ("ingress.request_timeout_s", config.ingress.request_timeout_s),
        ("the shortest graceful_shutdown_timeout_s of a deployment", min(replicas)),
        ("the longest graceful_shutdown_timeout_s of a deployment", max(replicas) + 1e-9),
        ("ingress.graceful_shutdown_timeout_s", config.ingress.graceful_shutdown_timeout_s),
    ]
    for pod in manifests.worker_pods():
        drain = [float(each["value"]) for each in pod.main.get("env", ()) if each["name"] == DRAIN]
        ends = [
            *steps,
            (f"{pod.name}: {DRAIN}", drain[0] if drain else None),
            (f"{pod.name}: terminationGracePeriodSeconds", pod.spec.get("terminationGracePeriodSeconds")),
            ("rayClusterDeletionDelaySeconds", manifests.service["spec"].get("rayClusterDeletionDelaySeconds")),
        ]
        for (shorter, low), (longer, high) in pairwise(ends):
            if low is None or high is None or low >= high:
                yield f"drain: {shorter} ({low}) must be less than {longer} ({high})"


def _check_cold_starts(config: AppConfig) -> Iterator[str]:
    """Checks that whoever wakes a deployment without replicas is still there when one can answer."""
    longest = config.ingress.request_timeout_s
    for deployment in config.deployments:
        scaling = deployment.autoscaling
        if scaling is not None and scaling.min_replicas == 0 and longest is not None and longest <= COLD_START_S:
            yield (
                f"deployment {deployment.name}: min_replicas is 0, so ingress.request_timeout_s ({longest}) must be "
                f"more than {COLD_START_S:g}, which a replica and its machine take to start"
            )


def _check_gpus(manifests: Manifests, config: AppConfig) -> Iterator[str]:
    for pod in manifests.ray_pods():
        asked, limit = (_amounts(pod, kind).get(GPU) for kind in ("requests", "limits"))
        if asked != limit:
            yield f"{pod.name}: it asks for {asked} GPUs and its limit is {limit}"
    largest = max((_gpus_of(group) for group in manifests.groups), default=0)
    for deployment in config.deployments:
        if deployment.num_gpus > largest:
            yield f"deployment {deployment.name}: no worker has the {deployment.num_gpus:g} GPUs of a replica"
    if config.training is not None and config.training.num_gpus > largest:
        yield f"training: no worker has the {config.training.num_gpus:g} GPUs of a training"


def _check_capacity(manifests: Manifests, config: AppConfig) -> Iterator[str]:
    """Checks that all replicas that the configuration allows find a place, and the extra ones of an update as well."""
    trainings = 0 if config.training is None else config.ingress.replicas * config.training.running
    most = sum(deployment.num_gpus * deployment.most_replicas for deployment in config.deployments)
    most += 0 if config.training is None else trainings * config.training.num_gpus
    there = sum(_gpus_of(group) * group.get("maxReplicas", 0) for group in manifests.groups)
    if most > there:
        yield f"room: deployments and trainings may want {most:g} GPUs, and all groups together may have {there:g}"
    if config.ingress.replicas > 1 and config.ingress.max_replicas_per_node is None:
        yield "ingress: without max_replicas_per_node one node may have all replicas, and take them along"
    cpus = 2 * config.ingress.replicas * config.ingress.num_cpus
    cpus += sum(deployment.num_cpus * deployment.most_replicas for deployment in config.deployments)
    cpus += 0 if config.training is None else trainings * config.training.num_cpus
    there = sum(_cpus_of(group) * group.get("maxReplicas", 0) for group in manifests.groups)
    if cpus > there:
        yield f"room: everything together may want {cpus:g} CPUs, and all groups together may have {there:g}"


def _check_pod(pod: PodTemplate) -> Iterator[str]:
    ports = {each["containerPort"]: each["name"] for each in pod.main.get("ports", ())}
    if ports.get(PORT) != "serve":
        yield f"{pod.name}: port {PORT}, where Serve's proxy listens, must be named `serve`"
    if "metrics" not in ports.values():
        yield f"{pod.name}: Prometheus looks for a port named `metrics`"
    if NODES not in {each.get("configMapRef", {}).get("name") for each in pod.main.get("envFrom", ())}:
        yield f"{pod.name}: its environment must come from the ConfigMap {NODES}"
    memory = [_amounts(pod, kind).get("memory") for kind in ("requests", "limits")]
    if memory[0] is None or memory[0] != memory[1]:
        yield f"{pod.name}: memory asked for and limit must be the same, for Ray counts on all of it"
    if "readinessProbe" in pod.main or "livenessProbe" in pod.main:
        yield f"{pod.name}: KubeRay's own probes ask Ray and Serve; with one in the manifest it makes none"
    if "lifecycle" in pod.main:
        yield f"{pod.name}: a preStop hook would end Ray before it has drained"


def _check_object_stores(manifests: Manifests) -> Iterator[str]:
    groups = [manifests.cluster["headGroupSpec"], *manifests.groups]
    for pod, group in zip(manifests.ray_pods(), groups, strict=True):
        asked = int(group.get("rayStartParams", {}).get(STORE, 0))
        there = _shared_memory_of(pod)
        if not 0 < asked <= SHARE_OF_SHM * there:
            yield f"{pod.name}: {STORE} is {asked}; set it, to at most {SHARE_OF_SHM} of the {there} bytes of /dev/shm"


def _shared_memory_of(pod: PodTemplate) -> int:
    """The bytes of the volume that is mounted on /dev/shm; 0 without one."""
    mount = _mount_of(pod, "/dev/shm")
    volumes = [each for each in pod.spec.get("volumes", ()) if mount is not None and each["name"] == mount["name"]]
    sizes = [each["emptyDir"]["sizeLimit"] for each in volumes if each.get("emptyDir", {}).get("medium") == "Memory"]
    return sum(int(size[:-2]) * UNITS[size[-2:]] for size in sizes)


def _check_secrets(manifests: Manifests, config: AppConfig) -> Iterator[str]:
    """Checks that the secrets are available wherever a replica of the ingress can run, which is on any worker."""
    for pod in manifests.worker_pods():
        names = {each["name"] for each in pod.main.get("env", ())}
        for what, secret in _secrets_in(config):
            if secret.env is not None and secret.env not in names:
                yield f"{pod.name}: {what} is read from {secret.env}, which is not in its environment"
            if secret.file is not None and _mount_of(pod, secret.file) is None:
                yield f"{pod.name}: {what} is read from {secret.file}, where nothing is mounted"


def _secrets_in(value: object, path: str = "") -> Iterator[tuple[str, Secret]]:
    """Yields every reference to a secret in the configuration, or a part of it, and where it stands."""
    if isinstance(value, Secret):
        yield path, value
    elif isinstance(value, BaseModel):
        for name, inner in value:
            yield from _secrets_in(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, tuple):
        for i, inner in enumerate(value):
            yield from _secrets_in(inner, f"{path}[{i}]")


def _check_folders(manifests: Manifests, config: AppConfig) -> Iterator[str]:
    """Checks that files are where they are found, read and written: on any worker."""
    training = config.training
    paths = [("embeddings are read from", str(place)) for place in config.embeddings.places if place.is_absolute()]
    paths += [("loras are read from", row.source) for row in config.loras.named if not row.file]
    paths += [] if config.loras.folder is None else [("loras are read from", config.loras.folder)]
    paths += [] if training is None else [("trainings write to", training.folder)]
    written = () if training is None else (("training.folder", training.folder), ("loras.folder", config.loras.folder))
    for pod in manifests.worker_pods():
        for what, path in paths:
            if _mount_of(pod, path) is None:
                yield f"{pod.name}: {what} {path}, where nothing is mounted"
        for field, place in written:
            mount = None if place is None else _mount_of(pod, place)
            if mount is not None and mount.get("readOnly"):
                yield f"{pod.name}: trainings write to {field}, {place}, and {mount['mountPath']} is mounted readOnly"


def _mount_of(pod: PodTemplate, path: str | Path) -> dict[str, Any] | None:
    """The volume mount that `path` is on: the innermost, where one lies in another."""
    around = [each for each in pod.main.get("volumeMounts", ()) if Path(path).is_relative_to(each["mountPath"])]
    return max(around, key=lambda each: len(Path(each["mountPath"]).parts), default=None)


def _check_sizes(config: AppConfig) -> Iterator[str]:
    """Checks that no model's files are read to build the application: Ray may do that where no volume is mounted."""
    specs = {spec.name: spec for deployment in config.deployments for spec in config.specs_of(deployment)}
    for name in (spec.name for spec in specs.values() if not spec.native_size):
        yield f"models: {name}: give its `native_size`; its files may not be there where the application is built"


def _check_disruption_budgets(manifests: Manifests) -> Iterator[str]:
    """Checks disruption budgets. A RayCluster has no scale subresource to tell Kubernetes how many pods are wanted."""
    for budget in manifests.of_kind("PodDisruptionBudget"):
        if not isinstance(budget["spec"].get("minAvailable"), int):
            name = budget["metadata"]["name"]
            yield f"PodDisruptionBudget {name}: of Ray's pods only `minAvailable`, as a number, ever lets one go"


def _check_pins(config: AppConfig) -> Iterator[str]:
    """Checks weights: what comes from the hub must be a commit with safetensors. Folders are their owner's concern."""
    found = [spec for deployment in config.deployments for spec in config.specs_of(deployment)]
    parts = [part for spec in found for part in sources_of(spec)]
    parts += [part for annotator in config.annotators.specs().values() for part in network_sources(annotator).values()]
    loose = {part.source for part in parts if part.revision is None and not Path(part.source).is_absolute()}
    pickled = {part.source: command for part in parts if (command := convert_command(part.source, part.revision))}
    for source, command in sorted(pickled.items()):
        yield f"weights: {source} has pickled weights only; `{command}` makes a folder to set as its `source`"
    for source in sorted(loose - set(pickled)):
        yield f"weights: pin {source} to a commit, as its `revision` in darkroom.yaml"


def _amounts(pod: PodTemplate, kind: str) -> dict[str, Any]:
    amounts: dict[str, Any] = pod.main.get("resources", {}).get(kind, {})
    return amounts


def _gpus_of(group: dict[str, Any]) -> float:
    return float(_limits(group).get(GPU, 0))


def _cpus_of(group: dict[str, Any]) -> float:
    """The whole CPUs of the limit, which KubeRay passes to Ray."""
    text = str(_limits(group).get("cpu", 0))
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def _limits(group: dict[str, Any]) -> dict[str, Any]:
    limits: dict[str, Any] = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    return limits
