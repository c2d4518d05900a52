"""The faults: what breaks, under which load, and what was expected before the first run.

Adding a fault is adding a row.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from bench.clients.goldens import LONG, NAMES, POISON
from bench.clients.load import Call, let_some_leave, steady_calls
from bench.server import RunningServer

RATE = 3.0
"""Requests a second: about a quarter of what two replicas on two cores can make, so that one alone can carry it even
while another starts beside it."""

FAULT_AFTER = 0.25
"""The share of the requests that show what is usual."""

BURST = 24
"""Long pictures at once: more than two replicas of eight images have room for."""

BURST_S = 20.0
"""By then one of them is full, or the burst has passed without."""


class Scene:
    """A server under load, for a fault to break. `struck` is when it broke, in seconds of the load's clock."""

    def __init__(self, server: RunningServer, clock: Callable[[], float]) -> None:
        self.server = server
        self._clock = clock
        self.struck = 0.0

    def mark(self) -> None:
        """Notes that it breaks now."""
        self.struck = self._clock()

    def signal(self, pids: Sequence[int], number: int) -> None:
        """Sends `number` to each process; that is the moment of the fault."""
        if not pids:
            raise RuntimeError("there is no process to strike")
        self.mark()
        for pid in pids:
            os.kill(pid, number)


Strike = Callable[[Scene], Awaitable[None]]
Plan = Callable[[list[Call], float], list[Call]]
"""Changes a steady load, given the moment of the fault."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What was written down before the first run. Seconds and milliseconds; None: no figure was given."""

    first_success_s: float
    p99_back_s: float
    p99_during_ms: float
    because: str


@dataclass(frozen=True, slots=True)
class Row:
    """One fault. `counts_survive` is False if the fault ends the process that keeps the statistics."""

    name: str
    fault: str
    expected: Expected
    strike: Strike
    plan: Plan = lambda calls, _: calls
    counts_survive: bool = True


def load_of(row: Row, requests: int, seed: int = 1) -> tuple[list[Call], float]:
    """Returns the row's load, and the moment of its fault."""
    fault_at = requests * FAULT_AFTER / RATE
    return row.plan(steady_calls(row.name, RATE, requests, NAMES, seed), fault_at), fault_at


async def kill_idle(scene: Scene) -> None:
    states = await scene.server.command("state")
    idlest = min(states, key=lambda state: state["running"] + state["waiting"])
    scene.signal([idlest["pid"]], signal.SIGKILL)


async def kill_in_mid_batch(scene: Scene) -> None:
    """Waits until a replica makes eight images at once, and then until it is some steps into them."""
    states: list[Mapping[str, int]] = []
    async with asyncio.timeout(BURST_S):
        while not (full := [state["pid"] for state in states if state["running"] >= 8]):
            states = await scene.server.command("state")
    await asyncio.sleep(0.3)
    scene.signal(full[:1], signal.SIGKILL)


async def kill_all(scene: Scene) -> None:
    scene.signal(scene.server.replicas(), signal.SIGKILL)


async def stop_one(scene: Scene) -> None:
    scene.signal(scene.server.replicas()[:1], signal.SIGSTOP)


async def kill_ingress(scene: Scene) -> None:
    scene.signal(scene.server.ingresses()[:1], signal.SIGKILL)


async def run_out_of_memory(scene: Scene) -> None:
    scene.mark()
    await scene.server.command("inject", faults={"ooms": 6, "oom_above": 2})


async def answer_nan(scene: Scene) -> None:
    scene.mark()
    await scene.server.command("inject", faults={"nans": 1})


async def fail_constructors(scene: Scene) -> None:
    await scene.server.command("fail-starts", times=3)
    scene.signal(scene.server.replicas()[:1], signal.SIGKILL)


