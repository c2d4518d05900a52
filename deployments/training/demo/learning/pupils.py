"""Pupils: what is trained, and how it is asked for its guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from deployments.training.demo.adapter import StyleAdapter
from deployments.training.demo.learning.latents import LatentBatch


class Pupil(Protocol):
    """A network to train; called with noisy latents [B, 4, h, w], timesteps [B] and the rest of the batch, it guesses
    what its family predicts [B, 4, h, w].
    """

    @property
    def network(self) -> nn.Module: ...

    def __call__(self, noisy: Tensor, steps: Tensor, batch: LatentBatch) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A UNet by itself; one of nine channels sees the holes as well, and SDXL's the pooled caption and the sizes."""

    network: UNet2DConditionModel

    def __call__(self, noisy: Tensor, steps: Tensor, batch: LatentBatch) -> Tensor:
        seen = noisy if batch.holes is None else torch.cat([noisy, batch.holes], dim=1)
        added = None if batch.pooled is None else {"text_embeds": batch.pooled, "time_ids": batch.sizes}
        guess: Tensor = self.network(seen, steps, batch.words, added_cond_kwargs=added).sample
        return guess


@dataclass(frozen=True, eq=False)
class Guide:
    """A ControlNet beside a UNet that stays what it is."""

    network: ControlNetModel
    unet: UNet2DConditionModel

    def __call__(self, noisy: Tensor, steps: Tensor, batch: LatentBatch) -> Tensor:
        down, mid = self.network(noisy, steps, batch.words, batch.hints, return_dict=False)
        guess: Tensor = self.unet(
            noisy, steps, batch.words, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        return guess


@dataclass(frozen=True, eq=False)
class Styled:
    """An IP-Adapter inside a UNet that stays what it is; references that are zeros are none."""

    network: StyleAdapter
    unet: UNet2DConditionModel

    def __call__(self, noisy: Tensor, steps: Tensor, batch: LatentBatch) -> Tensor:
        assert batch.references is not None
        seen = {"image_embeds": [batch.references[:, None]]}
        guess: Tensor = self.unet(noisy, steps, batch.words, added_cond_kwargs=seen).sample
        return guess
