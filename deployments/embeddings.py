"""The learnt embeddings (textual inversions) that prompts may name: rows of the configuration, and a watched folder."""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Final

from deployments.engine.conditioning.embedding_layout import find_vectors
from deployments.engine.protocol.errors import ModelLoadError
from deployments.engine.protocol.files.embeddings import EmbeddingFile, EmbeddingTokens

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 2.0
"""How long a new file in the watched folder may go unseen."""

MOST_FILES: Final = 2_000
LARGEST: Final = 4 * 2**20
"""Bytes of a file: 75 vectors of SDXL's second text encoder in fp32 are 384 kB."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
TOKEN: Final = re.compile(r"[^\s()\[\]{}\\:|]{1,64}")
"""What may stand in a prompt for vectors: nothing that would weigh or part it."""


@dataclass(frozen=True, slots=True)
class EmbeddingSpec:
    """An embedding that the configuration names: a safetensors file. Without a `token` its name is what prompts say."""

    name: str
    source: str
    token: str = ""


class EmbeddingRegistry:
    """The embeddings of `specs`, and of all safetensors files in `folder`, by their names without the ending.

    Files that come, change or go there are noticed within LOOK_EVERY_S seconds. One that cannot be used is left out,
    and `skipped` says why. May be used from any thread. Raises ModelLoadError for `specs` that cannot be used.
    """

    def __init__(
        self,
        specs: Sequence[EmbeddingSpec] = (),
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = tuple(read_embedding(spec.name, Path(spec.source), spec.token) for spec in specs)
        if doubled := _find_doubled(self._rows):
            raise ModelLoadError(f"embeddings: more than one has the name or the token {doubled!r}")
        self._folder, self._clock = folder, clock
        self._lock = Lock()
        self._seen: dict[Path, tuple[tuple[int, int], EmbeddingFile | str]] = {}
        self._looked: float | None = None
        self._files = self._rows
        self._tokens = EmbeddingTokens(self._rows)
        self._skipped: Mapping[str, str] = MappingProxyType({})

    @property
    def files(self) -> tuple[EmbeddingFile, ...]:
        """All embeddings, those of the configuration first."""
        self._look()
        return self._files

    @property
    def skipped(self) -> Mapping[str, str]:
        """The files of the folder that cannot be used, and why."""
        self._look()
        return self._skipped

    def find_in(self, texts: Iterable[str]) -> tuple[EmbeddingFile, ...]:
        """Returns the embeddings that `texts` name."""
        self._look()
        return self._tokens.find_in(texts)

    def _look(self) -> None:
        """Looks into the folder, if it was not looked into a moment ago."""
        if self._folder is None:
            return
        with self._lock:
            if self._looked is not None and self._clock() - self._looked < LOOK_EVERY_S:
                return
            self._looked = self._clock()
            before = self._seen
            self._seen = dict(self._scan(self._folder))
            if self._seen != before:
                self._take_over(before)

    def _scan(self, folder: Path) -> Iterator[tuple[Path, tuple[tuple[int, int], EmbeddingFile | str]]]:
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")[:MOST_FILES]
        except OSError:
            paths = []
        for path in paths:
            try:
                status = path.stat()
            except OSError:  # it has just gone
                continue
            version = status.st_mtime_ns, status.st_size
            known = self._seen.get(path)
            yield path, known if known is not None and known[0] == version else (version, _read(path))

    def _take_over(self, before: Mapping[Path, object]) -> None:
        files, skipped = list(self._rows), dict[str, str]()
        for path, (_, found) in self._seen.items():
            if isinstance(found, EmbeddingFile) and _find_doubled((*files, found)):
                found = "another embedding has this name or token"
            if isinstance(found, EmbeddingFile):
                files.append(found)
                continue
            skipped[path.stem] = found
            if before.get(path) != self._seen[path]:
                log.warning("%s in the folder of embeddings is left out: %s", path.name, found)
        self._files, self._tokens = tuple(files), EmbeddingTokens(files)
        self._skipped = MappingProxyType(skipped)


def read_embedding(name: str, path: Path, token: str = "") -> EmbeddingFile:
    """Describes the embedding in `path`. Raises ModelLoadError, which names it."""
    title = f"embedding {name!r}"
    if path.suffix != ".safetensors":
        raise ModelLoadError(f"{title}: {path.name} is no safetensors file; others may hold code and are never read")
    if not path.is_file():
        raise ModelLoadError(f"{title}: there is no file {path.name!r}")
    if path.stat().st_size > LARGEST:
        raise ModelLoadError(f"{title}: {path.name} has more than {LARGEST} bytes, which no embedding needs")
    found = find_vectors(title, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return EmbeddingFile(name, token or name, str(path), digest, found.vectors, *found.widths)


def _read(path: Path) -> EmbeddingFile | str:
    """Describes a file of the folder, or says why it cannot be used."""
    if not NAME.fullmatch(path.stem):
        return "its name may have letters, digits, dots, dashes and underscores only"
    try:
        return read_embedding(path.stem, path)
    except ModelLoadError as error:
        return error.message
    except OSError:
        return "it cannot be read"


def _find_doubled(files: Sequence[EmbeddingFile]) -> str | None:
    for words in ([file.name for file in files], [file.token.casefold() for file in files]):
        doubled = next((word for word in words if words.count(word) > 1), None)
        if doubled is not None:
            return doubled
    return None


NO_EMBEDDINGS: Final = EmbeddingRegistry()
