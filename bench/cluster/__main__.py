"""Tests several nodes under load: growing, shrinking, losing a node, losing the head, rolling over to new settings.

Why: Ray on one machine shows what becomes of replicas, and nothing of nodes. Here each node is a `ray start` in a
network namespace with an address of its own and the environment of the manifests. The application is deployed through
the head's dashboard as KubeRay does it, with the `serveConfigV2` that is rendered for Kubernetes. GPUs are logical, so
that each worker holds one replica of the demo model. Callers use all nodes in turn, and the history checker judges what
they got.

    grow      callers come, and replicas spread over the nodes; callers leave, and so do replicas
    worker    a worker dies at once, with its replica, its proxy and its ingress; another node replaces it
    head      the head dies and comes back, with its state in Redis: serving goes on, then a lost replica is replaced
    upgrade   the application is rolled over to other settings

Needs root, for the namespaces. Every row is saved as soon as it is measured; the last line is one JSON document. Exits
with 1 if a request was lost, swapped, or failed.

    python -m bench.cluster
    python -m bench.cluster --only worker,head
"""

import argparse
import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import torch

from bench.card import card, print_card
from bench.clients.caller import Caller
from bench.clients.goldens import NAMES, Goldens
from bench.clients.load import Clock, drive, saturate, steady_calls
from bench.cluster.deployed import REPLICA, client_of, deploy, deploy_and_wait, is_whole, replicas_by_node
from bench.cluster.nodes import HEAD, Nodes, address, nodes
from bench.faults.__main__ import demo_goldens
from bench.faults.recovery import recovery
from bench.faults.runs import clock_from_now, figures
from bench.options import names_of
from serve_app.config.labels import NO_LABELS
from serve_app.config.server import AppConfig

RESULTS: Final = Path(__file__).parents[2] / "build" / "rehearsal"
RATE: Final = 2.0
SECONDS: Final = 60.0
STRUCK_AT_S: Final = 15.0
HEALS_WITHIN_S: Final = 120.0
GROWS_S: Final = 60.0
CROWD: Final = 40

FORECAST: Final[dict[str, str]] = {
    "grow": "a second replica on the other node within 20 s, one again within 60 s of the last request; nothing fails",
    "worker": "what came in through that node breaks and is repeated by its callers; everything else is replayed",
    "head": "nobody notices: proxies, ingresses and replicas go on without it; a replica killed later is replaced",
    "upgrade": "nobody notices: one replica after the other leaves when it has finished",
}


