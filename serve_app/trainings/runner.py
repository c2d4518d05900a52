"""Runs trainings in processes of their own, so many at a time, and notices when one dies. No torch, and no Ray."""

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from deployments.engine.protocol.errors import InvalidParameter
from deployments.training.lora.run_folder import UNFINISHED, RunFolder

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.5
_END_S: Final = 10.0


class TrainingProcess(Protocol):
    """A training that runs somewhere."""

    def poll(self) -> int | None:
        """Returns None while it runs, then a number: 0 if it went well."""
        ...

    def terminate(self) -> None:
        """Has it end at once; its last checkpoint stays."""
        ...


Launch = Callable[[Path], TrainingProcess]


def launch_process(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the training in `folder` on this machine, as a process that starts those that train with it.

    Their output goes to `log.txt` there.
    """
    with (folder / "log.txt").open("ab") as output:
        command = [sys.executable, "-m", "deployments.training.lora", str(folder)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


class TrainingRunner:
    """Runs trainings one after another, or `at_once` of them. Each has a thread here that watches it."""

    def __init__(self, launch: Launch = launch_process, at_once: int = 1) -> None:
        self._launch, self._places = launch, threading.Semaphore(at_once)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, run: RunFolder) -> None:
        """Has the training in `run` wait for its turn, and run."""
        run.beat()
        turn = run.take_turn()
        thread = threading.Thread(target=self._run, args=(run, turn), name=f"training {run.path.name}", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Ends all trainings; each can be resumed from its last checkpoint."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * _END_S)

    def _run(self, run: RunFolder, turn: str) -> None:
        with contextlib.ExitStack() as held:
            while not self._places.acquire(timeout=_LOOK_S):
                run.beat()
                if run.is_cancelled or self._stopping.is_set():
                    break
            else:
                held.callback(self._places.release)
                if not run.is_cancelled and not self._stopping.is_set():
                    self._watch(run, turn)
        _record_end(run, turn, state="cancelled" if run.is_cancelled else "interrupted")

    def _watch(self, run: RunFolder, turn: str) -> None:
        try:
            process = self._launch(run.path)
        except Exception:
            log.exception("the training %s could not be started", run.path.name)
            _record_end(run, turn, state="failed", error="it could not be started; the server's log has more")
            return
        while process.poll() is None:
            run.beat()
            if self._stopping.wait(_LOOK_S) or _need_not_begin(run):
                process.terminate()
                break
        deadline = threading.Event()
        for _ in range(int(_END_S / _LOOK_S)):
            if process.poll() is not None:
                return
            deadline.wait(_LOOK_S)
        log.warning("the training %s does not end", run.path.name)


def _need_not_begin(run: RunFolder) -> bool:
    """Whether it is cancelled while it waits for its resources, perhaps for hours: nobody else looks then."""
    return run.is_cancelled and run.read_progress().state == "queued"


def _record_end(run: RunFolder, turn: str, **end: Any) -> None:
    """Writes how a training has ended, unless it has done so itself, or somebody else goes on with it."""
    try:
        with run.held():
            if run.is_turn(turn) and run.read_progress().state in UNFINISHED:
                run.change_progress(**end)
            if run.read_progress().state == "succeeded":
                run.drop_checkpoint()
    except InvalidParameter:
        log.warning("another process works on the training %s", run.path.name)
    except FileNotFoundError:
        log.warning("the training %s has been removed", run.path.name)
