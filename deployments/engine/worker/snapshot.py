"""Looks at an engine from another thread: its reports, and what its models make of a text."""

from deployments.engine.engine import Engine
from deployments.engine.protocol.errors import EngineStopped
from deployments.engine.protocol.latencies import PhaseRecorder
from deployments.engine.protocol.report import (
    CallReport,
    EngineReport,
    Load,
    MemoryReport,
    ModelReport,
    TokenCount,
)
from deployments.engine.protocol.request import Bucket, Request
from deployments.engine.request_tracker import RequestTracker
from deployments.engine.scheduling.admission import Admission
from deployments.engine.scheduling.memory_plan import Kind
from deployments.engine.worker.lora_files import describe_bundled


def report_of(engine: Engine, ready: bool) -> EngineReport:
    """Returns the report of `engine`."""
    models = list(engine.models.values())
    native = [Bucket(model.spec.name, *model.spec.native) for model in models]
    admission = engine.admission
    return EngineReport(
        ready=ready,
        device=next((model.device.type for model in models), ""),
        loaded_models=tuple(model.spec.name for model in models),
        models=_model_reports(engine.tracker),
        load=load_of(engine),
        memory=MemoryReport(*admission.memory_used(engine.running)),
        knees={bucket.model: admission.costs.knee(bucket) for bucket in native},
        calls=_call_reports(admission),
        backends={model.spec.name: model.backend for model in models},
        attention={model.spec.name: model.attention.as_text() for model in models},
        compiled={model.spec.name: model.compiled for model in models},
        adapters=engine.adapters.report(),
        id=engine.tracker.id,
    )


def load_of(engine: Engine) -> Load:
    """Returns the load of `engine`; called several times a second."""
    admission = engine.admission
    waiting, backlog = admission.queue.waiting_by_priority(), admission.queue.seconds
    return Load(waiting, len(engine.running), engine.capacity, admission.estimator.work_done, backlog)


def count_tokens(engine: Engine | None, request: Request) -> tuple[TokenCount, TokenCount]:
    """Counts the tokens of the request's prompts, with embeddings that its LoRAs bring along.

    Nothing is brought into memory for that. Raises EngineStopped if the model is not there, and what looking at a LoRA
    raises. From any thread; not quick.
    """
    model = None if engine is None else engine.models.get(request.model)
    if engine is None or model is None:
        raise EngineStopped("the model is not in memory now")
    counting, params = model.prompt_encoder.count, request.params
    learnt = request.embeddings
    if request.loras:
        engine.adapters.check_readable()
        learnt = (*learnt, *(each for use in request.loras for each in describe_bundled(use.file)))
    return counting(params.prompt, "prompt", learnt), counting(params.negative_prompt, "negative_prompt", learnt)


def _model_reports(tracker: RequestTracker) -> dict[str, ModelReport]:
    # Never makes recorders here: if two threads each made the missing one, the first one's samples would be lost.
    nothing_yet = PhaseRecorder()
    return {
        name: ModelReport(counters.copy(), tracker.phases.get(name, nothing_yet).durations())
        for name, counters in list(tracker.counters.items())
    }


def _call_reports(admission: Admission) -> tuple[CallReport, ...]:
    seconds: dict[tuple[Kind, Bucket, int], float] = {
        ("denoise", bucket, rows): taken
        for bucket, sizes in admission.costs.measured_calls().items()
        for rows, taken in sizes.items()
    }
    measured = admission.plan.figures()
    nothing = (None, None)
    return tuple(
        CallReport(
            kind,
            bucket.model,
            bucket.width,
            bucket.height,
            rows,
            seconds.get((kind, bucket, rows)),
            *(measured.get((kind, bucket, rows)) or nothing),
        )
        for kind, bucket, rows in sorted({*seconds, *measured}, key=str)
    )
