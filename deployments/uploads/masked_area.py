"""Prepares the masked area of an image for inpainting: crops to it, and fills it with the colours around it."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deployments.engine.conditioning.compositing import threshold_mask
from deployments.engine.conditioning.resizing import resize
from deployments.engine.protocol.inputs import ImageArray, Inputs, Mask, PixelBox, WholeImage

Size = tuple[int, int]
"""Width and height in pixels."""


def crop_to_mask(image: ImageArray, mask: Mask, size: Size, padding: int) -> Inputs:
    """Returns the masked area and `padding` pixels around it as a request of `size` sees it, and where it belongs.

    `image` [H, W, 3] and `mask` [H, W] are of one size; somewhere the mask is not 0.
    """
    box = find_box(mask, size, padding)
    return Inputs(crop_box(image, box, size), crop_box(mask, box, size), whole=WholeImage(image, mask, box))


def crop_box(pixels: NDArray[np.uint8], box: PixelBox, size: Size) -> NDArray[np.uint8]:
    """Returns what `pixels` [H, W] or [H, W, 3] have in `box`, resized to `size`.

    What a box of another shape lacks is filled up with its edges' colours, as diffusers does.
    """
    left, top, right, bottom = box
    return np.asarray(resize(Image.fromarray(pixels[top:bottom, left:right]), *size, "pad"), dtype=np.uint8)


def find_box(mask: Mask, size: Size, padding: int) -> PixelBox:
    """Returns the box of all of `mask` [H, W] that is not 0, grown by `padding` pixels and then to the shape of `size`.

    It stays within the mask, and so has another shape where that is too narrow. The steps and their rounding are those
    of `VaeImageProcessor.get_crop_region` in diffusers.
    """
    across, down = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    left, right = max(int(across[0]) - padding, 0), min(int(across[-1]) + 1 + padding, mask.shape[1])
    top, bottom = max(int(down[0]) - padding, 0), min(int(down[-1]) + 1 + padding, mask.shape[0])
    shape = size[0] / size[1]
    if (right - left) / (bottom - top) > shape:
        top, bottom = _grow(top, bottom, int((right - left) / shape), mask.shape[0])
    else:
        left, right = _grow(left, right, int((bottom - top) * shape), mask.shape[1])
    return left, top, right, bottom


def _grow(first: int, last: int, length: int, most: int) -> tuple[int, int]:
    """Returns `first` and `last` moved apart to `length`, or as far as 0 and `most` let them."""
    more = length - (last - first)
    first -= more // 2
    last += more - more // 2
    beyond = max(last - most, 0)
    first, last = first - beyond, last - beyond
    return max(first, 0), min(last - min(first, 0), most)


def fill_mask(inputs: Inputs) -> Inputs:
    """Returns `inputs` with the masked area of its image filled with the colours around it, which run into each other.

    The colours come from ever coarser copies of the image, each the mean of what is known of it (the push-pull of
    Gortler et al., The Lumigraph, 1996). What is kept outside the mask stays the image itself.
    """
    image, mask = inputs.image, inputs.mask
    assert image is not None
    assert mask is not None
    is_known = ~threshold_mask(mask)
    if not is_known.any():
        return inputs
    colours = _spread(np.where(is_known[:, :, None], image, 0).astype(np.float32), is_known.astype(np.float32))
    filled = np.where(is_known[:, :, None], image, np.rint(colours).astype(np.uint8))
    height, width = mask.shape
    return replace(inputs, image=filled, whole=inputs.whole or WholeImage(image, mask, (0, 0, width, height)))


def _spread(sums: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the colours [H, W, 3] of `sums` over `weights`, [H, W, 3] and [H, W], where nothing is known those of a
    copy half the size.
    """
    means = np.asarray(sums / np.maximum(weights, 1e-6)[:, :, None], dtype=np.float32)
    if weights.min() > 0:
        return means
    half = ((weights.shape[1] + 1) // 2, (weights.shape[0] + 1) // 2)
    coarse = _spread(*(cv2.resize(each, half, interpolation=cv2.INTER_AREA) for each in (sums, weights)))
    finer = cv2.resize(coarse, (weights.shape[1], weights.shape[0]), interpolation=cv2.INTER_LINEAR)
    share = np.minimum(weights, 1.0)[:, :, None]
    return np.asarray(share * means + (1 - share) * finer, dtype=np.float32)
