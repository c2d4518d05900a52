"""Prepares images for generation and finishes them, for Python callers: loading, resizing, masks, hints, touch-up."""

import base64
import binascii
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from deployments.annotators.catalogue import Annotators
from deployments.annotators.edges import HIGH, LOW, detect_edges
from deployments.annotators.models import DEMO_ANNOTATORS
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Fit, MaskAlpha
from deployments.uploads.image_files import (
    adjust_contrast,
    composite_over_white,
    decode_layer,
    resize,
    sharpen,
    stretch_contrast,
    to_layer,
    to_rgb,
)
from deployments.uploads.masks import Box, create_mask
from deployments.uploads.transparency import mask_of

Source = str | Path | bytes | Image.Image


class ImageProcessor:
    """Every image it returns is new, RGB, and upright.

    Depth, pose and segmentation are estimated by networks, which are loaded into this process at their first use: those
    of `annotators`, or the demo family's, which know the demo models' world and no photographs.
    """

    def __init__(self, annotators: Annotators | None = None) -> None:
        self._annotators = Annotators(DEMO_ANNOTATORS) if annotators is None else annotators

    def load(self, source: Source) -> Image.Image:
        """Loads an image from a path, a file's bytes, base64 (also a data URL) or another image.

        Applies EXIF rotation, scales 16 bits to 8, and puts transparency on white. A string that names a file is a
        path. Raises InvalidParameter for anything but PNG, JPEG or WebP, and FileNotFoundError for a `Path` that does
        not exist.
        """
        return composite_over_white(_load_layer(source, "image"))

    def load_mask(self, source: Source, mask_alpha: MaskAlpha | None = None) -> Image.Image:
        """Loads a mask as grey, white where the image is repainted, from whatever `load` takes.

        docs/pictures.md explains what transparency means; `mask_alpha` decides it if the colours do not. Raises as
        `load` does.
        """
        return mask_of(_load_layer(source, "mask"), mask_alpha)

    def resize(self, image: Image.Image, width: int, height: int, fit: Fit | Literal["fit"] = "cover") -> Image.Image:
        """Resizes `image` to `width` x `height`: `cover` crops to the middle, `pad` adds borders, `stretch` distorts;
        `fit` keeps the shape and stays within.
        """
        return resize(to_rgb(image), width, height, fit)

    def create_mask(self, image: Image.Image, mask_type: str = "center", box: Box | None = None) -> Image.Image:
        """Creates a mask of the image's size, white where the image is repainted.

        `mask_type`: center, full, border, top, bottom, left, right, top_left, top_right, bottom_left, bottom_right,
        ellipse. A `box` (left, top, right, bottom as fractions in [0, 1]) wins over it. Raises InvalidParameter.
        """
        return create_mask(image.width, image.height, mask_type, box)

    def apply_canny_edge_detection(
        self, image: Image.Image, low_threshold: int = LOW, high_threshold: int = HIGH
    ) -> Image.Image:
        """Makes the hint for a canny ControlNet: edges above `high_threshold`, followed down to `low_threshold`."""
        pixels = np.asarray(to_rgb(image), dtype=np.uint8)
        return Image.fromarray(detect_edges(pixels, low_threshold, high_threshold))

    def apply_depth_estimation(self, image: Image.Image) -> Image.Image:
        """Makes the hint for a depth ControlNet, of the image's size: grey, near is bright.

        This and the next two raise InvalidParameter if the type has no annotator or the image is smaller than 64
        pixels, and ModelLoadError if its network cannot be loaded.
        """
        return self.make_hint(image, "depth")

    def apply_pose_estimation(self, image: Image.Image) -> Image.Image:
        """Makes the hint for a pose ControlNet, of the image's size: people as OpenPose skeletons on black."""
        return self.make_hint(image, "pose")

    def apply_segmentation(self, image: Image.Image) -> Image.Image:
        """Makes the hint for a segmentation ControlNet, of the image's size: regions in ADE20K's colours."""
        return self.make_hint(image, "segmentation")

    def make_hint(self, image: Image.Image, controlnet_type: str) -> Image.Image:
        """Makes the hint for a ControlNet of a type that has an annotator (docs/annotators.md), in the image's size."""
        pixels = np.asarray(to_rgb(image), dtype=np.uint8)
        return Image.fromarray(self._annotators.of(controlnet_type)(pixels))

    def sharpen(self, image: Image.Image, amount: float = 0.5, radius: float = 1.0) -> Image.Image:
        """Applies an unsharp mask: `amount` 0 changes nothing, 1 doubles what a blur of `radius` pixels removes."""
        return sharpen(to_rgb(image), amount, radius)

    def adjust_contrast(self, image: Image.Image, factor: float = 1.1) -> Image.Image:
        """Multiplies contrast by `factor` around the image's mean: 0 is grey, 1 changes nothing."""
        return adjust_contrast(to_rgb(image), factor)

    def stretch_contrast(self, image: Image.Image, limit: float = 2.0) -> Image.Image:
        """Equalises local contrast (CLAHE, Zuiderveld 1994) in lightness alone, so that colours stay."""
        return stretch_contrast(to_rgb(image), limit)


def _load_layer(source: Source, field: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return to_layer(source)
    if isinstance(source, bytes):
        return decode_layer(source, field)
    if isinstance(source, Path) or _is_file(source):
        return decode_layer(Path(source).read_bytes(), field)
    return decode_layer(_decode_base64(source), field)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null byte: base64, then
        return False


def _decode_base64(text: str) -> bytes:
    payload = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidParameter("image", "is neither a file that is there nor base64") from None
