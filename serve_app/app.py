"""START HERE. A Darkroom server is an ingress, which speaks HTTP, and one deployment of engines per configured entry.

    config -> build_app -> Ingress -> create_api(DiffusionService(HandleBackend))     one or two processes, no torch
                              |
                              +-> ModelReplica -> EngineWorker -> Engine              per deployment, per replica

This module must not use `from __future__ import annotations`: Serve reads `build_app`'s annotation to know that its
arguments are an `AppConfig`, and a string there makes it pass a bare dict without a word.
"""

from functools import partial
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.annotators.spec import AnnotatorSpecs
from deployments.engine.spec import ModelSpec
from deployments.model_deployment import ModelReplica
from deployments.ray_metrics import Publisher
from serve_app.config import AppConfig
from serve_app.deployment_config import DeploymentConfig
from serve_app.ingress import HandleBackend, Ingress
from serve_app.local_backend import sized


def build_app(config: AppConfig) -> Application:
    """The application that `config` describes, for `serve.run`, `serve run` and RayService manifests."""
    return application(config)


def application(config: AppConfig, replica: type[ModelReplica] = ModelReplica) -> Application:
    """As `build_app`, of replicas of one's own. Apart from it because Serve's builders may take one argument only."""
    specs = [tuple(sized(spec) for spec in config.specs_of(deployment)) for deployment in config.deployments]
    annotators = config.annotators.specs()
    handles = [
        model_deployment(deployment, hosted, annotators, replica)
        for deployment, hosted in zip(config.deployments, specs, strict=True)
    ]
    ingress: Application = serve.deployment(Ingress, **config.ingress.serve_options()).bind(
        partial(api_over, config), handles, specs
    )
    return ingress


def model_deployment(
    config: DeploymentConfig,
    specs: tuple[ModelSpec, ...],
    annotators: AnnotatorSpecs,
    replica: type[ModelReplica] = ModelReplica,
) -> Application:
    """One deployment of `replica`, hosting `specs`, with `annotators` for their hints."""
    options = config.engine_options() | {"annotators": dict(annotators)}
    bound: Application = serve.deployment(replica, **config.serve_options()).bind(specs, **options)
    return bound


def api_over(config: AppConfig, backend: HandleBackend) -> Any:
    """The ASGI application over `backend`, in the ingress' process."""
    from serve_app.api.application import create_api
    from serve_app.service import DiffusionService

    service = DiffusionService(backend)
    Publisher(service.samples)
    return create_api(service, **config.ingress.api_options())
