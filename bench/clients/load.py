"""Generates open-loop load: requests are sent when they are due, whatever has become of earlier ones.

A client that waits for its answer before it sends the next request hides what a stall does to all others (coordinated
omission); here a stalled server gets as many requests as a fast one. Latency counts from when a request was due, so
a generator that cannot keep up shows in the figures, too. No HTTP here.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is due `at`, in seconds of the load's clock, for the golden picture `wanted`.

    `delivery` is the form of the answer. The client leaves after `stays` seconds; None: it stays.
    """

    id: str
    at: float
    wanted: str
    delivery: Literal["json", "stream"] = "json"
    stays: float | None = None
    must_fail: bool = False


Ask = Callable[[Call], Awaitable[None]]
"""Sends a call and sees to its end. Raises nothing that belongs to the server."""

Clock = Callable[[], float]
"""Seconds since the load's start."""


def arrivals(rate: float, count: int, chance: random.Random) -> Iterator[float]:
    """Yields `count` ascending times, in seconds, of a Poisson process: callers are independent of each other."""
    now = 0.0
    for _ in range(count):
        now += chance.expovariate(rate)
        yield now


def steady_calls(
    name: str, rate: float, count: int, pictures: Sequence[str], seed: int, start: float = 0.0
) -> list[Call]:
    """Returns `count` calls at `rate` a second from `start` on, for random pictures; every other one is streamed."""
    chance = random.Random(seed)
    return [
        Call(f"{name}-{index}", start + at, chance.choice(pictures), "stream" if index % 2 else "json")
        for index, at in enumerate(arrivals(rate, count, chance))
    ]


def let_some_leave(calls: Sequence[Call], share: float, stays: tuple[float, float], seed: int) -> list[Call]:
    """Returns `calls`, of whose clients `share` leave after some time between the two `stays`, in seconds."""
    chance = random.Random(seed)
    return [replace(call, stays=chance.uniform(*stays)) if chance.random() < share else call for call in calls]


async def drive(calls: Sequence[Call], ask: Ask, clock: Clock) -> None:
    """Sends every call when it is due, and returns when all have ended."""
    async with asyncio.TaskGroup() as group:
        for call in sorted(calls, key=lambda call: call.at):
            await asyncio.sleep(max(0.0, call.at - clock()))
            group.create_task(_ask_one(ask, call))


async def saturate(callers: int, seconds: float, pictures: Sequence[str], ask: Ask, clock: Clock) -> None:
    """Runs `callers` that send again as soon as they are answered, to measure the peak. Not open loop."""
    until = clock() + seconds

    async def caller(number: int) -> None:
        asked = 0
        while clock() < until:
            await ask(Call(f"peak-{number}-{asked}", clock(), pictures[(number + asked) % len(pictures)]))
            asked += 1

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(number))


async def _ask_one(ask: Ask, call: Call) -> None:
    await ask(call)
