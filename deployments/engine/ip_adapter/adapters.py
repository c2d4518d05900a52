"""The IP-Adapters of a model, by name: each is loaded when a request first asks for it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from torch import nn

from deployments.engine.ip_adapter.adapter import IpAdapter
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.settings import ReferenceSettings

log = logging.getLogger(__name__)

RETRY_S: Final = 10.0
"""How long a load that has failed is not tried again: requests that come in a row fail at once, and not one by one."""


class IpAdapters:
    """The IP-Adapters of one model. Those that were loaded stay as long as it does. All methods are for any thread.

    Their image encoders are large, and most callers never ask for one: so they are not loaded with the model.
    """

    def __init__(self, names: Sequence[str], load: Callable[[str], IpAdapter]) -> None:
        """`load` takes one of `names`; it may take minutes, and raises ModelLoadError."""
        self.names = tuple(names)
        self._load_one = load
        self._begun: dict[str, Future[IpAdapter]] = {}
        self._ended_at: dict[str, float] = {}
        self._lock = threading.Lock()  # held for moments
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="load-ip-adapter")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks of those in memory."""
        return tuple(network for adapter in self._loaded().values() for network in adapter.networks)

    def resolve(self, asked: ReferenceSettings) -> str:
        """Returns the name of the adapter that is `asked` for. Raises InvalidParameter if there is none, or several."""
        known = ", ".join(self.names) or "none"
        if asked.adapter is None and len(self.names) == 1:
            return self.names[0]
        if asked.adapter is None and self.names:
            raise InvalidParameter("reference", f"must name its `adapter`: this model has {known}")
        if asked.adapter is None or asked.adapter not in self.names:
            raise InvalidParameter("reference", f"this model has no such IP-Adapter; it has: {known}")
        return asked.adapter

    def begin(self, name: str) -> Future[IpAdapter]:
        """Begins to load an adapter that is not in memory, and returns its future.

        What has failed is tried again, though not within RETRY_S.
        """
        with self._lock:
            found = self._begun.get(name)
            if found is None or (_has_failed(found) and time.monotonic() >= self._ended_at[name] + RETRY_S):
                found = self._begun[name] = self._threads.submit(self._load, name)
            return found

    def tokens_of(self, name: str) -> int:
        """Returns the tokens that the adapter makes of a picture; 0 while it is not in memory."""
        adapter = self._loaded().get(name)
        return 0 if adapter is None else adapter.tokens

    def _load(self, name: str) -> IpAdapter:
        begun = time.perf_counter()
        try:
            adapter = self._load_one(name)
        finally:
            # Before its future tells whether it has failed.
            self._ended_at[name] = time.monotonic()
        log.info("IP-Adapter %s: loaded in %.1f s", name, time.perf_counter() - begun)
        return adapter

    def _loaded(self) -> dict[str, IpAdapter]:
        with self._lock:
            done = {name: each for name, each in self._begun.items() if each.done()}
        return {name: each.result() for name, each in done.items() if not _has_failed(each)}


def _has_failed(future: Future[IpAdapter]) -> bool:
    return future.done() and future.exception() is not None


def _no_adapter(name: str) -> IpAdapter:
    raise LookupError(name)


NO_IP_ADAPTERS: Final = IpAdapters((), _no_adapter)
