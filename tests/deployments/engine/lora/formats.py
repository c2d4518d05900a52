"""Writes LoRA files of every format for tiny networks, and merges them into weights as their papers and LyCORIS say.

The merging is written from the formats' definitions, over whole weights, and shares nothing with the reader.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK: Final = 3
ALPHA: Final = 2.0

Tensors = dict[str, Tensor]
Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Format:
    """A layer's tensors, without its name, and the weight that merging them at a scale gives; None where the format has
    nothing for such a layer.
    """

    write: Callable[[Layer], Tensors | None]
    merge: Callable[[Tensor, Tensors, float], Tensor]


def layers_of(network: nn.Module) -> dict[str, Layer]:
    """The layers of `network` that LoRAs change, by their paths."""
    return {path: layer for path, layer in network.named_modules() if isinstance(layer, Layer)}


def random(*shape: int) -> Tensor:
    return torch.randn(shape) * 0.2


def write_kohya(path: Path, networks: Mapping[str, nn.Module], kind: Format) -> dict[tuple[str, str], Tensors]:
    """Writes every layer of the networks (by kohya's prefix) that `kind` can change. Returns what it wrote, by prefix
    and layer.
    """
    torch.manual_seed(17)
    made = {
        (prefix, name): tensors
        for prefix, network in networks.items()
        for name, layer in layers_of(network).items()
        if (tensors := kind.write(layer)) is not None
    }
    file = {
        f"{prefix}{name.replace('.', '_')}.{part}": tensor.contiguous()
        for (prefix, name), tensors in made.items()
        for part, tensor in tensors.items()
    }
    save_file(file, path)
    return made


def _sides(layer: Layer) -> tuple[int, int, tuple[int, ...]]:
    out, inside, *kernel = layer.weight.shape
    return out, inside, tuple(kernel)


def _write_lora(layer: Layer) -> Tensors:
    out, inside, kernel = _sides(layer)
    ones = (1,) * len(kernel)
    return {
        "lora_down.weight": random(RANK, inside, *kernel),
        "lora_up.weight": random(out, RANK, *ones),
        "alpha": torch.tensor(ALPHA),
    }


def _merge_lora(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
    up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"].flatten(1)
    alpha = tensors["alpha"].item() if "alpha" in tensors else down.shape[0]
    return weight + scale * alpha / down.shape[0] * (up @ down).reshape(weight.shape)


def _write_tucker(layer: Layer) -> Tensors | None:
    out, inside, kernel = _sides(layer)
    if kernel in ((), (1, 1)):
        return None
    return {
        "lora_down.weight": random(RANK, inside, 1, 1),
        "lora_mid.weight": random(RANK, RANK, *kernel),
        "lora_up.weight": random(out, RANK, 1, 1),
        "alpha": torch.tensor(ALPHA),
    }


def _merge_tucker(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
    """Runs the three convolutions over an impulse at each input: what comes out is the kernel, mirrored."""
    inside = weight.shape[1]
    impulses = torch.zeros(inside, inside, 5, 5)
    impulses[range(inside), range(inside), 2, 2] = 1
    functional = nn.functional
    answer = functional.conv2d(impulses, tensors["lora_down.weight"])
    answer = functional.conv2d(answer, tensors["lora_mid.weight"])
    answer = functional.conv2d(answer, tensors["lora_up.weight"])
    return weight + scale * ALPHA / RANK * answer.transpose(0, 1).flip(-1, -2)


def _write_loha(layer: Layer) -> Tensors:
    out, inside, kernel = _sides(layer)
    flat = inside * (kernel[0] * kernel[1] if kernel else 1)
    return {
        **{f"hada_w{i}_a": random(out, RANK) for i in (1, 2)},
        **{f"hada_w{i}_b": random(RANK, flat) for i in (1, 2)},
        "alpha": torch.tensor(ALPHA),
    }


def _merge_loha(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
    first, second = (tensors[f"hada_w{i}_a"] @ tensors[f"hada_w{i}_b"] for i in (1, 2))
    return weight + scale * ALPHA / RANK * (first * second).reshape(weight.shape)


def _write_large_loha(layer: Layer) -> Tensors:
    """Of a rank whose square is more than the layers' own."""
    out, inside, kernel = _sides(layer)
    flat = inside * (kernel[0] * kernel[1] if kernel else 1)
    return {
        **{f"hada_w{i}_a": random(out, 7) for i in (1, 2)},
        **{f"hada_w{i}_b": random(7, flat) for i in (1, 2)},
        "alpha": torch.tensor(ALPHA * 7 / RANK),
    }


def _write_loha_tucker(layer: Layer) -> Tensors | None:
    out, inside, kernel = _sides(layer)
    if kernel in ((), (1, 1)):
        return None
    return {
        **{f"hada_t{i}": random(RANK, RANK, *kernel) for i in (1, 2)},
        **{f"hada_w{i}_a": random(RANK, out) for i in (1, 2)},
        **{f"hada_w{i}_b": random(RANK, inside) for i in (1, 2)},
        "alpha": torch.tensor(ALPHA),
    }


def _merge_loha_tucker(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
    parts = [
        torch.einsum("ijkl,jr,ip->prkl", *(tensors[f"hada_{part}"] for part in (f"t{i}", f"w{i}_b", f"w{i}_a")))
        for i in (1, 2)
    ]
    return weight + scale * ALPHA / RANK * parts[0] * parts[1]


def _lokr(*, first: bool, second: bool) -> Callable[[Layer], Tensors | None]:
    """LoKr whose `first` and `second` matrix is whole, or a product."""

    def write(layer: Layer) -> Tensors | None:
        out, inside, kernel = _sides(layer)
        if out % 4 or inside % 2:
            return None
        flat = inside // 2 * (kernel[0] * kernel[1] if kernel else 1)
        return {
            **({"lokr_w1": random(4, 2)} if first else {"lokr_w1_a": random(4, RANK), "lokr_w1_b": random(RANK, 2)}),
            **(
                {"lokr_w2": random(out // 4, inside // 2, *kernel)}
                if second
                else {"lokr_w2_a": random(out // 4, RANK), "lokr_w2_b": random(RANK, flat)}
            ),
            "alpha": torch.tensor(ALPHA),
        }

    return write


def _write_lokr_tucker(layer: Layer) -> Tensors | None:
    out, inside, kernel = _sides(layer)
    if kernel in ((), (1, 1)) or out % 4 or inside % 2:
        return None
    return {
        "lokr_w1": random(4, 2),
        "lokr_t2": random(RANK, RANK, *kernel),
        "lokr_w2_a": random(RANK, out // 4),
        "lokr_w2_b": random(RANK, inside // 2),
        "alpha": torch.tensor(ALPHA),
    }


def _merge_lokr(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
    whole = {"lokr_w1", "lokr_w2"} <= tensors.keys()
    first = tensors.get("lokr_w1")
    if first is None:
        first = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    shape = (weight.shape[0] // 4, weight.shape[1] // 2, *weight.shape[2:])
    if "lokr_t2" in tensors:
        second = torch.einsum("ijkl,ip,jr->prkl", *(tensors[f"lokr_{part}"] for part in ("t2", "w2_a", "w2_b")))
    elif "lokr_w2" in tensors:
        second = tensors["lokr_w2"]
    else:
        second = (tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]).reshape(shape)
    # Block by block: element (i, k), (j, l) of the product is first[i, j] * second[k, l].
    blocks = torch.einsum("ij,kl...->ikjl...", first, second)
    return weight + scale * (1 if whole else ALPHA / RANK) * blocks.reshape(weight.shape)


def _write_difference(layer: Layer) -> Tensors:
    return {"diff": random(*layer.weight.shape)}


def _merge_difference(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
    return weight + scale * tensors["diff"]


def _ia3(on_input: bool) -> Callable[[Layer], Tensors]:
    def write(layer: Layer) -> Tensors:
        out, inside, kernel = _sides(layer)
        shape = (1, inside, *(1 for _ in kernel)) if on_input else (out, 1, *(1 for _ in kernel))
        return {"weight": random(*shape), "on_input": torch.tensor(on_input)}

    return write


def _merge_ia3(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
    return weight * (1 + scale * tensors["weight"])


def _dora(axis: int, inner: Format) -> Format:
    """DoRA around `inner`, with the norms of the weight along `axis` left standing."""

    def norms(weight: Tensor) -> Tensor:
        others = [dim for dim in range(weight.dim()) if dim != axis]
        return weight.pow(2).sum(others, keepdim=True).sqrt()

    def write(layer: Layer) -> Tensors | None:
        tensors = inner.write(layer)
        if tensors is None:
            return None
        length = norms(layer.weight)
        return {**tensors, "dora_scale": length * (1 + 0.3 * torch.rand_like(length))}

    def merge(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
        merged = inner.merge(weight, tensors, scale)
        return merged * tensors["dora_scale"] / norms(merged)

    return Format(write, merge)


def _half(inner: Format) -> Format:
    def write(layer: Layer) -> Tensors | None:
        tensors = inner.write(layer)
        return None if tensors is None else {name: tensor.half() for name, tensor in tensors.items()}

    def merge(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
        return inner.merge(weight, {name: tensor.float() for name, tensor in tensors.items()}, scale)

    return Format(write, merge)


def _without_alpha(layer: Layer) -> Tensors:
    return {name: tensor for name, tensor in _write_lora(layer).items() if name != "alpha"}


LOCON: Final = Format(_write_lora, _merge_lora)
_LOHA: Final = Format(_write_loha, _merge_loha)

FORMATS: Final[dict[str, Format]] = {
    "lora and locon": LOCON,
    "half precision": _half(LOCON),
    "no alpha": Format(_without_alpha, _merge_lora),
    "tucker": Format(_write_tucker, _merge_tucker),
    "loha": _LOHA,
    "large loha": Format(_write_large_loha, _merge_loha),
    "loha tucker": Format(_write_loha_tucker, _merge_loha_tucker),
    "lokr": Format(_lokr(first=True, second=False), _merge_lokr),
    "lokr of products": Format(_lokr(first=False, second=False), _merge_lokr),
    "lokr of a product and a whole": Format(_lokr(first=False, second=True), _merge_lokr),
    "lokr of wholes": Format(_lokr(first=True, second=True), _merge_lokr),
    "lokr tucker": Format(_write_lokr_tucker, _merge_lokr),
    "full": Format(_write_difference, _merge_difference),
    "ia3 of outputs": Format(_ia3(False), _merge_ia3),
    "ia3 of inputs": Format(_ia3(True), _merge_ia3),
    "dora of outputs": _dora(0, LOCON),
    "dora of inputs": _dora(1, LOCON),
    "dora of loha": _dora(0, _LOHA),
}
