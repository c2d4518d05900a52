"""Closes Ray's own pages on the proxy's port, `/-/routes` and `/-/healthz`, except to a node's own health probe.

KubeRay requests `/-/healthz` from inside the pod. Everybody else, also through a proxy on the same machine, has
`/livez` and `/readyz`.
"""

from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.middleware.request_id import NOSNIFF, request_id_of
from serve_app.api.problems import http_problem

RAYS_PAGES: Final = "/-/"
PROBED: Final = "/-/healthz"

# A sender of one of these is a proxy for somebody else.
_FORWARDING: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class ProxyPages:
    """Answers 404 for Ray's pages, which reveal what runs here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not f"{path}/".startswith(RAYS_PAGES) or (path == PROBED and _is_probe(scope)):
            await self.app(scope, receive, send)
            return
        problem = http_problem(404, {NOSNIFF[0]: NOSNIFF[1]})
        await problem.response(request_id_of(Headers(scope=scope)))(scope, receive, send)


def _is_probe(scope: Scope) -> bool:
    """Whether the request comes from the node itself, on its own behalf."""
    client, headers = scope.get("client"), Headers(scope=scope)
    if not client or any(name in headers for name in _FORWARDING):
        return False
    try:
        address = ip_address(str(client[0]))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
