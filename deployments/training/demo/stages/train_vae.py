"""Stage one: the VAE, on crops of drawings at several sizes, so that edges are met at every scale."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from deployments.training.demo.learning.run import Run
from deployments.training.demo.models import device, make_vae
from deployments.training.demo.stages.vae_start import start
from deployments.training.demo.world.world import Image, draw, random_scene

CROPS: Final = (64, 128)  # pixels; the small ones for the first part of the budget, four times cheaper
_SMALL_UNTIL: Final = 0.6
_PEAK: Final = 2e-3
_KL_WEIGHT: Final = 1e-4
_POOL: Final = {128: 350, 192: 150, 256: 250, 512: 30}
_REDRAW_EVERY: Final = 400
_SAVE_EVERY: Final = 100


def train_vae(folder: Path, minutes: float, batch: int = 16, iterations: int | None = None) -> AutoencoderKL:
    """Train, or go on training, the VAE for `minutes` in all; its state lives in `folder`/vae.pt."""
    vae = start(make_vae()).to(device())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=_PEAK, weight_decay=1e-4, betas=(0.9, 0.99))
    run = Run(folder / "vae.pt", {"model": vae}, [optimizer], _PEAK, minutes)
    pictures = _pictures(seed=run.iteration)
    for _ in run.going(iterations):
        crop = CROPS[0] if run.budget.progress < _SMALL_UNTIL else CROPS[1]
        images = torch.stack([_crop(next(pictures), crop) for _ in range(batch)])
        loss = run.descend(_lost(vae, images.to(device())))
        run.tell(25, loss=loss)
        if run.iteration % _SAVE_EVERY == 0:
            run.save()
    return vae


def _lost(vae: AutoencoderKL, images: Tensor) -> Tensor:
    posterior = vae.encode(images).latent_dist
    out = vae.decode(posterior.sample()).sample
    divergence: Tensor = posterior.kl().mean() / posterior.mean[0].numel()
    return reconstruction_error(out, images) + _KL_WEIGHT * divergence


def reconstruction_error(out: Tensor, images: Tensor) -> Tensor:
    """Absolute error of pixels and of their differences: the second keeps edges sharp without another network."""
    error = out - images
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * edges


def _pictures(seed: int) -> Iterator[tuple[random.Random, Image]]:
    """Endless drawings [H, W, 3] of several sizes, with the generator for what becomes of them next."""
    rng = random.Random(seed)
    while True:
        pool = [draw(random_scene(rng), size) for size, count in _POOL.items() for _ in range(count)]
        for _ in range(_REDRAW_EVERY * 16):
            yield rng, rng.choice(pool)


def _crop(picture: tuple[random.Random, Image], side: int) -> Tensor:
    """A random square [3, side, side] in [-1, 1] of a drawing, now and then in other colours."""
    rng, image = picture
    top, left = (rng.randint(0, image.shape[0] - side) for _ in range(2))
    part = recoloured(rng, image[top : top + side, left : left + side])
    return torch.from_numpy(part.copy()).permute(2, 0, 1).float() / 127.5 - 1


def recoloured(rng: random.Random, image: Image) -> Image:
    """A quarter of the pictures in other colours, the rest as they are."""
    # Colours beyond the palette keep the latent space smooth, which img2img of a stranger's picture needs.
    if rng.random() > 0.25:
        return image
    order = rng.sample(range(3), 3)
    gain, lift = rng.uniform(0.5, 1.0), rng.uniform(0.0, 60.0)
    return np.asarray(np.clip(image[..., order] * gain + lift, 0, 255), dtype=np.uint8)
