"""Starts several Ray nodes on this machine, each in namespaces with an address of its own, as if in a cluster.

Every node is `ray start`, as on Kubernetes, with the environment that the manifests give it. Needs root and Linux.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from bench.processes import title_of
from bench.redis_server import RedisServer
from serve_app.serving.node_environment import NODE_ENVIRONMENT

BRIDGE: Final = "dr-bridge"
_PREFIX: Final = "dr-node-"
NETWORK: Final = "10.77.0"
HEAD: Final = 10
GCS_PORT: Final = 6379
DASHBOARD_PORT: Final = 8265
SERVE_PORT: Final = 8000
STARTS_WITHIN_S: Final = 90.0

# As in a pod. A head that comes back would take the others' processes, which name its address, for itself.
_OWN_PROCESSES: Final = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class NodeFailed(Exception):
    """A node did not come up."""


@dataclass
class Nodes:
    """The cluster: a head without CPUs for work, with its state in Redis, and workers."""

    redis: RedisServer
    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    workers: list[int] = field(default_factory=list)

    @property
    def dashboard(self) -> str:
        """The address where KubeRay would deploy the application."""
        return f"http://{address(HEAD)}:{DASHBOARD_PORT}"

    @property
    def headers(self) -> dict[str, str]:
        """What Ray's token authentication asks for."""
        return {"Authorization": f"Bearer {self.token}"}

    def start_head(self) -> None:
        """Starts the head and waits until it answers; after a kill it has the same address."""
        process = self._start(
            HEAD,
            *("--head", f"--port={GCS_PORT}", "--num-cpus=0", "--num-gpus=0", f"--temp-dir={self.folder}"),
            *("--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}", "--include-dashboard=true"),
        )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if self.ask("GET", "/api/version").is_success:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                raise NodeFailed(f"the head does not answer: {self._last_words(HEAD)}")
            time.sleep(0.5)

    def add_worker(self, cpus: int, gpus: int) -> int:
        """Starts another node with that many CPUs and GPUs for Ray. Returns its number."""
        number = max([HEAD, *self.workers]) + 1
        self.workers.append(number)
        self._start(number, f"--address={address(HEAD)}:{GCS_PORT}", f"--num-cpus={cpus}", f"--num-gpus={gpus}")
        deadline = time.monotonic() + STARTS_WITHIN_S
        # One after the other: those that start at the same time on one machine get into each other's way.
        while address(number) not in self.alive():
            if time.monotonic() > deadline:
                raise NodeFailed(f"a worker does not join: {self._last_words(number)}")
            time.sleep(0.5)
        return number

    def alive(self) -> set[str]:
        """Returns the addresses of the nodes that Ray knows; none while the head does not answer."""
        with contextlib.suppress(httpx.HTTPError, KeyError):
            found = self.ask("GET", "/api/v0/nodes").raise_for_status().json()["data"]["result"]["result"]
            return {node["node_ip"] for node in found if node["state"] == "ALIVE"}
        return set()

    def kill(self, number: int) -> None:
        """Kills all of the node's processes at once, as when a machine dies."""
        _kill(processes_of(number))
        if number in self.workers:
            self.workers.remove(number)

    def processes_titled(self, number: int, title: str) -> list[int]:
        """Returns the node's processes whose title contains that; Ray writes a deployment's name into it."""
        return [pid for pid in processes_of(number) if title in title_of(pid)]

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Sends a request to the head's dashboard."""
        return httpx.request(
            method, self.dashboard + path, headers=self.headers, timeout=60, trust_env=False, **options
        )

    def _start(self, number: int, *options: str) -> "subprocess.Popen[bytes]":
        if _namespace(number) not in _namespaces():
            _make_namespace(number)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        # Small: all nodes share this machine's memory.
        command += [f"--node-ip-address={address(number)}", "--object-store-memory=100000000", *options]
        with (self.folder / f"node-{number}.log").open("a") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", _namespace(number), *_OWN_PROCESSES, *command],
                env=os.environ | self._environment(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )

    def _last_words(self, number: int) -> str:
        return (self.folder / f"node-{number}.log").read_text()[-1500:]

    def _environment(self) -> dict[str, str]:
        return {
            **NODE_ENVIRONMENT,
            "RAY_REDIS_ADDRESS": f"{address(1)}:{self.redis.port}",
            "RAY_external_storage_namespace": "rehearsal",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "30",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }


def address(number: int) -> str:
    """The node's; 1 is this machine's own."""
    return f"{NETWORK}.{number}"


def processes_of(number: int) -> list[int]:
    """Returns all processes in the node's namespace."""
    done = subprocess.run(["ip", "netns", "pids", _namespace(number)], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    """Starts a head, without workers. Afterwards no process, namespace or bridge is left."""
    _clear()
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{address(1)}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    # Short, for the limit that systems have on socket paths.
    folder = Path(tempfile.mkdtemp(prefix="dr-", dir="/tmp"))
    redis = RedisServer(("--bind", address(1), "127.0.0.1", "--protected-mode", "no"))
    try:
        redis.start()
        cluster = Nodes(redis, folder)
        cluster.start_head()
        yield cluster
    finally:
        _clear()
        redis.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _clear() -> None:
    """Removes what is left, also by an earlier run that was killed."""
    for name in _namespaces():
        number = int(name.removeprefix(_PREFIX))
        # With a process in it a namespace lives on, and its wire with it.
        while pids := processes_of(number):
            _kill(pids)
            time.sleep(0.1)
        subprocess.run(["ip", "link", "delete", f"dr-out-{number}"], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", name], check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)


def _make_namespace(number: int) -> None:
    name, outside, inside = _namespace(number), f"dr-out-{number}", f"dr-in-{number}"
    _ip("netns", "add", name)
    _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
    _ip("link", "set", outside, "master", BRIDGE, "up")
    _ip("link", "set", inside, "netns", name)
    _ip("-n", name, "address", "add", f"{address(number)}/24", "dev", inside)
    _ip("-n", name, "link", "set", inside, "up")
    _ip("-n", name, "link", "set", "lo", "up")


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _namespaces() -> list[str]:
    """Ours that there are."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(_PREFIX)]


def _namespace(number: int) -> str:
    return f"{_PREFIX}{number}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
