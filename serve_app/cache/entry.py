"""A cached result, and the signed bytes that it is in Redis."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.engine.protocol.events import Accepted, Event, Finished, ImageDone, Timings
from deployments.engine.protocol.safety import Finding, SafetyStatus
from deployments.signing.signed import BadSignature, sign, verify
from serve_app.generation.fingerprint import Fingerprint

# What an entry weighs besides its files and its fingerprint, roughly.
_OVERHEAD: Final = 1024


class BadEntry(Exception):
    """Bytes that are not an entry of ours."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """All images of one request, in order, and how long engines took for them (`seconds`). `made` is Unix time."""

    fingerprint: Fingerprint
    images: tuple[ImageDone, ...]
    seconds: float
    made: float

    @property
    def size(self) -> int:
        """Bytes that it takes, roughly."""
        return sum(len(image.data) for image in self.images) + len(self.fingerprint.work) + _OVERHEAD

    def events(self, request_id: str) -> Iterator[Event]:
        """Yields the events of a request that is served with it."""
        yield Accepted(request_id, 0, source="cache")
        yield from (replace(image, request_id=request_id) for image in self.images)
        yield Finished(request_id, Timings())


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Safety(_Strict):
    status: SafetyStatus
    category: str
    score: float


class _Image(_Strict):
    index: int
    seed: int
    format: str
    width: int
    height: int
    safety: _Safety | None


class _Header(_Strict):
    work: str
    seed: int
    seconds: float
    made: float
    images: list[_Image]


def pack(place: str, entry: CacheEntry, key: bytes) -> bytes:
    """Returns the entry as bytes, signed with `key` for that place."""
    images = [_describe(image) for image in entry.images]
    work, seed = entry.fingerprint.work, entry.fingerprint.seed
    header = _Header(work=work, seed=seed, seconds=entry.seconds, made=entry.made, images=images)
    return sign(place, header.model_dump(), [image.data for image in entry.images], key)


def unpack(place: str, data: bytes, key: bytes) -> CacheEntry:
    """Returns the entry in `data`. Raises BadEntry unless it was signed with `key` for that place, and is whole."""
    try:
        content, files = verify(place, data, key)
        header = _Header.model_validate(content)
    except BadSignature as error:
        raise BadEntry(str(error)) from None
    except ValidationError:
        raise BadEntry("its header makes no sense") from None
    if len(files) != len(header.images):
        raise BadEntry("it has not one file for each image")
    images = tuple(
        ImageDone("", image.index, image.seed, image.format, image.width, image.height, file, _finding_of(image))
        for image, file in zip(header.images, files, strict=True)
    )
    return CacheEntry(Fingerprint(header.work, header.seed), images, header.seconds, header.made)


def _describe(image: ImageDone) -> _Image:
    found = image.safety
    return _Image(
        index=image.index,
        seed=image.seed,
        format=image.format,
        width=image.width,
        height=image.height,
        safety=None if found is None else _Safety(status=found.status, category=found.category, score=found.score),
    )


def _finding_of(image: _Image) -> Finding | None:
    found = image.safety
    return None if found is None else Finding(found.status, found.category, found.score)
