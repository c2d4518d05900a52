"""The kernels that attention can run on, and diffusers' attention with one for each shape of layer.

torch's own order of kernels is the same for all shapes and never reaches cuDNN. Its switch for choosing one is global
to the process, and the decoder's thread would see it change; so the operations behind it are called directly.
"""

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from deployments.engine.conditioning.cross_attention import AttentionContext, attend_to_references, split_heads

Kernel = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Takes queries, keys and values [B, heads, tokens, width] and the scale of the products, and returns the mixed values,
[B, heads, tokens, width].
"""

TORCH: Final = "torch"
"""What torch chooses by itself."""

PADDED_WIDTHS: Final = (64, 96, 128, 192, 256)
"""The widths of a head that flash attention has kernels for; a head of another width is rounded up inside them."""


class LayerShape(NamedTuple):
    """The shape of an attention layer: tokens that ask, tokens that they attend to, heads, and a head's width."""

    tokens: int
    attended: int
    heads: int
    width: int


def attend_by_default(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The kernel that torch chooses."""
    return scaled_dot_product_attention(query, key, value, scale=scale)


def pad_heads(kernel: Kernel, width: int) -> Kernel:
    """Returns `kernel` run on heads padded with zeros to `width`, which changes nothing but how fast it is."""

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        more = (0, width - query.shape[-1])
        return kernel(pad(query, more), pad(key, more), pad(value, more), scale)[..., : query.shape[-1]]

    return attend


def kernels_for(width: int) -> dict[str, Kernel]:
    """Returns the kernels to try on CUDA for heads of `width`, by name, torch's own choice first.

    Each as it is, and with heads padded to the next two widths that kernels are made for. Some raise where they cannot
    run: on another GPU, in another precision.
    """
    kernels: dict[str, Kernel] = {TORCH: attend_by_default}
    wider = [each for each in PADDED_WIDTHS if each > width][:2]
    for name, kernel in _on_cuda().items():
        kernels[name] = kernel
        kernels |= {f"{name} padded to {each}": pad_heads(kernel, each) for each in wider}
    return kernels


class ShapedAttention:
    """An attention processor for diffusers' transformers that runs each shape of layer on the kernel given for it.

    Other shapes run on `default`. The layers are as Stable Diffusion's: without masks, and without norms of their own.
    """

    def __init__(self, kernels: Mapping[LayerShape, Kernel], default: Kernel = attend_by_default) -> None:
        self._kernels = {tuple(shape): kernel for shape, kernel in kernels.items()}
        self._default = default

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | AttentionContext | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attends from `hidden_states` [B, tokens, channels] to `encoder_hidden_states`, or to itself without them."""
        if attention_mask is not None:
            raise ValueError("attention is not masked here")
        given = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        context = given.prompts if isinstance(given, AttentionContext) else given
        query, key, value = (
            split_heads(each, attn.heads) for each in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        width = query.shape[-1]
        kernel = self._kernels.get((query.shape[2], key.shape[2], attn.heads, width), self._default)
        mixed = kernel(query, key, value, 1 / math.sqrt(width))
        if isinstance(given, AttentionContext):
            mixed = mixed + attend_to_references(attn, query, given)
        answer: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return answer


def layer_shapes(network: Any, inputs: Mapping[str, Any]) -> list[LayerShape]:
    """Returns the shapes of a network's attention layers at these inputs, each once, in the order of the layers."""
    seen: dict[LayerShape, None] = {}

    def note(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        seen[LayerShape(query.shape[2], key.shape[2], query.shape[1], query.shape[3])] = None
        return attend_by_default(query, key, value, scale)

    before = dict(network.attn_processors)
    network.set_attn_processor(ShapedAttention({}, note))
    try:
        with torch.inference_mode():
            network(**inputs)
    finally:
        network.set_attn_processor(before)
    return list(seen)


def _on_cuda() -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {"flash": _attend_flash, "cudnn": _attend_cudnn, "efficient": _attend_efficient}
    return kernels | ({"xformers": attend_xformers} if find_spec("xformers") is not None else {})


def _attend_flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Flash attention (Dao, 2023)."""
    answer: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]
    return answer


def _attend_cudnn(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    answer: Tensor = attend(query, key, value, None, False, scale=scale)[0]
    return answer


def _attend_efficient(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Memory-efficient attention (Rabe and Staats, 2021)."""
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    answer: Tensor = attend(query, key, value, None, False, scale=scale)[0]
    return answer


@torch.library.custom_op("darkroom::attend_xformers", mutates_args=(), device_types="cuda")
def attend_xformers(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """xformers' memory-efficient attention, as one operation: what is inside could break a graph."""
    from xformers.ops import memory_efficient_attention  # it need not be installed

    swapped = (each.transpose(1, 2) for each in (query, key, value))
    answer: Tensor = memory_efficient_attention(*swapped, scale=scale).transpose(1, 2)
    return answer.contiguous()


@attend_xformers.register_fake
def _shape(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return query.new_empty(query.shape)
