"""What UNets and ControlNets of Stable Diffusion XL's kind are told besides: the text as a whole, and the sizes.

Podell et al., 2023: the size of the picture that was learnt from, what was cropped of it, and the size that is asked
for. As diffusers' pipelines do by default, an image is asked for as one that was learnt from at its own size, whole.
"""

from typing import Any, Final

import torch
from torch import Tensor

SIZES: Final = 6
"""Height and width as learnt from, top and left of the crop, height and width as asked for; all in pixels."""


def takes_added_conditions(network: Any) -> bool:
    """Returns True if `network`, a UNet or ControlNet of diffusers', takes them."""
    return bool(network.config.addition_embed_type == "text_time")


def pooled_width(network: Any) -> int | None:
    """Returns the width of the pooled text that `network` takes; None if it takes none."""
    config = network.config
    if not takes_added_conditions(network):
        return None
    return int(config.projection_class_embeddings_input_dim) - SIZES * int(config.addition_time_embed_dim)


def sizes_of(height: int, width: int) -> Tensor:
    """Returns the sizes [6] that an image of height x width pixels is asked for with."""
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)


def added_conditions(pooled: Tensor, sizes: Tensor) -> dict[str, Any]:
    """Returns the argument for `pooled` texts [B, width] and `sizes` [B, 6], under diffusers' name for it."""
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def sample_conditions(network: Any, rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the argument for `rows` rows of no text and no size; nothing for a network that takes none."""
    width = pooled_width(network)
    if width is None:
        return {}
    pooled, sizes = (torch.zeros((rows, each), device=device, dtype=dtype) for each in (width, SIZES))
    return added_conditions(pooled, sizes)
