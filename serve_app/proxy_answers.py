"""Answers that Ray's proxy gives by itself, in the shape of ours: to a client they all come from one server.

Ray says in plain text that a request took too long, that no ingress is there, or what broke, sometimes in the words of
an exception. Ours are told apart by a header that every one of them has.
"""

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import Problem, http_problem, internal_error
from serve_app.api.request_id import NOSNIFF, request_id_of


class ProxyAnswers:
    """Puts a problem in the place of every error that is not ours, and our headers on whatever else Ray answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        replacing = False

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault(*NOSNIFF)
                headers.setdefault("Server-Timing", f"total;dur={(time.perf_counter() - begun) * 1000:.1f}")
            await send(message)

        async def send_ours(message: Message) -> None:
            nonlocal replacing
            if message["type"] == "http.response.start" and _is_rays_error(message):
                replacing = True
                answer = problem_for(message["status"]).response(request_id_of(Headers(scope=scope)))
                await answer(scope, receive, send_marked)
            elif not replacing:
                await send_marked(message)

        await self.app(scope, receive, send_ours)


def problem_for(status: int) -> Problem:
    """What Ray means by that status."""
    match status:
        case 404 | 405:
            return http_problem(status, None)
        case 408:
            # Ray's word for its own patience; 408 would tell clients that they were slow, and to repeat it at once.
            return Problem(504, "timeout", "the request took longer than this server allows")
        case 429 | 503:
            return Problem(503, "overloaded", "the server cannot take the request now; come back later", retry_after=2)
    return internal_error()


def _is_rays_error(start: Message) -> bool:
    return start["status"] >= 400 and NOSNIFF[0] not in Headers(raw=start["headers"])
