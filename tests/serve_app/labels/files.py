"""Image files of each kind, as replicas make them."""

import io
from typing import Final

import numpy as np
from PIL import Image

from deployments.engine.steps.compression import encode_image

FORMATS: Final = ("png", "jpeg", "webp")


def file_of(output_format: str, width: int = 72, height: int = 56) -> bytes:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode_image(values, output_format)  # type: ignore[arg-type]


def opened(file: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(file))
    picture.load()
    return picture


def pixels_of(file: bytes) -> np.ndarray:
    return np.asarray(opened(file).convert("RGB"))
