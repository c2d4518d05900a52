"""`darkroom serve` for real, as a process: it says when it is ready, and leaves nothing behind."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.launcher import descendants
from serve_app.local_cluster import HEALTH_PATH
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.serve_app.servers import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

ENDS_WITHIN_S = 15.0


@dataclass
class Launched:
    """A running `darkroom serve`."""

    process: "subprocess.Popen[str]"
    port: int
    lines: "queue.Queue[str]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip())

    def wait_ready(self) -> str:
        return self.lines.get(timeout=120)

    def tree(self) -> list[int]:
        return descendants(self.process.pid)

    def stop(self, number: int) -> float:
        """Seconds from the signal to the end of every process."""
        tree, started = self.tree(), time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=30)
        while left := [pid for pid in tree if alive(pid)]:
            assert time.monotonic() - started < ENDS_WITHIN_S, f"still alive: {left}"
            time.sleep(0.05)
        return time.monotonic() - started


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z"
    return False


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launcher")
    save_tiny_checkpoint(folder / "tiny")
    hosted = {"name": "tiny", "models": ["tiny"], "device": "cpu", "threads": 1, "num_cpus": 0.1, "start_attempts": 1}
    settings = {"models": [{"name": "tiny", "source": str(folder / "tiny")}], "deployments": [hosted]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return folder / "tiny.yaml"


@contextlib.contextmanager
def launched(config: Path) -> Iterator[Launched]:
    port = free_port()
    command = [sys.executable, "-m", "serve_app.cli", "serve", "--config", str(config), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        server = Launched(process, port)
        try:
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)


def test_one_line_when_ready_then_ctrl_c_ends_everything(config: Path) -> None:
    """Beside another cluster on this machine, which stays as it was."""
    with other_cluster() as other, launched(config) as server:
        assert server.wait_ready() == f"Darkroom is ready at http://127.0.0.1:{server.port}"
        url = f"http://127.0.0.1:{server.port}"
        assert httpx.get(url + HEALTH_PATH, trust_env=False).status_code == 200
        request = {"prompt": "a cup", "num_inference_steps": 2}
        answer = httpx.post(f"{url}/ads/v2/diffusion/text-to-image", json=request, trust_env=False, timeout=60)
        assert answer.status_code == 200
        assert len(server.tree()) > 5
        assert server.stop(signal.SIGINT) < ENDS_WITHIN_S
        assert server.process.returncode == 0
        assert server.lines.empty()
        assert other_answers(other)


@pytest.mark.parametrize("after_s", [1.5, 5.0])
def test_sigterm_during_start_up_ends_everything(config: Path, after_s: float) -> None:
    with launched(config) as server:
        time.sleep(after_s)
        assert server.stop(signal.SIGTERM) < ENDS_WITHIN_S
        assert server.lines.empty()


def test_the_child_ends_by_itself_when_the_launcher_is_killed(config: Path) -> None:
    with launched(config) as server:
        assert "ready" in server.wait_ready()
        assert len(server.tree()) > 5
        assert server.stop(signal.SIGKILL) < ENDS_WITHIN_S


def test_a_model_that_does_not_load_is_said_in_one_line(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    (tmp_path / "empty").mkdir()
    settings["models"][0] |= {"source": str(tmp_path / "empty"), "native_size": 64}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(settings))
    with launched(tmp_path / "broken.yaml") as server:
        assert "model 'tiny' could not be loaded" in server.wait_ready()
        assert server.process.wait(timeout=30) == 1
        assert not server.tree()


OTHER = """
import os, ray
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
add = ray.remote(num_cpus=0)(lambda a, b: a + b)
print(ray.get(add.remote(1, 1)), flush=True)
while input():
    print(ray.get(add.remote(20, 22)), flush=True)
"""


@contextlib.contextmanager
def other_cluster() -> Iterator["subprocess.Popen[str]"]:
    """Somebody else's Ray, started before ours."""
    quiet = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", OTHER], text=True, env=quiet, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline().strip() == "2"
            yield process
        finally:
            process.kill()


def other_answers(process: "subprocess.Popen[str]") -> bool:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return process.stdout.readline().strip() == "42"
