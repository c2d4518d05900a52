"""Chooses the fastest attention on this GPU for each shape of layer that a UNet has.

Nothing is assumed: torch's kernels and xformers', if that is installed, are timed as they are and with padded heads, at
the batch size that the UNet will serve. They round differently, so the choice affects the images' bytes: it is logged
and reported.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from deployments.engine.conditioning.added_conditions import sample_conditions
from deployments.engine.conditioning.cross_attention import context_width
from deployments.engine.cuda.attention_kernels import (
    TORCH,
    Kernel,
    LayerShape,
    ShapedAttention,
    kernels_for,
    layer_shapes,
)
from deployments.engine.device.errors import raise_if_sticky

log = logging.getLogger(__name__)

MARGIN: Final = 0.03
"""What a kernel must be faster by than one before it: more than the jitter of a median. Else two replicas on equal
machines might choose differently.
"""

TOKENS: Final = (77, 308)
"""Prompts of one chunk, and of the most chunks that a prompt may have."""

Timer = Callable[[Callable[[], object]], float]
KernelsFor = Callable[[int], Mapping[str, Kernel]]


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The kernel that each shape of layer runs on, and the milliseconds of every one that works there.

    Shapes that are not in it run on what torch chooses; `reason` says why there are none.
    """

    kernels: Mapping[LayerShape, str] = field(default_factory=dict)
    milliseconds: Mapping[LayerShape, Mapping[str, float]] = field(default_factory=dict)
    reason: str = "measured"

    def as_text(self) -> dict[str, str]:
        """Returns the kernels by shape: tokens x attended x heads x width."""
        return {"x".join(map(str, shape)): kernel for shape, kernel in self.kernels.items()}


def choose_attention(unet: Any, device: torch.device, dtype: torch.dtype, rows: int = 16) -> AttentionChoice:
    """Gives `unet` its fastest attention for calls of `rows` rows at its native size. On a CPU it changes nothing."""
    if device.type != "cuda":
        return AttentionChoice(reason="not on CUDA")
    shapes = served_shapes(unet, device, dtype)
    choice = choose_kernels(shapes, rows, device, dtype, time_on_cuda)
    for shape, kernel in choice.kernels.items():
        log.info("attention: %s on %s; ms: %s", kernel, shape, dict(choice.milliseconds[shape]))
    return adopt_attention(unet, choice)


def adopt_attention(unet: Any, choice: AttentionChoice) -> AttentionChoice:
    """Gives `unet` the attention that was chosen, now or for the same model before.

    Measures nothing, so it may run beside other work: a measurement would time the neighbours, and two loads of one
    model would round differently.
    """
    if choice.kernels:
        kernels = {shape: kernels_for(shape.width)[name] for shape, name in choice.kernels.items()}
        unet.set_attn_processor(ShapedAttention(kernels))
    return choice


def served_shapes(unet: Any, device: torch.device, dtype: torch.dtype) -> list[LayerShape]:
    """Returns the shapes of the UNet's layers at its native size, for short prompts and for long ones."""
    found = (layer_shapes(unet, sample_inputs(unet, 1, device, dtype, tokens)) for tokens in TOKENS)
    return list(dict.fromkeys(shape for shapes in found for shape in shapes))


def choose_kernels(
    shapes: Sequence[LayerShape],
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
    timer: Timer,
    candidates: KernelsFor = kernels_for,
) -> AttentionChoice:
    """Times every kernel on every shape and chooses the fastest; of equally fast ones, the first.

    `timer` returns how long a call takes, in milliseconds. A kernel that raises is out, whatever it raises: one that
    was built for another torch, or not for that width, is no reason not to serve. Raises DeviceLost if it took the
    device with it: then no other can work either.
    """
    milliseconds: dict[LayerShape, Mapping[str, float]] = {}
    for shape in shapes:
        operands = _random_operands(shape, rows, device, dtype)
        milliseconds[shape] = _time_kernels(candidates(shape.width), shape, operands, timer)
    return AttentionChoice({shape: _fastest(times) for shape, times in milliseconds.items()}, milliseconds)


def sample_inputs(
    unet: Any, rows: int, device: torch.device, dtype: torch.dtype, tokens: int = TOKENS[0]
) -> dict[str, Any]:
    """Returns inputs for a diffusers UNet at its native size: seeded noise, one timestep per row, so many tokens."""
    config = unet.config
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn((rows, *shape), generator=generator).to(device, dtype)

    return {
        "sample": noise(config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.full((rows,), 500.0, device=device),
        "encoder_hidden_states": noise(tokens, context_width(unet)),
        "return_dict": False,
        **sample_conditions(unet, rows, device, dtype),
    }


def time_on_cuda(call: Callable[[], object], repeats: int = 7, warm_up: int = 3) -> float:
    """Returns the median time of several calls, in milliseconds."""
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(warm_up + repeats):
            torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - started) * 1000)
    return median(times[warm_up:])


def _random_operands(
    shape: LayerShape, rows: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values, heads and tokens in memory as the projections leave them."""

    def noise(tokens: int) -> Tensor:
        return torch.randn((rows, tokens, shape.heads, shape.width), device=device, dtype=dtype).transpose(1, 2)

    return noise(shape.tokens), noise(shape.attended), noise(shape.attended)


def _time_kernels(
    kernels: Mapping[str, Kernel], shape: LayerShape, operands: tuple[Tensor, Tensor, Tensor], timer: Timer
) -> dict[str, float]:
    scale = 1 / math.sqrt(shape.width)
    milliseconds: dict[str, float] = {}
    for name, kernel in kernels.items():
        try:
            milliseconds[name] = timer(lambda attend=kernel: attend(*operands, scale))  # type: ignore[misc]
        except Exception as error:
            raise_if_sticky(error)
            log.debug("attention: %s does not work on %s: %s", name, shape, error)
    return milliseconds


def _fastest(milliseconds: Mapping[str, float]) -> str:
    if not milliseconds:
        return TORCH
    enough = min(milliseconds.values()) * (1 + MARGIN)
    return next(name for name, taken in milliseconds.items() if taken <= enough)
