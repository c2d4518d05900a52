"""Adds up what engines have counted since this process began, those that are gone or late included.

A sum over the engines that answer would fall whenever one does not, and Prometheus takes a counter that falls for one
that began again: everything that the others have ever counted would seem to have happened now.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from deployments.engine.protocol.report import EngineReport
from deployments.metrics import Sample, engine_samples
from serve_app.observability.prometheus import add_up

REMEMBERED: Final = 100
"""Engines that did not answer last time. Of more than these, the first are taken for gone."""


class EngineTotals:
    """What engines have counted by their last reports. Used on one event loop."""

    def __init__(self) -> None:
        self._counted: dict[str, Sequence[Sample]] = {}
        self._gone: Sequence[Sample] = ()

    def samples(self, engines: Iterable[EngineReport]) -> Iterator[Sample]:
        """Yields the gauges of `engines`, and the counters and histograms of all that have ever reported."""
        present = set()
        for engine in engines:
            counted = []
            for sample in engine_samples(engine):
                # An engine without an id has counted nothing: there is nothing to remember.
                if sample.metric.kind == "gauge" or not engine.id:
                    yield sample
                else:
                    counted.append(sample)
            if engine.id:
                # Last in the order, which is that of the last reports.
                self._counted.pop(engine.id, None)
                self._counted[engine.id] = counted
                present.add(engine.id)
        self._forget([name for name in self._counted if name not in present])
        yield from self._gone
        for remembered in self._counted.values():
            yield from remembered

    def _forget(self, absent: Sequence[str]) -> None:
        """Keeps of all but the last `REMEMBERED` of the `absent` only what they have counted together."""
        gone = [sample for name in absent[:-REMEMBERED] for sample in self._counted.pop(name)]
        if gone:
            added = add_up([*self._gone, *gone]).items()
            self._gone = [Sample(metric, values, now) for (metric, values), now in added]
