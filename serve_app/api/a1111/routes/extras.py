"""A1111's endpoints that work on finished pictures: enlarging them, and reading how they were made."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar

from fastapi import APIRouter, Request, Response
from PIL import Image, ImageOps
from pydantic import Field, field_validator

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Enlargement
from deployments.uploads.image_files import MAX_PIXELS, MAX_SIDE, decode_layer, read_header
from serve_app.api.a1111.errors import A1111Route
from serve_app.api.a1111.fields import LenientFields, validate_fields
from serve_app.api.a1111.schemas import body_of, extra_answers
from serve_app.api.dependencies import ServiceDep
from serve_app.api.middleware.rate_limiting import RESIZED_STEPS, UPSCALED_STEPS, charge_pixels
from serve_app.api.parsing.base64_pictures import decode_picture, encode_picture
from serve_app.api.parsing.body import read_json_object
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.large_json import json_response
from serve_app.generation.interpolation import LANCZOS, THREADS
from serve_app.generation.result import to_png
from serve_app.labels.file_metadata import read_texts
from serve_app.labels.parameters_text import parse_parameters
from serve_app.service import DiffusionService

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"], route_class=A1111Route)

NO_UPSCALER: Final = "None"

INTERPOLATION: Final = (NO_UPSCALER, "Lanczos")
"""By A1111's names."""


class UpscaleFields(LenientFields):
    """How pictures are enlarged: `resize_mode` 0 by a factor, 1 to a size. The second upscaler is mixed in.

    Without a first upscaler, which is the default, they stay as they are.
    """

    resize_mode: int = Field(default=0, ge=0, le=1)
    upscaling_resize: float = Field(default=2.0, gt=0.0, le=8.0)
    upscaling_resize_w: int = Field(default=512, ge=16, le=MAX_SIDE)
    upscaling_resize_h: int = Field(default=512, ge=16, le=MAX_SIDE)
    upscaling_crop: bool = True
    upscaler_1: str = Field(default=NO_UPSCALER, max_length=64)
    upscaler_2: str = Field(default=NO_UPSCALER, max_length=64)
    extras_upscaler_2_visibility: float = Field(default=0.0, ge=0.0, le=1.0)
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0

    @field_validator("gfpgan_visibility", "codeformer_visibility")
    @classmethod
    def _check_faces(cls, share: float) -> float:
        if share > 0:
            raise ValueError("must be 0: this server restores no faces")
        return share


class PngInfoFields(LenientFields):
    """A picture's file, in base64."""

    image: str


class SingleFields(UpscaleFields):
    """One picture, in base64."""

    image: str


class NamedPicture(LenientFields):
    """A picture of several, in base64. Its name is not needed."""

    data: str


class BatchFields(UpscaleFields):
    """Several pictures."""

    images: tuple[NamedPicture, ...] = Field(alias="imageList", min_length=1, max_length=16)


Fields = TypeVar("Fields", bound=UpscaleFields)


@router.post("/extra-single-image", openapi_extra={"requestBody": body_of(SingleFields)}, responses=extra_answers())
async def enlarge_image(request: Request, service: ServiceDep) -> Response:
    """Enlarges a picture. What says that a machine made it stays in its file."""
    fields = await _read_fields(request, SingleFields)
    (enlarged,) = await _enlarge_all(request, service, fields, [(fields.image, "image")])
    return await json_response(lambda: {"html_info": "", "image": enlarged})


@router.post("/extra-batch-images", openapi_extra={"requestBody": body_of(BatchFields)}, responses=extra_answers())
async def enlarge_images(request: Request, service: ServiceDep) -> Response:
    """Enlarges several pictures, all alike."""
    fields = await _read_fields(request, BatchFields)
    named = [(picture.data, f"imageList/{index}/data") for index, picture in enumerate(fields.images)]
    enlarged = await _enlarge_all(request, service, fields, named)
    return await json_response(lambda: {"html_info": "", "images": enlarged})


@router.post("/png-info", openapi_extra={"requestBody": body_of(PngInfoFields)}, responses=extra_answers())
async def read_png_info(request: Request) -> Response:
    """Returns what a picture's file says of how it was made, as text and as fields; nothing if it says nothing.

    The picture itself is not decoded, and nothing is charged for it.
    """
    body = await read_json_object(request, request.app.state.max_upload_bytes)
    text = await asyncio.to_thread(_read_parameters, validate_fields(PngInfoFields, body).image)
    items = {"parameters": text} if text else {}
    return await json_response(lambda: {"info": text, "items": items, "parameters": parse_parameters(text)})


