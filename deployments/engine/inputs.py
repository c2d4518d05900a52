"""The pictures that a request brings along, as plain arrays of the request's own size. Without torch."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""[H, W, 3], RGB."""

Mask = NDArray[np.uint8]
"""[H, W]; from 128 on a pixel is painted anew, below it is kept."""

Task = Literal["text-to-image", "image-to-image", "inpaint"]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """`image` is what an image-to-image or inpaint request starts from, `mask` says where it is painted anew.

    `hints` are ready for the ControlNets that the request's `controls` name, in the same order.
    """

    image: Picture | None = None
    mask: Mask | None = None
    hints: tuple[Picture, ...] = ()

    @property
    def task(self) -> Task:
        if self.mask is not None:
            return "inpaint"
        return "text-to-image" if self.image is None else "image-to-image"


def repainted(mask: Mask) -> NDArray[np.bool_]:
    """Which pixels [H, W] of a mask are painted anew; diffusers draws the line at the same grey."""
    return np.asarray(mask.astype(np.float32) / 255 >= 0.5, dtype=np.bool_)


def composite(made: Picture, image: Picture, mask: Mask, feather: int) -> Picture:
    """`made` where the mask says so and `image` elsewhere, to the byte.

    Over the first `feather` pixels inside the mask's edge the one turns into the other; none outside ever changes.
    """
    inside = repainted(mask)
    if not feather:
        return np.where(inside[:, :, None], made, image)
    depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share = np.minimum(depth / feather, 1.0)[:, :, None]
    mixed = image + share * (made.astype(np.float32) - image)
    return np.asarray(np.rint(mixed), dtype=np.uint8)
