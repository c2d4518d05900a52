"""Shares an engine's early states with other replicas of its deployment, on a thread of its own.

What is saved here is sent to Redis; what others sent is read into the engine's own index, so that requests find it
without asking anybody. Nothing waits for this thread: a Redis that is away, slow or full costs the sharing alone.
"""

import logging
import queue
import threading
from collections import deque
from contextlib import suppress
from typing import Final

from redis.exceptions import RedisError

from deployments.engine.protocol.report import SharingReport
from deployments.engine.similar.saved_states import SavedState, SavedStates
from deployments.sharing.shared_log import TIMEOUT_S, IndexLine, SharedLog, newest_within
from deployments.sharing.spec import SharingSpec

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
"""How often it looks for others' states, and whether all are to be forgotten."""

PAUSE_S: Final = 5.0
"""How long it leaves Redis alone that has failed."""

MAX_WAITING: Final = 16
"""States that wait to be sent; beyond, they are not shared."""

_AT_A_TIME: Final = 32
"""States that are read before it looks again whether all are to be forgotten."""


class StateSharing:
    """Shares `states` as `spec` says, until it is closed. `report` may be asked on any thread."""

    def __init__(self, spec: SharingSpec, states: SavedStates) -> None:
        """Starts the thread. Raises ValueError where the key or the password is not where it should be."""
        self._states = states
        self._log = SharedLog(spec)
        self._waiting: queue.Queue[tuple[str, SavedState]] = queue.Queue(MAX_WAITING)
        self._wanted: deque[IndexLine] = deque()
        self._sent = self._received = self._refused = self._lost = self._failures = 0
        self._is_well = True
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="share-states", daemon=True)
        states.tell(self._offer)
        self._thread.start()

    def report(self) -> SharingReport:
        """Returns what came of it so far."""
        return SharingReport(
            sent=self._sent,
            received=self._received,
            dropped=self._refused + self._lost,
            damaged=self._log.damaged,
            failures=self._failures,
            is_well=self._is_well,
        )

    def close(self) -> None:
        """Ends the thread; states that still wait are not sent."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(timeout=2 * TIMEOUT_S)

    def _offer(self, kind: str, saved: SavedState) -> None:
        try:
            self._waiting.put_nowait((kind, saved))
        except queue.Full:
            self._refused += 1
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                self._share()
            except Exception as error:
                # This thread does not end: nobody would miss it.
                self._failed(error)
                self._stopped.wait(PAUSE_S)
                continue
            if not self._is_well:
                log.info("Redis answers again: states are shared")
            self._is_well = True
            if not self._wanted:
                self._wake.wait(POLL_S)
        with suppress(RedisError, OSError):
            self._log.close()

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if not isinstance(error, RedisError | OSError):
            log.error("states could not be shared", exc_info=error)
        elif self._is_well:
            log.warning("states are not shared while Redis is left alone: %s", type(error).__name__)
        self._is_well = False

    def _share(self) -> None:
        """Goes by the generation of now, sends what waits, and reads some of what others sent."""
        if self._log.keep_up():
            self._forget()
        has_sent = self._send()
        self._wanted.extend(line for line in self._log.read_new() if line.writer != self._log.writer)
        gone = self._log.drop_oldest()
        if has_sent:
            # One of those who added something does it for all.
            self._log.remove(gone)
        self._wanted = deque(newest_within(list(self._wanted), self._states.max_bytes))
        for _ in range(min(_AT_A_TIME, len(self._wanted))):
            fetched = self._log.fetch(self._wanted.popleft())
            if fetched is not None:
                self._states.take_over(*fetched)
                self._received += 1

    def _forget(self) -> None:
        self._wanted.clear()
        # Before the queue: what is added until now waits there, and nothing of before is added any more.
        self._states.clear()
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()

    def _send(self) -> bool:
        """Sends what waits. Returns False if that is nothing."""
        sent_before = self._sent
        for _ in range(self._waiting.qsize()):
            is_sent = False
            try:
                is_sent = self._log.put(*self._waiting.get_nowait())
            finally:
                self._sent += is_sent
                self._lost += not is_sent
        return self._sent > sent_before
