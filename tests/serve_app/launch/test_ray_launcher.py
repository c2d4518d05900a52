"""`darkroom serve` as a real process: it says when it is ready, and leaves nothing behind."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from serve_app.launch.local_cluster import HEALTH_PATH
from tests.deployments.engine.tiny import save_tiny_checkpoint
from tests.serve_app.servers import (
    ENDS_WITHIN_S,
    ROOT,
    Launched,
    free_port,
    launched,
    plant_modules,
    planted_that_ran,
    started,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launcher")
    save_tiny_checkpoint(folder / "tiny")
    hosted = {"name": "tiny", "models": ["tiny"], "device": "cpu", "threads": 1, "num_cpus": 0.1, "start_attempts": 1}
    settings = {"models": [{"name": "tiny", "source": str(folder / "tiny")}], "deployments": [hosted]}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return folder / "tiny.yaml"


def test_one_line_when_ready_then_ctrl_c_ends_everything(config: Path, tmp_path: Path) -> None:
    """Beside another cluster on this machine, which stays as it was, though the environment points at it.

    And in a folder where a module of every name lies, which none of its processes imports.
    """
    plant_modules(tmp_path)
    with other_cluster() as (other, address), launched(config, {"RAY_ADDRESS": address}, tmp_path) as server:
        assert server.first_line() == f"Darkroom is ready at {server.url}"
        assert httpx.get(server.url + HEALTH_PATH, trust_env=False).status_code == 200
        request = {"prompt": "a cup", "num_inference_steps": 2}
        answer = httpx.post(f"{server.url}/ads/v2/diffusion/text-to-image", json=request, trust_env=False, timeout=60)
        assert answer.status_code == 200
        assert len(server.tree()) > 5
        assert addresses_of(server) == {"127.0.0.1"}
        (folder,) = {parent for path in sockets_of(server) for parent in path.parents if "darkroom-" in parent.name}
        assert all(folder in path.parents for path in sockets_of(server))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert planted_that_ran(tmp_path) == []
        assert server.stop(signal.SIGINT, group=True) < ENDS_WITHIN_S
        assert server.process.returncode == 0
        assert server.lines.empty()
        assert other_answers(other)


def test_make_serve_ends_with_a_signal_to_make(config: Path) -> None:
    """And says how to choose another port to whoever starts a second one. `-o`: what is installed stays as it is."""
    port = free_port()
    command = ["make", "-s", "-o", ".venv/.installed", "serve", f"BIN={Path(sys.executable).parent}"]
    command += [f"CONFIG={config}", f"PORT={port}"]
    with started(command, port) as server:
        assert server.first_line() == f"Darkroom is ready at {server.url}"
        second = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert f"port {port} on 127.0.0.1 is in use" in second.stderr
        assert httpx.get(server.url + HEALTH_PATH, trust_env=False).status_code == 200
        assert server.stop(signal.SIGTERM) < ENDS_WITHIN_S


def test_sigterm_lets_pictures_that_are_being_made_finish(config: Path) -> None:
    with launched(config) as server, ThreadPoolExecutor() as callers:
        assert "ready" in server.first_line()
        request = {"prompt": "a cup", "num_inference_steps": 150, "width": 192, "height": 192}
        url = f"{server.url}/ads/v2/diffusion/text-to-image"
        asked = [callers.submit(httpx.post, url, json=request, trust_env=False, timeout=60) for _ in range(2)]
        while not httpx.get(f"{server.url}/ads/v2/diffusion/stats", trust_env=False).json()["images_running"]:
            assert not any(call.done() for call in asked)
            time.sleep(0.1)
        others = callers.submit(answers_until_it_is_gone, server)
        assert server.stop(signal.SIGTERM) < ENDS_WITHIN_S
        assert [call.result().status_code for call in asked] == [200, 200]
        assert "503 not_ready" in others.result()
        assert others.result() <= {"200", "503 not_ready", "503 overloaded", "503 ingress_lost"}


@pytest.mark.parametrize("after_s", [1.5, 5.0])
def test_sigterm_during_start_up_ends_everything(config: Path, after_s: float) -> None:
    with launched(config) as server:
        time.sleep(after_s)
        assert server.stop(signal.SIGTERM) < ENDS_WITHIN_S
        assert server.lines.empty()


def test_the_child_ends_by_itself_when_the_launcher_is_killed(config: Path) -> None:
    with launched(config) as server:
        assert "ready" in server.first_line()
        assert len(server.tree()) > 5
        assert server.stop(signal.SIGKILL) < ENDS_WITHIN_S


def test_a_model_that_does_not_load_is_said_in_one_line(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    (tmp_path / "empty").mkdir()
    settings["models"][0] |= {"source": str(tmp_path / "empty"), "native_size": 64}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(settings))
    with launched(tmp_path / "broken.yaml") as server:
        assert "model 'tiny' could not be loaded" in server.first_line()
        assert server.process.wait(timeout=30) == 1
        assert not server.tree()


def test_what_a_cluster_spreads_over_nodes_becomes_ready_on_one(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text()) | {"ingress": {"replicas": 2, "max_replicas_per_node": 1}}
    (tmp_path / "spread.yaml").write_text(yaml.safe_dump(settings))
    with launched(tmp_path / "spread.yaml") as server:
        assert server.first_line() == f"Darkroom is ready at {server.url}"


def test_gpus_that_the_machine_lacks_are_said_at_once(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["deployments"][0]["num_gpus"] = 999
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(settings))
    with launched(tmp_path / "large.yaml") as server:
        assert "the fewest replicas need 999 GPUs (tiny 999)" in server.first_line()
        assert server.process.wait(timeout=30) == 1
        assert not server.tree()


def answers_until_it_is_gone(server: Launched) -> set[str]:
    """What callers hear who come while the server ends: status, and code."""
    heard = set()
    while server.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{server.url}/livez", trust_env=False, timeout=10)
            code = "" if answer.is_success else f" {answer.json()['error']['code']}"
            heard.add(f"{answer.status_code}{code}")
        time.sleep(0.05)
    return heard


def addresses_of(server: Launched) -> set[str]:
    """Where its processes can be reached over a network, in the words of IPv4 where both are meant."""
    found = set()
    for pid in server.tree():
        with contextlib.suppress(psutil.Error):
            connections = psutil.Process(pid).net_connections("tcp")
            found |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    return {address.removeprefix("::ffff:") for address in found}


def sockets_of(server: Launched) -> list[Path]:
    """The sockets of its processes that lie in the file system."""
    found = set()
    for pid in server.tree():
        with contextlib.suppress(psutil.Error):
            found |= {str(each.laddr) for each in psutil.Process(pid).net_connections("unix")}
    return [Path(name) for name in found if name.startswith("/")]


OTHER = """
import os, ray
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
add = ray.remote(num_cpus=0)(lambda a, b: a + b)
print(ray.get(add.remote(1, 1)), ray.get_runtime_context().gcs_address, flush=True)
while input():
    print(ray.get(add.remote(20, 22)), flush=True)
"""


@contextlib.contextmanager
def other_cluster() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Somebody else's Ray, started before ours, and its address."""
    quiet = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", OTHER], text=True, env=quiet, **pipes) as process:  # type: ignore[call-overload]
        try:
            two, address = process.stdout.readline().split()
            assert two == "2"
            yield process, address
        finally:
            process.kill()


def other_answers(process: "subprocess.Popen[str]") -> bool:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return process.stdout.readline().strip() == "42"
