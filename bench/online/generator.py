"""Sends traffic to a server, open loop, and counts what becomes of it.

A request is sent when it is due, whatever has become of earlier ones, and its time counts from when it was due. Its
client waits for twice the deadline and then hangs up, as a browser or a gateway does.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx

from bench.clients.load import Call, drive
from bench.online.messages import Message
from bench.timing import percentile

PATIENCE: Final = 2.0
"""A client hangs up after so many times its deadline."""

REFUSALS: Final = frozenset(
    (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
)
"""A server that answers so has not tried and failed: it says that it is too busy to make the picture in time."""

Outcome = Literal["answered", "refused", "failed", "left"]


@dataclass(frozen=True, slots=True)
class Planned:
    """A message that is due `at` seconds after the start, and whose picture is wanted within `deadline_s`."""

    at: float
    deadline_s: float
    message: Message


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of a request, `seconds` after it was due. It was sent `lag` seconds late."""

    at: float
    deadline_s: float
    outcome: Outcome
    seconds: float
    lag: float
    detail: str = ""

    @property
    def in_time(self) -> bool:
        return self.outcome == "answered" and self.seconds <= self.deadline_s


async def send_all(url: str, planned: Sequence[Planned]) -> list[Sample]:
    """Sends everything when it is due, and returns, in the same order, what became of it."""
    calls = [Call(str(index), one.at, "") for index, one in enumerate(planned)]
    samples: dict[int, Sample] = {}
    unbounded = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=None, limits=unbounded) as http:
        started = time.perf_counter()

        def clock() -> float:
            return time.perf_counter() - started

        async def ask(call: Call) -> None:
            one, lag = planned[int(call.id)], clock() - call.at
            outcome, detail = await _outcome(http, one, PATIENCE * one.deadline_s - lag)
            samples[int(call.id)] = Sample(one.at, one.deadline_s, outcome, clock() - call.at, lag, detail)

        await drive(calls, ask, clock)
    return [samples[index] for index in range(len(planned))]


async def fetch(url: str, message: Message) -> bytes:
    """Returns the picture's file, from a server that has nothing else to do. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=120.0) as http:
        return (await http.post(message.path, **message.options)).raise_for_status().content


async def _outcome(http: httpx.AsyncClient, one: Planned, patience_s: float) -> tuple[Outcome, str]:
    try:
        async with asyncio.timeout(patience_s):
            response = await http.post(one.message.path, **one.message.options)
    except TimeoutError:
        return "left", ""
    except httpx.TransportError as error:
        return "failed", type(error).__name__
    if response.is_success:
        return "answered", ""
    return ("refused" if response.status_code in REFUSALS else "failed"), str(response.status_code)


def tally(samples: Sequence[Sample], window_s: float) -> dict[str, Any]:
    """Counts what became of the requests of `window_s` seconds.

    Goodput is the pictures that came in time, by second of the window; throughput is those that came while requests
    still arrived. Percentiles are over all requests: one that got no picture is infinitely late, which JSON has as
    None, so that refusing many does not make a server look fast.
    """
    outcomes = Counter(one.outcome for one in samples)
    times = [one.seconds if one.outcome == "answered" else float("inf") for one in samples]
    arrived = sum(one.outcome == "answered" and one.at + one.seconds <= window_s for one in samples)
    in_time = sum(one.in_time for one in samples)
    return {
        "requests": len(samples),
        "offered_per_s": round(len(samples) / window_s, 3),
        "goodput_per_s": round(in_time / window_s, 3),
        "in_time": round(in_time / len(samples), 4),
        "throughput_per_s": round(arrived / window_s, 3),
        **{f"p{percent}_s": _finite(percentile(times, percent)) for percent in (50, 95, 99)},
        **{outcome: outcomes[outcome] for outcome in ("answered", "refused", "failed", "left")},
        "details": dict(Counter(one.detail for one in samples if one.detail)),
        "most_lag_s": round(max(one.lag for one in samples), 3),
    }


def _finite(seconds: float) -> float | None:
    return None if seconds == float("inf") else round(seconds, 3)
