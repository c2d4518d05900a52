"""The endpoint that restyles a set of pictures after the same reference images, as one job."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Fit
from deployments.engine.protocol.params import GenerationParams
from serve_app.api.dependencies import JobsDep, ServiceDep
from serve_app.api.middleware.rate_limiting import charge, charge_refused
from serve_app.api.parsing.body import read_json_object
from serve_app.api.parsing.callbacks import CallbackFields, read_callbacks
from serve_app.api.parsing.forms import is_form, read_form
from serve_app.api.parsing.picture_options import FIT, check_fit, read_fit
from serve_app.api.parsing.reference_images import REFERENCE_IMAGES, take_pictures, take_references
from serve_app.api.parsing.validation import problem_of_errors, read_params
from serve_app.api.principal import principal_of
from serve_app.api.problems import Problem, problem_of
from serve_app.api.responses import openapi
from serve_app.api.responses.delivery import permit
from serve_app.api.responses.idempotency import run_once
from serve_app.api.responses.job_submission import submit_job
from serve_app.config.sections import JobsConfig
from serve_app.generation.prepare import with_seed
from serve_app.generation.prepared import Prepared
from serve_app.jobs.callbacks import CallbackRequest
from serve_app.jobs.pictures import IMAGE_FIELD, MAX_SET, JobPictures, pictures_of
from serve_app.service import DiffusionService

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])

_CALLBACKS: Final = ("webhook_url", "webhook_events", "upload_url")
"""What a form may say of callbacks: the other fields are objects and lists of lists, for JSON."""


@dataclass(frozen=True, slots=True)
class StyleTransfer:
    """A call as it was read: what is restyled, after what, and the parameters that all of it shares."""

    images: Sequence[bytes]
    references: Sequence[bytes]
    params: GenerationParams
    fit: Fit
    callbacks: CallbackFields

    @property
    def pictures(self) -> JobPictures:
        """The pictures by entries."""
        return pictures_of(dict(enumerate(self.images)), self.references, self.fit)


@router.post(
    "/style-transfers",
    status_code=202,
    openapi_extra=openapi.extra_of(openapi.style_transfer_body(MAX_SET, _CALLBACKS)),
    responses=openapi.submission_answers(),
)
async def transfer_style(request: Request, service: ServiceDep, jobs: JobsDep) -> Response:
    """Restyles `images` after `reference_images`: one job, in which each picture is an image-to-image request.

    The parameters are image-to-image's, and all pictures share them, the seed among them; the prompt may be left out.
    The model is one with an IP-Adapter. What is wrong with a picture fails its entry alone, what is wrong with the rest
    is refused. The job is read, followed and cancelled as all jobs are.
    """
    asked = await _read_transfer(request)
    count = len(asked.images) * asked.params.num_images
    _check_size(asked, jobs.config)
    callbacks = _read_callbacks(request, asked)
    understood = {
        "params": asked.params.model_dump(mode="json"),
        "fit": asked.fit,
        "callbacks": asked.callbacks.model_dump(mode="json"),
        "images": count,
    }

    async def work() -> Response:
        # In a thread: digests of megabytes take a while.
        pictures = await asyncio.to_thread(lambda: asked.pictures)
        # One seed for all, so that they become a set; an entry's images count on from it.
        params = with_seed(asked.params)
        drawn = params.seed != asked.params.seed
        params = permit(request, params)
        ready, refused = await _prepare_all(request, service, params, pictures, len(asked.images), drawn)
        await charge_refused(request, len(refused))
        await charge(request, *ready.values())
        entries = dict.fromkeys(ready, params)
        return await submit_job(request, jobs, entries, refused, callbacks, pictures, frozenset(ready) if drawn else ())

    return await run_once(request, understood, (*asked.images, None, *asked.references), work)


async def _read_transfer(request: Request) -> StyleTransfer:
    """Reads the form or the JSON. Raises Problem and InvalidParameter."""
    images: Sequence[bytes]
    most = request.app.state.max_upload_bytes
    if is_form(request):
        form = await read_form(request, most, (IMAGE_FIELD, REFERENCE_IMAGES), (FIT, *_CALLBACKS), MAX_SET + 4)
        images, references = (form.files.get(name, ()) for name in (IMAGE_FIELD, REFERENCE_IMAGES))
        fit, body = read_fit(form), dict(form.parameters)
        given: dict[str, Any] = {name: form.get_option(name) for name in ("webhook_url", "upload_url")}
        given["webhook_events"] = [each for each in form.options.get("webhook_events", ()) if each] or None
    else:
        body = await read_json_object(request, most)
        images = await take_pictures(body, IMAGE_FIELD, MAX_SET)
        references = await take_references(body)
        fit = check_fit(body.pop(FIT, None) or "cover")
        given = {name: body.pop(name, None) for name in CallbackFields.model_fields}
    for name, files in ((IMAGE_FIELD, images), (REFERENCE_IMAGES, references)):
        if not files:
            raise InvalidParameter(name, "is required: at least one picture")
    if len(images) > MAX_SET:
        raise InvalidParameter(IMAGE_FIELD, f"must be at most {MAX_SET} pictures")
    params = read_params(body if body.get("prompt") is not None else {**body, "prompt": ""})
    return StyleTransfer(images, references, params, fit, _validate_callbacks(given))


def _validate_callbacks(given: Mapping[str, Any]) -> CallbackFields:
    try:
        return CallbackFields.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise problem_of_errors(error, known=tuple(CallbackFields.model_fields)) from None


def _check_size(asked: StyleTransfer, config: JobsConfig) -> None:
    """Raises InvalidParameter for more than a batch may have."""
    if len(asked.images) > config.max_entries:
        raise InvalidParameter(IMAGE_FIELD, f"must be at most {config.max_entries} pictures, as entries of a batch")
    if len(asked.images) * asked.params.num_images > config.max_images:
        raise InvalidParameter("num_images", f"makes more than {config.max_images} images in all")


def _read_callbacks(request: Request, asked: StyleTransfer) -> CallbackRequest | None:
    if not asked.callbacks.asks_for_callbacks:
        return None
    images = dict.fromkeys(range(len(asked.images)), asked.params.num_images)
    offered = request.app.state.callbacks
    return read_callbacks(asked.callbacks, offered, images, len(asked.images), str(request.base_url))


async def _prepare_all(
    request: Request,
    service: DiffusionService,
    params: GenerationParams,
    pictures: JobPictures,
    count: int,
    drawn: bool,
) -> tuple[dict[int, Prepared], dict[int, Problem]]:
    """Returns the entries that can be made, to be charged for, and what is wrong with the pictures of the others: the
    shape of a picture, too, where that decides a side.

    Raises EngineError for what all of them share.
    """
    has_both_sides = params.width is not None and params.height is not None
    own_fields = {IMAGE_FIELD} if has_both_sides else {IMAGE_FIELD, "width", "height"}
    ready: dict[int, Prepared] = {}
    refused: dict[int, Problem] = {}
    tenant = principal_of(request).tenant
    for index in range(count):
        try:
            uploads = pictures.uploads_of(index)
            ready[index] = await service.prepare(params, uploads=uploads, tenant=tenant, seed_drawn=drawn)
        except InvalidParameter as error:
            if error.field not in own_fields:
                raise
            refused[index] = problem_of(error)
    return ready, refused