async def redeploy(scene: Scene) -> None:
    """Deploys the same configuration again, which Serve treats as new code: every process is replaced."""
    old = {*scene.server.replicas(), *scene.server.ingresses()}
    scene.mark()
    await scene.server.command("redeploy", changes={})
    if old & {*scene.server.replicas(), *scene.server.ingresses()}:
        raise RuntimeError("the redeployment has left processes as they were")


async def do_nothing(scene: Scene) -> None:
    """Does nothing: the load itself is the fault."""
    scene.mark()


def burst(calls: list[Call], fault_at: float) -> list[Call]:
    """Returns `calls`, and long ones all at once when the fault is due."""
    return [*calls, *(Call(f"burst-{index}", fault_at, LONG) for index in range(BURST))]


def add_poison(calls: list[Call], fault_at: float) -> list[Call]:
    return [*calls, Call("poison", fault_at, POISON, must_fail=True)]


def let_half_leave(calls: list[Call], fault_at: float) -> list[Call]:
    stay = [call for call in calls if call.at <= fault_at]
    return stay + let_some_leave([call for call in calls if call.at > fault_at], 0.5, (0.02, 0.4), seed=2)


ROWS: Final[tuple[Row, ...]] = (
    Row(
        "sigkill-idle",
        "SIGKILL of an idle replica",
        Expected(0.4, 12, 1500, "the other replica serves; the new one's start takes half of the machine for a while"),
        kill_idle,
    ),
    Row(
        "sigkill-batch",
        "SIGKILL of a replica in mid-batch of 8",
        Expected(8, 20, 15_000, "the eight begin again behind the other replica's batch, and a start beside them"),
        kill_in_mid_batch,
        burst,
    ),
    Row(
        "sigkill-all",
        "SIGKILL of all replicas at once",
        Expected(10, 16, 14_000, "nobody can serve until a replica has started: imports, weights, warm-up"),
        kill_all,
    ),
    Row(
        "sigstop",
        "SIGSTOP of a replica",
        Expected(0.4, 20, 20_000, "what was on it waits until its health checks have failed; half of the rest passes"),
        stop_one,
    ),
    Row(
        "ingress",
        "SIGKILL of the only ingress replica",
        Expected(5, 8, 7000, "connections break or wait at the proxy until an ingress has started: no torch in it"),
        kill_ingress,
        counts_survive=False,
    ),
    Row(
        "out-of-memory",
        "out of memory, six times on each replica at calls of more than 2 rows",
        Expected(0.3, 1, 800, "the batch is halved and run again, which costs the step's time once or twice more"),
        run_out_of_memory,
    ),
    Row(
        "poison",
        "a poison request among the good ones",
        Expected(0.5, 30, 15_000, "it kills two or three replicas one after another, and then is refused for good"),
        do_nothing,
        add_poison,
    ),
    Row(
        "nan",
        "NaN for one row, once on each replica",
        Expected(0.3, 1, 800, "the row begins again, its neighbours do not notice"),
        answer_nan,
    ),
    Row(
        "leavers",
        "half of the clients leave",
        Expected(0.3, 0, 500, "what has left frees its rows: there is less to do than before"),
        do_nothing,
        let_half_leave,
    ),
    Row(
        "redeploy",
        "a redeployment under load",
        Expected(0.4, 30, 5000, "replicas are drained and replaced one by one, two starts beside the load"),
        redeploy,
        counts_survive=False,
    ),
    Row(
        "constructor",
        "a replica is killed, and its successor's constructor fails three times",
        Expected(0.4, 30, 1500, "the other replica carries the load; Serve backs off between its attempts"),
        fail_constructors,
    ),
)

OVERLOAD: Final = "overload"
OVERLOAD_FAULT: Final = "5 times the load that it can carry"
OVERLOAD_EXPECTED: Final = Expected(
    2, 25, 25_000, "the engine's queue of 128 fills to three quarters; the rest is refused at once"
)

BY_NAME: Final[Mapping[str, Row]] = MappingProxyType({row.name: row for row in ROWS})
NAMES_OF_ROWS: Final = (*BY_NAME, OVERLOAD)
