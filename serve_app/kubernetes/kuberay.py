"""Checks for what KubeRay 1.7 refuses, or accepts and never makes ready: mirrors its validation.go and known issues."""

import re
from collections.abc import Iterator
from typing import Any, Final

from serve_app.kubernetes.manifests import Manifests

MAX_NAME: Final = 47
_DNS_1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_UPGRADES: Final = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")


def find_kuberay_faults(manifests: Manifests) -> Iterator[str]:
    """Yields each fault as one line."""
    name = manifests.service["metadata"]["name"]
    if len(name) > MAX_NAME or not _DNS_1035.fullmatch(name):
        yield f"RayService name: at most {MAX_NAME} of a-z, 0-9 and -, beginning with a letter"
    yield from _check_groups(manifests)
    yield from _check_autoscaler(manifests)
    yield from _check_fault_tolerance(manifests)
    yield from _check_upgrade(manifests.service["spec"].get("upgradeStrategy"), manifests.cluster)
    if manifests.application.get("proxy_location") != "EveryNode":
        yield "serveConfigV2 proxy_location: KubeRay asks every pod's proxy: it must be EveryNode, or none gets ready"


def _check_groups(manifests: Manifests) -> Iterator[str]:
    names = [group["groupName"] for group in manifests.groups]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"group {name}: the name is taken"
    for group in manifests.groups:
        least, count, most = (group.get(key, default) for key, default in _BOUNDS)
        if not 0 <= least <= count <= most:
            yield f"group {group['groupName']}: minReplicas <= replicas <= maxReplicas must hold"
    if str(manifests.cluster["headGroupSpec"]["rayStartParams"].get("num-cpus")) != "0":
        yield 'head: rayStartParams must have num-cpus "0", or replicas run beside the cluster\'s own memory'


_BOUNDS: Final = (("minReplicas", 0), ("replicas", 0), ("maxReplicas", 2**31 - 1))


def _check_autoscaler(manifests: Manifests) -> Iterator[str]:
    cluster = manifests.cluster
    version_2 = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    if not (cluster.get("enableInTreeAutoscaling") and version_2):
        yield "autoscaler: enableInTreeAutoscaling and version v2 are needed, or groups stay at their size"
    for pod in manifests.ray_pods():
        if version_2 and pod.spec.get("restartPolicy", "Never") != "Never":
            yield f"{pod.name}: autoscaler v2 needs restartPolicy Never"
        names = {each["name"] for each in pod.main.get("env", ())}
        if version_2 and "RAY_enable_autoscaler_v2" in names:
            yield f"{pod.name}: RAY_enable_autoscaler_v2 and autoscalerOptions.version exclude each other"


def _check_fault_tolerance(manifests: Manifests) -> Iterator[str]:
    options = manifests.cluster.get("gcsFaultToleranceOptions")
    if options is None:
        yield "gcsFaultToleranceOptions: without it the cluster dies with its head"
        return
    if "externalStorageNamespace" in options:
        yield "gcsFaultToleranceOptions: every cluster of a RayService needs a namespace of its own: name none"
    for pod in manifests.ray_pods():
        names = {each["name"] for each in pod.main.get("env", ())}
        if names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"}:
            yield f"{pod.name}: Redis' address and password belong into gcsFaultToleranceOptions only"
    if "redis-password" in manifests.cluster["headGroupSpec"]["rayStartParams"]:
        yield "head: Redis' password belongs into gcsFaultToleranceOptions only"


def _check_upgrade(strategy: Any, cluster: Any) -> Iterator[str]:
    if strategy is None:
        return
    kind, options = strategy.get("type"), strategy.get("clusterUpgradeOptions")
    if kind not in _UPGRADES:
        yield f"upgradeStrategy: the type is one of {', '.join(_UPGRADES)}"
    if (kind == "NewClusterWithIncrementalUpgrade") != (options is not None):
        yield "upgradeStrategy: clusterUpgradeOptions are for NewClusterWithIncrementalUpgrade, and it needs them"
        return
    if options is None:
        return
    if not cluster.get("enableInTreeAutoscaling"):
        yield "upgradeStrategy: an incremental upgrade needs the autoscaler"
    if not 0 < options["stepSizePercent"] <= options.get("maxSurgePercent", 100) <= 100:
        yield "upgradeStrategy: 0 < stepSizePercent <= maxSurgePercent <= 100 must hold"
    if options["intervalSeconds"] <= 0:
        yield "upgradeStrategy: intervalSeconds must be more than 0"
