"""Learns how long calls take and how full they usually are, and keeps the latest forecast that was made from it."""

from collections.abc import Callable, Mapping, Sequence
from math import exp
from typing import Final

from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.forecast import Estimate, Forecast
from deployments.engine.scheduling.forecast_inputs import ForecastInputs, plan_work, seconds_of
from deployments.engine.scheduling.order_simulation import QueueSnapshot
from deployments.engine.scheduling.running import RunningRows

FORECAST_EVERY_S: Final = 0.25

USUAL_S: Final = 3.0
"""The time constant, in seconds, of the exponentially forgetting means of what is usual."""


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
        return seconds_of(request, self._costs)

    def record_call(
        self, bucket: Bucket, unet_rows: int, work: float, control_rows: int, changed_rows: int, seconds: float
    ) -> None:
        """Records a call of `unet_rows` rows that took `seconds`, with ControlNets on `control_rows` and LoRAs on
        `changed_rows`.

        `work` is what the rows were worth, in rows of whole UNet calls.
        """
        costs = self._costs
        self.work_done += work * costs.row_seconds(bucket)
        self.work_done += control_rows * costs.control_seconds(bucket) + changed_rows * costs.changed_seconds(bucket)
        before = self._usual_rows.get(bucket, float(unet_rows))
        self._usual_rows[bucket] = unet_rows + (before - unet_rows) * exp(-seconds / USUAL_S)

    def record_iteration(self, seconds: float, called: float) -> None:
        """Records an iteration of the engine's loop, in whose `seconds` the UNet calls took `called`."""
        if called:
            factor = max(1.0, seconds / called)
            self._loop_factor = factor + (self._loop_factor - factor) * exp(-seconds / USUAL_S)

    def inputs(
        self,
        queue: QueueSnapshot,
        running: RunningRows,
        paused: Mapping[tuple[str, Bucket], int],
        capacity: Callable[[Bucket], int],
    ) -> ForecastInputs:
        """Returns what a forecast is made from now; `ForecastInputs` says what `paused` and `capacity` are."""
        if not len(running):
            self._usual_rows.clear()
        rows = [plan_work(row.request, len(row.schedule) - row.step) for row in running]
        usual = self._usual_rows.copy()
        return ForecastInputs(queue, rows, paused, capacity, self._costs, usual, self._loop_factor)

    def is_due(self) -> bool:
        """Returns True if the latest forecast is old enough for a new one."""
        return self._clock() - self._latest_at >= FORECAST_EVERY_S

    def keep(self, forecast: Forecast) -> None:
        """Makes this the latest forecast."""
        self._latest, self._latest_at = forecast.estimates, forecast.at

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
