"""What this process has served: counters since it started, and latencies of the last minutes."""

import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Literal

from deployments.engine.events import Event, Finished, ImageDone, ImageFailed, Refused

WINDOW_SECONDS = 300.0
WINDOW_SIZE = 10_000

Clock = Callable[[], float]
Outcome = Literal["finished", "refused", "cancelled", "broken"]


class Latencies:
    """Milliseconds that requests took, of those that finished within the last `WINDOW_SECONDS`."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW_SIZE)

    def add(self, milliseconds: float) -> None:
        """A request took so long, and finished now."""
        self._samples.append((self._clock(), milliseconds))

    def snapshot(self) -> dict[str, float]:
        """Count and percentiles; the percentiles of no samples are 0."""
        oldest = self._clock() - WINDOW_SECONDS
        ordered = sorted(milliseconds for when, milliseconds in self._samples if when >= oldest)
        percentiles = {f"p{percent}": percentile(ordered, percent) for percent in (50, 95, 99)}
        return {"count": len(ordered), **percentiles, "window_seconds": WINDOW_SECONDS}


class Statistics:
    """Watches the requests of one service. Used on one event loop.

    Every request ends as exactly one of `finished`, `refused`, `cancelled` (the caller left) or `broken` (an error
    that nobody expected, or no end at all), or is `active`. `images` and `failures` count images.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._requests = 0
        self._images: Counter[type[Event]] = Counter()
        self._outcomes: Counter[Outcome] = Counter()
        self._latencies = Latencies(clock)

    async def watch(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """Hands `events` on and counts them. Closing this closes them."""
        begun = self._clock()
        self._requests += 1
        outcome: Outcome = "cancelled"
        try:
            async with aclosing(events):
                async for event in events:
                    outcome = self._outcome(event, outcome)
                    yield event
            if outcome == "cancelled":
                # Nobody left: the backend just ended, without a last word.
                outcome = "broken"
        except Exception:
            outcome = "broken"
            raise
        finally:
            self._outcomes[outcome] += 1
            if outcome == "finished":
                self._latencies.add((self._clock() - begun) * 1000)

    def snapshot(self) -> dict[str, Any]:
        """The counters and the latencies, as plain data."""
        return {
            "requests": self._requests,
            "active": self._requests - self._outcomes.total(),
            "finished": self._outcomes["finished"],
            "refused": self._outcomes["refused"],
            "cancelled": self._outcomes["cancelled"],
            "broken": self._outcomes["broken"],
            "images": self._images[ImageDone],
            "failures": self._images[ImageFailed],
            "latency_ms": self._latencies.snapshot(),
        }

    def _outcome(self, event: Event, before: Outcome) -> Outcome:
        match event:
            case ImageDone() | ImageFailed():
                self._images[type(event)] += 1
            case Finished():
                return "finished"
            case Refused():
                return "refused"
        return before


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of sorted numbers; 0 of none."""
    return round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 1) if ordered else 0.0
