"""Makes environments for packages that Darkroom does not need: this one's packages, and a few of their own on top."""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path


def make_environment(name: str, packages: Sequence[str]) -> Path:
    """Returns the Python of an environment with `packages`; it is made when it is first wanted, and kept.

    Its own packages are found before this environment's. Raises CalledProcessError if they cannot be installed.
    """
    below = sysconfig.get_path("purelib")
    version = sha256("\n".join((below, *packages)).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"darkroom-bench-{name}-{version}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"{'setup':9} an environment with {', '.join(packages)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        own = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        (Path(own.strip()) / "below.pth").write_text(below)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
            check=True,
            stdout=sys.stderr,
        )
        ready.touch()
    return python
