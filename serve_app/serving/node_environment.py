"""Settings that Ray reads from every node's environment, before any configuration of ours can reach it."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from serve_app.serving.import_path import SAFE_PATH

HEAD_TIMEOUT_VARIABLE: Final = "DARKROOM_HEAD_TIMEOUT_S"
HEAD_TIMEOUT_S: Final = 10.0

# `darkroom serve` sets these for its own cluster. Where nodes are started by `ray start`, they belong in the
# environment of that command, on every node: Serve's controller and proxies get theirs from there.
NODE_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.serving.proxy_headers:middlewares",
        # A replica that hangs cannot drain; it would only keep its callers waiting for the whole grace period.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # HAProxy would replace Ray's own proxy, and with it the layer around that.
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        # uvicorn would let any local client claim another address.
        "FORWARDED_ALLOW_IPS": "none",
        # The time that a request's head may take (`http_protocol.py`).
        HEAD_TIMEOUT_VARIABLE: f"{HEAD_TIMEOUT_S:g}",
        **SAFE_PATH,
        "OMP_WAIT_POLICY": "passive",
    }
)


def read_head_timeout_s() -> float:
    """Reads how long a head may take, or the rest of a body after its answer. Raises ValueError if it is invalid."""
    value = os.environ.get(HEAD_TIMEOUT_VARIABLE, str(HEAD_TIMEOUT_S))
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ValueError(f"{HEAD_TIMEOUT_VARIABLE} must be seconds, more than 0 and at most 3600")
    return seconds
