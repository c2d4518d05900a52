"""The versions of LoRAs that were trained here, in the folder that is served, and which of them is served. No torch.

    FOLDER/NAME.safetensors           what is served, and FOLDER/NAME.md, its card
    FOLDER/versions/NAME/3/...        every version whole: lora.safetensors, card.md, sheet.png
    FOLDER/versions/NAME/owner        the tenant that may add versions; without it only the operator may

A version is served by a rename: requests get the old one or the new one, and no server restarts.
"""

import contextlib
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

_VERSIONS: Final = "versions"
_TRIES: Final = 20


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

    def find(self, name: str | None = None) -> list[LoraVersion]:
        """Returns all versions, or those of `name`, by name and number."""
        root = self._folder / _VERSIONS
        names = sorted(path.name for path in root.iterdir()) if name is None and root.is_dir() else [name or ""]
        return [version for each in names if each for version in self._of(each)]

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
            is_free = not list(_numbered(home))
        if not is_free:
            raise InvalidParameter("name", f"{name!r} is somebody else's LoRA; take another name")

    def add(self, name: str, weights: Path, card: str, sheet: Path | None, owner: str | None = None) -> LoraVersion:
        """Adds a version with these files for the tenant `owner`, or for the operator, and serves it.

        Raises InvalidParameter if the name is not free for it, or the file cannot be served.
        """
        self._check(name)
        if (problem := facts_of(name, weights).problem) is not None:
            raise InvalidParameter("name", f"its file cannot be served: {problem}")
        if owner is not None:
            self._claim(name, owner)
        home = self._home(name)
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=home) as scratch:
            fresh = Path(scratch) / "version"
            fresh.mkdir()
            shutil.copyfile(weights, fresh / WEIGHTS)
            (fresh / CARD).write_text(card)
            if sheet is not None:
                shutil.copyfile(sheet, fresh / SHEET)
            number = self._settle(home, fresh)
        return self.serve(name, number)

    def serve(self, name: str, number: int) -> LoraVersion:
        """Serves a version. Raises InvalidParameter if there is no such version."""
        self._check(name)
        found = self.get(name, number)
        _replace(found.folder / WEIGHTS, self._folder / f"{name}{SUFFIX}")
        _replace(found.folder / CARD, self._folder / f"{name}.md")
        return LoraVersion(name, number, True, found.folder)

    def roll_back(self, name: str) -> LoraVersion:
        """Serves the version before the one that is served. Raises InvalidParameter if there is none."""
        versions = self._of(name)
        served = next((version.number for version in versions if version.is_served), None)
        earlier = [version.number for version in versions if served is None or version.number < served]
        if not earlier:
            raise InvalidParameter("name", f"{name!r} has no earlier version")
        return self.serve(name, max(earlier))

    def delete(self, name: str, number: int | None = None) -> None:
        """Deletes a LoRA with all its versions, or one version that is not served. Raises InvalidParameter."""
        if number is None:
            self._check(name)
            if not self._of(name):
                raise InvalidParameter("name", f"no training has made a LoRA named {name!r}")
            for path in (self._folder / f"{name}{SUFFIX}", self._folder / f"{name}.md"):
                path.unlink(missing_ok=True)
            _remove(self._home(name))
            return
        found = self.get(name, number)
        if found.is_served:
            raise InvalidParameter("version", f"{number} is served; serve another one first, or delete all of {name!r}")
        _remove(found.folder)

    def _of(self, name: str) -> list[LoraVersion]:
        served = self._served_digest(name)
        return [
            LoraVersion(name, number, digest_of(folder / WEIGHTS) == served, folder)
            for number, folder in sorted(_numbered(self._home(name)))
        ]

    def _served_digest(self, name: str) -> str | None:
        try:
            return digest_of(self._folder / f"{name}{SUFFIX}")
        except OSError:
            return None

    def _home(self, name: str) -> Path:
        try:
            return self._folder / _VERSIONS / check_lora_name(name)
        except ValueError as error:
            raise InvalidParameter("name", str(error)) from None

    def _check(self, name: str) -> None:
        """Raises InvalidParameter for a name whose file is somebody else's."""
        if name in self._reserved:
            raise InvalidParameter("name", f"{name!r} is a LoRA of the configuration; take another name")
        if not list(_numbered(self._home(name))) and (self._folder / f"{name}{SUFFIX}").exists():
            raise InvalidParameter("name", f"there is a file named {name!r} that no training has made")

    def _claim(self, name: str, owner: str) -> None:
        """Makes a new name the tenant's. Raises InvalidParameter for another one's."""
        self.check_owner(name, owner)
        home = self._home(name)
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=home, prefix=".") as file:
            file.write(owner)
            file.flush()
            # Whole, or not at all: two tenants may claim it at the same time.
            with contextlib.suppress(FileExistsError):
                os.link(file.name, home / OWNER)
        self.check_owner(name, owner)

    def _settle(self, home: Path, fresh: Path) -> int:
        """Gives a new version the next number; another process may take one at the same time."""
        for _ in range(_TRIES):
            number = 1 + max((number for number, _ in _numbered(home)), default=0)
            try:
                fresh.rename(home / str(number))
            except OSError:
                continue
            return number
        raise InvalidParameter("name", "too many others add versions of it at the same time")


def _numbered(home: Path) -> Iterator[tuple[int, Path]]:
    if home.is_dir():
        yield from ((int(path.name), path) for path in home.iterdir() if path.name.isascii() and path.name.isdecimal())


def _replace(source: Path, target: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
        neighbour = Path(file.name)
    try:
        shutil.copyfile(source, neighbour)
        neighbour.chmod(0o644)
        os.replace(neighbour, target)
    finally:
        neighbour.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Removes a folder; from the first moment it is no version any more."""
    doomed = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent)) / "gone"
    folder.rename(doomed)
    shutil.rmtree(doomed.parent, ignore_errors=True)
