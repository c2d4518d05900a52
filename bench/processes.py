"""Ends processes with all that they have started, and reads their titles."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve_app.launch.processes import find_descendants

ENDS_WITHIN_S = 20.0


def end_tree(process: "subprocess.Popen[Any]", ask: Callable[["subprocess.Popen[Any]"], None]) -> None:
    """Has `ask` tell it to end, and kills what is then left of its process tree, also what a signal has stopped."""
    tree = [process.pid, *find_descendants(process.pid)]
    ask(process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=ENDS_WITHIN_S)
    for pid in {*find_descendants(process.pid), *filter(title_of, tree)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def title_of(pid: int) -> str:
    """Returns the command line of a process, which many programs replace with a title; "" if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
