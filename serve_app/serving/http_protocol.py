"""uvicorn's HTTP protocol with limits: on the size, the duration and the content of a request's head.

uvicorn collects whatever its parser gives it, for as long as a client likes. This counts headers as they arrive, closes
a connection that owes the rest of a request for too long, and answers every refusal with a problem like any other.
`proxy_headers.middlewares` installs it in place of uvicorn's own in Ray's proxy.
"""

import asyncio
from typing import Any, Final

import httptools
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serve_app.api.middleware.request_id import NOSNIFF, request_id_of
from serve_app.api.problems import Problem
from serve_app.serving.node_environment import read_head_timeout_s
from serve_app.serving.request_head import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_TARGET_BYTES,
    check_head,
    head_too_slow,
    headers_too_large,
    length_of,
    malformed_request,
    target_too_long,
)

# The parser gets at most this much at once, so that its own buffers are bounded as well.
_FEED_BYTES: Final = 16 * 1024

# A chunk's framing: a size and two line ends. More than this are extensions, which nobody reads.
_CHUNK_FRAMING_BYTES: Final = 24
_MAX_EXTENSION_BYTES: Final = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to heads over the limits, 408 to those that are too slow, 400 to those that break a rule."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._in_head = True
        self._is_over = False  # nothing is read any more
        self._parser_calls = 0  # the number of callbacks so far
        self._silent_bytes = 0  # fed since the last callback
        self._head_bytes = 0
        self._header_count = 0
        self._extension_bytes = 0
        self._body_left: int | None = None  # of a request that asked for another protocol: its body is read here
        self._deadline: asyncio.TimerHandle | None = None
        self._head_timeout_s = read_head_timeout_s()
        super().__init__(*args, **options)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_deadline()
        self._is_over = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _FEED_BYTES):
            if not self._is_over:
                self._feed(data[start : start + _FEED_BYTES])

    def on_message_begin(self) -> None:
        self._parser_calls += 1
        self._head_bytes = self._header_count = self._extension_bytes = 0
        self._unset_keepalive_if_required()
        self._start_deadline()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._parser_calls += 1
        self._head_bytes += len(url)
        if self._head_bytes > MAX_TARGET_BYTES:
            raise target_too_long()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._parser_calls += 1
        self._head_bytes += len(name) + len(value) + len(": \r\n")
        self._header_count += 1
        if self._head_bytes > MAX_HEAD_BYTES or self._header_count > MAX_HEADERS:
            raise headers_too_large()
        # Ignores trailers: they were not there when the request was admitted.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._parser_calls += 1
        check_head(self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers)
        self._in_head = False
        self._end_deadline()
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # The parser would mistake what follows for the other protocol, and then for another request.
            self._body_left = length_of(self.headers)
            self.cycle.keep_alive = False

    def on_chunk_header(self) -> None:
        """Called by the parser for each chunk."""
        self._parser_calls += 1
        self._extension_bytes -= _CHUNK_FRAMING_BYTES

    def on_body(self, body: bytes) -> None:
        self._parser_calls += 1
        self._extension_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._parser_calls += 1
        if self._body_left is not None:
            return
        super().on_message_complete()
        self._in_head = True
        self._end_deadline()
        if not self.parser.should_keep_alive():
            self._is_over = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Nothing else bounds the rest of a body that nobody reads any more.
        if not self._in_head and self.cycle.response_complete:
            self._start_deadline()

    def _should_upgrade_to_ws(self) -> bool:
        return False

    def _feed(self, piece: bytes) -> None:
        if self._body_left is not None:
            self._take_body(piece)
            return
        calls_before, in_body = self._parser_calls, not self._in_head
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._take_body(piece[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            reason = error.__context__
            self._refuse(reason if isinstance(reason, Problem) else malformed_request())
            return
        self._silent_bytes = self._silent_bytes + len(piece) if calls_before == self._parser_calls else 0
        self._extension_bytes += len(piece) if in_body else 0
        if self._silent_bytes > MAX_HEAD_BYTES:
            self._refuse(headers_too_large())
        elif self._extension_bytes > _MAX_EXTENSION_BYTES:
            self._refuse(malformed_request())

    def _take_body(self, piece: bytes) -> None:
        """Reads the body of a request that asked for another protocol; the connection ends with it."""
        assert self._body_left is not None
        body = piece[: self._body_left]
        self._body_left -= len(body)
        if body:
            super().on_body(body)
        if self._body_left == 0:
            super().on_message_complete()
            self._in_head, self._is_over = True, True

    def _start_deadline(self) -> None:
        if self._deadline is None and not self._is_over:
            self._deadline = self.loop.call_later(self._head_timeout_s, self._expire)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            # The previous request is still being answered; wait for the rest of this one after that.
            self._start_deadline()
        elif self._in_head and self.headers is not None and not self._is_over:
            self._refuse(head_too_slow())
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answers with `problem`, after the answers to earlier requests on this connection, and then closes it."""
        self._is_over = True
        self._end_deadline()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        before: RequestResponseCycle | None = self.cycle
        if not self._in_head and before is not None:
            if before.response_started:
                # A second answer would be mistaken for the next request's.
                self.transport.close()
                return
            # Tells the body's reader that no more will come, and takes over the answer.
            before.disconnected = True
            before.message_event.set()
            if self.pipeline and self.pipeline[0][0] is before:
                self.pipeline.popleft()
            else:
                before = None
        self.cycle = self._create_refusal_cycle()
        # uvicorn and Starlette type an ASGI application differently.
        answer: Any = _Refusal(problem)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, answer)
        else:
            self.pipeline.appendleft((self.cycle, answer))

    def _create_refusal_cycle(self) -> RequestResponseCycle:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": self.parser.get_method().decode("ascii"),
            "path": "/",
            "query_string": b"",
            "headers": [header for header in self.headers or () if header[0] == b"x-request-id"],
        }
        return RequestResponseCycle(
            scope=scope,  # type: ignore[arg-type]
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )


class _Refusal:
    """An ASGI application that answers with one problem, and the headers that every answer has."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = request_id_of(Headers(scope=scope))
        self._problem.headers |= {
            "X-Request-Id": request_id,
            NOSNIFF[0]: NOSNIFF[1],
            "Server-Timing": "total;dur=0.0",
            "Connection": "close",
        }
        await self._problem.response(request_id)(scope, receive, send)
