"""A1111's endpoints that work on finished pictures: enlarging them, and reading how they were made."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final, TypeVar

from fastapi import APIRouter, Request, Response
from PIL import Image, ImageOps
from pydantic import Field, field_validator

from deployments.engine.protocol.errors import InvalidParameter
from deployments.uploads.image_files import MAX_PIXELS, MAX_SIDE, decode_layer, read_header
from serve_app.api.a1111.errors import A1111Route
from serve_app.api.a1111.fields import LenientFields, validate_fields
from serve_app.api.a1111.schemas import body_of, extra_answers
from serve_app.api.dependencies import ServiceDep
from serve_app.api.middleware.rate_limiting import charge_pixels
from serve_app.api.parsing.base64_pictures import decode_picture, encode_picture
from serve_app.api.parsing.body import read_json_object
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.large_json import json_response
from serve_app.generation.result import to_png
from serve_app.labels.file_metadata import read_texts
from serve_app.labels.labeller import Labeller
from serve_app.labels.parameters_text import parse_parameters

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"], route_class=A1111Route)

# A picture may have sixteen million pixels, of which there are several copies while it is enlarged.
_THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="enlarge")

NO_UPSCALER: Final = "None"

UPSCALERS: Final[Mapping[str, Image.Resampling | None]] = MappingProxyType(
    {NO_UPSCALER: None, "Lanczos": Image.Resampling.LANCZOS}
)
"""By A1111's names. Without one, a picture that has to become another size is interpolated by Lanczos."""


class UpscaleFields(LenientFields):
    """How pictures are enlarged: `resize_mode` 0 by a factor, 1 to a size. The second upscaler is mixed in."""

    resize_mode: int = Field(default=0, ge=0, le=1)
    upscaling_resize: float = Field(default=2.0, gt=0.0, le=8.0)
    upscaling_resize_w: int = Field(default=512, ge=16, le=MAX_SIDE)
    upscaling_resize_h: int = Field(default=512, ge=16, le=MAX_SIDE)
    upscaling_crop: bool = True
    upscaler_1: str = NO_UPSCALER
    upscaler_2: str = NO_UPSCALER
    extras_upscaler_2_visibility: float = Field(default=0.0, ge=0.0, le=1.0)
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0

    @field_validator("upscaler_1", "upscaler_2")
    @classmethod
    def _check_upscaler(cls, name: str) -> str:
        if name not in UPSCALERS:
            raise ValueError(f"must be one of {', '.join(UPSCALERS)}")
        return name

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
    (enlarged,) = await _enlarge_all(request, service.labeller, fields, [(fields.image, "image")])
    return await json_response(lambda: {"html_info": "", "image": enlarged})


@router.post("/extra-batch-images", openapi_extra={"requestBody": body_of(BatchFields)}, responses=extra_answers())
async def enlarge_images(request: Request, service: ServiceDep) -> Response:
    """Enlarges several pictures, all alike."""
    fields = await _read_fields(request, BatchFields)
    named = [(picture.data, f"imageList/{index}/data") for index, picture in enumerate(fields.images)]
    enlarged = await _enlarge_all(request, service.labeller, fields, named)
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
    request: Request, labeller: Labeller, fields: UpscaleFields, named: Sequence[tuple[str, str]]
) -> list[str]:
    """Returns the pictures in base64, enlarged, given with the names of their fields. A disconnect ends it.

    Raises InvalidParameter and Problem.
    """
    files = [(await asyncio.to_thread(decode_picture, text, name), name) for text, name in named]
    sizes = [_check_size(fields, file, name) for file, name in files]
    pixels = sum(width * height for width, height in sizes)
    if pixels > MAX_PIXELS:
        raise InvalidParameter("upscaling_resize", f"must give at most {MAX_PIXELS} pixels in all")
    await charge_pixels(request, pixels)
    return await run_until_disconnect(request.receive, _enlarge_in_turn(labeller, fields, files))


async def _enlarge_in_turn(labeller: Labeller, fields: UpscaleFields, files: Sequence[tuple[bytes, str]]) -> list[str]:
    loop = asyncio.get_running_loop()
    return [await loop.run_in_executor(_THREADS, _enlarge, labeller, fields, file, name) for file, name in files]


def _check_size(fields: UpscaleFields, file: bytes, name: str) -> tuple[int, int]:
    """Returns the size that a picture will have, by its header alone. Raises InvalidParameter."""
    header = read_header(file, name)
    size = _size_of(fields, header.width, header.height)
    if max(size) > MAX_SIDE:
        raise InvalidParameter("upscaling_resize", f"must give at most {MAX_SIDE} pixels a side")
    return size


def _enlarge(labeller: Labeller, fields: UpscaleFields, file: bytes, name: str) -> str:
    picture = decode_layer(file, name)
    size = _size_of(fields, picture.width, picture.height)
    enlarged = _interpolate(picture, size, fields.upscaler_1)
    if fields.extras_upscaler_2_visibility and fields.upscaler_2 != NO_UPSCALER:
        other = _interpolate(picture, size, fields.upscaler_2)
        enlarged = Image.blend(enlarged, other, fields.extras_upscaler_2_visibility)
    if fields.resize_mode == 1 and fields.upscaling_crop:
        enlarged = ImageOps.fit(enlarged, (fields.upscaling_resize_w, fields.upscaling_resize_h))
    return encode_picture(labeller.label_enlarged(to_png(enlarged), file, by_network=False))


def _size_of(fields: UpscaleFields, width: int, height: int) -> tuple[int, int]:
    """Returns the size of the whole picture, before anything is cropped: that which covers the one asked for."""
    factor = fields.upscaling_resize
    if fields.resize_mode == 1:
        factor = max(fields.upscaling_resize_w / width, fields.upscaling_resize_h / height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _interpolate(picture: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
    return picture.resize(size, UPSCALERS[upscaler] or Image.Resampling.LANCZOS)
