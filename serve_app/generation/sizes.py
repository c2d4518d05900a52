"""Sizes that clients ask for whatever a model can: the nearest that it makes well."""

from math import sqrt

from deployments.engine.protocol.params import MAX_SIDE, MIN_SIDE
from deployments.engine.protocol.settings import SIZE_STEP, HiresSettings
from deployments.engine.protocol.spec import ModelSpec


def nearest_side(pixels: float) -> int:
    """Returns the side that is nearest to `pixels`: a multiple of 8 from 64 to 2048."""
    return min(max(round(pixels / SIZE_STEP) * SIZE_STEP, MIN_SIDE), MAX_SIDE)


def fit_to_model(width: int, height: int, spec: ModelSpec) -> tuple[int, int]:
    """Returns `width` and `height` in whole steps, if the model can make them; else their shape at its native area."""
    if width * height <= spec.max_pixels and max(width, height) < MAX_SIDE + SIZE_STEP:
        return width // SIZE_STEP * SIZE_STEP, height // SIZE_STEP * SIZE_STEP
    return native_sides(width / height, spec)


def native_sides(ratio: float, spec: ModelSpec) -> tuple[int, int]:
    """Returns width and height of a shape, width by height, at the area that the model was trained for."""
    return nearest_side(spec.native_size * sqrt(ratio)), nearest_side(spec.native_size / sqrt(ratio))


def fit_scale(width: int, height: int, scale: float, spec: ModelSpec) -> float | None:
    """Returns the largest scale up to `scale` and 4 whose second pass the model can make; None if there is none."""
    for larger in range(int(min(scale, 4.0) * width) // SIZE_STEP * SIZE_STEP, width, -SIZE_STEP):
        hires = HiresSettings(scale=larger / width)
        sides = hires.enlarge(width), hires.enlarge(height)
        if max(sides) <= MAX_SIDE and sides[0] * sides[1] <= spec.max_pixels:
            return hires.scale
    return None
