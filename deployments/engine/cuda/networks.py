"""Prepares diffusers' networks for CUDA: channels-last memory, fused normalization, and compilation for any batch size.

Tensor cores read convolutions channels-last. Inductor arranges that by itself for fixed shapes only, and fixed batch
sizes would cost a compilation each: so weights and activations are laid out here, and the batch is left open.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.utils._pytree import tree_map

from deployments.engine.checkpoints.library_networks import Transformer2DModel
from deployments.engine.cuda.group_norm import fuse_group_norms

SLOW_FUSION: Final = "loop_reindexing_after_fusion"
"""An option of Inductor since torch 2.13 that makes convolution networks in half precision up to six times slower."""

RECOMPILE_LIMIT: Final = 64
"""Compilations of one function: one for each image size, number of tokens and set of arguments. All of diffusers'
networks count as one function.
"""

Backend = str | Callable[..., Any]


def prepare_for_cuda(network: nn.Module) -> None:
    """Lays a UNet, ControlNet or VAE out channels-last and fuses its group normalizations, in place.

    What it computes stays the same. A network that is prepared already is left as it is.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    fuse_group_norms(network)
    for module in network.modules():
        if isinstance(module, Transformer2DModel) and _restore_layout not in module._forward_hooks.values():
            module.register_forward_hook(_restore_layout)


class CompiledNetwork:
    """A network's function, compiled once for all batch sizes, and once more for a batch of one.

    Further compilations happen for other image sizes, numbers of tokens and sets of arguments. Arguments and answers
    are those of the function; every tensor that it is given has the batch as its first dimension. The function is to be
    found unchanged where it was, for shapes that are not worth a compilation.
    """

    def __init__(self, function: Callable[..., Any], backend: Backend = "inductor") -> None:
        self._compiled = torch.compile(
            function, backend=backend, fullgraph=True, dynamic=False, options=inductor_options()
        )

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        # Every thread has its own settings of dynamo.
        if torch._dynamo.config.recompile_limit < RECOMPILE_LIMIT:
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        inputs, named = tree_map(_open_batch, (inputs, named))
        return self._compiled(*inputs, **named)


def inductor_options() -> dict[str, Any]:
    """Returns the options that networks are compiled with."""
    options: dict[str, Any] = {"conv_1x1_as_mm": True}
    if hasattr(inductor_config, SLOW_FUSION):
        options[SLOW_FUSION] = False
    return options


def _open_batch(value: Any) -> Any:
    """Returns a tensor channels-last, if it is a map, and with its first dimension marked as one that changes."""
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    torch._dynamo.maybe_mark_dynamic(value, 0)
    return value


def _restore_layout(_module: nn.Module, _inputs: Any, answer: Any) -> Any:
    """Makes the map that a transformer answers with channels-last again: diffusers makes it contiguous."""
    return tree_map(lambda value: value.contiguous(memory_format=torch.channels_last), answer)
