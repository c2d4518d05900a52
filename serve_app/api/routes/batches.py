"""The endpoint for many requests at once: answered together, one by one in a stream, or later, as a job."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field, ValidationError

from deployments.engine.protocol.errors import BlockedPrompt, EngineError, InvalidParameter
from deployments.engine.protocol.fields import normalise_fields
from deployments.engine.protocol.params import GenerationParams, Priority
from serve_app.api.dependencies import JobsDep, ServiceDep
from serve_app.api.exchange import exchange_of
from serve_app.api.middleware.rate_limiting import charge, charge_refused
from serve_app.api.parsing.body import read_json_object
from serve_app.api.parsing.callbacks import CallbackFields, read_callbacks
from serve_app.api.parsing.negotiation import EVENTS, JSON, negotiate
from serve_app.api.parsing.reference_images import take_references
from serve_app.api.parsing.validation import MAX_FAULTS, problem_of_errors, validate_params
from serve_app.api.principal import principal_of
from serve_app.api.problems import Fault, Problem, pointer_to, problem_of
from serve_app.api.responses import openapi
from serve_app.api.responses.batch_entries import count_entries, entry_answer
from serve_app.api.responses.cache_headers import apply_cache_control, read_cache_control
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.event_stream import EventStream, number_events
from serve_app.api.responses.idempotency import refuse_key, run_once
from serve_app.api.responses.job_submission import prefers_async, submit_job
from serve_app.api.responses.large_json import json_response, let_others_run
from serve_app.api.responses.stream_events import NamedEvent
from serve_app.config.sections import JobsConfig
from serve_app.generation.expansion import ExpandedEntry, Expansion, expand
from serve_app.generation.uploads import check_references
from serve_app.jobs.batch import Batch, Outcome
from serve_app.jobs.callbacks import CallbackRequest
from serve_app.jobs.pictures import NO_PICTURES, JobPictures, pictures_of

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])


class BatchBody(CallbackFields):
    """`priority` and `deadline_ms` apply to entries without their own. Entries are validated one by one.

    With `expand` each of `requests` stands for several entries. With callbacks it becomes a job. Besides these fields
    it may have `reference_images`, which are taken out before.
    """

    requests: list[Any] = Field(min_length=1)
    expand: Expansion | None = None
    priority: Priority | None = None
    deadline_ms: int | None = Field(default=None, ge=1, le=3_600_000)


@dataclass(frozen=True, slots=True)
class BatchEntries:
    """The entries by index: the valid ones' parameters, and the problems of the others; what its caller asks to be
    called back about, and the reference images that all entries take after. Of the `drawn` ones, the seed in their
    parameters is not the caller's.
    """

    params: dict[int, GenerationParams]
    refused: dict[int, Problem]
    callbacks: CallbackRequest | None = None
    pictures: JobPictures = NO_PICTURES
    drawn: frozenset[int] = frozenset()

    @property
    def images(self) -> int:
        return sum(params.num_images for params in self.params.values())


@router.post(
    "/batch-generate",
    openapi_extra=openapi.extra_of(openapi.batch_body()),
    responses=openapi.batch_answers(),
)
async def batch_generate(request: Request, service: ServiceDep, jobs: JobsDep) -> Response:
    """Makes the images of many requests, which share UNet calls as far as possible.

    Each entry of `requests` takes what text-to-image takes, and has its own `status`: one that fails leaves the others
    alone. `reference_images` are the batch's: all entries take after them. Equal entries are made once. The answer
    comes when all are done; with `Accept: text/event-stream` each `entry` comes as soon as it is done; with `Prefer:
    respond-async`, a webhook or uploads, or if the batch is too large to wait for, it becomes a job. A client that
    disconnects cancels the unfinished entries, except those of jobs.
    """
    media_type = negotiate(request, [JSON, EVENTS])
    body = await read_json_object(request, request.app.state.max_body_bytes)
    try:
        references = await take_references(body)
        await asyncio.to_thread(check_references, references)
        batch_entries, preferred = await read_batch(request, body, jobs.config), prefers_async(request)
        batch_entries = replace(batch_entries, pictures=pictures_of(references=references))
        await _refuse_blocked(service, batch_entries)
    except (Problem, InvalidParameter):
        await charge_refused(request, min(_count_entries_in(body), jobs.config.max_entries))
        raise
    asked_back = batch_entries.callbacks is not None
    later = preferred or asked_back or batch_entries.images > jobs.config.sync_images
    if media_type == EVENTS and not later:
        refuse_key(request)
        await _charge(request, service, batch_entries)
        outcomes, name = (
            _start_batch(request, service, jobs.config, batch_entries),
            exchange_of(request.scope).request_id,
        )
        return EventStream(number_events(_encode_stream(name, batch_entries, outcomes), name), outcomes)

    async def work() -> Response:
        await _charge(request, service, batch_entries)
        if later:
            return await submit_job(
                request,
                jobs,
                batch_entries.params,
                batch_entries.refused,
                batch_entries.callbacks,
                batch_entries.pictures,
                batch_entries.drawn,
            )
        return await _answer_whole(request, batch_entries, _start_batch(request, service, jobs.config, batch_entries))

    return await run_once(request, {"later": later, "body": body}, references, work)


async def read_batch(request: Request, body: dict[str, Any], config: JobsConfig) -> BatchEntries:
    """Validates the entries in `body`, with the caller's permissions applied.

    Raises Problem if the batch itself is wrong or too large.
    """
    # Before any is validated: there may be hundreds of thousands.
    _check_size(_count_entries_in(body), config.max_entries, "entries")
    try:
        batch = BatchBody.model_validate(body)
    except ValidationError as error:
        raise problem_of_errors(error, known=set(BatchBody.model_fields)) from None
    entries, drawn = batch.requests, frozenset[int]()
    if batch.expand is not None:
        expanded = await asyncio.to_thread(_expand, batch.requests, batch.expand, request, config.max_entries)
        entries = [each.fields for each in expanded]
        drawn = frozenset(index for index, each in enumerate(expanded) if each.seed_drawn)
    defaults = batch.model_dump(include={"priority", "deadline_ms"}, exclude_none=True)
    batch_entries = BatchEntries({}, {}, drawn=drawn)
    # The first faults are reported in full; of the entries after them only each one's first fault.
    room = MAX_FAULTS
    use = read_cache_control(request)
    for index, entry in enumerate(entries):
        fields = defaults | normalise_fields(entry, GenerationParams) if isinstance(entry, dict) else entry
        params = validate_params(fields, max(1, room), hints=room > 0)
        if isinstance(params, Problem):
            batch_entries.refused[index] = params
            room -= len(params.faults)
        else:
            try:
                batch_entries.params[index] = apply_cache_control(principal_of(request).permitted(params), use)
            except Problem as problem:
                batch_entries.refused[index] = problem.with_traceback(None)
        await let_others_run()
    _check_size(batch_entries.images, config.max_images, "images")
    if not batch.asks_for_callbacks:
        return batch_entries
    images = {index: params.num_images for index, params in batch_entries.params.items()}
    base, offered = str(request.base_url), request.app.state.callbacks
    # In a thread: there may be thousands of addresses.
    callbacks = await asyncio.to_thread(read_callbacks, batch, offered, images, len(entries), base)
    return replace(batch_entries, callbacks=callbacks)


async def _refuse_blocked(service: ServiceDep, batch_entries: BatchEntries) -> None:
    """Moves the entries whose prompts are blocked to the refused ones. Other mistakes show when they are prepared."""
    for index, params in list(batch_entries.params.items()):
        try:
            service.prompts.write(params)
        except BlockedPrompt as error:
            batch_entries.refused[index] = problem_of(error)
            del batch_entries.params[index]
        except InvalidParameter:
            continue
        await let_others_run()


def _expand(requests: list[Any], expansion: Expansion, request: Request, most: int) -> list[ExpandedEntry]:
    """Returns the entries that the requests stand for. Raises Problem for more than `most`, and InvalidParameter."""
    expanded = expand(requests, expansion, request.app.state.wildcards, most)
    if isinstance(expanded, int):
        _check_size(expanded, most, "entries")
        return []
    return list(expanded)


def _count_entries_in(body: dict[str, Any]) -> int:
    entries = body.get("requests")
    return len(entries) if isinstance(entries, list) else 1


def _check_size(count: int, limit: int, what: str) -> None:
    if count > limit:
        message = f"a batch may have at most {limit} {what}"
        fault = Fault(pointer_to("requests"), "batch_too_large", message)
        raise Problem(422, "batch_too_large", message, param="requests", faults=(fault,))


async def _charge(request: Request, service: ServiceDep, batch_entries: BatchEntries) -> None:
    """Charges for the entries that can be made, and for having read the others, which report their own errors."""
    ready = []
    for index, params in batch_entries.params.items():
        with suppress(EngineError):
            uploads = batch_entries.pictures.uploads_of(index)
            drawn = index in batch_entries.drawn
            ready.append(await service.prepare(params, uploads=uploads, for_images=False, seed_drawn=drawn))
        await let_others_run()
    await charge_refused(request, len(batch_entries.refused))
    await charge(request, *ready)


def _start_batch(
    request: Request, service: ServiceDep, config: JobsConfig, batch_entries: BatchEntries
) -> AsyncGenerator[tuple[int, Outcome], None]:
    name, tenant = exchange_of(request.scope).request_id, principal_of(request).tenant
    return Batch(
        service,
        batch_entries.params,
        name=name,
        tenant=tenant,
        in_flight=config.in_flight,
        pictures=batch_entries.pictures,
        drawn=batch_entries.drawn,
    ).outcomes()


async def _answer_whole(
    request: Request, batch_entries: BatchEntries, outcomes: AsyncGenerator[tuple[int, Outcome], None]
) -> Response:
    name = exchange_of(request.scope).request_id
    entries = await run_until_disconnect(request.receive, _collect_entries(name, batch_entries, outcomes))
    answer = {"id": name, **count_entries(entries), "results": entries}
    return await json_response(lambda: answer, headers={"Vary": "Accept, Prefer"})


async def _encode_entries(
    name: str, batch_entries: BatchEntries, outcomes: AsyncGenerator[tuple[int, Outcome], None]
) -> AsyncGenerator[dict[str, Any], None]:
    for index, problem in batch_entries.refused.items():
        yield entry_answer(index, name, problem)
        await let_others_run()
    async with aclosing(outcomes):
        async for index, outcome in outcomes:
            # In a thread: encoding images as base64 takes a while.
            yield await asyncio.to_thread(entry_answer, index, name, outcome)


async def _collect_entries(
    name: str, batch_entries: BatchEntries, outcomes: AsyncGenerator[tuple[int, Outcome], None]
) -> list[dict[str, Any]]:
    async with aclosing(_encode_entries(name, batch_entries, outcomes)) as entries:
        return sorted([entry async for entry in entries], key=lambda entry: entry["index"])


async def _encode_stream(
    name: str, batch_entries: BatchEntries, outcomes: AsyncGenerator[tuple[int, Outcome], None]
) -> AsyncGenerator[NamedEvent, None]:
    """Yields the batch's id, then each entry as it is done, then the counts."""
    yield "progress", {"id": name, "entries": len(batch_entries.params) + len(batch_entries.refused)}
    statuses = []
    async with aclosing(_encode_entries(name, batch_entries, outcomes)) as entries:
        async for entry in entries:
            statuses.append({"status": entry["status"]})
            yield "entry", entry
    yield "done", {"id": name, **count_entries(statuses)}
