"""Keeps converted models in a folder, for later starts and for other processes."""

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import openvino

log = logging.getLogger(__name__)

CONVERSION_VERSION: Final = 4
"""Part of every key. Raise it with any change of what is traced, or of how."""

LEFT_BEHIND_S: Final = 24 * 3600.0
"""After so long nobody writes into the folder of a new model any more: conversions and their checks take minutes."""

_NEW: Final = "new-"
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

    Several processes may use it at once, of several users as far as their umask lets them: a model appears there whole
    or not at all, and of those that convert the same one at the same time the first one's stays.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            _remove_left_behind(folder)

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
        pages. A folder that cannot be written, or a full disk, is no error: then nothing is kept.
        """
        if self._folder is None:
            return Converted(model, check(model))
        new = self._folder / f"{_NEW}{secrets.token_hex(8)}"
        try:
            try:
                # What is not written whole cannot be read, or mapped: then the model in memory is checked.
                new.mkdir(parents=True)
                saved = _save(core, model, new)
            except (OSError, RuntimeError) as error:
                log.warning("converted models are not kept in %s: %s", self._folder, error)
                return Converted(model, check(model))
            converted = Converted(saved, check(saved))
            return _publish(core, converted, new, self._folder / _digest_of(origin))
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


def _save(core: openvino.Core, model: openvino.Model, new: Path) -> openvino.Model:
    """Returns `model` with its weights in files in `new`. Raises OSError or RuntimeError if they cannot be written."""
    openvino.save_model(model, new / _MODEL, compress_to_fp16=False)
    return core.read_model(new / _MODEL)


def _publish(core: openvino.Core, converted: Converted, new: Path, place: Path) -> Converted:
    """Moves the files of `converted` from `new` to `place`; returns what another process has put there, if it has."""
    try:
        (new / _FACTS).write_text(json.dumps({"digests": _digests(new), "work_bytes": converted.work_bytes}))
        if (found := _read(core, place)) is not None:
            return found
        shutil.rmtree(place, ignore_errors=True)
        os.rename(new, place)
    except OSError as error:
        log.warning("the converted model is not kept in %s: %s", place, error)
    return converted


def _remove_left_behind(folder: Path) -> None:
    """Removes what processes that ended within a conversion have left in `folder`."""
    for new in folder.glob(f"{_NEW}*"):
        with suppress(OSError):
            latest = max(path.stat().st_mtime for path in (new, *new.iterdir()))
            if latest < time.time() - LEFT_BEHIND_S:
                shutil.rmtree(new, ignore_errors=True)


def _digests(place: Path) -> dict[str, str]:
    return {name: _digest_file(place / name) for name in (_MODEL, _WEIGHTS)}


def _digest_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
