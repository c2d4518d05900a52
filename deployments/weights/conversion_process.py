"""Opens weights for `darkroom convert`, in a process of its own: only tensors, within bounds, without a network."""

import json
import resource
import sys
from pathlib import Path
from typing import Any, Final

from deployments.engine.protocol.errors import ModelLoadError

# Audit events that nothing here needs. Loading with `weights_only` runs no code; if it ever did, these would stop it.
_FORBIDDEN: Final = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "pty.spawn",
    "ftplib.",
    "http.client.",
    "urllib.Request",
    "webbrowser.open",
)


def main() -> None:
    """Does the job in its argument, and prints one line of JSON as the answer."""
    job = json.loads(sys.argv[1])
    _bound(job["limits"])
    # Imported first: the imports do what is forbidden from here on.
    from deployments.weights import converted_weights

    converted_weights.prepare()
    _forbid()
    try:
        converted_weights.write(
            Path(job["source"]),
            Path(job["target"]),
            job["metadata"],
            config=job["config"],
            prediction_type=job["prediction_type"],
        )
        answer: dict[str, Any] = {"done": True}
    except ModelLoadError as error:
        answer = {"refused": error.message}
    except MemoryError:
        answer = {"refused": "it takes more memory than its files' size allows for"}
    except OSError as error:
        answer = {"refused": f"its files could not be read or written: {error.strerror}"}
    print(json.dumps(answer), flush=True)


def _bound(limits: dict[str, int]) -> None:
    """Bounds memory and CPU time of this process, and the size of the files it writes."""
    for kind, value in (
        (resource.RLIMIT_DATA, limits["memory"]),
        (resource.RLIMIT_CPU, limits["seconds"]),
        (resource.RLIMIT_FSIZE, limits["file"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _forbid() -> None:
    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise ModelLoadError(f"its weights tried what weights never need ({event}): do not trust them")

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
