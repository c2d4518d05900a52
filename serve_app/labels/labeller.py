"""Labels the files of pictures: how they were made, that a machine made them, and a signature over all of it."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deployments.engine.protocol.events import ImageDone
from deployments.engine.protocol.request import Request
from deployments.watermark.methods import Watermark, load_method
from serve_app.config.errors import ConfigError
from serve_app.config.labels import TEXTS_ONLY, LabelsConfig, SigningConfig
from serve_app.generation.fingerprint import hash_of
from serve_app.generation.result import to_png
from serve_app.labels.file_metadata import MAX_JPEG_TEXT_BYTES, FileTexts, add_texts, is_jpeg
from serve_app.labels.parameters_text import parameters_text
from serve_app.labels.source_type import CHANGED, MADE, SourceType, xmp_of

if TYPE_CHECKING:
    from serve_app.labels.manifests import ManifestSigner, Source
    from serve_app.labels.reading import LabelReader


class Labeller:
    """Labels files as `config` says. Its methods take milliseconds, and may be called by several threads."""

    def __init__(self, config: LabelsConfig = TEXTS_ONLY, development_secret: bytes | None = None) -> None:
        """The certificate of who has none is derived from `development_secret`, or drawn where there is none either.

        Raises ConfigError if the certificate or the watermark's method is not there.
        """
        self._config = config
        self.signer = _make_signer(config.c2pa, development_secret)
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
        # A drawn one is another in each ingress, and all of them share one cache.
        chain = self.signer.chain if self.signer and self.signer.key_origin != "drawn at this start" else ""
        return hash_of(json.dumps([self._config.model_dump(mode="json"), chain], sort_keys=True).encode())

    def describe(self) -> dict[str, Any]:
        """Returns what files are labelled with, for `health`."""
        signature = None
        if self.signer is not None:
            signature = {
                "certificate": "development, not trusted" if self.signer.is_development else "the operator's",
                "private_key": self.signer.key_origin,
                "expires": self.signer.expires.date().isoformat(),
            }
        return {"source_type": self._config.source_type, "watermark": self.mark is not None, "c2pa": signature}

    def label(self, image: ImageDone, request: Request) -> ImageDone:
        """Returns the image of `request` with its file labelled."""
        source_type = CHANGED if _has_image(request) else MADE
        texts = FileTexts(self._parameters(image, request), xmp_of(source_type) if self._config.source_type else None)
        return replace(image, data=self._sign(add_texts(image.data, texts), source_type, _sources_of(request)))

    @cached_property
    def reader(self) -> "LabelReader":
        """What reads labels, and knows this server's own."""
        from serve_app.labels.reading import LabelReader

        return LabelReader(None if self.signer is None else self.signer.certificate, self.mark)

    def label_enlarged(
        self, png: bytes, original: bytes, *, by_network: bool, save: Callable[[bytes], bytes] = bytes
    ) -> bytes:
        """Returns the file that `save` makes of a PNG, with the labels that were lost when `original` was enlarged.

        `original` may be anybody's. What says that a model had a part in it, and how, is said of the new file as well;
        of what it says besides, nothing is taken over. What a network has enlarged was changed by one, whatever it was,
        and was marked where that was done. Raises InvalidParameter if `original` is no picture.
        """
        found = self.reader.read(original, "image")
        source_type = found.ai_source_type or (CHANGED if by_network else None)
        if source_type is None:
            return save(png)
        is_marked = by_network
        if not by_network and found.mark is not None and self.mark is not None:
            is_marked = found.mark.payload == self.mark.payload
            png = _mark_again(png, self.mark) if is_marked else png
        file, parameters = save(png), found.texts.parameters
        if parameters is not None and is_jpeg(file) and len(parameters.encode("utf-16-be")) > MAX_JPEG_TEXT_BYTES:
            parameters = None
        xmp = xmp_of(source_type) if self._config.source_type else None
        labelled = add_texts(file, FileTexts(parameters, xmp))
        if self.signer is None:
            return labelled
        from serve_app.labels.manifests import Provenance, Source

        provenance = Provenance(source_type, (Source(original, is_parent=True),), is_marked and self.mark is not None)
        return self.signer.sign(labelled, replace(provenance, is_resized=not by_network))

    def _parameters(self, image: ImageDone, request: Request) -> str | None:
        metadata = request.params.metadata or self._config.metadata
        if metadata == "none":
            return None
        preprocessed = request.uploads is not None and request.uploads.preprocess
        told = partial(
            parameters_text,
            request.params,
            seed=image.seed,
            preprocessed=preprocessed,
            further={} if image.continued is None else {"Continued after": image.continued.steps},
        )
        text = told(prompts=metadata == "full")
        if image.format == "jpeg" and len(text.encode("utf-16-be")) > MAX_JPEG_TEXT_BYTES:
            text = told(prompts=False)
        return text

    def _sign(self, file: bytes, source_type: SourceType, sources: "Sequence[Source]") -> bytes:
        if self.signer is None:
            return file
        from serve_app.labels.manifests import Provenance

        return self.signer.sign(file, Provenance(source_type, sources, self.mark is not None))


def _mark_again(file: bytes, mark: Watermark) -> bytes:
    """Marks the picture in a PNG file; its transparency stays."""
    with Image.open(io.BytesIO(file), formats=["PNG"]) as picture:
        marked = Image.fromarray(mark.apply(np.asarray(picture.convert("RGB"))))
        if picture.has_transparency_data:
            marked.putalpha(picture.convert("RGBA").getchannel("A"))
    return to_png(marked)


def _make_signer(config: SigningConfig, development_secret: bytes | None) -> "ManifestSigner | None":
    if not config.enabled:
        return None
    # Imported here: a library of megabytes, which only who signs needs.
    from serve_app.labels.manifests import ManifestSigner

    return ManifestSigner(config, development_secret)


def _has_image(request: Request) -> bool:
    return request.inputs.image is not None or (request.uploads is not None and request.uploads.image is not None)


def _sources_of(request: Request) -> "Sequence[Source]":
    """The request's own pictures; a mask is none."""
    files = request.uploads
    if files is None:
        return ()
    from serve_app.labels.manifests import Source

    parents = () if files.image is None else (Source(files.image, is_parent=True),)
    return (*parents, *(Source(each, is_parent=False) for each in (*files.hints, *files.references)))
