"""Runs one row of the fault bench: load and fault, with the findings as plain data.

Rows share a server as long as it recovers after each: one that survives fault after fault hides no lasting damage.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from bench.clients.caller import PATIENCE_S, Caller
from bench.clients.goldens import NAMES, SLOW_NAMES, Goldens
from bench.clients.history import Counts, History, check, counts_of_server, rule_of_three
from bench.clients.load import Call, Clock, drive, saturate, steady_calls
from bench.faults.cases import BY_NAME, OVERLOAD, OVERLOAD_EXPECTED, OVERLOAD_FAULT, Row, Scene, load_of
from bench.faults.recovery import Recovery, recovery, within
from bench.faults.targets import REFUSED_WITHIN_MS
from bench.prometheus import Exported, exported_counts
from bench.server import RunningServer, run_server
from bench.timing import percentile
from serve_app.config.labels import NO_LABELS
from serve_app.config.server import AppConfig

OVERLOADED = 5.0
PEAK_CALLERS = 24
PEAK_S = 20.0
OVERLOAD_FILLS_S = 20.0
OVERLOAD_S = 15.0
TRICKLE_S = 90.0


def config_of(**changes: Any) -> AppConfig:
    """Two replicas of the demo model on one thread each, and settings that are quick to notice and to end."""
    deployment = {
        "name": "demo",
        "models": ["demo-sd"],
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "num_cpus": 0.1,
        "max_rows": 16,
        "replicas": 2,
        "graceful_shutdown_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 1,
        "health_check_timeout_s": 3,
    }
    ingress = {"graceful_shutdown_timeout_s": 31, "graceful_shutdown_wait_loop_s": 0.2}
    models = [{"name": "demo-sd", "controlnets": {}}]
    # Requests come again here, and must be made again; pictures are compared with those of an engine.
    rest: dict[str, Any] = {"ingress": ingress, "cache": {"enabled": False}, "labels": NO_LABELS}
    return AppConfig.model_validate({"models": models, "deployments": [deployment | changes], **rest})


class Servers:
    """One server at a time, kept as long as it is well."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._stack = contextlib.ExitStack()
        self._server: RunningServer | None = None
        self._replicas = 0
        self._started = 0

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ready(self, replicas: int) -> RunningServer:
        """A server at rest with so many replicas: the one there is, or a new one."""
        kept = self._server is not None and replicas == self._replicas
        if self._server is None or not kept or not asyncio.run(self._server.is_at_rest(replicas)):
            self._stack.close()
            self._started += 1
            log = self._logs / f"server-{self._started}.log"
            self._server = self._stack.enter_context(run_server(config_of(replicas=replicas), log))
            self._replicas = replicas
        return self._server


def run_row(name: str, servers: Servers, goldens: Goldens, requests: int) -> dict[str, Any]:
    """Runs the row `name` with about so many requests."""
    if name == OVERLOAD:
        # One replica: the other core is left to HTTP and the clients, which would take it from an engine.
        return asyncio.run(_run_overload(servers.ready(replicas=1), goldens))
    return asyncio.run(_run_with_fault(servers.ready(replicas=2), BY_NAME[name], goldens, requests))


async def _run_with_fault(server: RunningServer, row: Row, goldens: Goldens, requests: int) -> dict[str, Any]:
    calls, fault_at = load_of(row, requests)
    async with client_of(server) as http:
        await warm(http)
        before = await look_at(server, http)
        clock = clock_from_now()
        caller, scene = Caller(http, clock), Scene(server, clock)
        async with asyncio.TaskGroup() as group:
            group.create_task(drive(calls, caller.ask, clock))
            group.create_task(_strike_at(fault_at, row, scene))
        after = await look_at(server, http)
    history = caller.history(goldens)
    others = counts_of(before, after) if row.counts_survive else []
    facts = {"row": row.name, "fault": row.fault, "expected": asdict(row.expected), "fault_at_s": scene.struck}
    facts["client_lag_p99_ms"] = _lag(caller)
    return facts | figures(history, recovery(history, scene.struck), others)


async def _strike_at(fault_at: float, row: Row, scene: Scene) -> None:
    await asyncio.sleep(fault_at)
    await row.strike(scene)


async def _run_overload(server: RunningServer, goldens: Goldens) -> dict[str, Any]:
    """First the peak, with callers who wait for their answers; then five times as many as that who do not, at first
    until the queue is full; then a trickle, which shows when everything is as it was.
    """
    with server.apart():
        return await _run_flood(server, goldens)


