"""Changes to manifests, for tests of what is found wrong with them."""

from collections.abc import Callable
from typing import Any

import yaml

Change = Callable[[list[dict[str, Any]]], None]

CLUSTER = "spec/rayClusterConfig"
HEAD = f"{CLUSTER}/headGroupSpec"
GPU = f"{CLUSTER}/workerGroupSpecs/1"
WORKER = f"{GPU}/template/spec/containers/0"


def at(path: str, value: Any) -> Change:
    """Sets a field of the RayService; None takes it away."""

    def change(documents: list[dict[str, Any]]) -> None:
        place: Any = next(each for each in documents if each["kind"] == "RayService")
        *way, last = (int(step) if step.isdigit() else step for step in path.split("/"))
        for step in way:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


def in_application(change: Callable[[dict[str, Any]], Any]) -> Change:
    def changed(documents: list[dict[str, Any]]) -> None:
        (service,) = (each for each in documents if each["kind"] == "RayService")
        said = yaml.safe_load(service["spec"]["serveConfigV2"])
        change(said)
        service["spec"]["serveConfigV2"] = yaml.safe_dump(said)

    return changed


def argument(section: str, name: str, value: Any) -> Change:
    return in_application(lambda said: said["applications"][0]["args"].setdefault(section, {}).update({name: value}))


def budget(**spec: Any) -> Change:
    def change(documents: list[dict[str, Any]]) -> None:
        (one,) = (each for each in documents if each["kind"] == "PodDisruptionBudget")
        one["spec"] = {"selector": one["spec"]["selector"], **spec}

    return change
