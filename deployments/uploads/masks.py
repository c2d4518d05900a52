"""Creates masks by name: the part of an image that is repainted."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from PIL import Image, ImageDraw

from deployments.engine.protocol.errors import InvalidParameter

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of width and height in [0, 1]."""

_BORDER: Final = 1 / 8

BOXES: Mapping[str, Box] = MappingProxyType(
    {
        "center": (0.25, 0.25, 0.75, 0.75),
        "full": (0.0, 0.0, 1.0, 1.0),
        "top": (0.0, 0.0, 1.0, 0.5),
        "bottom": (0.0, 0.5, 1.0, 1.0),
        "left": (0.0, 0.0, 0.5, 1.0),
        "right": (0.5, 0.0, 1.0, 1.0),
        "top_left": (0.0, 0.0, 0.5, 0.5),
        "top_right": (0.5, 0.0, 1.0, 0.5),
        "bottom_left": (0.0, 0.5, 0.5, 1.0),
        "bottom_right": (0.5, 0.5, 1.0, 1.0),
    }
)

MASK_TYPES: Final = (*BOXES, "border", "ellipse")


def create_mask(width: int, height: int, mask_type: str = "center", box: Box | None = None) -> Image.Image:
    """Creates a mask ("L", 255 where it is repainted). A `box` takes precedence over `mask_type`.

    `border` is an eighth of the shorter side all around, `ellipse` fills the middle half. Raises InvalidParameter for
    an unknown type and for a box that is empty or reaches out of the image.
    """
    mask = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(mask)
    if box is not None:
        _draw_rectangle(draw, mask, _check_box(box))
    elif mask_type in BOXES:
        _draw_rectangle(draw, mask, BOXES[mask_type])
    elif mask_type == "border":
        edge = max(1, round(min(width, height) * _BORDER))
        draw.rectangle((0, 0, width, height), fill=255)
        draw.rectangle((edge, edge, width - edge - 1, height - edge - 1), fill=0)
    elif mask_type == "ellipse":
        draw.ellipse(_to_pixels(mask, BOXES["center"]), fill=255)
    else:
        raise InvalidParameter("mask_type", f"must be one of {', '.join(MASK_TYPES)}")
    return mask


def _draw_rectangle(draw: ImageDraw.ImageDraw, mask: Image.Image, box: Box) -> None:
    draw.rectangle(_to_pixels(mask, box), fill=255)


def _to_pixels(mask: Image.Image, box: Box) -> tuple[int, int, int, int]:
    """Returns the first and last pixel in each direction: Pillow draws both."""
    left, top, right, bottom = box
    first = round(left * mask.width), round(top * mask.height)
    return *first, max(first[0], round(right * mask.width) - 1), max(first[1], round(bottom * mask.height) - 1)


def _check_box(box: Box) -> Box:
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InvalidParameter("box", "must be left, top, right, bottom in 0..1, left < right and top < bottom")
    return box
