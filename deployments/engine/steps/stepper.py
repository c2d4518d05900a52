"""Steps one bucket. A batch that fails is split, so that only a row that fails alone fails."""

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from deployments.engine.device.errors import DeviceLost, is_out_of_memory, raise_if_sticky
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.padding import padded_size
from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.errors import DoesNotFit, EngineError, GenerationFailed
from deployments.engine.protocol.request import Bucket
from deployments.engine.row import Row
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.device import DeviceMemory, Meter
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.steps.denoise import StepResult, denoise_step

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepDone:
    """`rows` have advanced by one evaluation."""

    rows: list[Row]
    result: StepResult
    seconds: float


@dataclass(frozen=True, slots=True)
class StepFailed:
    """`row` cannot continue."""

    row: Row
    error: EngineError


class Stepper:
    """Steps rows, measures what that takes, and records it in the plan and the cost model."""

    def __init__(self, plan: MemoryPlan, costs: CostModel, device: DeviceMemory, sizes: tuple[int, ...]) -> None:
        self._plan, self._costs, self._device, self._sizes = plan, costs, device, sizes

    def step(
        self, model: LoadedModel, bucket: Bucket, rows: list[Row], counters: Counters
    ) -> Iterator[StepDone | StepFailed]:
        """Advances every row by one evaluation, in halves if all at once fail. Raises DeviceLost."""
        unet_rows = sum(row.request.unet_rows for row in rows)
        padded = padded_size(unet_rows, self._sizes)
        started = time.perf_counter()
        meter = None
        try:
            with self._meter_if_new(bucket, padded, rows) as meter:
                result = denoise_step(model, rows, self._sizes)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("a step of %d row(s) failed", len(rows))
            failure: EngineError = GenerationFailed("the image could not be made")
            if is_out_of_memory(error):
                counters.out_of_memory += 1
                self._plan.record_out_of_memory(bucket, padded)
                failure = DoesNotFit("an image of this size does not fit into the memory that there is")
        else:
            _wait_for(model.device)
            seconds = time.perf_counter() - started
            if meter is None or self._device.is_metering_free:
                self._costs.record_call(bucket, result.padded_rows, result.control_rows, seconds)
            if meter is not None:
                self._learn(bucket, result, meter)
            counters.record_step(len(rows), result.unet_rows, result.padded_rows, seconds)
            yield StepDone(rows, result, seconds)
            return
        # Outside the handler: the traceback would keep the failed call's tensors alive.
        self._device.release()
        if len(rows) == 1:
            yield StepFailed(rows[0], failure)
            return
        counters.splits += 1
        middle = len(rows) // 2
        yield from self.step(model, bucket, rows[:middle], counters)
        yield from self.step(model, bucket, rows[middle:], counters)

    def _meter_if_new(self, bucket: Bucket, padded: int, rows: list[Row]) -> AbstractContextManager[Meter | None]:
        """Returns a meter where metering is free or teaches something: the UNet's bytes first, then what nets add to
        them.
        """
        is_known = self._plan.has_measured("denoise", bucket, padded)
        is_controlled = any(
            c.is_active(row.step, len(row.schedule), prompted=True) for row in rows for c in row.controls
        )
        is_new = is_known and not self._plan.has_measured("control", bucket, 1) if is_controlled else not is_known
        return self._device.meter() if is_new or self._device.is_metering_free else nullcontext()

    def _learn(self, bucket: Bucket, result: StepResult, meter: Meter) -> None:
        if not result.control_rows:
            self._plan.record_peak("denoise", bucket, result.padded_rows, meter.peak)
        elif self._plan.has_measured("denoise", bucket, result.padded_rows):
            more = max(0, meter.peak - self._plan.predict("denoise", bucket, result.padded_rows))
            self._plan.record_peak("control", bucket, 1, more // result.control_rows)


def _wait_for(device: torch.device) -> None:
    """Waits until the step is really done.

    Raises DeviceLost if it fails: the rows have advanced, but their values are invalid.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as error:
        raise DeviceLost("the device did not finish what it was given") from error
