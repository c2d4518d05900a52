"""Makes the change of a layer from the tensors that a file has for it, by format."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from deployments.engine.lora.adapter import LayerChange
from deployments.engine.lora.low_rank import LowRank
from deployments.engine.lora.products import Hadamard, Kronecker
from deployments.engine.lora.whole_weights import Decomposed, Difference, Rescaling

Tensors = Mapping[str, Tensor]

_MAGNITUDES: Final = ("dora_scale", "magnitude")


def read_change(layer: str, tensors: Tensors) -> LayerChange:
    """Returns the change that `tensors`, by part, make of a layer. Raises ValueError, which names the layer, if they
    belong to no format, or do not fit together.
    """
    parts = {part: tensor for part, tensor in tensors.items() if part not in _MAGNITUDES}
    for needed, optional, read in _FORMATS:
        if parts.keys() >= needed and parts.keys() <= needed | optional:
            change = read(layer, parts)
            break
    else:
        raise ValueError(f"the tensors of {layer!r} ({', '.join(sorted(tensors))}) belong to no known format together")
    magnitudes = [part for part in _MAGNITUDES if part in tensors]
    if not magnitudes:
        return change
    if len(magnitudes) > 1 or isinstance(change, Rescaling):
        raise ValueError(f"the tensors of {layer!r} ({', '.join(sorted(tensors))}) belong to no known format together")
    return _read_dora(layer, change, magnitudes[0], tensors[magnitudes[0]])


def _read_lora(layer: str, parts: Tensors) -> LayerChange:
    down, up = parts["down"], _matrix(layer, parts["up"])
    alpha = parts["alpha"].item() if "alpha" in parts else None
    if "mid" in parts:
        down = _tucker(layer, parts["mid"], _matrix(layer, down))
    if down.dim() not in (2, 4):
        raise _misshapen(layer)
    _check_inner(layer, up.shape[1], down.shape[0])
    return LowRank(down, up, alpha)


def _read_loha(layer: str, parts: Tensors) -> LayerChange:
    ups, downs = [], []
    for i in (1, 2):
        up, down = (_matrix(layer, parts[f"hada_w{i}_{side}"]) for side in "ab")
        if (core := parts.get(f"hada_t{i}")) is not None:
            up, down = up.T, _tucker(layer, core, down)
        _check_inner(layer, up.shape[1], down.shape[0])
        ups.append(up)
        downs.append(down)
    if ups[0].shape[0] != ups[1].shape[0] or downs[0].shape[1:] != downs[1].shape[1:]:
        raise ValueError(f"the factors of {layer!r} have different sizes")
    rank = parts["hada_w1_b"].shape[0]
    is_flat = "hada_t1" not in parts
    return Hadamard((ups[0], ups[1]), (downs[0], downs[1]), _factor(parts, rank), is_flat)


def _read_lokr(layer: str, parts: Tensors) -> LayerChange:
    ranks = [parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]
    is_flat = "lokr_w2_b" in parts and "lokr_t2" not in parts
    if "lokr_t2" in parts:
        up = _matrix(layer, parts["lokr_w2_a"]).T
        second = _tucker(layer, parts["lokr_t2"], _matrix(layer, parts["lokr_w2_b"])), up
        _check_inner(layer, up.shape[1], second[0].shape[0])
    else:
        second = _factors(layer, parts, "lokr_w2")
    # Without small factors there is no rank to divide by: LyCORIS then counts alpha as the rank.
    return Kronecker(_factors(layer, parts, "lokr_w1"), second, _factor(parts, *ranks[:1]), is_flat)


def _read_difference(layer: str, parts: Tensors) -> LayerChange:
    if parts["diff"].dim() not in (2, 4):
        raise _misshapen(layer)
    return Difference(parts["diff"])


def _read_ia3(layer: str, parts: Tensors) -> LayerChange:
    factors = parts["ia3"]
    if factors.numel() != max(factors.shape, default=0):
        raise _misshapen(layer)
    return Rescaling(factors.flatten(), bool(parts["on_input"].item()))


def _read_dora(layer: str, change: LayerChange, part: str, magnitude: Tensor) -> LayerChange:
    """Reads magnitudes: [out], [out, 1] or [out, 1, 1, 1], [1, out, 1, 1] in peft's convolutions, or [1, in] or [1, in,
    1, 1] where LyCORIS took the norms of inputs.
    """
    if magnitude.numel() != max(magnitude.shape, default=0):
        raise _misshapen(layer)
    on_input = part == "dora_scale" and magnitude.dim() > 1 and magnitude.shape[0] == 1
    return Decomposed(change, magnitude.flatten(), on_input)


_FORMATS: Final[tuple[tuple[frozenset[str], frozenset[str], Callable[[str, Tensors], LayerChange]], ...]] = (
    (frozenset(("down", "up")), frozenset(("mid", "alpha")), _read_lora),
    (frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")), frozenset(("alpha",)), _read_loha),
    (
        frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
        frozenset(("alpha",)),
        _read_loha,
    ),
    *(
        (frozenset((*first, *second)), frozenset(("alpha",)), _read_lokr)
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
    ),
    (frozenset(("diff",)), frozenset(), _read_difference),
    (frozenset(("ia3", "on_input")), frozenset(), _read_ia3),
)
"""What a format needs, what it may have besides, and what reads it."""


def _factors(layer: str, parts: Tensors, name: str) -> tuple[Tensor, Tensor]:
    """Returns (down, up) of one of LoKr's two matrices, which may be written as their product, or whole."""
    if name not in parts:
        down, up = _matrix(layer, parts[f"{name}_b"]), _matrix(layer, parts[f"{name}_a"])
        _check_inner(layer, up.shape[1], down.shape[0])
        return down, up
    whole = parts[name]
    if whole.dim() not in (2, 4) or (name == "lokr_w1" and whole.dim() != 2):
        raise _misshapen(layer)
    return whole, torch.eye(whole.shape[0])


def _tucker(layer: str, core: Tensor, down: Tensor) -> Tensor:
    """Returns the one convolution that `down`, a 1x1 one, and `core` behind it are: [rank, in, kh, kw]."""
    if core.dim() != 4 or core.shape[1] != down.shape[0]:
        raise _misshapen(layer)
    return torch.einsum("mrhw,ri->mihw", core, down)


def _factor(parts: Tensors, rank: int = 0) -> float:
    """Returns alpha / rank; 1 if there is no alpha, or no rank."""
    return parts["alpha"].item() / rank if "alpha" in parts and rank else 1.0


def _matrix(layer: str, tensor: Tensor) -> Tensor:
    """Returns a matrix, which may be written as a 1x1 convolution."""
    if tensor.dim() == 4 and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)
    if tensor.dim() != 2:
        raise _misshapen(layer)
    return tensor


def _check_inner(layer: str, up: int, down: int) -> None:
    if up != down:
        raise ValueError(f"the factors of {layer!r} have ranks {down} and {up}")


def _misshapen(layer: str) -> ValueError:
    return ValueError(f"a tensor of {layer!r} has a shape that its format does not have")
