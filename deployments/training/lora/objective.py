"""What the UNet is asked while it learns, and how much each answer counts.

Everything random is drawn on the CPU from a generator of the training's seed and the step alone, so that a training
that was killed and goes on learns what it would have learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOISY = 0.4
"""Where the noisier timesteps begin, as a share of all."""


@dataclass(frozen=True, slots=True)
class TrainingNoise:
    """How latents are noised: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, with `signal` a [T] on the CPU.

    `offset` adds to each channel's mean (Guttenberg 2023). `high_share` is the share of rows from the noisier
    timesteps. `predicts_v` says what is to be guessed: v (Salimans & Ho 2022), or the noise.
    """

    signal: Tensor
    predicts_v: bool
    gamma: float
    offset: float = 0.0
    high_share: float = 0.0

    def draw(self, latents: Tensor, generator: torch.Generator) -> NoisedRows:
        """Returns latents [B, 4, h, w] noised at timesteps that are drawn."""
        rows, last = len(latents), len(self.signal)
        anywhere = torch.randint(0, last, (rows,), generator=generator)
        high = torch.randint(int(last * NOISY), last, (rows,), generator=generator)
        steps = torch.where(torch.rand(rows, generator=generator) < self.high_share, high, anywhere)
        return self.noise(latents, steps, generator)

    def noise(self, latents: Tensor, steps: Tensor, generator: torch.Generator) -> NoisedRows:
        """Returns latents [B, 4, h, w] noised at `steps` [B], on the latents' device."""
        noise = torch.randn(latents.shape, generator=generator)
        common = torch.randn(*latents.shape[:2], 1, 1, generator=generator)
        noise = (noise + self.offset * common).to(latents)
        levels = self.signal[steps]
        signal, rest = (part.sqrt().view(-1, 1, 1, 1).to(latents) for part in (levels, 1 - levels))
        noisy = signal * latents + rest * noise
        wanted = signal * noise - rest * latents if self.predicts_v else noise
        return NoisedRows(noisy, steps.to(latents.device), wanted, self._weigh(levels).to(latents.device))

    def _weigh(self, levels: Tensor) -> Tensor:
        """Returns the loss weights [B] at signal levels [B]: min-SNR-gamma (Hang et al. 2023) in terms of what is
        guessed: min(snr, gamma) / snr for the noise, and / (snr + 1) for v.
        """
        if not self.gamma:
            return torch.ones_like(levels)
        ratio = levels / (1 - levels)
        return ratio.clamp(max=self.gamma) / (ratio + 1 if self.predicts_v else ratio)


@dataclass(frozen=True, slots=True)
class NoisedRows:
    """`noisy` latents and what is `wanted` of them [B, 4, h, w], their timesteps `steps` [B] and `weights` [B]."""

    noisy: Tensor
    steps: Tensor
    wanted: Tensor
    weights: Tensor

    def loss(self, guess: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Returns the weighted squared errors [B] of a `guess` [B, 4, h, w], of what is wanted, or of `wanted`."""
        errors = (guess.float() - (self.wanted if wanted is None else wanted).float()).square().mean(dim=(1, 2, 3))
        return errors * self.weights


def generator_of(seed: int, *place: int) -> torch.Generator:
    """Returns a CPU generator that depends on nothing but its arguments, each below 2**32."""
    mixed = 0
    for part in (seed, *place):
        # splitmix64's finaliser (Steele et al. 2014): neighbouring steps get unrelated streams.
        mixed = (mixed + part + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return torch.Generator("cpu").manual_seed(mixed >> 1)


_MASK = 2**64 - 1
