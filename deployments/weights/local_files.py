"""Tells versions of files on this machine apart, so that nothing made with one is taken for another's. No torch.

A commit on the hub never changes; a local file may be replaced under its name, and all that is kept of its results must
then be out of date, in whatever process and after whatever restart.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from deployments.engine.protocol.spec import ModelSpec, sources_of
from deployments.loras.file_facts import digest_of

READ_WHOLE: Final = 16 * 2**20
"""Up to so many bytes a file is known by its content; a larger one, which would take seconds to read, by its size and
the time of its last change.
"""

_READ: Final = (".json", ".txt", ".safetensors")
# A model's own folder, its parts, and image encoders, which lie a folder deeper.
_LEVELS: Final = ("*", "*/*", "*/*/*")


def with_local_digest(spec: ModelSpec) -> ModelSpec:
    """Returns `spec` with the digest of those of its files that are on this machine, as they are now.

    One that has a digest keeps it: who describes a server for all its processes may have seen the files, or not.
    """
    return spec if spec.local_digest else replace(spec, local_digest=local_digest_of(spec))


def local_digest_of(spec: ModelSpec) -> str:
    """Returns the digest of those files of `spec` that are on this machine, as they are now; nothing if none is."""
    sources = [part.source for part in sources_of(spec)]
    return digest_sources([*sources, spec.config])


def digest_sources(sources: Iterable[str]) -> str:
    """Returns a digest of those `sources` that are files or folders here; nothing if none is."""
    found = {source: _describe(Path(source)) for source in set(sources) if source and Path(source).exists()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest() if found else ""


def _describe(source: Path) -> dict[str, Any]:
    if source.is_file():
        return {source.name: _identify(source)}
    inside = (path for level in _LEVELS for path in source.glob(level) if path.suffix in _READ)
    return {str(path.relative_to(source)): _identify(path) for path in inside if path.is_file()}


def _identify(path: Path) -> Any:
    try:
        found = path.stat()
        return digest_of(path) if found.st_size <= READ_WHOLE else [found.st_size, found.st_mtime_ns]
    except OSError:
        # Whoever loads it says so.
        return None
