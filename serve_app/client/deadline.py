"""Ends a blocking client's reads and writes when its call's time is over, however slowly the server sends.

httpx has time limits for single reads and writes, so that a server that sends a byte now and then is never too slow.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpcore
import httpx

# A call is one thread's from its beginning to its end, and a thread has one at a time.
_call = threading.local()

_CONNECTED: Final = ("connect_tcp.complete", "start_tls.complete")
_SEND_BYTES: Final = 65536


@contextmanager
def ending_by(left_s: Callable[[], float]) -> Iterator[None]:
    """Bounds what this thread reads and writes in the block: `left_s` returns the seconds left, or raises."""
    _call.left_s = left_s
    try:
        yield
    finally:
        _call.left_s = None


def bound_connections(request: httpx.Request) -> None:
    """Has the connections that `request` opens keep to `ending_by`: a hook for httpx's requests."""
    request.extensions["trace"] = _bound_if_new


def _bound_if_new(event: str, info: Mapping[str, Any]) -> None:
    if event.endswith(_CONNECTED):
        _bound(info["return_value"])


def _bound(stream: httpcore.NetworkStream) -> None:
    read, write = stream.read, stream.write

    def read_in_time(max_bytes: int, timeout: float | None = None) -> bytes:
        return read(max_bytes, _shorter(timeout))

    def write_in_time(buffer: bytes, timeout: float | None = None) -> None:
        # A single write may be many sends, each with the whole limit.
        for start in range(0, len(buffer), _SEND_BYTES):
            write(buffer[start : start + _SEND_BYTES], _shorter(timeout))

    stream.read, stream.write = read_in_time, write_in_time  # type: ignore[method-assign]


def _shorter(timeout: float | None) -> float | None:
    left_s: Callable[[], float] | None = getattr(_call, "left_s", None)
    if left_s is None:
        return timeout
    return left_s() if timeout is None else min(timeout, left_s())
