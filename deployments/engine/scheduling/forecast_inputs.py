"""Holds what a forecast is made from, as it was at one moment, so that another thread can make it. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.forecast import Forecast, PlannedWork, forecast
from deployments.engine.scheduling.order_simulation import QueueSnapshot


@dataclass(frozen=True, slots=True)
class ForecastInputs:
    """The queue and the running rows at one moment, and what was usual then.

    `paused` are the evaluations that preempted images still need, by request and bucket: an image's second pass has
    another. Costs and `capacity`, which returns how
    many UNet rows of a bucket run at once, may be asked from any thread, and are as they are when they are asked.
    """

    queue: QueueSnapshot
    running: Sequence[PlannedWork]
    paused: Mapping[tuple[str, Bucket], int]
    capacity: Callable[[Bucket], int]
    costs: CostModel
    usual: Mapping[Bucket, float]
    loop_factor: float

    def without(self, others: Mapping[str, Arrival]) -> "ForecastInputs":
        """Returns the same without `others`, which wait."""
        return replace(self, queue=self.queue.without(others))

    def forecast(self) -> Forecast:
        """Returns when the requests that run, and those that wait and are foreseen, are likely to start and finish."""
        order = self.queue.predict_order()
        waiting = [
            plan_work(each, self.paused.get((each.id, each.bucket), each.evaluations), images) for each, images in order
        ]
        estimates = forecast(self.running, waiting, self.capacity, self.costs, self.usual, self.loop_factor)
        foreseen = sum(
            seconds_of(request, self.costs) * images / request.params.num_images for request, images in order
        )
        beyond = max(0.0, self.queue.seconds - foreseen)
        return Forecast(self.queue.now, [request for request, _ in order], estimates, self.queue.length, beyond)


def plan_work(request: Request, steps: int, images: int = 1) -> PlannedWork:
    """Returns the work of `images` of a request that need so many more evaluations each, and their second pass after.

    That is planned where the first is: its size is in its evaluations.
    """
    controls, later = len(request.params.controls), request.later_evaluations
    changed = bool(request.loras)
    return PlannedWork(request.id, request.bucket, steps + later, request.unet_rows, controls, images, changed)


def seconds_of(request: Request, costs: CostModel) -> float:
    """Returns the device's seconds for a request, in calls at the knee."""
    row = costs.row_seconds(request.bucket) + (costs.changed_seconds(request.bucket) if request.loras else 0.0)
    return request.work * request.params.num_images * row
