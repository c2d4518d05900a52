"""An engine's settings are the same ones as keyword arguments, in the configuration and in the engine."""

from dataclasses import fields
from typing import get_type_hints

import pytest
from pydantic import ValidationError

from deployments.engine.protocol.engine_config import EngineConfig, EngineOptions
from serve_app.config.deployments import DeploymentConfig


def test_every_setting_is_a_keyword_argument_of_the_same_type() -> None:
    assert get_type_hints(EngineOptions) == get_type_hints(EngineConfig)
    config = EngineConfig("cpu", max_rows=4, padded_sizes=(2, 4))
    assert EngineConfig(**config.options) == config


def test_a_configuration_without_settings_has_the_defaults_of_the_engine() -> None:
    """They stand in two places: callers of the configuration see them in its reference."""
    asked = DeploymentConfig(name="a", models=("demo-sd",), num_gpus=1)
    assert asked.engine_config() == EngineConfig()


def test_every_setting_of_the_configuration_reaches_the_engine() -> None:
    changed = DeploymentConfig.model_validate(
        {
            "name": "a",
            "models": ["demo-sd"],
            "device": "cpu",
            "dtype": "bfloat16",
            "max_rows": 4,
            "padded_sizes": [2, 4],
            "queue_limit": 9,
            "threads": 2,
            "model_memory_gib": 1,
            "device_memory_gib": 2,
            "lora_memory_gib": 1,
            "similar_memory_gib": 0,
            "similar_distance": 0.3,
            "cache_dir": "/var/cache/darkroom",
            "backend": "torch",
        }
    ).engine_config()
    untouched = {field.name for field in fields(EngineConfig) if getattr(changed, field.name) == field.default}
    assert untouched == {"decode_batch"}


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, openvino, torch"):
        EngineConfig(backend="onnx")


def test_a_call_has_room_for_a_guided_image() -> None:
    with pytest.raises(ValueError, match="max_rows must be at least 2"):
        EngineConfig(max_rows=1)


@pytest.mark.parametrize("sizes", [(2,), (4, 2, 8), (2, 2, 8), (0, 8), (8, 16)])
def test_padded_sizes_ascend_to_the_most_rows(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="padded_sizes must ascend"):
        EngineConfig(max_rows=8, padded_sizes=sizes)
    with pytest.raises(ValidationError, match="padded_sizes"):
        DeploymentConfig(name="a", models=("demo-sd",), max_rows=8, padded_sizes=sizes)
