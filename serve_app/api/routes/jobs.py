"""The endpoints for jobs: their state, their results, and their cancellation. A tenant sees only its own."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deployments.engine.protocol.errors import EngineError
from serve_app.api.dependencies import JobsDep
from serve_app.api.exchange import exchange_of
from serve_app.api.principal import principal_of
from serve_app.api.problems import Problem, problem_of
from serve_app.api.responses.event_stream import EventStream, NumberedEvent, read_last_event_id
from serve_app.api.responses.job_schemas import entry_link, job_answer, job_summary
from serve_app.api.responses.large_json import json_response
from serve_app.api.responses.openapi import job_answers
from serve_app.jobs.job import Job

router = APIRouter(prefix="/ads/v2/diffusion/jobs", tags=["jobs"], responses=job_answers())

NO_STORE = {"Cache-Control": "no-store"}


@router.get("")
async def list_jobs(request: Request, jobs: JobsDep) -> JSONResponse:
    """Lists the caller's newest jobs, at most a hundred, newest first, without their results."""
    own = await jobs.of_tenant(principal_of(request).tenant)
    return JSONResponse({"jobs": [job_summary(job) for job in own]}, headers=NO_STORE)


@router.get("/{job_id}")
async def read_job(request: Request, job_id: str, jobs: JobsDep) -> Response:
    """Returns the job's state and its results so far; `images` are links."""
    job = await _find(request, jobs, job_id)
    answer = job_answer(job, await jobs.settlements(job))
    return await json_response(lambda: answer, headers=NO_STORE)


@router.delete("/{job_id}")
async def cancel_job(request: Request, job_id: str, jobs: JobsDep) -> JSONResponse:
    """Cancels the job and keeps its results so far. Has no effect on a finished job, however often it is called."""
    job = await jobs.cancel(job_id, principal_of(request).tenant)
    if job is None:
        raise _job_not_found()
    return JSONResponse(job_answer(job, await jobs.settlements(job)), headers=NO_STORE)


@router.get("/{job_id}/images/{entry}/{image}")
async def read_image(request: Request, job_id: str, entry: int, image: int, jobs: JobsDep) -> Response:
    """Returns one image: image `image` of entry `entry`."""
    job = await _find(request, jobs, job_id)
    images = job.documents.get(entry, {}).get("images", [])
    place = next((place for place, each in enumerate(images) if each["index"] == image), None)
    files = None if place is None else await jobs.files(job, entry)
    if place is None or files is None:
        raise Problem(404, "image_not_found", "there is no such picture, or not yet, or not any more")
    kind = images[place]["format"]
    headers = {
        "Cache-Control": "private, max-age=3600, immutable",
        "Content-Disposition": f'inline; filename="{job.id}-{entry}-{image}.{kind}"',
    }
    return Response(files[place], media_type=f"image/{kind}", headers=headers)


@router.get("/{job_id}/events")
async def follow_job(request: Request, job_id: str, jobs: JobsDep) -> Response:
    """Streams the job: `job`, its state now; each `entry` that has ended, and each as it ends; `progress`; and `done`.

    Entries have ids: a client that reconnects with `Last-Event-ID` gets only the entries after that.
    """
    job = await _find(request, jobs, job_id)
    states = jobs.follow(job.id, job.tenant)
    return EventStream(
        _encode_stream(states, read_last_event_id(request), exchange_of(request.scope).request_id), states
    )


async def _encode_stream(
    states: AsyncGenerator[Job, None], seen: int, request_id: str
) -> AsyncGenerator[NumberedEvent, None]:
    """Encodes a job's states as events, without the first `seen` entries, which the client has had."""
    before: dict[str, Any] = {}
    try:
        async for job in states:
            # The job goes on meanwhile: read its state once, and leave later changes to the next one.
            summary, over = job_summary(job), job.over
            ended = list(enumerate(job.documents.values(), start=1))[seen:]
            if not before:
                yield None, ("job", summary)
            for number, document in ended:
                yield str(number), ("entry", entry_link(job, document))
                seen = number
            moved = {name: summary[name] for name in ("state", "queue_position", "progress")}
            if before and moved != before and not over:
                yield None, ("progress", moved)
            before = moved
            if over:
                yield None, ("done", summary)
                return
    except EngineError as error:
        yield None, ("error", problem_of(error).body(request_id))
        return
    yield None, ("error", _job_not_found().body(request_id))


async def _find(request: Request, jobs: JobsDep, job_id: str) -> Job:
    job = await jobs.find(job_id, principal_of(request).tenant)
    if job is None:
        raise _job_not_found()
    return job


def _job_not_found() -> Problem:
    return Problem(404, "job_not_found", "there is no such job; those that are over are kept for a while only")
