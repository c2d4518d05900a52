"""A1111's endpoints that say how far the caller's own generations are, and that end them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from serve_app.api.a1111.callers import Callers, CallersDep, caller_of
from serve_app.api.a1111.errors import A1111Route
from serve_app.api.a1111.running_jobs import describe_progress
from serve_app.api.a1111.schemas import query_answers
from serve_app.api.dependencies import ServiceDep
from serve_app.api.parsing.base64_pictures import encode_picture
from serve_app.api.principal import principal_of
from serve_app.service import DiffusionService

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"], route_class=A1111Route)

SkipImage = Annotated[bool, Query(description="Leaves out the image as it is.")]


@router.get("/progress", responses=query_answers())
async def progress(request: Request, callers: CallersDep, skip_current_image: SkipImage = False) -> dict[str, Any]:
    """Says how far the caller's oldest generation is; `job_count` is how many it has.

    The image as it is comes with generations that begin within a minute of such a call.
    """
    caller = caller_of(request)
    if not skip_current_image:
        await callers.jobs.note_look(caller)
    jobs = await callers.jobs.read(caller)
    return describe_progress(jobs, encode_picture, picture=not skip_current_image)


@router.post("/interrupt")
async def interrupt(request: Request, service: ServiceDep, callers: CallersDep) -> dict[str, Any]:
    """Ends all of the caller's generations; each is answered with the images that are done."""
    return await _end_jobs(request, service, callers)


@router.post("/skip")
async def skip(request: Request, service: ServiceDep, callers: CallersDep) -> dict[str, Any]:
    """The same as interrupt: the images of a request are made at once, and not one after the other."""
    return await _end_jobs(request, service, callers)


async def _end_jobs(request: Request, service: DiffusionService, callers: Callers) -> dict[str, Any]:
    for job in await callers.jobs.read(caller_of(request)):
        await service.cancel(job.request_id, principal_of(request).tenant)
    return {}
