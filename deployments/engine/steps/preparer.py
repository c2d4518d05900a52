"""Prepares requests off the denoising loop: one thread encodes prompts and images, and compiles what they need."""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from deployments.engine.heartbeat import Heartbeat
from deployments.engine.ip_adapter.adapter import IpAdapter
from deployments.engine.lora.rows.adapter_cache import AdapterCache
from deployments.engine.lora.rows.lora_set import LoraSet
from deployments.engine.models.loaded_model import LoadedModel
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.scheduling.fair_order import Arrival
from deployments.engine.scheduling.forecast import Forecast
from deployments.engine.similar.state_reuse import StateReuse
from deployments.engine.steps.prepare import prepare
from deployments.engine.steps.request_state import RequestState
from deployments.engine.steps.second_pass import prepare_second_pass
from deployments.engine.steps.shape_compiler import ShapeCompiler

PATIENCE_S: Final = 10.0
"""How long an idle engine waits to have a full first call; far below what the worker takes for a stall."""

LOOK_EVERY_S: Final = 0.02
"""How often an engine that waits looks whether there is something else to do."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """A request that is prepared, or has failed to be: then its future raises. The forecast of its place is made.

    LoRAs that were `claimed` for it are released once it has been collected, and its taker asks for more.
    """

    arrival: Arrival
    future: Future[RequestState]
    forecast: Future[Forecast]
    claimed: LoraSet | None


@dataclass(slots=True)
class _Task:
    """A checked request to prepare, with the futures of its adapters; and its LoRAs, once they are `claimed` for it."""

    arrival: Arrival
    model: LoadedModel
    forecast: Future[Forecast]
    loras: Future[LoraSet] | None = None
    ip_adapter: Future[IpAdapter] | None = None
    claimed: LoraSet | None = None

    @property
    def adapters(self) -> list[Future[Any]]:
        return [each for each in (self.loras, self.ip_adapter) if each is not None]


class Preparer:
    """Prepares one request after the other; encoders and their caches are used from its thread alone.

    A request's LoRAs are read before, and its IP-Adapter is loaded, on other threads; then it waits for `begin_read`.
    `on_done` is called on the thread on which that, or a preparation, has ended. All methods are for the engine's
    thread, apart from `is_alive`. `sizes` are those of the engine's calls; `beside` returns, from any thread, the
    prepared requests of a bucket, and how many rows of it may run at once. `reuse` finds the states that requests may
    continue.
    """

    def __init__(
        self,
        on_done: Callable[[], object],
        sizes: tuple[int, ...],
        beside: Callable[[Bucket], tuple[Sequence[Request], int]],
        adapters: AdapterCache,
        reuse: StateReuse,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._on_done = on_done
        self._beside = beside
        self._adapters = adapters
        self._reuse = reuse
        self._shapes = ShapeCompiler(sizes)
        self._heartbeat = heartbeat or Heartbeat()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._ended: queue.SimpleQueue[Preparation] = queue.SimpleQueue()
        self._under_way: dict[str, Arrival] = {}
        self._not_begun: set[str] = set()
        self._read: queue.SimpleQueue[_Task] = queue.SimpleQueue()

    @property
    def is_alive(self) -> bool:
        """True unless a preparation takes far longer than any before."""
        return not self._is_preparing or not self._heartbeat.is_stalled

    @property
    def is_busy(self) -> bool:
        """True while a preparation is under way that has not ended."""
        return self._ended.qsize() < len(self._under_way)

    @property
    def _is_preparing(self) -> bool:
        """True while the thread has something to prepare: not what has ended, nor what waits for adapters."""
        return self._ended.qsize() + len(self._not_begun) < len(self._under_way)

    @property
    def unet_rows(self) -> int:
        """The rows of a UNet call that all images of the requests under way would take.

        Those whose adapters are being read do not count, nor those that wait for `begin_read` since: others need not
        wait with them, and nothing has been computed for them.
        """
        return sum(a.unet_rows for request_id, a in self._under_way.items() if request_id not in self._not_begun)

    def begin(self, arrival: Arrival, model: LoadedModel, forecast: Future[Forecast]) -> None:
        """Queues a checked request, or has its adapters read. It has not ended before its `forecast` has been made."""
        request, asked = arrival.request, arrival.request.params.reference
        # In this order: what is under way and not read is what the thread has to prepare.
        self._not_begun.add(request.id)
        self._under_way[request.id] = arrival
        loras = self._adapters.begin(request.model, request.loras) if request.loras else None
        ip_adapter = None if asked is None else model.ip_adapters.begin(model.ip_adapters.resolve(asked))
        task = _Task(arrival, model, forecast, loras, ip_adapter)
        if all(future.done() for future in task.adapters):
            self._submit(task)
        else:
            _call_after(task.adapters, partial(self._put_read, task))

    def begin_read(self, is_wanted: Callable[[Arrival], bool]) -> bool:
        """Queues a request whose adapters have been read since it was begun. Returns False if there is none.

        Those that are no longer wanted are dropped.
        """
        while not self._read.empty():
            task = self._read.get()
            if is_wanted(task.arrival):
                self._submit(task)
                return True
            # In this order, as in `begin`.
            del self._under_way[task.arrival.request.id]
            self._not_begun.discard(task.arrival.request.id)
        return False

    def collect(self, *, wait: bool, is_called: Callable[[], bool] = lambda: False) -> Iterator[Preparation]:
        """Yields what has ended since; with `wait` also what the thread still prepares, for `PATIENCE_S` at most.

        The wait ends, too, once its caller `is_called`; what waits for adapters is not waited for.
        """
        until = time.perf_counter() + (PATIENCE_S if wait else 0.0)
        while True:
            left_s = until - time.perf_counter()
            may_wait = left_s > 0 and self._is_preparing and not is_called()
            try:
                ended = self._ended.get(timeout=min(left_s, LOOK_EVERY_S) if may_wait else 0.0)
            except queue.Empty:
                if may_wait:
                    continue
                return
            del self._under_way[ended.arrival.request.id]
            try:
                yield ended
            finally:
                if ended.claimed is not None:
                    self._adapters.release(ended.claimed)

    def close(self) -> None:
        """Ends the thread, and drops what still waits."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._shapes.close()

    def _submit(self, task: _Task) -> None:
        """Queues a request whose adapters have been read, or could not be."""
        if not self._is_preparing:
            self._heartbeat.begin()
        self._not_begun.discard(task.arrival.request.id)
        future = self._threads.submit(self._prepare, task)
        future.add_done_callback(lambda done: self._put(Preparation(task.arrival, done, task.forecast, task.claimed)))

    def _prepare(self, task: _Task) -> RequestState:
        self._heartbeat.begin()
        epoch = self._reuse.states.epoch
        request, model = task.arrival.request, task.model
        # Both are done, or have failed: this thread, which all requests share, never waits for them.
        ip_adapter = None if task.ip_adapter is None else task.ip_adapter.result()
        if task.loras is not None:
            task.claimed = self._adapters.claim(request.model, task.loras)
        request_state = prepare(request, model, task.arrival.at, task.claimed, ip_adapter)
        request_state.second_pass = prepare_second_pass(request, model)
        request_state.epoch = epoch
        request_state.continued = self._reuse.find(request, request_state.prompt.embedding)
        self._compile_shapes(request_state, model)
        wait([task.forecast])
        self._heartbeat.end()
        return request_state

    def _compile_shapes(self, request_state: RequestState, model: LoadedModel) -> None:
        request = request_state.request
        prepared, most_rows = self._beside(request.bucket)
        # The dictionary is copied in one operation.
        under_way = [arrival.request for arrival in list(self._under_way.values())]
        others = [each for each in under_way if each.bucket == request.bucket and each.id != request.id]
        self._shapes.compile_for(request_state, model, [*prepared, *others], most_rows)
        if (second := request_state.second_pass) is not None:
            self._shapes.compile_for(replace(request_state, request=second.request), model, (), most_rows)

    def _put_read(self, task: _Task) -> None:
        self._read.put(task)
        self._on_done()

    def _put(self, preparation: Preparation) -> None:
        self._ended.put(preparation)
        self._on_done()


def _call_after(futures: Sequence[Future[Any]], action: Callable[[], object]) -> None:
    """Calls `action` when all of `futures` are done, whatever came of them; on the thread of the last one."""
    if futures:
        futures[0].add_done_callback(lambda _: _call_after(futures[1:], action))
    else:
        action()
