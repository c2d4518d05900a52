"""Keeps small JSON files in a folder, each with the conditions under which its content holds. No torch.

Several processes may share the folder: a file is replaced whole, and the last writer wins. A file that is damaged, or
made under other conditions, is as good as none; the folder is a cache, and its loss costs time only.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)

Conditions = Mapping[str, Any]
"""What must be equal, as JSON, for a file's content to hold."""

MOST_BYTES: Final = 2**20

Content = TypeVar("Content", bound=BaseModel)


class KeptFiles:
    """JSON files in `folder`, which is made when it is first written to; None keeps nothing. Safe from any thread."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, kind: str, conditions: Conditions, content: type[Content]) -> Content | None:
        """Returns what was written last as this kind under these conditions; None if there is nothing valid."""
        path = self._path(kind, conditions)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(MOST_BYTES))
            if found["conditions"] != _as_json(conditions):
                raise ValueError("it was made under other conditions")
            return content.model_validate(found["content"])
        except FileNotFoundError:
            return None
        except ValidationError as error:
            log.warning("%s is ignored: %d of its values cannot be right", path, error.error_count())
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            log.warning("%s is ignored: %s", path, error)
        return None

    def write(self, kind: str, conditions: Conditions, content: BaseModel) -> None:
        """Replaces the file. A folder that cannot be written to is logged, and costs the next start time."""
        path = self._path(kind, conditions)
        if path is None:
            return
        text = json.dumps({"conditions": _as_json(conditions), "content": content.model_dump(mode="json")})
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".new", delete=False) as file:
                file.write(text)
            os.replace(file.name, path)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error)

    def _path(self, kind: str, conditions: Conditions) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(json.dumps(_as_json(conditions), sort_keys=True).encode()).hexdigest()
        return self._folder / kind / f"{digest[:32]}.json"


NOTHING_KEPT: Final = KeptFiles(None)


def folder_of(cache_dir: str | None) -> Path | None:
    """Returns the folder that the setting `cache_dir` means in this process; None if nothing is to be kept.

    `auto` is `darkroom` in the user's cache, by the XDG base directory specification.
    """
    if not cache_dir:
        return None
    if cache_dir != "auto":
        return Path(cache_dir).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darkroom"
    except RuntimeError:  # a user without a home
        return None


def _as_json(conditions: Conditions) -> Any:
    """Returns the conditions as they come back from a file: lists for tuples, texts for keys."""
    return json.loads(json.dumps(dict(conditions)))
