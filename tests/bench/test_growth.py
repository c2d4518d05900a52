"""The bench of growth: it runs on an engine as it is, and says when a step's own time grows with the queue."""

from pathlib import Path

import torch

from bench.engine.workload import text
from bench.growth import LENGTHS, _answer_at_once, _serve, _steps_beside, misses
from deployments.engine.models.loaded_model import load_model
from deployments.engine.protocol.spec import ModelSpec


def test_steps_are_measured_beside_a_queue_of_that_length(folder: Path) -> None:
    model = load_model(ModelSpec("tiny", str(folder)), torch.device("cpu"), torch.float32)
    model.unet.forward = _answer_at_once
    found = _steps_beside(model, 3)
    assert 0 < found["step_ms"] <= found["step_p95_ms"] <= found["step_most_ms"]


def test_requests_of_several_models_are_all_served(folder: Path) -> None:
    models = [load_model(ModelSpec(f"tiny-{i}", str(folder)), torch.device("cpu"), torch.float32) for i in range(2)]
    requests = [request for model in models for request in text(model.spec, 2, steps=(3,), size=64)]
    named = [request for index, request in enumerate(requests) if index in (0, 3)]
    found = _serve(models, named)
    assert found["requests"] == 2
    assert found["images_per_s"] > 0


def test_a_step_that_grows_with_the_queue_is_a_miss() -> None:
    grown = [{"waiting": length, "step_ms": float(length)} for length in LENGTHS]
    flat = [{"waiting": length, "step_ms": 2.0} for length in LENGTHS]
    assert misses({"queue": flat}) == []
    assert len(misses({"queue": grown})) == 1
    assert misses({"models": []}) == []
