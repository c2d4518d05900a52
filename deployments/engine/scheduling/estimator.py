"""Estimates when requests start and finish, from how long calls took and how full they usually were."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp
from typing import Final

from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.forecast import Estimate, PlannedWork, forecast
from deployments.engine.scheduling.running import RunningRows

FORECAST_EVERY_S: Final = 0.25

USUAL_S: Final = 3.0
"""The time constant, in seconds, of the exponentially forgetting means of what is usual."""

Waiting = tuple[Request, int, int]
"""A request, the evaluations that its next image still needs, and the number of its images that wait."""


class Estimator:
    """Keeps the latest forecast. `clock` is in seconds.

    `work_done` is what all calls so far were worth: the device's seconds for their rows in calls at the knee.
    """

    def __init__(self, costs: CostModel, clock: Callable[[], float]) -> None:
        self.work_done = 0.0
        self._costs, self._clock = costs, clock
        self._usual_rows: dict[Bucket, float] = {}
        self._loop_factor = 1.0
        self._latest: Mapping[str, Estimate] = {}
        self._latest_at = float("-inf")

    def cost(self, request: Request) -> float:
        """Returns the device's seconds for a request, in calls at the knee."""
        rows = request.evaluations * request.unet_rows * request.params.num_images
        return rows * self._costs.row_seconds(request.bucket)

    def record_call(self, bucket: Bucket, unet_rows: int, control_rows: int, seconds: float) -> None:
        """Records a call of `unet_rows` rows that took `seconds`, with ControlNets on `control_rows`."""
        costs = self._costs
        self.work_done += unet_rows * costs.row_seconds(bucket) + control_rows * costs.control_seconds(bucket)
        before = self._usual_rows.get(bucket, float(unet_rows))
        self._usual_rows[bucket] = unet_rows + (before - unet_rows) * exp(-seconds / USUAL_S)

    def record_iteration(self, seconds: float, called: float) -> None:
        """Records an iteration of the engine's loop, in whose `seconds` the UNet calls took `called`."""
        if called:
            factor = max(1.0, seconds / called)
            self._loop_factor = factor + (self._loop_factor - factor) * exp(-seconds / USUAL_S)

    def estimate(
        self, running: RunningRows, waiting: Iterable[Waiting], capacity: Callable[[Bucket], int]
    ) -> Mapping[str, Estimate]:
        """Returns the seconds to the start and the end of every request, in the order of starting.

        `waiting` is in the order of the queue; `capacity` returns how many UNet rows of a bucket run at once.
        """
        if not len(running):
            self._usual_rows.clear()
        now = [_planned_work(row.request, len(row.schedule) - row.step) for row in running]
        later = [_planned_work(*each) for each in waiting]
        return forecast(now, later, capacity, self._costs, self._usual_rows, self._loop_factor)

    def is_due(self) -> bool:
        """Returns True if the latest forecast is old enough for a new one."""
        return self._clock() - self._latest_at >= FORECAST_EVERY_S

    def keep(self, estimates: Mapping[str, Estimate]) -> None:
        """Makes these the latest forecast."""
        self._latest, self._latest_at = estimates, self._clock()

    def seconds_left(self, request_id: str) -> float | None:
        """Returns the seconds to the end of a request, by the latest forecast; None if it is not in it."""
        estimate = self._latest.get(request_id)
        if estimate is None:
            return None
        return max(0.0, round(estimate.finish - (self._clock() - self._latest_at), 3))

    def seconds_to_next_place(self) -> float:
        """Returns the seconds until the queue has a place: until the next waiting request starts. From any thread."""
        starts: Sequence[float] = [estimate.start for estimate in self._latest.values() if estimate.start > 0]
        return min(starts, default=1.0)


def _planned_work(request: Request, steps: int, images: int = 1) -> PlannedWork:
    return PlannedWork(request.id, request.bucket, steps, request.unet_rows, len(request.params.controls), images)
