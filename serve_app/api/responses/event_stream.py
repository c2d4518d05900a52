"""Answers as streams of server-sent events: a request's are `progress`, `preview`, `image`, `failed`, and one `done` or
`error`.

HTTP answers only after the backend's first event, so that a refusal is a proper error status and not a broken stream.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any, Final, TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from deployments.engine.protocol.errors import EngineStopped
from deployments.engine.protocol.events import Accepted, Event, Failed, Finished, ImageDone
from serve_app.api.problems import internal_error
from serve_app.api.request_record import RequestRecord, record_of
from serve_app.api.responses.cache_headers import cache_header
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.large_json import encode_json
from serve_app.api.responses.stream_events import NamedEvent, StreamEncoder
from serve_app.tasks import cancel_and_wait

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEPALIVE_SECONDS = 15.0

# A client that takes nothing for so long is gone, whatever its socket says.
WRITE_SECONDS = 60.0

LARGE_EVENTS: Final = ("image", "entry")
"""The events that have pictures in them."""

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


NumberedEvent = tuple[str | None, NamedEvent]
"""What is told, with the id that a client that comes back may say it has got to."""


class EventStream(EventSourceResponse):
    """Tells events until there are no more, its client leaves, or its client stops reading.

    Whatever ends it, `source`, which they come from, is closed then and there: that frees a request's rows.
    """

    def __init__(
        self,
        events: AsyncGenerator[NumberedEvent, None],
        source: AsyncGenerator[Any, None],
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        fixed = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Vary": "Accept"}
        super().__init__((), headers=fixed | dict(headers))
        self._events, self._source = events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's own way to notice a departure depends on the server's ASGI version; this one listens always.
        entry = record_of(scope)
        async with aclosing(self._source):
            try:
                await run_until_disconnect(receive, self._send_all(send, entry))
            except (ClientDisconnect, TimeoutError):
                entry.left = True

    async def _send_all(self, send: Send, entry: RequestRecord) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._encode_stream(entry)) as wire:
            async for chunk in wire:
                async with asyncio.timeout(WRITE_SECONDS):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _encode_stream(self, entry: RequestRecord) -> AsyncGenerator[bytes, None]:
        async with aclosing(mark_silence(self._events, KEEPALIVE_SECONDS)) as events:
            async for numbered in events:
                if numbered is None:
                    yield KEEPALIVE_COMMENT
                else:
                    number, (name, data) = numbered
                    if name == "error":
                        entry.code = data["error"]["code"]
                    # With pictures it takes a while, and others would wait.
                    encode = partial(_encode_event, number, name, data)
                    yield await asyncio.to_thread(encode) if name in LARGE_EVENTS else encode()


def _encode_event(number: str | None, name: str, data: Mapping[str, Any]) -> bytes:
    """The event on the wire; JSON has no lines of its own."""
    end = "\n\n" if number is None else f"\nid: {number}\n\n"
    return b"".join((f"event: {name}\ndata: ".encode(), encode_json(data, ascii_only=True), end.encode()))


async def number_events(
    events: AsyncGenerator[NamedEvent, None], request_id: str
) -> AsyncGenerator[NumberedEvent, None]:
    """`cache_header`, numbered from 1. What nobody expected becomes a last `error`."""
    ids = count(1)
    try:
        async with aclosing(events):
            async for each in events:
                yield str(next(ids)), each
    except Exception:
        log.exception("request %s: unexpected error", request_id)
        yield str(next(ids)), ("error", internal_error().body(request_id))


async def _encode_events(
    first: Event, events: AsyncGenerator[Event, None], encoder: StreamEncoder, entry: RequestRecord
) -> AsyncGenerator[NamedEvent, None]:
    """What there is to tell of a request. Ends with `done` or `error` in every case."""
    yield encoder.encode(first)
    ended = False
    async for event in events:
        yield await asyncio.to_thread(encoder.encode, event) if isinstance(event, ImageDone) else encoder.encode(event)
        ended = isinstance(event, Finished | Failed)
        if isinstance(event, Finished):
            entry.timings = event.timings
    if not ended:
        yield encoder.encode_error(EngineStopped("the engine stopped before the request was finished"))


async def open_stream(request: Request, events: AsyncGenerator[Event, None], encoder: StreamEncoder) -> EventStream:
    """Waits for the first event. Raises what refused the request, or ClientDisconnect; `events` are closed then."""
    try:
        first = await run_until_disconnect(request.receive, anext(events, None))
        if isinstance(first, Failed):
            raise first.error
        if first is None:
            raise EngineStopped("the engine stopped before the request was finished")
    except BaseException:
        # Left to the garbage collector, the generators within would be closed all at once, each by two.
        await events.aclose()
        raise
    name, entry = request.state.request_id, record_of(request.scope)
    headers = cache_header(first.source) if isinstance(first, Accepted) else NO_HEADERS
    return EventStream(number_events(_encode_events(first, events, encoder, entry), name), events, headers)


async def mark_silence(items: AsyncGenerator[T, None], patience: float) -> AsyncGenerator[T | None, None]:
    """`items`, with a None for every `patience` seconds in which none came. Closing this closes `items`."""
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
                # Cancelled and over before `items` is closed: a generator cannot be closed while it runs.
                await cancel_and_wait(coming)
            yield item
