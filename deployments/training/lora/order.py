"""What a process is given that is to train: the model's files, the pictures, and what it may take. No torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from deployments.engine.protocol.spec import ModelSpec, PartSpec, as_part
from deployments.training.lora.run_folder import replace_text
from deployments.training.lora.settings import TrainingLimits

_FILE: Final = "order.json"


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """Trains on the pictures in `source` with the settings in the training's folder, on a `device`."""

    spec: ModelSpec
    source: Path
    limits: TrainingLimits
    device: str

    def write(self, folder: Path) -> None:
        """Writes it into a training's folder."""
        parts = {name: asdict(as_part(part)) for name, part in self.spec.parts.items()}
        model = {
            name: getattr(self.spec, name) for name in ("name", "source", "revision", "native_size", "native_shape")
        }
        told: Mapping[str, Any] = {
            "model": model | {"parts": parts},
            "source": str(self.source),
            "limits": asdict(self.limits),
            "device": self.device,
        }
        replace_text(folder / _FILE, json.dumps(told))


def read_order(folder: Path) -> TrainingOrder:
    """Returns the order in a training's folder."""
    told = json.loads((folder / _FILE).read_text())
    model = told["model"]
    shape = model.pop("native_shape")
    parts = {name: PartSpec(**part) for name, part in model.pop("parts").items()}
    spec = ModelSpec(**model, native_shape=None if shape is None else tuple(shape), parts=parts)
    return TrainingOrder(spec, Path(told["source"]), TrainingLimits(**told["limits"]), told["device"])
