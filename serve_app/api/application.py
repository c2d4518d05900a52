"""The HTTP application over a service: wiring only. It imports no Ray, and any ASGI server can serve it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Scope

from deployments.engine.protocol.errors import EngineError
from serve_app.api.a1111.callers import create_callers
from serve_app.api.a1111.routes import controlnet, extras, progress, settings
from serve_app.api.a1111.routes import images as a1111_images
from serve_app.api.exchange import CLIENT_LEFT, exchange_of
from serve_app.api.garbage_collection import tune_garbage_collector
from serve_app.api.huggingface import images as huggingface_images
from serve_app.api.middleware.access_log import AccessLog
from serve_app.api.middleware.authentication import Authentication
from serve_app.api.middleware.host_check import HostCheck
from serve_app.api.middleware.memory import MemoryRelease
from serve_app.api.middleware.methods import MethodHandling
from serve_app.api.middleware.rate_limiting import RateLimiting
from serve_app.api.middleware.request_id import RequestId
from serve_app.api.middleware.upload_budget import MAX_UPLOADS_IN_FLIGHT_BYTES, UploadBudget
from serve_app.api.openai import images, models
from serve_app.api.openai.errors import translate
from serve_app.api.parsing.body import MAX_BODY_BYTES
from serve_app.api.parsing.forms import MAX_UPLOAD_BYTES
from serve_app.api.parsing.validation import fault_of, problem_of_faults
from serve_app.api.playground import pages
from serve_app.api.problems import Problem, http_problem, problem_of
from serve_app.api.reference import pages as reference
from serve_app.api.responses.batch_entries import entry_document
from serve_app.api.routes import (
    batches,
    cache,
    cancel,
    conditioning,
    generate,
    jobs,
    metadata,
    operations,
    results,
    style_transfers,
    trainings,
    upscale,
    verify,
)
from serve_app.callbacks.callbacks import Callbacks
from serve_app.config.callbacks import CallbacksConfig
from serve_app.config.sections import IdempotencyConfig, JobsConfig, OpenAIConfig, PlaygroundConfig
from serve_app.gateway.idempotency import Idempotency
from serve_app.gateway.setup import Gateway
from serve_app.generation.dynamic_prompts import NO_WILDCARDS, Wildcards
from serve_app.jobs.local_jobs import LocalJobs
from serve_app.jobs.manager import Jobs
from serve_app.jobs.memory_store import MemoryJobStore
from serve_app.jobs.store import JobStore
from serve_app.labels.verification import Verifier
from serve_app.observability.versions import darkroom_version
from serve_app.service import DiffusionService
from serve_app.store.redis import RedisTier
from serve_app.store.result_files import ResultFiles
from serve_app.trainings.manager import Trainings

log = logging.getLogger(__name__)

DEFAULT_JOBS: Final = JobsConfig()
DEFAULT_OPENAI: Final = OpenAIConfig()
DEFAULT_PLAYGROUND: Final = PlaygroundConfig()
OPEN_GATEWAY: Final = Gateway()

_ROUTERS: Final = (
    generate.router,
    conditioning.router,
    batches.router,
    style_transfers.router,
    jobs.router,
    cancel.router,
    metadata.router,
    upscale.router,
    verify.router,
    trainings.router,
    cache.router,
    operations.router,
    images.router,
    models.router,
    a1111_images.router,
    progress.router,
    settings.router,
    settings.page_router,
    extras.router,
    controlnet.router,
    huggingface_images.router,
    results.router,
    reference.router,
)

# Their JSON bodies hold pictures.
_JSON_UPLOADS: Final = ("/sdapi/", "/controlnet/", "/hf/", "/ads/v2/diffusion/style-transfers")

DESCRIPTION = "Stable Diffusion images, batched at the level of single denoising steps."


def create_api(
    service: DiffusionService,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
    max_uploads_in_flight_bytes: int = MAX_UPLOADS_IN_FLIGHT_BYTES,
    log_prompts: bool = False,
    gateway: Gateway = OPEN_GATEWAY,
    jobs_config: JobsConfig = DEFAULT_JOBS,
    job_store: JobStore | None = None,
    openai: OpenAIConfig = DEFAULT_OPENAI,
    redis: RedisTier | None = None,
    wildcards: Wildcards = NO_WILDCARDS,
    result_files: ResultFiles | None = None,
    playground: PlaygroundConfig = DEFAULT_PLAYGROUND,
    callbacks: CallbacksConfig | None = None,
    training: Trainings | None = None,
) -> FastAPI:
    """Returns the HTTP application over `service`, which whoever created it also closes.

    A JSON body may have at most `max_body_bytes`, a form with its files `max_upload_bytes`, and all forms still being
    answered `max_uploads_in_flight_bytes` together.
    `serve_app.api.middleware.access_log` logs each request as one line, with its prompt if `log_prompts`.
    `gateway` decides who may ask for how much. Jobs are kept in `job_store`, or in this process without one. `openai`
    is for the endpoints under `/v1`, `playground` for the page at `/`. `callbacks` says whether jobs may have webhooks
    and uploads; these, and what is kept for the callers of A1111's endpoints, are in `redis`, or in this process.
    `training` are the trainings of LoRAs; without it nobody can have one.
    """
    app = FastAPI(
        title="Darkroom",
        description=DESCRIPTION,
        version=darkroom_version(),
        lifespan=_lifespan,
        redirect_slashes=False,
        # Our own, which asks nobody but this server.
        docs_url=None,
        redoc_url=None,
        # Its log records of validation errors would contain callers' input. Spans and metrics do not.
        telemetry={"logs": False},
        # Checks nothing itself: it makes the documentation pages offer to enter a key.
        dependencies=[] if gateway.keys is None else [Depends(HTTPBearer(auto_error=False))],
    )
    app.state.service = service
    app.state.verifier = Verifier(service.labeller)
    store = job_store or MemoryJobStore(LocalJobs(jobs_config))
    counts = service.callback_counts
    listener = None if callbacks is None else Callbacks(callbacks, jobs_config, store, redis, counts)
    app.state.callbacks = listener
    app.state.jobs = Jobs(service, jobs_config, entry_document, store, listener=listener)
    app.state.trainings = training
    app.state.max_body_bytes = max_body_bytes
    app.state.max_upload_bytes = max_upload_bytes
    app.state.retired_models = openai.retired_models
    app.state.wildcards = wildcards
    app.state.result_files = result_files
    app.state.a1111_callers = create_callers(redis)
    app.state.idempotency = gateway.idempotency or Idempotency(IdempotencyConfig(), None, service.gateway_counts)
    routers = (*_ROUTERS, pages.router) if playground.enabled else _ROUTERS
    for router in routers:
        app.include_router(router)
    documentation = [route for route in app.routes if isinstance(route, Route)]
    app.add_middleware(
        MethodHandling, routes=[*documentation, *(route for router in routers for route in router.routes)]
    )
    budget = {"largest": max_upload_bytes, "together": max_uploads_in_flight_bytes}
    app.add_middleware(UploadBudget, **budget, paths=_JSON_UPLOADS)
    # Each wraps those before it. In order of execution: host, key, limits, room for uploads.
    if gateway.limits is not None:
        app.add_middleware(RateLimiting, limits=gateway.limits, translate=_translate_refusal)
    if gateway.keys is not None:
        app.add_middleware(Authentication, keys=gateway.keys)
    if gateway.hosts is not None:
        app.add_middleware(HostCheck, hosts=gateway.hosts)
    app.add_middleware(MemoryRelease)
    app.add_middleware(RequestId)
    app.add_middleware(AccessLog, prompts=log_prompts)
    app.add_exception_handler(EngineError, _answer_engine_error)
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid_query)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_client_left)
    return app


def _translate_refusal(scope: Scope, problem: Problem) -> Problem:
    """Puts what is refused before it has come to its endpoint into the words of that endpoint's clients."""
    return translate(problem) if scope["path"].startswith("/v1/") else problem


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    await app.state.service.start()
    app.state.jobs.start()
    if app.state.callbacks is not None:
        app.state.callbacks.start()
    # Generated and cached now: it takes a while, and would hold up all others at the first request for it.
    app.openapi()
    tune_garbage_collector()
    yield
    if app.state.trainings is not None:
        await asyncio.to_thread(app.state.trainings.stop)
    await app.state.jobs.stop()
    if app.state.callbacks is not None:
        await app.state.callbacks.stop()


async def _answer_engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    problem = problem_of(error)
    if problem.status >= 500:
        log.warning("request %s: %s", exchange_of(request.scope).request_id, error.message)
    return problem.response(exchange_of(request.scope).request_id)


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(exchange_of(request.scope).request_id)


async def _answer_invalid_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # FastAPI puts the location, "query", before the name.
    faults = tuple(fault_of({**detail, "loc": detail["loc"][1:]}, "?{}") for detail in error.errors())
    return problem_of_faults(faults, len(faults)).response(exchange_of(request.scope).request_id)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return http_problem(error.status_code, error.headers).response(exchange_of(request.scope).request_id)


async def _answer_client_left(_request: Request, _: Exception) -> Response:
    # Nobody receives this answer.
    return Response(status_code=CLIENT_LEFT)
