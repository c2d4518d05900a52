"""The endpoints that enlarge a finished picture, and list what does."""

import asyncio
import io
from functools import partial
from typing import Any, Final, cast, get_args

from fastapi import APIRouter, Request, Response

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Enlargement
from deployments.engine.protocol.params import OutputFormat
from deployments.uploads.image_files import MAX_PIXELS, MAX_SIDE, composite_over_white, decode_layer, read_header
from serve_app.api.dependencies import ServiceDep
from serve_app.api.middleware.rate_limiting import RESIZED_STEPS, UPSCALED_STEPS, charge_pixels
from serve_app.api.parsing.forms import Form, read_form
from serve_app.api.responses.disconnect import run_until_disconnect
from serve_app.api.responses.openapi import PICTURE, errors
from serve_app.generation.interpolation import LANCZOS, THREADS
from serve_app.service import DiffusionService

router = APIRouter(prefix="/ads/v2/diffusion", tags=["diffusion"])

MAX_SCALE: Final = 8.0
_FORMATS: Final = get_args(OutputFormat)
_OPTIONS: Final = ("upscaler", "scale", "output_format", "output_quality")

# As of generated images.
_QUALITY: Final = 92


def _request_body() -> dict[str, Any]:
    fields = {
        "image": PICTURE,
        "upscaler": {
            "type": "string",
            "maxLength": 64,
            "description": "A name from `/ads/v2/diffusion/upscalers`; the first of them if left out.",
        },
        "scale": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": MAX_SCALE,
            "default": 2,
            "description": f"The picture becomes that many times as wide and high: {MAX_PIXELS} pixels at most.",
        },
        "output_format": {"type": "string", "enum": list(_FORMATS), "default": "png"},
        "output_quality": {
            "type": "integer",
            "minimum": 0,
            "maximum": 100,
            "description": f"Of a webp or jpeg file; {_QUALITY} if left out.",
        },
    }
    schema = {"type": "object", "properties": fields, "required": ["image"]}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


@router.get("/upscalers")
async def list_upscalers(service: ServiceDep) -> dict[str, Any]:
    """Lists what enlarges finished pictures; the first is the default. `hires` takes these names, too, and `latent`."""
    rows = [{"name": name, "network": True} for name in service.upscalers]
    return {"upscalers": [*rows, {"name": LANCZOS, "network": False}]}


@router.post(
    "/upscale",
    response_class=Response,
    openapi_extra={"requestBody": _request_body()},
    responses=errors(400, 401, 403, 408, 413, 415, 422, 429, 499, 500, 503)
    | {
        200: {
            "description": "The enlarged picture.",
            "content": {f"image/{name}": {"schema": PICTURE} for name in _FORMATS},
        }
    },
)
async def upscale(request: Request, service: ServiceDep) -> Response:
    """Enlarges a picture by a network of the configuration's, tile by tile, or by Lanczos' interpolation."""
    form = await read_form(request, request.app.state.max_upload_bytes, ("image",), _OPTIONS)
    for name in form.parameters:
        known = ", ".join(("image", *_OPTIONS))
        raise InvalidParameter(name[:64], f"is not a field here; the fields are {known}")
    file, upscaler = form.require_file("image"), _read_upscaler(form, service)
    output_format, quality = _read_format(form)
    header = await asyncio.to_thread(read_header, file, "image")
    size = _read_size(form, header.width, header.height)
    is_network = upscaler != LANCZOS
    await charge_pixels(request, size[0] * size[1], UPSCALED_STEPS if is_network else RESIZED_STEPS)
    asked = Enlargement(file, upscaler, size)
    enlarged = await run_until_disconnect(request.receive, service.enlarge(asked))

    def finish() -> bytes:
        save = partial(_save_as, output_format=output_format, quality=quality)
        return service.labeller.label_enlarged(enlarged, file, by_network=is_network, save=save)

    return Response(
        await asyncio.get_running_loop().run_in_executor(THREADS, finish),
        media_type=f"image/{output_format}",
        headers={"Cache-Control": "no-store", "X-Upscaler": upscaler.encode("ascii", "replace").decode()},
    )


def _read_upscaler(form: Form, service: DiffusionService) -> str:
    known = (*service.upscalers, LANCZOS)
    name = form.get_option("upscaler") or known[0]
    if name not in known:
        raise InvalidParameter("upscaler", f"there is no such upscaler; there is: {', '.join(known)}")
    return name


def _read_size(form: Form, width: int, height: int) -> tuple[int, int]:
    """Returns the width and height of the enlarged picture. Raises InvalidParameter."""
    if len(form.options.get("scale", ())) > 1:
        raise InvalidParameter("scale", "must be there once")
    (scale,) = form.get_numbers("scale", 2.0) or [2.0]
    if not 0 < scale <= MAX_SCALE:
        raise InvalidParameter("scale", f"must be more than 0 and at most {MAX_SCALE:g}")
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if max(size) > MAX_SIDE or size[0] * size[1] > MAX_PIXELS:
        rule = f"may give at most {MAX_SIDE} a side and {MAX_PIXELS} in all"
        raise InvalidParameter("scale", f"gives {size[0]} x {size[1]} pixels, and {rule}")
    return size


def _read_format(form: Form) -> tuple[OutputFormat, int]:
    name = form.get_option("output_format") or "png"
    if name not in _FORMATS:
        raise InvalidParameter("output_format", f"must be one of {', '.join(_FORMATS)}")
    text = form.get_option("output_quality")
    if text is None:
        return cast(OutputFormat, name), _QUALITY
    if name == "png":
        raise InvalidParameter("output_quality", "is for webp and jpeg only: a png loses nothing")
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 100):
        raise InvalidParameter("output_quality", "must be a whole number from 0 to 100")
    return cast(OutputFormat, name), int(text)


def _save_as(png: bytes, output_format: OutputFormat, quality: int) -> bytes:
    if output_format == "png":
        return png
    layer = decode_layer(png, "image")
    picture = composite_over_white(layer) if output_format == "jpeg" else layer
    buffer = io.BytesIO()
    picture.save(buffer, output_format.upper(), quality=quality)
    return buffer.getvalue()
