"""Reads what a picture's file says of itself, whoever made it: its manifest, its texts, and the mark in its pixels."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from deployments.uploads.image_files import ImageHeader, decode, read_header
from deployments.watermark.methods import OUR_METHOD, FoundMark, Watermark, load_method
from serve_app.config.labels import DEFAULT_PAYLOAD
from serve_app.labels.file_metadata import FileTexts, read_texts
from serve_app.labels.manifests import ManifestReader, ManifestReport
from serve_app.labels.parameters_text import parse_parameters
from serve_app.labels.source_type import CHANGED, MADE, SourceType, read_source_type

AI_MADE: Final = frozenset({MADE, CHANGED, "compositeSynthetic"})
"""IPTC's codes for pictures in which a model had a part. What an algorithm has only enhanced is none of them."""

# No camera writes these; programs that run diffusion models do.
_GENERATION_FIELDS: Final = frozenset({"Steps", "Sampler"})


@dataclass(frozen=True, slots=True)
class FoundLabels:
    """What was found in a file. `signed_here` says that the manifest is valid and by this server's own certificate.

    `marked_here` says that the mark has this server's payload; None where that payload is the default, which every
    server has that was given none. Texts are anybody's to write and to take away; a valid manifest and a mark are not.
    """

    header: ImageHeader
    manifest: ManifestReport
    texts: FileTexts
    source_type: str | None
    mark: FoundMark | None
    marked_here: bool | None

    @property
    def signed_here(self) -> bool:
        """Whether the manifest is this server's own."""
        return self.manifest.is_ours

    @property
    def is_ai_made(self) -> bool:
        """Whether anything in the file says that a model made the picture, or a part of it."""
        return self.mark is not None or bool(self._codes & AI_MADE) or self._has_parameters

    @property
    def ai_source_type(self) -> SourceType | None:
        """How far a model made it, in IPTC's terms; None where nothing says that one had a part."""
        if not self.is_ai_made:
            return None
        # The outermost statement is about the picture as it is now.
        said = (self.source_type, *self.manifest.source_types)
        first = next((each for each in said if each in AI_MADE), None)
        if first is None:
            return CHANGED if self._codes & AI_MADE else MADE
        return MADE if first == MADE else CHANGED

    @property
    def _codes(self) -> set[str | None]:
        return {self.source_type, *self.manifest.every_source_type}

    @property
    def _has_parameters(self) -> bool:
        text = self.texts.parameters
        return text is not None and parse_parameters(text).keys() >= _GENERATION_FIELDS


class LabelReader:
    """Reads the labels of untrusted files. May be used by several threads."""

    def __init__(self, own_certificate: str | None, own_mark: Watermark | None) -> None:
        """Raises ValueError if the mark's method is not there."""
        self._manifests = ManifestReader(own_certificate)
        self._method = load_method(own_mark.method if own_mark is not None else OUR_METHOD)
        self._payload = None if own_mark is None else own_mark.payload

    def read(self, file: bytes, field: str) -> FoundLabels:
        """Returns what is found in `file`. Raises InvalidParameter, naming `field`, unless it is a picture."""
        header = read_header(file, field)
        mark = self._method.find(np.asarray(decode(file, field)))
        texts = read_texts(file)
        source_type = read_source_type(texts.xmp) if texts.xmp else None
        return FoundLabels(header, self._manifests.read(file), texts, source_type, mark, self._is_ours(mark))

    def _is_ours(self, mark: FoundMark | None) -> bool | None:
        if mark is None or mark.payload != self._payload:
            return False
        return None if mark.payload.hex() == DEFAULT_PAYLOAD else True