def _read_parameters(encoded: str) -> str:
    file = decode_picture(encoded, "image")
    # Refuses what is no picture, and files of too many pieces.
    read_header(file, "image")
    return read_texts(file).parameters or ""


async def _read_fields(request: Request, kind: type[Fields]) -> Fields:
    """Reads the body's fields. Raises Problem."""
    body = await read_json_object(request, request.app.state.max_upload_bytes)
    return validate_fields(kind, body)


async def _enlarge_all(
    request: Request, service: DiffusionService, fields: UpscaleFields, named: Sequence[tuple[str, str]]
) -> list[str]:
    """Returns the pictures in base64, enlarged, given with the names of their fields. A disconnect ends it.

    Raises InvalidParameter and Problem.
    """
    upscalers = _find_upscalers(fields, service.upscalers)
    files = [(await asyncio.to_thread(decode_picture, text, name), name) for text, name in named]
    if fields.upscaler_1 == NO_UPSCALER:
        for file, name in files:
            read_header(file, name)
        return [encode_picture(file) for file, _ in files]
    sizes = [_check_size(fields, file, name) for file, name in files]
    pixels = sum(width * height for width, height in sizes)
    if pixels > MAX_PIXELS:
        raise InvalidParameter("upscaling_resize", f"must give at most {MAX_PIXELS} pixels in all")
    networks = sum(upscaler != LANCZOS for upscaler in upscalers)
    await charge_pixels(request, pixels, RESIZED_STEPS + networks * UPSCALED_STEPS)

    async def enlarge_in_turn() -> list[str]:
        return [
            await _enlarge(service, fields, upscalers, Enlargement(file, LANCZOS, size, name))
            for (file, name), size in zip(files, sizes, strict=True)
        ]

    return await run_until_disconnect(request.receive, enlarge_in_turn())


def _find_upscalers(fields: UpscaleFields, networks: Sequence[str]) -> list[str]:
    """Returns the one or two upscalers that are asked for, by their names in the service. Raises InvalidParameter."""
    for field, name in (("upscaler_1", fields.upscaler_1), ("upscaler_2", fields.upscaler_2)):
        if name not in (*INTERPOLATION, *networks):
            raise InvalidParameter(field, f"must be one of {', '.join((*INTERPOLATION, *networks))}")
    is_mixed = fields.extras_upscaler_2_visibility > 0 and fields.upscaler_2 != NO_UPSCALER
    names = [fields.upscaler_1, *([fields.upscaler_2] if is_mixed else [])]
    return [LANCZOS if name in INTERPOLATION else name for name in names]


async def _enlarge(
    service: DiffusionService, fields: UpscaleFields, upscalers: Sequence[str], asked: Enlargement
) -> str:
    made = [await service.enlarge(replace(asked, upscaler=upscaler)) for upscaler in upscalers]
    by_network = any(upscaler != LANCZOS for upscaler in upscalers)

    def finish() -> str:
        file = _mix(fields, made) if len(made) > 1 or _crops(fields) else made[0]
        return encode_picture(service.labeller.label_enlarged(file, asked.file, by_network=by_network))

    return await asyncio.get_running_loop().run_in_executor(THREADS, finish)


def _crops(fields: UpscaleFields) -> bool:
    return fields.resize_mode == 1 and fields.upscaling_crop


def _mix(fields: UpscaleFields, files: Sequence[bytes]) -> bytes:
    """Returns the enlarged picture, or both of them mixed, cropped to the size that is asked for."""
    enlarged, *other = (decode_layer(file, "image") for file in files)
    if other:
        enlarged = Image.blend(enlarged, other[0], fields.extras_upscaler_2_visibility)
    if _crops(fields):
        enlarged = ImageOps.fit(enlarged, (fields.upscaling_resize_w, fields.upscaling_resize_h))
    return to_png(enlarged)


def _check_size(fields: UpscaleFields, file: bytes, name: str) -> tuple[int, int]:
    """Returns the size that a picture will have, by its header alone. Raises InvalidParameter."""
    header = read_header(file, name)
    size = _size_of(fields, header.width, header.height)
    if max(size) > MAX_SIDE:
        raise InvalidParameter("upscaling_resize", f"must give at most {MAX_SIDE} pixels a side")
    return size


def _size_of(fields: UpscaleFields, width: int, height: int) -> tuple[int, int]:
    """Returns the size of the whole picture, before anything is cropped: that which covers the one asked for."""
    factor = fields.upscaling_resize
    if fields.resize_mode == 1:
        factor = max(fields.upscaling_resize_w / width, fields.upscaling_resize_h / height)
    return max(1, round(width * factor)), max(1, round(height * factor))
