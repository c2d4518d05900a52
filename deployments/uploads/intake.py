"""Turns a request's uploads into the arrays that the engine takes, on a replica. No torch."""

import asyncio
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final, Protocol

import numpy as np
from PIL import Image, ImageOps

from deployments.annotators.catalogue import Annotators
from deployments.engine.conditioning.resizing import resize
from deployments.engine.protocol.errors import EngineError, GenerationFailed, InvalidParameter
from deployments.engine.protocol.inputs import ImageArray, Inputs, Mask, Uploads, WholeImage
from deployments.engine.protocol.params import GenerationParams
from deployments.engine.protocol.request import Request
from deployments.process_memory.freed_memory import FreedMemory
from deployments.uploads.image_files import decode, decode_layer
from deployments.uploads.masked_area import Size, crop_box, crop_to_mask, fill_mask
from deployments.uploads.masks import create_mask
from deployments.uploads.transparency import hint_of, mask_of

log = logging.getLogger(__name__)

# Each may hold several copies of an image of 16 million pixels while it works.
_THREADS = 2

REFERENCE_SIDE: Final = 1024
"""The most pixels a side of a reference image that waits for its turn: encoders look at a few hundred."""


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

    async def make_hints(self, request: Request, worker: Worker) -> tuple[bytes, ...]:
        """Returns the request's hints, as its ControlNets would get them, as PNG files. Raises as `decode` does."""
        ready = await self.decode(request, worker)
        hints = () if ready.inputs is None else ready.inputs.hints
        return await asyncio.get_running_loop().run_in_executor(self._threads, encode_hints, hints)

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


def encode_hints(hints: Sequence[ImageArray]) -> tuple[bytes, ...]:
    """Returns the hints as PNG files."""
    files = [io.BytesIO() for _ in hints]
    for hint, file in zip(hints, files, strict=True):
        Image.fromarray(hint).save(file, "PNG")
    return tuple(file.getvalue() for file in files)


def decode_uploads(request: Request, annotators: Annotators) -> Request:
    """Returns `request` with `inputs` in place of its `uploads`, all of its own size but the references.

    Raises InvalidParameter, and ModelLoadError if an annotator's network cannot be loaded.
    """
    uploads = request.uploads
    if uploads is None:
        return request
    params, size = request.params, (request.bucket.width, request.bucket.height)
    # Looked up before anything is decoded: a type without an annotator costs nothing.
    makers = [
        annotators.of(control.type) if uploads.preprocess or control.preprocess else None for control in params.controls
    ]
    if len(makers) != len(uploads.hints):
        raise InvalidParameter("control_image", "must be there once for each ControlNet that is asked for")
    inputs = _decode_inpaint(uploads, params, size) if uploads.task == "inpaint" else Inputs()
    if uploads.task == "image-to-image":
        inputs = Inputs(image=_decode_image(uploads, size))
    hints = []
    for hint, make in zip(uploads.hints, makers, strict=True):
        pixels = _decode_hint(hint, uploads, size, inputs.whole, is_photo=make is not None)
        hints.append(pixels if make is None else make(pixels))
    references = tuple(_decode_reference(reference) for reference in uploads.references)
    return replace(request, inputs=replace(inputs, hints=tuple(hints), references=references), uploads=None)


def _decode_image(uploads: Uploads, size: Size) -> ImageArray:
    assert uploads.image is not None
    return np.asarray(resize(decode(uploads.image, uploads.image_field), *size, uploads.fit), dtype=np.uint8)


def _decode_hint(data: bytes, uploads: Uploads, size: Size, whole: WholeImage | None, *, is_photo: bool) -> ImageArray:
    """Decodes a hint, or the photo for one, which is decoded like any other image. Of one for the `whole` image, the
    part that is made.
    """
    hint = decode(data, "control_image") if is_photo else hint_of(decode_layer(data, "control_image"))
    if whole is None:
        return np.asarray(resize(hint, *size, uploads.fit), dtype=np.uint8)
    height, width = whole.mask.shape
    return crop_box(np.asarray(resize(hint, width, height, uploads.fit), dtype=np.uint8), whole.box, size)


def _decode_reference(data: bytes) -> ImageArray:
    """Decodes a reference image in its own shape, and makes one with a side above `REFERENCE_SIDE` smaller."""
    picture = decode(data, "reference_images")
    picture.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.uint8)


def _decode_inpaint(uploads: Uploads, params: GenerationParams, size: Size) -> Inputs:
    if params.padding_mask_crop is not None:
        assert uploads.image is not None
        picture = decode(uploads.image, uploads.image_field)
        mask = _decode_mask(uploads, picture.size, inverted=params.mask_inverted)
        inputs = crop_to_mask(np.asarray(picture, dtype=np.uint8), mask, size, params.padding_mask_crop)
    else:
        inputs = Inputs(_decode_image(uploads, size), _decode_mask(uploads, size, inverted=params.mask_inverted))
    return fill_mask(inputs) if params.mask_fill == "surroundings" else inputs


def _decode_mask(uploads: Uploads, size: Size, *, inverted: bool) -> Mask:
    if uploads.mask is None:
        drawn = create_mask(*size, uploads.mask_type or "center")
    else:
        drawn = resize(mask_of(decode_layer(uploads.mask, "mask"), uploads.mask_alpha), *size, uploads.fit)
    mask = np.asarray(ImageOps.invert(drawn) if inverted else drawn, dtype=np.uint8)
    if mask.max() < 128:
        marked = "transparent by half or more" if uploads.mask_alpha == "holes" else "white and not black"
        where = "kept" if inverted else "painted anew"
        raise InvalidParameter("mask", f"must leave something to paint: be {marked} where the image is {where}")
    return mask
