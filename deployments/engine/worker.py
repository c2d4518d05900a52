"""The engine's thread and its door for asyncio: requests go in through an inbox, events come out of a mailbox."""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any

import torch

from deployments.engine.device_memory import memory_of
from deployments.engine.engine import Engine
from deployments.engine.errors import EngineError, EngineStopped, InvalidParameter
from deployments.engine.events import Event, Finished, Progress, Refused
from deployments.engine.model_manager import DiffusionModelManager
from deployments.engine.parts import pick_device, pick_dtype
from deployments.engine.row import Request
from deployments.engine.spec import ModelSpec
from deployments.engine.warm_up import warm_up

log = logging.getLogger(__name__)

STALL_SECONDS = 120.0

# One model loads at a time; what is asked for meanwhile queues up.
_LOADERS = 2

Inbox = queue.SimpleQueue[Callable[[Engine], object]]
"""What the engine's thread shall do next, between two steps."""


class Mailbox:
    """Events of one request on their way from the engine's thread to one asyncio reader.

    A `Progress` that has not been read is replaced by the next one, so a slow reader costs no memory.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()
        self._ready = asyncio.Event()

    def put(self, event: Event) -> None:
        """Called on any thread; never blocks for long. Silent once the reader's loop is gone."""
        with self._lock:
            unread = self._events[-1] if self._events else None
            if isinstance(event, Progress) and isinstance(unread, Progress):
                self._events[-1] = event
                return
            self._events.append(event)
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:
            log.debug("an event came after its reader's loop had closed")

    async def get(self) -> Event:
        """The oldest unread event."""
        while True:
            with self._lock:
                if self._events:
                    return self._events.popleft()
                self._ready.clear()
            await self._ready.wait()


