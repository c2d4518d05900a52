"""The HTTP deployment. Between clients and it stands Ray's own proxy, with `proxy_headers.py` around it."""

from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.engine.protocol.spec import ModelSpec
from deployments.replica_port import bind_to_loopback
from serve_app.backends.ray_serve import RayBackend, Route


@serve.ingress()
class Ingress:
    """Serves the HTTP API. `create_api` is injected so that it runs, and is imported, in the ingress' process only."""

    def __init__(
        self,
        create_api: Callable[[RayBackend], Any],
        handles: Sequence[DeploymentHandle],
        specs: Sequence[tuple[ModelSpec, ...]],
    ) -> None:
        bind_to_loopback()
        routes = [Route(handle, hosted) for handle, hosted in zip(handles, specs, strict=True)]
        self._backend = RayBackend(routes)
        self._create_api = create_api

    def __serve_build_asgi_app__(self) -> Any:
        return self._create_api(self._backend)
