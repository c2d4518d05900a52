"""The shipped folders: diffusers pipelines and networks in half precision, laid out file for file as the real ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin, SchedulerMixin, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from deployments.training.demo.learning.latents import Encoders

MODELS: Final = Path(__file__).resolve().parents[2] / "demo_models"
SHIPPED: Final = MODELS / "demo-sd"
SCALING: Final = 0.18215  # SD1.5's


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: Tensor) -> AutoencoderKL:
    """Shift and scale each latent channel, in place, to mean 0 and deviation 1 / SCALING over `latents` [N, 4, h, w].

    The map goes into the 1x1 convolutions on either side of the latents, so the pictures stay what they were. With no
    common mean left, less of the background's colour leaks through the last timestep.
    """
    mean = latents.mean(dim=(0, 2, 3))
    scale = 1 / (SCALING * latents.std(dim=(0, 2, 3)))
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += torch.einsum("oixy,i->o", after.weight, mean)
    after.weight /= scale.view(1, 4, 1, 1)
    before.bias[:4] = (before.bias[:4] - mean) * scale
    before.weight[:4] *= scale.view(4, 1, 1, 1)
    before.bias[4:] += 2 * scale.log()
    vae.register_to_config(scaling_factor=SCALING)
    return vae


def build_pipeline(
    encoders: Encoders,
    unet: nn.Module,
    scheduler: SchedulerMixin,
    kind: type[DiffusionPipeline] = StableDiffusionPipeline,
) -> DiffusionPipeline:
    """The networks as diffusers' own pipeline, without a safety checker: this world holds nothing to check."""
    return kind(
        vae=encoders.vae,
        text_encoder=encoders.text,
        tokenizer=encoders.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(pipeline: DiffusionPipeline, folder: Path = SHIPPED, borrowed: Sequence[str] = ()) -> None:
    """Write `pipeline` as fp16 safetensors to `folder`, without the parts `borrowed` from another model's folder."""

    def write(fresh: Path) -> None:
        pipeline.to(torch.float16)
        pipeline.save_pretrained(fresh, safe_serialization=True)
        _write_slow_vocabulary(pipeline.tokenizer, fresh / "tokenizer")
        for part in borrowed:
            shutil.rmtree(fresh / part)

    replace_folder(folder, write)


def export_network(network: ModelMixin, folder: Path) -> None:
    """Write one network, such as a ControlNet, as fp16 safetensors to `folder`."""
    replace_folder(folder, lambda fresh: network.to(torch.float16).save_pretrained(fresh, safe_serialization=True))


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill `folder` anew: old files or new ones, never a mixture. A model card stays.

    Between two renames there is no folder at all, so replace none that is being loaded at that moment.
    """
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    write(fresh)
    _forget_origins(fresh)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", fresh / "README.md")
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def _forget_origins(folder: Path) -> None:
    """Takes out of the configs where a part was once loaded from: a path of the machine that trained it."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def _write_slow_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    # SD1.5 ships these two, and older loaders know no other; transformers 5 writes tokenizer.json alone.
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
