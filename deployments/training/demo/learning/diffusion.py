"""The denoising objective: which noise, which timesteps, and how much each counts."""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from deployments.training.demo.models import signal_levels

Prediction = Literal["epsilon", "v_prediction"]

NOISE_OFFSET: Final = 0.15
HIGH_SHARE: Final = 0.5
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


def pick_timesteps(count: int, device: torch.device, high_share: float = HIGH_SHARE) -> Tensor:
    """Timesteps [B] in 0..999; at least `high_share` of them from where layout, colours and outlines are decided."""
    anywhere = torch.randint(0, 1000, (count,), device=device)
    high = torch.randint(400, 1000, (count,), device=device)
    return torch.where(torch.rand(count, device=device) < high_share, high, anywhere)


def weigh(signal: Tensor) -> Tensor:
    """The loss weight [B] at signal levels [B]: min-SNR-gamma (Hang et al. 2023) where there is signal.

    Where noise prevails, epsilon's error hardly shows what the network believes the picture to be; weights growing
    with the noise, up to a bound, make the caption heard there.
    """
    ratio = signal / (1 - signal)
    return torch.where(ratio > 1, ratio.clamp(max=_GAMMA) / ratio, ratio.rsqrt().clamp(max=_MOST))


class Noising:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) noise, with the table of a = signal levels [1000] at hand."""

    def __init__(
        self, device: torch.device, prediction: Prediction = "epsilon", high_share: float = HIGH_SHARE
    ) -> None:
        self._levels = signal_levels().to(device)
        self._prediction = prediction
        self._high_share = high_share

    def __call__(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean latents [B, 4, h, w] to noisy ones, what is to be guessed of them, their timesteps [B] and the weights
        of the guesses [B].
        """
        noise, steps = make_noise(latents), pick_timesteps(len(latents), latents.device, self._high_share)
        level = self._levels[steps]
        signal, noisiness = level.view(-1, 1, 1, 1).sqrt(), (1 - level).view(-1, 1, 1, 1).sqrt()
        noisy = signal * latents + noisiness * noise
        if self._prediction == "v_prediction":
            # v (Salimans & Ho 2022) is the picture itself where noise prevails: nothing has to be made louder there.
            return noisy, signal * noise - noisiness * latents, steps, weigh(level).clamp(max=1)
        return noisy, noise, steps, weigh(level)
