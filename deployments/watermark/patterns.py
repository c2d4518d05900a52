"""The patterns that a watermark is made of: one that says where it lies, and one for each byte that it carries.

A byte is written as a place: its pattern is moved, round the tile, to one of 256. So it is read by looking for where
the pattern fits best, and 48 bits need as little strength as seven patterns do.
"""

import hashlib
import zlib
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.float32]
"""[SIDE, SIDE]; it is repeated over a picture."""

Spectrum = NDArray[np.complex128]

SIDE: Final = 128
PLACES: Final = 16
STEP: Final = SIDE // PLACES
"""Places for a byte lie so far apart that neighbours have nothing in common."""

PAYLOAD_BYTES: Final = 4
CHECK_BYTES: Final = 2
SYMBOLS: Final = PAYLOAD_BYTES + CHECK_BYTES

POSITION_WEIGHT: Final = 1.4
"""The pattern of the position is looked for at every pixel, so it needs more strength than one of 256 places."""

# Cycles a pixel. Higher ones are lost at half size, lower ones are seen.
_LOWEST, _HIGHEST = 0.07, 0.2
_NAME: Final = b"darkroom watermark 1"


@cache
def band() -> NDArray[np.bool_]:
    """The frequencies of a tile that patterns have: [SIDE, SIDE]."""
    frequencies = np.fft.fftfreq(SIDE)
    radius = np.hypot(frequencies[:, None], frequencies[None])
    found: NDArray[np.bool_] = (radius >= _LOWEST) & (radius <= _HIGHEST)
    return found


@cache
def patterns() -> tuple[Tile, ...]:
    """The pattern of the position, then one for each byte: noise of equal strength at all frequencies of the band."""
    made = []
    for index in range(1 + SYMBOLS):
        # Not numpy's generator, whose numbers may change with a version: other releases must find the mark.
        noise = hashlib.shake_128(_NAME + bytes([index])).digest(SIDE * SIDE)
        spectrum = np.fft.fft2(np.frombuffer(noise, np.uint8).reshape(SIDE, SIDE).astype(np.float64) - 127.5)
        tile = np.fft.ifft2(np.where(band(), spectrum / np.abs(spectrum), 0)).real
        made.append((tile / tile.std()).astype(np.float32))
    return tuple(made)


@cache
def matched_filters() -> tuple[Spectrum, ...]:
    """For each pattern, what a picture's spectrum is multiplied with to look for it everywhere."""
    return tuple(np.conj(np.fft.fft2(tile.astype(np.float64))) for tile in patterns())


@cache
def tile_of(payload: bytes) -> Tile:
    """The tile, of standard deviation 1, that carries `payload`."""
    position, *carriers = patterns()
    total = POSITION_WEIGHT * position
    for carrier, symbol in zip(carriers, payload + check_of(payload), strict=True):
        row, column = divmod(symbol, PLACES)
        total = total + np.roll(carrier, (row * STEP, column * STEP), axis=(0, 1))
    found: Tile = (total / total.std()).astype(np.float32)
    return found


def check_of(payload: bytes) -> bytes:
    """The bytes that tell a payload from what was only misread."""
    return zlib.crc32(payload).to_bytes(4, "big")[-CHECK_BYTES:]
