"""Answers as server-sent events. A request's are `progress`, `preview`, `image`, `failed`, then one `done` or `error`.

The HTTP answer begins only after the backend's first event, so that a refusal gets a proper error status.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from deployments.engine.protocol.errors import EngineStopped
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone
from serve_app.api.exchange import Exchange, exchange_of
from serve_app.api.problems import internal_error
from serve_app.api.responses.cache_headers import cache_header
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.large_json import encode_json
from serve_app.api.responses.stream_events import NamedEvent
from serve_app.tasks import cancel_and_wait

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEPALIVE_SECONDS = 15.0

# A client that reads nothing for this long counts as gone, whatever its socket says.
WRITE_SECONDS = 60.0

LARGE_EVENTS: Final = ("image", "entry")
"""Our events that contain images."""

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


NumberedEvent = tuple[str | None, NamedEvent]
"""An event with the id that a client sends as `Last-Event-ID` when it reconnects."""


class EventEncoder(Protocol):
    """Encodes one request's events, in order, in the words of one surface."""

    @property
    def large_events(self) -> Collection[str]:
        """The names of those that contain images."""

    def encode(self, event: Event) -> Sequence[NamedEvent]:
        """Encodes an engine's event as any number of the surface's."""


class EventStream(EventSourceResponse):
    """Sends events until they end, the client disconnects, or the client stops reading.

    However it ends, it closes `source`, which the events come from, at once: that frees a request's rows.
    """

    def __init__(
        self,
        events: AsyncGenerator[NumberedEvent, None],
        source: AsyncGenerator[Any, None],
        headers: Mapping[str, str] = NO_HEADERS,
        large_events: Collection[str] = LARGE_EVENTS,
    ) -> None:
        fixed = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Vary": "Accept"}
        super().__init__((), headers=fixed | dict(headers))
        self._events, self._source, self._large_events = events, source, large_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's own detection of disconnects depends on the server's ASGI version; this one always listens.
        exchange = exchange_of(scope)
        async with aclosing(self._source):
            try:
                await run_until_disconnect(receive, self._send_all(send, exchange))
            except (ClientDisconnect, TimeoutError):
                exchange.left = True

    async def _send_all(self, send: Send, exchange: Exchange) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(mark_silence(self._events, KEEPALIVE_SECONDS)) as events:
            async for numbered in events:
                chunk = KEEPALIVE_COMMENT if numbered is None else await self._encode(numbered, exchange)
                async with asyncio.timeout(WRITE_SECONDS):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _encode(self, numbered: NumberedEvent, exchange: Exchange) -> bytes:
        number, (name, data) = numbered
        if name == "error":
            exchange.code = data["error"]["code"]
        # Encoding images takes a while, and would block the event loop.
        encode = partial(_encode_event, number, name, data)
        return await asyncio.to_thread(encode) if name in self._large_events else encode()


def _encode_event(number: str | None, name: str, data: Mapping[str, Any]) -> bytes:
    """Encodes an event for the wire. JSON contains no line breaks of its own."""
    end = "\n\n" if number is None else f"\nid: {number}\n\n"
    return b"".join((f"event: {name}\ndata: ".encode(), encode_json(data, ascii_only=True), end.encode()))


def read_last_event_id(request: Request) -> int:
    """Returns how many numbered events the client has had, by its Last-Event-ID; 0 if that is malformed."""
    value = request.headers.get("last-event-id", "")
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else 0


async def number_events(
    events: AsyncGenerator[NamedEvent, None], request_id: str
) -> AsyncGenerator[NumberedEvent, None]:
    """Numbers `events` from 1. An unexpected error becomes a last `error` event."""
    ids = count(1)
    try:
        async with aclosing(events):
            async for each in events:
                yield str(next(ids)), each
    except Exception:
        log.exception("request %s: unexpected error", request_id)
        yield str(next(ids)), ("error", internal_error().body(request_id))


async def _encode_events(
    first: Event, events: AsyncGenerator[Event, None], encoder: EventEncoder, exchange: Exchange
) -> AsyncGenerator[NamedEvent, None]:
    """Encodes a request's events. Always ends with the last one that the engine promises, or an error."""
    for each in encoder.encode(first):
        yield each
    ended = False
    async for event in events:
        is_image = isinstance(event, ImageDone)
        for each in await asyncio.to_thread(encoder.encode, event) if is_image else encoder.encode(event):
            yield each
        ended = isinstance(event, Finished | Failed)
        if isinstance(event, Finished):
            exchange.timings = event.timings
    if not ended:
        stopped = EngineStopped("the engine stopped before the request was finished")
        for each in encoder.encode(Failed(exchange.request_id, stopped)):
            yield each


async def open_stream(request: Request, events: AsyncGenerator[Event, None], encoder: EventEncoder) -> EventStream:
    """Waits for the first event, then answers with all of them.

    Raises the error that refused the request, or ClientDisconnect; `events` are closed then.
    """
    try:
        first = await run_until_disconnect(request.receive, anext(events, None))
        if isinstance(first, Failed):
            raise first.error
        if first is None:
            raise EngineStopped("the engine stopped before the request was finished")
    except BaseException:
        # The garbage collector would close all the nested generators at once, each one twice.
        await events.aclose()
        raise
    exchange = exchange_of(request.scope)
    headers = cache_header(first.source) if isinstance(first, Accepted) else NO_HEADERS
    numbered = number_events(_encode_events(first, events, encoder, exchange), exchange.request_id)
    return EventStream(numbered, events, headers, encoder.large_events)


async def mark_silence(items: AsyncGenerator[T, None], patience: float) -> AsyncGenerator[T | None, None]:
    """Yields `items`, and None after every `patience` seconds without one. Closing this closes `items`."""
    async with aclosing(items):
        while True:
            coming = asyncio.ensure_future(anext(items))
            try:
                while not (await asyncio.wait((coming,), timeout=patience))[0]:
                    yield None
                item = coming.result()
            except StopAsyncIteration:
                return
            finally:
                # Cancelled and awaited before `items` is closed: a generator cannot be closed while it runs.
                await cancel_and_wait(coming)
            yield item
