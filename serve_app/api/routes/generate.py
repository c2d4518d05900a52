"""The endpoints that generate images: text-to-image takes JSON, the others take forms. All answer alike."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.settings import ControlSettings
from serve_app.api.dependencies import ServiceDep
from serve_app.api.parsing.forms import Form, read_form
from serve_app.api.parsing.picture_options import FIT, MASK_ALPHA, MASK_TYPE, read_fit, read_mask, read_mask_alpha
from serve_app.api.parsing.reference_images import REFERENCE_IMAGES, read_text_request
from serve_app.api.responses import openapi
from serve_app.api.responses.delivery import deliver
from serve_app.api.responses.schemas import Answer

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])


def _parse_count(value: Any) -> Any:
    """Parses digits only; pydantic would also accept ` 1_0`."""
    return int(value) if re.fullmatch(r"[0-9]{1,9}", str(value)) else value


Previews = Annotated[
    int,
    BeforeValidator(_parse_count),
    Query(strict=True, ge=0, le=8, description="Cheap previews of each image while it is made; in a stream only."),
]

_CONTROL_FIELDS: Final = (
    "controlnet_type",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
)


@router.post(
    "/text-to-image",
    response_model=Answer,
    openapi_extra=openapi.extra_of(openapi.text_body()),
    responses=openapi.answers(),
)
async def text_to_image(request: Request, service: ServiceDep, previews: Previews = 0) -> Response:
    """Makes images from a prompt. With reference images, which come in base64, or as files of a form, they take after
    these: that is for models with an IP-Adapter.

    The Accept header chooses the answer: `application/json`, one image's bytes (`image/png`, `image/webp`,
    `image/jpeg`), or `text/event-stream` with `progress`, `preview`, `image`, `failed`, and a last `done` or `error`.
    A client that disconnects frees its place at once.
    """
    params, uploads = await read_text_request(request)
    return await deliver(request, service, params, uploads=uploads, previews=previews)


@router.post(
    "/image-to-image",
    response_model=Answer,
    openapi_extra=openapi.extra_of(openapi.form_body("image-to-image")),
    responses=openapi.answers(),
)
async def image_to_image(request: Request, service: ServiceDep, previews: Previews = 0) -> Response:
    """Changes `init_image` towards the prompt, by as much as `strength` allows. Answers as text-to-image does.

    Parameters come as fields of their own, or as one JSON part named `params`.
    """
    files = ("init_image", REFERENCE_IMAGES)
    form = await read_form(request, request.app.state.max_upload_bytes, files, (FIT,))
    uploads = Uploads(
        image=form.require_file("init_image"),
        fit=read_fit(form),
        image_field="init_image",
        references=form.files.get(REFERENCE_IMAGES, ()),
    )
    return await deliver(request, service, form.read_params(), uploads=uploads, previews=previews)


@router.post(
    "/inpaint",
    response_model=Answer,
    openapi_extra=openapi.extra_of(openapi.form_body("inpaint")),
    responses=openapi.answers(),
)
async def inpaint(request: Request, service: ServiceDep, previews: Previews = 0) -> Response:
    """Repaints `image` where `mask` is white, or in the area that `mask_type` names. Answers as text-to-image does.

    Pixels outside the mask are returned unchanged, to the byte.
    """
    files, options = ("image", "mask", REFERENCE_IMAGES), (FIT, MASK_TYPE, MASK_ALPHA)
    form = await read_form(request, request.app.state.max_upload_bytes, files, options)
    mask, mask_type = read_mask(form)
    if mask is None and mask_type is None:
        raise InvalidParameter("mask", "is required, as a file, or else mask_type")
    uploads = Uploads(
        image=form.require_file("image"),
        mask=mask,
        mask_type=mask_type,
        mask_alpha=read_mask_alpha(form),
        fit=read_fit(form),
        references=form.files.get(REFERENCE_IMAGES, ()),
    )
    return await deliver(request, service, form.read_params(), uploads=uploads, previews=previews)


@router.post(
    "/controlnet",
    response_model=Answer,
    openapi_extra=openapi.extra_of(openapi.form_body("controlnet")),
    responses=openapi.answers(),
)
async def controlnet(request: Request, service: ServiceDep, previews: Previews = 0) -> Response:
    """Makes images that follow `control_image`. Answers as text-to-image does.

    With `preprocess` the control image is a photo, and the hint is made from it. Several control images need as many
    `controlnet_type`, in the same order. With an `init_image` it is image-to-image; with a `mask` or `mask_type` as
    well, inpainting.
    """
    files, options = (
        ("control_image", "init_image", "mask", REFERENCE_IMAGES),
        (
            FIT,
            MASK_TYPE,
            MASK_ALPHA,
            "preprocess",
            *_CONTROL_FIELDS,
        ),
    )
    form = await read_form(request, request.app.state.max_upload_bytes, files, options)
    hints = form.files.get("control_image", ())
    if not hints:
        raise InvalidParameter("control_image", "is required, as a file")
    mask, mask_type = read_mask(form)
    uploads = Uploads(
        image=form.get_file("init_image"),
        mask=mask,
        mask_type=mask_type,
        mask_alpha=read_mask_alpha(form),
        hints=hints,
        preprocess=form.get_flag("preprocess"),
        fit=read_fit(form),
        image_field="init_image",
        references=form.files.get(REFERENCE_IMAGES, ()),
    )
    named = {"controls": _read_controls(form, len(hints))} if _has_control_fields(form) else {}
    return await deliver(request, service, form.read_params(**named), uploads=uploads, previews=previews)


def _has_control_fields(form: Form) -> bool:
    """Whether the ControlNets come as fields. Raises InvalidParameter if they come as `controls`, too."""
    names = [name for name in _CONTROL_FIELDS if name in form.options]
    if names and "controls" in form.parameters:
        raise InvalidParameter(names[0], "cannot be there beside `controls`")
    if names and "controlnet_type" not in names:
        raise InvalidParameter("controlnet_type", f"is required with {names[0]}")
    return bool(names)


def _read_controls(form: Form, hints: int) -> tuple[ControlSettings, ...]:
    """Returns one ControlNet per hint. A value that is given once applies to all of them."""
    types = tuple(kind for kind in form.options["controlnet_type"] if kind)
    if len(types) != hints:
        raise InvalidParameter("controlnet_type", "must be there once for each control_image")
    scales = _read_numbers(form, "controlnet_conditioning_scale", hints, 1.0, high=2.0)
    starts = _read_numbers(form, "control_guidance_start", hints, 0.0)
    ends = _read_numbers(form, "control_guidance_end", hints, 1.0)
    if any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise InvalidParameter("control_guidance_start", "must be less than control_guidance_end")
    return tuple(
        ControlSettings(type=kind[:64], scale=scale, start=start, end=end)
        for kind, scale, start, end in zip(types, scales, starts, ends, strict=True)
    )


def _read_numbers(form: Form, name: str, count: int, default: float, high: float = 1.0) -> Sequence[float]:
    numbers = form.get_numbers(name, default) or [default]
    if not all(0 <= number <= high for number in numbers):
        raise InvalidParameter(name, f"must be between 0 and {high:g}")
    if len(numbers) == 1:
        return numbers * count
    if len(numbers) != count:
        raise InvalidParameter(name, "must be there once, or once for each control_image")
    return numbers
