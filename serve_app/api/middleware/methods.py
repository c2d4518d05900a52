"""Middleware for HTTP methods (RFC 9110): HEAD and OPTIONS on every path, and 405 for methods that a path lacks."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.exchange import exchange_of
from serve_app.api.parsing.body import close_unread
from serve_app.api.problems import http_problem


class MethodHandling:
    """Answers HEAD as GET without its body, OPTIONS with `Allow`, and methods that no route of a path has with 405."""

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._routes = [route for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self._find_methods(scope) if scope["type"] == "http" else frozenset[str]()
        # The router answers for paths that do not exist.
        if not methods or (scope["method"] in methods and scope["method"] != "HEAD"):
            await self.app(scope, receive, send)
        elif scope["method"] == "HEAD" and "GET" in methods:
            await self._answer_head(scope, receive, send)
        else:
            await self._answer(scope, methods)(scope, receive, send)

    def _answer(self, scope: Scope, methods: frozenset[str]) -> Response:
        unread = close_unread(Headers(scope=scope))
        if scope["method"] == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ", ".join(sorted(methods | {"OPTIONS"})), **unread})
        allow = {"Allow": ", ".join(sorted(methods)), **unread}
        return http_problem(405, allow).response(exchange_of(scope).request_id)

    def _find_methods(self, scope: Scope) -> frozenset[str]:
        """The methods of all routes that match the path; empty if none does."""
        methods: set[str] = set()
        for route in self._routes:
            matched, found = route.matches(scope)
            if matched is not Match.NONE:
                methods |= route.methods or set()
                scope.setdefault("route", found.get("route", route))
        return frozenset(methods | {"HEAD"} if "GET" in methods else methods)

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs GET up to its headers. A stream sees its client disconnect at its first event, and ends."""

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            elif message.get("more_body", False):
                raise ClientDisconnect

        await self.app({**scope, "method": "GET"}, receive, send_headers)
        exchange_of(scope).left = False
