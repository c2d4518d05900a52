"""The runs. That of demo-sd goes stage after stage: VAE, text encoder, standardised latents, UNet, export.

Every stage leaves a file in the run's folder and takes up where that file says, so a killed run is started again with
the same command.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from deployments.training import checkpoint
from deployments.training.demo.export import MODELS, SCALING, SHIPPED, build_pipeline, export, standardise
from deployments.training.demo.family import FAMILY, Start
from deployments.training.demo.learning.latents import Encoders
from deployments.training.demo.learning.lessons import whole_scene
from deployments.training.demo.learning.pupils import Denoiser
from deployments.training.demo.models import device, make_scheduler, make_unet, make_vae
from deployments.training.demo.stages.train_denoiser import Course, DenoiserTraining, Diet
from deployments.training.demo.stages.train_text import train_text
from deployments.training.demo.stages.train_vae import train_vae
from deployments.training.demo.tokenizer import make_tokenizer
from deployments.training.demo.world.world import draw, random_scene

MEASURED: Final = {128: 64, 256: 32}  # size: drawings whose latents are made standard


FRESH: Final = Course(1e-3, ((0.45, (1.0, 0.0, 0.0)), (0.72, (0.2, 0.8, 0.0)), (1.0, (0.0, 0.6, 0.4))), whole_scene)
# Words are known by now: what is left to learn are outlines, and those need room.
FURTHER: Final = Course(6e-4, ((0.6, (0.05, 0.7, 0.25)), (1.0, (0.05, 0.55, 0.4))), whole_scene)


@dataclass(frozen=True)
class Minutes:
    """What each stage may take in all, over every time that it was resumed."""

    vae: float = 14.0
    text: float = 6.0
    unet: float = 140.0

    def scaled(self, total: float) -> Minutes:
        """The same shares of `total` minutes."""
        factor = total / (self.vae + self.text + self.unet)
        return Minutes(self.vae * factor, self.text * factor, self.unet * factor)


def train(
    folder: Path,
    minutes: Minutes,
    out: Path = SHIPPED,
    from_shipped: bool = False,
    diets: Mapping[int, Diet] | None = None,
    iterations: int | None = None,
) -> None:
    """Run, or go on with, every stage of demo-sd in `folder`, and export to `out`; `iterations` bounds each stage."""
    folder.mkdir(parents=True, exist_ok=True)
    _new_noise()
    unet, course = make_unet().to(device()), FRESH
    if from_shipped or _start(folder).exists():
        encoders, shipped = _shipped(folder)
        unet.load_state_dict(shipped.state_dict())
        course = FURTHER
    else:
        encoders = _trained(folder, minutes, iterations)
    training = DenoiserTraining(folder / "unet.pt", encoders, Denoiser(unet), course, minutes.unet, diets)
    unet.load_state_dict(training.train(iterations))
    export(build_pipeline(encoders, unet, make_scheduler()), out)


def train_member(
    name: str,
    folder: Path,
    minutes: float | None = None,
    out: Path | None = None,
    diets: Mapping[int, Diet] | None = None,
    iterations: int | None = None,
) -> None:
    """Run, or go on with, the training of one of `family.FAMILY` in `folder`, and ship it to `out`."""
    folder.mkdir(parents=True, exist_ok=True)
    _new_noise()
    member = FAMILY[name]
    encoders, unet = _shipped(folder)
    pupil, encoders = member.begin(Start(encoders, unet, folder))
    path = folder / f"{name}.pt"
    training = DenoiserTraining(path, encoders, pupil, member.course, minutes or member.minutes, diets)
    pupil.network.load_state_dict(training.train(iterations))
    member.ship(pupil, encoders, out or MODELS / name)


def _new_noise() -> None:
    # torch starts every process with one and the same seed: a resumed run would see its first noise again.
    torch.seed()


def prepare_tokenizer(folder: Path) -> CLIPTokenizer:
    """The run's tokenizer, made once: captions may change between resumes, what a token means must not."""
    path = folder / "tokenizer"
    if not path.exists():
        neighbour = path.with_suffix(".partial")
        shutil.rmtree(neighbour, ignore_errors=True)
        make_tokenizer().save_pretrained(neighbour)
        neighbour.rename(path)
    return CLIPTokenizer.from_pretrained(path)


def standard_vae(folder: Path, minutes: float, iterations: int | None = None) -> AutoencoderKL:
    """The VAE with standardised latents, from `folder`/vae_std.pt; trained and standardised first if it is missing.

    Once that file is there, the VAE is frozen: the UNet has learnt from its latents.
    """
    path, vae = folder / "vae_std.pt", make_vae()
    state = checkpoint.load(path)
    if state is None:
        trained = train_vae(folder, minutes, iterations=iterations).cpu().eval()
        state = {"model": standardise(trained, measured_latents(trained)).state_dict()}
        checkpoint.save(path, **state)
    vae.load_state_dict(state["model"])
    vae.register_to_config(scaling_factor=SCALING)
    return vae.eval()


@torch.no_grad()
def measured_latents(vae: AutoencoderKL) -> Tensor:
    """Unscaled latent means of a fixed set of drawings [1, 4, 1, N]."""
    rng = random.Random(0)
    parts = []
    for size, count in MEASURED.items():
        images = np.stack([draw(random_scene(rng), size) for _ in range(count)])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(vae.encode(pixels).latent_dist.mean.permute(1, 0, 2, 3).reshape(4, -1))
    return torch.cat(parts, dim=1).view(1, 4, 1, -1)


def _trained(folder: Path, minutes: Minutes, iterations: int | None) -> Encoders:
    vae = standard_vae(folder, minutes.vae, iterations)
    tokenizer = prepare_tokenizer(folder)
    text = train_text(folder, tokenizer, minutes.text, iterations=iterations)
    return Encoders(vae.to(device()), text, tokenizer)


def _start(folder: Path) -> Path:
    return folder / "start"


def _shipped(folder: Path) -> tuple[Encoders, UNet2DConditionModel]:
    """The shipped networks, kept in the run's folder: its own export will replace the originals."""
    start = _start(folder)
    if not start.exists():
        neighbour = start.with_suffix(".partial")
        shutil.rmtree(neighbour, ignore_errors=True)
        shutil.copytree(SHIPPED, neighbour)
        neighbour.rename(start)
    pipeline = StableDiffusionPipeline.from_pretrained(start, dtype=torch.float32, safety_checker=None)
    pipeline.to(device())
    for network in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        network.requires_grad_(False)
    return Encoders(pipeline.vae, pipeline.text_encoder, pipeline.tokenizer), pipeline.unet
