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


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds that each contender's UNet calls take, and how the engine's calls are filled."""

    engine: float
    one_by_one: float
    like_batches: float
    unet_calls: int
    mean_rows: float


def forecast(requests: Sequence[Request], max_rows: int) -> Forecast:
    calls = simulate(requests, max_rows)
    sizes = tuple(min(2**power, max_rows) for power in range((max_rows - 1).bit_length() + 1))
    return Forecast(
        engine=sum(_seconds(padded_size(rows, sizes)) for rows in calls),
        one_by_one=sum(_evaluations(request) * _seconds(request.unet_rows) for request in requests),
        like_batches=sum(_group_seconds([requests[index] for index in group]) for group in like(requests)),
        unet_calls=len(calls),
        mean_rows=sum(calls) / len(calls),
    )


def simulate(requests: Sequence[Request], max_rows: int) -> list[int]:
    """UNet rows of each call of an engine that takes requests in order, as soon as the next one fits."""
    waiting = deque(requests)
    running: list[tuple[int, int]] = []
    calls: list[int] = []
    while waiting or running:
        while waiting and waiting[0].unet_rows + sum(rows for rows, _ in running) <= max_rows:
            request = waiting.popleft()
            running.append((request.unet_rows, _evaluations(request)))
        calls.append(sum(rows for rows, _ in running))
        running = [(rows, left - 1) for rows, left in running if left > 1]
    return calls


def _seconds(rows: int) -> float:
    return (PER_CALL_MS + PER_ROW_MS * rows) / 1000


def _group_seconds(group: Sequence[Request]) -> float:
    return _evaluations(group[0]) * _seconds(sum(request.unet_rows for request in group))


def _evaluations(request: Request) -> int:
    return SAMPLERS[str(request.params.sampler)].evaluations(request.params.num_inference_steps)