async def _run_flood(server: RunningServer, goldens: Goldens) -> dict[str, Any]:
    async with client_of(server) as http:
        await warm(http)
        before = await look_at(server, http)
        clock = clock_from_now()
        caller = Caller(http, clock)
        await saturate(PEAK_CALLERS, PEAK_S, SLOW_NAMES, caller.ask, clock)
        peak = _goodput(caller.history(goldens), PEAK_S / 4, PEAK_S)
        begun = clock()
        await drive(overload_calls(peak, begun), caller.ask, clock)
        after = await look_at(server, http)
    history = caller.history(goldens)
    full = begun + OVERLOAD_FILLS_S
    goodput = _goodput(history, full, full + OVERLOAD_S)
    facts = {"row": OVERLOAD, "fault": OVERLOAD_FAULT, "expected": asdict(OVERLOAD_EXPECTED), "fault_at_s": begun}
    facts["client_lag_p99_ms"] = _lag(caller)
    facts |= {"peak_per_s": round(peak, 3), "goodput_per_s": round(goodput, 3), "goodput_share": goodput / peak}
    return facts | figures(history, overload_felt(history, begun), counts_of(before, after))


def overload_felt(history: History, begun: float) -> Recovery:
    """As of any fault, but p99 is back when the trickle after the flood is served as callers were at the peak, counted
    from the flood's end: until then there is nothing to recover from.
    """
    end = begun + OVERLOAD_FILLS_S + OVERLOAD_S
    around = History([one for one in history.sent if one.at < begun or one.at > end], history.answers)
    return replace(recovery(history, begun), p99_back_s=recovery(around, end).p99_back_s)


def overload_calls(peak: float, begun: float) -> list[Call]:
    """Five times the peak for as long as the queue fills and for a while more, and then a fifth of it."""
    end = begun + OVERLOAD_FILLS_S + OVERLOAD_S
    flood = steady_calls(
        "flood", OVERLOADED * peak, int(OVERLOADED * peak * (end - begun)), SLOW_NAMES, seed=3, start=begun
    )
    trickle = steady_calls("trickle", peak / 5, int(peak / 5 * TRICKLE_S), SLOW_NAMES, seed=4, start=end)
    return [*(call for call in flood if call.at < end), *trickle]


@dataclass(frozen=True, slots=True)
class Look:
    """What those have counted who count at the server, since it has been there."""

    statistics: Mapping[str, Any]
    exported: Exported


async def look_at(server: RunningServer, http: httpx.AsyncClient) -> Look:
    """When nothing is on its way any more."""
    return Look(await server.statistics(http), await server.exported())


def counts_of(before: Look, after: Look) -> list[Counts]:
    """What was counted between two looks."""
    return [
        counts_of_server(before.statistics, after.statistics),
        exported_counts(before.exported, after.exported),
    ]


def figures(history: History, felt: Recovery, others: Sequence[Counts]) -> dict[str, Any]:
    """What a row says, whatever its fault."""
    verdict = check(history, others, patience_s=PATIENCE_S)
    refusals = within(history, lambda answer: answer.outcome == "refused")
    in_time = sum(seconds * 1000 <= REFUSED_WITHIN_MS for seconds in refusals)
    counts = verdict.counts
    return {
        "sent": len(history.sent),
        "succeeded": counts.succeeded,
        "refused": counts.refused,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "must_fail": sum(sent.must_fail for sent in history.sent),
        "failed_needlessly": len(verdict.failed),
        "lost": len(verdict.lost),
        "swapped": len(verdict.swapped),
        "doubled": len(verdict.doubled),
        "late": len(verdict.late),
        "broken_connections": len(history.broken),
        "complaints": verdict.complaints(),
        "counted_by": [asdict(counts), *(asdict(other) for other in others)],
        "refused_in_time": in_time,
        "refusal_p99_ms": round(percentile(refusals, 99) * 1000, 1) if refusals else None,
        "zero_bounds": rule_of_three(len(history.sent)),
    } | asdict(felt)


def _lag(caller: Caller) -> float:
    return round(percentile(caller.lags, 99) * 1000, 1)


def _goodput(history: History, start: float, end: float) -> float:
    """Right pictures a second between two moments."""
    right = [answer for answer in history.ends().values() if answer.outcome == "succeeded" and answer.shows]
    return sum(start <= answer.at < end for answer in right) / (end - start)


def clock_from_now() -> Clock:
    started = time.monotonic()
    return lambda: time.monotonic() - started


def client_of(server: RunningServer) -> httpx.AsyncClient:
    """No bound on connections: a request that waits for one here would not be open loop."""
    unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=None, limits=unbounded)


async def warm(http: httpx.AsyncClient) -> None:
    """Every golden request some times at once, so that each replica has made tables and embeddings for all."""
    clock = clock_from_now()
    await drive([Call(f"warm-{i}", 0.0, name) for i, name in enumerate(NAMES * 3)], Caller(http, clock).ask, clock)
