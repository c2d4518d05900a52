"""What a process is given that is to train is all that the server knows of the model's networks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from deployments.engine.protocol.spec import ModelSpec, PartSpec
from deployments.registry import known_models
from deployments.training.lora.order import TrainingOrder, read_order
from deployments.training.lora.settings import TrainingLimits

OWN = ModelSpec(
    "own",
    "team/model",
    revision="f" * 40,
    file="model.safetensors",
    config="/configs/own",
    prediction_type="v_prediction",
    aliases=("ours",),
    native_shape=(640, 512),
    parts={"vae": PartSpec("team/vae", "e" * 40)},
)


def test_a_training_gets_the_model_that_the_server_serves(tmp_path: Path) -> None:
    for spec in (OWN, *known_models().values()):
        order = TrainingOrder(spec, tmp_path / "pictures", TrainingLimits(steps=7), "cpu", 3)
        order.write(tmp_path)
        found = read_order(tmp_path)
        beside: dict[str, Any] = {"controlnets": {}, "ip_adapters": {}, "safety": found.spec.safety}
        parts = {name: part if isinstance(part, PartSpec) else PartSpec(part) for name, part in spec.parts.items()}
        assert found == replace(order, spec=replace(spec, **beside, parts=parts))
