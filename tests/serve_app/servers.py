"""Real servers for tests: an HTTP server in this process, and `darkroom serve` as its users start it."""

import contextlib
import os
import pkgutil
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI

from serve_app.config.sections import RedisConfig
from serve_app.config.server import AppConfig
from serve_app.launch.processes import find_descendants

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 120.0
ENDS_WITHIN_S = 15.0


@dataclass
class Launched:
    """A running `darkroom serve`, and the lines that it says."""

    process: "subprocess.Popen[str]"
    port: int
    lines: "queue.Queue[str]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def first_line(self) -> str:
        """Where it can be reached, when it is ready, or why it is not there."""
        return self.lines.get(timeout=READY_WITHIN_S)

    def tree(self) -> list[int]:
        """The processes that it has started."""
        return find_descendants(self.process.pid)

    def replicas(self) -> list[int]:
        """The processes that host an engine."""
        return self._titled(b"ServeReplica:darkroom:tiny")

    def ingresses(self) -> list[int]:
        """The processes that speak HTTP behind Ray's proxy."""
        return self._titled(b"ServeReplica:darkroom:ingress")

    def _titled(self, title: bytes) -> list[int]:
        """Ray writes a deployment's name into the title of its processes."""
        return [pid for pid in self.tree() if title in command_of(pid)]

    def stop(self, number: int = signal.SIGTERM, *, group: bool = False) -> float:
        """Sends a signal, to the whole process group as a terminal does if `group`. Seconds to the last one's end."""
        tree, started = self.tree(), time.monotonic()
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        self.process.wait(timeout=2 * ENDS_WITHIN_S)
        while left := [pid for pid in tree if alive(pid)]:
            assert time.monotonic() - started < ENDS_WITHIN_S, f"still alive: {left}"
            time.sleep(0.05)
        return time.monotonic() - started

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip())


def plant_modules(folder: Path) -> None:
    """Puts a module of every importable name into `folder`, which tells `planted_that_ran` when it is imported."""
    folder.mkdir(exist_ok=True)
    for name in {module.name for module in pkgutil.iter_modules()} | sys.stdlib_module_names:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'planted.txt')!r}, 'a').write({name!r} + chr(10))\n")


def planted_that_ran(folder: Path) -> list[str]:
    """The modules in `folder` that somebody has imported."""
    told = folder / "planted.txt"
    return told.read_text().split() if told.exists() else []


def alive(pid: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def command_of(pid: int) -> bytes:
    """Its command line; nothing of a process that has just ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@contextlib.contextmanager
def ray_server(config: AppConfig | str, folder: Path) -> Iterator[Launched]:
    """`config`, or a packaged one by its name, served for real and ready, on a port of its own.

    Takes some 15 seconds to start: share one by a fixture of session scope. `folder` is for a file of its own.
    Afterwards none of its processes is left.
    """
    if isinstance(config, AppConfig):
        file = folder / "served.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
        config = str(file)
    with launched(config) as server:
        assert "is ready at" in (said := server.first_line()), said
        yield server


@contextlib.contextmanager
def launched(config: str | Path, env: Mapping[str, str] | None = None, folder: Path = ROOT) -> Iterator[Launched]:
    """`darkroom serve`, just started in `folder`."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "serve_app.cli", "serve", "--config", str(config), "--port", str(port)]
    with started(command, port, {"PYTHONPATH": str(ROOT), **(env or {})}, folder) as server:
        yield server


@contextlib.contextmanager
def started(
    command: Sequence[str], port: int, env: Mapping[str, str] | None = None, folder: Path = ROOT
) -> Iterator[Launched]:
    """`command`, which serves on `port`, in a process group of its own; ended afterwards, if it still runs."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder}
    with subprocess.Popen(command, env=os.environ | (env or {}), start_new_session=True, **options) as process:
        try:
            yield Launched(process, port)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=2 * ENDS_WITHIN_S)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def tiny_config(checkpoint: Path, ingresses: int = 1, redis: RedisConfig | None = None, **deployment: Any) -> AppConfig:
    """One CPU replica of the checkpoint at `checkpoint`, as model `tiny` (also `a/tiny-model`), quick to end.

    What comes again is made again, unless there is a `redis` to keep it.
    """
    hosted = {"name": "tiny", "models": ["tiny"], "device": "cpu", "dtype": "float32", "threads": 1, "num_cpus": 0.1}
    patience = {"graceful_shutdown_timeout_s": 3, "graceful_shutdown_wait_loop_s": 0.2, "health_check_period_s": 1}
    patience["health_check_timeout_s"] = 3
    return AppConfig.model_validate(
        {
            "models": [{"name": "tiny", "source": str(checkpoint), "aliases": ["a/tiny-model"]}],
            "deployments": [hosted | patience | deployment],
            "ingress": {
                "replicas": ingresses,
                "graceful_shutdown_timeout_s": 4,
                "graceful_shutdown_wait_loop_s": 0.2,
            },
            "cache": {"enabled": redis is not None},
            "redis": redis,
            "jobs": {"lease_s": 2.0},
        }
    )


@contextlib.contextmanager
def http_server(app: FastAPI, port: int | None = None) -> Iterator[str]:
    """`app` behind a real socket, on a thread of this process. Gives its URL."""
    port = port or free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
