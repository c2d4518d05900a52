"""Replaces the errors that Ray's proxy answers by itself with ours: to a client they all come from one server.

Ray reports in plain text that a request took too long, that there is no ingress, or what broke, sometimes in the words
of an exception; if an ingress died with a request it sends nothing, and uvicorn would answer 500. Our own answers are
recognised by a header that every one of them has.
"""

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.middleware.request_id import NOSNIFF, request_id_of
from serve_app.api.problems import Problem, http_problem, internal_error

log = logging.getLogger(__name__)


class ProxyAnswers:
    """Replaces errors that are not ours, and missing answers, with problems; adds our headers to Ray's others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        request_id = request_id_of(Headers(scope=scope))
        started = replacing = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.setdefault(*NOSNIFF)
                headers.setdefault("Server-Timing", f"total;dur={(time.perf_counter() - begun) * 1000:.1f}")
            await send(message)

        async def replace_errors(message: Message) -> None:
            nonlocal replacing
            if message["type"] == "http.response.start" and _is_rays_error(message):
                replacing = True
                await problem_of_status(message["status"]).response(request_id)(scope, receive, send_with_headers)
            elif not replacing:
                await send_with_headers(message)

        try:
            await self.app(scope, receive, replace_errors)
        except Exception:
            if started:
                raise
            log.exception("request %s: unexpected error of the proxy", request_id)
            await internal_error().response(request_id)(scope, receive, send_with_headers)
            return
        if not started:
            # If the client has disconnected, nothing is sent.
            await ingress_lost().response(request_id)(scope, receive, send_with_headers)


def ingress_lost() -> Problem:
    """The answer if the ingress's process ended before it answered."""
    message = "the process that had this request has ended; another takes its place: ask again"
    return Problem(503, "ingress_lost", message, retry_after=2)


def problem_of_status(status: int) -> Problem:
    """The problem that corresponds to a status of Ray's."""
    match status:
        case 404:
            # The ingress matches every path, so there is no ingress: not yet, or no longer.
            return Problem(503, "not_ready", "the server is starting or ending; come back later", retry_after=2)
        case 405:
            return http_problem(status, None)
        case 408:
            # Ray's own timeout; 408 would tell clients that they were slow, and to retry at once.
            return Problem(504, "timeout", "the request took longer than this server allows")
        case 429 | 503:
            return Problem(503, "overloaded", "the server cannot take the request now; come back later", retry_after=2)
    return internal_error()


def _is_rays_error(start: Message) -> bool:
    return start["status"] >= 400 and NOSNIFF[0] not in Headers(raw=start["headers"])
