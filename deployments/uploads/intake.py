"""Turns a request's uploads into the arrays that the engine takes, on a replica. No torch."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np

from deployments.annotators.catalogue import Annotators
from deployments.engine.protocol.errors import EngineError, GenerationFailed, InvalidParameter
from deployments.engine.protocol.inputs import ImageArray, Inputs, Mask, Uploads
from deployments.engine.protocol.request import Request
from deployments.freed_memory import FreedMemory
from deployments.uploads.image_files import decode, decode_layer, resize
from deployments.uploads.masks import create_mask
from deployments.uploads.transparency import hint_of, mask_of

log = logging.getLogger(__name__)

# Each may hold several copies of an image of 16 million pixels while it works.
_THREADS = 2


class Worker(Protocol):
    """Takes a request whose images are ready: an `EngineWorker`."""

    def check_room(self, request: Request) -> None: ...


class Intake:
    """Decodes requests' uploads on two threads of its own, so that a burst of large images takes no more memory."""

    def __init__(self, annotators: Annotators, *, owns_files: bool = False) -> None:
        """With `owns_files`, files are dropped once decoded, since nothing else will need them."""
        self._annotators = annotators
        self._owns_files = owns_files
        self._freed = FreedMemory()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode-upload")

    async def decode(self, request: Request, worker: Worker) -> Request:
        """Returns the request with its uploads decoded, if `worker` has room for it.

        Raises EngineError: for bad files, and, before they are decoded, for a full queue.
        """
        if request.uploads is None:
            return request
        worker.check_room(request)
        try:
            return await self._decode_uploads(request)
        except EngineError:
            raise
        except Exception:
            log.exception("the pictures of a request could not be taken in")
            raise GenerationFailed("the request's pictures could not be taken in") from None

    def close(self) -> None:
        """Ends the threads once they have finished their work."""
        self._threads.shutdown(wait=False)

    async def _decode_uploads(self, request: Request) -> Request:
        try:
            decoded = await asyncio.get_running_loop().run_in_executor(
                self._threads, decode_uploads, request, self._annotators
            )
            if self._owns_files and request.uploads is not None:
                request.uploads.drop()
            return decoded
        finally:
            # A small file may have been a large image.
            self._freed.schedule()


def decode_uploads(request: Request, annotators: Annotators) -> Request:
    """Returns `request` with `inputs` in place of its `uploads`, all of its own size.

    Raises InvalidParameter, and ModelLoadError if an annotator's network cannot be loaded.
    """
    uploads = request.uploads
    if uploads is None:
        return request
    # Looked up before anything is decoded: a type without an annotator costs nothing.
    makers = [annotators.of(control.type) for control in request.params.controls] if uploads.preprocess else []
    size = (request.bucket.width, request.bucket.height)
    image, mask = None, None
    if uploads.image is not None:
        image = _decode_image(uploads.image, uploads.image_field, uploads, size)
    if uploads.task == "inpaint":
        mask = _decode_mask(uploads, size)
    hints = tuple(_decode_hint(hint, uploads, size) for hint in uploads.hints)
    if makers:
        hints = tuple(make(hint) for make, hint in zip(makers, hints, strict=True))
    return replace(request, inputs=Inputs(image, mask, hints), uploads=None)


def _decode_image(data: bytes, field: str, uploads: Uploads, size: tuple[int, int]) -> ImageArray:
    return np.asarray(resize(decode(data, field), *size, uploads.fit), dtype=np.uint8)


def _decode_hint(data: bytes, uploads: Uploads, size: tuple[int, int]) -> ImageArray:
    """Decodes a hint; a photo that a hint will be made of is decoded like any other image."""
    if uploads.preprocess:
        return _decode_image(data, "control_image", uploads, size)
    hint = hint_of(decode_layer(data, "control_image"))
    return np.asarray(resize(hint, *size, uploads.fit), dtype=np.uint8)


def _decode_mask(uploads: Uploads, size: tuple[int, int]) -> Mask:
    if uploads.mask is None:
        return np.asarray(create_mask(*size, uploads.mask_type or "center"), dtype=np.uint8)
    drawn = mask_of(decode_layer(uploads.mask, "mask"), uploads.mask_alpha)
    mask = np.asarray(resize(drawn, *size, uploads.fit), dtype=np.uint8)
    if mask.max() < 128:
        raise InvalidParameter("mask", "must have something to paint: white is painted anew, black is kept")
    return mask
