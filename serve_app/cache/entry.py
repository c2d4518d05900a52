"""A cached result, and the bytes that it is in Redis: signed, with every length checked, and nothing that can run.

b"DRK1"  HMAC-SHA256 of all the rest (32)  length of the header (4, big-endian)  header, JSON  image files
"""

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.engine.protocol.events import Accepted, Event, Finished, ImageDone, Timings
from serve_app.generation.fingerprint import Fingerprint

# Change it with any change of the layout or of the header.
_MAGIC: Final = b"DRK1"
_MAC_BYTES: Final = 32
_LENGTH_BYTES: Final = 4
_PREAMBLE: Final = len(_MAGIC) + _MAC_BYTES + _LENGTH_BYTES

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
        """What a request hears that is served with it."""
        yield Accepted(request_id, 0, source="cache")
        yield from (replace(image, request_id=request_id) for image in self.images)
        yield Finished(request_id, Timings())


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Image(_Strict):
    index: int
    seed: int
    format: str
    width: int
    height: int
    bytes: int = Field(ge=0)


class _Header(_Strict):
    work: str
    seed: int
    seconds: float
    made: float
    images: list[_Image]


def packed(entry: CacheEntry, key: bytes) -> bytes:
    """The entry as bytes, signed with `key`."""
    images = [
        _Image(
            index=image.index,
            seed=image.seed,
            format=image.format,
            width=image.width,
            height=image.height,
            bytes=len(image.data),
        )
        for image in entry.images
    ]
    work, seed = entry.fingerprint.work, entry.fingerprint.seed
    header = _Header(work=work, seed=seed, seconds=entry.seconds, made=entry.made, images=images)
    text = header.model_dump_json().encode()
    body = b"".join((len(text).to_bytes(_LENGTH_BYTES, "big"), text, *(image.data for image in entry.images)))
    return _MAGIC + _mac(body, key) + body


def unpacked(data: bytes, key: bytes) -> CacheEntry:
    """The entry in `data`. Raises BadEntry unless it was signed with `key` and is whole."""
    if len(data) < _PREAMBLE or not data.startswith(_MAGIC):
        raise BadEntry("not an entry of this version")
    mac, body = data[len(_MAGIC) : len(_MAGIC) + _MAC_BYTES], data[len(_MAGIC) + _MAC_BYTES :]
    if not hmac.compare_digest(mac, _mac(body, key)):
        raise BadEntry("not signed with this key")
    begin = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
    try:
        header = _Header.model_validate_json(body[_LENGTH_BYTES:begin])
    except ValidationError:
        raise BadEntry("its header makes no sense") from None
    if len(body) != begin + sum(image.bytes for image in header.images):
        raise BadEntry("its files are not of the lengths that it says")
    fingerprint = Fingerprint(header.work, header.seed)
    return CacheEntry(fingerprint, tuple(_images(header, body, begin)), header.seconds, header.made)


def _images(header: _Header, body: bytes, begin: int) -> Iterator[ImageDone]:
    for image in header.images:
        end = begin + image.bytes
        data = body[begin:end]
        yield ImageDone("", image.index, image.seed, image.format, image.width, image.height, data)
        begin = end


def _mac(body: bytes, key: bytes) -> bytes:
    # The version is signed, too: what one version has signed must not be read as another's.
    mac = hmac.new(key, _MAGIC, "sha256")
    mac.update(body)
    return mac.digest()