@dataclass
class Scene:
    """The cluster under load, and what happened on it, second by second: `seen` has replicas by node, `whole` whether
    all was as it should be.
    """

    cluster: Nodes
    clock: Clock
    seen: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    whole: list[tuple[float, bool]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    async def watch(self) -> None:
        """Records the cluster's state until it is cancelled."""
        while True:
            self.seen.append((round(self.clock(), 1), await asyncio.to_thread(replicas_by_node, self.cluster)))
            self.whole.append((round(self.clock(), 1), await asyncio.to_thread(is_whole, self.cluster, 2)))
            await asyncio.sleep(1.0)

    def whole_again(self) -> float | None:
        """Returns the time from which all was well until the end; None if it is not."""
        broken = [at for at, whole in self.whole if not whole]
        after = [at for at, _ in self.whole if not broken or at > broken[-1]]
        return after[0] if after else None

    def first(self, holds: Callable[[dict[str, int]], bool], after: float = 0.0) -> float | None:
        """Seconds from `after` until the replicas were so."""
        return next((round(at - after, 1) for at, now in self.seen if at >= after and holds(now)), None)


Strike = Callable[[Scene], Awaitable[None]]


def config_of(**changes: Any) -> AppConfig:
    """Configures the demo model: a replica for each worker's (logical) GPU, with short health checks and shutdown."""
    deployment = {
        "name": "demo",
        "models": ["demo-sd"],
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "num_cpus": 1,
        "num_gpus": 1,
        "max_surge_percent": 0,
        "graceful_shutdown_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 1,
        "health_check_timeout_s": 5,
    }
    return AppConfig.model_validate(
        {
            "models": [{"name": "demo-sd", "controlnets": {}}],
            "deployments": [deployment | changes],
            "ingress": {
                "replicas": 2,
                "max_replicas_per_node": 1,
                "graceful_shutdown_timeout_s": 31,
                "graceful_shutdown_wait_loop_s": 0.2,
                "request_timeout_s": 90,
            },
            # Requests come again here, and must be made again; pictures are compared with those of an engine.
            "cache": {"enabled": False},
            "labels": NO_LABELS,
            "without_keys": True,
        }
    )


TWO: Final = config_of(replicas=2)
ELASTIC: Final = config_of(
    autoscaling={
        "min_replicas": 1,
        "max_replicas": 2,
        "upscale_delay_s": 2,
        "downscale_delay_s": 15,
        "look_back_period_s": 5,
        "metrics_interval_s": 1,
    }
)


async def worker_dies(scene: Scene) -> None:
    """Kills a worker with everything on it, and starts another in its place."""
    victim = scene.cluster.workers[-1]
    await asyncio.to_thread(scene.cluster.kill, victim)
    scene.notes["killed"] = address(victim)
    await asyncio.to_thread(scene.cluster.add_worker, 4, 1)


async def head_dies(scene: Scene) -> None:
    """Kills the head for ten seconds, then kills a replica, which only a working controller replaces."""
    await asyncio.to_thread(scene.cluster.kill, HEAD)
    await asyncio.sleep(10.0)
    began = time.monotonic()
    await asyncio.to_thread(scene.cluster.start_head)
    scene.notes["head_answers_after_s"] = round(time.monotonic() - began, 1)
    await asyncio.sleep(5.0)
    for pid in scene.cluster.processes_titled(scene.cluster.workers[-1], REPLICA):
        os.kill(pid, signal.SIGKILL)
    scene.notes["replica_killed_at_s"] = round(scene.clock(), 1)


async def rolls_over(scene: Scene) -> None:
    """Rolls over to engines with another number of rows, which is another version of the deployment."""
    await asyncio.to_thread(deploy, scene.cluster, config_of(replicas=2, max_rows=8))


STRIKES: Final[dict[str, Strike]] = {"worker": worker_dies, "head": head_dies, "upgrade": rolls_over}


async def strike_under_load(name: str, cluster: Nodes, goldens: Goldens) -> dict[str, Any]:
    """Runs a steady load with one fault, then waits until the cluster is whole again."""
    await asyncio.to_thread(deploy_and_wait, cluster, TWO, 2)
    async with client_of(cluster) as http:
        await warm(http)
        clock = clock_from_now()
        caller, scene = Caller(http, clock), Scene(cluster, clock)
        watching = asyncio.create_task(scene.watch())
        async with asyncio.TaskGroup() as group:
            group.create_task(drive(steady_calls(name, RATE, int(RATE * SECONDS), NAMES, seed=1), caller.ask, clock))
            group.create_task(_at(STRUCK_AT_S, STRIKES[name], scene))
        await _wait_until_well(scene)
        watching.cancel()
    scene.notes["whole_again_s"] = scene.whole_again()
    history = caller.history(goldens)
    return scene.notes | {"replicas": _changes(scene.seen)} | figures(history, recovery(history, STRUCK_AT_S), ())


async def grow_under_load(cluster: Nodes, goldens: Goldens) -> dict[str, Any]:
    """Runs callers that send again as soon as they are answered, and then leave."""
    await asyncio.to_thread(deploy_and_wait, cluster, ELASTIC, 1)
    async with client_of(cluster) as http:
        await warm(http)
        clock = clock_from_now()
        caller, scene = Caller(http, clock), Scene(cluster, clock)
        watching = asyncio.create_task(scene.watch())
        await saturate(CROWD, GROWS_S, NAMES, caller.ask, clock)
        gone = clock()
        while scene.first(_one, gone) is None and clock() < gone + HEALS_WITHIN_S:
            await asyncio.sleep(1.0)
        watching.cancel()
    scene.notes["two_nodes_after_s"] = scene.first(lambda now: len(now) == 2 and sum(now.values()) == 2)
    scene.notes["one_again_after_s"] = scene.first(_one, gone)
    history = caller.history(goldens)
    return scene.notes | {"replicas": _changes(scene.seen)} | figures(history, recovery(history, 0.0), ())


def _one(now: dict[str, int]) -> bool:
    return sum(now.values()) == 1


async def _at(seconds: float, strike: Strike, scene: Scene) -> None:
    await asyncio.sleep(seconds)
    scene.notes["struck_at_s"] = round(scene.clock(), 1)
    await strike(scene)


async def _wait_until_well(scene: Scene) -> None:
    """Waits until all is well, or time is up."""
    deadline = scene.clock() + HEALS_WITHIN_S
    while not scene.whole[-1][1] and scene.clock() < deadline:
        await asyncio.sleep(1.0)


def _changes(seen: Sequence[tuple[float, dict[str, int]]]) -> list[tuple[float, dict[str, int]]]:
    """Only where something was different from before."""
    return [each for i, each in enumerate(seen) if not i or each[1] != seen[i - 1][1]]


async def warm(http: httpx.AsyncClient) -> None:
    """Sends every golden request several times, so that each replica has made its tables and embeddings."""
    clock = clock_from_now()
    caller = Caller(http, clock)
    await drive(steady_calls("warm", 6.0, 24, NAMES, seed=2), caller.ask, clock)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch.set_num_threads(1)
    facts = card(torch.device("cpu"))
    print_card(facts)
    goldens = demo_goldens()
    rows = {name: row for name in options.only if (row := _load_rows(name, facts["commit"])) is not None}
    if missing := [name for name in options.only if name not in rows]:
        with nodes() as cluster:
            for _ in range(2):
                cluster.add_worker(cpus=4, gpus=1)
            for name in missing:
                print(f"{name:8} forecast: {FORECAST[name]}", flush=True)
                measured = (
                    grow_under_load(cluster, goldens) if name == "grow" else strike_under_load(name, cluster, goldens)
                )
                rows[name] = {"row": name, "card": facts} | asyncio.run(measured)
                _save_row(rows[name])
                _say(rows[name])
    bad = [name for name, row in rows.items() if row["complaints"] or row["failed_needlessly"]]
    print(json.dumps({"bench": "rehearsal", "rows": list(rows.values()), "missed": bad}))
    return 1 if bad else 0


def _load_rows(name: str, commit: str) -> dict[str, Any] | None:
    file = RESULTS / f"{name}.json"
    row = json.loads(file.read_text()) if file.is_file() else None
    # Of a checkout with changes nobody can say what was measured.
    return row if row and row["card"]["commit"] == commit and not commit.endswith("+") else None


def _save_row(row: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{row['row']}.json").write_text(json.dumps(row, indent=1))


def _say(row: dict[str, Any]) -> None:
    counts = ("sent", "succeeded", "refused", "failed", "lost", "swapped", "broken_connections")
    print(f"{'':8} " + ", ".join(f"{row[name]} {name.replace('_', ' ')}" for name in counts))
    told = (
        "two_nodes_after_s",
        "one_again_after_s",
        "whole_again_s",
        "struck_at_s",
        "head_answers_after_s",
        "replica_killed_at_s",
        "p99_during_ms",
        "replicas",
    )
    print(f"{'':8} " + ", ".join(f"{name} {row[name]}" for name in told if name in row))
    for complaint in row["complaints"]:
        print(f"{'':8} MISSED: {complaint}")
    print(flush=True)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cluster", description="Several nodes, and what befalls them."
    )
    parser.add_argument("--only", type=names_of(FORECAST), default=tuple(FORECAST), help="rows, with commas between")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
