"""Fits a configuration to a cluster of one node: Serve would wait for ever for what that node does not have."""

import os
from collections.abc import Mapping
from typing import Final

from serve_app.config.deployments import DeploymentConfig
from serve_app.config.server import AppConfig

_GIB: Final = 2**30


class TooLittleRoom(Exception):
    """The machine lacks what the fewest replicas need. The message is one line, and names the deployments."""


def fit_to_one_node(config: AppConfig) -> AppConfig:
    """Returns `config` without what spreads replicas over nodes."""
    ingress = config.ingress.model_copy(update={"max_replicas_per_node": None})
    return config.model_copy(update={"ingress": ingress})


def count_cpus(config: AppConfig) -> float:
    """Enough CPUs, which only count, for everything that is configured, on a small machine as well."""
    needed = 2 * config.ingress.replicas * config.ingress.num_cpus
    needed += sum(deployment.most_replicas * deployment.num_cpus for deployment in config.deployments)
    if config.training is not None:
        needed += config.ingress.replicas * config.training.running * config.training.num_cpus
    return max(float(os.cpu_count() or 1), float(int(needed) + 1))


def check_room(config: AppConfig, resources: Mapping[str, float]) -> None:
    """Raises TooLittleRoom if the node's `resources`, as Ray counts them, are too few for the fewest replicas."""
    for name, unit, amounts in (
        ("GPU", "GPUs", {each.name: each.num_gpus for each in config.deployments}),
        ("memory", "GiB of `memory_gib`", {each.name: each.memory_gib or 0.0 for each in config.deployments}),
    ):
        wanted = {each.name: amounts[each.name] * _fewest_replicas(each) for each in config.deployments}
        there = resources.get(name, 0.0) / (_GIB if name == "memory" else 1)
        if (needed := sum(wanted.values())) > there:
            named = ", ".join(f"{each} {amount:g}" for each, amount in wanted.items() if amount)
            raise TooLittleRoom(
                f"deployments: the fewest replicas need {needed:g} {unit} ({named}), and this machine has {there:.4g}: "
                "configure fewer deployments or replicas, or `autoscaling: {min_replicas: 0}`"
            )


def _fewest_replicas(deployment: DeploymentConfig) -> int:
    """How many replicas there are before anybody asks for anything."""
    return deployment.replicas if deployment.autoscaling is None else deployment.autoscaling.min_replicas
