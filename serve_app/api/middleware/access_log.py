"""One line in the log for every request that has ended, and on its answer how long it took and which trace it is of."""

import asyncio
import logging
import time
from http import HTTPMethod
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.exchange import CLIENT_LEFT, exchange_of
from serve_app.api.principal import principal_of
from serve_app.api.trace import trace_id_of

log = logging.getLogger(__name__)

_METHODS = frozenset(HTTPMethod)


class AccessLog:
    """Logs each request with its times; with `prompts`, its prompt as well. Nothing else that a caller sent is logged.

    Answers get `Server-Timing`, with the milliseconds until they began, unless they have it already, and
    `X-Trace-Id` where the request belongs to a trace.
    """

    def __init__(self, app: ASGIApp, *, prompts: bool = False) -> None:
        self.app = app
        self._prompts = prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        traffic = _Traffic(scope, receive, send)
        try:
            await self.app(scope, traffic.receive, traffic.send)
        except asyncio.CancelledError:
            exchange_of(scope).left = True
            raise
        finally:
            line = traffic.line() | ({"prompt": exchange_of(scope).prompt} if self._prompts else {})
            log.info("%s %s %d", line["method"], line["route"] or "-", line["status"], extra=line)


class _Traffic:
    """A request and its answer, looked at as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._begun = time.perf_counter()
        self._trace_id = trace_id_of(Headers(scope=scope))
        self._status = CLIENT_LEFT
        self._bytes_in = self._bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.setdefault("Server-Timing", f"total;dur={self._milliseconds()}")
            if self._trace_id is not None:
                headers["X-Trace-Id"] = self._trace_id
        self._bytes_out += len(message.get("body", b""))
        await self._send(message)

    def line(self) -> dict[str, Any]:
        """What there is to tell: nothing in it is the caller's own words, but an id that has been found harmless."""
        exchange = exchange_of(self._scope)
        timings = exchange.timings
        method = self._scope["method"]
        return {
            "request_id": exchange.request_id or None,
            "trace_id": self._trace_id,
            "method": method if method in _METHODS else "other",
            "route": getattr(self._scope.get("route"), "path", None),
            "status": self._status,
            "code": exchange.code or None,
            "outcome": exchange.outcome(self._status),
            "tenant": principal_of(Request(self._scope)).tenant,
            "model": exchange.model or None,
            "queued_ms": round(timings.queued_ms, 1) if timings else None,
            "inference_ms": round(timings.total_ms - timings.queued_ms, 1) if timings else None,
            "total_ms": self._milliseconds(),
            "bytes_in": self._bytes_in,
            "bytes_out": self._bytes_out,
        }

    def _milliseconds(self) -> float:
        return round((time.perf_counter() - self._begun) * 1000, 1)
