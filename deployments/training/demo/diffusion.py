"""The denoising objective: which noise, which timesteps, and how much each counts."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from deployments.training.demo.models import signal_levels

NOISE_OFFSET: Final = 0.15
_HIGH_SHARE: Final = 0.5
_GAMMA: Final = 5.0
_MOST: Final = 4.0


def make_noise(latents: Tensor) -> Tensor:
    """Noise [B, 4, h, w] with an extra common offset per row and channel (Guttenberg 2023).

    At the last timestep 7 % of the picture still shines through. White noise averages out over the canvas, so the
    network would read the background's colour from the mean instead of from the caption, and find nothing there at
    inference. The offset hides that mean.
    """
    offset = torch.randn(len(latents), latents.shape[1], 1, 1, device=latents.device)
    return torch.randn_like(latents) + NOISE_OFFSET * offset


def pick_timesteps(count: int, device: torch.device) -> Tensor:
    """Timesteps [B] in 0..999; half of them from where layout, colours and outlines are decided."""
    anywhere = torch.randint(0, 1000, (count,), device=device)
    high = torch.randint(400, 1000, (count,), device=device)
    return torch.where(torch.rand(count, device=device) < _HIGH_SHARE, high, anywhere)


def weigh(signal: Tensor) -> Tensor:
    """The loss weight [B] at signal levels [B]: min-SNR-gamma (Hang et al. 2023) where there is signal.

    Where noise prevails, epsilon's error hardly shows what the network believes the picture to be; weights growing
    with the noise, up to a bound, make the caption heard there.
    """
    ratio = signal / (1 - signal)
    return torch.where(ratio > 1, ratio.clamp(max=_GAMMA) / ratio, ratio.rsqrt().clamp(max=_MOST))


class Noising:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) noise, with the table of a = signal levels [1000] at hand."""

    def __init__(self, device: torch.device) -> None:
        self._levels = signal_levels().to(device)

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean latents [B, 4, h, w] to noisy ones, their noise, their timesteps [B] and their weights [B]."""
        noise, steps = make_noise(latents), pick_timesteps(len(latents), latents.device)
        signal = self._levels[steps]
        kept = signal.view(-1, 1, 1, 1)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise, noise, steps, weigh(signal)
