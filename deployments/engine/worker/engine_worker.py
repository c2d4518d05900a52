"""Runs the engine on a thread of its own for asyncio: messages go in through an inbox, events come out of mailboxes."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from deployments.engine.calibration.kept_files import KeptFiles, folder_of
from deployments.engine.device.errors import DeviceLost, convert_device_errors
from deployments.engine.device.memory import memory_of
from deployments.engine.engine import Engine
from deployments.engine.heartbeat import Heartbeat
from deployments.engine.models.backend_choice import start_openvino
from deployments.engine.models.components import pick_device, pick_dtype, set_threads
from deployments.engine.models.manager import DiffusionModelManager
from deployments.engine.protocol.engine_config import DEFAULTS, EngineConfig
from deployments.engine.protocol.errors import (
    Cancelled,
    EngineError,
    EngineLost,
    EngineStopped,
    InvalidParameter,
    ModelLoadError,
    Overloaded,
)
from deployments.engine.protocol.events import Event, Failed, Finished
from deployments.engine.protocol.report import EngineReport, Load, TokenCount
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec, UpscalerSpec
from deployments.engine.similar.saved_states import SavedStates
from deployments.engine.upscaling.upscalers import NO_UPSCALERS, Upscalers
from deployments.engine.worker.background import BackgroundWork
from deployments.engine.worker.calibration_keeper import CalibrationKeeper
from deployments.engine.worker.lora_files import read_lora
from deployments.engine.worker.mailbox import Mailbox
from deployments.engine.worker.model_access import ModelAccess, check_sampler
from deployments.engine.worker.model_loading import Inbox, connect
from deployments.engine.worker.snapshot import count_tokens, load_of, report_of
from deployments.engine.worker.warm_up import measure_in_idle_time, start_up

log = logging.getLogger(__name__)

IDLE_S: Final = 1.0
"""How long an engine has had nothing to do when it begins to measure."""


class EngineWorker:
    """Runs an engine on a thread of its own. All methods may be called from any thread or loop."""

    def __init__(
        self,
        build: Callable[[Callable[[Event], None]], Engine],
        manager: DiffusionModelManager | None = None,
        inbox: Inbox | None = None,
        *,
        threads: int | None = None,
        on_device_lost: Callable[[], object] = lambda: None,
        heartbeat: Heartbeat | None = None,
        keeper: CalibrationKeeper | None = None,
        measures_first: bool = True,
        upscalers: Upscalers = NO_UPSCALERS,
    ) -> None:
        """Starts the engine, and blocks until it is warm. Raises what `build` or the warm-up raises.

        `build` makes the engine from the function that takes its events, on the engine's thread, to which device
        contexts and torch's thread count (`threads`) belong. `manager` loads evicted models again when a request asks
        for them, and tells the engine through `inbox`; without one the engine's models are all there are.
        `on_device_lost` is called on the engine's thread when this process cannot use the device any more. `keeper`
        knows what earlier starts have measured. Unless the engine `measures_first`, a model that is new to it is
        measured when nothing runs. `upscalers` are those that `build` loads.
        """
        self.upscalers = upscalers
        self._build = build
        self._threads = threads
        self._inbox = queue.SimpleQueue() if inbox is None else inbox
        self._mailboxes: dict[str, Mailbox] = {}
        self._requests: dict[str, Request] = {}
        self._engine: Engine | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._heartbeat = heartbeat or Heartbeat()
        self._keeper = keeper or CalibrationKeeper()
        self._measures_first = measures_first
        self._background: BackgroundWork | None = None
        self._on_device_lost = on_device_lost
        self._started = threading.Event()
        self._access = None if manager is None else ModelAccess(manager, self._send, partial(set_threads, threads))
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._started.wait()
        if isinstance(self._failure, DeviceLost):
            raise ModelLoadError("the device failed while the models were loaded") from self._failure
        if self._failure is not None:
            raise self._failure

    @classmethod
    def load(
        cls,
        specs: Sequence[ModelSpec],
        config: EngineConfig = DEFAULTS,
        *,
        first: str | None = None,
        upscalers: Sequence[UpscalerSpec] = (),
        on_device_lost: Callable[[], object] = lambda: None,
    ) -> "EngineWorker":
        """Loads `specs` with the settings in `config`.

        If one is named `first`, somebody waits for it: it alone is loaded, the others when they are asked for, and
        measured when nothing runs, if no earlier start has. `upscalers` are loaded beside them.
        """
        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, device)
        config = config.complete(device.type)
        inbox: Inbox = queue.SimpleQueue()
        folder = folder_of(config.cache_dir)
        kept = KeptFiles(folder)
        keeper = CalibrationKeeper(kept, config)
        networks = Upscalers(upscalers, on_device_lost)
        openvino = start_openvino(config, device, dtype, folder)
        manager = DiffusionModelManager(
            specs, device, dtype, budget_bytes=config.model_memory_bytes, kept=kept, openvino=openvino
        )

        def build(emit: Callable[[Event], None]) -> Engine:
            # The first model is the one in most demand; loaded last, it is the last to be evicted.
            for name in [first] if first is not None else [spec.name for spec in reversed(specs)]:
                manager.acquire(name)
                manager.release(name)
            hosted = manager.loaded_models()
            models = [hosted[spec.name] for spec in specs if spec.name in hosted]
            memory = memory_of(device, config.device_memory_bytes)
            networks.start(device, dtype, memory)
            engine = Engine(models, emit, config, memory=memory, upscalers=networks, read_adapter=read_lora)
            connect(manager, engine, inbox, keeper)
            return engine

        return cls(
            build,
            manager,
            inbox,
            threads=config.threads,
            on_device_lost=on_device_lost,
            keeper=keeper,
            measures_first=first is None,
            upscalers=networks,
        )

    @property
    def is_alive(self) -> bool:
        """True while the engine makes progress: its threads run, and no iteration takes far longer than any before."""
        is_looping = self._thread.is_alive() and not self._stopping and not self._heartbeat.is_stalled
        return is_looping and (self._engine is None or self._engine.is_alive)

    @property
    def states(self) -> SavedStates:
        """The states that images have left for others. They may be used from any thread."""
        assert self._engine is not None
        return self._engine.reuse.states

    def check_room(self, request: Request) -> None:
        """Raises Overloaded if the queue has no room for `request`; the engine would say so only between two steps."""
        if self._engine is None:
            return
        try:
            self._engine.admission.check_room(request.tenant)
        except Overloaded:
            self._send(lambda engine: engine.tracker.count_refusal(request))
            raise

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yields the request's events until it is finished.

        Closing the generator frees its rows before the next step.
        """
        if request.id in self._mailboxes:
            yield Failed(request.id, InvalidParameter("id", "a request with this id is running already"))
            return
        mailbox = self._mailboxes[request.id] = Mailbox(asyncio.get_running_loop(), request.progress_interval_s)
        self._requests[request.id] = request
        try:
            # Checked once the mailbox is known: an engine that stops from now on reports it there.
            if not self.is_alive:
                raise EngineStopped("the engine has stopped")
            self.check_room(request)
            async with self._hold_model(request):
                self._send(lambda engine: engine.submit(request))
                is_finished = has_failed = False
                try:
                    while not is_finished and not has_failed:
                        event = await mailbox.get()
                        is_finished, has_failed = isinstance(event, Finished), isinstance(event, Failed)
                        yield event
                finally:
                    # Before the model is released: the engine must have dropped the request before it drops the model.
                    # A failure may be `cancel`'s, sent before the engine had the request at all.
                    if not is_finished:
                        self.abort(request.id)
        except EngineError as error:
            yield Failed(request.id, error)
        finally:
            self._mailboxes.pop(request.id, None)
            self._requests.pop(request.id, None)

    def abort(self, request_id: str) -> None:
        """Cancels a request; its rows are gone before the next step. Unknown ids are no error."""
        self._send(lambda engine: engine.cancel(request_id))

    def cancel(self, name: str, tenant: str) -> bool:
        """Cancels the tenant's requests of this name, and tells their callers. Returns False if there is none."""
        found = [request.id for request in list(self._requests.values()) if request.has_name(name, tenant)]
        for request_id in found:
            self._emit(Failed(request_id, Cancelled(name=name)))
            self.abort(request_id)
        return bool(found)

    def report(self) -> EngineReport:
        """Returns the engine's report."""
        return EngineReport() if self._engine is None else report_of(self._engine, self.is_alive)

    def load_now(self) -> Load:
        """Returns the engine's load."""
        return Load() if self._engine is None else load_of(self._engine)

    def count_tokens(self, request: Request) -> tuple[TokenCount, TokenCount]:
        """Counts both prompts' tokens. Raises EngineStopped if the model is not in memory: nothing is loaded for it."""
        return count_tokens(self._engine, request)

    def stop(self) -> None:
        """Ends the thread; unfinished requests end with EngineStopped."""
        self._stopping = True
        self._wake()
        if self._access is not None:
            self._access.close()
        if self._background is not None:
            self._background.stop()
        self._thread.join(timeout=30)

    @asynccontextmanager
    async def _hold_model(self, request: Request) -> AsyncIterator[None]:
        """Holds the request's model in memory, with the request's sampler checked."""
        if self._access is None:
            yield
            return
        async with self._access.hold(request.model) as model:
            await check_sampler(request, model)
            yield

    def _send(self, message: Callable[[Engine], object]) -> None:
        self._inbox.put(message)
        self._wake()

    def _wake(self) -> None:
        if self._engine is not None:
            self._engine.wake.set()

    def _emit(self, event: Event) -> None:
        if (mailbox := self._mailboxes.get(event.request_id)) is not None:
            mailbox.put(event)

    def _run(self) -> None:
        try:
            with convert_device_errors():
                set_threads(self._threads)
                engine = self._build(self._emit)
                start_up(engine, self._keeper, self._drain, measures=self._measures_first)
            self._engine = engine
            self._background = BackgroundWork(engine, self._keeper, partial(set_threads, self._threads))
        except BaseException as error:
            self._failure = error
            if isinstance(error, DeviceLost):
                self._on_device_lost()
            return
        finally:
            self._started.set()
        ending: EngineStopped = EngineLost("the engine broke down before the request was finished")
        try:
            with convert_device_errors():
                self._loop(engine)
            ending = EngineStopped("the engine stopped before the request was finished")
        except DeviceLost:
            log.critical("the device is lost to this process", exc_info=True)
            self._on_device_lost()
        except Exception:
            log.exception("the engine's loop ended")
        finally:
            self._stopping = True
            for request_id in list(self._mailboxes):
                self._emit(Failed(request_id, ending))
            engine.close()

    def _loop(self, engine: Engine) -> None:
        while not self._stopping:
            engine.wake.clear()
            while not self._inbox.empty():
                self._inbox.get()(engine)
            has_worked = self._iterate(engine, lambda: self._stopping or not self._inbox.empty())
            if not has_worked and not engine.wake.wait(timeout=IDLE_S) and not engine.is_busy:
                self._measure(engine)

    def _measure(self, engine: Engine) -> None:
        """Measures until there is nothing to measure, or something else to do."""
        while self._inbox.empty() and not self._stopping and measure_in_idle_time(engine):
            pass

    def _drain(self, engine: Engine) -> None:
        """Drains the engine as `Engine.drain` does, and times its iterations: so their length is learnt."""
        while engine.is_busy:
            engine.wake.clear()
            if not self._iterate(engine) and engine.is_busy:
                engine.wake.wait(timeout=1.0)

    def _iterate(self, engine: Engine, has_messages: Callable[[], bool] | None = None) -> bool:
        self._heartbeat.begin()
        if has_worked := engine.step(has_messages):
            self._heartbeat.end()
        return has_worked
