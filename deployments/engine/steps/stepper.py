"""Steps one bucket. A batch that fails is split, so that only a row that fails alone fails."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

from deployments.engine.device.errors import DeviceLost, is_out_of_memory, raise_if_sticky
from deployments.engine.device.streams import Stopwatch, current_stream
from deployments.engine.models.adaptation import changes_apart
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.errors import DoesNotFit, EngineError, GenerationFailed
from deployments.engine.protocol.request import Bucket
from deployments.engine.row import Row
from deployments.engine.scheduling.cost_model import CostModel
from deployments.engine.scheduling.device import DeviceMemory, Meter
from deployments.engine.scheduling.memory_plan import MemoryPlan
from deployments.engine.steps.arena import Arena
from deployments.engine.steps.call import CallPlanner, call_size
from deployments.engine.steps.denoise import Step, StepResult, denoise_step
from deployments.engine.steps.graphs import Capture, CudaCapture, StepGraphs

log = logging.getLogger(__name__)

MOST_IN_FLIGHT: Final = 2
"""Steps that the device has been given and has not done: it finds the next one when it ends one, and no more than that
is lost on rows that leave.
"""


@dataclass(frozen=True, slots=True)
class StepIssued:
    """`rows` advance by one evaluation: the device has been given all of it."""

    rows: list[Row]
    result: StepResult


@dataclass(frozen=True, slots=True)
class StepDone:
    """The oldest of the issued steps is done, and has taken `seconds` of the device."""

    seconds: float


@dataclass(frozen=True, slots=True)
class StepFailed:
    """`row` cannot continue."""

    row: Row
    error: EngineError


@dataclass(frozen=True, slots=True)
class _Workplace:
    """Where the rows of one bucket are, who plans its calls, and which of its steps were captured."""

    arena: Arena
    planner: CallPlanner
    graphs: StepGraphs


@dataclass(frozen=True, slots=True)
class _StepInFlight:
    """An issued step, and where to record it; `shows_cost` says that its time is that of such a step."""

    stopwatch: Stopwatch
    bucket: Bucket
    rows: int
    result: StepResult
    counters: Counters
    shows_cost: bool


class Stepper:
    """Steps rows, measures what that takes, and records it in the plan and the cost model.

    On CUDA the host goes on while the device works, at most `MOST_IN_FLIGHT` steps ahead; on a CPU a step is done when
    it is issued. A bucket has an arena from its first row on, until another one is stepped and it has none left; where
    steps were captured, as long as its model is there.
    """

    def __init__(self, plan: MemoryPlan, costs: CostModel, device: DeviceMemory, sizes: tuple[int, ...]) -> None:
        self._plan, self._costs, self._device, self._sizes = plan, costs, device, sizes
        self._workplaces: dict[Bucket, _Workplace] = {}
        self._new_capture: Callable[[], Capture] = CudaCapture
        self._captured: set[Bucket] = set()
        self._in_flight: deque[_StepInFlight] = deque()

    def has_captured(self, bucket: Bucket) -> bool:
        """Returns True if steps of the bucket were captured, or it was tried."""
        return bucket in self._captured

    def capture(self, model: LoadedModel, row: Row, fits: Callable[[int], bool]) -> None:
        """Captures the steps of all sizes that `fits`, for short prompts and the longest, in the bucket of `row`.

        What their pool takes is recorded in the plan after each. The row is lost. Call it when no other row runs.
        """
        bucket, longest = row.request.bucket, model.prompt_encoder.max_tokens
        lengths = tuple(sorted({len(row.prompt), longest}))
        arena = Arena(model, bucket, self._sizes[-1])
        arena.add(row)
        graphs = StepGraphs(arena)
        graphs.capture(model, row, self._sizes, lengths, self._record_pool(bucket, self._new_capture()), fits)
        row.leave_slot()
        self._captured.add(bucket)
        self._workplaces[bucket] = _Workplace(arena, CallPlanner(arena, self._sizes, lengths), graphs)

    def _record_pool(self, bucket: Bucket, capture: Capture) -> Capture:
        """Returns a capture that records in the plan what its pool has taken, whether it succeeds or not."""
        self._device.release()
        before = self._device.unused_bytes()

        def capture_and_record(step: Step) -> Step:
            try:
                return capture(step)
            finally:
                self._device.release()
                self._plan.record_pool(bucket, max(0, self._device.unused_bytes() - before))

        return capture_and_record

    def release_unused(self, model_name: str | None = None) -> None:
        """Frees the arenas that have no rows; those with captured steps only if they are of the model `model_name`."""
        had_captured = any(bucket.model == model_name for bucket in self._captured)
        self._captured = {bucket for bucket in self._captured if bucket.model != model_name}
        self._workplaces = {
            bucket: place
            for bucket, place in self._workplaces.items()
            if not place.arena.is_empty or (len(place.graphs) and bucket.model != model_name)
        }
        if model_name is not None and had_captured:
            self._plan.drop_pools(model_name)
            self._device.release()

    def step(
        self, model: LoadedModel, bucket: Bucket, rows: list[Row], counters: Counters
    ) -> Iterator[StepIssued | StepDone | StepFailed]:
        """Advances every row by one evaluation, in several calls if they may not share one, and in halves if all at
        once fail. Raises DeviceLost.

        Yields what is issued, and what is found done meanwhile, in the order of issue.
        """
        if len(parts := _separate(rows, model)) > 1:
            for part in parts:
                yield from self.step(model, bucket, part, counters)
            return
        yield from self.finish(leave=MOST_IN_FLIGHT - 1)
        padded = call_size(rows, self._sizes)
        stopwatch = current_stream(model.device).start_stopwatch()
        try:
            result, meter = self._issue(model, bucket, rows, padded)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("a step of %d row(s) failed", len(rows))
            failure: EngineError = GenerationFailed("the image could not be made")
            if is_out_of_memory(error):
                counters.out_of_memory += 1
                # One that fails alone has its answer, and what LoRAs, ControlNets and references take is not others'.
                if len(rows) > 1 and all(row.is_plain for row in rows):
                    self._plan.record_out_of_memory(bucket, padded)
                failure = DoesNotFit("an image of this size does not fit into the memory that there is")
        else:
            with _losing_the_device():
                stopwatch.stop()
            is_typical = not result.shallow_rows and not result.changed_rows
            if meter is not None and meter.is_alone and is_typical and all(row.reference is None for row in rows):
                self._learn(bucket, result, meter)
            shows_cost = not result.shallow_rows and (meter is None or self._device.is_metering_free)
            self._in_flight.append(_StepInFlight(stopwatch, bucket, len(rows), result, counters, shows_cost))
            yield StepIssued(rows, result)
            yield from self.finish_done()
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

    def _issue(
        self, model: LoadedModel, bucket: Bucket, rows: list[Row], padded: int
    ) -> tuple[StepResult, Meter | None]:
        """Gives the device a step of `rows`. Returns its result, and what it was metered with, if it was.

        The call is kept by nothing else: if it fails, its stacks are not to lie beside those of its halves.
        """
        place = self._place(model, bucket, rows)
        call = place.planner.plan(model, rows)
        captured = place.graphs.find(call)
        # A captured step allocates nothing: to learn from it would be to forget what such calls take.
        with nullcontext() if captured else self._meter_if_new(bucket, padded, rows) as meter:
            result = denoise_step(model, place.arena, call, rows, captured)
        return result, meter

    def finish(self, leave: int = 0) -> Iterator[StepDone]:
        """Waits for the oldest issued steps until `leave` are left. Raises DeviceLost if one has failed.

        Their rows have advanced, but their values would be invalid.
        """
        while len(self._in_flight) > leave:
            yield self._finish_oldest()

    def finish_done(self) -> Iterator[StepDone]:
        """Finishes the oldest issued steps as far as the device has done them. Raises DeviceLost if one has failed."""
        while self._in_flight and self._is_oldest_done():
            yield self._finish_oldest()

    def _is_oldest_done(self) -> bool:
        with _losing_the_device():
            return self._in_flight[0].stopwatch.is_done

    def _finish_oldest(self) -> StepDone:
        step = self._in_flight.popleft()
        with _losing_the_device():
            seconds = step.stopwatch.wait()
        result = step.result
        if step.shows_cost:
            self._costs.record_call(step.bucket, result.padded_rows, result.control_rows, seconds, result.changed_rows)
        step.counters.record_step(step.rows, result.unet_rows, result.padded_rows, seconds)
        return StepDone(seconds)

    def _place(self, model: LoadedModel, bucket: Bucket, rows: list[Row]) -> _Workplace:
        """Returns the bucket's workplace, with all `rows` in slots."""
        if bucket not in self._workplaces:
            self.release_unused()
            arena = Arena(model, bucket, self._sizes[-1])
            self._workplaces[bucket] = _Workplace(arena, CallPlanner(arena, self._sizes), StepGraphs(arena))
        place = self._workplaces[bucket]
        for row in rows:
            if row.slot is None:
                place.arena.add(row)
        return place

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


def _separate(rows: list[Row], model: LoadedModel) -> list[list[Row]]:
    """Returns the rows that may share a call.

    If one is to be exact, they are those of equal LoRAs, with references or without: others' ranks, or whether there
    are any, may decide what kernels run. Where something else runs the calls that LoRAs change, rows without any do not
    join these.
    """
    is_exact = any(row.request.params.exact for row in rows)
    is_apart = changes_apart(model)
    parts: dict[object, list[Row]] = {}
    for row in rows:
        apart = is_apart and bool(row.request.loras)
        key = (row.request.loras, row.reference is not None) if is_exact else apart
        parts.setdefault(key, []).append(row)
    return list(parts.values())


@contextmanager
def _losing_the_device() -> Iterator[None]:
    """Turns whatever is raised in the context into DeviceLost: rows have advanced that the device has not finished."""
    try:
        yield
    except Exception as error:
        raise DeviceLost("the device did not finish what it was given") from error
