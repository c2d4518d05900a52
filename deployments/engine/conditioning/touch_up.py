"""Touches up finished pictures: local contrast, contrast, sharpness."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from deployments.engine.protocol.inputs import ImageArray
from deployments.engine.protocol.params import GenerationParams


def touch_up(picture: ImageArray, params: GenerationParams) -> ImageArray:
    """Returns `picture` [H, W, 3] with what `params` ask for, in this order: local contrast, contrast, sharpness."""
    if not (params.local_contrast or params.contrast != 1.0 or params.sharpen):
        return picture
    image = Image.fromarray(picture)
    if params.local_contrast:
        image = stretch_contrast(image, params.local_contrast)
    if params.contrast != 1.0:
        image = adjust_contrast(image, params.contrast)
    if params.sharpen:
        image = sharpen(image, params.sharpen)
    return np.asarray(image, dtype=np.uint8)


def sharpen(image: Image.Image, amount: float, radius: float = 1.0) -> Image.Image:
    """Applies an unsharp mask: `amount` 0 changes nothing, 1 doubles what a blur of `radius` pixels removes."""
    return image.filter(ImageFilter.UnsharpMask(radius=radius, percent=round(amount * 100), threshold=2))


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Multiplies contrast by `factor` around the image's mean: 0 is grey, 1 changes nothing."""
    return ImageEnhance.Contrast(image).enhance(factor)


def stretch_contrast(image: Image.Image, limit: float) -> Image.Image:
    """Equalises local contrast (CLAHE, Zuiderveld 1994) in lightness alone, so that colours stay."""
    # Imported where it is needed: it would be a fifth of a second of every start.
    import cv2

    lab = cv2.cvtColor(np.asarray(image, dtype=np.uint8), cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = cv2.createCLAHE(clipLimit=limit, tileGridSize=(8, 8)).apply(lab[:, :, 0])
    return Image.fromarray(np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), dtype=np.uint8))
