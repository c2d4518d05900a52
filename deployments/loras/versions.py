"""The versions of LoRAs that were trained here, in the folder that is served, and which of them is served. No torch.

    FOLDER/versions/NAME/3/...        every version whole: lora.safetensors, card.md, sheet.png
    FOLDER/versions/NAME/served       a link to the version that is served
    FOLDER/versions/NAME/owner        the tenant that may add versions; without it only the operator may
    FOLDER/NAME.safetensors           what is served, and FOLDER/NAME.md, its card: links that lead through `served`

A version is served by the rename of one link: requests get the old one or the new one, weights and card together, and
no server restarts. Folders in which what is served is a copy, as it once was, are read, too.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.engine.protocol.errors import InvalidParameter
from deployments.engine.protocol.settings import check_lora_name
from deployments.loras.catalogue import SUFFIX
from deployments.loras.file_facts import digest_of, facts_of

WEIGHTS: Final = "lora.safetensors"
CARD: Final = "card.md"
SHEET: Final = "sheet.png"
OWNER: Final = "owner"
SERVED: Final = "served"

_VERSIONS: Final = "versions"
# No names of LoRAs, so what a process that was killed leaves of these is never taken for one.
_LOCK, _NEW, _DELETED = ".lock", ".new-", ".deleted-"


@dataclass(frozen=True, slots=True)
class LoraVersion:
    """A version of the LoRA `name`, by its `number` from 1, and whether it `is_served`."""

    name: str
    number: int
    is_served: bool
    folder: Path


class LoraVersions:
    """Adds, serves and deletes versions in a LoRA folder. Several processes may do so at once."""

    def __init__(self, folder: Path, reserved: frozenset[str] = frozenset()) -> None:
        """`reserved` are names that the configuration gives to other files."""
        self._folder, self._reserved = folder, reserved
        self._root = folder / _VERSIONS

    def find(self, name: str | None = None) -> list[LoraVersion]:
        """Returns all versions, or those of `name`, by name and number."""
        if name is not None:
            return self._of(name)
        names = sorted(path.name for path in self._root.iterdir()) if self._root.is_dir() else []
        return [version for each in names if _is_name(each) for version in self._of(each)]

    def get(self, name: str, number: int) -> LoraVersion:
        """Returns a version. Raises InvalidParameter if there is no such version."""
        versions = {version.number: version for version in self._of(name)}
        if number not in versions:
            known = ", ".join(map(str, versions)) or "none"
            raise InvalidParameter("version", f"{name!r} has no version {number}; it has {known}")
        return versions[number]

    def find_file(self, name: str, weights: Path) -> LoraVersion | None:
        """Returns the newest version of `name` with exactly these weights; None if there is none."""
        digest = digest_of(weights)
        same = [version for version in self._of(name) if digest_of(version.folder / WEIGHTS) == digest]
        return same[-1] if same else None

    def check_owner(self, name: str, owner: str) -> None:
        """Raises InvalidParameter if a LoRA of that name is not the tenant's own: nobody replaces another one's."""
        self._check(name)
        home = self._home(name)
        try:
            is_free = (home / OWNER).read_text() == owner
        except FileNotFoundError:
            is_free = not _numbered(home)
        if not is_free:
            raise InvalidParameter("name", f"{name!r} is somebody else's LoRA; take another name")

    def add(self, name: str, weights: Path, card: str, sheet: Path | None, owner: str | None = None) -> LoraVersion:
        """Adds a version with these files for the tenant `owner`, or for the operator, and serves it.

        Weights that are served already are no new version: returns the one that has them. Raises InvalidParameter if
        the name is not free for it, or the file cannot be served.
        """
        self._check(name)
        if (problem := facts_of(name, weights).problem) is not None:
            raise InvalidParameter("name", f"its file cannot be served: {problem}")
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_NEW, dir=self._root) as scratch:
            fresh = Path(scratch) / "version"
            fresh.mkdir()
            shutil.copyfile(weights, fresh / WEIGHTS)
            # Links lead here: who copies a file to what is served must not overwrite a version.
            (fresh / WEIGHTS).chmod(0o444)
            (fresh / CARD).write_text(card)
            if sheet is not None:
                shutil.copyfile(sheet, fresh / SHEET)
            with self._alone():
                self._check(name)
                if owner is not None:
                    self._claim(name, owner)
                return self._served_with(name, fresh / WEIGHTS) or self._serve(name, self._settle(name, fresh))

    def serve(self, name: str, number: int) -> LoraVersion:
        """Serves a version. Raises InvalidParameter if there is no such version."""
        self._check(name)
        with self._alone():
            return self._serve(name, self.get(name, number).number)

    def roll_back(self, name: str) -> LoraVersion:
        """Serves the version before the one that is served. Raises InvalidParameter if there is none."""
        self._check(name)
        with self._alone():
            versions = self._of(name)
            served = next((version.number for version in versions if version.is_served), None)
            earlier = [version.number for version in versions if served is None or version.number < served]
            if not earlier:
                raise InvalidParameter("name", f"{name!r} has no earlier version")
            return self._serve(name, max(earlier))

    def delete(self, name: str, number: int | None = None) -> None:
        """Deletes a LoRA with all its versions, or one version that is not served. Raises InvalidParameter."""
        if number is None:
            self._check(name)
        with self._alone():
            if number is not None:
                found = self.get(name, number)
                if found.is_served:
                    rule = f"{number} is served; serve another one first, or delete all of {name!r}"
                    raise InvalidParameter("version", rule)
                self._remove(found.folder)
                return
            if not self._of(name):
                raise InvalidParameter("name", f"no training has made a LoRA named {name!r}")
            for path in (self._weights(name), self._card(name)):
                path.unlink(missing_ok=True)
            self._remove(self._home(name))

    def _of(self, name: str) -> list[LoraVersion]:
        numbered = _numbered(self._home(name))
        served = self._served_number(name, numbered)
        return [LoraVersion(name, number, number == served, numbered[number]) for number in sorted(numbered)]

    def _served_number(self, name: str, numbered: dict[int, Path]) -> int | None:
        weights = self._weights(name)
        try:
            if self._is_linked(name):
                served = os.readlink(self._home(name) / SERVED)
                return next((number for number in numbered if str(number) == served), None)
            # A copy, of which only the bytes are known: of versions with the same ones, the newest.
            digest = digest_of(weights)
            same = [number for number, folder in numbered.items() if _digest(folder / WEIGHTS) == digest]
            return max(same, default=None)
        except OSError:
            return None

    def _served_with(self, name: str, weights: Path) -> LoraVersion | None:
        """Returns the version that is served, if it has these weights."""
        served = next((version for version in self._of(name) if version.is_served), None)
        is_same = served is not None and _digest(served.folder / WEIGHTS) == digest_of(weights)
        return served if is_same else None

    def _serve(self, name: str, number: int) -> LoraVersion:
        home = self._home(name)
        if not self._is_linked(name):
            # Until the last rename below, what was served stays served, with its own card.
            before = self._served_number(name, _numbered(home))
            _point(home / SERVED, str(number if before is None else before))
            _point(self._card(name), self._target(name, CARD))
            _point(self._weights(name), self._target(name, WEIGHTS))
        _point(home / SERVED, str(number))
        return LoraVersion(name, number, True, home / str(number))

    def _is_linked(self, name: str) -> bool:
        weights = self._weights(name)
        return weights.is_symlink() and os.readlink(weights) == self._target(name, WEIGHTS)

    def _weights(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"

    def _card(self, name: str) -> Path:
        return self._folder / f"{name}.md"

    def _target(self, name: str, file: str) -> str:
        # Relative, so that the folder can be mounted anywhere.
        return os.path.join(_VERSIONS, name, SERVED, file)

    def _home(self, name: str) -> Path:
        try:
            return self._root / check_lora_name(name)
        except ValueError as error:
            raise InvalidParameter("name", str(error)) from None

    def _check(self, name: str) -> None:
        """Raises InvalidParameter for a name whose file is somebody else's."""
        if name in self._reserved:
            raise InvalidParameter("name", f"{name!r} is a LoRA of the configuration; take another name")
        if not _numbered(self._home(name)) and self._weights(name).exists():
            raise InvalidParameter("name", f"there is a file named {name!r} that no training has made")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps all other processes from changing versions; one that is killed lets go."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / _LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _claim(self, name: str, owner: str) -> None:
        """Makes a new name the tenant's. Raises InvalidParameter for another one's."""
        self.check_owner(name, owner)
        home = self._home(name)
        home.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_NEW, dir=self._root) as scratch:
            (Path(scratch) / OWNER).write_text(owner)
            os.replace(Path(scratch) / OWNER, home / OWNER)

    def _settle(self, name: str, fresh: Path) -> int:
        """Gives a new version the next number."""
        home = self._home(name)
        home.mkdir(exist_ok=True)
        number = 1 + max(_numbers(home), default=0)
        fresh.rename(home / str(number))
        return number

    def _remove(self, folder: Path) -> None:
        """Removes a folder, which is no version any more from the first moment, and what is left of earlier ones."""
        folder.rename(Path(tempfile.mkdtemp(prefix=_DELETED, dir=self._root)) / "gone")
        for each in self._root.glob(f"{_DELETED}*"):
            shutil.rmtree(each, ignore_errors=True)


def _is_name(name: str) -> bool:
    try:
        return bool(check_lora_name(name))
    except ValueError:
        return False


def _numbered(home: Path) -> dict[int, Path]:
    return {number: home / str(number) for number in _numbers(home) if (home / str(number) / WEIGHTS).is_file()}


def _numbers(home: Path) -> list[int]:
    names = [path.name for path in home.iterdir()] if home.is_dir() else []
    return [int(name) for name in names if name.isascii() and name.isdecimal() and name == str(int(name))]


def _digest(path: Path) -> str | None:
    try:
        return digest_of(path)
    except OSError:
        return None


def _point(link: Path, target: str) -> None:
    """Makes `link` lead to `target`, in one rename."""
    with tempfile.TemporaryDirectory(prefix=_NEW, dir=link.parent) as scratch:
        fresh = Path(scratch) / "link"
        fresh.symlink_to(target)
        os.replace(fresh, link)
