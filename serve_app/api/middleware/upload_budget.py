"""Middleware that bounds the memory that all uploads in flight take together."""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.engine.protocol.errors import Overloaded
from serve_app.api.exchange import exchange_of
from serve_app.api.parsing.body import CLOSE, content_length_of
from serve_app.api.problems import problem_of

MAX_UPLOADS_IN_FLIGHT_BYTES: Final = 256 * 1024 * 1024


class UploadBudget:
    """Refuses a form, unread, that would exceed the budget for all forms in flight: 503 with Retry-After.

    A form is in flight from its headers to the end of its answer, because its files are kept for a replay. It counts as
    the length that it announces, or else as `largest`, the most that is read of one. So does any body for a path that
    begins with one of `paths`: it may hold files as text.
    """

    def __init__(self, app: ASGIApp, *, largest: int, together: int, paths: tuple[str, ...] = ()) -> None:
        self.app = app
        self._largest, self._together, self._paths = largest, together, paths
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = self._size_of(scope)
        if self._held + size > self._together:
            problem = problem_of(Overloaded("too many uploads are on their way; come back later"))
            problem.headers |= CLOSE
            await problem.response(exchange_of(scope).request_id)(scope, receive, send)
            return
        self._held += size
        try:
            await self.app(scope, receive, send)
        finally:
            self._held -= size

    def _size_of(self, scope: Scope) -> int:
        """The most bytes that the request may come to hold; 0 if it brings no files."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        is_form = headers.get("content-type", "").strip().lower().startswith("multipart/")
        announced = content_length_of(headers)
        has_body = announced is not None or "transfer-encoding" in headers
        if not is_form and not (has_body and scope["path"].startswith(self._paths)):
            return 0
        return self._largest if announced is None else min(announced, self._largest)
