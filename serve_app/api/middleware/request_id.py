"""The outermost layer: every answer, also an error nobody expected, has a request id."""

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.exchange import exchange_of
from serve_app.api.problems import internal_error

log = logging.getLogger(__name__)

ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,128}")
NOSNIFF = ("X-Content-Type-Options", "nosniff")


class RequestId:
    """Takes the caller's `x-request-id` if it is harmless, else makes one; sets it, and `nosniff`, on every answer.

    An exception that reaches it is logged under that id and answered as 500. Starlette's own last resort would do so
    outside of all middleware, without the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        exchange_of(scope).request_id = request_id
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers[NOSNIFF[0]] = NOSNIFF[1]
            await send(message)

        try:
            await self.app(scope, receive, send_marked)
        except Exception:
            log.exception("request %s: unexpected error", request_id)
            if not started:
                await internal_error().response(request_id)(scope, receive, send_marked)


def request_id_of(headers: Headers) -> str:
    """The caller's id, or a new one."""
    given = headers.get("x-request-id", "")
    return given if ACCEPTED.fullmatch(given) else str(uuid.uuid4())
