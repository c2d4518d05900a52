"""Compresses pictures to image files."""

import io
from typing import Final

import numpy as np
from PIL import Image

from deployments.engine.conditioning.compositing import composite, paste
from deployments.engine.conditioning.resizing import resize
from deployments.engine.conditioning.touch_up import touch_up
from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.params import OutputFormat
from deployments.engine.protocol.request import Request

QUALITY: Final = 92


def compress_picture(picture: ImageArray, request: Request, *, is_preview: bool) -> bytes:
    """Returns the image file of `picture` [H, W, 3] that `request` asks for; of a preview, a JPEG."""
    if is_preview:
        return encode_image(picture, "jpeg")
    params = request.params
    picture = touch_up(picture, params)
    if params.output_size is None:
        finished = _restore_outside_mask(request, _mark(picture, request))
    else:
        whole = Image.fromarray(_restore_outside_mask(request, picture))
        # Of a smaller picture less of a mark would be left.
        finished = _mark(np.asarray(resize(whole, *params.output_size, params.output_fit)), request)
    return encode_image(finished, params.output_format, params.output_quality)


def _mark(picture: ImageArray, request: Request) -> ImageArray:
    return picture if request.mark is None else request.mark.apply(picture)


def encode_image(image: ImageArray, output_format: OutputFormat, quality: int | None = None) -> bytes:
    """Encodes `image` [H, W, 3] as a PNG (lossless), WebP or JPEG file; `quality`, 0 to 100, is for the latter two."""
    canvas = Image.fromarray(image)
    buffer = io.BytesIO()
    if output_format == "png":
        canvas.save(buffer, "PNG", compress_level=4)
    else:
        canvas.save(buffer, output_format.upper(), quality=QUALITY if quality is None else quality)
    return buffer.getvalue()


def _restore_outside_mask(request: Request, made: ImageArray) -> ImageArray:
    """Restores an inpaint request's own image outside its mask: the VAE changes every pixel a little."""
    image, mask, whole = request.inputs.image, request.inputs.mask, request.inputs.whole
    if whole is not None:
        return paste(made, whole, request.params.mask_feather)
    if image is None or mask is None:
        return made
    return composite(made, image, mask, request.params.mask_feather)
