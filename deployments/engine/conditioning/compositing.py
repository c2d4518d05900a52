"""Composites a repainted image with the original, which keeps its bytes outside the mask."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deployments.engine.protocol.inputs import ImageArray, Mask, WholeImage


def threshold_mask(mask: Mask) -> NDArray[np.bool_]:
    """Returns which pixels [H, W] of a mask are repainted; diffusers uses the same threshold."""
    return np.asarray(mask.astype(np.float32) / 255 >= 0.5, dtype=np.bool_)


def paste(made: ImageArray, whole: WholeImage, feather: int) -> ImageArray:
    """Returns the picture of `whole` with `made`, resized to its box, inside its mask; see `composite`.

    What `made` has beyond the box's shape is cut off, as diffusers does.
    """
    left, top, right, bottom = whole.box
    area = ImageOps.fit(Image.fromarray(made), (right - left, bottom - top), Image.Resampling.LANCZOS)
    pasted = whole.image.copy()
    pasted[top:bottom, left:right] = np.asarray(area)
    return composite(pasted, whole.image, whole.mask, feather)


def composite(repainted: ImageArray, image: ImageArray, mask: Mask, feather: int) -> ImageArray:
    """Returns `repainted` inside the mask and `image` outside it, to the byte.

    Over the first `feather` pixels inside the mask's edge one turns into the other; none outside ever changes.
    """
    inside = threshold_mask(mask)
    if not feather:
        return np.where(inside[:, :, None], repainted, image)
    # Imported where it is needed: it would be a fifth of a second of every start.
    import cv2

    depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share = np.minimum(depth / feather, 1.0)[:, :, None]
    mixed = image + share * (repainted.astype(np.float32) - image)
    return np.asarray(np.rint(mixed), dtype=np.uint8)
