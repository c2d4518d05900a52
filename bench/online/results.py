"""Keeps what has been measured, so that an interrupted run goes on where it was."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def open_results(folder: Path, out: Path | None, facts: Mapping[str, Any], settings: Mapping[str, Any]) -> "Results":
    """Opens what has been measured with `settings` at the commit, with the versions and on the processor of `facts`
    (`bench.card`), in a file of that commit's own unless `out` names one. Raises ValueError as `Results` does.
    """
    kind = "quick" if settings["quick"] else "results"
    measured = {"commit": facts["commit"], "versions": facts["versions"], "cpu": facts["hardware"]["cpu"]}
    return Results(out or folder / f"{kind}-{facts['commit']}.json", {**settings, **measured})


class Results:
    """One JSON file, written anew after each measurement. Those of other `settings` are never mixed in.

    Raises ValueError if the file is of other settings.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self._file = file
        self.document: dict[str, Any] = {"settings": dict(settings), "parts": {}}
        if file.exists():
            self.document = json.loads(file.read_text())
            if self.document["settings"] != json.loads(json.dumps(settings)):
                raise ValueError(f"{file.name} was measured with other settings; remove it, or name another with --out")

    @property
    def parts(self) -> Mapping[str, Any]:
        """What has been measured, by name."""
        parts: Mapping[str, Any] = self.document["parts"]
        return parts

    def keep(self, name: str, measure: Callable[[], Any]) -> Any:
        """Returns the part `name`, measured now if it has not been."""
        if name not in self.parts:
            self.put(name, measure())
        return self.parts[name]

    def put(self, name: str, part: Any) -> None:
        """Writes a part, and the file. A file is never seen half written."""
        self.document["parts"][name] = part
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.document, indent=1))
        unfinished.replace(self._file)
