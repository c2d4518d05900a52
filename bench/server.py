"""Runs a server under test: starts it, breaks it on command, inspects it, and ends all of its processes."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from bench.processes import end_tree, title_of
from bench.prometheus import REPORT_INTERVAL_ENV, Exported, scrape_at_rest
from serve_app.client import BASE
from serve_app.config.server import AppConfig
from serve_app.launch.local_cluster import HEALTH_PATH
from serve_app.launch.processes import find_descendants

SETTLES_WITHIN_S = 60.0
RESTS_WITHIN_S = 60.0

# Reports of the engines are kept for a second.
REPORT_AGE_S = 1.1


class ServerFailed(Exception):
    """The server did not start, died, or could not do what it was told. Its log says why."""


class RunningServer:
    """A running server."""

    def __init__(self, process: "subprocess.Popen[str]", port: int, deployment: str) -> None:
        self._process = process
        self._deployment = deployment
        self._line = threading.Lock()
        self.url = f"http://127.0.0.1:{port}"
        self.pid = process.pid

    async def command(self, do: str, **details: Any) -> Any:
        """Sends the server a command; see `faulty_server.py`. Raises ServerFailed."""
        return await asyncio.to_thread(self._exchange, {"do": do, **details})

    async def is_at_rest(self, replicas: int) -> bool:
        """Whether, within a while, so many replicas do nothing, and the server calls itself healthy."""
        deadline = time.monotonic() + RESTS_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(ServerFailed, httpx.HTTPError):
                states = await self.command("state")
                busy = any(state["running"] or state["waiting"] for state in states)
                if len(states) == replicas and not busy and (await asyncio.to_thread(self._healthy)):
                    return True
            await asyncio.sleep(1.0)
        return False

    def _healthy(self) -> bool:
        return httpx.get(self.url + HEALTH_PATH, trust_env=False, timeout=10).status_code == httpx.codes.OK

    async def statistics(self, http: httpx.AsyncClient) -> dict[str, Any]:
        """Returns the server's statistics once it is at rest."""
        deadline = time.monotonic() + SETTLES_WITHIN_S
        while True:
            await asyncio.sleep(REPORT_AGE_S)
            with contextlib.suppress(httpx.HTTPError):
                said: dict[str, Any] = (await http.get(f"{BASE}/stats")).raise_for_status().json()
                if not said["active"] or time.monotonic() > deadline:
                    return said
            if time.monotonic() > deadline:
                raise ServerFailed("the server tells no statistics")

    async def exported(self) -> Exported:
        """Returns what Prometheus would see, once that has stopped changing."""
        return await asyncio.to_thread(scrape_at_rest, self.pid)

    def replicas(self) -> list[int]:
        """The processes that host an engine."""
        return self._titled(f"ServeReplica:darkroom:{self._deployment}")

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Pins the engines' processes to one core and all others to the rest: on a GPU an engine has its own device."""
        cores = sorted(os.sched_getaffinity(0))
        engines = set(self.replicas())
        for pid in (os.getpid(), self.pid, *find_descendants(self.pid)):
            _bind(pid, cores[:1] if pid in engines else cores[1:] or cores)
        try:
            yield
        finally:
            for pid in (os.getpid(), self.pid, *find_descendants(self.pid)):
                _bind(pid, cores)

    def ingresses(self) -> list[int]:
        """The processes that speak HTTP behind Ray's proxy."""
        return self._titled("ServeReplica:darkroom:ingress")

    def _titled(self, title: str) -> list[int]:
        """Ray writes a deployment's name into the titles of its processes."""
        return [pid for pid in find_descendants(self._process.pid) if title in title_of(pid)]

    def _exchange(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._line:
            try:
                self._process.stdin.write(json.dumps(command) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        answer = json.loads(line or '{"failed": "its process ended"}')
        if "failed" in answer:
            raise ServerFailed(f"{command['do']}: {answer['failed']}")
        return answer["done"]


@contextlib.contextmanager
def run_server(config: AppConfig, log: Path) -> Iterator[RunningServer]:
    """`config` on a port of its own, ready. Its log, and that of Ray's driver, goes to `log`."""
    # Short, for the limit that systems have on socket paths.
    with tempfile.TemporaryDirectory(prefix="dr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        process = _start(log)
        try:
            order = {"config": config.model_dump(mode="json", exclude_unset=True), "host": "127.0.0.1", "port": port}
            server = RunningServer(process, port, config.deployments[0].name)
            _order(process, order | {"temp_dir": folder})
            yield server
        finally:
            _end(process)


def _start(log: Path) -> "subprocess.Popen[str]":
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.faults.faulty_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | REPORT_INTERVAL_ENV,
            start_new_session=True,
        )


def _order(process: "subprocess.Popen[str]", order: dict[str, Any]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    if process.stdout.readline().strip() != '"ready"':
        raise ServerFailed("the server did not start")


def _end(process: "subprocess.Popen[str]") -> None:
    """Asks it to end by closing its input."""
    end_tree(process, _close_input)
    if process.stdout is not None:
        process.stdout.close()


def _close_input(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _bind(pid: int, cores: list[int]) -> None:
    """All threads of a process; those to come do as the one that starts them."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)
