"""Checks uploads by their headers alone, before anything is decoded."""

from collections.abc import Sequence
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Uploads
from deployments.engine.protocol.params import MAX_SIDE, GenerationParams
from deployments.engine.protocol.settings import MAX_REFERENCES
from deployments.engine.protocol.spec import ModelSpec
from deployments.uploads.image_files import ImageHeader, read_header
from deployments.uploads.masks import MASK_TYPES
from serve_app.generation.sizes import native_sides, nearest_side

MAX_WHOLE_PIXELS: Final = MAX_SIDE * MAX_SIDE
"""The largest image that an area is made of: it waits in memory, as large as it is, until that is done."""


MAX_REFERENCE_RATIO: Final = 8
"""An image encoder enlarges the shorter side of what it looks at, however much longer the other one is."""


def check_uploads(uploads: Uploads, params: GenerationParams) -> ImageHeader | None:
    """Returns the header that decides the size: the init image's, else the first hint's. Raises InvalidParameter."""
    image = read_header(uploads.image, uploads.image_field) if uploads.image is not None else None
    if uploads.task == "inpaint" and image is None:
        raise InvalidParameter(uploads.image_field, "is required beside a mask")
    is_whole = params.padding_mask_crop is not None and uploads.task == "inpaint"
    if is_whole and image is not None and image.width * image.height > MAX_WHOLE_PIXELS:
        rule = f"must have at most {MAX_WHOLE_PIXELS} pixels in all for padding_mask_crop"
        raise InvalidParameter(uploads.image_field, rule)
    if image is not None and uploads.mask is not None:
        mask = read_header(uploads.mask, "mask")
        if (mask.width, mask.height) != (image.width, image.height):
            raise InvalidParameter("mask", f"must have the image's size, {image.width} x {image.height} pixels")
    elif uploads.mask_type is not None and uploads.mask_type not in MASK_TYPES:
        raise InvalidParameter("mask_type", f"must be one of {', '.join(MASK_TYPES)}")
    check_references(uploads.references)
    hints = [read_header(hint, "control_image") for hint in uploads.hints]
    return image or next(iter(hints), None)


def check_references(files: Sequence[bytes]) -> None:
    """Raises InvalidParameter for reference images that cannot be used."""
    if len(files) > MAX_REFERENCES:
        raise InvalidParameter("reference_images", f"must be at most {MAX_REFERENCES} pictures")
    for file in files:
        seen = read_header(file, "reference_images")
        if max(seen.width, seen.height) > MAX_REFERENCE_RATIO * min(seen.width, seen.height):
            rule = f"must be at most {MAX_REFERENCE_RATIO} times as long as wide: only the middle square is looked at"
            raise InvalidParameter("reference_images", rule)


def fill_in_size(params: GenerationParams, header: ImageHeader | None, spec: ModelSpec) -> GenerationParams:
    """Returns `params` with any missing side filled in: the image's aspect ratio, at the model's native area."""
    if header is None or (params.width and params.height):
        return params
    ratio = header.width / header.height
    if params.width:
        size = (params.width, nearest_side(params.width / ratio))
    elif params.height:
        size = (nearest_side(params.height * ratio), params.height)
    else:
        size = native_sides(ratio, spec)
    return params.model_copy(update={"width": size[0], "height": size[1]})
