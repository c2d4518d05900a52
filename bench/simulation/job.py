"""A request in the simulation, and what its device's time was used for."""

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.simulation.trace import Kind
from deployments.engine.protocol.request import Request
from deployments.engine.row import Ticket


class Clock:
    """The simulation's seconds. Production code that needs a clock is given this."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True, eq=False)
class Job:
    """Request `number` of the trace; `cost` is what the queue is given. `left` are the images that are not ready."""

    number: int
    kind: Kind
    request: Request
    at: float
    cost: float
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.kind.images


@dataclass(slots=True, eq=False)
class Row:
    """One image in the making: `left` evaluations of `unet_rows` rows."""

    job: Job
    index: int
    left: int
    unet_rows: int
    due: float

    @property
    def ticket(self) -> Ticket:
        return Ticket(self.job.request, self.index, self.due)


@dataclass(slots=True)
class Usage:
    """Seconds of one device: `useful` for what was asked for, `padding` for rows without an image."""

    useful: float = 0.0
    padding: float = 0.0

    @property
    def busy(self) -> float:
        return self.useful + self.padding


Finish = Callable[[Job, float], None]
"""Told when the last image of a job is ready, in seconds of the clock."""
