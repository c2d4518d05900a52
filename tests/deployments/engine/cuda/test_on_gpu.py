"""What only a GPU can show: kernels launch, give torch's answers, and nothing in a call waits for the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.cuda.group_norm import normalize_groups
from deployments.engine.cuda.networks import CompiledNetwork
from deployments.engine.cuda.update import guide_and_advance
from deployments.engine.models.attention import sample_inputs
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.worker.compilation import compile_networks
from deployments.engine.worker.warm_up import warm_up
from tests.deployments.engine.cuda.kernel_cases import (
    NORMS,
    UPDATES,
    limit,
    norm_arguments,
    relative_error,
    update_arguments,
)
from tests.deployments.engine.harness import Tape, engine_of, request_for
from tests.deployments.engine.tiny import save_tiny_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return load_model(ModelSpec("tiny", str(folder)), torch.device("cuda"), torch.float16)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Makes every operation an error after which the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NORMS)
def test_the_normalization_kernel_gives_what_fp64_does(name: str) -> None:
    case = NORMS[name]
    given = norm_arguments(case)
    answer = normalize_groups(*(each.cuda() for each in given), case.groups, 1e-5, case.silu)
    exact = normalize_groups(*(each.double() for each in given), case.groups, 1e-5, case.silu)
    assert relative_error(answer.cpu(), exact) < limit(case.dtype)


@pytest.mark.parametrize("name", UPDATES)
def test_the_update_kernel_gives_what_torch_does(name: str) -> None:
    given = update_arguments(UPDATES[name])
    there = [each.cuda() for each in given]
    with no_waiting():
        answer = guide_and_advance(*there)
    assert relative_error(answer.cpu(), guide_and_advance(*given).double()) < 1e-5


def test_a_loaded_model_is_prepared_and_the_host_waits_for_no_call_of_it(model: LoadedModel) -> None:
    inputs = call_inputs(model, 4)
    with torch.inference_mode():
        model.unet(**inputs)  # cuDNN chooses
        with no_waiting():
            answer = model.unet(**inputs)[0]
    assert answer.is_contiguous(memory_format=torch.channels_last)
    assert all(model.attention.kernels.values())


def test_a_compiled_call_equals_the_eager_one_and_can_be_captured(model: LoadedModel) -> None:
    compiled = CompiledNetwork(model.unet)
    inputs = call_inputs(model, 4)
    with torch.inference_mode():
        expected = model.unet(**inputs)[0]
        for _ in range(2):
            answer = compiled(**inputs)[0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            captured = compiled(**inputs)[0]
        graph.replay()
    assert torch.allclose(answer, expected, atol=2e-2)
    assert torch.equal(captured, answer)


def test_the_loop_issues_steps_without_waiting_for_the_device(model: LoadedModel) -> None:
    tape = Tape()
    engine = engine_of(model, tape, max_rows=4)
    try:
        for name in ("a", "b"):
            engine.submit(request_for(model, name, sampler="euler_a", num_inference_steps=20))
        for _ in range(4):  # all rows run, and cuDNN has chosen
            engine.step()
        engine.settle()
        with no_waiting():
            for _ in range(12):
                assert engine.step()
        engine.drain()
    finally:
        engine.close()
    assert len(tape.images("a")) == len(tape.images("b")) == 1
    assert all(seconds > 0 for sizes in engine.admission.costs.measured_calls().values() for seconds in sizes.values())


def test_a_servers_networks_compile_and_make_the_same_pictures(model: LoadedModel) -> None:
    parts = Components(model.device, model.dtype, compile_with="inductor")
    compiled = load_model(model.spec, model.device, model.dtype, parts, model.attention)
    compile_networks(compiled)
    assert compiled.compiled == ("unet", "vae")
    pictures = []
    for each in (model, compiled):
        tape = Tape()
        engine = engine_of(each, tape, max_rows=4, padded_sizes=(2, 4))
        try:
            warm_up(engine)
            engine.submit(request_for(each, "x", num_images=2))
            engine.drain()
        finally:
            engine.close()
        pictures.append(tape.images("x")[0])
    assert compiled.compiled == ("unet", "vae")
    assert abs(pictures[0] - pictures[1]).mean() < 4


def call_inputs(model: LoadedModel, rows: int) -> dict[str, Any]:
    return sample_inputs(model.unet, rows, model.device, model.dtype)
