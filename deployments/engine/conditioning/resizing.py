"""Resizes pictures of another shape: cropped, filled up, or distorted."""

from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from deployments.engine.protocol.inputs import Fit


def resize(image: Image.Image, width: int, height: int, fit: Fit | Literal["fit"] = "cover") -> Image.Image:
    """Resizes `image` to exactly `width` x `height` pixels, except for `fit`.

    `cover` fills it and crops the middle, `pad` keeps everything and fills up with the border's colours, `stretch`
    distorts, `fit` keeps everything and stays within, so that one side may be shorter.
    """
    if image.size == (width, height):
        return image
    size = (width, height)
    if fit == "cover":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if fit == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    shrunk = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    inside = image.resize(shrunk, Image.Resampling.LANCZOS)
    return inside if fit == "fit" else _extend(inside, width, height)


def _extend(image: Image.Image, width: int, height: int) -> Image.Image:
    """Puts `image` in the middle of a larger canvas, and extends its outermost pixels to the edges."""
    left, top = (width - image.width) // 2, (height - image.height) // 2
    pixels = np.asarray(image)
    sides = ((top, height - image.height - top), (left, width - image.width - left), (0, 0))
    return Image.fromarray(np.pad(pixels, sides[: pixels.ndim], mode="edge"))
