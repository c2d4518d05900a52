"""Prometheus reads exactly what is counted: both formats, engines added up, histograms without a lost value."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.samples import Sample as Read

from deployments import metrics
from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.errors import Overloaded
from deployments.engine.protocol.events import Timings
from deployments.engine.protocol.latencies import PhaseRecorder
from deployments.engine.protocol.report import EngineReport, Load, MemoryReport, ModelReport, SharingReport
from deployments.metrics import BATCH_SIZE, DURATIONS_S, IMAGES, QUEUE_WAIT, READY, Metric, Sample, engine_samples
from serve_app.backends.protocol import BackendReport
from serve_app.observability.prometheus import build_families, exposition
from serve_app.observability.versions import darkroom_version
from serve_app.service import DiffusionService
from tests.serve_app.fakes import PATH, FakeBackend, refusing

CATALOGUE = [value for value in vars(metrics).values() if isinstance(value, Metric)]


def engine(images: int, *waits_ms: float) -> EngineReport:
    """One that has made so many images, and let requests wait so long."""
    phases = PhaseRecorder()
    for wait in waits_ms:
        phases.record(Timings(queued_ms=wait, total_ms=wait + 10))
    counters = Counters(images=images, unet_calls=images, batch_sizes=Counter({2: images}), denoise_seconds=0.5)
    memory = MemoryReport(100, 40, 60)
    model = ModelReport(counters, phases.durations())
    return EngineReport(True, "cpu", ("tiny",), {"tiny": model}, Load({"low": 1}, 2, 16), memory)


def read(document: str) -> list[Read]:
    return [sample for family in read_text(document) for sample in family.samples]


def value(samples: Iterable[Read], name: str, **labels: str) -> float:
    (found,) = [each.value for each in samples if each.name == name and each.labels == labels]
    return found


def test_engines_are_added_up() -> None:
    reports = (engine(2, 5, 100), engine(3, 700))
    document, _ = exposition(sample for report in reports for sample in engine_samples(report))
    samples = read(document.decode())
    assert value(samples, "diffusion_images_total", model="tiny", status="done") == 5
    assert value(samples, "diffusion_denoise_seconds_total", model="tiny") == 1.0
    assert value(samples, "diffusion_batch_size_bucket", model="tiny", le="1.0") == 0
    assert value(samples, "diffusion_batch_size_bucket", model="tiny", le="2.0") == 5
    assert value(samples, "diffusion_batch_size_sum", model="tiny") == 10
    assert value(samples, "diffusion_queue_depth", priority="low") == 2
    assert value(samples, "diffusion_device_memory_bytes", kind="held") == 80
    assert value(samples, "diffusion_engine_ready") == 2


def test_a_histogram_counts_every_value_on_its_side_of_every_bound() -> None:
    waits_ms = [2**power * 1000 * factor for power in range(-7, 10) for factor in (0.999, 1.0, 1.001)]
    (found,) = [
        family for family in build_families(engine_samples(engine(0, *waits_ms))) if family.name == QUEUE_WAIT.name
    ]
    buckets = {each.labels["le"]: each.value for each in found.samples if each.name.endswith("_bucket")}
    for bound in DURATIONS_S:
        assert buckets[str(bound)] == sum(wait <= bound * 1000 for wait in waits_ms)
    assert buckets["+Inf"] == len(waits_ms)


def test_a_histogram_of_nothing_is_all_zeros() -> None:
    (family,) = build_families([Sample(BATCH_SIZE, ("tiny",), {})])
    assert {sample.value for sample in family.samples} == {0.0}


async def test_every_metric_that_has_a_sample_is_told_in_both_formats(
    client: httpx.AsyncClient, backend: FakeBackend, service: DiffusionService
) -> None:
    backend.now = BackendReport((replace(engine(2, 5), sharing=SharingReport()),))
    backend.counts = {"replays": 1, "quarantined": 2, "quarantine_refusals": 3}
    service.prompts.blocklist.counts["a rule"] = 4
    await client.post(PATH, json={"prompt": "a cup"})
    plain = await client.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    told = {family.name for family in read_text(plain.text)}
    assert told == {metric.name for metric in CATALOGUE}
    # What Prometheus itself sends.
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    other = await client.get("/metrics", headers={"Accept": accept})
    assert other.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in read_openmetrics(other.text)} == told


async def test_metrics_and_statistics_agree(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.now = BackendReport((engine(2, 5, 100), engine(3, 700)))
    await client.post(PATH, json={"prompt": "a cup"})
    backend.script = refusing(Overloaded("full"))
    await client.post(PATH, json={"prompt": "a cup"})
    samples = read((await client.get("/metrics")).text)
    stats = (await client.get("/ads/v2/diffusion/stats")).json()
    assert (
        value(samples, "diffusion_requests_total", model="tiny", outcome="finished", code="") == stats["finished"] == 1
    )
    refused = value(samples, "diffusion_requests_total", model="tiny", outcome="refused", code="overloaded")
    assert refused == stats["refusals"]["overloaded"] == 1
    assert value(samples, "diffusion_inflight_requests") == stats["active"] == 0
    assert value(samples, "diffusion_replays_total") == stats["replays"] == 1
    model = stats["models"]["tiny"]
    assert value(samples, "diffusion_images_total", model="tiny", status="done") == model["images"] == 5
    assert value(samples, "diffusion_unet_calls_total", model="tiny") == model["unet_calls"] == stats["unet_calls"]
    assert value(samples, "diffusion_running_images") == stats["images_running"] == 4
    assert value(samples, "diffusion_queue_depth", priority="low") == stats["waiting_by_priority"]["low"]
    assert value(samples, "diffusion_queue_wait_seconds_count", model="tiny") == 3
    assert model["durations_ms"]["queue"]["60m"]["count"] == 3
    assert value(samples, READY.name) == sum(each["ready"] for each in stats["engines"])


async def test_the_build_is_told(client: httpx.AsyncClient) -> None:
    (build,) = [each for each in read((await client.get("/metrics")).text) if each.name == "diffusion_build_info"]
    assert build.labels["version"] == darkroom_version()
    assert build.labels["torch"] != "0"


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=SECRET", "text/plain; version=9; escaping=SECRET"]
)
async def test_what_was_asked_for_is_not_echoed(client: httpx.AsyncClient, accept: str) -> None:
    answer = await client.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert "SECRET" not in str(answer.headers) + answer.text


async def test_without_engines_there_are_the_services_own_figures(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.now = BackendReport()
    names = {sample.name for sample in read((await client.get("/metrics")).text)}
    assert "diffusion_inflight_requests" in names
    assert IMAGES.name + "_total" not in names
