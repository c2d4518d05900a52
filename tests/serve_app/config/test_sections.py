"""Settings that contradict each other are refused."""

import pytest
from pydantic import ValidationError

from serve_app.config.sections import JobsConfig, TrainingConfig
from serve_app.config.server import AppConfig


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most max_images"):
        JobsConfig(max_images=10)


def test_a_training_takes_a_gpu_only_if_it_has_one_to_itself() -> None:
    with pytest.raises(ValidationError, match="trainings on cuda need `num_gpus`"):
        TrainingConfig(folder="trainings", device="cuda")
    assert TrainingConfig(folder="trainings").own_device == "cpu"
    assert TrainingConfig(folder="trainings", num_gpus=0.5).own_device == "auto"
    assert TrainingConfig(folder="trainings", device="cuda", num_gpus=1).own_device == "cuda"
    assert TrainingConfig(folder="trainings", device="cpu", num_gpus=1).own_device == "cpu"


@pytest.mark.parametrize(
    ("callbacks", "rule"),
    [
        ({}, "or leave `callbacks` out"),
        ({"uploads": True, "first_retry_s": 60, "longest_retry_s": 5}, "at most longest_retry_s"),
        ({"uploads": True, "upload_retry_for_s": 4000}, "at most jobs.keep_s"),
        ({"uploads": True, "allow_networks": ["10.0.0.1/8"]}, "not a valid IPv4"),
        ({"uploads": True, "ports": [0]}, "greater than or equal to 1"),
        ({"uploads": True, "hosts": ["https://a.example"]}, "is no host"),
    ],
)
def test_callbacks_that_contradict_themselves_are_refused(callbacks: dict[str, object], rule: str) -> None:
    document = {"deployments": [{"name": "a", "models": ["demo-sd"]}], "callbacks": callbacks}
    with pytest.raises(ValidationError, match=rule):
        AppConfig.model_validate(document)


def test_callbacks_come_through_a_manifest_as_they_were() -> None:
    given = {"uploads": True, "allow_networks": ["10.0.0.0/8"], "webhook_secrets": [{"env": "S"}]}
    config = AppConfig.model_validate({"deployments": [{"name": "a", "models": ["demo-sd"]}], "callbacks": given})
    assert AppConfig.model_validate(config.model_dump(mode="json", exclude_unset=True)) == config
