"""A server's networks run compiled where they were compiled when their model was warmed up, and nothing else compiles.

Nothing is generated: dynamo traces, and a backend that records runs the graph as it is.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.cuda.compiled_calls import MOST_KINDS, CompilableNetwork, CompilableVae, CompiledCalls
from deployments.engine.cuda.networks import Backend
from deployments.engine.device.errors import DeviceLost
from deployments.engine.device.memory import CpuMemory
from deployments.engine.engine import Engine
from deployments.engine.models.components import Components
from deployments.engine.models.loaded_model import LoadedModel, load_model
from deployments.engine.models.manager import DiffusionModelManager
from deployments.engine.protocol.request import Request
from deployments.engine.protocol.spec import ModelSpec
from deployments.engine.scheduling.device import Meter
from deployments.engine.worker.compilation import compile_networks
from deployments.engine.worker.snapshot import report_of
from deployments.engine.worker.warm_up import warm_up
from tests.deployments.engine.cuda.test_networks import SIZES, Recorder, flat, keyed_unet, unet_inputs
from tests.deployments.engine.harness import Tape, difference, engine_of, request_for, run
from tests.deployments.engine.test_kinds import KINDS

CPU = torch.device("cpu")
SMALL = (2, 4, 8, 12, 14)
"""Sizes of calls for which torch on a CPU does not change the library of its convolutions: as on CUDA."""


@pytest.fixture(autouse=True)
def _fresh_dynamo(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forgets what is compiled, but for the tests that share it, which are the first of this file."""
    if "compiled" in request.fixturenames:
        yield
        return
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def load(checkpoint: Path, backend: Backend, controlnets: dict[str, str] | None = None) -> LoadedModel:
    """Loads a model as a server on CUDA does, apart from the device."""
    parts = Components(CPU, torch.float32, compile_with=backend)
    return load_model(ModelSpec("tiny", str(checkpoint), controlnets=controlnets or {}), CPU, torch.float32, parts)


@pytest.fixture(scope="module")
def compiled(tiny_checkpoint: Path, tiny_controlnets: dict[str, str]) -> Iterator[tuple[LoadedModel, Recorder]]:
    """A model with ControlNets, compiled as at a start, and the graphs that were made of it."""
    torch._dynamo.reset()
    backend = Recorder()
    model = load(tiny_checkpoint, backend, tiny_controlnets)
    assert model.compiled == ()
    compile_networks(model)
    yield model, backend
    torch._dynamo.reset()


class Unmetered(CpuMemory):
    """A device whose allocator counts, as CUDA's does: what counts on a CPU gets in the way of compiled calls."""

    @contextmanager
    def meter(self) -> Iterator[Meter]:
        yield Meter()


def serve(model: LoadedModel, requests: Sequence[Request], **settings: Any) -> tuple[Tape, Engine]:
    """All `requests` together, to the end, unmetered."""
    return run(model, requests, memory=Unmetered(), **settings)


def crowd(model: LoadedModel) -> list[Request]:
    requests = [request_for(model, f"r{i}", num_inference_steps=4 + i, sampler="euler_a") for i in range(6)]
    inputs, asked = KINDS["controlnet"]
    requests += [request_for(model, f"c{i}", inputs, **{**asked, "num_inference_steps": 5 + i}) for i in range(3)]
    return requests


def test_a_whole_server_needs_few_graphs_compiles_nothing_while_it_serves_and_makes_the_same_pictures(
    compiled: tuple[LoadedModel, Recorder], tiny_controlnets: dict[str, str], tiny_controlled: LoadedModel
) -> None:
    model, backend = compiled
    assert model.compiled == ("unet", "vae", *(f"controlnet {name}" for name in tiny_controlnets))
    graphs = len(backend.graphs)
    # The UNet with ControlNets and without, the decoder for one and for more, and one that all alike ControlNets share.
    assert graphs <= 2 + 2 + len(tiny_controlnets)
    settings: dict[str, Any] = {"max_rows": SMALL[-1], "padded_sizes": SMALL}
    ours, engine = serve(model, crowd(model), **settings)
    theirs, _ = serve(tiny_controlled, crowd(tiny_controlled), **settings)
    assert len(backend.graphs) == graphs
    assert len(engine.tracker.total.batch_sizes) > 3
    for request in crowd(model):
        assert difference(ours.images(request.id)[0], theirs.images(request.id)[0]) <= 1
    assert model.compiled, "a compiled call failed"


