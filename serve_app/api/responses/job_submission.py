"""Submits a batch as a job, and answers with it."""

from collections.abc import Collection, Mapping

from fastapi import Request, Response

from deployments.engine.protocol.params import GenerationParams
from serve_app.api.principal import principal_of
from serve_app.api.problems import Problem, whole_seconds
from serve_app.api.responses.batch_entries import entry_answer
from serve_app.api.responses.job_schemas import job_answer, job_path
from serve_app.api.responses.large_json import json_response, let_others_run
from serve_app.jobs.callbacks import CallbackRequest
from serve_app.jobs.manager import RETRY_S, Jobs, TooManyJobs, TooManyPictures, new_job_id
from serve_app.jobs.pictures import NO_PICTURES, JobPictures

RESPOND_ASYNC = "respond-async"


async def submit_job(
    request: Request,
    jobs: Jobs,
    params: Mapping[int, GenerationParams],
    refused: Mapping[int, Problem],
    callbacks: CallbackRequest | None = None,
    pictures: JobPictures = NO_PICTURES,
    drawn: Collection[int] = (),
) -> Response:
    """Answers 202 with a job of these entries, some of which were `refused` when they were read. Of the `drawn` ones,
    the seed is not the caller's.

    Raises Problem 429, and Overloaded.
    """
    job_id = new_job_id()
    documents = {}
    for index, problem in refused.items():
        documents[index] = entry_answer(index, job_id, problem)
        await let_others_run()
    try:
        job = await jobs.submit(job_id, params, documents, principal_of(request).tenant, callbacks, pictures, drawn)
    except TooManyJobs as error:
        message = f"the limit is {error.limit} unfinished jobs; come back when one is done"
        raise _refusal("unfinished_jobs", message) from None
    except TooManyPictures as error:
        message = f"the pictures of unfinished jobs may have {error.limit} bytes; come back when one is done"
        raise _refusal("unfinished_pictures", message) from None
    headers = {"Location": job_path(job), "Vary": "Accept, Prefer"}
    if prefers_async(request):
        headers["Preference-Applied"] = RESPOND_ASYNC
    answer = job_answer(job, await jobs.settlements(job))
    return await json_response(lambda: answer, 202, headers)


def _refusal(param: str, message: str) -> Problem:
    return Problem(429, "rate_limited", message, param=param, retry_after=whole_seconds(RETRY_S))


def prefers_async(request: Request) -> bool:
    """Whether the Prefer header (RFC 7240) asks for an asynchronous answer."""
    preferences = ",".join(request.headers.getlist("prefer")).split(",")
    return RESPOND_ASYNC in {each.partition(";")[0].strip().lower() for each in preferences}
