"""An engine's settings are the same ones as keyword arguments, in the configuration and in the engine."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from deployments.engine.protocol.engine_config import EngineConfig, EngineOptions
from serve_app.config.deployments import DeploymentConfig


def test_every_setting_is_a_keyword_argument_of_the_same_type() -> None:
    assert get_type_hints(EngineOptions) == get_type_hints(EngineConfig)
    config = EngineConfig("cpu", max_rows=4, padded_sizes=(2, 4))
    assert EngineConfig(**config.options) == config


def test_a_configuration_without_settings_has_the_defaults_of_the_engine() -> None:
    """They stand in two places: callers of the configuration see them in its reference."""
    assert DeploymentConfig(name="a", models=("demo-sd",)).engine_config() == EngineConfig()


def test_every_setting_of_the_configuration_reaches_the_engine() -> None:
    changed = DeploymentConfig.model_validate(
        {
            "name": "a",
            "models": ["demo-sd"],
            "device": "cpu",
            "dtype": "bfloat16",
            "max_rows": 4,
            "queue_limit": 9,
            "threads": 2,
            "model_memory_gib": 1,
            "device_memory_gib": 2,
        }
    ).engine_config()
    untouched = {field.name for field in fields(EngineConfig) if getattr(changed, field.name) == field.default}
    assert untouched == {"padded_sizes", "decode_batch"}


def test_a_call_has_room_for_a_guided_image() -> None:
    with pytest.raises(ValueError, match="max_rows must be at least 2"):
        EngineConfig(max_rows=1)