def test_calls_of_steps_and_of_the_decoder_are_the_ones_that_were_compiled(
    compiled: tuple[LoadedModel, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = compiled
    networks = [model.unet, model.vae, model.controlnets["canny"].network]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("this ran as it is")

    for network in networks:
        monkeypatch.setattr(network.calls, "_function", never)
    tape, _ = serve(model, crowd(model)[3:], max_rows=4, padded_sizes=(2, 4))
    assert all(len(tape.images(request.id)) == 1 for request in crowd(model)[3:])


@pytest.mark.parametrize(
    "asked",
    [
        {"width": 128, "height": 128},
        {"prompt": "word " * 90},
        {"deep_cache": 2},
        {"exact": True},
    ],
    ids=str,
)
def test_other_kinds_of_calls_compile_nothing(
    asked: dict[str, Any], compiled: tuple[LoadedModel, Recorder], tiny_model: LoadedModel
) -> None:
    model, backend = compiled
    graphs = len(backend.graphs)
    request = request_for(tiny_model, "x", **asked)
    ours, _ = serve(model, [request], max_rows=4)
    theirs, _ = serve(tiny_model, [request], max_rows=4)
    assert len(backend.graphs) == graphs
    assert difference(ours.images("x")[0], theirs.images("x")[0]) <= 1


def test_no_more_than_two_graphs_serve_all_padded_sizes_of_a_kind() -> None:
    """One on CUDA: the second is torch's doing on a CPU, where sixteen and more go to another library."""
    unet, backend = keyed_unet(), Recorder()
    calls = CompiledCalls(unet, "the UNet", backend)
    with torch.inference_mode():
        calls.compile(**unet_inputs(unet, 2))
        for rows in SIZES:
            given = unet_inputs(unet, rows)
            for ours, theirs in zip(flat(calls(**given)), flat(unet(**given)), strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(backend.graphs) <= 2
    assert calls.is_compiled


def test_a_third_kind_is_not_compiled() -> None:
    backend = Recorder()
    calls = CompiledCalls(torch.nn.ReLU(), "x", backend)
    with torch.inference_mode():
        for width in range(2, 6):
            calls.compile(torch.zeros(2, width))
            assert calls(torch.zeros(4, width)).shape == (4, width)
    assert len(backend.graphs) == MOST_KINDS == 2


def raising(error: Exception) -> Backend:
    """Stands for a backend, or for a compiled function."""

    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(
    tiny_checkpoint: Path, tiny_model: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    model = load(tiny_checkpoint, raising(RuntimeError("no compiler here")))
    with caplog.at_level(logging.WARNING):
        compile_networks(model)
    assert model.compiled == ()
    told = [record.getMessage() for record in caplog.records if "is not compiled" in record.getMessage()]
    assert len(told) == 2
    assert "no compiler here" in told[0]
    request = request_for(tiny_model, "x")
    assert difference(serve(model, [request])[0].images("x")[0], serve(tiny_model, [request])[0].images("x")[0]) == 0


def test_a_compiled_call_that_fails_is_made_again_by_the_network_itself_and_is_the_last(
    tiny_checkpoint: Path, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_checkpoint, Recorder())
    compile_networks(model)

    monkeypatch.setattr(model.unet.calls, "_compiled", raising(RuntimeError("injected")))
    request = request_for(tiny_model, "x")
    ours, _ = serve(model, [request])
    assert difference(ours.images("x")[0], serve(tiny_model, [request])[0].images("x")[0]) <= 1
    assert model.compiled == ("vae",)


def test_memory_that_runs_out_in_a_compiled_call_is_the_callers_matter_and_the_next_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = CompiledCalls(torch.nn.ReLU(), "x", Recorder())
    with torch.inference_mode():
        calls.compile(torch.zeros(2, 3))
        with monkeypatch.context() as patch:
            patch.setattr(calls, "_compiled", raising(torch.OutOfMemoryError("CUDA out of memory.")))
            with pytest.raises(torch.OutOfMemoryError):
                calls(torch.zeros(4, 3))
        assert calls.is_compiled
        assert calls(torch.zeros(4, 3)).shape == (4, 3)


def test_a_device_that_is_lost_while_compiling_is_lost(tiny_checkpoint: Path) -> None:
    model = load(
        tiny_checkpoint, raising(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    )
    with pytest.raises(DeviceLost):
        compile_networks(model)


def test_shared_networks_are_compiled_once_and_not_while_another_model_uses_them(
    tiny_checkpoint: Path, tiny_controlnets: dict[str, str]
) -> None:
    backend = Recorder()
    parts = Components(CPU, torch.float32, compile_with=backend)
    nets = {"canny": tiny_controlnets["canny"]}
    specs = [ModelSpec(name, str(tiny_checkpoint), controlnets=nets) for name in "ab"]
    one, two = (load_model(spec, CPU, torch.float32, parts) for spec in specs)
    assert one.vae is two.vae
    assert one.unet is not two.unet
    compile_networks(one)
    graphs = len(backend.graphs)
    compile_networks(two, set(one.networks))
    assert one.compiled == two.compiled == ("unet", "vae", "controlnet canny")
    assert len(two.unet.calls._kinds) == 2
    assert len(backend.graphs) <= graphs + 2


def test_a_deep_copy_and_all_else_is_the_network_itself(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint, Recorder())
    assert isinstance(model.unet, CompilableNetwork)
    assert isinstance(model.vae, CompilableVae)
    for network in (model.unet, model.vae):
        assert network.config is network.plain.config
        assert type(copy.deepcopy(network)) is type(network.plain)
    plain = replace(model, unet=model.unet.plain, vae=model.vae.plain)
    assert model.bytes == plain.bytes > 0


def test_the_warm_up_compiles_and_the_report_names_what_is_compiled(tiny_checkpoint: Path) -> None:
    backend = Recorder()
    model = load(tiny_checkpoint, backend)
    engine = engine_of(model, Tape(), memory=Unmetered(), max_rows=2)
    try:
        warm_up(engine)
        assert report_of(engine, ready=True).compiled == {"tiny": ("unet", "vae")}
    finally:
        engine.close()


@pytest.mark.parametrize(("device", "backend"), [("cuda", "inductor"), ("cpu", None)])
def test_only_a_server_on_cuda_compiles(device: str, backend: Backend | None) -> None:
    before = torch.backends.cudnn.benchmark
    try:
        manager = DiffusionModelManager([], torch.device(device), torch.float32)
    finally:
        torch.backends.cudnn.benchmark = before
    assert manager._parts._compile_with == backend
