"""An imperceptible watermark of our own: a repeated tile of faint noise, stronger where a picture hides it.

It is found without the original, in a picture that was cropped, compressed, or resized by a factor that can be guessed
(docs/labels.md has what survives). No torch; a few milliseconds a picture.
"""

from collections.abc import Iterator
from itertools import product
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.engine.protocol.inputs import ImageArray
from deployments.watermark.methods import FoundMark
from deployments.watermark.patterns import (
    POSITION_WEIGHT,
    SIDE,
    STEP,
    SYMBOLS,
    band,
    check_of,
    matched_filters,
    tile_of,
)

Grey = NDArray[np.float32]
"""[H, W]"""

# The standard deviation of the mark in a flat area, by how much it grows with a picture's own, and the most, of 255.
_FLAT, _GROWTH, _MOST = 1.0, 0.1, 2.4
_NEIGHBOURHOOD: Final = (9, 9)

FEWEST_SCORE: Final = 10.5
"""Unmarked pictures score 7.9 with a standard deviation of 0.4."""

_POSITIONS: Final = 8
_GUESSES: Final = 3
# Larger pictures repeat the tile often enough.
_MOST_SIDE: Final = 1024
# The longer sides that pictures are made with: one that was resized, and not cropped, had probably one of these.
_USUAL_SIDES: Final = (512, 768, 1024, 256, 640, 896, 1152, 1280, 1536, 2048)
_MOST_FACTOR: Final = 3.0
_LEAST_FACTOR: Final = 0.2


class SpreadSpectrum:
    """Marks pictures with four bytes, and finds them again."""

    def mark(self, picture: ImageArray, payload: bytes) -> ImageArray:
        """Returns a marked copy of `picture` [H, W, 3]."""
        height, width, _ = picture.shape
        tile = np.tile(tile_of(payload), (-(-height // SIDE), -(-width // SIDE)))[:height, :width]
        changed = picture.astype(np.float32)
        changed += (tile * _strength_of(_to_grey(picture)))[..., None]
        np.clip(np.rint(changed, out=changed), 0, 255, out=changed)
        return changed.astype(np.uint8)

    def find(self, picture: ImageArray) -> FoundMark | None:
        """Returns what `picture` is marked with, if it is marked."""
        grey = _to_grey(picture)
        for factor in _likely_factors(*grey.shape):
            found = _read(_resize_middle(grey, factor))
            if found is not None:
                return found
        return None


def _strength_of(grey: Grey) -> Grey:
    """Returns how strongly each pixel may be changed: the more varied its neighbourhood, the less it shows."""
    mean = cv2.blur(grey, _NEIGHBOURHOOD)
    variance = cv2.blur(grey * grey, _NEIGHBOURHOOD) - mean * mean
    found: Grey = np.minimum(_FLAT + _GROWTH * np.sqrt(np.maximum(variance, 0)), _MOST)
    return found


def _to_grey(picture: ImageArray) -> Grey:
    found: Grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return found


def _likely_factors(height: int, width: int) -> Iterator[float]:
    """Yields by how much the picture may have to be enlarged to have its first size again, the likeliest first."""
    yield from (1.0, 2.0)
    for side in _USUAL_SIDES:
        factor = side / max(height, width)
        if _LEAST_FACTOR <= factor <= _MOST_FACTOR and factor not in (1.0, 2.0):
            yield factor


def _resize_middle(grey: Grey, factor: float) -> Grey:
    """Resizes as much of the picture's middle as is needed."""
    most = int(_MOST_SIDE / factor)
    height, width = grey.shape
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    middle = grey[top : top + most, left : left + most]
    if factor == 1:
        return middle
    method = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    found: Grey = cv2.resize(middle, None, fx=factor, fy=factor, interpolation=method)
    return found


def _read(grey: Grey) -> FoundMark | None:
    """Reads the mark of a picture of its first size: looks where the tile lies, then for each byte's place."""
    position, *carriers = _correlate(_fold(_whiten(grey)))
    likeliest = np.argpartition(position.ravel(), -_POSITIONS)[-_POSITIONS:]
    for place in likeliest[np.argsort(-position.ravel()[likeliest])]:
        row, column = divmod(int(place), SIDE)
        places = np.stack([np.roll(each, (-row, -column), axis=(0, 1))[::STEP, ::STEP].ravel() for each in carriers])
        for symbols in _guess(places):
            score = _score(float(position[row, column]), places[np.arange(SYMBOLS), list(symbols)])
            payload, check = symbols[:-2], symbols[-2:]
            if score >= FEWEST_SCORE and check == check_of(payload):
                return FoundMark(payload, round(score, 1))
    return None


def _guess(places: NDArray[np.float64]) -> Iterator[bytes]:
    """Yields likely bytes: the best place for each, and for the two least certain ones also the next best."""
    best = np.argsort(-places, axis=1)[:, :_GUESSES]
    certainty = np.take_along_axis(places, best, axis=1)
    weakest = set(np.argsort(certainty[:, 0] - certainty[:, 1])[:2].tolist())
    choices = [best[i] if i in weakest else best[i, :1] for i in range(SYMBOLS)]
    yield from (bytes(int(each) for each in chosen) for chosen in product(*choices))


def _score(position: float, symbols: NDArray[np.float64]) -> float:
    return float((POSITION_WEIGHT * position + symbols.sum()) / np.sqrt(POSITION_WEIGHT**2 + SYMBOLS))


def _whiten(grey: Grey) -> Grey:
    """Returns what is left of a picture without its coarse shapes, at the same strength everywhere."""
    fine = cv2.GaussianBlur(grey, (0, 0), 0.8) - cv2.GaussianBlur(grey, (0, 0), 4)
    strength = np.sqrt(np.maximum(cv2.blur(fine * fine, (17, 17)), 0))
    found: Grey = np.clip(fine / (strength + 0.5), -3, 3)
    return found


def _fold(residual: Grey) -> Grey:
    """Adds up all tiles of a picture."""
    height, width = residual.shape
    down, across = -(-height // SIDE), -(-width // SIDE)
    padded = np.zeros((down * SIDE, across * SIDE), np.float32)
    padded[:height, :width] = residual
    found: Grey = padded.reshape(down, SIDE, across, SIDE).sum(axis=(0, 2))
    return found


def _correlate(folded: Grey) -> list[NDArray[np.float64]]:
    """Returns for each pattern how well it fits at each pixel of the tile, in standard deviations."""
    spectrum = np.fft.fft2(folded)
    size = np.fft.ifftshift(cv2.blur(np.fft.fftshift(np.abs(spectrum)), (5, 5)))
    flat = np.where(band(), spectrum / (size + 1e-6), 0)
    fits = [np.fft.ifft2(flat * each).real for each in matched_filters()]
    return [fit / (fit.std() or 1.0) for fit in fits]
