"""The GPU bench's parts with LoRAs: every image has one of its own, of rank 32, in the layers that most of them change.

`share` is the speed of such rows, of those without LoRAs in the same process.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final

import torch

from bench.engine.adapters import choose_layers, random_adapter
from bench.gpu.gates import GATED_ROWS
from bench.gpu.meters import ENGINE_ROWS, FORECAST_LORAS_SHARE, Subject, capture, rounded, serve
from bench.timing import median_ms
from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.rows.factors import Factors, stack_updates
from deployments.engine.lora.rows.layers import apply_factors, layers_of
from deployments.engine.lora.rows.lora_set import LoraSet, fit_adapter
from deployments.engine.models.adaptation import adapted_base
from deployments.engine.models.attention import sample_inputs
from deployments.engine.protocol.files.loras import LoraFile, LoraUse

RANK: Final = 32
IMAGE_ROWS: Final = 2
"""An image's rows share its LoRA: with the prompt and without."""

SCALE: Final = 0.8

Run = Callable[[Callable[[], object]], Callable[[], object]]
"""How a call is made again and again."""


def loras(subject: Subject) -> dict[str, Any]:
    """The UNet as it was loaded: all images' LoRAs in one call, and one call for each, as a server makes them that
    changes LoRAs between requests.
    """
    figures: dict[str, Any] = {"forecast": FORECAST_LORAS_SHARE["eager"]}
    for rows in _gated_first(subject):
        sets = _fitted(subject, rows // IMAGE_ROWS)
        figures[str(rows)] = _compare(subject, rows, _stack(subject, sets), _as_it_is)
        alone = [_stack(subject, [each]) for each in sets]
        singly = _time_call(subject, IMAGE_ROWS, alone[0], _as_it_is) * len(alone)
        figures[str(rows)]["one_at_a_time_ms"] = rounded(singly)
    return figures


def loras_captured(subject: Subject) -> dict[str, Any]:
    """The same calls as CUDA graphs, which the host does not hold up: what LoRAs cost the device itself."""
    run: Run = capture if subject.model.device.type == "cuda" else _as_it_is
    return {"forecast": FORECAST_LORAS_SHARE["captured"]} | {
        str(rows): _compare(subject, rows, _stack(subject, _fitted(subject, rows // IMAGE_ROWS)), run)
        for rows in _gated_first(subject)
    }


def engine_loras(subject: Subject) -> dict[str, Any]:
    """Images per second of the whole engine as the model was loaded: as many LoRAs as images run at once, and none."""
    steps, adapters = subject.steps[0], _adapters(subject, ENGINE_ROWS // IMAGE_ROWS)
    by_name = {adapter.name: adapter for adapter in adapters}
    plain = subject.requests(subject.images, steps)
    uses = [LoraUse(LoraFile(adapter.name, "", digest=adapter.name), SCALE) for adapter in adapters]
    changed = [replace(each, loras=(uses[i % len(uses)],)) for i, each in enumerate(plain)]

    def read(file: LoraFile) -> Adapter:
        return by_name[file.name]

    # The first one warms up.
    serve(subject, subject.model, changed[: len(uses)], read)
    speeds = {
        name: len(requests) / serve(subject, subject.model, requests, read).seconds
        for name, requests in (("without", plain), ("with LoRAs", changed))
    }
    share = speeds["with LoRAs"] / speeds["without"]
    return {"steps": steps} | {name: rounded(speed) for name, speed in speeds.items()} | {"share": rounded(share)}


def _gated_first(subject: Subject) -> list[int]:
    return sorted(subject.rows, key=lambda rows: (rows not in GATED_ROWS, rows))


def _adapters(subject: Subject, count: int) -> list[Adapter]:
    chosen = choose_layers(layers_of(subject.model.unet), "usual")
    return [random_adapter(f"lora{i}", chosen, RANK, seed=i) for i in range(count)]


def _fitted(subject: Subject, count: int) -> list[LoraSet]:
    base = adapted_base(subject.model)
    uses = [(adapter, LoraUse(LoraFile(adapter.name, ""), SCALE)) for adapter in _adapters(subject, count)]
    return [fit_adapter(adapter, use, base) for adapter, use in uses]


def _stack(subject: Subject, sets: list[LoraSet]) -> Mapping[str, Factors]:
    with torch.inference_mode():
        return stack_updates([each.unet for each in sets], layers_of(subject.model.unet))


def _as_it_is(call: Callable[[], object]) -> Callable[[], object]:
    return call


def _compare(subject: Subject, rows: int, factors: Mapping[str, Factors], run: Run) -> dict[str, float]:
    plain, changed = (_time_call(subject, rows, each, run) for each in (None, factors))
    return {"plain_ms": rounded(plain), "loras_ms": rounded(changed), "share": rounded(plain / changed)}


def _time_call(subject: Subject, rows: int, factors: Mapping[str, Factors] | None, run: Run) -> float:
    model = subject.model
    inputs = sample_inputs(model.unet, rows, model.device, model.dtype)

    def call() -> object:
        with nullcontext() if factors is None else apply_factors(model.unet, factors):
            return model.unet(**inputs)

    with torch.inference_mode():
        return median_ms(run(call), model.device)
