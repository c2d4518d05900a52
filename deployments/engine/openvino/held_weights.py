"""The weights that torch's modules hold, and frees when a network is converted."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def weights_of(owners: Iterable[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Yields where each weight is held, and the weight; biases of layers aside, which LoRAs' gains need."""
    for module in {each: None for owner in owners for each in owner.modules()}:
        is_layer = isinstance(module, nn.Linear | nn.Conv2d)
        for held in (module._parameters, module._buffers):
            present = ((name, tensor) for name, tensor in held.items() if tensor is not None)
            yield from ((held, name, tensor) for name, tensor in present if not is_layer or name != "bias")


def drop_weights(owners: Iterable[nn.Module]) -> None:
    """Frees the weights of `owners`; what remains of them are their shapes, from which sizes are counted."""
    for held, name, tensor in list(weights_of(owners)):
        empty = torch.empty_like(tensor, device="meta")
        held[name] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
