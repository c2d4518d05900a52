"""Decodes uploaded image files to plain RGB; they are checked by their headers before anything is decoded."""

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageFile

# Also for who has nothing to do with the engine but its protocol.
from deployments.engine.conditioning.resizing import resize as resize
from deployments.engine.conditioning.touch_up import adjust_contrast as adjust_contrast
from deployments.engine.conditioning.touch_up import sharpen as sharpen
from deployments.engine.conditioning.touch_up import stretch_contrast as stretch_contrast
from deployments.engine.protocol.errors import InvalidParameter
from deployments.uploads.file_chunks import has_too_many_chunks, strip_metadata

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MIN_SIDE: Final = 16
MAX_SIDE: Final = 8192
MAX_PIXELS: Final = 4096 * 4096

# Pillow's modes with more than 8 bits a channel. They are scaled: its own conversion would clip them to white.
_HIGH_DEPTH_MODES: Final = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """A file's header, read without decoding it. Width and height are those after EXIF rotation."""

    format: str
    width: int
    height: int


def read_header(data: bytes, field: str) -> ImageHeader:
    """Reads the header of `data`.

    Raises InvalidParameter, naming `field`, for everything that `decode` would refuse.
    """
    with _open(data, field) as image:
        width, height = image.size
        if _orientation(image) in _ON_ITS_SIDE:
            width, height = height, width
        return ImageHeader(str(image.format), width, height)


def decode(data: bytes, field: str) -> Image.Image:
    """Decodes the image in `data` as upright RGB; transparency becomes white. Raises InvalidParameter."""
    return composite_over_white(decode_layer(data, field))


def decode_layer(data: bytes, field: str) -> Image.Image:
    """Decodes the image in `data` upright, as RGB, or as RGBA if it has transparency. Raises InvalidParameter."""
    with _open(data, field) as image:
        try:
            image.load()
            _scale_transparent_colour(image, data)
            return to_layer(image)
        except Exception as error:  # a decoder may raise anything on a broken file, and leave an unusable image
            raise InvalidParameter(field, "is broken or cut off: it cannot be decoded") from error


def has_transparency(data: bytes, field: str) -> bool:
    """Returns True if anything in the image in `data` is transparent. Raises InvalidParameter."""
    with _open(data, field) as image:
        if not image.has_transparency_data:
            return False
    layer = decode_layer(data, field)
    return layer.mode == "RGBA" and layer.getchannel("A").getextrema() != (255, 255)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to upright RGB: EXIF rotation applied, 16 bits scaled to 8, transparency over white."""
    return composite_over_white(to_layer(image))


def to_layer(image: Image.Image) -> Image.Image:
    """Converts as `to_rgb` does, but to RGBA if the image has transparency: a channel, a palette's or one colour."""
    transposition = _UPRIGHT.get(_orientation(image))
    image = image if transposition is None else image.transpose(transposition)
    transparent = image.info.get("transparency")
    if image.mode in ("1", "L", *_HIGH_DEPTH_MODES) and isinstance(transparent, int):
        # Pillow's own conversion forgets the colour of sixteen bits.
        visible = np.asarray(image.convert("L") if image.mode == "1" else image) != transparent
        image = (_scale_to_8_bits(image) if image.mode in _HIGH_DEPTH_MODES else image).convert("RGB")
        image.putalpha(Image.fromarray(np.where(visible, 255, 0).astype(np.uint8)))
        return image
    if image.mode in _HIGH_DEPTH_MODES:
        image = _scale_to_8_bits(image)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def composite_over_white(layer: Image.Image) -> Image.Image:
    """Composites an image of `to_layer` over white, as RGB."""
    return composite_over(layer, "white")


def composite_over(layer: Image.Image, colour: str) -> Image.Image:
    """Composites an image of `to_layer` over a colour, as RGB."""
    if layer.mode == "RGB":
        return layer
    return Image.alpha_composite(Image.new("RGBA", layer.size, colour), layer).convert("RGB")


_ORIENTATION: Final = 0x0112
_ON_ITS_SIDE: Final = (5, 6, 7, 8)
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation, 1 to 8; 1, upright, if there is none or it cannot be read.

    Read through the base class: a PNG's own `getexif` decodes the whole image to look for EXIF behind it. Pillow's
    `exif_transpose` would also rewrite the EXIF, and fail on what real phones put there.
    """
    try:
        found = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # whatever a broken block makes Pillow's parser raise
        return 1
    return found if isinstance(found, int) else 1


def _open(data: bytes, field: str) -> ImageFile.ImageFile:
    if has_too_many_chunks(data):
        raise InvalidParameter(field, "has too many chunks or segments; save the picture anew")
    try:
        image = Image.open(io.BytesIO(strip_metadata(data)), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidParameter(field, _TOO_LARGE) from None
    except Exception as error:  # Pillow's parsers raise far more than UnidentifiedImageError on hostile files
        raise InvalidParameter(field, "must be a PNG, JPEG or WebP picture") from error
    width, height = image.size
    # A phone's JPEG may carry a second image, such as its depth; that is not an animation.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InvalidParameter(field, "must be one picture, not an animation")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidParameter(field, _TOO_LARGE)
    if min(width, height) < MIN_SIDE:
        raise InvalidParameter(field, f"must be at least {MIN_SIDE} x {MIN_SIDE} pixels")
    return image


_TOO_LARGE: Final = f"must have at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all"


def _scale_transparent_colour(image: Image.Image, data: bytes) -> None:
    """Scales a PNG's one transparent colour to 8 bits, as Pillow does with the pixels."""
    found = image.info.get("transparency")
    if image.format != "PNG" or found is None:
        return
    depth = data[_PNG_DEPTH_AT]
    if image.mode == "L" and isinstance(found, int):
        most = 2**depth - 1
        image.info["transparency"] = (found & most) * 255 // most
    elif image.mode == "RGB" and depth == _SIXTEEN:
        image.info["transparency"] = tuple(value >> 8 for value in found)


# The file's signature, a length, a name, width and height come first.
_PNG_DEPTH_AT: Final = 24
_SIXTEEN: Final = 16


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8), "L")
