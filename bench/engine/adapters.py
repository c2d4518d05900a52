"""Makes LoRAs with random weights for the benches: speed does not depend on what they have learnt."""

from typing import Final

import torch
from torch import Tensor

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.low_rank import LowRank
from deployments.engine.lora.rows.layers import Layers

TARGETS: Final = {
    "usual": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"],
    "all": [""],
}
"""The layers that LoRAs change, by the ends of their paths: kohya's default, and LoCon's."""


def choose_layers(layers: Layers, targets: str) -> Layers:
    """Returns those of a UNet's `layers`, by their paths, that LoRAs with these `targets` change."""
    ends = tuple(TARGETS[targets])
    return {path: layer for path, layer in layers.items() if path.endswith(ends)}


def random_adapter(name: str, layers: Layers, rank: int, seed: int) -> Adapter:
    """Returns a LoRA of rank `rank` for all `layers` of a UNet, whose answers it changes by a fifth."""
    random = torch.Generator().manual_seed(seed)

    def pair(weight: Tensor) -> LowRank:
        down = torch.randn((rank, *weight.shape[1:]), generator=random) * weight[0].numel() ** -0.5
        return LowRank(down, 0.2 * torch.randn((len(weight), rank), generator=random) * rank**-0.5)

    return Adapter(name, "", {"unet": {path.replace(".", "_"): pair(layer.weight) for path, layer in layers.items()}})
