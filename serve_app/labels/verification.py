"""Tells what a picture says of itself, whoever made it: by its manifest, its texts, and the mark in its pixels."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from deployments.freed_memory import FreedMemory
from deployments.uploads.image_files import ImageHeader, decode, read_header
from deployments.watermark.methods import OUR_METHOD, FoundMark, load_method
from serve_app.labels.file_metadata import FileTexts, read_texts
from serve_app.labels.labeller import Labeller
from serve_app.labels.manifests import ManifestReader, ManifestReport
from serve_app.labels.source_type import CHANGED, MADE, read_source_type

# Each may hold several copies of a picture of 16 million pixels.
_THREADS: Final = 2

AI_MADE: Final = frozenset({MADE, CHANGED, "compositeSynthetic", "algorithmicallyEnhanced"})
"""IPTC's codes for pictures in which a model had a part."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found in a file. `signed_here` and `marked_here` say that it was this server's certificate, or payload.

    Texts are anybody's to write and to take away; a valid manifest and a mark are not.
    """

    header: ImageHeader
    manifest: ManifestReport
    texts: FileTexts
    source_type: str | None
    mark: FoundMark | None
    signed_here: bool
    marked_here: bool

    @property
    def is_ai_made(self) -> bool:
        """Whether anything in the file says that a model made the picture, or a part of it."""
        said = {self.source_type, *self.manifest.source_types}
        return self.mark is not None or bool(said & AI_MADE)


class Verifier:
    """Reads the labels of untrusted files, on threads of its own."""

    def __init__(self, labeller: Labeller) -> None:
        self._labeller = labeller
        self._manifests = ManifestReader()
        self._method = load_method(labeller.mark.method if labeller.mark else OUR_METHOD)
        self._freed = FreedMemory()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="verify")

    async def verify(self, file: bytes, field: str) -> Verification:
        """Returns what is found in `file`. Raises InvalidParameter, naming `field`, unless it is a picture."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._verify, file, field)
        finally:
            # A small file may have been a large picture.
            self._freed.schedule()

    def _verify(self, file: bytes, field: str) -> Verification:
        header = read_header(file, field)
        mark = self._method.find(np.asarray(decode(file, field)))
        manifest, texts = self._manifests.read(file), read_texts(file)
        signer, ours = self._labeller.signer, self._labeller.mark
        is_intact = manifest.state in ("valid", "trusted")
        return Verification(
            header,
            manifest,
            texts,
            read_source_type(texts.xmp) if texts.xmp else None,
            mark,
            signed_here=is_intact and signer is not None and manifest.serial == signer.serial,
            marked_here=mark is not None and ours is not None and mark.payload == ours.payload,
        )
