"""Reads a safetensors file's header, without its tensors: it is JSON at the file's start. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deployments.engine.checkpoints.file_integrity import check_intact
from deployments.engine.protocol.errors import ModelLoadError

_LARGEST: Final = 100_000_000
"""Bytes; safetensors' own bound."""
_LENGTH: Final = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's precision as safetensors calls it (F32, F16, BF16, ...), its shape, and where its bytes are in the
    file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The tensors by name, and the file's metadata."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(title: str, path: Path) -> SafetensorsHeader:
    """Returns the header of `path`.

    Raises ModelLoadError, which begins with `title`, if the file is not whole or not valid.
    """
    check_intact(title, path)
    size = path.stat().st_size
    broken = ModelLoadError(f"{title}: {path.name} is not a safetensors file; bring it again from where it came")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if length > _LARGEST:
            raise broken
        raw = file.read(length)
    if len(raw) < length:
        raise ModelLoadError(f"{title}: {path.name} is cut off; bring it again from where it came")
    try:
        header = _parse(json.loads(raw), _LENGTH + length)
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        raise broken from None
    _check_size(title, path, size, max((tensor.end for tensor in header.tensors.values()), default=_LENGTH + length))
    if not header.tensors:
        raise ModelLoadError(f"{title}: {path.name} holds no weights; bring it again from where it came")
    return header


def _check_size(title: str, path: Path, size: int, end: int) -> None:
    if size < end:
        raise ModelLoadError(
            f"{title}: {path.name} is cut off, it has {size:,} of {end:,} bytes; bring it again from where it came"
        )
    if size > end:
        raise ModelLoadError(f"{title}: {path.name} has {size - end:,} bytes too many; bring it again")


def _parse(entries: Mapping[str, Any], base: int) -> SafetensorsHeader:
    tensors = {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), *(base + offset for offset in entry["data_offsets"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    }
    return SafetensorsHeader(tensors, entries.get("__metadata__") or {})
