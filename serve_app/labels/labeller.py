"""Labels the files of pictures: how they were made, that a machine made them, and a signature over all of it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deployments.engine.protocol.events import ImageDone
from deployments.engine.protocol.request import Request
from deployments.watermark.methods import Watermark, load_method
from serve_app.config.errors import ConfigError
from serve_app.config.labels import TEXTS_ONLY, LabelsConfig, SigningConfig
from serve_app.generation.fingerprint import hash_of
from serve_app.labels.file_metadata import MAX_JPEG_TEXT_BYTES, FileTexts, add_texts, read_texts
from serve_app.labels.parameters_text import parameters_text
from serve_app.labels.source_type import CHANGED, MADE, SourceType, read_source_type, xmp_of

if TYPE_CHECKING:
    from serve_app.labels.manifests import ManifestSigner, Source


class Labeller:
    """Labels files as `config` says. Its methods take milliseconds, and may be called by several threads."""

    def __init__(self, config: LabelsConfig = TEXTS_ONLY) -> None:
        """Raises ConfigError if the certificate or the watermark's method is not there."""
        self._config = config
        self.signer = _make_signer(config.c2pa)
        self.mark: Watermark | None = None
        if config.watermark.enabled:
            try:
                load_method(config.watermark.method)
            except ValueError as error:
                raise ConfigError(f"labels.watermark.method: {error}") from None
            self.mark = Watermark(bytes.fromhex(config.watermark.payload), config.watermark.method)

    @property
    def setting(self) -> str:
        """What files depend on, besides their requests, as one text: other labels are other files."""
        chain = self.signer.chain if self.signer and not self.signer.is_development else ""
        return hash_of(json.dumps([self._config.model_dump(mode="json"), chain], sort_keys=True).encode())

    def describe(self) -> dict[str, Any]:
        """Returns what files are labelled with, for `health`."""
        signature = None
        if self.signer is not None:
            signature = {
                "certificate": "development, not trusted" if self.signer.is_development else "the operator's",
                "expires": self.signer.expires.date().isoformat(),
            }
        return {"source_type": self._config.source_type, "watermark": self.mark is not None, "c2pa": signature}

    def label(self, image: ImageDone, request: Request) -> ImageDone:
        """Returns the image of `request` with its file labelled."""
        source_type = CHANGED if _has_image(request) else MADE
        texts = FileTexts(self._parameters(image, request), xmp_of(source_type) if self._config.source_type else None)
        return replace(image, data=self._sign(add_texts(image.data, texts), source_type, _sources_of(request)))

    def label_enlarged(self, file: bytes, original: bytes, *, by_network: bool) -> bytes:
        """Returns `file`, the enlarged `original`, which may be anybody's, with what that said of how it was made.

        Whatever a network has enlarged is labelled as changed by one.
        """
        said = read_texts(original)
        known: tuple[SourceType, ...] = (MADE, CHANGED)
        found = read_source_type(said.xmp) if said.xmp else None
        source_type = next((each for each in known if each == found), CHANGED if by_network else None)
        parameters = said.parameters
        if parameters is not None and len(parameters.encode("utf-16-be")) > MAX_JPEG_TEXT_BYTES:
            parameters = None
        # Its XMP is not taken over: it may tell where a photo was taken.
        xmp = xmp_of(source_type) if source_type is not None and self._config.source_type else None
        labelled = add_texts(file, FileTexts(parameters, xmp))
        if source_type is None or self.signer is None:
            return labelled
        from serve_app.labels.manifests import Source

        return self._sign(labelled, source_type, (Source(original, is_parent=True),))

    def _parameters(self, image: ImageDone, request: Request) -> str | None:
        metadata = request.params.metadata or self._config.metadata
        if metadata == "none":
            return None
        preprocessed = request.uploads is not None and request.uploads.preprocess
        text = parameters_text(request.params, seed=image.seed, prompts=metadata == "full", preprocessed=preprocessed)
        if image.format == "jpeg" and len(text.encode("utf-16-be")) > MAX_JPEG_TEXT_BYTES:
            text = parameters_text(request.params, seed=image.seed, prompts=False, preprocessed=preprocessed)
        return text

    def _sign(self, file: bytes, source_type: SourceType, sources: "Sequence[Source]") -> bytes:
        if self.signer is None:
            return file
        from serve_app.labels.manifests import Provenance

        return self.signer.sign(file, Provenance(source_type, sources, self.mark is not None))


def _make_signer(config: SigningConfig) -> "ManifestSigner | None":
    if not config.enabled:
        return None
    # Imported here: a library of megabytes, which only who signs needs.
    from serve_app.labels.manifests import ManifestSigner

    return ManifestSigner(config)


def _has_image(request: Request) -> bool:
    return request.inputs.image is not None or (request.uploads is not None and request.uploads.image is not None)


def _sources_of(request: Request) -> "Sequence[Source]":
    """The request's own pictures; a mask is none."""
    files = request.uploads
    if files is None:
        return ()
    from serve_app.labels.manifests import Source

    parents = () if files.image is None else (Source(files.image, is_parent=True),)
    return (*parents, *(Source(hint, is_parent=False) for hint in files.hints))