class EngineWorker:
    """Runs an engine on a thread of its own. All methods may be called from any thread or loop."""

    def __init__(
        self,
        build: Callable[[Callable[[Event], None]], Engine],
        manager: DiffusionModelManager | None = None,
        inbox: Inbox | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """`build` makes the engine from the function that takes its events. It runs on the engine's thread, so that
        device contexts and torch's thread count (`threads`) belong to the thread that uses them. Blocks until the
        engine is warm; raises what `build` or the warm-up raised. `manager` brings models that have left memory back
        when a request asks for them, and tells the engine through `inbox`; without one the engine's models are all
        there are.
        """
        self._build = build
        self._manager = manager
        self._threads = threads
        self._inbox = queue.SimpleQueue() if inbox is None else inbox
        self._mailboxes: dict[str, Mailbox] = {}
        self._engine: Engine | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._beat = time.monotonic()
        self._started = threading.Event()
        # Of their own: callers of a model that has left memory wait here, and nobody else's work shall wait with them.
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="load-model")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    @classmethod
    def load(
        cls,
        specs: Sequence[ModelSpec],
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_rows: int = 16,
        threads: int | None = None,
        model_memory_bytes: int | None = None,
        device_memory_bytes: int | None = None,
    ) -> "EngineWorker":
        """Loads `specs` onto `device` (auto, cpu, cuda, cuda:0, ...) in `dtype` (auto, float32, float16, bfloat16).

        `model_memory_bytes` bounds the weights in memory (None: no bound); see `DiffusionModelManager`.
        `device_memory_bytes` is all that weights and work may take together (None: on CUDA what is free at the start).
        """
        where = pick_device(device)
        precision = pick_dtype(dtype, where)

        inbox: Inbox = queue.SimpleQueue()
        manager = DiffusionModelManager(
            specs,
            where,
            precision,
            budget_bytes=model_memory_bytes,
            on_load=lambda model: inbox.put(lambda engine: engine.host(model)),
            on_evict=lambda name: inbox.put(lambda engine: engine.forget(name)),
        )

        def build(emit: Callable[[Event], None]) -> Engine:
            # The first model is the one that is asked for most; loaded last, it is the last to leave.
            for spec in reversed(specs):
                manager.acquire(spec.name)
                manager.release(spec.name)
            hosted = manager.loaded()
            models = [hosted[spec.name] for spec in specs if spec.name in hosted]
            memory = memory_of(where, device_memory_bytes)
            pictures = 4 if where.type == "cuda" else 1
            return Engine(models, emit, max_rows=max_rows, decode_batch=pictures, memory=memory)

        return cls(build, manager, inbox, threads=threads)

    @property
    def alive(self) -> bool:
        """Whether the engine's loop makes progress: its thread runs and finished a turn in the last two minutes."""
        return self._thread.is_alive() and not self._stopping and time.monotonic() - self._beat < STALL_SECONDS

    def check_room(self) -> None:
        """Raises Overloaded when the engine would refuse one more request for that alone."""
        if self._engine is not None:
            self._engine.admission.queue.check_room()

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """The request's events until it is finished. Closing the generator frees its rows before the next step."""
        if not self.alive:
            yield Refused(request.id, EngineStopped("the engine has stopped"))
            return
        if request.id in self._mailboxes:
            yield Refused(request.id, InvalidParameter("id", "a request with this id is running already"))
            return
        mailbox = self._mailboxes[request.id] = Mailbox(asyncio.get_running_loop())
        try:
            async with self._model_of(request), aclosing(self._events(request, mailbox)) as events:
                async for event in events:
                    yield event
        except EngineError as error:
            yield Refused(request.id, error)
        finally:
            self._mailboxes.pop(request.id, None)

    async def _events(self, request: Request, mailbox: Mailbox) -> AsyncGenerator[Event, None]:
        ended = False
        self._tell(lambda engine: engine.submit(request))
        try:
            while not ended:
                event = await mailbox.get()
                ended = isinstance(event, Finished | Refused)
                yield event
        finally:
            # Before the model is released: the engine must have let go of it when it is told to forget it.
            if not ended:
                self.abort(request.id)

    def abort(self, request_id: str) -> None:
        """Cancels a request; its rows are gone before the next step. Unknown ids are no error."""
        self._tell(lambda engine: engine.cancel(request_id))

    def report(self) -> dict[str, Any]:
        """`ready`, `device`, `loaded_models` and `counters` (see `Counters`; also images `waiting` and `running`,
        and `capacity` in UNet rows per call)."""
        engine = self._engine
        if engine is None:
            return {"ready": False, "device": "", "loaded_models": [], "counters": {}}
        counters = engine.ledger.total.numbers()
        counters |= {
            "waiting": engine.admission.queue.images,
            "running": len(engine.running),
            "capacity": engine.capacity,
        }
        device = next((model.device.type for model in engine.models.values()), "")
        return {"ready": self.alive, "device": device, "loaded_models": list(engine.models), "counters": counters}

    def stop(self) -> None:
        """Ends the thread; requests that were not finished are told so."""
        self._stopping = True
        self._wake()
        self._loaders.shutdown(wait=False)
        self._thread.join(timeout=30)

    @asynccontextmanager
    async def _model_of(self, request: Request) -> AsyncIterator[None]:
        """Holds the request's model in memory; loads it, off the engine's thread, if it has left."""
        manager, name = self._manager, request.model
        if manager is None:
            yield
            return
        if manager.acquire_loaded(name) is None:
            await self._loaded(manager, name)
        try:
            yield
        finally:
            manager.release(name)

    async def _loaded(self, manager: DiffusionModelManager, name: str) -> None:
        """Acquires the model on a thread. A caller that leaves meanwhile does not stop it, nor keep the model."""
        loading = asyncio.get_running_loop().run_in_executor(self._loaders, manager.acquire, name)
        try:
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(lambda done: manager.release(name) if done.exception() is None else None)
            raise

    def _tell(self, message: Callable[[Engine], object]) -> None:
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
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            engine = self._build(self._emit)
            warm_up(engine)
            self._engine = engine
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._started.set()
        try:
            self._loop(engine)
        except Exception:
            log.exception("the engine's loop ended")
        finally:
            self._stopping = True
            self._say_goodbye()
            engine.close()

    def _loop(self, engine: Engine) -> None:
        while not self._stopping:
            engine.wake.clear()
            self._beat = time.monotonic()
            while not self._inbox.empty():
                self._inbox.get()(engine)
            if not engine.step():
                engine.wake.wait(timeout=1.0)

    def _say_goodbye(self) -> None:
        for request_id in list(self._mailboxes):
            self._emit(Refused(request_id, EngineStopped("the engine stopped before the request was finished")))
