"""Does beside an engine what no request should wait for: checks samplers, compiles schedules and networks, saves
measurements.
"""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from deployments.engine.device.errors import raise_if_sticky
from deployments.engine.engine import Engine
from deployments.engine.models.attention import TOKENS
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.models.pipeline_kinds import pipeline_kinds
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import PipelineKind
from deployments.engine.protocol.sampler_names import CHECKPOINT, SAMPLERS, resolve_sampler
from deployments.engine.sampling.samplers import DiffusionSchedulerFactory
from deployments.engine.worker.calibration_keeper import CalibrationKeeper

log = logging.getLogger(__name__)

COMMON_STEPS: Final = (20, 25, 30, 50)
"""The counts in most demand, the default among them: their schedules are compiled before anybody asks."""

SAVE_EVERY_S: Final = 180.0
LOOK_EVERY_S: Final = 0.2

Chore = Callable[[LoadedModel], object]
"""Something to do for a model. Holds the interpreter for tens of milliseconds at most: a request that arrives meanwhile
competes for it.
"""


class BackgroundWork:
    """Runs chores for every model of an engine, on a thread of its own while the engine is idle.

    Saves what has been measured and found now and then, and when it stops.
    """

    def __init__(self, engine: Engine, keeper: CalibrationKeeper, prepare_thread: Callable[[], object]) -> None:
        """`prepare_thread` is called on the thread first: torch's settings are a thread's own."""
        self._engine = engine
        self._keeper = keeper
        self._prepare_thread = prepare_thread
        # A model that leaves memory must not be kept there by what was still to be done for it.
        self._chores: deque[tuple[weakref.ref[LoadedModel], Chore]] = deque()
        self._seen: weakref.WeakSet[LoadedModel] = weakref.WeakSet()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Saves what has been measured, and ends the thread. From any thread but its own."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        self._prepare_thread()
        save_at = time.monotonic() + SAVE_EVERY_S
        while not self._stopping.is_set():
            self._look_for_models()
            if self._engine.is_busy or not self._chores:
                self._stopping.wait(LOOK_EVERY_S)
            else:
                self._do(*self._chores.popleft())
                if not self._chores:
                    self._save()
            if time.monotonic() >= save_at:
                self._save()
                save_at = time.monotonic() + SAVE_EVERY_S
        self._save()

    def _look_for_models(self) -> None:
        # Other threads load models meanwhile: the list is copied in one operation.
        for model in list(self._engine.models.values()):
            if model not in self._seen:
                self._seen.add(model)
                self._chores.extend((weakref.ref(model), chore) for chore in _chores_of(model, self._engine.sizes))

    def _do(self, reference: weakref.ref[LoadedModel], chore: Chore) -> None:
        model = reference()
        try:
            if model is not None:
                chore(model)
        except Exception as error:
            raise_if_sticky(error)
            log.exception("what was to be done beside the engine failed")

    def _save(self) -> None:
        self._keeper.save(self._engine.admission)
        for model in list(self._engine.models.values()):
            model.samplers.save_verdicts()


def _chores_of(model: LoadedModel, sizes: Sequence[int]) -> Iterator[Chore]:
    """Yields the compilation of the schedules in most demand and of the networks at the native size, then the check of
    every sampler. `sizes` are those of the engine's calls.
    """
    for steps in COMMON_STEPS:
        yield partial(_compile_schedule, steps=steps)
    height, width = (side // model.factor for side in model.spec.native)
    yield partial(LoadedModel.compile_decoder, height=height, width=width)
    for size in sizes:
        yield partial(LoadedModel.compile_unet, rows=size, height=height, width=width, tokens=TOKENS[0])
    for factory, served in model.samplers.by_factory(_kinds_of(model)):
        for sampler in (CHECKPOINT, *SAMPLERS):
            yield partial(_check_sampler, sampler=sampler, factory=factory, served=served)


def _kinds_of(model: LoadedModel) -> Sequence[PipelineKind]:
    return pipeline_kinds(model.spec, inpaints_only=model.inpaints_only)


def _compile_schedule(model: LoadedModel, steps: int) -> None:
    sampler = model.spec.default_sampler
    try:
        model.samplers.of(_kinds_of(model)[0]).schedule(resolve_sampler(sampler), steps)
    except InvalidParameter as error:
        log.debug("%s at %d steps: %s", sampler, steps, error.message)


def _check_sampler(model: LoadedModel, sampler: str, factory: DiffusionSchedulerFactory, served: object) -> None:
    if (refusal := factory.refusal(sampler)) is not None:
        title = f"model {model.spec.name!r}"
        log.warning("%s: sampler %s is refused for %s: %s", title, sampler, served, refusal.message)
