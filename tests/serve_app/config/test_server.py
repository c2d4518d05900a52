"""Configuration: packaged ones load; errors are named, with what was probably meant."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from deployments.annotators.models import ANNOTATORS
from deployments.annotators.spec import AnnotatorSpec, DepthSpec, PoseSpec
from deployments.engine.protocol.spec import IpAdapterSpec, PartSpec
from deployments.model_deployment import ModelReplica
from serve_app.config.deployments import DeploymentConfig, IngressConfig
from serve_app.config.errors import ConfigError
from serve_app.config.server import AppConfig, load_config, packaged_configs

DEPLOYMENT: dict[str, Any] = {"name": "a", "models": ["demo-sd"]}


def complaint(tmp_path: Path, text: str) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    return str(caught.value).replace(f"{file}: ", "")


@pytest.mark.parametrize("name", packaged_configs())
def test_packaged_configurations_load_by_name(name: str) -> None:
    assert load_config(name).deployments


@pytest.mark.parametrize("name", packaged_configs())
def test_serve_knows_every_option_that_it_is_given(name: str) -> None:
    """`serve.deployment` refuses unknown options, but its nested ones are ignored when they are misspelt."""
    for deployment in load_config(name).deployments:
        options = deployment.serve_options()
        serve.deployment(ModelReplica, **options)
        scaling = options.get("autoscaling_config", {})
        assert set(scaling) <= set(AutoscalingConfig.model_fields)
        assert set(scaling.get("policy", {})) <= set(AutoscalingPolicy.model_fields)


def test_demo_hosts_one_replica_under_the_names_of_the_guide() -> None:
    config = load_config("demo")
    (deployment,) = config.deployments
    assert deployment.replicas == 1
    assert deployment.device == "cpu"
    assert any(spec.has_name("runwayml/stable-diffusion-v1-5") for spec in config.specs_of(deployment))


@pytest.mark.parametrize("name", ["compact", "production"])
def test_production_gives_every_replica_a_gpu(name: str) -> None:
    for deployment in load_config(name).deployments:
        assert deployment.serve_options()["ray_actor_options"]["num_gpus"] == 1


def test_ingress_outlives_the_models_drain() -> None:
    """An ingress that ends first would cut off the pictures that it hands out."""
    for name in packaged_configs():
        config = load_config(name)
        longest = max(deployment.graceful_shutdown_timeout_s for deployment in config.deployments)
        assert config.ingress.graceful_shutdown_timeout_s > longest


@pytest.mark.parametrize("name", packaged_configs())
def test_a_replica_that_hangs_is_replaced_within_half_a_minute(name: str) -> None:
    """Serve asks once a period, and gives up after three answers that did not come in time."""
    config = load_config(name)
    every = [*(deployment.serve_options() for deployment in config.deployments), config.ingress.serve_options()]
    for options in every:
        assert options["health_check_period_s"] + 3 * options["health_check_timeout_s"] < 30


def test_ingresses_that_nodes_are_counted_for_do_not_wait_for_each_other_in_an_update() -> None:
    """New ones would find no node before the old have gone, and the old stay until the new are there."""
    anywhere = IngressConfig().serve_options()
    assert anywhere["max_surge_percent"] == 100
    assert "max_replicas_per_node" not in anywhere
    one_each = IngressConfig(max_replicas_per_node=1).serve_options()
    assert (one_each["max_replicas_per_node"], one_each["max_surge_percent"]) == (1, 0)


def test_a_file_may_say_only_what_differs_from_a_packaged_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: production\nwithout_keys: true\ningress: {replicas: 5}\n")
    mine, packaged = load_config(file), load_config("production")
    assert mine.without_keys
    assert mine.ingress == packaged.ingress.model_copy(update={"replicas": 5})
    assert mine.deployments == packaged.deployments
    file.write_text("extends: produktion\n")
    with pytest.raises(ConfigError, match="extends: there is compact, demo, production"):
        load_config(file)


def test_a_new_version_loads_before_the_old_one_stops() -> None:
    assert AppConfig.model_validate({"deployments": [DEPLOYMENT]}).deployments[0].serve_options()["max_surge_percent"]


@pytest.mark.parametrize(("replicas", "surge", "most"), [(1, 25, 2), (4, 25, 5), (5, 25, 7), (3, 0, 3), (2, 100, 4)])
def test_the_most_replicas_are_those_of_an_update(replicas: int, surge: int, most: int) -> None:
    hosted = DEPLOYMENT | {"replicas": replicas, "max_surge_percent": surge}
    assert AppConfig.model_validate({"deployments": [hosted]}).deployments[0].most_replicas == most


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deployment: []", "unknown key 'deployment'; did you mean 'deployments'?"),
        (
            "deployments: [{name: a, models: [demo-sd], max_row: 8}]",
            "deployments[0]: unknown key 'max_row'; did you mean 'max_rows'?",
        ),
        (
            "deployments: [{name: a, models: [demo-sd], autoscaling: {max_replica: 8}}]",
            "deployments[0].autoscaling: unknown key 'max_replica'; did you mean 'max_replicas'?",
        ),
        ("deployments: [{name: a, models: [demo-ds]}]", "there is no model 'demo-ds'; did you mean 'demo-sd'?"),
        ("deployments: [{name: a, models: [demo-sd, sd15]}]", "more than one hosted model answers to"),
        ("deployments: [{name: a, models: [demo-sd]}, {name: a, models: [sd21-base]}]", "the name 'a' is taken"),
        ("deployments: [{name: ingress, models: [demo-sd]}]", "the name 'ingress' is taken"),
        ("deployments: [{name: a, models: [demo-sd], device: cuda}]", "needs `num_gpus`"),
        ("deployments: [{name: a, models: [demo-sd], max_rows: many}]", "deployments[0].max_rows: Input should be"),
        (
            "deployments: [{name: a, models: [demo-sd], replicas: 2, autoscaling: {}}]",
            "`replicas` and `autoscaling` exclude each other",
        ),
        ("models: [{name: mine}]\ndeployments: [{name: a, models: [mine]}]", "models[0]: a model that the registry"),
        (
            "annotators: {depths: {}}\ndeployments: [{name: a, models: [demo-sd]}]",
            "annotators: unknown key 'depths'; did you mean 'depth'?",
        ),
        (
            "annotators: {depth: {model: dpt-larg}}\ndeployments: [{name: a, models: [demo-sd]}]",
            "annotators.depth: there is no such annotator as 'dpt-larg'; did you mean 'dpt-large'?",
        ),
        (
            "annotators: {pose: {model: dpt-large}}\ndeployments: [{name: a, models: [demo-sd]}]",
            "annotators.pose: there is no such annotator as 'dpt-large'",
        ),
        (
            "annotators: {pose: {source: a, detector: {revision: b}}}\ndeployments: [{name: a, models: [demo-sd]}]",
            "annotators.pose: it needs a `source`",
        ),
        ("deployments: []", "deployments: Tuple should have at least 1 item"),
        ("- 1", "Input should be a valid dictionary"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_says_where_and_what_was_meant(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in complaint(tmp_path, text)


def test_an_item_that_is_wrong_is_reported_once(tmp_path: Path) -> None:
    assert len(complaint(tmp_path, "deployments: [{name: a, models: [demo-sd], max_row: 8}]").splitlines()) == 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="compact, demo, production"):
        load_config("demonstration")


def test_a_models_entry_overrides_its_registry_row() -> None:
    config = AppConfig.model_validate(
        {"models": [{"name": "sd15", "revision": "0" * 40}], "deployments": [{"name": "a", "models": ["sd15"]}]}
    )
    (spec,) = config.specs_of(config.deployments[0])
    assert spec.revision == "0" * 40
    assert spec.native_size == 512


def test_a_rows_commit_means_nothing_to_another_source() -> None:
    config = AppConfig.model_validate(
        {"models": [{"name": "sd15", "source": "maker/other"}], "deployments": [{"name": "a", "models": ["sd15"]}]}
    )
    (spec,) = config.specs_of(config.deployments[0])
    assert spec.revision is None
    (own,) = annotators({"depth": {"model": "dpt-large", "source": "maker/other"}}).values()
    assert isinstance(own, DepthSpec)
    assert own.weights.revision is None


def annotators(settings: dict[str, Any]) -> dict[str, AnnotatorSpec]:
    return AppConfig.model_validate({"annotators": settings, "deployments": [DEPLOYMENT]}).annotators.specs()


def test_a_models_ip_adapters_are_those_that_it_names() -> None:
    given = {"source": "a.safetensors", "image_encoder": "someone/clip", "subfolder": "encoder"}
    more = {"file": "a.safetensors", "revision": "0" * 40, "image_encoder_revision": "1" * 40, "licence": "mine"}
    mine = {"name": "mine", "source": "/models/mine", "ip_adapters": {"one": given, "two": given | more}}
    bare = {"name": "sd15", "ip_adapters": {}}
    deployments = [{"name": "a", "models": ["mine", "sd15", "sdxl"]}]
    config = AppConfig.model_validate({"models": [mine, bare], "deployments": deployments})
    own, without, row = config.specs_of(config.deployments[0])
    assert own.ip_adapters == {
        "one": IpAdapterSpec("a.safetensors", "someone/clip", subfolder="encoder"),
        "two": IpAdapterSpec(
            "a.safetensors", "someone/clip", "0" * 40, "a.safetensors", "1" * 40, subfolder="encoder", licence="mine"
        ),
    }
    assert without.ip_adapters == {}
    assert list(row.ip_adapters) == ["ip-adapter", "ip-adapter-plus"]


def test_there_are_no_annotators_but_those_that_are_configured() -> None:
    assert annotators({}) == {}
    assert list(annotators({"depth": {"model": "dpt-large"}})) == ["depth"]


def test_an_annotators_entry_overrides_its_row() -> None:
    pinned = annotators({"pose": {"model": "vitpose-base", "revision": "a" * 40, "detector": {"revision": "b" * 40}}})
    row = ANNOTATORS["vitpose-base"]
    assert isinstance(row, PoseSpec)
    assert row.detector
    assert pinned["pose"] == replace(
        row, weights=replace(row.weights, revision="a" * 40), detector=replace(row.detector, revision="b" * 40)
    )
    turned = annotators({"depth": {"model": "dpt-large", "near_is_large": False}})["depth"]
    assert isinstance(turned, DepthSpec)
    assert not turned.near_is_large


def test_an_annotator_of_ones_own_needs_no_row() -> None:
    own = annotators({"depth": {"source": "here"}, "pose": {"source": "there", "threshold": 0.5}})
    assert own == {"depth": DepthSpec(PartSpec("here")), "pose": PoseSpec(PartSpec("there"), threshold=0.5)}


def test_nothing_can_be_changed_after_reading() -> None:
    config = load_config("demo")
    with pytest.raises(ValidationError):
        config.deployments[0].max_rows = 3


@pytest.mark.parametrize(
    ("settings", "threads"),
    [({"threads": 3}, 3), ({"num_cpus": 4}, 4), ({"num_cpus": 4, "threads": 2}, 2), ({"num_cpus": 1}, None)],
)
def test_threads_reach_the_replica_before_torch_does(settings: dict[str, int], threads: int | None) -> None:
    """Ray would set OMP_NUM_THREADS from num_cpus otherwise; None stands for what the replica counts by itself."""
    config = AppConfig.model_validate({"deployments": [DEPLOYMENT | settings]}).deployments[0]
    env = config.serve_options()["ray_actor_options"]["runtime_env"]["env_vars"]
    assert env == {"OMP_WAIT_POLICY": "passive"} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    assert config.engine_config().threads == threads


@pytest.mark.parametrize(
    ("device", "num_gpus", "taken"), [("auto", 0, "cpu"), ("auto", 1, "auto"), ("cuda", 1, "cuda"), ("cpu", 0, "cpu")]
)
def test_a_replica_takes_a_gpu_only_where_ray_has_given_it_one(device: str, num_gpus: float, taken: str) -> None:
    config = DeploymentConfig(name="a", models=("demo-sd",), device=device, num_gpus=num_gpus)
    assert config.engine_config().device == taken
