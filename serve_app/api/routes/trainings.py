"""The endpoints for trainings: pictures become a LoRA, which is judged, and then served. A tenant sees only its own."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from deployments.engine.protocol.errors import InvalidParameter
from deployments.training.lora.settings import TrainingSettings
from deployments.uploads.image_files import read_header
from serve_app.api.dependencies import TrainingsDep
from serve_app.api.exchange import exchange_of
from serve_app.api.parsing.forms import MAX_FILES, Form, read_form
from serve_app.api.parsing.validation import problem_of_errors
from serve_app.api.principal import principal_of
from serve_app.api.problems import Problem
from serve_app.api.responses.event_stream import EventStream, read_last_event_id
from serve_app.api.responses.idempotency import run_once
from serve_app.api.responses.json_schema import inline_schema
from serve_app.api.responses.openapi import PICTURE, error_response, errors
from serve_app.api.responses.training_schemas import (
    TRAININGS,
    training_answer,
    training_events,
    training_not_found,
    training_path,
    training_summary,
)
from serve_app.trainings.manager import Training

router = APIRouter(prefix=TRAININGS, tags=["trainings"])

_FILES: Final = ("zip", "pictures")
_CAPTIONS: Final = "captions_of_pictures"
_NO_STORE: Final = {"Cache-Control": "no-store"}


def _request_body() -> dict[str, Any]:
    schema = inline_schema(TrainingSettings)
    schema["properties"] |= {
        "zip": PICTURE | {"description": "A zip of pictures, with captions as text files beside them."},
        "pictures": {"type": "array", "items": PICTURE, "description": "Up to 8 pictures, instead of a zip."},
        _CAPTIONS: {"type": "array", "items": {"type": "string"}, "description": "Their captions, in the same order."},
        "params": {"type": "string", "description": "All other fields as a JSON object."},
    }
    schema["required"] = []
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


_REFUSALS: Final = {
    **errors(401, 403),
    404: error_response("There is no such training of this caller's, or this server does not train."),
    **errors(500),
}


@router.post(
    "",
    status_code=202,
    openapi_extra={"requestBody": _request_body()},
    responses={**_REFUSALS, **errors(400, 408, 409, 413, 415, 422, 429, 503)},
)
async def begin_training(request: Request, trainings: TrainingsDep) -> Response:
    """Begins to train a LoRA on a zip of pictures, or on up to eight pictures; `Location` is where it is told of."""
    most = request.app.state.max_upload_bytes
    form = await read_form(request, most, _FILES, (_CAPTIONS,), MAX_FILES, TrainingSettings)
    settings, files = _read_settings(form), await asyncio.to_thread(_read_files, form)
    principal = principal_of(request)

    async def work() -> Response:
        training = await trainings.start(principal.tenant, settings, files, principal.training)
        place = {"Location": training_path(training)}
        return JSONResponse(await asyncio.to_thread(training_summary, training), 202, headers=_NO_STORE | place)

    understood = {"settings": settings.model_dump(mode="json"), "files": list(files)}
    return await run_once(request, understood, files.values(), work)


@router.get("", responses=_REFUSALS)
async def list_trainings(request: Request, trainings: TrainingsDep) -> JSONResponse:
    """Lists the caller's newest trainings, at most a hundred, newest first."""
    tenant = principal_of(request).tenant
    found = await asyncio.to_thread(lambda: [training_summary(each) for each in trainings.of_tenant(tenant)])
    return JSONResponse({"trainings": found}, headers=_NO_STORE)


@router.get("/{training_id}", responses=_REFUSALS)
async def read_training(request: Request, training_id: str, trainings: TrainingsDep) -> JSONResponse:
    """Returns how a training goes: its progress, loss curve, sample pictures as links, and, at its end, the scores."""
    training = await _find(request, trainings, training_id)
    return JSONResponse(await asyncio.to_thread(training_answer, training), headers=_NO_STORE)


