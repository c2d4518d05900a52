"""What the UNet is asked while it learns, and how much each answer counts.

Everything random is drawn on the CPU from a generator of the training's seed and the step alone, for all processes'
rows at once: so a training learns the same if it was killed and goes on, and in however many processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.training.lora.lessons import EncodedPictures

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

    def draw(self, pictures: EncodedPictures, generator: torch.Generator) -> NoisedRows:
        """Returns pictures [B] noised at timesteps that are drawn."""
        rows, last = len(pictures), len(self.signal)
        anywhere = torch.randint(0, last, (rows,), generator=generator)
        high = torch.randint(int(last * NOISY), last, (rows,), generator=generator)
        steps = torch.where(torch.rand(rows, generator=generator) < self.high_share, high, anywhere)
        return self.noise(pictures, steps, generator)

    def noise(self, pictures: EncodedPictures, steps: Tensor, generator: torch.Generator) -> NoisedRows:
        """Returns pictures [B] noised at `steps` [B], on the pictures' device."""
        latents = pictures.latents
        noise = torch.randn(latents.shape, generator=generator)
        common = torch.randn(*latents.shape[:2], 1, 1, generator=generator)
        noise = (noise + self.offset * common).to(latents)
        levels = self.signal[steps]
        signal, rest = (part.sqrt().view(-1, 1, 1, 1).to(latents) for part in (levels, 1 - levels))
        noisy = signal * latents + rest * noise
        wanted = signal * noise - rest * latents if self.predicts_v else noise
        weights = self._weigh(levels).to(latents.device)
        return NoisedRows(noisy, steps.to(latents.device), pictures.words, pictures.pooled, wanted, weights)

    def _weigh(self, levels: Tensor) -> Tensor:
        """Returns the loss weights [B] at signal levels [B]: min-SNR-gamma (Hang et al. 2023) in terms of what is
        guessed: min(snr, gamma) / snr for the noise, and / (snr + 1) for v.
        """
        if not self.gamma:
            return torch.ones_like(levels)
        ratio = levels / (1 - levels)
        return ratio.clamp(max=self.gamma) / (ratio + 1 if self.predicts_v else ratio)


@dataclass(frozen=True, slots=True, eq=False)
class NoisedRows:
    """What the UNet sees: `noisy` latents [B, 4, h, w], their timesteps `steps` [B], and captions `words` [B, 77, C]
    and `pooled` [B, P]; what is `wanted` of it [B, 4, h, w], and how much that counts, `weights` [B].
    """

    noisy: Tensor
    steps: Tensor
    words: Tensor
    pooled: Tensor
    wanted: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.noisy)

    def pick(self, rows: slice) -> NoisedRows:
        """Returns some of the rows."""
        return NoisedRows(*(part[rows] for part in self._parts()))

    def loss(self, guess: Tensor) -> Tensor:
        """Returns the weighted squared errors [B] of a `guess` [B, 4, h, w]."""
        return (guess.float() - self.wanted.float()).square().mean(dim=(1, 2, 3)) * self.weights

    def _parts(self) -> tuple[Tensor, ...]:
        return self.noisy, self.steps, self.words, self.pooled, self.wanted, self.weights


def join(rows: Sequence[NoisedRows]) -> NoisedRows:
    """Returns all of them as one."""
    return NoisedRows(*(torch.cat(parts) for parts in zip(*(each._parts() for each in rows), strict=True)))
