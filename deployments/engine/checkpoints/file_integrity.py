"""Checks that a file is what its name says: not a pointer to it, not a web page, not cut off; and that it stays what it
is while it is read. No torch.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from deployments.engine.protocol.errors import ModelLoadError

_GIT_LFS: Final = b"version https://git-lfs"
_PAGES: Final = (b"<!doctype", b"<html", b"<?xml")
_ARCHIVES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LONGEST: Final = 64
_CHUNK: Final = 1 << 20


def read_config(title: str, path: Path) -> dict[str, Any]:
    """Returns the JSON object in `path`.

    Raises ModelLoadError, which begins with `title` and says what the file is instead.
    """
    check_intact(title, path)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ModelLoadError(
            f"{title}: {path.name} is not valid JSON; it is cut off or was changed: bring it again from where it came"
        ) from None
    if not isinstance(found, dict):
        raise ModelLoadError(f"{title}: {path.name} must be a JSON object; bring it again from where it came")
    return found


@contextmanager
def refuse_changes(title: str, paths: Sequence[Path]) -> Iterator[None]:
    """Raises ModelLoadError, which begins with `title`, if a file of `paths` is written or replaced in the context.

    What was read of it first would not belong to what was read last.
    """
    before = [_state_of(path) for path in paths]
    yield
    changed = [path.name for path, state in zip(paths, before, strict=True) if _state_of(path) != state]
    if changed:
        raise ModelLoadError(f"{title}: {changed[0]} was changed while it was read; load it again when it is complete")


def check_intact(title: str, path: Path) -> None:
    """Raises ModelLoadError if `path` is missing, or its first bytes are neither JSON's nor those of safetensors."""
    if not path.is_file():
        raise ModelLoadError(f"{title}: there is no {path.name}; bring the whole folder again from where it came")
    with path.open("rb") as file:
        head = file.read(_LONGEST)
    # A safetensors file starts with a length, which may look like another format; its JSON comes after it.
    if head[8:9] == b"{":
        return
    if not head:
        raise ModelLoadError(f"{title}: {path.name} is empty; bring it again from where it came")
    if head.startswith(_GIT_LFS):
        raise ModelLoadError(
            f"{title}: {path.name} is a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned"
        )
    if head.lstrip().lower().startswith(_PAGES):
        raise ModelLoadError(
            f"{title}: {path.name} is a web page, not the file; download the file itself, signed in if it needs that"
        )
    if head.startswith(_ARCHIVES):
        raise ModelLoadError(
            f"{title}: {path.name} is a pickle by its content, whatever its name, which may hold code and is not "
            "opened here: `darkroom convert` makes a folder of it"
        )


def digest_files(paths: Iterable[Path]) -> str:
    """Returns a digest of the files' names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Returns what tells a file's content from an earlier one without reading it; None if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
