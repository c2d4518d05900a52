"""The pictures of a job's entries: one of its own for each, and reference images that all of them share, kept once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final

from pydantic import Field

from deployments.engine.protocol.inputs import Fit, Uploads
from serve_app.config.strict import Strict

MAX_SET: Final = 64
"""The most pictures that one call brings to be restyled."""

IMAGE_FIELD: Final = "images"
"""The callers' name of the pictures, for errors."""


class PictureLayout(Strict):
    """Which pictures entries have: `images` by their numbers, and `references`, as SHA-256 digests of the files.

    `fit` is how images of another shape become a request's size, and `size` the bytes of all files.
    """

    images: dict[int, str] = Field(default_factory=dict)
    references: tuple[str, ...] = ()
    fit: Fit = "cover"
    size: int = Field(default=0, ge=0)

    @property
    def digests(self) -> tuple[str, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys((*self.images.values(), *self.references)))


@dataclass(frozen=True)
class JobPictures:
    """The layout, and the `files` by their digests; these are not there where a job is only read."""

    layout: PictureLayout
    files: Mapping[str, bytes]

    @cached_property
    def references(self) -> tuple[bytes, ...]:
        """The files of the reference images."""
        return tuple(self.files[digest] for digest in self.layout.references)

    @property
    def size(self) -> int:
        """Bytes of the files held here."""
        return self.layout.size if self.files else 0

    def uploads_of(self, index: int) -> Uploads | None:
        """Returns the uploads of an entry; None if it has none."""
        digest = self.layout.images.get(index)
        if digest is None and not self.layout.references:
            return None
        image = None if digest is None else self.files[digest]
        return Uploads(image=image, fit=self.layout.fit, image_field=IMAGE_FIELD, references=self.references)

    def identity_of(self, index: int) -> str | None:
        """Returns what an entry's own picture is known by: entries that differ in nothing else are equal."""
        return self.layout.images.get(index)

    def without_files(self) -> "JobPictures":
        """Returns the same without the files, for a job that needs them no more."""
        return JobPictures(self.layout, {})


NO_PICTURES: Final = JobPictures(PictureLayout(), {})


def pictures_of(
    images: Mapping[int, bytes] | None = None, references: Sequence[bytes] = (), fit: Fit = "cover"
) -> JobPictures:
    """Returns the pictures of entries by their numbers, and those that all of them share."""
    files: dict[str, bytes] = {}

    def keep(file: bytes) -> str:
        digest = sha256(file).hexdigest()
        files[digest] = file
        return digest

    own = {index: keep(file) for index, file in (images or {}).items()}
    shared = tuple(keep(file) for file in references)
    layout = PictureLayout(images=own, references=shared, fit=fit)
    return JobPictures(layout.model_copy(update={"size": sum(map(len, files.values()))}), files)
