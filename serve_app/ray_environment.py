"""What Ray reads from the environment of every node, before any configuration of ours can reach it."""

from collections.abc import Mapping
from types import MappingProxyType

# `darkroom serve` sets these for its own cluster. Where nodes are started by `ray start`, they belong into the
# environment of that command, on every node: Serve's controller and proxies get theirs from there.
NODE_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.proxy_headers:middlewares",
        # A replica that hangs cannot drain: asked to, it would keep its callers for all of the grace period.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # HAProxy would take the place of Ray's own proxy, and of the layer around it.
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        # uvicorn would let whoever connects from this machine say which address it comes from.
        "FORWARDED_ALLOW_IPS": "none",
        "OMP_WAIT_POLICY": "passive",
    }
)
