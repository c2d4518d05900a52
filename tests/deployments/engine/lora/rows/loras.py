"""LoRAs for the tiny networks: as the engine reads them, and as diffusers' pipeline loads them."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.engine.pipelines import arguments, restore_unmasked
from deployments.engine.lora.adapter import Adapter, LayerChange
from deployments.engine.lora.low_rank import LowRank
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.files.loras import LoraFile, LoraUse
from deployments.engine.protocol.request import Request
from tests.deployments.engine.changes import TEXT as TEXT_WEIGHTS
from tests.deployments.engine.changes import UNET as UNET_WEIGHTS
from tests.deployments.engine.harness import Pixels, load_reference
from tests.deployments.engine.tiny import tiny_text_encoder, tiny_tokenizer, tiny_unet

ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR: Final = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
TEXT: Final = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class TinyLora:
    """A LoRA of rank `rank` for the layers of the UNet and the text encoder whose paths end so; "" stands for all."""

    name: str
    seed: int
    rank: int
    unet: tuple[str, ...] = LINEAR
    text: tuple[str, ...] = ()
    strength: float = 0.5

    @property
    def file(self) -> LoraFile:
        return LoraFile(self.name, f"/loras/{self.name}.safetensors", digest=f"{self.seed:064}")

    def use(self, scale: float = 1.0) -> LoraUse:
        return LoraUse(self.file, scale)

    def pairs(self, network: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Down and up of every layer that it changes, by the layer's path."""
        if network == "unet":
            modules, ends = dict(tiny_unet().named_modules()), self.unet
        else:
            modules, ends = dict(tiny_text_encoder(tiny_tokenizer()).named_modules()), self.text
        random = torch.Generator().manual_seed(self.seed)
        return {
            path: self._pair(module.weight, random)
            for path, module in modules.items()
            if isinstance(module, nn.Linear | nn.Conv2d) and any(path.endswith(end) for end in ends)
        }

    def _pair(self, weight: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        down = torch.randn((self.rank, *weight.shape[1:]), generator=random) / weight[0].numel() ** 0.5
        up = torch.randn((len(weight), self.rank), generator=random) * self.strength / self.rank**0.5
        return down, up

    def adapter(self) -> Adapter:
        layers: dict[str, Mapping[str, LayerChange]] = {
            network: {path.replace(".", "_"): LowRank(*pair) for path, pair in self.pairs(network).items()}
            for network in ("unet", "text_encoder")
        }
        return Adapter(self.name, self.file.digest, layers)

    def state(self) -> dict[str, Tensor]:
        """As peft saves it."""
        state = {}
        for network in ("unet", "text_encoder"):
            for path, (down, up) in self.pairs(network).items():
                state[f"{network}.{path}.lora_A.weight"] = down
                state[f"{network}.{path}.lora_B.weight"] = up.reshape(*up.shape, *[1] * (down.ndim - 2))
        return state


def reading(loras: Mapping[str, TinyLora], seen: list[str] | None = None) -> Callable[[LoraFile], Adapter]:
    """A reader of `loras`; it adds the names of what it reads to `seen`."""

    def read(file: LoraFile) -> Adapter:
        if seen is not None:
            seen.append(file.name)
        return loras[file.name].adapter()

    return read


def with_loras(request: Request, *uses: LoraUse) -> Request:
    return replace(request, loras=uses)


def reference_with_loras(
    folder: Path, model: LoadedModel, request: Request, loras: Mapping[str, TinyLora], **options: Any
) -> Pixels:
    """What a diffusers user gets who loads the request's LoRAs with peft."""
    pipeline = load_reference(folder, model, request)
    with warnings.catch_warnings():
        # peft warns of a second LoRA.
        warnings.simplefilter("ignore")
        for use in request.loras:
            pipeline.load_lora_weights(loras[use.file.name].state(), adapter_name=use.file.name)
    if request.loras:
        pipeline.set_adapters([use.file.name for use in request.loras], [use.scale for use in request.loras])
    made = pipeline(**(arguments([request], 0) | options)).images[0]
    return np.asarray(restore_unmasked(made, request)).astype(np.int16)


def save_merged(source: Path, folder: Path, loras: Mapping[str, TinyLora], *uses: LoraUse) -> Path:
    """Writes the checkpoint in `source` to `folder`, with LoRAs merged into its weights."""
    shutil.copytree(source, folder)
    for network, file in (("unet", UNET_WEIGHTS), ("text_encoder", TEXT_WEIGHTS)):
        state = load_file(folder / file)
        for use in uses:
            for path, (down, up) in loras[use.file.name].pairs(network).items():
                (key,) = (key for key in state if key in (f"{path}.weight", f"text_model.{path}.weight"))
                state[key] = state[key] + use.scale * (up @ down.flatten(1)).reshape(state[key].shape)
        save_file(state, folder / file, metadata={"format": "pt"})
    return folder
