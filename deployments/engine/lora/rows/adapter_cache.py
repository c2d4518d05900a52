"""Keeps the latest LoRAs in memory, within a budget, and reads others on threads of its own."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

from deployments.engine.lora.adapter import Adapter
from deployments.engine.lora.rows.lora_set import AdaptedBase, LoraSet, fit_adapter, unite
from deployments.engine.protocol.errors import DoesNotFit, InvalidParameter, Overloaded
from deployments.engine.protocol.files.loras import LoraFile, LoraUse
from deployments.engine.protocol.report import AdapterReport

log = logging.getLogger(__name__)

_READERS: Final = 2

_MOST: Final = 0.25

_Key = tuple[str, tuple[LoraUse, ...]]


class AdapterCache:
    """The LoRAs of all models of a process, each as a model needs it. All methods may be called from any thread.

    If `budget_bytes` (None: no bound) are exceeded, the least recently used leave: at once when one has been read, for
    whoever asked for it may never need it. Those stay that are `in_use`, or claimed by requests that soon are.
    """

    def __init__(
        self,
        read: Callable[[LoraFile], Adapter] | None,
        base_of: Callable[[str], AdaptedBase],
        in_use: Callable[[], Iterable[LoraSet]],
        budget_bytes: int | None = None,
    ) -> None:
        """`read` raises EngineError for a file that cannot be applied; without it none can be read. `base_of` returns
        what LoRAs change in the model of a name. All three are called from any thread.
        """
        self._read, self._base_of, self._in_use = read, base_of, in_use
        self._budget = budget_bytes
        self._kept: OrderedDict[_Key, Future[LoraSet]] = OrderedDict()
        self._claimed: list[LoraSet] = []
        self._lock = threading.Lock()  # held for moments
        self._threads = ThreadPoolExecutor(_READERS, thread_name_prefix="read-lora")
        self._hits = self._reads = self._evictions = 0
        self._read_seconds = 0.0

    def check_readable(self) -> None:
        """Raises InvalidParameter if no LoRA can be read."""
        if self._read is None:
            raise InvalidParameter("loras", "are not served by this engine: it was started without any")

    def count_bytes(self) -> int:
        """Returns the bytes of all that are in memory."""
        with self._lock:
            return self._bytes()

    def report(self) -> AdapterReport:
        """Returns what is in memory, and what has happened so far."""
        with self._lock:
            loaded = sum(len(uses) == 1 for _, uses in self._loaded())
            return AdapterReport(
                loaded, self._bytes(), self._budget, self._hits, self._reads, self._evictions, self._read_seconds
            )

    def prefetch(self, model: str, uses: tuple[LoraUse, ...]) -> None:
        """Begins to read for `model` what is not in memory."""
        with self._lock:
            self._hits += sum((model, (use,)) in self._kept for use in uses)
        if uses:
            self.begin(model, uses)

    def begin(self, model: str, uses: tuple[LoraUse, ...]) -> Future[LoraSet]:
        """Begins to read what is not in memory, and returns the future of all the LoRAs of a request as one.

        It raises what reading raises, and InvalidParameter for LoRAs that do not fit `model`.
        """
        key = (model, uses)
        with self._lock:
            # What could not be read is read again.
            if (found := self._kept.get(key)) is not None and not _has_failed(found):
                self._kept.move_to_end(key)
                return found
            if len(uses) == 1:
                self._reads += 1
                begun = self._kept[key] = self._threads.submit(self._load, model, uses[0])
        if len(uses) > 1:
            # In the order of the threads' queue: each is begun before what waits for it.
            parts = [self.begin(model, (use,)) for use in uses]
            with self._lock:
                begun = self._kept[key] = self._threads.submit(_unite, parts)
        begun.add_done_callback(partial(self._tidy, key))
        return begun

    def claim(self, model: str, future: Future[LoraSet]) -> LoraSet:
        """Returns the LoRAs of a future that `begin` has returned, with room made for them until they are released.

        Raises what the future raises; DoesNotFit if they alone exceed the budget, and Overloaded if those that are in
        use leave no room for them now.
        """
        key = (model, future.result().uses)
        with self._lock:
            # They may have left since they were read, and may have been read once more.
            if (kept := self._kept.get(key)) is None or not _is_read(kept):
                kept = self._kept[key] = future
            self._kept.move_to_end(key)
            claimed = kept.result()
            if self._budget is not None and claimed.bytes > self._budget:
                del self._kept[key]
                raise DoesNotFit("the LoRAs of this request do not fit into the memory that there is for LoRAs")
            self._claimed.append(claimed)
            self._evict_unused(self._budget)
            if self._budget is not None and self._bytes() > self._budget:
                self._claimed.remove(claimed)
                self._evict_unused(self._budget)
                raise Overloaded("the LoRAs that are in use leave no room for those of this request now")
        return claimed

    def release(self, claimed: LoraSet) -> None:
        """Ends a claim: its request is in use by now, or gone."""
        with self._lock:
            self._claimed.remove(claimed)

    def drop(self, model: str) -> None:
        """Drops what is in memory for a model that has left."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == model]:
                del self._kept[key]

    def evict_unused(self) -> None:
        """Evicts all that nobody uses, however much room there is for them."""
        with self._lock:
            self._evict_unused(0)

    def close(self) -> None:
        """Ends the threads, and drops what still waits to be read."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _load(self, model: str, use: LoraUse) -> LoraSet:
        assert self._read is not None
        begun = time.perf_counter()
        fitted = fit_adapter(self._read(use.file), use, self._base_of(model))
        seconds = time.perf_counter() - begun
        log.info("LoRA %s: %.0f MB read for %s in %.2f s", use.file.name, fitted.bytes / 1e6, model, seconds)
        with self._lock:
            self._read_seconds += seconds
        return fitted

    def _tidy(self, key: _Key, future: Future[LoraSet]) -> None:
        """Keeps the budget, and nothing of what could not be read. On the thread that has read it."""
        with self._lock:
            if _has_failed(future) and self._kept.get(key) is future:
                # Its traceback would keep the file's tensors alive.
                del self._kept[key]
            self._evict_unused(self._budget)

    def _evict_unused(self, budget: int | None) -> None:
        """Evicts what nobody uses until the budget is kept. Called with the lock held."""
        if budget is None:
            return
        used = {id(each) for each in (*self._in_use(), *self._claimed)}
        unused = [key for key, loaded in self._loaded().items() if id(loaded) not in used]
        while unused and self._bytes() > budget:
            del self._kept[unused.pop(0)]
            self._evictions += 1

    def _loaded(self) -> dict[_Key, LoraSet]:
        return {key: each.result() for key, each in self._kept.items() if _is_read(each)}

    def _bytes(self) -> int:
        return sum(loaded.bytes for loaded in self._loaded().values())


def _unite(parts: Sequence[Future[LoraSet]]) -> LoraSet:
    return unite([part.result() for part in parts])


def _is_read(future: Future[LoraSet]) -> bool:
    return future.done() and not _has_failed(future)


def _has_failed(future: Future[LoraSet]) -> bool:
    return future.cancelled() or (future.done() and future.exception() is not None)


def share_for_loras(asked: int, memory: int | None) -> int:
    """Returns the bytes that LoRAs may take: as many as `asked`, but at most a quarter of `memory` (None: no bound)."""
    return asked if memory is None else min(asked, int(_MOST * memory))
