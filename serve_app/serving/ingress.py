"""The HTTP deployment. Clients reach it through Ray's own proxy, which `proxy_headers.py` wraps."""

from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.engine.protocol.spec import ModelSpec
from deployments.replica_port import bind_to_loopback
from deployments.weights.local_files import with_local_digest
from serve_app.backends.ray_serve import RayBackend


@serve.ingress()
class Ingress:
    """Serves the HTTP API. `create_api` is injected so that it is imported and run in the ingress's process only."""

    def __init__(
        self,
        create_api: Callable[[Sequence[RayBackend]], Any],
        handles: Sequence[DeploymentHandle],
        specs: Sequence[tuple[ModelSpec, ...]],
        versions: Sequence[str],
    ) -> None:
        bind_to_loopback()
        described = [tuple(with_local_digest(spec) for spec in hosted) for hosted in specs]
        self._backends = [RayBackend(*each) for each in zip(handles, described, versions, strict=True)]
        self._create_api = create_api

    def __serve_build_asgi_app__(self) -> Any:
        return self._create_api(self._backends)
