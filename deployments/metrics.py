"""The catalogue of Prometheus metrics, and how they are read from an engine's report. Knows neither Ray nor HTTP.

Units are base units, names end as Prometheus wants them; counters are listed without their `_total`, which exporters
add. Labels have few values: models, priorities, outcomes; never prompts, seeds, callers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

from deployments.engine.protocol.counters import Counters
from deployments.engine.protocol.latencies import Phase
from deployments.engine.protocol.report import EngineReport, ModelReport

DURATIONS_S: Final = tuple(2.0**power for power in range(-7, 10))
"""8 ms to 512 s: the upper bounds of duration histograms. Powers of two, so that rebucketing is exact."""

ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. `bounds` are the upper bounds of a histogram's buckets; there is always one more, without a bound."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A metric's current value, for the `values` of its labels. A histogram's maps each observed value to its count."""

    metric: Metric
    values: tuple[str, ...]
    now: float | Mapping[float, int]

    @property
    def labels(self) -> dict[str, str]:
        """The labels' values, by name."""
        return dict(zip(self.metric.labels, self.values, strict=True))


def _counter(name: str, description: str, *labels: str) -> Metric:
    return Metric(f"diffusion_{name}", "counter", description, labels)


def _gauge(name: str, description: str, *labels: str) -> Metric:
    return Metric(f"diffusion_{name}", "gauge", description, labels)


def _histogram(name: str, description: str, bounds: tuple[float, ...], *labels: str) -> Metric:
    return Metric(f"diffusion_{name}", "histogram", description, labels, bounds)


BUILD: Final = _gauge(
    "build_info", "Always 1; the labels are the versions at work", "version", "python", "ray", "torch", "diffusers"
)

REQUESTS: Final = _counter("requests", "Requests that have ended at the ingress", "model", "outcome", "code")
INFLIGHT: Final = _gauge("inflight_requests", "Requests that an ingress waits for")
DURATION: Final = _histogram("request_duration_seconds", "From the request to its last image", DURATIONS_S, "model")
REPLAYS: Final = _counter("replays", "Requests that were repeated because their replica was lost")
QUARANTINED: Final = _counter("quarantined", "Requests that replicas died of")
QUARANTINE_REFUSALS: Final = _counter("quarantine_refusals", "Refused because the like of it took replicas down")
COUNTS: Final = {
    metric.name.removeprefix("diffusion_"): metric for metric in (REPLAYS, QUARANTINED, QUARANTINE_REFUSALS)
}
"""The counters of lost replicas, by their names in statistics."""

RATE_LIMITED: Final = _counter("rate_limited", "Requests refused because their caller has had what it may have")
LIMITS_DEGRADED: Final = _counter("limits_degraded", "Limits that one process decided alone, because Redis was gone")
REPLAYED: Final = _counter("idempotent_replays", "Answers given again, to requests with an Idempotency-Key")
IDEMPOTENCY_DEGRADED: Final = _counter(
    "idempotency_degraded", "Times that an Idempotency-Key was not shared, because Redis was gone"
)
GATEWAY_COUNTS: Final = {
    metric.name.removeprefix("diffusion_"): metric
    for metric in (RATE_LIMITED, LIMITS_DEGRADED, REPLAYED, IDEMPOTENCY_DEGRADED)
}
"""The counters of the gateway, before the service, by their names in statistics."""
BLOCKED: Final = _counter("blocked_prompts", "Prompts refused by the blocklist", "rule")
CALLBACKS: Final = _counter(
    "callbacks", "Tries to send webhooks and to upload images of jobs, by what came of each", "kind", "outcome"
)
CALLBACK_OUTCOMES: Final = tuple(product(("webhook", "upload"), ("delivered", "retried", "failed")))
"""All values of those labels."""
REDIS_DAMAGED: Final = _counter("redis_damaged", "Found in Redis, and not used: not of the form that it was given")
CACHE_REQUESTS: Final = _counter("cache_requests", "Requests looked up, by where and what came of it", "tier", "result")
CACHE_ERRORS: Final = _counter("cache_errors", "What went wrong with cached results", "kind")
CACHE_SAVED: Final = _counter("cache_saved_seconds", "Inference time of the results that were served again")
CACHE_BYTES: Final = _gauge("cache_bytes", "Results in an ingress' memory")

