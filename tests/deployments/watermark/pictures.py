"""Pictures to mark: drawings as the demo models make them, and noise like a photograph's; and what becomes of them."""

import io

import numpy as np
from PIL import Image, ImageDraw

from deployments.engine.protocol.inputs import ImageArray


def drawing(side: int, seed: int = 0) -> ImageArray:
    """Flat shapes on a flat ground: nothing hides a mark here, and compression takes most of it."""
    rng = np.random.default_rng(seed)
    canvas = Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(40, 216, 3)))
    draw = ImageDraw.Draw(canvas)
    for _ in range(6):
        x, y, size = (int(v) for v in rng.integers(0, side // 2, 3))
        draw.ellipse((x, y, x + size + 8, y + size + 8), fill=tuple(int(v) for v in rng.integers(40, 216, 3)))
    return np.asarray(canvas)


def photo(side: int, seed: int = 0) -> ImageArray:
    """Noise with a photograph's spectrum, which falls with the frequency."""
    rng = np.random.default_rng(seed)
    frequencies = np.fft.fftfreq(side)
    radius = np.maximum(np.hypot(frequencies[:, None], frequencies[None]), 1 / side)
    layers = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) / radius).real for _ in range(3)]
    values = np.stack([layer / layer.std() * 40 + 128 for layer in layers], axis=-1)
    found: ImageArray = np.clip(values, 0, 255).astype(np.uint8)
    return found


def as_jpeg(picture: ImageArray, quality: int) -> ImageArray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(picture: ImageArray, width: int, height: int) -> ImageArray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def cropped(picture: ImageArray, share: float) -> ImageArray:
    """Without `share` of each side, unevenly, so that nothing lies where it lay."""
    side = len(picture)
    cut, before = round(side * share), round(side * share / 3) + 1
    return np.ascontiguousarray(picture[before : before + side - cut, cut - before : side - before])


def psnr(first: ImageArray, second: ImageArray) -> float:
    error = np.mean((first.astype(float) - second) ** 2)
    return float(10 * np.log10(255**2 / error))
