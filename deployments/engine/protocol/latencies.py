"""Durations as histograms over sliding windows, which can be added up across processes. No torch.

Buckets are 5 % wide, so a percentile is within 2.6 % of the sample that it stands for, however many samples there are
(as in HdrHistogram and DDSketch: Masson, Rim and Lee, 2019). Every power of two seconds is the upper bound of a bucket:
coarser histograms with such bounds count exactly the same.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from deployments.engine.protocol.events import Timings

PER_DOUBLING: Final = 14
"""Buckets between a second and two, two and four, and so on."""

SHORTEST_S: Final = 2.0**-14
"""Shorter times, 0 included, count as this."""

Window = Literal["1m", "5m", "60m"]
WINDOWS: Final[Mapping[Window, int]] = {"1m": 60, "5m": 300, "60m": 3600}
"""The length of each window, in seconds."""

SLOTS: Final = 30
"""A window expires in this many slots: samples nearly as old as its length may be gone already."""

Phase = Literal["queue", "encode", "denoise", "decode", "inference", "total"]
"""The phases of a request; `inference` is all but the queue."""


@dataclass(slots=True)
class Histogram:
    """Durations by bucket: number i holds those above 2^((i-1)/14) and up to 2^(i/14) seconds."""

    buckets: Counter[int] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return self.buckets.total()

    def add(self, seconds: float) -> None:
        """Counts a duration."""
        self.buckets[_bucket(seconds)] += 1

    def percentile(self, percent: float) -> float:
        """Returns a percentile in seconds, by nearest rank; 0 of an empty histogram."""
        rank, seen = math.ceil(self.count * percent / 100), 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                return _middle(bucket)
        return 0.0

    def values(self) -> dict[float, int]:
        """Returns the counts by duration: the middle of each bucket, in seconds."""
        return {_middle(bucket): count for bucket, count in sorted(self.buckets.items())}


@dataclass(frozen=True, slots=True)
class Durations:
    """The durations of one thing: since the start, and in each window."""

    ever: Histogram = field(default_factory=Histogram)
    windows: Mapping[Window, Histogram] = field(default_factory=lambda: {window: Histogram() for window in WINDOWS})


class Recorder:
    """Records durations as they end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ever = Histogram()
        self._windows = {window: _Sliding(seconds / SLOTS) for window, seconds in WINDOWS.items()}

    def add(self, seconds: float) -> None:
        """Records a duration that ends now."""
        now = self._clock()
        for window in self._windows.values():
            window.at(now).add(seconds)
        self._ever.add(seconds)

    def durations(self) -> Durations:
        """Returns a copy of all durations so far. Safe on any thread."""
        now = self._clock()
        windows = {name: window.sum(now) for name, window in self._windows.items()}
        return Durations(Histogram(Counter(dict(self._ever.buckets))), windows)


class _Sliding:
    """The last `SLOTS` slots of `slot_s` seconds each."""

    def __init__(self, slot_s: float) -> None:
        self._slot_s = slot_s
        self._slots: deque[tuple[int, Histogram]] = deque(maxlen=SLOTS)

    def at(self, now: float) -> Histogram:
        """Returns the histogram for samples that end now."""
        slot = int(now // self._slot_s)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append((slot, Histogram()))
        return self._slots[-1][1]

    def sum(self, now: float) -> Histogram:
        """Adds up the slots that are not too old."""
        oldest = int(now // self._slot_s) - SLOTS
        return Histogram(_sum(dict(each.buckets) for slot, each in list(self._slots) if slot > oldest))


class PhaseRecorder:
    """Records the durations of every phase of requests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._phases: dict[Phase, Recorder] = {phase: Recorder(clock) for phase in PHASES}

    def record(self, timings: Timings) -> None:
        """Records a finished request."""
        for phase, milliseconds in _of(timings).items():
            self._phases[phase].add(milliseconds / 1000)

    def durations(self) -> dict[Phase, Durations]:
        """Returns a copy of the durations, by phase."""
        return {phase: recorder.durations() for phase, recorder in self._phases.items()}


def merge_durations(parts: Iterable[Durations]) -> Durations:
    """Merges the durations of several recorders."""
    every = list(parts)
    return Durations(
        Histogram(_sum(part.ever.buckets for part in every)),
        {window: Histogram(_sum(part.windows[window].buckets for part in every)) for window in WINDOWS},
    )


def _of(timings: Timings) -> dict[Phase, float]:
    return {
        "queue": timings.queued_ms,
        "encode": timings.encode_ms,
        "denoise": timings.denoise_ms,
        "decode": timings.decode_ms,
        "inference": max(0.0, timings.total_ms - timings.queued_ms),
        "total": timings.total_ms,
    }


PHASES: Final[tuple[Phase, ...]] = tuple(_of(Timings()))


def _bucket(seconds: float) -> int:
    # Rounded first, so that a power of two is not pushed out of its bucket by the logarithm's last bit.
    return math.ceil(round(math.log2(max(seconds, SHORTEST_S)) * PER_DOUBLING, 9))


def _middle(bucket: int) -> float:
    return float(2 ** ((bucket - 0.5) / PER_DOUBLING))


def _sum(parts: Iterable[Mapping[int, int]]) -> Counter[int]:
    out: Counter[int] = Counter()
    for part in parts:
        out.update(part)
    return out
