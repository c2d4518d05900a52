"""Counts how many rows fit on a GPU without having one: bytes of tensors that have shapes and no data.

Why: a cluster is sized before there is a GPU to try. The networks are SD1.5's true ones in fp16, run on fake tensors,
so nothing is computed. Attention keeps no matrix of scores, as fused kernels do not. What is not
counted: the CUDA context (0.5 GiB or so), workspaces of cuDNN, and what the allocator loses between blocks; of that the
plan keeps a tenth of the memory back (`deployments/engine/scheduling/memory_plan.py`).

    python -m bench.gpu.footprint

The last line is one JSON document.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional
from transformers import CLIPTextModel

from bench.card import card, print_card
from bench.checkpoints import SD15, text_config
from deployments.engine.scheduling.memory_plan import GIB, RESERVE

GPUS_GIB: Final[Mapping[str, float]] = MappingProxyType({"L4": 22.5, "A100 40 GB": 39.4, "H100 80 GB": 79.2})
"""What the driver leaves of a card's memory."""

CONTEXT_GIB: Final = 0.6
SIZES: Final = (512, 768)
ROWS: Final = (2, 16)
TOKENS: Final = 77


def main() -> int:
    facts = card(torch.device("cpu"))
    print_card(facts)
    torch.set_default_dtype(torch.float16)
    functional.scaled_dot_product_attention = _fused
    with FakeTensorMode(), torch.no_grad():
        unet, vae = _unet(), _vae()
        weights = sum(map(_weights, (unet, vae, _text_encoder())))
        rows = {size: _per_row(unet, size) for size in SIZES}
        decode = {size: _peak(vae, partial(_decode, size=size)) for size in SIZES}
    report: dict[str, Any] = {"weights_gib": weights / GIB, "sizes": {}}
    print(f"weights {weights / GIB:.2f} GiB")
    for size in SIZES:
        fit = {gpu: _fitting(gib, weights, decode[size], rows[size]) for gpu, gib in GPUS_GIB.items()}
        report["sizes"][size] = {"row_mib": rows[size] / 2**20, "decode_mib": decode[size] / 2**20, "rows": fit}
        told = ", ".join(f"{gpu} {count}" for gpu, count in fit.items())
        print(
            f"{size} x {size}: a row {rows[size] / 2**20:.0f} MiB, a decode {decode[size] / 2**20:.0f} MiB; fit: {told}"
        )
    print(json.dumps({"bench": "footprint", "card": facts, "report": report}))
    return 0


def _per_row(unet: Any, size: int) -> float:
    """Bytes by which a call's peak grows with a row."""
    few, many = (_peak(unet, partial(_call, rows=rows, size=size)) for rows in ROWS)
    return (many - few) / (ROWS[1] - ROWS[0])


def _fitting(gib: float, weights: int, decode: float, per_row: float) -> int:
    """Rows beside the weights and one decoding."""
    free = (gib - CONTEXT_GIB) * GIB * (1 - RESERVE) - weights - decode
    return int(free / per_row)


def _peak(network: Any, call: Callable[[Any], object]) -> float:
    """Bytes that are alive at once beyond the weights."""
    tracker = MemTracker()
    tracker.track_external(network)
    with tracker:
        call(network)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return float(peak["Total"] - _weights(network))


def _weights(network: Any) -> int:
    tensors: Sequence[torch.Tensor] = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _call(unet: Any, rows: int, size: int) -> object:
    prompt = torch.empty(rows, TOKENS, SD15.unet["cross_attention_dim"])
    return unet(_latents(rows, size), torch.zeros(rows), encoder_hidden_states=prompt).sample


def _decode(vae: Any, size: int) -> object:
    return vae.decode(_latents(1, size)).sample


def _latents(rows: int, size: int) -> torch.Tensor:
    return torch.empty(rows, 4, size // 8, size // 8)


def _fused(query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return torch.empty_like(query)


def _unet() -> Any:
    return UNet2DConditionModel(**SD15.unet)


def _vae() -> Any:
    return AutoencoderKL(**SD15.vae)


def _text_encoder() -> Any:
    return CLIPTextModel(text_config(SD15))


if __name__ == "__main__":
    raise SystemExit(main())
