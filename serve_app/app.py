"""START HERE. A Darkroom server is an ingress, which speaks HTTP, and one deployment of engines per configured entry.

    config -> build_app -> Ingress -> create_api(DiffusionService(RoutingBackend))     one or two processes, no torch
                              |
                              +-> SheddingBackend(ReplayingBackend(RayBackend))        per deployment
                                    -> ModelReplica -> EngineWorker -> Engine          per replica

This module must not use `from __future__ import annotations`: Serve reads `build_app`'s annotation to know that its
arguments are an `AppConfig`, and a string there makes it pass a bare dict without a word.
"""

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from deployments.annotators.spec import AnnotatorSpecs
from deployments.engine.protocol.spec import ModelSpec, UpscalerSpec
from deployments.model_deployment import ModelReplica
from deployments.ray_metrics import Publisher
from deployments.registry import with_known_size
from deployments.serve_log import log_through_serve
from deployments.sharing.spec import SharingSpec
from deployments.weights.local_files import with_local_digest
from serve_app.backends.ray_serve import RayBackend
from serve_app.backends.redis_quarantine import RedisQuarantine
from serve_app.backends.replays import QUARANTINE_SECONDS
from serve_app.backends.routing import route_to
from serve_app.cache.shared_states import sharing_of
from serve_app.config.deployments import DeploymentConfig
from serve_app.config.server import AppConfig
from serve_app.gateway.setup import make_gateway
from serve_app.generation.fingerprint import version_of
from serve_app.observability.logs import LOGGERS, silence_parsers
from serve_app.serving.ingress import Ingress

if TYPE_CHECKING:
    from fastapi import FastAPI


def build_app(config: AppConfig) -> Application:
    """Builds the application that `config` describes, for `serve.run`, `serve run` and RayService manifests."""
    return build_application(config)


def build_application(config: AppConfig, replica: type[ModelReplica] = ModelReplica) -> Application:
    """As `build_app`, with another class of replicas. Apart from it because Serve's builders take one argument only."""
    # What is here is looked at once, for all processes; what only their machines have, they look at themselves.
    specs = [
        tuple(with_local_digest(with_known_size(spec)) for spec in config.specs_of(deployment))
        for deployment in config.deployments
    ]
    annotators = config.annotators.specs()
    upscalers = tuple(upscaler.spec() for upscaler in config.upscalers)
    logs = config.logging.serve_options()
    numerics = config.numerics()
    versions = [version_of(hosted, numerics) for hosted in specs]
    watermark = config.labels.watermark
    method = watermark.method if watermark.enabled else None
    handles = [
        bind_deployment(
            deployment,
            hosted,
            annotators,
            replica,
            logs,
            upscalers,
            method,
            sharing=sharing_of(config, version),
            version=version,
        )
        for deployment, hosted, version in zip(config.deployments, specs, versions, strict=True)
    ]
    ingress: Application = serve.deployment(Ingress, **config.ingress.serve_options(), logging_config=logs).bind(
        partial(create_ingress_api, config), handles, specs, versions
    )
    return ingress


def bind_deployment(
    config: DeploymentConfig,
    specs: tuple[ModelSpec, ...],
    annotators: AnnotatorSpecs,
    replica: type[ModelReplica] = ModelReplica,
    logs: Mapping[str, Any] | None = None,
    upscalers: Sequence[UpscalerSpec] = (),
    watermark_method: str | None = None,
    *,
    sharing: SharingSpec | None = None,
    version: str = "",
) -> Application:
    """Binds a deployment of `replica` that hosts `specs`; `annotators` make hints, `logs` is Serve's logging config,
    `upscalers` enlarge pictures, which `watermark_method` marks. Replicas share states as `sharing` says, and are of
    `version`.
    """
    deployment = serve.deployment(replica, **config.serve_options(), logging_config=dict(logs or {}))
    told = (specs, config.engine_config(), dict(annotators), tuple(upscalers), watermark_method)
    bound: Application = deployment.bind(*told, sharing=sharing, preload=config.preload, version=version)
    return bound


def create_ingress_api(config: AppConfig, deployments: Sequence[RayBackend]) -> "FastAPI":
    """Creates the ASGI application over `deployments`, in the ingress' process."""
    from serve_app.api.application import create_api
    from serve_app.cache.result_cache import ResultCache
    from serve_app.generation.blocklist import Blocklist
    from serve_app.generation.prompts import PromptRules
    from serve_app.generation.templates import with_own
    from serve_app.jobs.local_jobs import LocalJobs
    from serve_app.jobs.redis_jobs import RedisJobs
    from serve_app.jobs.redis_store import RedisJobStore
    from serve_app.labels.labeller import Labeller
    from serve_app.service import DiffusionService
    from serve_app.store.redis import RedisTier
    from serve_app.store.result_files import ResultFiles
    from serve_app.trainings.ray_tasks import create_trainings

    log_through_serve(*LOGGERS, level=config.logging.level)
    silence_parsers()
    redis = None if config.redis is None else RedisTier(config.redis)
    quarantine = None if redis is None else RedisQuarantine(redis, QUARANTINE_SECONDS)
    backend = route_to(deployments, quarantine)
    labeller = Labeller(config.labels, None if redis is None else redis.signing_key("development certificate"))
    setting = {name: {**numerics, "labels": labeller.setting} for name, numerics in config.numerics().items()}
    cache = ResultCache(config.cache, redis, setting)
    templates = with_own([each.template() for each in config.templates])
    blocklist = Blocklist([each.rule() for each in config.blocklist])
    prompts = PromptRules(templates, blocklist, config.embeddings.registry())
    service = DiffusionService(
        backend,
        cache=cache,
        redis=redis,
        prompts=prompts,
        loras=config.loras.catalogue(),
        labeller=labeller,
        upscalers=[upscaler.spec() for upscaler in config.upscalers],
    )
    Publisher(service.samples)
    job_store = None
    if redis is not None:
        jobs = RedisJobs(redis, config.jobs, redis.signing_key("jobs"), uuid.uuid4().hex)
        job_store = RedisJobStore(LocalJobs(config.jobs), jobs)
    return create_api(
        service,
        max_body_bytes=config.ingress.max_body_bytes,
        max_upload_bytes=config.ingress.max_upload_bytes,
        max_uploads_in_flight_bytes=config.ingress.max_uploads_in_flight_bytes,
        log_prompts=config.logging.prompts,
        gateway=make_gateway(config, redis, service.gateway_counts),
        jobs_config=config.jobs,
        job_store=job_store,
        openai=config.openai,
        redis=redis,
        wildcards=config.wildcards,
        result_files=None if config.result_urls is None else ResultFiles(config.result_urls, redis),
        playground=config.playground,
        callbacks=config.callbacks,
        training=create_trainings(config, service.models, blocklist),
    )
