"""The answer as a stream of server-sent events: `progress`, `preview`, `image`, `failed`, and one `done` or `error`.

HTTP answers only after the backend's first event, so that a refusal is a proper error status and not a broken stream.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import count
from typing import TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from deployments.engine.errors import EngineStopped
from deployments.engine.events import Event, Finished, Refused
from serve_app.api.departure import while_client_stays
from serve_app.api.errors import internal_error
from serve_app.api.story import Story, Told

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEPALIVE_SECONDS = 15.0

# A client that takes nothing for so long is gone, whatever its socket says.
WRITE_SECONDS = 60.0


class EventStream(EventSourceResponse):
    """Tells a request's events until it is done, its client leaves, or its client stops reading.

    Whatever ends it, the events' generator is closed then and there, which frees the request's rows.
    """

    def __init__(self, first: Event, events: AsyncGenerator[Event, None], story: Story, request_id: str) -> None:
        super().__init__((), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Vary": "Accept"})
        self._first, self._events, self._story, self._request_id = first, events, story, request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's own way to notice a departure depends on the server's ASGI version; this one listens always.
        async with aclosing(self._events):
            try:
                await while_client_stays(receive, self._send_all(send))
            except (ClientDisconnect, TimeoutError):
                log.info("request %s: the client left", self._request_id)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._wire()) as wire:
            async for chunk in wire:
                async with asyncio.timeout(WRITE_SECONDS):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _wire(self) -> AsyncGenerator[bytes, None]:
        ids = count(1)
        async with aclosing(patiently(self._told(), KEEPALIVE_SECONDS)) as told_or_silent:
            async for told in told_or_silent:
                if told is None:
                    yield KEEPALIVE_COMMENT
                else:
                    name, data = told
                    yield format_sse_event(data_str=json.dumps(data), event=name, id=str(next(ids)))

    async def _told(self) -> AsyncGenerator[Told, None]:
        """What there is to tell. Ends with `done` or `error` in every case."""
        ended = False
        try:
            yield self._story.tell(self._first)
            async for event in self._events:
                yield self._story.tell(event)
                ended = isinstance(event, Finished | Refused)
        except Exception:
            log.exception("request %s: unexpected error", self._request_id)
            yield "error", internal_error().body(self._request_id)
            return
        if not ended:
            yield self._story.error(EngineStopped("the engine stopped before the request was finished"))


async def open_stream(request: Request, events: AsyncGenerator[Event, None], story: Story) -> EventStream:
    """Waits for the first event. Raises what refused the request, or ClientDisconnect."""
    first = await while_client_stays(request.receive, anext(events, None))
    if isinstance(first, Refused):
        await events.aclose()
        raise first.error
    if first is None:
        raise EngineStopped("the engine stopped before the request was finished")
    return EventStream(first, events, story, request.state.request_id)


async def patiently(items: AsyncGenerator[T, None], patience: float) -> AsyncGenerator[T | None, None]:
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
                coming.cancel()
                await asyncio.wait((coming,))
            yield item
