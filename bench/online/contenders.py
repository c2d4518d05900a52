"""Names what is compared, and how each of them is started. Each has its own processes, and the same cores."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from bench.online.environments import make_environment
from bench.online.messages import PEERS_HEALTH
from bench.processes import end_tree
from serve_app.launch.local_cluster import HEALTH_PATH

ROOT: Final = Path(__file__).parents[2]
SCRATCH: Final = ROOT / "build" / "online"
CONFIG: Final = Path(__file__).parent / "darkroom.yaml"

READY_WITHIN_S: Final = 240.0
"""The first start of one converts a checkpoint."""

GENAI: Final = ("openvino-genai==2026.4.1.0",)
LITSERVE: Final = ("litserve==0.2.19",)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to serve. `command` makes its command line for a port; `own_api` if it speaks Darkroom's."""

    name: str
    label: str
    command: Callable[[int], Sequence[str | Path]]
    own_api: bool = False


class DidNotStart(Exception):
    """A contender did not become healthy. Its log says why."""


def _module(name: str, *arguments: str | Path, python: str | Path = sys.executable) -> list[str | Path]:
    return [python, "-m", name, *arguments]


DARKROOM: Final = "darkroom"

CONTENDERS: Final = (
    Contender(
        DARKROOM,
        "Darkroom",
        lambda port: _module("serve_app.cli", "serve", "--config", CONFIG, "--port", str(port)),
        own_api=True,
    ),
    Contender(
        "like_steps",
        "steps of one sampler and one guidance",
        lambda port: _module("bench.online.peers.like_steps", CONFIG, str(port)),
        own_api=True,
    ),
    Contender(
        "genai",
        "openvino-genai",
        lambda port: _module(
            "bench.online.peers.genai_server",
            SCRATCH / "openvino",
            str(port),
            python=make_environment("genai", GENAI),
        ),
    ),
    Contender(
        "litserve",
        "LitServe",
        lambda port: _module(
            "bench.online.peers.litserve_server", str(port), python=make_environment("litserve", LITSERVE)
        ),
    ),
    Contender("serve_batch", "serve.batch", lambda port: _module("bench.online.peers.ray_serve", "batch", str(port))),
    Contender("ray_sample", "Ray's sample", lambda port: _module("bench.online.peers.ray_serve", "one", str(port))),
)
NAMES: Final = tuple(one.name for one in CONTENDERS)


@contextlib.contextmanager
def running(contender: Contender) -> Iterator[str]:
    """Starts it, and yields its URL once it is healthy; ends all of its processes. Raises DidNotStart."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    log = SCRATCH / f"{contender.name}.log"
    # Short, for the limit that systems have on socket paths.
    with tempfile.TemporaryDirectory(prefix="dr-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with log.open("w") as output:
            process = subprocess.Popen(
                contender.command(port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT | {"RAY_TMPDIR": folder},
                cwd=ROOT,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url + (HEALTH_PATH if contender.own_api else PEERS_HEALTH), log)
            yield url
        finally:
            end_tree(process, lambda server: server.send_signal(signal.SIGTERM))


ENVIRONMENT: Final = {
    # As `make serve` has it, and better for all of them: a spinning pool of threads slows down its neighbours.
    "OMP_WAIT_POLICY": "passive",
    "RAY_USAGE_STATS_ENABLED": "0",
    # This checkout, whatever the environment has installed.
    "PYTHONPATH": str(ROOT),
}


def _wait(process: "subprocess.Popen[bytes]", health: str, log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(health, trust_env=False, timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise DidNotStart(f"{log.name} says why")
