"""Reads what the agents of a local Ray cluster export, as a Prometheus server would."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.clients.history import Counts
from deployments.ray_metrics import PERIOD_S
from serve_app.launch.processes import find_descendants

AGENT = "DashboardAgent"
"""Ray's process of that name exports what all processes of its node tell it, also where the dashboard is off."""

SETTLES_WITHIN_S = 30.0

REPORT_INTERVAL_ENV = {"RAY_metrics_report_interval_ms": "1000"}
"""For servers under test: Ray tells its agents ten times as often as usual."""

TOLD_WITHIN_S = PERIOD_S + 2.0
"""From an event to the agent's page, with that interval."""

REQUESTS = "diffusion_requests_total"

Exported = Sequence[Sample]


def scrape(pid: int) -> list[Sample]:
    """Reads everything that is exported below the process `pid`, on all its nodes."""
    texts = [text for address in _listening(pid) if (text := _metrics(address)) is not None]
    return [each for text in texts for family in text_string_to_metric_families(text) for each in family.samples]


def total(samples: Exported, name: str, **labels: str) -> float:
    """Sums all series `name` that have these labels. Ray puts its own prefix before our names."""
    return sum(
        sample.value for sample in samples if sample.name == f"ray_{name}" and labels.items() <= sample.labels.items()
    )


def scrape_until(pid: int, holds: Callable[[Exported], bool]) -> list[Sample]:
    """Returns the samples once `holds` accepts them, or as they are after a while: they are exported in intervals."""
    deadline = time.monotonic() + SETTLES_WITHIN_S
    while True:
        samples = scrape(pid)
        if holds(samples) or time.monotonic() > deadline:
            return samples
        time.sleep(0.5)


def scrape_at_rest(pid: int) -> list[Sample]:
    """Returns the samples once no request has ended for longer than an export takes."""
    return scrape_until(pid, _Unchanged())


def growth(before: Exported, after: Exported, name: str, **labels: str) -> float:
    """Returns how much `name` grew between two readings, in processes that still live; the series of others
    vanish after a while.
    """
    then = {_series(sample): sample.value for sample in before}
    grown = [each._replace(value=each.value - then.get(_series(each), 0.0)) for each in after]
    return total(grown, name, **labels)


def exported_counts(before: Exported, after: Exported) -> Counts:
    """Counts requests between two readings, by how they ended."""

    def more(**labels: str) -> int:
        return round(growth(before, after, REQUESTS, **labels))

    finished, cancelled, broken = more(outcome="finished"), more(outcome="cancelled"), more(outcome="broken")
    succeeded = more(outcome="finished", code="")
    return Counts(
        source="Prometheus",
        accepted=finished + cancelled + broken,
        succeeded=succeeded,
        failed=finished - succeeded + broken,
        cancelled=cancelled,
        refused=more(outcome="refused"),
    )


class _Unchanged:
    """Holds when nothing has changed for a while."""

    def __init__(self) -> None:
        self._last = -1.0
        self._since = time.monotonic()

    def __call__(self, samples: Exported) -> bool:
        ended = total(samples, REQUESTS)
        if ended != self._last:
            self._last, self._since = ended, time.monotonic()
        return time.monotonic() - self._since > TOLD_WITHIN_S


def _series(sample: Sample) -> tuple[str, frozenset[tuple[str, str]]]:
    return sample.name, frozenset(sample.labels.items())


def _listening(pid: int) -> Iterator[str]:
    for below in find_descendants(pid):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(below)
            if AGENT in " ".join(process.cmdline()):
                listening = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                yield from (f"{_host(connection.laddr.ip)}:{connection.laddr.port}" for connection in listening)


def _host(address: str) -> str:
    """Where to find who listens there; `::` and 0.0.0.0 are every address of this machine."""
    if address in ("::", "0.0.0.0"):
        return "127.0.0.1"
    return f"[{address}]" if ":" in address else address


def _metrics(address: str) -> str | None:
    """None from an agent's other ports."""
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"http://{address}/metrics", trust_env=False, timeout=5)
        if answer.status_code == httpx.codes.OK and "# TYPE" in answer.text:
            return answer.text
    return None
