"""The HTTP application over a service. It only wires; it knows no Ray and can be served by any ASGI server."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from deployments.engine.errors import EngineError
from serve_app.api import doors, listings, ops
from serve_app.api.body import MAX_BODY_BYTES
from serve_app.api.errors import Problem, http_problem, problem_of
from serve_app.api.forms import MAX_UPLOAD_BYTES
from serve_app.api.request_id import RequestIdMiddleware
from serve_app.api.upload_budget import MAX_UPLOADS_IN_FLIGHT_BYTES, UploadBudget
from serve_app.api.validation import fault_of, invalid
from serve_app.service import DiffusionService

log = logging.getLogger(__name__)

DESCRIPTION = "Stable Diffusion images, batched at the level of single denoising steps."

# What nginx logs for it. The answer reaches nobody.
CLIENT_LEFT = 499


def create_api(
    service: DiffusionService,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_upload_bytes: int = MAX_UPLOAD_BYTES,
    max_uploads_in_flight_bytes: int = MAX_UPLOADS_IN_FLIGHT_BYTES,
) -> FastAPI:
    """The application. A JSON body may have at most `max_body_bytes`, a form with its files `max_upload_bytes`.

    All forms that have not been answered yet may have `max_uploads_in_flight_bytes` together.
    Whoever made `service` closes it.
    """
    app = FastAPI(
        title="Darkroom",
        description=DESCRIPTION,
        version=_version(),
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.max_body_bytes = max_body_bytes
    app.state.max_upload_bytes = max_upload_bytes
    app.include_router(doors.router)
    app.include_router(listings.router)
    app.include_router(ops.router)
    app.add_middleware(UploadBudget, largest=max_upload_bytes, together=max_uploads_in_flight_bytes)
    app.add_middleware(RequestIdMiddleware)
    app.add_exception_handler(EngineError, _engine_error)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid_query)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_left)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    await app.state.service.start()
    yield


async def _engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    problem = problem_of(error)
    if problem.status >= 500:
        log.warning("request %s: %s", request.state.request_id, error.message)
    return problem.response(request.state.request_id)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response(request.state.request_id)


async def _invalid_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # FastAPI puts where it looked, "query", before the name.
    faults = tuple(fault_of({**detail, "loc": detail["loc"][1:]}, "?{}") for detail in error.errors())
    return invalid(faults).response(request.state.request_id)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return http_problem(error.status_code, error.headers).response(request.state.request_id)


async def _client_left(request: Request, _: Exception) -> Response:
    log.info("request %s: the client left", request.state.request_id)
    return Response(status_code=CLIENT_LEFT)


def _version() -> str:
    try:
        return version("darkroom")
    except PackageNotFoundError:
        return "0"
