"""Reads what a safetensors file holds, without the tensors: its header is JSON at its start. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deployments.engine.errors import ModelLoadError

_LARGEST: Final = 100_000_000
"""Bytes; safetensors' own bound."""
_LENGTH: Final = 8
_PICKLES: Final = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Its precision as safetensors calls it (F32, F16, BF16, ...), its shape, and where its bytes are in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors by their names, and what the file says of itself."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(title: str, path: Path) -> Header:
    """The header of `path`. Raises ModelLoadError, which begins with `title`, for whatever else the file is."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(64)
            _refuse_others(title, path, first)
            length = int.from_bytes(first[:_LENGTH], "little")
            if length > _LARGEST or size < _LENGTH:
                raise ModelLoadError(f"{title}: {path.name!r} is not a safetensors file")
            file.seek(_LENGTH)
            entries = json.loads(file.read(length))
        header = _parsed(entries, _LENGTH + length)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelLoadError(f"{title}: {path.name!r} is not a safetensors file, or was cut off") from None
    except OSError as error:
        raise ModelLoadError(f"{title}: {path.name!r} cannot be read: {error.strerror}") from None
    if max((tensor.end for tensor in header.tensors.values()), default=0) > size:
        raise ModelLoadError(f"{title}: {path.name!r} was cut off: its header promises more bytes than it has")
    return header


def _refuse_others(title: str, path: Path, first: bytes) -> None:
    # A length may begin with the bytes that another format begins with, but only here does JSON follow it.
    if first[_LENGTH : _LENGTH + 1] == b"{":
        return
    if first.startswith(b"version https://git-lfs"):
        text = "is a Git LFS pointer, not the file itself: `git lfs pull` brings it"
        raise ModelLoadError(f"{title}: {path.name!r} {text}")
    if first.startswith((b"PK", b"\x80")) or path.suffix in _PICKLES:
        text = "is a pickle, which can hold code; `darkroom convert` makes a folder of it"
        raise ModelLoadError(f"{title}: {path.name!r} {text}")


def _parsed(entries: Mapping[str, Any], base: int) -> Header:
    tensors = {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), *(base + offset for offset in entry["data_offsets"]))
        for name, entry in entries.items()
        if name != "__metadata__"
    }
    return Header(tensors, entries.get("__metadata__") or {})
