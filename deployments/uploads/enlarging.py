"""Enlarges finished pictures' files by upscalers, on a replica, one after the other. No torch."""

import asyncio
import io
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Final, Protocol

import numpy as np
from PIL import Image

from deployments.engine.protocol.errors import EngineError, GenerationFailed, Overloaded
from deployments.engine.protocol.inputs import Enlargement, ImageArray
from deployments.process_memory.freed_memory import FreedMemory
from deployments.uploads.image_files import decode_layer

log = logging.getLogger(__name__)

MOST_WAITING: Final = 16
"""Pictures that wait or are being enlarged: each may take a minute."""


class PictureUpscaler(Protocol):
    """Enlarges pixels by an upscaler of that name: `Upscalers`."""

    def enlarge_to(
        self, name: str, picture: ImageArray, size: tuple[int, int], *, is_stopped: Callable[[], bool]
    ) -> ImageArray: ...


class PictureEnlarger:
    """Enlarges files on a thread of its own: two at once would only take more memory."""

    def __init__(self, upscalers: PictureUpscaler) -> None:
        self._upscalers = upscalers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="enlarge")
        self._freed = FreedMemory()
        self._under_way = 0
        self._seconds = 1.0

    async def enlarge(self, enlargement: Enlargement) -> bytes:
        """Returns the picture as a PNG file of the size asked for. Cancelling this ends the work at the next tile.

        Raises EngineError: for bad files and unknown upscalers, and Overloaded where too many wait.
        """
        if self._under_way >= MOST_WAITING:
            raise Overloaded("too many pictures are being enlarged", retry_after=self._under_way * self._seconds)
        self._under_way += 1
        stopped = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, enlargement, stopped)
        finally:
            stopped.set()
            self._under_way -= 1
            self._freed.schedule()

    def close(self) -> None:
        """Ends the thread once it has finished its work."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, enlargement: Enlargement, stopped: threading.Event) -> bytes:
        began = monotonic()
        try:
            file = enlarge_file(enlargement, self._upscalers, stopped.is_set)
        except EngineError:
            raise
        except Exception as error:
            log.exception("a picture could not be enlarged")
            raise GenerationFailed("the picture could not be enlarged") from error
        self._seconds = monotonic() - began
        return file


def enlarge_file(enlargement: Enlargement, upscalers: PictureUpscaler, is_stopped: Callable[[], bool]) -> bytes:
    """Returns the enlarged picture as a PNG file. Transparency, which networks do not know, is interpolated."""
    layer = decode_layer(enlargement.file, enlargement.field)
    pixels = np.asarray(layer.convert("RGB"), dtype=np.uint8)
    made = upscalers.enlarge_to(enlargement.upscaler, pixels, enlargement.size, is_stopped=is_stopped)
    enlarged = Image.fromarray(made if enlargement.mark is None else enlargement.mark.apply(made))
    if layer.mode == "RGBA":
        enlarged.putalpha(layer.getchannel("A").resize(enlargement.size, Image.Resampling.LANCZOS))
    buffer = io.BytesIO()
    enlarged.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
