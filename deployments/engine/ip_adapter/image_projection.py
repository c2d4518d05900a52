"""Makes the projections of IP-Adapters: from what an image encoder says of a picture to the tokens that a UNet sees.

They are diffusers' own modules. Its renaming of the files' weights is private, and leaves it to chance what becomes of
those it does not know; here every one has a place, or the file is refused.
"""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection
from torch import Tensor, nn

from deployments.engine.checkpoints.weight_files import list_first

Projection = nn.Module
"""A plain adapter's, of a picture's embedding [B, width], or a plus adapter's, of its patches [B, patches, width]."""

PLAIN_TOKENS: Final = 4
"""The tokens of a plain adapter's picture; diffusers knows no others."""

MOST_TOKENS: Final = 16
"""The most tokens of a picture that are served: those of the published plus adapters."""

_HEAD_WIDTH: Final = 64
_BLOCKS: Final = 4
"""The blocks of a plus adapter; diffusers knows no others."""

_PLAIN: Final = re.compile(r"(proj|norm)\.(weight|bias)")
_BLOCK: Final = re.compile(rf"layers\.([0-{_BLOCKS - 1}])\.(.+)")
_RESAMPLER: Final = re.compile(r"latents|(proj_in|proj_out|norm_out)\.(weight|bias)")

_IN_BLOCK: Final[Mapping[str, str]] = MappingProxyType(
    {
        "0.norm1.weight": "ln0.weight",
        "0.norm1.bias": "ln0.bias",
        "0.norm2.weight": "ln1.weight",
        "0.norm2.bias": "ln1.bias",
        "0.to_q.weight": "attn.to_q.weight",
        "0.to_out.weight": "attn.to_out.0.weight",
        "1.0.weight": "ff.0.weight",
        "1.0.bias": "ff.0.bias",
        "1.1.weight": "ff.1.net.0.proj.weight",
        "1.3.weight": "ff.1.net.2.weight",
    }
)
"""A block's attention (0) and feed-forward network (1): the files' names, and diffusers'."""

_OTHERS: Final = (
    ("perceiver_resampler.", "FaceID Plus, which needs a face recogniser's embeddings"),
    ("proj.3.", "of the full-face kind, which attends to every patch of a face"),
    ("proj.0.", "FaceID, which needs a face recogniser's embeddings"),
)
"""What kinds that are not served are told by."""


def build_projection(tensors: Mapping[str, Tensor]) -> Projection:
    """Returns the projection that has exactly these `tensors`, by their names in a file without `image_proj.`.

    Raises ValueError, which says why it is not served.
    """
    for start, kind in _OTHERS:
        if any(name.startswith(start) for name in tensors):
            raise ValueError(f"it is {kind}; served are plain IP-Adapters and plus ones")
    is_plus = "latents" in tensors
    named = dict(_rename(tensors, is_plus=is_plus))
    try:
        projection: Projection = _new_plus(tensors) if is_plus else _new_plain(tensors)
    except (LookupError, ArithmeticError, ValueError, RuntimeError):
        raise ValueError("its projection has weights of other shapes than a plain or a plus IP-Adapter's") from None
    if missing := sorted(projection.state_dict().keys() - named.keys()):
        raise ValueError(f"its projection lacks weights ({list_first(missing)})")
    if count_tokens(projection) > MOST_TOKENS:
        raise ValueError(f"it makes {count_tokens(projection)} tokens of a picture, and served are {MOST_TOKENS}")
    try:
        projection.load_state_dict(named, assign=True)
    except RuntimeError:
        raise ValueError("its projection has weights that do not fit one another") from None
    return projection


def is_plain(projection: Projection) -> bool:
    """Returns True for the projection of a plain adapter."""
    return isinstance(projection, ImageProjection)


def count_tokens(projection: Any) -> int:
    """Returns the tokens that become of a picture."""
    return int(projection.num_image_text_embeds if is_plain(projection) else projection.latents.shape[1])


def input_width(projection: Any) -> int:
    """Returns the width of what it reads of a picture."""
    first = projection.image_embeds if is_plain(projection) else projection.proj_in
    return int(first.in_features)


def _new_plain(tensors: Mapping[str, Tensor]) -> Any:
    outputs, inputs = tensors["proj.weight"].shape
    (width,) = tensors["norm.weight"].shape
    if outputs != PLAIN_TOKENS * width:
        raise ValueError
    with torch.device("meta"):
        return ImageProjection(inputs, width, PLAIN_TOKENS)


def _new_plus(tensors: Mapping[str, Tensor]) -> Any:
    _, queries, hidden = tensors["latents"].shape
    heads, odd = divmod(len(tensors["layers.0.0.to_q.weight"]), _HEAD_WIDTH)
    if odd:
        raise ValueError
    with torch.device("meta"):
        return IPAdapterPlusImageProjection(
            embed_dims=tensors["proj_in.weight"].shape[1],
            output_dims=len(tensors["proj_out.weight"]),
            hidden_dims=hidden,
            depth=_BLOCKS,
            dim_head=_HEAD_WIDTH,
            heads=heads,
            num_queries=queries,
        )


def _rename(tensors: Mapping[str, Tensor], *, is_plus: bool) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors by diffusers' names. Raises ValueError for a name that has none there."""
    for name, tensor in tensors.items():
        if not is_plus and _PLAIN.fullmatch(name):
            yield name.replace("proj.", "image_embeds."), tensor
        elif is_plus and _RESAMPLER.fullmatch(name):
            yield name, tensor
        elif is_plus and (found := _BLOCK.fullmatch(name)) and (part := found[2]) == "0.to_kv.weight":
            for kind, half in zip(("to_k", "to_v"), tensor.chunk(2), strict=True):
                yield f"layers.{found[1]}.attn.{kind}.weight", half
        elif is_plus and found and part in _IN_BLOCK:
            yield f"layers.{found[1]}.{_IN_BLOCK[part]}", tensor
        else:
            raise ValueError(f"its projection has a weight {name!r} that neither a plain nor a plus IP-Adapter has")
