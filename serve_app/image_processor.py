"""Pictures before and after generation, for Python callers: load, resize, masks, hints, finishing touches."""

import base64
import binascii
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from deployments.annotators.catalogue import Annotators
from deployments.annotators.edges import HIGH, LOW, detect_edges
from deployments.annotators.models import DEMO_ANNOTATORS
from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.inputs import Fit, MaskAlpha
from deployments.uploads.image_files import composite_over_white, decode_layer, resize, to_layer, to_rgb
from deployments.uploads.masks import Box, create_mask
from deployments.uploads.transparency import mask_of

Source = str | Path | bytes | Image.Image


class ImageProcessor:
    """All pictures it gives are new, RGB, and upright.

    Depth, pose and segmentation are estimated by networks, which are loaded into this process at their first use:
    those of `annotators`, or the demo family's, which know the demo models' world and no photographs.
    """

    def __init__(self, annotators: Annotators | None = None) -> None:
        self._annotators = Annotators(DEMO_ANNOTATORS) if annotators is None else annotators

    def load(self, source: Source) -> Image.Image:
        """A picture from a path, a file's bytes, base64 (a data URL too) or another picture.

        EXIF rotation is applied, 16 bits are scaled to 8, transparency becomes white. A string that names a file is a
        path. Raises InvalidParameter for what is no PNG, JPEG or WebP, and FileNotFoundError for a `Path` that is not
        there.
        """
        return composite_over_white(_layer(source, "image"))

    def load_mask(self, source: Source, mask_alpha: MaskAlpha | None = None) -> Image.Image:
        """A mask as grey, white where it is painted anew, from whatever `load` takes.

        What transparency means is told in docs/pictures.md; `mask_alpha` says it where the colours leave it open.
        Raises as `load` does.
        """
        return mask_of(_layer(source, "mask"), mask_alpha)

    def resize(self, image: Image.Image, width: int, height: int, fit: Fit | Literal["fit"] = "cover") -> Image.Image:
        """`image` at `width` x `height`: `cover` crops the middle, `pad` fills up, `stretch` distorts; `fit` keeps the
        shape and stays within.
        """
        return resize(to_rgb(image), width, height, fit)

    def create_mask(self, image: Image.Image, mask_type: str = "center", box: Box | None = None) -> Image.Image:
        """A mask of the image's size, white where it is painted anew.

        `mask_type`: center, full, border, top, bottom, left, right, top_left, top_right, bottom_left, bottom_right,
        ellipse. A `box` (left, top, right, bottom as shares in [0, 1]) wins over it. Raises InvalidParameter.
        """
        return create_mask(image.width, image.height, mask_type, box)

    def apply_canny_edge_detection(
        self, image: Image.Image, low_threshold: int = LOW, high_threshold: int = HIGH
    ) -> Image.Image:
        """The hint for a canny ControlNet: edges stronger than `high_threshold`, followed down to `low_threshold`."""
        picture = np.asarray(to_rgb(image), dtype=np.uint8)
        return Image.fromarray(detect_edges(picture, low_threshold, high_threshold))

    def apply_depth_estimation(self, image: Image.Image) -> Image.Image:
        """The hint for a depth ControlNet, of the image's size: grey, near is bright.

        This and the next two raise InvalidParameter where there is no annotator for the type or the image is smaller
        than 64 pixels, and ModelLoadError where its network cannot be loaded.
        """
        return self._annotated(image, "depth")

    def apply_pose_estimation(self, image: Image.Image) -> Image.Image:
        """The hint for a pose ControlNet, of the image's size: people as OpenPose's skeletons on black."""
        return self._annotated(image, "pose")

    def apply_segmentation(self, image: Image.Image) -> Image.Image:
        """The hint for a segmentation ControlNet, of the image's size: what is where, in ADE20K's colours."""
        return self._annotated(image, "segmentation")

    def _annotated(self, image: Image.Image, controlnet_type: str) -> Image.Image:
        picture = np.asarray(to_rgb(image), dtype=np.uint8)
        return Image.fromarray(self._annotators.of(controlnet_type)(picture))

    def sharpen(self, image: Image.Image, amount: float = 0.5, radius: float = 1.0) -> Image.Image:
        """An unsharp mask: `amount` 0 changes nothing, 1 doubles what a blur of `radius` pixels takes away."""
        return to_rgb(image).filter(ImageFilter.UnsharpMask(radius=radius, percent=round(amount * 100), threshold=2))

    def adjust_contrast(self, image: Image.Image, factor: float = 1.1) -> Image.Image:
        """Contrast times `factor`, around the picture's mean: 0 is grey, 1 changes nothing."""
        return ImageEnhance.Contrast(to_rgb(image)).enhance(factor)

    def stretch_contrast(self, image: Image.Image, limit: float = 2.0) -> Image.Image:
        """Local contrast evened out (CLAHE, Zuiderveld 1994) in lightness alone, so that colours stay."""
        lab = cv2.cvtColor(np.asarray(to_rgb(image), dtype=np.uint8), cv2.COLOR_RGB2LAB)
        lab[:, :, 0] = cv2.createCLAHE(clipLimit=limit, tileGridSize=(8, 8)).apply(lab[:, :, 0])
        return Image.fromarray(np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8))


def _layer(source: Source, field: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return to_layer(source)
    if isinstance(source, bytes):
        return decode_layer(source, field)
    if isinstance(source, Path) or _names_a_file(source):
        return decode_layer(Path(source).read_bytes(), field)
    return decode_layer(_from_base64(source), field)


def _names_a_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null byte: base64, then
        return False


def _from_base64(text: str) -> bytes:
    payload = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidParameter("image", "is neither a file that is there nor base64") from None
