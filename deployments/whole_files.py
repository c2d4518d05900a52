"""Files that are replaced whole: whoever reads one finds the old or the new one, also after a failed write."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a neighbour to write, of a name of its own, which takes the place of `path` if the block ends well."""
    # Not named after it: that name could be too long.
    neighbour = path.with_name(f".{uuid4().hex}.partial")
    try:
        yield neighbour
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes `path` whole: nobody reads half of it."""
    with replaced(path) as neighbour:
        neighbour.write_text(text)
