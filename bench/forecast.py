"""What the engine's bench should find, written down before it was run, so that a surprise shows.

A UNet call costs a fixed part and a part per row. Both come from the prototype of the demo UNet on two idle cores:
18.6 ms for one row, 8.5 ms a row in a call of 16. All else (text encoder, VAE, samplers, Python) is left out.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from bench.workload import like
from deployments.engine.padding import padded_size
from deployments.engine.row import Request
from deployments.engine.sampler_names import SAMPLERS

PER_ROW_MS = (16 * 8.5 - 18.6) / 15
PER_CALL_MS = 18.6 - PER_ROW_MS
CONTROL_SHARE = 0.35  # of a UNet's work: the demo ControlNet is its encoder without attention


@dataclass(frozen=True, slots=True)
class Call:
    """A UNet call: its rows, and how many of them a ControlNet ran for first."""

    rows: int
    controlled: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds that each contender's networks take in all steps, and how the engine's UNet calls are filled."""

    engine: float
    one_by_one: float
    like_batches: float
    unet_calls: int
    mean_rows: float


def forecast(requests: Sequence[Request], max_rows: int) -> Forecast:
    calls = simulate(requests, max_rows)
    sizes = tuple(min(2**power, max_rows) for power in range((max_rows - 1).bit_length() + 1))
    return Forecast(
        engine=sum(_seconds(padded_size(call.rows, sizes), call.controlled) for call in calls),
        one_by_one=sum(_group_seconds([request]) for request in requests),
        like_batches=sum(_group_seconds([requests[index] for index in group]) for group in like(requests)),
        unet_calls=len(calls),
        mean_rows=sum(call.rows for call in calls) / len(calls),
    )


def simulate(requests: Sequence[Request], max_rows: int) -> list[Call]:
    """The UNet calls of an engine that takes requests in order, as soon as the next one fits."""
    waiting = deque(requests)
    running: list[tuple[Request, int]] = []
    calls: list[Call] = []
    while waiting or running:
        while waiting and waiting[0].unet_rows + sum(one.unet_rows for one, _ in running) <= max_rows:
            request = waiting.popleft()
            running.append((request, _evaluations(request)))
        rows = sum(one.unet_rows for one, _ in running)
        calls.append(Call(rows, sum(one.unet_rows for one, _ in running if one.params.controls)))
        running = [(one, left - 1) for one, left in running if left > 1]
    return calls


def _seconds(rows: int, controlled: int) -> float:
    control = PER_CALL_MS + PER_ROW_MS * controlled if controlled else 0.0
    return (PER_CALL_MS + PER_ROW_MS * rows + CONTROL_SHARE * control) / 1000


def _group_seconds(group: Sequence[Request]) -> float:
    rows = sum(request.unet_rows for request in group)
    return _evaluations(group[0]) * _seconds(rows, rows if group[0].params.controls else 0)


def _evaluations(request: Request) -> int:
    sampler, steps = SAMPLERS[str(request.params.sampler)], request.params.num_inference_steps
    strength = None if request.inputs.image is None else request.params.strength
    skipped = 0 if strength is None else sampler.start(steps, strength)
    return sampler.evaluations(steps) - skipped
