"""Sends requests to one node after the other, as a Kubernetes service does, and skips nodes that are gone."""

from collections.abc import Callable, Sequence

import httpx

CONNECT_S = 2.0


class Spread(httpx.AsyncBaseTransport):
    """`nodes` gives the addresses that are in the service now."""

    def __init__(self, nodes: Callable[[], Sequence[str]]) -> None:
        self._nodes = nodes
        self._next = 0
        unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._inner = httpx.AsyncHTTPTransport(limits=unbounded)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises ConnectError if no node takes a connection; then nothing was sent."""
        nodes = self._nodes()
        request.extensions["timeout"] = {**request.extensions.get("timeout", {}), "connect": CONNECT_S}
        for _ in nodes:
            self._next += 1
            request.url = request.url.copy_with(host=nodes[self._next % len(nodes)])
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        raise httpx.ConnectError("no node takes a connection", request=request)

    async def aclose(self) -> None:
        await self._inner.aclose()
