"""On a machine of its own a server starts, or says what the machine lacks: it never waits for another node."""

from typing import Any

import pytest

from serve_app.config.server import AppConfig, load_config, packaged_configs
from serve_app.launch.local_cluster import explain
from serve_app.launch.one_node import TooLittleRoom, check_room, count_cpus, fit_to_one_node

GIB = 2**30


def hosting(**deployment: Any) -> AppConfig:
    return AppConfig.model_validate({"deployments": [{"name": "mine", "models": ["demo-sd"], **deployment}]})


@pytest.mark.parametrize("name", packaged_configs())
def test_nothing_that_is_packaged_wants_a_second_node(name: str) -> None:
    assert fit_to_one_node(load_config(name)).ingress.serve_options().get("max_replicas_per_node") is None


def test_all_ingresses_of_a_cluster_find_a_place_on_one_node() -> None:
    clustered = load_config("production")
    assert clustered.ingress.max_replicas_per_node == 1
    fitted = fit_to_one_node(clustered)
    assert fitted.ingress.replicas == clustered.ingress.replicas == 2
    assert fitted.model_copy(update={"ingress": clustered.ingress}) == clustered


def test_there_are_cpus_for_everything_that_is_configured() -> None:
    config = hosting(num_cpus=100, replicas=2, max_surge_percent=50)
    assert count_cpus(config) >= 300
    training = {"folder": "trainings", "num_cpus": 7, "running": 2}
    document = config.model_dump(exclude_unset=True) | {"loras": {"folder": "loras"}, "training": training}
    assert count_cpus(AppConfig.model_validate(document)) == count_cpus(config) + 14


@pytest.mark.parametrize(
    ("deployment", "lacks"),
    [
        ({"num_gpus": 1, "replicas": 3}, r"need 3 GPUs \(mine 3\), and this machine has 2:"),
        ({"num_gpus": 1, "autoscaling": {"min_replicas": 3}}, r"need 3 GPUs \(mine 3\)"),
        ({"num_gpus": 4}, r"need 4 GPUs \(mine 4\)"),
        ({"memory_gib": 9, "replicas": 2}, r"need 18 GiB of `memory_gib` \(mine 18\), and this machine has 16:"),
    ],
)
def test_what_the_fewest_replicas_lack_is_said_by_name(deployment: dict[str, Any], lacks: str) -> None:
    with pytest.raises(TooLittleRoom, match=lacks) as caught:
        check_room(hosting(**deployment), {"GPU": 2.0, "memory": 16.0 * GIB})
    assert explain(caught.value) == str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_starts_only_when_it_is_asked_for_need_not_fit_beside_the_rest() -> None:
    check_room(hosting(num_gpus=1, autoscaling={"min_replicas": 0}), {})
    check_room(hosting(num_gpus=1, autoscaling={"min_replicas": 2, "max_replicas": 9}), {"GPU": 2.0})
    check_room(load_config("demo"), {})


def test_production_says_which_of_its_deployments_need_the_gpus_that_are_not_here() -> None:
    with pytest.raises(TooLittleRoom, match=r"need 2 GPUs \(sd15 1, sd21 1\), and this machine has 1"):
        check_room(load_config("production"), {"GPU": 1.0, "memory": 999.0 * GIB})
