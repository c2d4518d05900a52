"""A layer around Ray Serve's HTTP proxy: what clients send reaches our application, and steers nothing of Ray's.

Ray's proxy takes orders from request headers before any other code of ours runs: how long a request may take, that its
caller's leaving shall not be noticed, which replica it goes to. And it marks every answer with a request id of its own,
beside ours. Ray calls `middlewares` in the proxy's process, where `ray_environment.NODE_ENVIRONMENT` was set when the
node was started.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.request_id import request_id_of

# As Ray compares them: lower case, and `-` counts as `_`.
RAYS_OWN = frozenset(
    (
        "x_request_timeout_seconds",  # replaces `ingress.request_timeout_s`; 0 lifts it
        "x_request_disconnect_disabled",  # ?1: the proxy does not look whether the caller leaves
        "serve_multiplexed_model_id",  # prefers a replica
        "x_session_id",  # prefers a replica
    )
)


class ProxyHeaders:
    """Drops the headers in `RAYS_OWN` from requests; gives each one good request id, and its answer the same, once."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        kept = [(name, value) for name, value in scope["headers"] if not _is_dropped(name)]
        headers = [*kept, (b"x-request-id", request_id.encode())]

        async def send_marked_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app({**scope, "headers": headers}, receive, send_marked_once)


def middlewares() -> list[Middleware]:
    """For Ray's `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(ProxyHeaders)]


def _is_dropped(name: bytes) -> bool:
    plain = name.decode("latin-1").lower().replace("-", "_")
    return plain in RAYS_OWN or plain == "x_request_id"
