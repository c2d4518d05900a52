"""Signs what is kept in Redis, JSON and raw bytes, so that only what comes back unchanged is believed.

    magic | HMAC-SHA256 over magic, place, body | body: 4 bytes of length, a JSON header, the files one after another

The place is where it was put: what was signed for one place cannot be read at another.
"""

import hmac
import json
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

KEY_CHARACTERS: Final = 32
"""As many as the hash has bytes, if they are random; `openssl rand -hex 32` gives twice as many."""

_MAGIC: Final = b"darkroom sealed 1\n"
_MAC_BYTES: Final = 32
_LENGTH_BYTES: Final = 4


class _Parts(BaseModel):
    """The JSON of a body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: Any
    bytes: list[Annotated[int, Field(ge=0)]]


class BadSignature(Exception):
    """Not what was signed for this place, with this key."""


def key_for(purpose: str, key: bytes) -> bytes:
    """Derives a key for one purpose: what was signed for one cannot be passed off as another's."""
    return hmac.digest(key, purpose.encode(), "sha256")


def sign(place: str, header: Any, files: Sequence[bytes], key: bytes) -> bytes:
    """Returns `header`, which is JSON, and `files` as signed bytes."""
    text = json.dumps({"header": header, "bytes": [len(file) for file in files]}).encode()
    body = b"".join((len(text).to_bytes(_LENGTH_BYTES, "big"), text, *files))
    return _MAGIC + _mac(place, body, key) + body


def verify(place: str, data: bytes, key: bytes) -> tuple[Any, tuple[bytes, ...]]:
    """Returns the header and the files in `data`. Raises BadSignature."""
    begin = len(_MAGIC) + _MAC_BYTES
    mac, body = data[len(_MAGIC) : begin], data[begin:]
    if not data.startswith(_MAGIC) or not hmac.compare_digest(mac, _mac(place, body, key)):
        raise BadSignature("not signed for this place with this key")
    # Signed by us, but perhaps by another version.
    end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
    try:
        parts = _Parts.model_validate_json(body[_LENGTH_BYTES:end])
    except ValidationError:
        raise BadSignature("not of this version's form") from None
    files = []
    for length in parts.bytes:
        files.append(body[end : end + length])
        end += length
    if end != len(body):
        raise BadSignature("its files are not of the lengths that it says")
    return parts.header, tuple(files)


def _mac(place: str, body: bytes, key: bytes) -> bytes:
    mac = hmac.new(key, _MAGIC + len(place.encode()).to_bytes(_LENGTH_BYTES, "big") + place.encode(), "sha256")
    mac.update(body)
    return mac.digest()
