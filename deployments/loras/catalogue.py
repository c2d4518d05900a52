"""The LoRAs that requests may name: rows of the configuration, and the files of a folder, which is looked at each time.

Only headers are read here, without torch. A request's names are resolved to files, which engines then read.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter, ModelLoadError
from deployments.engine.protocol.files.loras import LoraFile, LoraUse
from deployments.engine.protocol.settings import LoraSettings, check_lora_name
from deployments.engine.protocol.spec import ModelSpec
from deployments.loras.file_facts import FileFacts, digest_of, facts_of
from deployments.registry import text_width_of

SUFFIX: Final = ".safetensors"

_FIELD: Final = "loras"


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """A row of the registry: a safetensors file at `source`, or `file` in a repository on the hub at `revision`.

    `models` are the names of the models that it is for; without any, it is for all that its file fits.
    """

    name: str
    source: str
    revision: str | None = None
    file: str = ""
    models: tuple[str, ...] = ()

    def lora_file(self, digest: str = "") -> LoraFile:
        """Returns its file, as engines take it."""
        return LoraFile(self.name, self.source, self.revision, self.file, digest)


@dataclass(frozen=True, slots=True)
class LoraEntry:
    """A LoRA and what its file says. `facts` are None for one on the hub, whose file is only read where it is used."""

    spec: LoraSpec
    facts: FileFacts | None

    @property
    def problem(self) -> str | None:
        """Why it cannot be used; None if nothing is known against it."""
        return None if self.facts is None else self.facts.problem

    def misfit(self, model: ModelSpec) -> str | None:
        """Returns why it is not for `model`; None if nothing is known against it. Its engine looks at every layer."""
        if self.spec.models and not any(model.has_name(name) for name in self.spec.models):
            return f"it is for {', '.join(self.spec.models)}"
        made_for, has = None if self.facts is None else self.facts.text_width, _text_width(model)
        if made_for is not None and has is not None and made_for != has:
            return f"it was made for {_family(made_for)}, and this model is {_family(has)}"
        return None


class LoraCatalogue:
    """Finds LoRAs by name. All methods read files, and may be called by several threads."""

    def __init__(self, rows: Sequence[LoraSpec] = (), folder: Path | None = None) -> None:
        """`folder` may come to be, and change, at any time. A row goes before a file of its name."""
        self._rows = {row.name: row for row in rows}
        self._folder = folder

    @property
    def rows(self) -> tuple[LoraSpec, ...]:
        """The configuration's rows."""
        return tuple(self._rows.values())

    def check_rows(self) -> None:
        """Raises ModelLoadError for the first row whose file is not here, or cannot be used."""
        for name in self._rows:
            entry = self._entry(name)
            if entry is not None and entry.problem is not None:
                raise ModelLoadError(f"LoRA {name!r}: {entry.problem}")

    def entries(self) -> list[LoraEntry]:
        """Returns all LoRAs, the configuration's first, then the folder's by name."""
        files = sorted(path.stem for path in self._list_files())
        names = [*self._rows, *(name for name in files if name not in self._rows)]
        return [entry for name in names if (entry := self._entry(name)) is not None]

    def resolve(self, asked: Sequence[LoraSettings], model: ModelSpec) -> tuple[LoraUse, ...]:
        """Returns the files of a request to `model`, without those that have no effect.

        Raises InvalidParameter for a name that is not there, and for a LoRA that is known not to fit.
        """
        found = [(self._find(each.name, model), each.scale) for each in asked]
        return tuple(LoraUse(file, scale) for file, scale in found if scale)

    def _find(self, name: str, model: ModelSpec) -> LoraFile:
        entry = self._entry(name)
        if entry is None:
            raise InvalidParameter(_FIELD, f"there is no LoRA of this name{self._suggest(name)}")
        if entry.problem is not None:
            raise InvalidParameter(_FIELD, f"{name!r} cannot be used: {entry.problem}")
        if (misfit := entry.misfit(model)) is not None:
            raise InvalidParameter(_FIELD, f"{name!r} is not for the model {model.name}: {misfit}")
        spec = entry.spec
        try:
            digest = "" if spec.file else digest_of(Path(spec.source))
        except OSError:
            raise InvalidParameter(_FIELD, f"the file of {name!r} can no longer be read") from None
        return spec.lora_file(digest)

    def _entry(self, name: str) -> LoraEntry | None:
        spec = self._rows.get(name) or self._spec_of_file(name)
        if spec is None:
            return None
        return LoraEntry(spec, None if spec.file else facts_of(spec.name, Path(spec.source)))

    def _spec_of_file(self, name: str) -> LoraSpec | None:
        if self._folder is None:
            return None
        try:
            path = self._folder / f"{check_lora_name(name)}{SUFFIX}"
            return LoraSpec(name, str(path)) if path.is_file() else None
        except (OSError, ValueError):
            return None

    def _list_files(self) -> list[Path]:
        if self._folder is None:
            return []
        try:
            with os.scandir(self._folder) as found:
                return [Path(each.path) for each in found if each.name.endswith(SUFFIX) and _is_name(each.name)]
        except OSError:
            return []

    def _suggest(self, name: str) -> str:
        names = [entry.spec.name for entry in self.entries()]
        close = get_close_matches(name[:100], names, n=3)
        if close:
            return f"; did you mean {' or '.join(close)}?"
        return "" if names else "; this server has none"


NO_LORAS: Final = LoraCatalogue()


def _is_name(file: str) -> bool:
    try:
        return bool(check_lora_name(file.removesuffix(SUFFIX)))
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _text_width_of_source(spec: ModelSpec) -> int | None:
    return text_width_of(spec)


def _text_width(model: ModelSpec) -> int | None:
    return _text_width_of_source(model)


def _family(width: int) -> str:
    names = {768: "a Stable Diffusion 1.x", 1024: "a Stable Diffusion 2.x", 2048: "a Stable Diffusion XL"}
    return names.get(width, f"one that reads text {width} wide")
