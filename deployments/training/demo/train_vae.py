"""Stage one: the VAE, on crops of drawings at several sizes, so that edges are met at every scale."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from deployments.training.demo import checkpoint
from deployments.training.demo.budget import Budget, cosine
from deployments.training.demo.models import device, make_vae
from deployments.training.demo.vae_start import start
from deployments.training.demo.world import Image, draw, random_scene

CROPS: Final = (64, 128)  # pixels; the small ones for the first part of the budget, four times cheaper
_SMALL_UNTIL: Final = 0.6
_PEAK: Final = 2e-3
_KL_WEIGHT: Final = 1e-4
_POOL: Final = {128: 350, 192: 150, 256: 250, 512: 30}
_REDRAW_EVERY: Final = 400
_SAVE_EVERY: Final = 100


def train_vae(folder: Path, minutes: float, batch: int = 16, iterations: int | None = None) -> AutoencoderKL:
    """Train, or go on training, the VAE for `minutes` in all; its state lives in `folder`/vae.pt."""
    path, target = folder / "vae.pt", device()
    vae = start(make_vae()).to(target)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=_PEAK, weight_decay=1e-4, betas=(0.9, 0.99))
    state = checkpoint.load(path) or {"iteration": 0, "spent": 0.0}
    if "model" in state:
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    budget, iteration = Budget(minutes, state["spent"]), int(state["iteration"])
    pictures = _pictures(seed=iteration)
    last = iteration + iterations if iterations else None
    while budget.left and iteration != last:
        for group in optimizer.param_groups:
            group["lr"] = cosine(budget.progress, _PEAK)
        crop = CROPS[0] if budget.progress < _SMALL_UNTIL else CROPS[1]
        images = torch.stack([_crop(next(pictures), crop) for _ in range(batch)])
        loss = _step(vae, optimizer, images.to(target))
        iteration += 1
        if iteration % 25 == 0:
            print(f"vae {iteration} {budget.spent:.0f}s loss {loss:.4f}", flush=True)
        if iteration % _SAVE_EVERY == 0:
            _save(path, vae, optimizer, iteration, budget)
    _save(path, vae, optimizer, iteration, budget)
    return vae


def _save(path: Path, vae: AutoencoderKL, optimizer: torch.optim.Optimizer, iteration: int, budget: Budget) -> None:
    model, state = vae.state_dict(), optimizer.state_dict()
    checkpoint.save(path, model=model, optimizer=state, iteration=iteration, spent=budget.spent)


def _step(vae: AutoencoderKL, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    posterior = vae.encode(images).latent_dist
    out = vae.decode(posterior.sample()).sample
    loss = _reconstruction(out, images) + _KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


def _reconstruction(out: Tensor, images: Tensor) -> Tensor:
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
    part = _recolour(rng, image[top : top + side, left : left + side])
    return torch.from_numpy(part.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _recolour(rng: random.Random, image: Image) -> Image:
    # Colours beyond the palette keep the latent space smooth, which img2img of a stranger's picture needs.
    if rng.random() > 0.25:
        return image
    order = rng.sample(range(3), 3)
    gain, lift = rng.uniform(0.5, 1.0), rng.uniform(0.0, 60.0)
    return np.asarray(np.clip(image[..., order] * gain + lift, 0, 255), dtype=np.uint8)
