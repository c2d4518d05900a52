"""Embeds the guidance scale for UNets that take it as input (Meng et al., 2023): one call does the work of two.

Distilled checkpoints, latent consistency models among them, have `time_cond_proj_dim` in their UNet's config.
"""

from typing import Any

import torch
from torch import Tensor

from deployments.engine.protocol.inputs import PipelineKind

_SCALE = 1000.0
_MAX_PERIOD = 10_000.0


def embedding_width(unet: Any) -> int | None:
    """Returns the width of the guidance embedding that `unet`, a UNet2DConditionModel, takes; None for most."""
    width: int | None = unet.config.time_cond_proj_dim
    return width


def passes_guidance_scale(pipeline: PipelineKind) -> bool:
    """Returns True if diffusers' pipeline of that kind passes the scale to such a UNet.

    Those that start from an image beside a ControlNet do not: they leave the embedding out and run the UNet twice.
    """
    return not pipeline.controlled or pipeline.task == "text-to-image"


def embed_guidance(guidance_scale: float, width: int) -> Tensor:
    """Returns the sinusoidal embedding [width] of a guidance scale, as in diffusers' `get_guidance_scale_embedding`."""
    half = width // 2
    scaled = torch.tensor(guidance_scale - 1) * _SCALE
    step = torch.log(torch.tensor(_MAX_PERIOD)) / (half - 1)
    angles = scaled * torch.exp(torch.arange(half, dtype=torch.float32) * -step)
    embedding = torch.cat((torch.sin(angles), torch.cos(angles)))
    return torch.nn.functional.pad(embedding, (0, width - 2 * half))
