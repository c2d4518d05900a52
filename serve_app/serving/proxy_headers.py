"""The outer layer around Ray Serve's HTTP proxy: keeps clients' headers from steering anything but our application.

Ray's proxy obeys request headers before any other code of ours runs: how long a request may take, that a disconnect is
to be ignored, which replica to use. With tracing on, it breaks on trace headers that are not text. And it marks every
answer with a request id of its own, next to ours. Ray calls `middlewares` in the proxy's process, where
`node_environment.NODE_ENVIRONMENT` was set when the node was started; it also installs the protocol below these layers
(`http_protocol.py`).
"""

from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serve_app.api.middleware.request_id import request_id_of
from serve_app.api.trace import HEADER, named_trace_id
from serve_app.serving.node_environment import read_head_timeout_s
from serve_app.serving.proxy_errors import ProxyAnswers
from serve_app.serving.proxy_pages import ProxyPages

PROTOCOL: Final = "serve_app.serving.http_protocol:BoundedProtocol"

# As Ray compares them: lower case, and `-` counts as `_`.
RAYS_OWN = frozenset(
    (
        "x_request_timeout_seconds",  # replaces `ingress.request_timeout_s`; 0 lifts it
        "x_request_disconnect_disabled",  # ?1: the proxy ignores a disconnect
        "serve_multiplexed_model_id",  # prefers a replica
        "x_session_id",  # prefers a replica
    )
)
_REPLACED = RAYS_OWN | {"x_request_id"}
_TRACE = frozenset((HEADER, "tracestate"))


class ProxyHeaders:
    """Drops the headers in `RAYS_OWN` from requests, and malformed trace headers.

    Gives each request one valid id, and its answer the same, once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope)
        request_id = request_id_of(given)
        dropped = _REPLACED if _is_traceable(given) else _REPLACED | _TRACE
        kept = [(name, value) for name, value in scope["headers"] if _normalise_name(name) not in dropped]
        headers = [*kept, (b"x-request-id", request_id.encode())]

        async def send_with_request_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        await self.app({**scope, "headers": headers}, receive, send_with_request_id)


def middlewares() -> list[Middleware]:
    """The layers, for Ray's `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`. Raises ValueError if the environment is wrong.

    Ray's next server takes whatever uvicorn has registered as `auto`, and has no setting for it.
    """
    read_head_timeout_s()
    HTTP_PROTOCOLS["auto"] = PROTOCOL
    return [Middleware(ProxyPages), Middleware(ProxyAnswers), Middleware(ProxyHeaders)]


def _normalise_name(name: bytes) -> str:
    return name.decode("latin-1").lower().replace("-", "_")


def _is_traceable(given: Headers) -> bool:
    """Whether the trace headers name a trace, and Ray can read them."""
    texts = given.getlist(HEADER) + given.getlist("tracestate")
    return named_trace_id(given) is not None and all(text.isascii() for text in texts)
