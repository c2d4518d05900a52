"""Runs the engine on a thread of its own for asyncio: messages go in through an inbox, events come out of mailboxes."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import torch

from deployments.engine.device.errors import DeviceLost, convert_device_errors
from deployments.engine.device.memory import memory_of
from deployments.engine.engine import Engine
from deployments.engine.heartbeat import Heartbeat
from deployments.engine.models.components import pick_device, pick_dtype
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
from deployments.engine.protocol.report import EngineReport, Load
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.worker.mailbox import Mailbox
from deployments.engine.worker.model_loading import Inbox, acquire_model, connect
from deployments.engine.worker.snapshot import load_of, report_of
from deployments.engine.worker.warm_up import warm_up

log = logging.getLogger(__name__)

# One model loads at a time; other loads wait.
_LOADERS = 2


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
    ) -> None:
        """Starts the engine, and blocks until it is warm. Raises what `build` or the warm-up raises.

        `build` makes the engine from the function that takes its events. It runs on the engine's thread, so that device
        contexts and torch's thread count (`threads`) belong to the thread that uses them. `manager` loads evicted
        models again when a request asks for them, and tells the engine through `inbox`; without one the engine's models
        are all there are. `on_device_lost` is called on the engine's thread when this process cannot use the device any
        more.
        """
        self._build = build
        self._manager = manager
        self._threads = threads
        self._inbox = queue.SimpleQueue() if inbox is None else inbox
        self._mailboxes: dict[str, Mailbox] = {}
        self._requests: dict[str, Request] = {}
        self._engine: Engine | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._heartbeat = heartbeat or Heartbeat()
        self._on_device_lost = on_device_lost
        self._started = threading.Event()
        # A pool of their own: callers of an evicted model wait here, and no other work must wait with them.
        self._loaders = ThreadPoolExecutor(
            _LOADERS, thread_name_prefix="load-model", initializer=set_threads, initargs=(threads,)
        )
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
        on_device_lost: Callable[[], object] = lambda: None,
    ) -> "EngineWorker":
        """Loads `specs` with the settings in `config`."""
        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, device)
        if config.decode_batch is None:
            config = replace(config, decode_batch=4 if device.type == "cuda" else 1)

        inbox: Inbox = queue.SimpleQueue()
        manager = DiffusionModelManager(specs, device, dtype, budget_bytes=config.model_memory_bytes)

        def build(emit: Callable[[Event], None]) -> Engine:
            # The first model is the one in most demand; loaded last, it is the last to be evicted.
            for spec in reversed(specs):
                manager.acquire(spec.name)
                manager.release(spec.name)
            hosted = manager.loaded_models()
            models = [hosted[spec.name] for spec in specs if spec.name in hosted]
            engine = Engine(models, emit, config, memory=memory_of(device, config.device_memory_bytes))
            connect(manager, engine, inbox)
            return engine

        return cls(build, manager, inbox, threads=config.threads, on_device_lost=on_device_lost)

    @property
    def is_alive(self) -> bool:
        """True while the engine makes progress: its threads run, and no iteration takes far longer than any before."""
        is_looping = self._thread.is_alive() and not self._stopping and not self._heartbeat.is_stalled
        return is_looping and (self._engine is None or self._engine.is_alive)

    def check_room(self, request: Request) -> None:
        """Raises Overloaded if the queue has no room for `request`.

        The engine checks again; but it answers only between two steps, so refuse early.
        """
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
        mailbox = self._mailboxes[request.id] = Mailbox(asyncio.get_running_loop(), request.progress)
        self._requests[request.id] = request
        try:
            # Checked once the mailbox is known: an engine that stops from now on reports it there.
            if not self.is_alive:
                raise EngineStopped("the engine has stopped")
            self.check_room(request)
            async with self._model_of(request):
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

    def stop(self) -> None:
        """Ends the thread; unfinished requests end with EngineStopped."""
        self._stopping = True
        self._wake()
        self._loaders.shutdown(wait=False)
        self._thread.join(timeout=30)

    @asynccontextmanager
    async def _model_of(self, request: Request) -> AsyncIterator[None]:
        """Holds the request's model in memory; loads it, off the engine's thread, if it was evicted."""
        manager, name = self._manager, request.model
        if manager is None:
            yield
            return
        if manager.acquire_loaded(name) is None:
            await self._acquire(manager, name)
        try:
            yield
        finally:
            manager.release(name)

    async def _acquire(self, manager: DiffusionModelManager, name: str) -> None:
        """Acquires the model on a thread.

        A caller that leaves meanwhile neither stops the load nor keeps the model in use.
        """
        loading = asyncio.get_running_loop().run_in_executor(self._loaders, acquire_model, manager, name, self._send)
        try:
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(lambda done: manager.release(name) if done.exception() is None else None)
            raise

    def _send(self, message: Callable[[Engine], object]) -> None:
        self._inbox.put(message)
        self._wake()

    def _wake(self) -> None:
        if self._engine is not None:
            self._engine.wake.set()

    def _emit(self, event: Event) -> None:
        mailbox = self._mailboxes.get(event.request_id)
        if mailbox is not None:
            mailbox.put(event)

    def _run(self) -> None:
        try:
            with convert_device_errors():
                set_threads(self._threads)
                engine = self._build(self._emit)
                warm_up(engine, self._drain)
            self._engine = engine
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
            if not self._iterate(engine):
                engine.wake.wait(timeout=1.0)

    def _drain(self, engine: Engine) -> None:
        """Drains the engine as `Engine.drain` does, and times its iterations: their length is first learnt in the
        warm-up.
        """
        while engine.is_busy:
            engine.wake.clear()
            if not self._iterate(engine) and engine.is_busy:
                engine.wake.wait(timeout=1.0)

    def _iterate(self, engine: Engine) -> bool:
        self._heartbeat.begin()
        has_worked = engine.step()
        if has_worked:
            self._heartbeat.end()
        return has_worked


def set_threads(threads: int | None) -> None:
    """Bounds the CPU threads that torch uses for calls of this thread."""
    if threads is not None:
        torch.set_num_threads(threads)
