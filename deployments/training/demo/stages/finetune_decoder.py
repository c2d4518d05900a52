"""Fine-tunes the VAE's decoder alone: latents, and with them every network that was trained on them, stay valid."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from deployments.training.demo.export import SHIPPED, export_network
from deployments.training.demo.learning import muon
from deployments.training.demo.learning.run import Run
from deployments.training.demo.models import device
from deployments.training.demo.stages.train_vae import recoloured, reconstruction_error
from deployments.training.demo.world.world import draw, random_scene

MINUTES: Final = 45.0
_PEAK: Final = 1e-3  # at twice this and more, the first minutes undo what the decoder knew
_BATCH_PIXELS: Final = 2 * 256 * 256
# Whole pictures, as they are decoded in use: one norm over the picture sees other statistics in a crop.
_SIZES: Final = {128: 0.2, 192: 0.15, 256: 0.45, 512: 0.2}
# Latents that a UNet made are not as clean as an encoder's, and what is off in them shows as speckle: half of the
# pictures get noise of up to so much, with latents of deviation 5.5.
_ROUGH: Final = 0.2
_POOL: Final = 96  # batches that are drawn and encoded at once
_VISITS: Final = 6  # of each of them, before others are drawn
_SAVE_EVERY: Final = 200
_HELD_OUT: Final = "held-out reconstructions"

Batch = tuple[Tensor, Tensor]


def finetune_decoder(
    folder: Path, minutes: float | None = None, out: Path = SHIPPED, iterations: int | None = None
) -> None:
    """Train, or go on training, the shipped decoder for `minutes` in all, and write the VAE into the model at `out`.

    The run's state lives in `folder`/decoder.pt; the encoder stays the shipped one, bit for bit.
    """
    vae = load_vae(SHIPPED)
    vae.requires_grad_(False)
    vae.decoder.to(memory_format=torch.channels_last)  # a quarter faster on a CPU
    decoding = nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})
    decoding.requires_grad_(True)
    optimizers = muon.optimizers(decoding, _PEAK)
    run = Run(folder / "decoder.pt", {"decoding": decoding}, optimizers, _PEAK, minutes or MINUTES, averaged=decoding)
    batches = _batches(vae, seed=run.iteration)
    for _ in run.going(iterations):
        latents, images = next(batches)
        loss = run.descend(_error(vae.decode(latents).sample, images))
        run.tell(50, loss=loss)
        if run.iteration % _SAVE_EVERY == 0:
            run.save()
    assert run.average is not None
    decoding.load_state_dict(run.average.weights)
    export_network(vae, out / "vae")


def load_vae(folder: Path) -> AutoencoderKL:
    """The VAE of the model in `folder`, in full precision, on the training device."""
    return AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device()).eval()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, size: int, count: int) -> list[float]:
    """Peak signal-to-noise ratio (dB) of `count` reconstructed drawings of `size` pixels that no training has seen.

    Of pictures as they are delivered, in 8 bits: 10 log10(255^2 / mean squared error).
    """
    rng = random.Random(_HELD_OUT)
    ratios = []
    for _ in range(count):
        image = draw(random_scene(rng), size)
        latents = vae.encode(_tensor(image)[None].to(device())).latent_dist.mode()
        decoded = ((vae.decode(latents).sample[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
        error = np.square(decoded.cpu().numpy() - image.astype(np.float64)).mean()
        ratios.append(float(10 * np.log10(255**2 / error)))
    return ratios


def psnr_table(folder: Path, count: int) -> str:
    """The reconstructions of the VAE in `folder` as lines of text: mean and worst PSNR at 128, 256 and 512 pixels."""
    vae = load_vae(folder)
    lines = ["size  mean dB  worst dB"]
    for size in (128, 256, 512):
        ratios = reconstruction_psnr(vae, size, count)
        lines.append(f"{size:4}  {np.mean(ratios):7.2f}  {min(ratios):8.2f}")
    return "\n".join(lines)


def _error(out: Tensor, images: Tensor) -> Tensor:
    # Few pixels far off, as a wrong colour is, cost more than in the VAE's own training: latents can no longer change.
    return reconstruction_error(out, images) + 2 * (out - images).square().mean()


@torch.no_grad()
def _batches(vae: AutoencoderKL, seed: int) -> Iterator[Batch]:
    """Endless pairs of scaled-back latents [B, 4, H/8, W/8] and their pictures [B, 3, H, W]; B as fits the size."""
    rng = random.Random(seed)
    while True:
        pool = [_drawn(vae, rng) for _ in range(_POOL)]
        for _ in range(_VISITS):
            rng.shuffle(pool)
            for moments, images in pool:
                mean, deviation = moments.chunk(2, dim=1)
                rough = torch.empty(len(mean), 1, 1, 1, device=mean.device).uniform_(-_ROUGH, _ROUGH).clamp(min=0)
                yield mean + (deviation + rough) * torch.randn_like(mean), images


def _drawn(vae: AutoencoderKL, rng: random.Random) -> Batch:
    size = _choose(rng, _SIZES)
    count = max(1, _BATCH_PIXELS // size**2)
    images = torch.stack([_tensor(recoloured(rng, draw(random_scene(rng), size))) for _ in range(count)]).to(device())
    posterior = vae.encode(images).latent_dist
    return torch.cat([posterior.mean, posterior.std], dim=1), images


def _choose(rng: random.Random, shares: Mapping[int, float]) -> int:
    return rng.choices(list(shares), list(shares.values()))[0]


def _tensor(image: np.ndarray) -> Tensor:
    """A picture [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1
