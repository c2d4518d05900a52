"""Fuzzes the door for pictures with Atheris, guided by which code each mutation reaches.

    python -m tests.hostile.fuzz_images --seconds 3600 --corpus some/folder

Starts from the corpus' own pictures. Anything but a picture or `InvalidParameter` ends it with the input that did it in
`crash-*`, and so does an input that takes more than ten seconds or two gigabytes. What is found becomes a row of
`pictures.py`. Needs Atheris, and so Linux.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "deployments.uploads.image_files", "deployments.uploads.file_chunks"]):
    from deployments.engine.protocol.errors import InvalidParameter
    from deployments.uploads.image_files import decode, read_header

from tests.hostile import pictures
from tests.serve_app.api.parsing.test_hostile_forms import END

SECONDS_PER_INPUT = 10
MEMORY_MB = 2048


def look(data: bytes) -> None:
    """One input: header and decoder must agree that it is a picture, or refuse it in our words."""
    try:
        header = read_header(data, "image")
        picture = decode(data, "image")
    except InvalidParameter:
        return
    assert picture.mode == "RGB"
    assert picture.size == (header.width, header.height)


def seeds(folder: Path) -> None:
    """Puts the small pictures among the corpus' forms into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in (*pictures.DISGUISED, *pictures.BROKEN, *pictures.UNUSUAL):
        body = b"".join(piece for piece in row.sent.pieces if isinstance(piece, bytes))
        data = body.rpartition(b"\r\n\r\n")[2].removesuffix(END).removesuffix(b"\r\n")
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=int, default=60)
    arguments.add_argument("--corpus", type=Path, required=True)
    chosen = arguments.parse_args()
    seeds(chosen.corpus)
    options = [f"-max_total_time={chosen.seconds}", f"-timeout={SECONDS_PER_INPUT}", f"-rss_limit_mb={MEMORY_MB}"]
    options += ["-max_len=200000", f"-artifact_prefix={chosen.corpus}/"]
    atheris.Setup([sys.argv[0], *options, str(chosen.corpus)], look)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
