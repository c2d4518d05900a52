"""What the engine must know of a model before it loads it. Data about real models lives above, in `registry.py`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ControlNetSpec:
    """Where a ControlNet comes from: a folder in diffusers' layout, or a repository on the hub at `revision`."""

    source: str
    revision: str | None = None
    licence: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One servable model.

    `source` is a folder in diffusers' layout or a repository on the hub; `revision` pins the latter to a commit.
    `native_size` is the side in pixels that the model was trained for; 0 means: read it from the folder.
    `aliases` are other names that callers may use for it. `controlnets` are the ControlNets that it hosts, by the type
    that callers name; a plain string is a source.
    """

    name: str
    source: str
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    native_size: int = 0
    max_pixels: int = 1024 * 1024
    default_sampler: str = "pndm"
    licence: str = ""
    controlnets: Mapping[str, ControlNetSpec | str] = field(default_factory=dict, hash=False)

    def answers_to(self, name: str) -> bool:
        return name == self.name or name in self.aliases


def with_native_size(spec: ModelSpec) -> ModelSpec:
    """`spec` with `native_size` known: UNet sample size times the VAE's downscaling, from the folder's own configs.

    Raises ValueError where the size is not given and `source` is not a local folder.
    """
    if spec.native_size:
        return spec
    folder = Path(spec.source)
    if not folder.is_dir():
        raise ValueError(f"model {spec.name!r}: native_size must be given, because its source is not a local folder")
    unet, vae = _config(folder / "unet"), _config(folder / "vae")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return replace(spec, native_size=int(unet["sample_size"]) * factor)


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config
