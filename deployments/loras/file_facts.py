"""What a LoRA's file says, read once for each version of the file. No torch."""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from deployments.engine.checkpoints.safetensors_header import read_header
from deployments.engine.lora.base_model import text_width
from deployments.engine.lora.tensor_names import read_names
from deployments.engine.protocol.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class FileFacts:
    """`problem` says why the file cannot be used, as far as its header shows. `text_width` is that of the text that its
    base's UNet reads, if it says so; `networks` are those that it changes.
    """

    size: int = 0
    problem: str | None = None
    text_width: int | None = None
    networks: tuple[str, ...] = ()


def facts_of(name: str, path: Path) -> FileFacts:
    """Returns what the file at `path`, of the LoRA `name`, says; with a `problem` if it is not there."""
    try:
        return _read_facts(name, path, _version_of(path))
    except OSError:
        return FileFacts(problem="its file is not there, or cannot be read")


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of the file's bytes in hexadecimal. Raises OSError."""
    return _read_digest(path, _version_of(path))


def _version_of(path: Path) -> tuple[int, ...]:
    """Tells versions of a file apart."""
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4096)
def _read_facts(name: str, path: Path, version: tuple[int, ...]) -> FileFacts:
    size = version[2]
    try:
        header = read_header(f"the LoRA {name!r}", path)
        names = read_names(header.tensors)
        width = text_width(header, names)
    except (ModelLoadError, ValueError) as error:
        return FileFacts(size, problem=str(error).removeprefix(f"the LoRA {name!r}: "))
    except (LookupError, TypeError):
        return FileFacts(size, problem="its header has shapes that no LoRA has")
    return FileFacts(size, None, width, tuple(sorted(names.networks)))


@lru_cache(maxsize=4096)
def _read_digest(path: Path, _: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
