"""Measures starts: of a Python program up to its first picture, of a server, and of a replica in place of a lost one.

Why: what a start measures is kept for the next one (docs/cold-start.md). So each start is timed with an empty cache
and again with what that has left there. Everything runs in fresh processes. The processor's seconds of a server's
processes say where its start goes: on few cores they bound it, whatever else is done.

    python -m bench.startup                  a program and a server, 3 later starts each, about 3 minutes
    python -m bench.startup --only program --repeats 5

The last line is one JSON document with everything. On a machine that does other work, compare processor seconds.
"""

import argparse
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
import torch
import yaml

from bench.card import card, print_card
from bench.options import names_of
from deployments.engine.protocol.engine_config import BACKENDS
from serve_app.client import BASE
from serve_app.config.server import load_config
from serve_app.launch.processes import find_descendants

PARTS: Final = ("program", "server")
PICTURE: Final = {"prompt": "a red circle on a white table", "seed": 1}
WITHIN_S: Final = 240.0

PROGRAM: Final = """
import asyncio, json, time
begun = time.perf_counter()
stages = {{}}

def stage(name):
    stages[name] = round(time.perf_counter() - begun, 2)
    stages[name + ": processor"] = round(time.process_time(), 2)

from serve_app import DiffusionService, GenerationParams
stage("serve_app imported")
from deployments.process_memory.garbage_collection import collector_paused
with collector_paused():
    import deployments.engine.worker.engine_worker
stage("torch, diffusers and engine imported")

async def main():
    async with DiffusionService(backend={backend!r}) as service:
        await service.start()
        while not (await service.health()).is_ready:
            await asyncio.sleep(0.01)
        stage("model loaded and warm")
        await service.generate_text_to_image(GenerationParams(**{picture!r}))
        stage("first picture")
        again = time.perf_counter()
        await service.generate_text_to_image(GenerationParams(**{picture!r} | {{"seed": 2}}))
        stages["another picture takes"] = round(time.perf_counter() - again, 2)
        # What is measured when nothing runs is part of the first start, but nobody waits for it.
        await asyncio.sleep({idle})

asyncio.run(main())
print(json.dumps(stages))
"""


def main() -> int:
    options = _options().parse_args()
    facts = card(torch.device("cpu"))
    print_card(facts)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        for part in options.only:
            run = run_program if part == "program" else run_server
            results[part] = [
                run(Path(folder) / part, options.backend, is_first=repeat == 0) for repeat in range(1 + options.repeats)
            ]
            _print_part(part, results[part])
    print(
        json.dumps(
            {
                "bench": "startup",
                **facts,
                "backend": options.backend,
                "load_after": round(os.getloadavg()[0], 2),
                "results": results,
            }
        )
    )
    return 0


def run_program(cache: Path, backend: str, *, is_first: bool) -> dict[str, Any]:
    """Returns the seconds from `import serve_app` to each stage of a program, in a process of its own."""
    code = PROGRAM.format(picture=PICTURE, backend=backend, idle=30 if is_first else 0)
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], env=_environment(cache), capture_output=True, text=True, check=True
    )
    stages: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return stages | {"process": round(time.perf_counter() - begun, 2)}


def run_server(cache: Path, backend: str, *, is_first: bool) -> dict[str, Any]:
    """Returns the seconds from `darkroom serve` to ready and to a picture, and from a lost replica to the next one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    with _server(cache, backend) as (process, url):
        stages: dict[str, Any] = {"ready": round(time.perf_counter() - begun, 2)}
        stages["processor seconds when ready"] = _processor_seconds(process.pid)
        _make_picture(url, seed=1)
        stages["first picture"] = round(time.perf_counter() - begun, 2)
        (replica,) = [pid for pid in find_descendants(process.pid) if "ServeReplica:darkroom:demo" in _title(pid)]
        os.kill(replica, signal.SIGKILL)
        wanted = time.perf_counter()
        # Another picture: the first one is kept.
        _make_picture(url, seed=2)
        stages["replica wanted to its first picture"] = round(time.perf_counter() - wanted, 2)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    stages["processor seconds in all"] = round(used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, 1)
    return stages | {"first": is_first}


@contextmanager
def _server(cache: Path, backend: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Runs `darkroom serve` with the demo family, ready; yields its process and address."""
    config = load_config("demo").model_dump(mode="json", exclude_unset=True)
    config["deployments"] = [deployment | {"backend": backend} for deployment in config["deployments"]]
    cache.mkdir(exist_ok=True)
    file = cache / "server.yaml"
    file.write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serve_app.cli", "serve", "--config", str(file), "--port", str(port)]
    process = subprocess.Popen(command, env=_environment(cache), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if "ready" not in process.stdout.readline():
            raise RuntimeError("the server did not start; it says why above")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _make_picture(url: str, seed: int) -> None:
    """Asks for a picture until there is one."""
    request = PICTURE | {"seed": seed}
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.post(f"{url}{BASE}/text-to-image", json=request, timeout=WITHIN_S, trust_env=False).is_success:
                return
        time.sleep(0.05)
    raise TimeoutError("there was no picture")


def _environment(cache: Path) -> dict[str, str]:
    # As `make` sets it: OpenMP's threads would spin while they wait, beside Ray's processes.
    return os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_WAIT_POLICY": "passive"}


def _processor_seconds(pid: int) -> dict[str, float]:
    """Returns what the processes below `pid` have used of the processors so far, by title, the busiest first."""
    used: dict[str, float] = {}
    for each in find_descendants(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            name = _role(_title(each))
            used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return {name: round(seconds, 2) for name, seconds in sorted(used.items(), key=lambda item: -item[1])}


def _role(title: str) -> str:
    """Returns the part of a process' command line that says what it is."""
    known = (
        "ServeReplica:darkroom:demo",
        "ServeReplica:darkroom:ingress",
        "ServeController",
        "ProxyActor",
        "local_cluster",
        "gcs_server",
        "raylet",
        "dashboard/agent",
        "dashboard/dashboard",
        "runtime_env/agent",
        "log_monitor",
        "monitor",
    )
    return next((name for name in known if name in title), "others")


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _print_part(part: str, runs: list[dict[str, Any]]) -> None:
    print(f"\n{part}: seconds to each stage, with an empty cache and then (median of {len(runs) - 1})")
    for stage, first in runs[0].items():
        if isinstance(first, float | int) and not isinstance(first, bool):
            later = median(run[stage] for run in runs[1:]) if len(runs) > 1 else float("nan")
            print(f"  {stage:38} {first:7.2f} {later:7.2f}")
    for name, seconds in runs[-1].get("processor seconds when ready", {}).items():
        print(f"    processor seconds when ready: {name:32} {seconds:6.2f}")
    sys.stdout.flush()


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.startup", description="Times starts, first and later ones.")
    parser.add_argument("--only", type=names_of(PARTS), default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the networks")
    parser.add_argument("--repeats", type=int, default=3, help="later starts, after the first one")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
