"""Whether a file is what its name says: not a pointer to it, not a web page, not cut off. No torch."""

import json
from pathlib import Path
from typing import Any, Final

from deployments.engine.protocol.errors import ModelLoadError

_GIT_LFS: Final = b"version https://git-lfs"
_PAGES: Final = (b"<!doctype", b"<html", b"<?xml")
_ARCHIVES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LONGEST: Final = 64


def read_config(title: str, path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ModelLoadError, which begins with `title` and says what the file is instead."""
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


def check_intact(title: str, path: Path) -> None:
    """Raises ModelLoadError where `path` is not there, or is by its first bytes something else than JSON or weights."""
    if not path.is_file():
        raise ModelLoadError(f"{title}: there is no {path.name}; bring the whole folder again from where it came")
    with path.open("rb") as file:
        head = file.read(_LONGEST)
    # Of safetensors' length, which comes first, the first bytes may be another format's; its JSON stands behind.
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
