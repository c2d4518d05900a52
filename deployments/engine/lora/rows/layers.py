"""Lets a network's layers answer with the updates of its rows, for the time of a call; its weights stay as they are."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from deployments.engine.lora.rows.factors import Factors, add_update

Layers = Mapping[str, nn.Linear | nn.Conv2d]
"""The layers that updates can change, by their path in diffusers or transformers."""

_TAKEN_OUT = ".projection"


def layers_of(network: Any) -> Layers:
    """Returns the layers of `network` that updates can change, with the weights that they have.

    A projection that `CrossAttentionCache` has taken out is found under the path that it had.
    """
    if hasattr(network, "weighted_layers"):
        found: Layers = network.weighted_layers()
        return found
    return {
        path.removesuffix(_TAKEN_OUT): module
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def apply_factors(network: Any, factors: Mapping[str, Factors]) -> AbstractContextManager[None]:
    """Lets calls of `network` inside the context give the answers of the changed layers. For one thread at a time."""
    if hasattr(network, "apply_factors"):
        own: AbstractContextManager[None] = network.apply_factors(factors)
        return own
    return _hook_layers(network, factors)


@contextmanager
def _hook_layers(network: nn.Module, factors: Mapping[str, Factors]) -> Iterator[None]:
    hooks = []
    try:
        for path, each in factors.items():
            hooks.append(network.get_submodule(path).register_forward_hook(partial(_add, each)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(factors: Factors, layer: nn.Module, inputs: tuple[Tensor], answer: Tensor) -> Tensor:
    return add_update(layer, inputs[0], answer, factors)
