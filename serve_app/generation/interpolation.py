"""Enlarges pictures' files by interpolation, on threads of the service's own process."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from PIL import Image

from deployments.engine.protocol.inputs import Enlargement
from deployments.uploads.image_files import decode_layer
from serve_app.generation.result import to_png

LANCZOS: Final = "lanczos"

THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="enlarge")
"""A picture may have sixteen million pixels, of which there are several copies while it is enlarged and labelled."""


async def interpolate(enlargement: Enlargement) -> bytes:
    """Returns the picture as a PNG file of the size asked for. Raises InvalidParameter for a bad file."""
    return await asyncio.get_running_loop().run_in_executor(THREADS, _interpolate, enlargement)


def _interpolate(enlargement: Enlargement) -> bytes:
    layer = decode_layer(enlargement.file, enlargement.field)
    return to_png(layer.resize(enlargement.size, Image.Resampling.LANCZOS))
