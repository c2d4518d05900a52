"""Runs the GPU bench as on a machine that has torch, transformers, and the wheels that the bench's help names."""

import re
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any, Final

THERE: Final = ("torch", "transformers", "triton")


class Hiding:
    """Finds what `finder` finds, but no module of distributions that are not in `kept`."""

    def __init__(self, finder: Any, kept: set[str]) -> None:
        self._finder, self._kept = finder, kept
        brought = packages_distributions()
        self._hidden = {name for name, by in brought.items() if not {normalize(each) for each in by} & kept}

    def find_spec(self, fullname: str, *place: Any) -> Any:
        return None if fullname.partition(".")[0] in self._hidden else self._finder.find_spec(fullname, *place)

    def find_distributions(self, *context: Any) -> Iterable[Any]:
        if not isinstance(self._finder, type) or not issubclass(self._finder, PathFinder):
            return []
        return [each for each in self._finder.find_distributions(*context) if normalize(each.name) in self._kept]


def with_what_they_need(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = normalize(pending.pop())
        if name not in found:
            found.add(name)
            try:
                needed = requires(name) or []
            except PackageNotFoundError:
                continue
            pending += [re.split(r"[ ;<>=!~\[(]", each)[0] for each in needed if "extra ==" not in each]
    return found


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    # The names are read, not imported: the import is what is tried.
    text = Path("bench/gpu/__main__.py").read_text()
    named = re.findall(r'"([\w-]+)",', text[text.index("WHEELS: Final = (") :].partition("\n)\n")[0])
    kept = with_what_they_need(THERE) | {normalize(each) for each in named}
    sys.meta_path[:] = [Hiding(finder, kept) for finder in sys.meta_path]

    from bench.gpu.__main__ import main

    raise SystemExit(main(sys.argv[1:]))
