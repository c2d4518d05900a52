"""Middleware that refuses requests meant for other servers or sent by other sites' pages (`gateway/hosts.py`)."""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.exchange import exchange_of
from serve_app.api.parsing.body import close_unread
from serve_app.api.problems import Problem
from serve_app.gateway.hosts import AllowedHosts, is_own_origin

PROBES: Final = frozenset(("/livez", "/readyz", "/ads/v2/diffusion/health"))
"""Requested by the address of a pod or machine, which no configuration knows. The answers are no secret."""


LINKED: Final = "/"
"""The playground, which other sites' pages may link to."""


class HostCheck:
    """Answers 421 to requests for other hosts, and 403 to those from other sites' pages if `hosts` checks origins.

    It refuses before any of the body is read.
    """

    def __init__(self, app: ASGIApp, *, hosts: AllowedHosts) -> None:
        self.app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            problem = self._find_problem(scope["path"], headers)
            if problem is not None:
                problem.headers |= close_unread(headers)
                await problem.response(exchange_of(scope).request_id)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _find_problem(self, path: str, headers: Headers) -> Problem | None:
        # Every browser sends Host; HTTP/1.0 clients need not.
        host = ",".join(headers.getlist("host"))
        if host and path not in PROBES and not self._hosts.is_allowed_host(host):
            message = "this server is not served under that Host; its operator names others under `ingress.hosts`"
            return Problem(421, "unknown_host", message)
        if not self._hosts.checks_origins:
            return None
        message = "this server takes no requests from other sites' pages"
        origins = headers.getlist("origin")
        if len(origins) == 1 and self._hosts.is_allowed_origin(origins[0]):
            return None
        if len(origins) > 1 or not all(is_own_origin(origin, host) for origin in origins):
            return Problem(403, "foreign_origin", message)
        # Browsers send it without Origin too: for images, links, and forms that use GET. A link may lead to the page
        # for people: opening it changes nothing, and it lets itself be framed by nobody.
        if path == LINKED and headers.get("sec-fetch-dest", "").lower() == "document":
            return None
        if "cross-site" in ",".join(headers.getlist("sec-fetch-site")).lower():
            return Problem(403, "cross_site_request", message)
        return None
