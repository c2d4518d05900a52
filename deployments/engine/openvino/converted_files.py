"""Keeps converted models in a folder, for later starts and for other processes."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import openvino

log = logging.getLogger(__name__)

CONVERSION_VERSION: Final = 4
"""Part of every key. Raise it with any change of what is traced, or of how."""

_MADE_WITH: Final = ("openvino", "torch", "diffusers", "transformers")
_MODEL, _WEIGHTS, _FACTS = "model.xml", "model.bin", "facts.json"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model that has been checked. Calls need `work_bytes` of memory per element of the first input."""

    model: openvino.Model
    work_bytes: float


class ConvertedFiles:
    """Converted models in `folder`, each in a folder of its own; without a folder nothing is kept.

    Several processes may use it at once: a model appears there whole or not at all, and of those that convert the same
    one at the same time the last one's stays.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def load(self, core: openvino.Core, origin: Mapping[str, Any]) -> Converted | None:
        """Returns the model made from `origin`, which says as plain data all that it depends on besides versions.

        None if it is not there, or damaged.
        """
        return None if self._folder is None else _read(core, self._folder / _digest_of(origin))

    def keep(
        self, core: openvino.Core, origin: Mapping[str, Any], model: openvino.Model, check: Callable[[Any], float]
    ) -> Converted:
        """Keeps a new model, if `check` does not raise; it returns the model's `work_bytes`.

        What is checked and returned has its weights in the file: it needs none of torch's, and the system may drop its
        pages. A folder that cannot be written is no error: then nothing is kept.
        """
        if self._folder is None:
            return Converted(model, check(model))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(dir=self._folder, prefix="new-"))
        except OSError as error:
            log.warning("converted models are not kept in %s: %s", self._folder, error)
            return Converted(model, check(model))
        try:
            return _write(core, model, check, new, self._folder / _digest_of(origin))
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _digest_of(origin: Mapping[str, Any]) -> str:
    versions = {name: version(name) for name in _MADE_WITH}
    text = json.dumps({**origin, "conversion": CONVERSION_VERSION, "versions": versions}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(core: openvino.Core, place: Path) -> Converted | None:
    try:
        facts = json.loads((place / _FACTS).read_text())
        # OpenVINO maps weights into memory without looking at them.
        if facts["digests"] == _digests(place):
            return Converted(core.read_model(place / _MODEL), float(facts["work_bytes"]))
        log.warning("the converted model in %s is damaged; it is converted again", place)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        log.warning("the converted model in %s cannot be read; it is converted again: %s", place, error)
    return None


def _write(
    core: openvino.Core, model: openvino.Model, check: Callable[[Any], float], new: Path, place: Path
) -> Converted:
    openvino.save_model(model, new / _MODEL, compress_to_fp16=False)
    saved = core.read_model(new / _MODEL)
    converted = Converted(saved, check(saved))
    (new / _FACTS).write_text(json.dumps({"digests": _digests(new), "work_bytes": converted.work_bytes}))
    try:
        # What is there is damaged, or else another process has just put it there.
        shutil.rmtree(place, ignore_errors=True)
        os.rename(new, place)
    except OSError as error:
        log.warning("the converted model is not kept in %s: %s", place, error)
    return converted


def _digests(place: Path) -> dict[str, str]:
    return {name: _digest_file(place / name) for name in (_MODEL, _WEIGHTS)}


def _digest_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
