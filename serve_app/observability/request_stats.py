"""Statistics of the requests that this process has served: counts by model and outcome, and durations."""

import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Any, Final, Literal

from deployments.engine.protocol.errors import Cancelled
from deployments.engine.protocol.events import Event, Failed, Finished, ImageDone, ImageFailed, is_filtered
from deployments.engine.protocol.latencies import Durations, Recorder, merge_durations
from deployments.metrics import DURATION, INFLIGHT, REQUESTS, Sample
from serve_app.observability.engine_stats import windows_ms

Clock = Callable[[], float]
Outcome = Literal["finished", "refused", "cancelled", "broken"]
End = tuple[Outcome, str]

_LEFT: Final[End] = ("cancelled", "")
_BROKEN: Final[End] = ("broken", "internal_error")


class Statistics:
    """Counts and times the requests of one service. Used on one event loop; may be read from any thread.

    Every request is `active`, or has ended as exactly one of `finished`, `refused`, `cancelled` (the client
    disconnected, or cancelled it by its id) or `broken` (an unexpected error, or no end at all). `images`, `failures`
    and `filtered` count images. Besides the outcome it keeps the code of the error that refused the request, or that
    its first failed image had.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._requests = 0
        self._images: Counter[type[Event]] = Counter()
        self._filtered = 0
        self._ends: Counter[tuple[str, Outcome, str]] = Counter()
        self._durations_by_model: defaultdict[str, Recorder] = defaultdict(lambda: Recorder(clock))

    async def watch(
        self, model: str, events: AsyncGenerator[Event, None], begun: Callable[[], float] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Passes on the `events` of a request to `model`, and counts them. Closing this closes them.

        The request is timed from now on, or from what `begun` says at its end, by this object's `clock`.
        """
        asked_at = self.clock()
        self._requests += 1
        end = _LEFT
        try:
            async with aclosing(events):
                async for event in events:
                    end = self._outcome_after(event, end)
                    yield event
            if end[0] == "cancelled" and end[1] != Cancelled.code:
                # Nobody disconnected: the backend ended without a last event.
                end = _BROKEN
        except Exception:
            end = _BROKEN
            raise
        finally:
            self._ends[model, *end] += 1
            if end[0] == "finished":
                self._durations_by_model[model].add(self.clock() - (asked_at if begun is None else begun()))

    def snapshot(self) -> dict[str, Any]:
        """The counters and latencies, as plain data."""
        ends: Counter[str] = Counter()
        refusals: Counter[str] = Counter()
        for (_, outcome, code), number in list(self._ends.items()):
            ends[outcome] += number
            if outcome == "refused":
                refusals[code] += number
        return {
            "requests": self._requests,
            "active": self._requests - ends.total(),
            "finished": ends["finished"],
            "refused": ends["refused"],
            "cancelled": ends["cancelled"],
            "broken": ends["broken"],
            "refusals": dict(refusals),
            "images": self._images[ImageDone],
            "failures": self._images[ImageFailed],
            "filtered": self._filtered,
            "latency_ms": windows_ms(merge_durations(self._durations().values())),
        }

    def samples(self) -> Iterator[Sample]:
        """The same for Prometheus, by model."""
        ends = list(self._ends.items())
        for labels, number in ends:
            yield Sample(REQUESTS, labels, number)
        yield Sample(INFLIGHT, (), self._requests - sum(number for _, number in ends))
        for model, durations in self._durations().items():
            yield Sample(DURATION, (model,), durations.ever.values())

    def _durations(self) -> dict[str, Durations]:
        return {model: recorder.durations() for model, recorder in list(self._durations_by_model.items())}

    def _outcome_after(self, event: Event, before: End) -> End:
        match event:
            case ImageDone():
                self._images[ImageDone] += 1
            case ImageFailed(error=error):
                self._filtered += is_filtered(event)
                self._images[ImageFailed] += not is_filtered(event)
                return before[0], before[1] or error.code
            case Finished():
                return "finished", before[1]
            case Failed(error=Cancelled(code=code)):
                return "cancelled", code
            case Failed(error=error):
                return "refused", error.code
        return before
