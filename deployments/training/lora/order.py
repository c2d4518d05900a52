"""What a process is given that is to train: the model's files, the pictures, and what it may take. No torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from deployments.engine.protocol.spec import ModelSpec, PartSpec, as_part
from deployments.training.lora.settings import TrainingLimits
from deployments.whole_files import replace_text

_FILE: Final = "order.json"

_NOT_TRAINED_ON: Final = {"controlnets", "ip_adapters", "safety"}
"""What a model hosts beside the networks that a LoRA is for."""


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """Trains on the pictures in `source` with the settings in the training's folder, on a `device`, or in so many
    `processes` on one each.
    """

    spec: ModelSpec
    source: Path
    limits: TrainingLimits
    device: str
    processes: int = 1

    def write(self, folder: Path) -> None:
        """Writes it into a training's folder."""
        parts = {name: asdict(as_part(part)) for name, part in self.spec.parts.items()}
        plain = {each.name for each in fields(ModelSpec)} - _NOT_TRAINED_ON - {"parts"}
        model = {name: getattr(self.spec, name) for name in sorted(plain)}
        told: Mapping[str, Any] = {
            "model": model | {"parts": parts},
            "source": str(self.source),
            "limits": asdict(self.limits),
            "device": self.device,
            "processes": self.processes,
        }
        replace_text(folder / _FILE, json.dumps(told))


def read_order(folder: Path) -> TrainingOrder:
    """Returns the order in a training's folder."""
    told = json.loads((folder / _FILE).read_text())
    model = told["model"]
    parts = {name: PartSpec(**part) for name, part in model.pop("parts").items()}
    # JSON has lists and no tuples.
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}
    spec = ModelSpec(**plain, parts=parts)
    # Older orders are of one process.
    processes = told.get("processes", 1)
    return TrainingOrder(spec, Path(told["source"]), TrainingLimits(**told["limits"]), told["device"], processes)
