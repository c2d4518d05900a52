"""Finds, adopts and ends the processes below this one, so that none is left behind."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes this process, on Linux, the parent of its descendants' orphans, so that `find_descendants` finds all."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def sweep(within_s: float) -> None:
    """Kills this process's descendants until there are none, or `within_s` seconds are over."""
    deadline = time.monotonic() + within_s
    while (alive := find_descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        _reap()


def find_descendants(pid: int) -> list[int]:
    """The processes below `pid`, without zombies."""
    children: dict[int, list[int]] = {}
    for child, parent, state in _read_process_table():
        if not state.startswith("Z"):
            children.setdefault(parent, []).append(child)
    found, rest = [], list(children.get(pid, ()))
    while rest:
        found.append(rest.pop())
        rest.extend(children.get(found[-1], ()))
    return found


def _read_process_table() -> Iterator[tuple[int, int, str]]:
    """Yields process, parent and state."""
    if sys.platform != "linux":
        listing = subprocess.run(["ps", "-axo", "pid=,ppid=,state="], capture_output=True, text=True, check=True)
        for line in listing.stdout.splitlines():
            pid, parent, state = line.split()
            yield int(pid), int(parent), state
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may hold anything, parentheses included.
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                yield int(entry.name), int(parent), state


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
