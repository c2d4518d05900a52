"""Chooses the faster attention for a UNet on this machine: torch's own, or xformers' if that is installed.

Nothing is assumed: both are timed on the UNet itself, at the batch size that it will serve. They round differently, so
the choice affects the images' bytes: it is logged and reported.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor

from deployments.engine.device.errors import raise_if_sticky

log = logging.getLogger(__name__)

TORCH, XFORMERS = "torch", "xformers"

# xformers must win by more than the jitter of a median; else two replicas on equal machines might choose differently.
MARGIN = 0.03

Timer = Callable[[Callable[[], object]], float]
Switch = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The attention that the UNet runs with, and the milliseconds of one forward with each candidate that works."""

    chosen: str
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def choose_attention(unet: Any, device: torch.device, dtype: torch.dtype, rows: int = 16) -> AttentionChoice:
    """Gives `unet` its faster attention for a call of `rows` rows at its native size. On a CPU it changes nothing."""
    if device.type != "cuda":
        return AttentionChoice(TORCH, reason="not on CUDA")
    if find_spec("xformers") is None:
        return AttentionChoice(TORCH, reason="xformers is not installed")
    choice = choose_faster(unet, sample_inputs(unet, rows, device, dtype), time_on_cuda)
    log.info("attention: %s (%s; ms: %s)", choice.chosen, choice.reason, dict(choice.milliseconds))
    return choice


def adopt_attention(unet: Any, choice: AttentionChoice) -> AttentionChoice:
    """Gives `unet` the attention that was chosen for the same model before.

    Measures nothing, so it may run beside other work: a measurement would time the neighbours, and two loads of one
    model would round differently.
    """
    _candidates(unet)[choice.chosen](unet)
    return choice


def choose_faster(
    unet: Any, inputs: Mapping[str, Any], timer: Timer, candidates: Mapping[str, Switch] | None = None
) -> AttentionChoice:
    """Times `unet(**inputs)` with each candidate and leaves the UNet with the faster one.

    `timer` returns how long a call takes, in milliseconds. A candidate that raises is out, whatever it raises: an
    xformers built for another torch, or without a kernel for a head size, is no reason not to serve. Raises DeviceLost
    if it took the device with it: then the other candidate cannot work either.
    """
    switches = candidates if candidates is not None else _candidates(unet)
    milliseconds: dict[str, float] = {}
    for name, switch in switches.items():
        try:
            switch(unet)
            milliseconds[name] = timer(lambda: unet(**inputs))
        except Exception as error:
            raise_if_sticky(error)
            log.warning("attention: %s does not work here: %s", name, error)
    chosen, reason = _decide(milliseconds)
    switches[chosen](unet)
    return AttentionChoice(chosen, milliseconds, reason)


def sample_inputs(unet: Any, rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Returns inputs for a diffusers UNet at its native size: seeded noise, one timestep per row, 77 tokens."""
    config = unet.config
    width = config.cross_attention_dim
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn((rows, *shape), generator=generator).to(device, dtype)

    return {
        "sample": noise(config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.full((rows,), 500.0, device=device),
        "encoder_hidden_states": noise(77, width if isinstance(width, int) else width[0]),
        "return_dict": False,
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


def _decide(milliseconds: Mapping[str, float]) -> tuple[str, str]:
    if XFORMERS not in milliseconds:
        return TORCH, "xformers does not work here"
    if TORCH in milliseconds and milliseconds[XFORMERS] > milliseconds[TORCH] * (1 - MARGIN):
        return TORCH, "xformers is not faster"
    return XFORMERS, "xformers is faster"


def _candidates(unet: Any) -> Mapping[str, Switch]:
    """Returns the switches of a diffusers UNet; torch's restores the processors that the UNet has now."""
    before = dict(unet.attn_processors)
    return {
        TORCH: lambda network: network.set_attn_processor(dict(before)),
        XFORMERS: lambda network: network.enable_xformers_memory_efficient_attention(),
    }