IMAGES: Final = _counter("images", "Images by their end", "model", "status")
SAFETY: Final = _counter("safety_findings", "Images that were flagged, or could not be checked", "model", "status")
ENGINE_REQUESTS: Final = _counter("engine_requests", "Requests by what became of them in engines", "model", "outcome")
STEPS: Final = _counter("steps", "UNet evaluations of images", "model")
WASTED_STEPS: Final = _counter("wasted_steps", "UNet evaluations of images that nobody got", "model")
SAVED_STEPS: Final = _counter("saved_steps", "UNet evaluations that images took over from others", "model")
UNET_CALLS: Final = _counter("unet_calls", "Calls of the UNet", "model")
UNET_ROWS: Final = _counter("unet_rows", "Rows of those calls, by whether an image needed them", "model", "padding")
DENOISE: Final = _counter("denoise_seconds", "Time spent in UNet calls", "model")
PAUSED: Final = _counter("paused_images", "Images that made way for others, and went on later", "model")
RETRIES: Final = _counter("retries", "Images made again because they were not finite", "model")
OUT_OF_MEMORY: Final = _counter("oom", "Times that memory ran out, and batches halved because of it", "model", "action")
BATCH_SIZE: Final = _histogram("batch_size", "Rows of each UNet call", ROWS, "model")
QUEUE_WAIT: Final = _histogram(
    "queue_wait_seconds", "From arrival to the first step, encoding apart", DURATIONS_S, "model"
)
INFERENCE: Final = _histogram("inference_seconds", "Time in each stage of requests", DURATIONS_S, "model", "stage")

SHARED_STATES: Final = _counter(
    "shared_states", "Early states of images between a replica and Redis, by what became of them", "outcome"
)
SHARING_FAILURES: Final = _counter("sharing_failures", "Calls for such states that Redis did not answer as it should")

QUEUE_DEPTH: Final = _gauge("queue_depth", "Images that wait for their first place", "priority")
RUNNING: Final = _gauge("running_images", "Images that are being denoised")
CAPACITY: Final = _gauge("capacity_rows", "UNet rows that may run at once")
WORK: Final = _counter("work_seconds", "What all steps were worth, in seconds of a device whose calls are full")
BACKLOG: Final = _gauge("backlog_seconds", "What waits, in seconds of a device whose calls are full")
MEMORY: Final = _gauge("device_memory_bytes", "Of the device: the budget, what is held, what is planned for", "kind")
LOADED: Final = _gauge("loaded_models", "Models in memory")
READY: Final = _gauge("engine_ready", "1 while the engine makes progress")

_STAGES: Final[tuple[Phase, ...]] = ("encode", "denoise", "decode")


def engine_samples(report: EngineReport) -> Iterator[Sample]:
    """Yields every sample that one engine exports."""
    for name, model in report.models.items():
        yield from _counter_samples(name, model.counters)
        yield from _duration_samples(name, model)
    for priority, images in report.load.waiting.items():
        yield Sample(QUEUE_DEPTH, (priority,), images)
    yield Sample(RUNNING, (), report.load.running)
    yield Sample(CAPACITY, (), report.load.capacity)
    yield Sample(WORK, (), report.load.worked)
    yield Sample(BACKLOG, (), report.load.backlog)
    memory = report.memory
    for kind, number in (
        ("budget", memory.budget_bytes),
        ("held", memory.held_bytes),
        ("planned", memory.planned_bytes),
    ):
        if number is not None:
            yield Sample(MEMORY, (kind,), number)
    if (sharing := report.sharing) is not None:
        for outcome in ("sent", "received", "dropped", "damaged"):
            yield Sample(SHARED_STATES, (outcome,), getattr(sharing, outcome))
        yield Sample(SHARING_FAILURES, (), sharing.failures)
    yield Sample(LOADED, (), len(report.loaded_models))
    yield Sample(READY, (), report.ready)


def _counter_samples(model: str, counted: Counters) -> Iterator[Sample]:
    yield Sample(IMAGES, (model, "done"), counted.images)
    yield Sample(IMAGES, (model, "failed"), counted.failures)
    yield Sample(IMAGES, (model, "filtered"), counted.filtered)
    yield Sample(SAFETY, (model, "flagged"), counted.filtered + counted.flagged)
    yield Sample(SAFETY, (model, "unchecked"), counted.unchecked)
    for outcome in ("accepted", "refused", "cancelled", "expired"):
        number = counted.requests if outcome == "accepted" else getattr(counted, outcome)
        yield Sample(ENGINE_REQUESTS, (model, outcome), number)
    yield Sample(STEPS, (model,), counted.row_steps)
    yield Sample(WASTED_STEPS, (model,), counted.wasted_steps)
    yield Sample(SAVED_STEPS, (model,), counted.saved_steps)
    yield Sample(UNET_CALLS, (model,), counted.unet_calls)
    yield Sample(UNET_ROWS, (model, "no"), counted.unet_rows)
    yield Sample(UNET_ROWS, (model, "yes"), counted.padded_rows - counted.unet_rows)
    yield Sample(DENOISE, (model,), counted.denoise_seconds)
    yield Sample(PAUSED, (model,), counted.paused)
    yield Sample(RETRIES, (model,), counted.retries)
    yield Sample(OUT_OF_MEMORY, (model, "hit"), counted.out_of_memory)
    yield Sample(OUT_OF_MEMORY, (model, "split"), counted.splits)
    yield Sample(BATCH_SIZE, (model,), {float(rows): calls for rows, calls in counted.batch_sizes.items()})


def _duration_samples(name: str, model: ModelReport) -> Iterator[Sample]:
    if model.durations:
        yield Sample(QUEUE_WAIT, (name,), model.durations["queue"].ever.values())
        for stage in _STAGES:
            yield Sample(INFERENCE, (name, stage), model.durations[stage].ever.values())