@router.get(
    "/{training_id}/events",
    response_class=Response,
    responses={**_REFUSALS, 200: {"description": "The events.", "content": {"text/event-stream": {}}}},
)
async def follow_training(request: Request, training_id: str, trainings: TrainingsDep) -> Response:
    """Streams a training: `training`, all there is to know now; `progress`, with the loss; each `sample` picture, as a
    link; and `done`, with the scores, or `error` if it is removed meanwhile.

    Samples have ids: a client that reconnects with `Last-Event-ID` gets only the samples after that.
    """
    training = await _find(request, trainings, training_id)
    events = training_events(training, read_last_event_id(request), exchange_of(request.scope).request_id)
    return EventStream(events, events)


@router.delete(
    "/{training_id}",
    responses={**_REFUSALS, **errors(422), 204: {"description": "It was over, and is removed.", "content": {}}},
)
async def cancel_training(request: Request, training_id: str, trainings: TrainingsDep) -> Response:
    """Ends a training at its next step, with a checkpoint. One that is over is removed, with all that it has made."""
    training = await _find(request, trainings, training_id)
    if await asyncio.to_thread(trainings.cancel, training):
        return Response(status_code=204, headers=_NO_STORE)
    return JSONResponse(await asyncio.to_thread(training_summary, training), headers=_NO_STORE)


@router.post("/{training_id}/resume", responses={**_REFUSALS, **errors(400, 409, 422, 503)})
async def resume_training(request: Request, training_id: str, trainings: TrainingsDep) -> Response:
    """Has a training that was interrupted, cancelled, or has failed go on from its last checkpoint."""
    training = await _find(request, trainings, training_id)

    async def work() -> Response:
        await asyncio.to_thread(trainings.resume, training)
        return JSONResponse(await asyncio.to_thread(training_summary, training), headers=_NO_STORE)

    return await run_once(request, {}, (), work)


@router.post("/{training_id}/register", responses={**_REFUSALS, **errors(422)})
async def register_training(request: Request, training_id: str, trainings: TrainingsDep) -> JSONResponse:
    """Serves what a training has made, as the newest version of its name, on all replicas and without a restart.

    Asked again, it answers with that version, and changes nothing.
    """
    training = await _find(request, trainings, training_id)
    version = await asyncio.to_thread(trainings.register, training)
    return JSONResponse({"name": version.name, "version": version.number}, headers=_NO_STORE)


@router.get(
    "/{training_id}/pictures/{name}",
    response_class=Response,
    responses={**_REFUSALS, 200: {"description": "The picture.", "content": {"image/png": {"schema": PICTURE}}}},
)
async def read_training_picture(request: Request, training_id: str, name: str, trainings: TrainingsDep) -> Response:
    """Returns a sample picture, or the sheet of pictures before and after."""
    training = await _find(request, trainings, training_id)
    file = await asyncio.to_thread(trainings.picture, training, name)
    if file is None:
        raise Problem(404, "image_not_found", "there is no such picture, or not yet")
    return Response(file, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _read_settings(form: Form) -> TrainingSettings:
    """Raises Problem 422, which names the field and the rule."""
    try:
        return TrainingSettings.model_validate(dict(form.parameters))
    except ValidationError as error:
        raise problem_of_errors(error, known=tuple(TrainingSettings.model_fields)) from None


def _read_files(form: Form) -> dict[str, bytes]:
    """Returns the files by names of ours. Raises InvalidParameter."""
    archive, pictures = form.get_file("zip"), form.files.get("pictures", ())
    captions = form.options.get(_CAPTIONS, ())
    if (archive is None) == (not pictures):
        raise InvalidParameter("zip", "must be there, or `pictures`, and not both")
    if archive is not None:
        if captions:
            raise InvalidParameter(_CAPTIONS, "are for `pictures`; a zip has its own")
        return {"zip": archive}
    if captions and len(captions) != len(pictures):
        raise InvalidParameter(_CAPTIONS, "must be as many as the pictures, in their order")
    files = {}
    for number, data in enumerate(pictures):
        files[f"{number:04d}.{read_header(data, 'pictures').format.lower().replace('mpo', 'jpeg')}"] = data
    return files | {f"{number:04d}.txt": caption.encode() for number, caption in enumerate(captions)}


async def _find(request: Request, trainings: TrainingsDep, id: str) -> Training:
    found = await asyncio.to_thread(trainings.find, principal_of(request).tenant, id)
    if found is None:
        raise training_not_found()
    return found
