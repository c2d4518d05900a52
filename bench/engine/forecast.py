"""Forecasts what the engine's bench should find, as written before the first run, so that a surprise shows.

A call of a network costs a fixed part and a part per row. All else (text encoder, samplers, Python) is left out.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from bench.engine.workload import like
from deployments.engine.padding import padded_size, powers_of_two
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.sampler_names import SAMPLERS


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds: of a UNet call and of a ControlNet call, the fixed part and the part per row; of one picture for
    the rest. `hint` is what a ControlNet does with its picture before anything else.
    """

    unet_call: float
    unet_row: float
    control_call: float = 0.0
    control_row: float = 0.0
    hint: float = 0.0
    encode: float = 0.0
    decode: float = 0.0

    def unet(self, rows: int) -> float:
        return self.unet_call + self.unet_row * rows

    def control(self, rows: int) -> float:
        return self.control_call + self.control_row * rows if rows else 0.0


# The prototype of the demo UNet on two idle cores: 18.6 ms for one row, 8.5 ms a row in a call of 16. Its VAE had not
# been measured, and counts nothing.
PROTOTYPE: Final = Costs(unet_call=18.6 - (16 * 8.5 - 18.6) / 15, unet_row=(16 * 8.5 - 18.6) / 15)

# The demo family at 256 x 256 on two cores. The UNet idle: 46.6 ms for one row, 14.8 ms a row in a call of 16. The
# others beside a busy neighbour, the best of 40 calls, scaled by what the UNet took there.
FAMILY: Final = Costs(
    unet_call=46.6 - (16 * 14.8 - 46.6) / 15,
    unet_row=(16 * 14.8 - 46.6) / 15,
    control_call=2.8,
    control_row=4.2,
    hint=17.0,
    encode=25.0,
    decode=80.0,
)

COSTS: Final[Mapping[str, Costs]] = MappingProxyType({"text": PROTOTYPE, "mixed": FAMILY})
"""By workload. Each stays what it was when its forecast was made."""


@dataclass(frozen=True, slots=True)
class Call:
    """Rows of one UNet call of the engine, and how many of them the ControlNet sees, too."""

    rows: int
    controlled: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds that each contender's networks take, and how the engine's calls are filled."""

    engine: float
    one_by_one: float
    like_batches: float
    unet_calls: int
    mean_rows: float
    control_calls: int


def forecast(requests: Sequence[Request], max_rows: int, costs: Costs) -> Forecast:
    calls = simulate(requests, max_rows)
    return Forecast(
        engine=_engine_ms(requests, calls, max_rows, costs) / 1000,
        one_by_one=sum(_group_ms([request], costs) for request in requests) / 1000,
        like_batches=sum(_group_ms([requests[index] for index in group], costs) for group in like(requests)) / 1000,
        unet_calls=len(calls),
        mean_rows=sum(call.rows for call in calls) / len(calls),
        control_calls=sum(call.controlled > 0 for call in calls),
    )


def simulate(requests: Sequence[Request], max_rows: int) -> list[Call]:
    """Returns the UNet calls of an engine that always has a call's worth of requests prepared, and admits as soon as
    the next one fits. What takes less of the device goes first, as in the engine's queue.
    """
    arrived, waiting = deque(sorted(requests, key=_row_evaluations)), deque[Request]()
    running: list[tuple[Request, int]] = []
    calls: list[Call] = []
    while arrived or waiting or running:
        while arrived and sum(request.unet_rows for request in waiting) < max_rows:
            waiting.append(arrived.popleft())
        while waiting and waiting[0].unet_rows + sum(request.unet_rows for request, _ in running) <= max_rows:
            request = waiting.popleft()
            running.append((request, _evaluations(request)))
        rows = sum(request.unet_rows for request, _ in running)
        calls.append(Call(rows, sum(request.unet_rows for request, _ in running if request.params.controls)))
        running = [(request, left - 1) for request, left in running if left > 1]
    return calls


def _engine_ms(requests: Sequence[Request], calls: Sequence[Call], max_rows: int, costs: Costs) -> float:
    """A picture is encoded once, and so is a hint, however many steps follow."""
    sizes = powers_of_two(max_rows)
    steps = sum(
        costs.unet(padded_size(call.rows, sizes))
        + costs.control(padded_size(call.controlled, sizes) if call.controlled else 0)
        for call in calls
    )
    hints = sum(len(request.inputs.hints) for request in requests) * costs.hint
    encodes = sum(request.inputs.image is not None for request in requests) * costs.encode
    return steps + hints + encodes + len(requests) * costs.decode


def _group_ms(group: Sequence[Request], costs: Costs) -> float:
    """diffusers embeds the hint anew for every row of every call, and encodes an inpaint request's picture twice, once
    without what is painted anew.
    """
    rows = sum(request.unet_rows for request in group)
    step = costs.unet(rows)
    if group[0].params.controls:
        step += costs.control(rows) + rows * costs.hint
    encodes = sum((request.inputs.image is not None) + (request.inputs.mask is not None) for request in group)
    return _evaluations(group[0]) * step + encodes * costs.encode + len(group) * costs.decode


def _row_evaluations(request: Request) -> int:
    return _evaluations(request) * request.unet_rows * request.params.num_images


def _evaluations(request: Request) -> int:
    params = request.params
    return SAMPLERS[str(params.sampler)].evaluations(params.num_inference_steps, params.strength)
